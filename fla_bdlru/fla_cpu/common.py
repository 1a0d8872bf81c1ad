"""What the replacements share: the number type of a computation, and options that a CPU does not have."""

import functools
from collections.abc import Callable

import torch


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


def no_context_parallelism(cp_context) -> None:
    if cp_context is not None:
        raise ValueError("cp_context is set: context parallelism needs tensors on a GPU; on a CPU pass None.")


def check_options(name: str, options: dict, ignored: tuple[str, ...] = ()) -> None:
    """Options that only steer FLA's kernels are ignored; any other unknown one is an error."""
    unknown = sorted(set(options) - set(ignored))
    if unknown:
        raise ValueError(f"{name} got options that it does not have on a CPU: {', '.join(unknown)}.")
