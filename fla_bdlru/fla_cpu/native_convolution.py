"""The causal convolution of each channel by itself as numba kernels: channels are lanes, as in `ops.cpu.scan`."""

from __future__ import annotations

from functools import cache

import torch
from numba import njit

from fla_bdlru.fla_cpu.common import check_sizes
from fla_bdlru.ops.common.autograd import as_input
from fla_bdlru.ops.cpu.gates import silu
from fla_bdlru.ops.cpu.lanes import LANES, get, lanes_below, load, put, splat, stack, store
from fla_bdlru.ops.cpu.runtime import MAX_TILES, as_array, boundaries, empty, kernel, launch


@njit(forceinline=True)
def filtered(x, w, bias, t, begin, c, mask, N, W):
    """The convolution at step t, of the lanes from channel c on; nothing is before step `begin`."""
    total = load(x, t * N + c, mask) * load(w, (W - 1) * N + c, mask)
    for n in range(1, W):
        if t - n >= begin:
            total = load(x, (t - n) * N + c, mask) * load(w, (W - 1 - n) * N + c, mask) + total
    if bias is not None:
        total = total + load(bias, c, mask)
    return total


@cache
def forward_kernel(W: int, ACTIVE: bool):
    @kernel
    def convolution_forward(x, w, bias, y, bounds, N, first, last, width, lanes, lo, hi):
        mask = lanes_below(lanes)
        groups = (last - first + width - 1) // width
        for task in range(lo, hi):
            seq, x0 = task // groups, first + task % groups * width
            x1, begin, end = min(x0 + width, last), bounds[seq], bounds[seq + 1]
            for t in range(begin, end):
                for c in range(x0, x1, LANES):
                    total = filtered(x, w, bias, t, begin, c, mask, N, W)
                    if ACTIVE:
                        total, _ = silu(total)
                    store(y, t * N + c, total, mask)

    return convolution_forward


@cache
def backward_kernel(W: int, ACTIVE: bool):
    SUMS = MAX_TILES * (W + 1)

    @kernel
    def convolution_backward(x, w, bias, dy, dx, dw, pulled, bounds, N, first, last, width, lanes, lo, hi):
        sums = stack(SUMS)
        mask = lanes_below(lanes)
        groups = (last - first + width - 1) // width
        for task in range(lo, hi):
            seq, x0 = task // groups, first + task % groups * width
            x1, begin, end = min(x0 + width, last), bounds[seq], bounds[seq + 1]
            for i in range((x1 - x0 + LANES - 1) // LANES * (W + 1)):
                put(sums, i, splat(0.0))
            if ACTIVE:
                for t in range(begin, end):  # what is in front of the activation again, and its gradient
                    for c in range(x0, x1, LANES):
                        _, slope = silu(filtered(x, w, bias, t, begin, c, mask, N, W))
                        store(pulled, t * N + c, load(dy, t * N + c, mask) * slope, mask)
            for t in range(begin, end):
                for c in range(x0, x1, LANES):
                    at, own = (c - x0) // LANES * (W + 1), load(x, t * N + c, mask)
                    put(sums, at + W, load(pulled, t * N + c, mask) + get(sums, at + W))
                    total = splat(0.0)
                    for n in range(W):
                        if t + n < end:
                            later = load(pulled, (t + n) * N + c, mask)
                            total = later * load(w, (W - 1 - n) * N + c, mask) + total
                            put(sums, at + n, own * later + get(sums, at + n))
                    store(dx, t * N + c, total, mask)
            for c in range(x0, x1, LANES):
                at = (c - x0) // LANES * (W + 1)
                for n in range(W):
                    store(dw, (seq * (W + 1) + W - 1 - n) * N + c, get(sums, at + n), mask)
                store(dw, (seq * (W + 1) + W) * N + c, get(sums, at + W), mask)

    return convolution_backward


def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, active: bool) -> torch.Tensor:
    """y[t] = sum_n weight[:, W - 1 - n] x[t - n] + bias, nothing before the start, through SiLU if `active`.

    x: float32 [B, T, D], weight: [D, W], bias: [D].
    """
    x, w, bias = as_input(x), as_input(weight.t()), None if bias is None else as_input(bias)
    check_sizes(weight=(w, len(w) * x.shape[-1]), bias=(bias, x.shape[-1]))
    y = empty(x.shape, x.dtype)
    function = forward_kernel(len(w), active)
    launch(function, tuple(map(as_array, (x, w, bias, y))), x.shape[-1], boundaries(x, None), (1 + active) * len(w))
    return y


def backward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, active: bool, dy: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The gradients of x, weight and bias."""
    x, w, dy, bias = as_input(x), as_input(weight.t()), as_input(dy), None if bias is None else as_input(bias)
    check_sizes(weight=(w, len(w) * x.shape[-1]), bias=(bias, x.shape[-1]), dy=(dy, x.numel()))
    dx, sums = empty(x.shape, x.dtype), x.new_empty(len(x), len(w) + 1, x.shape[-1])  # the bias's last
    pulled = empty(x.shape, x.dtype) if active else dy
    arrays = tuple(map(as_array, (x, w, bias, dy, dx, sums, pulled)))
    function = backward_kernel(len(w), active)
    launch(function, arrays, x.shape[-1], boundaries(x, None), (2 + active) * len(w))
    sums = sums.sum(0)
    return dx, sums[:-1].t(), None if bias is None else sums[-1]
