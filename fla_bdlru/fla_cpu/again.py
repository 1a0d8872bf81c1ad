"""Second derivatives of FLA's autograd functions, which save reshaped copies of their inputs, without the graph of those."""

from collections.abc import Callable
from typing import Any

import torch

from fla_bdlru.fla_cpu.registry import is_enabled, warn_missing
from fla_bdlru.ops.common.autograd import NoSecondDerivative
from fla_bdlru.patches import wrap

WHY = "on CPU tensors second derivatives, where what FLA saves for its backward pass has no graph"


def _stub(x: torch.Tensor) -> torch.Tensor:
    """The shape and the graph of `x`, and a single number in the place of its memory."""
    with torch.enable_grad():
        stub = torch.ops.aten._unsafe_view(x, x.shape)  # not a view of `x`, which would keep it
    stub.data = x.new_empty(()).expand(x.shape)
    return stub


class _Rooted(torch.autograd.Function):
    """`x`, whose gradient goes to each of `stubs`, of as many elements."""

    @staticmethod
    def forward(ctx, x, *stubs):
        ctx.like = [(stub.shape, stub.dtype) for stub in stubs]
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return None, *(grad.reshape(shape).to(dtype) for shape, dtype in ctx.like)


class _With:
    """The context of an autograd function, with other saved tensors."""

    def __init__(self, ctx: Any, saved_tensors: tuple):
        self._ctx, self.saved_tensors = ctx, saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


def _wrap(target: str, forward: Callable, backward: Callable) -> None:
    """Puts `forward(ctx, args)` behind FLA's, eager on a CPU, and a backward in front of it where a graph of that is wanted.

    It is called as `backward(original, ctx, noted, *grads)`; `noted` is what `forward` returned.
    """

    def run(original, ctx, *args):
        outputs = original(ctx, *args)
        if not torch.compiler.is_compiling() and args[0].device.type in ("cpu", "meta") and is_enabled():
            ctx._fla_bdlru_noted = forward(ctx, args)
        return outputs

    def run_back(original, ctx, *grads):
        noted = getattr(ctx, "_fla_bdlru_noted", None)
        if noted is None or not torch.is_grad_enabled():
            return original(ctx, *grads)
        return backward(original, ctx, noted, *grads)

    try:
        wrap(f"{target}.forward", run, WHY)
        wrap(f"{target}.backward", run_back, WHY)
    except (ImportError, AttributeError):
        warn_missing(target)


def keep_graph(target: str, sources: tuple[tuple[int, ...], ...], rebuild: Callable) -> None:
    """Has the backward pass of an autograd function find the graph of what it saved.

    The i-th saved tensor is, but for its shape, the sum of the arguments at `sources[i]`, or depends on those one to one;
    `rebuild(ctx, *saved)` makes what follows from them again.
    """

    def note(ctx, args):
        stubs = {}
        for i, positions in enumerate(sources):
            given = [args[n] for n in positions if n < len(args) and args[n] is not None]
            if any(x is not ctx.to_save[i] for x in given):
                stubs[i] = [_stub(x) for x in given if x.requires_grad]
        return stubs

    def backward(original, ctx, stubs, *grads):
        saved = (_Rooted.apply(x.detach(), *stubs[i]) if stubs.get(i) else x for i, x in enumerate(ctx.saved_tensors))
        return original(_With(ctx, tuple(rebuild(ctx, *saved))), *grads)

    _wrap(target, note, backward)


def as_saved(ctx: Any, *saved: torch.Tensor | None) -> tuple:
    """Nothing to make again."""
    return saved


def refuse(target: str, positions: tuple[int, ...]) -> None:
    """Refuses the derivatives of an autograd function's backward pass by the arguments at `positions`, and by those alone."""

    def note(ctx, args):
        given = [args[n] for n in positions if n < len(args) and args[n] is not None and args[n].requires_grad]
        with torch.enable_grad():
            return NoSecondDerivative.apply(1, args[0].new_empty(0), *given)[0]

    def backward(original, ctx, link, *grads):
        return tuple(None if x is None else x + link.sum().to(x.dtype) for x in original(ctx, *grads))

    _wrap(target, note, backward)
