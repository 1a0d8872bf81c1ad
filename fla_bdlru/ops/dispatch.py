"""Which code runs an op: `FLA_BDLRU_BACKEND`, the tensors' device, and what is installed decide, here and nowhere else."""

import os
import warnings
from functools import cache
from importlib.util import find_spec

import torch

BACKENDS = ("auto", "triton", "cpu", "torch")
# what the kernels read; float64 (gradcheck) is left to plain PyTorch
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def has_numba() -> bool:
    """Whether numba, which compiles the CPU kernels, is installed."""
    return find_spec("numba") is not None


@cache
def has_triton() -> bool:
    """Whether Triton, which compiles the GPU kernels, is installed."""
    return find_spec("triton") is not None


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
    """The backend for tensors on `device`: `"triton"` on a GPU, `"cpu"` (numba) on a CPU, else `"torch"` (plain PyTorch).

    `FLA_BDLRU_BACKEND` forces one: `auto` (default), `triton`, `cpu` or `torch`. Forced, Triton takes CPU tensors too, where
    its interpreter runs the kernels (`TRITON_INTERPRET=1`).

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
    if wanted in ("triton", "cpu"):
        reason = _why_not(wanted, device, dtype)
        if reason is not None:
            raise ValueError(f"FLA_BDLRU_BACKEND={wanted!r} {reason}.")
        return wanted
    if wanted == "torch" or dtype not in DTYPES:
        return "torch"
    if device.type == "cuda" and has_triton():
        return "triton"
    if device.type != "cpu":
        return "torch"
    if not has_numba():
        warn_no_numba()
        return "torch"
    return "cpu"


def _why_not(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a forced backend cannot run these tensors; `None` if it can."""
    if dtype not in DTYPES:
        return f"takes float32, bfloat16 and float16; got {dtype}"
    if backend == "cpu":
        if device.type != "cpu":
            return f"runs CPU tensors only; got a tensor on {str(device)!r}"
        return None if has_numba() else "needs numba: `pip install 'fla-bdlru[cpu]'`"
    if not has_triton():
        return "needs Triton: `pip install 'fla-bdlru[cuda]'`"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "runs CPU tensors only in Triton's interpreter: set TRITON_INTERPRET=1 before Python starts"
    return None if device.type in ("cpu", "cuda") else f"runs tensors on a GPU; got one on {str(device)!r}"
