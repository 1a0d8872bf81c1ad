"""What the replacements share: the number type of a computation, the shapes that it takes, and what runs it."""

import functools
import os
from collections.abc import Callable

import torch

from fla_bdlru.ops.common.autograd import is_plain, is_traced
from fla_bdlru.ops.common.dispatch import why_no_numba


def full_precision(fn: Callable) -> Callable:
    """Decorates an op that keeps fp32 under autocast, as FLA's kernels do: its products would go to half precision."""

    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        with torch.autocast("cpu", enabled=False):
            return fn(*args, **kwargs)

    return wrapper


def upcast(x: torch.Tensor) -> torch.Tensor:
    """`x` in fp32, as FLA's kernels compute half types; `x` itself if it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def check_shape(name: str, x: torch.Tensor | None, *shapes: tuple[int, ...]) -> None:
    """Raises `ValueError` unless `x` is `None` or has one of the shapes."""
    if x is not None and x.shape not in shapes:
        raise ValueError(f"{name} must have shape {' or '.join(str(list(s)) for s in shapes)}; got {list(x.shape)}.")


def check_sizes(**sizes: tuple[torch.Tensor | None, int]) -> None:
    """Raises `ValueError` unless each tensor has as many elements as a kernel, which gets a pointer, is about to index."""
    for name, (x, size) in sizes.items():
        if x is not None and x.numel() != size:
            raise ValueError(f"{name} must have {size} elements for the other shapes; got {x.numel()}, {list(x.shape)}.")


_is_legacy = torch._C._functorch.is_legacy_batchedtensor


def is_batched(*tensors: torch.Tensor | None) -> bool:
    """Whether one of the tensors holds many, as incoming gradients do for `torch.autograd.grad(is_grads_batched=True)`."""
    return any(x is not None and _is_legacy(x) for x in tensors)


@full_precision
def derive(fn: Callable, inputs: tuple, grads: tuple) -> tuple:
    """The gradients of `fn(*inputs)` by PyTorch's operators, for incoming ones that may be batched; `None` is left alone."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    with torch.enable_grad():
        outputs = fn(*leaves)
    outputs, grads = zip(*((o, grad) for o, grad in zip(outputs, grads) if grad is not None))
    wanted = [t for t in leaves if t is not None]
    found = iter(torch.autograd.grad(outputs, wanted, grads, allow_unused=True, materialize_grads=True))
    return tuple(None if t is None else next(found) for t in leaves)


def _is_plain(x: torch.Tensor | None) -> bool:
    if x is None:
        return True
    plain = x.dtype == torch.float32 and x.device.type == "cpu" and is_plain(x)
    return plain and not is_traced() and not torch._C._are_functorch_transforms_active() and not _is_legacy(x)


def are_for_numba(*tensors: torch.Tensor | None) -> bool:
    """Whether a numba kernel runs these: float32 memory that no tracer, transform or subclass looks at, and numba is there.

    `FLA_BDLRU_BACKEND=torch` rules it out, as for the ops of this package.
    """
    wanted = os.environ.get("FLA_BDLRU_BACKEND") or "auto"
    return wanted in ("auto", "cpu") and all(map(_is_plain, tensors)) and why_no_numba() is None


def are_for_kernels(*tensors: torch.Tensor | None) -> bool:
    """`are_for_numba`, for what FLA calls inside of its autograd functions: a second derivative is to go by PyTorch."""
    return not torch.is_grad_enabled() and are_for_numba(*tensors)
