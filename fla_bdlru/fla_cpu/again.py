"""Second derivatives of FLA's autograd functions, which save reshaped copies of their inputs, without the graph of those."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from fla_bdlru.fla_cpu.registry import is_enabled, warn_missing
from fla_bdlru.ops.common.autograd import NoSecondDerivative
from fla_bdlru.patches import patch, resolve

WHY = "on CPU tensors second derivatives, where what FLA saves for its backward pass has no graph"


def _stub(x: torch.Tensor) -> torch.Tensor:
    """The shape and the graph of `x`, and a single number in the place of its memory; in `torch.enable_grad`."""
    stub = torch.ops.aten._unsafe_view.default(x, x.shape)  # not a view of `x`, which would keep it
    stub.data = x.new_empty_strided(x.shape, (0,) * x.ndim)
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


def _put(target: str, make: Callable) -> None:
    """Puts `make(original)` in the place of a method; done again, it changes nothing."""
    original = resolve(target)[2]
    if not hasattr(original, "_fla_bdlru_original"):
        new = wraps(original)(make(original))
        new._fla_bdlru_original = original
        patch(target, new, WHY)


def _wrap(target: str, note: Callable, derive: Callable) -> None:
    """Has `note(ctx, args)` look at what FLA's forward pass got, eager on a CPU, and `derive` do the backward pass again.

    It is called as `derive(original, ctx, noted, *grads)`, where a graph of the gradients is wanted.
    """

    def make_forward(original):
        def forward(ctx, *args):
            outputs = original(ctx, *args)
            if not torch.compiler.is_compiling() and (args[0].is_cpu or args[0].is_meta):
                ctx._fla_bdlru_noted = note(ctx, args)
            return outputs

        return forward

    def make_backward(original):
        def backward(ctx, *grads):
            if not torch.is_grad_enabled() or not hasattr(ctx, "_fla_bdlru_noted") or not is_enabled():
                return original(ctx, *grads)
            return derive(original, ctx, ctx._fla_bdlru_noted, *grads)

        return backward

    try:
        _put(f"{target}.forward", make_forward)
        _put(f"{target}.backward", make_backward)
    except (ImportError, AttributeError):
        warn_missing(target)


def keep_graph(target: str, sources: tuple[tuple[int, ...], ...], rebuild: Callable) -> None:
    """Has the backward pass of an autograd function find the graph of what it saved.

    The i-th saved tensor is, but for its shape, the sum of the arguments at `sources[i]`, or depends on those one to one;
    `rebuild(ctx, *saved)` makes what follows from them again.
    """

    pairs = [(n, i) for i, positions in enumerate(sources) for n in positions]

    def note(ctx, args):
        saved, found = ctx.to_save, []
        for n, i in pairs:
            x = args[n] if n < len(args) else None
            if x is not None and x.requires_grad and x is not saved[i]:
                found.append((i, x))
        stubs = {}
        if found:
            with torch.enable_grad():
                for i, x in found:
                    stubs.setdefault(i, []).append(_stub(x))
        return stubs

    def derive(original, ctx, stubs, *grads):
        saved = (_Rooted.apply(x.detach(), *stubs[i]) if i in stubs else x for i, x in enumerate(ctx.saved_tensors))
        return original(_With(ctx, tuple(rebuild(ctx, *saved))), *grads)

    _wrap(target, note, derive)


def as_saved(ctx: Any, *saved: torch.Tensor | None) -> tuple:
    """Nothing to make again."""
    return saved


def refuse(target: str, positions: tuple[int, ...]) -> None:
    """Refuses the derivatives of an autograd function's backward pass by the arguments at `positions`, and by those alone."""

    def note(ctx, args):
        given = [args[n] for n in positions if n < len(args) and args[n] is not None and args[n].requires_grad]
        with torch.enable_grad():
            return NoSecondDerivative.apply(1, args[0].new_empty(0), *given)[0]

    def derive(original, ctx, link, *grads):
        return tuple(None if x is None else x + link.sum().to(x.dtype) for x in original(ctx, *grads))

    _wrap(target, note, derive)
