"""Activations, alone or times another tensor, as numba kernels over flat memory."""

from __future__ import annotations

from functools import cache

import torch

from fla_bdlru.fla_cpu.common import check_sizes
from fla_bdlru.ops.common.autograd import as_input
from fla_bdlru.ops.cpu.gates import sigmoid, silu
from fla_bdlru.ops.cpu.lanes import LANES, lanes_below, load, store
from fla_bdlru.ops.cpu.runtime import as_array, empty, kernel, run_tasks

ACTIVATIONS = {"swish": silu, "sigmoid": sigmoid}
TASK = 1 << 12  # elements of a task
WORK = 4  # of an element, in gates


@cache
def forward_kernel(activation: str):
    function = ACTIVATIONS[activation]

    @kernel
    def activation_forward(x, other, y, size, lo, hi):
        for i in range(lo * TASK, min(size, hi * TASK), LANES):
            mask = lanes_below(size - i)
            value, _ = function(load(x, i, mask))
            if other is not None:
                value = value * load(other, i, mask)
            store(y, i, value, mask)

    return activation_forward


@cache
def backward_kernel(activation: str):
    function = ACTIVATIONS[activation]

    @kernel
    def activation_backward(x, other, dy, dx, dother, y, size, lo, hi):
        for i in range(lo * TASK, min(size, hi * TASK), LANES):
            mask = lanes_below(size - i)
            value, slope = function(load(x, i, mask))
            grad = load(dy, i, mask)
            if other is not None:
                factor = load(other, i, mask)
                store(dother, i, grad * value, mask)
                store(y, i, factor * value, mask)
                slope = slope * factor
            store(dx, i, grad * slope, mask)

    return activation_backward


def _run(function, tensors, size: int) -> None:
    run_tasks(function, (*map(as_array, tensors), size), -(-size // TASK), WORK * size)


def forward(activation: str, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
    """activation(x), times `other` if there is one; float32 of one shape."""
    x, other = as_input(x), None if other is None else as_input(other)
    check_sizes(other=(other, x.numel()))
    y = empty(x.shape, x.dtype)
    _run(forward_kernel(activation), (x, other, y), x.numel())
    return y


def backward(
    activation: str, x: torch.Tensor, dy: torch.Tensor, other: torch.Tensor | None = None, recompute: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The gradients of x and of `other`, and the output again if `recompute` (with an `other` only)."""
    x, dy, other = as_input(x), as_input(dy), None if other is None else as_input(other)
    check_sizes(dy=(dy, x.numel()), other=(other, x.numel()))
    dx, dother, y = (empty(x.shape, x.dtype) if wanted else None for wanted in (True, other is not None, recompute))
    _run(backward_kernel(activation), (x, other, dy, dx, dother, y), x.numel())
    return dx, dother, y
