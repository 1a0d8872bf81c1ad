"""What any layer costs: parameters, state, FLOPs per token (its own figure, or a count of what one decoding step computes)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from fla.models.utils import Cache

aten = torch.ops.aten
# tagged as elementwise, but they only move numbers
_MOVES = {aten.clone, aten.where, aten.masked_fill, aten.masked_fill_, aten.fill, aten.fill_, aten.zero_, aten.copy}
_TWICE = {aten.addcmul, aten.addcmul_, aten.addcdiv, aten.addcdiv_, aten.lerp, aten.lerp_}  # a multiplication and an addition


def linear_flops_per_token(module: nn.Module) -> int:
    r"""FLOPs of a module's linear maps of its inputs, a multiply-add counted as two.

    Args:
        module (nn.Module):
            A layer or a model: its `nn.Linear`s, and the input weights of its `nn.LSTM`s, each used once a token. What has the
            attribute `once_a_sequence` is left out.

    Example:
        >>> from torch import nn
        >>> from fla_bdlru.layers.measure import linear_flops_per_token
        >>> assert linear_flops_per_token(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))) == 2 * (32 + 8)
    """
    weights = 0
    for part in module.modules():
        if getattr(part, "once_a_sequence", False):
            continue
        if isinstance(part, nn.Linear):
            weights += part.weight.numel()
        elif isinstance(part, nn.LSTM):
            weights += sum(p.numel() for name, p in part.named_parameters() if name.startswith("weight_ih"))
    return 2 * weights


def measure_flops_per_token(layer: nn.Module, context: int = 1) -> int:
    r"""FLOPs of a layer's forward pass for one token, as its recurrence runs it step by step.

    A layer's own `flops_per_token()` if it has one (BD-LRU, H-LRU and LSTM do). Else what one decoding step after
    `context - 1` tokens computes on the CPU: a multiply-add in a matrix product or an attention counts two, an elementwise
    floating-point operation one per element of its result, a sum or mean one per element of its input. So exp and division
    weigh as much as addition, masks, copies and index arithmetic nothing. What FLA's fused kernels do is counted as the
    PyTorch code that replaces them on a CPU writes it, which may take a few elementwise operations more; chunked training
    kernels do more arithmetic per token than a step. An operation hidden in a custom op is not seen: give such a layer a
    `flops_per_token()`.

    Args:
        layer (nn.Module):
            A layer with FLA's signature, on the CPU.
        context (int, Optional):
            Number of tokens up to and including the counted one; matters where the cost grows, as in attention. Default: 1.

    Returns:
        int:
            FLOPs per token and sequence.

    Raises:
        ValueError: if `context` is not positive, what is given is no single layer, or the layer cannot decode on a CPU and has
            no `flops_per_token()`, as those of lrnnx.

    Example:
        >>> from fla_bdlru.layers.measure import measure_flops_per_token
        >>> from fla_bdlru.mixers import build_mixer
        >>> layer = build_mixer("bdlru", hidden_size=8, block_size=2)
        >>> gates = 4 * 2 * 3
        >>> assert measure_flops_per_token(layer) == 2 * (8 * 8 + 8 * gates + 8 * 8) + 2 * gates + 3 * gates
    """
    if context < 1:
        raise ValueError(f"context={context} is not accepted; expected a number of tokens, at least 1.")
    if callable(getattr(layer, "flops_per_token", None)):
        try:
            return layer.flops_per_token()
        except NotImplementedError:
            raise ValueError(f"{type(layer).__name__} has no flops_per_token(); give it one.") from None
    check_layer(layer)
    x = torch.zeros(1, context, layer.hidden_size)
    attention = {aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    try:
        with decoding(layer) as cache:
            if context > 1:
                layer(x[:, :-1], attention_mask=None, past_key_values=cache, use_cache=True)
            products, others = FlopCounterMode(display=False, custom_mapping=attention), _ElementwiseCounter()
            with products, others:
                layer(x[:, -1:], attention_mask=None, past_key_values=cache, use_cache=True)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"{type(layer).__name__} cannot take a decoding step on the CPU, so its FLOPs cannot be counted; give it a "
            f"flops_per_token(). {type(error).__name__}: {error}"
        ) from error
    return products.get_total_flops() + others.flops


def check_layer(layer: nn.Module) -> None:
    """Raises `ValueError` for what has not FLA's layer signature, as whole models."""
    missing = [field for field in ("hidden_size", "layer_idx") if not hasattr(layer, field)]
    if missing:
        raise ValueError(
            f"layer must be one mixer with FLA's layer signature; {type(layer).__name__} has no {' and no '.join(missing)}. "
            "Of a model, measure the mixers (model.model.layers[i].attn or .mixer) one by one."
        )


@contextmanager
def decoding(layer: nn.Module) -> Iterator[Cache]:
    """A cache for a layer that stands alone, which is put into eval mode meanwhile."""
    from fla.models.utils import Cache

    training, layer_idx = layer.training, layer.layer_idx
    layer.eval()
    layer.layer_idx = 0
    try:
        with torch.no_grad():
            yield Cache()
    finally:
        layer.train(training)
        layer.layer_idx = layer_idx


def _attention_flops(q_shape, k_shape, v_shape, *args, out_shape=None, **kwargs) -> int:
    # [B, H, Tq, D] with [B, H, Tk, D] and [B, H, Tk, Dv]
    *outer, q_len, width = q_shape
    return 2 * torch.Size(outer).numel() * q_len * k_shape[-2] * (width + v_shape[-1])


class _ElementwiseCounter(TorchDispatchMode):
    """Counts floating-point elementwise operations and reductions by the tags that torch gives them."""

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **(kwargs or {}))
        packet = op.overloadpacket
        if torch.Tag.pointwise in op.tags and packet not in _MOVES:
            self.flops += self._elements(result) * (2 if packet in _TWICE else 1)
        elif torch.Tag.reduction in op.tags:
            self.flops += self._elements(args[0])
        return result

    @staticmethod
    def _elements(value) -> int:
        return value.numel() if isinstance(value, torch.Tensor) and value.is_floating_point() else 0


def count_parameters(module: nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def measure_state_size(layer: nn.Module, dtype: torch.dtype = torch.float32, tokens: int = 1) -> int:
    r"""Number of values that a layer carries from one step to the next, per sequence.

    A layer's own `state_size()` if it has one; else what it puts into the cache after `tokens` tokens (so for softmax
    attention, whose state grows, that of as many).

    Args:
        layer (nn.Module):
            A layer with FLA's signature, on the device it can run on.
        dtype (torch.dtype, Optional):
            Dtype of the input. Default: `torch.float32`.
        tokens (int, Optional):
            Number of tokens that the layer has seen. Default: 1.

    Raises:
        ValueError: if what is given is no single layer.

    Example:
        >>> from fla_bdlru.layers.measure import measure_state_size
        >>> from fla_bdlru.mixers import build_mixer
        >>> assert measure_state_size(build_mixer("bdlru", hidden_size=32, block_size=4, expand=2)) == 64
    """
    if callable(getattr(layer, "state_size", None)):
        return layer.state_size()
    check_layer(layer)
    x = torch.zeros(1, tokens, layer.hidden_size, device=next(layer.parameters()).device, dtype=dtype)
    with decoding(layer) as cache:
        layer(x, attention_mask=None, past_key_values=cache, use_cache=True)
    return sum(x.numel() for x in tree_leaves(cache[0]) if isinstance(x, torch.Tensor))
