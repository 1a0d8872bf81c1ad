"""The number type of a computation: half types are computed in fp32, as FLA's kernels do; float64 stays float64."""

import torch


def upcast(x: torch.Tensor) -> torch.Tensor:
    """`x` in fp32, or `x` itself if it is float64."""
    return x if x.dtype == torch.float64 else x.float()
