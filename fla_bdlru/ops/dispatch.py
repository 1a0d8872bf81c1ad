"""Which code runs an op: `FLA_BDLRU_BACKEND`, the tensors' device, and what is installed decide, here and nowhere else."""

import os
import warnings
from functools import cache
from importlib.util import find_spec

import torch

BACKENDS = ("auto", "triton", "cpu", "torch")
# what the native CPU kernels read; float64 (gradcheck) is left to plain PyTorch
CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def has_numba() -> bool:
    """Whether numba, which compiles the CPU kernels, is installed."""
    return find_spec("numba") is not None


@cache
def warn_no_numba() -> None:
    """Warns, once, that ops on a CPU run without their native kernels."""
    warnings.warn(
        "numba is not installed, so BD-LRU and H-LRU run on the CPU in plain PyTorch, which is many times slower; "
        "`pip install 'fla-bdlru[cpu]'` brings it.",
        stacklevel=2,
    )


@torch.compiler.assume_constant_result
def resolve_backend(device: torch.device, dtype: torch.dtype) -> str:
    """The backend for tensors on `device`: `"cpu"` (numba) or `"torch"` (plain PyTorch).

    `FLA_BDLRU_BACKEND` forces one: `auto` (default), `triton`, `cpu` or `torch`.

    Args:
        device (torch.device):
            Where the op's tensors live.
        dtype (torch.dtype):
            The dtype of its inputs.

    Raises:
        ValueError: if `FLA_BDLRU_BACKEND` is unknown, or names a backend that cannot run these tensors.
    """
    wanted = os.environ.get("FLA_BDLRU_BACKEND", "auto")
    if wanted not in BACKENDS:
        raise ValueError(f"FLA_BDLRU_BACKEND={wanted!r} is not known; expected one of {', '.join(BACKENDS)}.")
    if wanted == "triton":
        raise ValueError("FLA_BDLRU_BACKEND='triton': this version has no Triton kernels; use 'auto', 'cpu' or 'torch'.")
    if wanted == "cpu":
        if device.type != "cpu":
            raise ValueError(f"FLA_BDLRU_BACKEND='cpu' runs CPU tensors only; got a tensor on {str(device)!r}.")
        if dtype not in CPU_DTYPES:
            raise ValueError(f"FLA_BDLRU_BACKEND='cpu' takes float32, bfloat16 and float16; got {dtype}.")
        if not has_numba():
            raise ValueError("FLA_BDLRU_BACKEND='cpu' needs numba: `pip install 'fla-bdlru[cpu]'`.")
        return "cpu"
    if wanted == "torch" or device.type != "cpu" or dtype not in CPU_DTYPES:
        return "torch"
    if not has_numba():
        warn_no_numba()
        return "torch"
    return "cpu"
