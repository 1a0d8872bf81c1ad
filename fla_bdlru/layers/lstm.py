"""PyTorch's LSTM behind FLA's layer signature: the dense, nonlinear reference of a comparison."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from fla_bdlru.layers.base import Mixer, channels_from


class LSTM(Mixer):
    r"""`o_proj(torch.nn.LSTM(x))` as an FLA layer.

    Args:
        hidden_size (int):
            Width of the inputs and outputs.
        num_channels (int, Optional):
            Width of the LSTM's state. Default: `expand * hidden_size`.
        expand (float, Optional):
            Width of the state over `hidden_size`, unless `num_channels` is given. Default: 1.0.
        layer_idx (int, Optional):
            Index of the layer in its model, which a cache needs. Default: `None`.

    Raises:
        ValueError: if the widths do not divide.

    Source: Hochreiter and Schmidhuber, 1997, as `torch.nn.LSTM` computes it.

    Example:
        >>> import torch
        >>> from fla_bdlru.layers import LSTM
        >>> o, _, _ = LSTM(hidden_size=16)(torch.randn(2, 5, 16))
        >>> assert o.shape == (2, 5, 16)
    """

    def __init__(
        self, hidden_size: int, num_channels: int | None = None, expand: float = 1.0, layer_idx: int | None = None
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.num_channels = channels_from("num_channels", num_channels, 1, hidden_size, expand)
        self.layer_idx = layer_idx
        self.lstm = nn.LSTM(hidden_size, self.num_channels, batch_first=True)
        self.o_proj = nn.Linear(self.num_channels, hidden_size, bias=False)

    def mix(self, hidden_states, last_state, use_cache, cu_seqlens, cp_context):
        o, state = self.run(hidden_states, None if last_state is None else last_state["recurrent_state"], cu_seqlens)
        return self.o_proj(o), state, None

    def run(
        self, x: torch.Tensor, state: torch.Tensor | None, cu_seqlens: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs the LSTM; state `[num_seqs, 2, num_channels]` holds the hidden and the cell values."""
        num_seqs = x.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
        if state is None:
            state = x.new_zeros(num_seqs, 2, self.num_channels)
        if x.numel() == 0:  # nn.LSTM refuses empty sequences: their state stays
            nothing = [t.flatten()[:0].to(x.dtype) for t in (x, *self.lstm.parameters())]  # of all, for their gradients
            return torch.cat(nothing).view(*x.shape[:2], self.num_channels), state
        if cu_seqlens is None:
            return self.run_from(x, state.to(x.dtype))
        lengths = cu_seqlens.diff().cpu()
        docs, full = x[0].split(lengths[lengths > 0].tolist()), lengths.nonzero().flatten().to(x.device)
        o, new = self.run_from(pack_sequence(docs, enforce_sorted=False), state[full].to(x.dtype))
        return torch.cat(unpack_sequence(o)).unsqueeze(0), state.index_copy(0, full, new.to(state.dtype))

    def run_from(self, x: torch.Tensor | PackedSequence, state: torch.Tensor) -> tuple:
        """The LSTM's outputs, of the kind of `x`, and the next state."""
        o, new = self.lstm(x, tuple(state.transpose(0, 1).unsqueeze(1).contiguous().unbind(0)))
        return o, torch.stack([h[0] for h in new], 1)

    def state_size(self) -> int:
        return 2 * self.num_channels  # hidden and cell

    def flops_per_token(self) -> int:
        matrices = self.lstm.weight_ih_l0.numel() + self.lstm.weight_hh_l0.numel() + self.o_proj.weight.numel()
        return 2 * matrices + 9 * self.num_channels
