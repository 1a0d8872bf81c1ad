"""Layer and RMS norms of rows as numba kernels, with a residual that is added before and a gate that comes after.

Gradients of weights are summed over `ROWS` rows a task, and then over tasks.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from fla_bdlru.fla_cpu.common import check_sizes
from fla_bdlru.fla_cpu.native_activation import ACTIVATIONS
from fla_bdlru.ops.common.autograd import as_input
from fla_bdlru.ops.cpu.lanes import LANES, across, lanes_below, load, splat, store, where
from fla_bdlru.ops.cpu.runtime import as_array, empty, kernel, run_tasks

ROWS = 64
WORK = 4  # of an element, in gates


@cache
def forward_kernel(activation: str | None):
    function = ACTIVATIONS.get(activation)

    @kernel
    def norm_forward(x, residual, w, b, gate, eps, total, y, mean, rstd, T, D, groups, lo, hi):
        for t in range(lo * ROWS, min(T, hi * ROWS)):
            row, group, middle, squares = t * D, t % groups * D, np.float32(0.0), splat(0.0)
            if residual is not None or mean is not None:
                sums = splat(0.0)
                for c in range(0, D, LANES):
                    mask = lanes_below(D - c)
                    s = load(x, row + c, mask)
                    if residual is not None:
                        s = s + load(residual, row + c, mask)
                        store(total, row + c, s, mask)
                    sums = s + sums
                if mean is not None:
                    middle = across(sums) / np.float32(D)
                    mean[t] = middle
            for c in range(0, D, LANES):
                mask = lanes_below(D - c)
                s = where(mask, load(total, row + c, mask) - middle, 0.0)
                squares = s * s + squares
            scale = np.float32(1.0) / np.sqrt(across(squares) / np.float32(D) + np.float32(eps))
            rstd[t] = scale
            for c in range(0, D, LANES):
                mask = lanes_below(D - c)
                s = (load(total, row + c, mask) - middle) * scale
                if w is not None:
                    s = s * load(w, group + c, mask)
                if b is not None:
                    s = s + load(b, group + c, mask)
                if gate is not None:
                    value, _ = function(load(gate, row + c, mask))
                    s = s * value
                store(y, row + c, s, mask)

    return norm_forward


@cache
def backward_kernel(activation: str | None):
    function = ACTIVATIONS.get(activation)

    @kernel
    def norm_backward(dy, x, w, b, gate, mean, rstd, dres, dx, dgate, dw, db, y, T, D, groups, lo, hi):
        for task in range(lo, hi):
            for t in range(task * ROWS, min(T, task * ROWS + ROWS)):
                row, group, part = t * D, t % groups * D, (task * groups + t % groups) * D
                middle, scale = np.float32(0.0), rstd[t]
                if mean is not None:
                    middle = mean[t]
                along, sums = splat(0.0), splat(0.0)
                for c in range(0, D, LANES):
                    mask = lanes_below(D - c)
                    normed = (load(x, row + c, mask) - middle) * scale
                    grad = load(dy, row + c, mask)
                    out = normed
                    if w is not None:
                        out = out * load(w, group + c, mask)
                    if b is not None:
                        out = out + load(b, group + c, mask)
                    if gate is not None:
                        value, slope = function(load(gate, row + c, mask))
                        store(dgate, row + c, grad * out * slope, mask)
                        grad, out = grad * value, out * value
                    store(y, row + c, out, mask)
                    if dw is not None:
                        store(dw, part + c, grad * normed + load(dw, part + c, mask), mask)
                    if db is not None:
                        store(db, part + c, grad + load(db, part + c, mask), mask)
                    if w is not None:
                        grad = grad * load(w, group + c, mask)
                    store(dx, row + c, grad, mask)
                    along = grad * normed + along
                    sums = grad + sums
                slant, shift = across(along) / np.float32(D), np.float32(0.0)
                if mean is not None:
                    shift = across(sums) / np.float32(D)
                for c in range(0, D, LANES):
                    mask = lanes_below(D - c)
                    normed = (load(x, row + c, mask) - middle) * scale
                    grad = (load(dx, row + c, mask) - normed * slant - shift) * scale
                    if dres is not None:
                        grad = grad + load(dres, row + c, mask)
                    store(dx, row + c, grad, mask)

    return norm_backward


def _plain(tensors) -> list[torch.Tensor | None]:
    return [None if t is None else as_input(t) for t in tensors]


def forward(x, weight, bias, eps, residual=None, gate=None, activation=None, is_rms_norm=False, num_groups=1):
    """norm(x + residual) * activation(gate), x: [T, D], and mean, rstd ([T]) and the sum, which is x without a residual."""
    (T, D), (x, weight, bias, residual, gate) = x.shape, _plain((x, weight, bias, residual, gate))
    check_sizes(weight=(weight, num_groups * D), bias=(bias, num_groups * D), residual=(residual, T * D), gate=(gate, T * D))
    y, total = empty((T, D), x.dtype), x if residual is None else empty((T, D), x.dtype)
    mean, rstd = None if is_rms_norm else x.new_empty(T), x.new_empty(T)
    arrays = map(as_array, (total, y, mean, rstd))
    arguments = (*map(as_array, (x, residual, weight, bias, gate)), eps, *arrays, T, D, num_groups)
    run_tasks(forward_kernel(None if gate is None else activation), arguments, -(-T // ROWS), WORK * x.numel())
    return y, mean, rstd, total


def backward(
    dy, x, weight, bias, mean, rstd, dresidual=None, gate=None, activation=None, recompute=False, num_groups=1
):  # fmt: skip
    """The gradients of x (the sum, if there was a residual), gate, weight and bias, and the output again if `recompute`."""
    (T, D), tasks = x.shape, -(-x.shape[0] // ROWS)
    dy, x, weight, bias, mean, rstd, dresidual, gate = _plain((dy, x, weight, bias, mean, rstd, dresidual, gate))
    check_sizes(
        dy=(dy, T * D), weight=(weight, num_groups * D), bias=(bias, num_groups * D), mean=(mean, T), rstd=(rstd, T),
        dresidual=(dresidual, T * D), gate=(gate, T * D),
    )  # fmt: skip
    dx, dgate, y = (empty((T, D), x.dtype) if wanted else None for wanted in (True, gate is not None, recompute))
    dw, db = (None if t is None else t.new_zeros(tasks, t.numel()) for t in (weight, bias))
    tensors = dy, x, weight, bias, gate, mean, rstd, dresidual, dx, dgate, dw, db, y
    function = backward_kernel(None if gate is None else activation)
    run_tasks(function, (*map(as_array, tensors), T, D, num_groups), tasks, 2 * WORK * x.numel())
    return dx, dgate, *(None if part is None else part.sum(0).view_as(t) for part, t in ((dw, weight), (db, bias))), y
