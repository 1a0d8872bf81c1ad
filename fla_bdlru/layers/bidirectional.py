"""Two mixers that read a sequence from both ends."""

from __future__ import annotations

import torch

from fla_bdlru.layers.base import Mixer, check_attention_mask, check_hidden_states
from fla_bdlru.ops.common.checks import check_cu_seqlens, num_sequences


class Bidirectional(Mixer):
    r"""One mixer reads forwards, another backwards, and their outputs are added: every token sees the whole sequence.

    Two mixers, not one run both ways: what to remember of the tokens before and what of those behind are two questions, and
    gates with weights of their own answer each; `expand=0.5` in both makes the state of one layer. Documents (`cu_seqlens`)
    are turned round within themselves, and padding stays out of the way. There is no state to go on from: caches are refused.

    Args:
        ahead (Mixer):
            A layer of this package that reads from the first token to the last.
        back (Mixer):
            One of the same `hidden_size` that reads from the last token to the first.

    Raises:
        ValueError: if the two are one module, no layers of this package or of two widths; in a call, on a cache, `use_cache`,
            `step_states` or `cp_context`, or as the layers do.

    Source: Schuster and Paliwal, "Bidirectional recurrent neural networks", IEEE Transactions on Signal Processing 45, 1997.

    Example:
        >>> import torch
        >>> from fla_bdlru.layers import BDLRU, Bidirectional
        >>> layer = Bidirectional(BDLRU(hidden_size=16, expand=0.5), BDLRU(hidden_size=16, expand=0.5))
        >>> x = torch.randn(1, 6, 16)
        >>> o, _, _ = layer(x)
        >>> assert torch.allclose(Bidirectional(layer.back, layer.ahead)(x.flip(1))[0], o.flip(1), atol=1e-6)
    """

    def __init__(self, ahead: Mixer, back: Mixer) -> None:
        super().__init__()
        widths = [layer.hidden_size for layer in (ahead, back) if isinstance(layer, Mixer)]
        if len(widths) < 2 or widths[0] != widths[1] or ahead is back:
            raise ValueError(
                f"ahead and back must be two layers of this package of one hidden_size; got {type(ahead).__name__} and "
                f"{type(back).__name__}" + (" of " + " and ".join(map(str, widths)) if len(widths) == 2 else "") + "."
            )
        self.ahead, self.back, self.hidden_size = ahead, back, ahead.hidden_size
        self.layer_idx = None  # of no cache

    def state_size(self) -> int:
        return self.ahead.state_size() + self.back.state_size()

    def flops_per_token(self) -> int:
        return self.ahead.flops_per_token() + self.back.flops_per_token()

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: None = None,
        use_cache: bool | None = False,
        output_attentions: bool | None = False,
        **kwargs,
    ) -> tuple[torch.Tensor, None, None]:
        """As `Mixer.forward`, of whole sequences."""
        given = {"use_cache": use_cache or None, "past_key_values": past_key_values}  # what a caller asked for first
        given.update({name: kwargs.get(name) for name in ("step_states", "cp_context")})
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name}={value!r} is not accepted: a bidirectional layer reads whole sequences.")
        check_hidden_states(hidden_states, self.hidden_size)
        num_tokens, cu_seqlens = hidden_states.shape[1], kwargs.get("cu_seqlens")
        num_sequences("hidden_states", hidden_states, cu_seqlens)
        check_cu_seqlens(cu_seqlens, num_tokens)
        mask = None  # turned round
        if attention_mask is not None and cu_seqlens is None:
            check_attention_mask(attention_mask, len(hidden_states), num_tokens)
            mask = attention_mask[:, -num_tokens:].flip(1)
        o, _, _ = self.ahead(hidden_states, attention_mask, **kwargs)
        reverse = reversal(cu_seqlens, num_tokens)
        behind, _, _ = self.back(reverse(hidden_states), mask, **kwargs)
        return o + reverse(behind), None, None


def reversal(cu_seqlens: torch.Tensor | None, num_tokens: int):
    """Turns each document of `[B, T, ...]` round, or each row; done twice, it changes nothing."""
    if cu_seqlens is None:
        return lambda x: x.flip(1)
    lengths = cu_seqlens.diff()
    ends = (cu_seqlens[:-1] + cu_seqlens[1:]).repeat_interleave(lengths, output_size=num_tokens) - 1
    index = ends - torch.arange(num_tokens, device=cu_seqlens.device)
    return lambda x: x.index_select(1, index.to(x.device))
