"""The causal convolution of each channel by itself as numba kernels: channels are lanes, as in `ops.cpu.scan`."""

from __future__ import annotations

from functools import cache

import torch

from fla_bdlru.ops.common.autograd import as_input, once_differentiable
from fla_bdlru.ops.cpu.lanes import LANES, get, lanes_below, load, put, splat, stack, store
from fla_bdlru.ops.cpu.runtime import MAX_TILES, as_array, boundaries, empty, kernel, launch


@cache
def forward_kernel(W: int):
    @kernel
    def convolution_forward(x, w, y, bounds, N, first, last, width, lanes, lo, hi):
        mask = lanes_below(lanes)
        groups = (last - first + width - 1) // width
        for task in range(lo, hi):
            seq, x0 = task // groups, first + task % groups * width
            x1, begin, end = min(x0 + width, last), bounds[seq], bounds[seq + 1]
            for t in range(begin, end):
                for c in range(x0, x1, LANES):
                    total = load(x, t * N + c, mask) * load(w, (W - 1) * N + c, mask)
                    for n in range(1, W):
                        if t - n >= begin:
                            total = load(x, (t - n) * N + c, mask) * load(w, (W - 1 - n) * N + c, mask) + total
                    store(y, t * N + c, total, mask)

    return convolution_forward


@cache
def backward_kernel(W: int):
    SUMS = MAX_TILES * W

    @kernel
    def convolution_backward(x, w, dy, dx, dw, bounds, N, first, last, width, lanes, lo, hi):
        sums = stack(SUMS)
        mask = lanes_below(lanes)
        groups = (last - first + width - 1) // width
        for task in range(lo, hi):
            seq, x0 = task // groups, first + task % groups * width
            x1, begin, end = min(x0 + width, last), bounds[seq], bounds[seq + 1]
            for i in range((x1 - x0 + LANES - 1) // LANES * W):
                put(sums, i, splat(0.0))
            for t in range(begin, end):
                for c in range(x0, x1, LANES):
                    at, own = (c - x0) // LANES * W, load(x, t * N + c, mask)
                    total = splat(0.0)
                    for n in range(W):
                        if t + n < end:
                            later = load(dy, (t + n) * N + c, mask)
                            total = later * load(w, (W - 1 - n) * N + c, mask) + total
                            put(sums, at + n, own * later + get(sums, at + n))
                    store(dx, t * N + c, total, mask)
            for c in range(x0, x1, LANES):
                for n in range(W):
                    store(dw, (seq * W + W - 1 - n) * N + c, get(sums, (c - x0) // LANES * W + n), mask)

    return convolution_backward


class CausalDepthwise(torch.autograd.Function):
    """y[t] = sum_n w[W - 1 - n] x[t - n], nothing before the start; x, y: float32 [B, T, D], w: [D, W]."""

    @staticmethod
    def forward(ctx, x, weight):
        x, w = as_input(x), as_input(weight.t())
        ctx.save_for_backward(x, w)
        y = empty(x.shape, x.dtype)
        launch(forward_kernel(len(w)), tuple(map(as_array, (x, w, y))), x.shape[-1], boundaries(x, None), len(w))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, dy):
        x, w = saved
        dx, dw = empty(x.shape, x.dtype), x.new_empty(len(x), *w.shape)
        arrays = tuple(map(as_array, (x, w, as_input(dy), dx, dw)))
        launch(backward_kernel(len(w)), arrays, x.shape[-1], boundaries(x, None), 2 * len(w))
        return dx, dw.sum(0).t()
