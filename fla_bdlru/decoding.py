"""Taking tokens back from a cache: speculative decoding, prefix reuse."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from fla.models.utils import Cache

from fla_bdlru.ops.common.checks import check_integer
from fla_bdlru.patches import wrap

if TYPE_CHECKING:
    from collections.abc import Callable

RECURRENT = ("recurrent_state", "conv_state", "ffn_state")


def rewind_cache(past_key_values: Cache, num_tokens: int) -> Cache:
    r"""The cache as it was before its last `num_tokens` tokens; the given one stays as it is.

    BD-LRU and H-LRU layers go back to states that they kept: call the model with `step_states=k`, and up to k tokens of that
    call can be taken back. Softmax attention forgets keys and values. Those are shared with the given cache, and so
    are states that were kept; where no token is taken back, other states are copied, as some of FLA's layers write to them.

    Args:
        past_key_values (fla.models.utils.Cache):
            A cache that a model or a layer returned.
        num_tokens (int):
            How many tokens to take back.

    Returns:
        fla.models.utils.Cache:
            A new cache.

    Raises:
        ValueError: if `past_key_values` is not FLA's cache, `num_tokens` is negative, no integer or more than the cache
            holds, a layer did not keep the state, its block keeps another (RWKV's feed-forward layers), or attention with a
            window has dropped keys; the message names the layer.

    Example:
        >>> import torch
        >>> from fla.models.utils import Cache
        >>> from fla_bdlru import rewind_cache
        >>> from fla_bdlru.layers import BDLRU
        >>> layer, x, cache = BDLRU(hidden_size=32, layer_idx=0).eval(), torch.randn(1, 6, 32), Cache()
        >>> with torch.no_grad():
        ...     _ = layer(x, past_key_values=cache, use_cache=True, step_states=4)
        ...     after_three = layer(x[:, :3], past_key_values=Cache(), use_cache=True)[2]
        >>> rewound = rewind_cache(cache, 3)
        >>> assert (rewound.get_seq_length(), cache.get_seq_length()) == (3, 6)
        >>> assert torch.allclose(rewound[0]["recurrent_state"], after_three[0]["recurrent_state"])
    """
    if not isinstance(past_key_values, Cache):
        hint = ", which a model returns in training or with use_cache=False" if past_key_values is None else ""
        raise ValueError(f"past_key_values must be a fla.models.utils.Cache; got {type(past_key_values).__name__}{hint}.")
    check_integer("num_tokens", num_tokens)
    if num_tokens < 0:
        raise ValueError(f"num_tokens must not be negative; got {num_tokens}.")
    held = max((layer.get_seq_length() for layer in past_key_values.layers), default=0)
    if num_tokens > held:
        raise ValueError(f"num_tokens={num_tokens} is more than the cache holds, {held}.")
    rewound = copy(past_key_values)
    rewound.layers = [copy(layer) for layer in past_key_values.layers]
    for layer_idx, layer in enumerate(rewound.layers):
        layer.state = layer.state and dict(layer.state)  # which decoding changes; none after `reset`
        length = layer.get_seq_length() - num_tokens
        if layer.state is None:
            continue
        if num_tokens == 0:
            layer.state.update({name: cloned(layer.state.get(name)) for name in RECURRENT})
        if num_tokens == 0 or not any(layer.state.get(name) is not None for name in RECURRENT):
            if num_tokens and layer.window_size is not None and layer.get_seq_length() > layer.window_size:
                raise ValueError(
                    f"num_tokens={num_tokens}: layer {layer_idx} is attention with a window of {layer.window_size}, which has "
                    "dropped the keys before it; run the model again from an earlier cache."
                )
            layer.crop(max(length, 0))  # a negative one would count from the end
            continue
        kept = layer.state.get("step_states") or []
        if length == 0 and len(kept) >= num_tokens:  # the first call began here, from nothing
            layer.reset()
            continue
        if len(kept) < num_tokens or kept[-num_tokens] is None:
            raise ValueError(
                f"num_tokens={num_tokens}: layer {layer_idx} kept {sum(state is not None for state in kept)} earlier states; "
                "call the model with step_states set to the number of tokens that may be taken back (only BD-LRU and H-LRU "
                "layers keep them)."
            )
        if layer.state.get("ffn_state") is not None:
            raise ValueError(
                f"num_tokens={num_tokens}: the block of layer {layer_idx} keeps a state of its own (ffn_state, RWKV's shift "
                "along time), which is not kept for single steps; run the model again from an earlier cache."
            )
        layer.state.update(kept[-num_tokens], step_states=kept[:-num_tokens])
        layer._seen_tokens = length
    return rewound


def cloned(state: Any) -> Any:
    """A copy of a layer's state, which may be a tuple of tensors."""
    if isinstance(state, (tuple, list)):
        return type(state)(map(cloned, state))
    return state.clone() if torch.is_tensor(state) else state


def unpad_several(
    original: Callable, q: torch.Tensor, states: tuple, attention_mask: torch.Tensor, q_len: int, keepdim: bool = False
) -> tuple:
    """FLA's `unpad_input`, which takes one new token after a cache or a whole sequence, for several new tokens too."""
    batch_size, seq_len = states[0].shape[:2]
    if keepdim or attention_mask.shape[1] != seq_len or not 1 < q_len < seq_len or not attention_mask[:, -q_len:].all():
        return original(q, states, attention_mask, q_len, keepdim)
    _, states, _, (_, cu_seqlens_k), (_, longest) = original(q[:, :1], states, attention_mask, 1)
    cu_seqlens_q = torch.arange(0, (batch_size + 1) * q_len, q_len, dtype=torch.int32, device=q.device)
    indices_q = torch.arange(batch_size * q_len, device=q.device)
    return q.flatten(0, 1), states, indices_q, (cu_seqlens_q, cu_seqlens_k), (q_len, longest)


def install_hook() -> None:
    """Lets FLA's attention take several new tokens after a cache and a mask; `import fla_bdlru` calls it."""
    wrap("fla.layers.attn:unpad_input", unpad_several, "several new tokens after a cache and padding on the left")
