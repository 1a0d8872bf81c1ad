"""What backward passes written by hand need: plain inputs, and a second derivative that is refused."""

from collections.abc import Callable
from functools import wraps

import torch


def as_input(x: torch.Tensor) -> torch.Tensor:
    """`x` as kernels read it, without strides and without a lazy minus (`torch.Tensor.is_neg`)."""
    return x.contiguous().resolve_neg()


def is_plain(x: torch.Tensor | None) -> bool:
    """Whether kernels may read the memory of `x`; a subclass may have none, and is asked by way of the custom op."""
    return x is None or type(x) in (torch.Tensor, torch.nn.Parameter)


def is_traced() -> bool:
    """Whether somebody looks on, who is to see the custom op: torch.compile, dispatch modes, torch.jit.trace."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or torch._C._is_tracing()


def refuse() -> None:
    """Raises the `RuntimeError` of second derivatives."""
    raise RuntimeError(
        "The backward pass of BD-LRU, H-LRU and FLA's ops on a CPU cannot be differentiated again; second derivatives need "
        "plain PyTorch: set FLA_BDLRU_BACKEND=torch, and no cp_context; FLA's fused losses have none."
    )


class NoSecondDerivative(torch.autograd.Function):
    """The first `num` tensors as they are, whose gradients, which would go to all of them, are refused."""

    @staticmethod
    def forward(ctx, num, *tensors):
        return tensors[:num]

    @staticmethod
    def backward(ctx, *grads):
        refuse()


def once_differentiable(backward: Callable) -> Callable:
    """Makes `backward(ctx, saved, *grads)` that of an `autograd.Function`, and has a second derivative refused.

    torch's decorator of this name refuses it only where an incoming gradient asks for one; the part that comes from the
    saved tensors, the inputs among them, it drops in silence.
    """

    @wraps(backward)
    def run(ctx, *grads):
        saved = ctx.saved_tensors
        with torch.no_grad():
            outputs = backward(ctx, saved, *grads)
        return refused_further(outputs, (*saved, *grads))

    return run


def refused_further(outputs: tuple, sources: tuple) -> tuple:
    """What a backward pass computed from `sources`, so that its own derivative is refused; `None` is left alone."""
    if not torch.is_grad_enabled():  # no create_graph
        return outputs
    sources = [x for x in sources if x is not None and x.requires_grad]
    found = [x for x in outputs if x is not None]
    linked = iter(NoSecondDerivative.apply(len(found), *found, *sources))
    return tuple(None if x is None else next(linked) for x in outputs)
