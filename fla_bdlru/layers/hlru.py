"""The H-LRU layer."""

from __future__ import annotations

import torch

from fla_bdlru.layers.base import channels_from, check_choice, check_count
from fla_bdlru.layers.gate_bias import memory_gates_hlru, time_constants
from fla_bdlru.layers.gated import GatedRecurrence, takes_options
from fla_bdlru.ops.common.context_parallel import entering_states
from fla_bdlru.ops.hlru import chunk_hlru, fused_recurrent_hlru, hlru_window

READOUTS = ("window", "state")


class HLRU(GatedRecurrence):
    r"""Higher-order linear recurrent unit: every channel mixes its last M values, every step.

    `o_proj(readout(hlru(v_proj(x), a_proj(x))))`, with N channels of order M. The defaults are the paper's plain layer: no
    convolution, no output gate, softmax gates, the whole window read out.

    Features of the projections are gate-major: row `i*N + n` of `a_proj` belongs to the gate that weighs `h_{t-1-i}` in
    channel n (i = M: the input), column `i*N + n` of `o_proj.weight` to `h_{t-i}` of channel n.

    Args:
        hidden_size (int):
            Width of the inputs and outputs.
        order (int, Optional):
            How many past values a channel mixes, M. 1 is the diagonal LRU. Default: 4.
        num_channels (int, Optional):
            Number of channels, N; a multiple of 16 keeps the kernels' loads wide. Default: `expand * hidden_size`.
        expand (float, Optional):
            Number of channels over `hidden_size`, unless `num_channels` is given. Default: 1.0.
        readout (str, Optional):
            What `o_proj` reads: `"window"`, all of `[h_t, .., h_{t-M+1}]`, or `"state"`, h_t only. Default: `"window"`.
        **options:
            `gate_norm`, `selective`, `gate_bias`, `memory_range`, `use_short_conv`, `conv_size`, `conv_bias`,
            `use_output_gate`, `output_gate_activation`, `norm_eps`, `mode`, `layer_idx`, `recompute_gates` and
            `initial_state`, as in `BDLRU`.

    Raises:
        ValueError: if an option is not known, or the widths do not divide.

    Source: arXiv 2602.12021, higher-order LRU.

    Example:
        >>> import torch
        >>> from fla_bdlru.layers import HLRU
        >>> layer = HLRU(hidden_size=64, order=3)
        >>> o, _, _ = layer(torch.randn(2, 10, 64))
        >>> assert o.shape == (2, 10, 64) and layer.num_channels == 64 and layer.state_size() == 192
    """

    ops = chunk_hlru, fused_recurrent_hlru

    @takes_options
    def __init__(
        self,
        hidden_size: int,
        order: int = 4,
        num_channels: int | None = None,
        expand: float = 1.0,
        readout: str = "window",
        **options,
    ) -> None:
        super().__init__()
        check_count("order", order)
        check_choice("readout", readout, READOUTS)
        self.order = order
        self.readout = readout
        self.num_channels = self.width = channels_from("num_channels", num_channels, 1, hidden_size, expand)
        self.gate_shape = (order + 1, self.num_channels)
        self.readout_width = self.num_channels * (order if readout == "window" else 1)
        self.build(hidden_size, **options)

    def initial_gates(self) -> torch.Tensor:
        return memory_gates_hlru(self.order, time_constants(self.num_channels, self.memory_range))

    def recur(self, v: torch.Tensor, g: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor | None]:
        cp_context, window = options["cp_context"], self.readout == "window"
        if cp_context is not None and window:
            options["output_final_state"] = True
        # view: [B, T, M+1, N] -> [B, T, N, M+1]
        o, state = self.op(v)(v, g.transpose(2, 3), **options)
        if window:
            initial_state = options["initial_state"]
            if cp_context is not None:
                initial_state = entering_states(state, initial_state, cp_context)
            o = hlru_window(o, self.order, initial_state, options["cu_seqlens"]).flatten(2)
        return o, state

    def state_size(self) -> int:
        return self.num_channels * self.order + self.conv_state_size()

    def extra_repr(self) -> str:
        return f"order={self.order}, num_channels={self.num_channels}, readout={self.readout}, {super().extra_repr()}"
