"""What the replacements share: the number type of a computation."""

import functools
from collections.abc import Callable

import torch

from fla_bdlru.ops.common.autograd import is_traced


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


def is_plain(x: torch.Tensor) -> bool:
    """Whether a kernel may read float32 memory that nobody has to see: no tracer, no transform, no subclass."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or type(x) not in (torch.Tensor, torch.nn.Parameter):
        return False
    return not is_traced() and not torch._C._are_functorch_transforms_active()
