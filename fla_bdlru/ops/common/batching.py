"""How `torch.func.vmap` runs the custom ops: many calls are one, in a larger batch, or packed one after the other."""

from collections.abc import Callable

import torch

from fla_bdlru.ops.common.autograd import as_input
from fla_bdlru.ops.common.checks import check_cu_seqlens


def fold(num: int, dim: int | None, x: torch.Tensor | None, packed: bool = False) -> torch.Tensor | None:
    """`num` calls' [B, T, ...] as [num * B, T, ...], or, packed, [1, T, ...] as [1, num * T, ...]; contiguous."""
    if x is None:
        return None
    x = x.expand(num, *x.shape) if dim is None else x.movedim(dim, 0)
    return as_input(x.flatten(0, 2)[None] if packed else x.flatten(0, 1))


def unfold(num: int, x: torch.Tensor, packed: bool = False) -> torch.Tensor:
    """The other way; the axis of the calls is 0, or, packed, 1."""
    return x.unflatten(int(packed), (num, x.shape[int(packed)] // num))


def fold_boundaries(num: int, dim: int | None, cu_seqlens: torch.Tensor | None, T: int) -> torch.Tensor | None:
    """`num` calls' boundaries as those of one packed sequence of `num * T` steps."""
    if cu_seqlens is None:
        return None
    rows = cu_seqlens.expand(num, -1) if dim is None else cu_seqlens.movedim(dim, 0)
    for row in rows:
        check_cu_seqlens(row, T)
    before = torch.arange(num, device=rows.device) * T
    return torch.cat([before[:1], (rows[:, 1:] + before[:, None]).flatten()])


def batched_forward(op: Callable) -> Callable:
    """The rule of the forward pass `op`. `h` and `P` stay folded: nobody but the backward looks into them."""

    def rule(info, in_dims, v, g, h0, cu_seqlens, *options):
        num, packed = info.batch_size, cu_seqlens is not None
        v, g = (fold(num, dim, x, packed) for dim, x in zip(in_dims, (v, g)))
        cu_seqlens = fold_boundaries(num, in_dims[3], cu_seqlens, v.shape[1] // num)
        o, ht, h, P = op(v, g, fold(num, in_dims[2], h0), cu_seqlens, *options)
        return (unfold(num, o, packed), unfold(num, ht), h, P), (int(packed), 0, None, None)

    return rule


def batched_backward(op: Callable) -> Callable:
    """The rule of the backward pass `op`."""

    def rule(info, in_dims, v, g, o, h, P, h0, do, dht, cu_seqlens, *options):
        num, packed = info.batch_size, cu_seqlens is not None
        if in_dims[2] is None:  # one forward pass, many gradients of its outputs: what it saved is not folded
            inputs, dims = (v, g, o, h, P, h0, do, dht, cu_seqlens), in_dims[:9]
            calls = [[x if dim is None else as_input(x.select(dim, i)) for x, dim in zip(inputs, dims)] for i in range(num)]
            return tuple(map(torch.stack, zip(*(op(*call, *options) for call in calls)))), (0, 0, 0)
        v, g, o, do = (fold(num, in_dims[i], x, packed) for i, x in zip((0, 1, 2, 6), (v, g, o, do)))
        h0, dht = (fold(num, in_dims[i], x) for i, x in zip((5, 7), (h0, dht)))
        cu_seqlens = fold_boundaries(num, in_dims[8], cu_seqlens, v.shape[1] // num)
        dv, dg, dh0 = op(v, g, o, h, P, h0, do, dht, cu_seqlens, *options)
        return (unfold(num, dv, packed), unfold(num, dg, packed), unfold(num, dh0)), (int(packed), int(packed), 0)

    return rule
