"""Which code runs an op: `FLA_BDLRU_BACKEND`, the tensors' device, and what is installed decide, here and nowhere else."""

import os
import warnings
from functools import cache
from importlib.util import find_spec

import torch

BACKENDS = ("auto", "triton", "cpu", "torch")
# GPUs that Triton has a backend for, as PyTorch and FLA call them (AMD's are "cuda"), and where else kernels run
TRITON_DEVICES = ("cuda", "xpu", "npu")
KERNEL_DEVICES = ("cpu", *TRITON_DEVICES)
# what the kernels read; float64 (gradcheck) is left to plain PyTorch
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def why_no_numba() -> str | None:
    """Why numba cannot compile the CPU kernels; `None` if it can. Imports it, which takes a while, the first time."""
    if find_spec("numba") is None:
        return "numba is not installed (`pip install numba`)"
    try:
        import numba
    except Exception as error:  # numba's own, of a numpy that it does not know, or a linker's
        return f"numba cannot be imported ({type(error).__name__}: {error})"
    return "NUMBA_DISABLE_JIT is set, which switches numba off" if numba.config.DISABLE_JIT else None


@cache
def has_triton() -> bool:
    """Whether Triton, which compiles the GPU kernels, is installed."""
    return find_spec("triton") is not None


@cache
def warn_plain(reason: str, where: str) -> None:
    """Warns, once, that ops run without their native kernels."""
    warnings.warn(f"{reason}, so BD-LRU and H-LRU run {where} in plain PyTorch, which is many times slower.", stacklevel=2)


@torch.compiler.assume_constant_result
def resolve_backend(device: torch.device, *dtypes: torch.dtype) -> str:
    """The backend for tensors on `device`: `"triton"` on a GPU, `"cpu"` (numba) on a CPU, else `"torch"` (plain PyTorch),
    as where the kernels cannot read one of `dtypes`. Meta tensors, which are shapes alone, have `"meta"`, whatever is forced.

    `FLA_BDLRU_BACKEND` forces one: `auto` (default), `triton`, `cpu` or `torch`. Forced, Triton takes CPU tensors too, where
    its interpreter runs the kernels (`TRITON_INTERPRET=1`).

    Raises:
        ValueError: if `FLA_BDLRU_BACKEND` is unknown, or names a backend that cannot run these tensors.
    """
    wanted = os.environ.get("FLA_BDLRU_BACKEND") or "auto"
    if wanted not in BACKENDS:
        raise ValueError(f"FLA_BDLRU_BACKEND={wanted!r} is not known; expected one of {', '.join(BACKENDS)}.")
    if device.type == "meta":
        return "meta"
    if wanted in ("triton", "cpu"):
        reason = _why_not(wanted, device, dtypes)
        if reason is not None:
            raise ValueError(f"FLA_BDLRU_BACKEND={wanted!r} {reason}.")
        return wanted
    if wanted == "torch" or any(dtype not in KERNEL_DTYPES for dtype in dtypes):
        return "torch"
    if device.type in TRITON_DEVICES and has_triton():
        return "triton"
    if device.type == "cpu":
        reason = why_no_numba()
    elif device.type in TRITON_DEVICES:
        reason = "Triton is not installed (`pip install triton`)"
    else:
        reason = f"the kernels know no device {device.type!r}"
    if reason is None:
        return "cpu"
    warn_plain(reason, f"on {'the CPU' if device.type == 'cpu' else repr(device.type)}")
    return "torch"


def _why_not(backend: str, device: torch.device, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Why a forced backend cannot run these tensors; `None` if it can."""
    for dtype in dtypes:
        if dtype not in KERNEL_DTYPES:
            return f"takes float32, bfloat16 and float16; got {dtype}"
    if backend == "cpu":
        if device.type != "cpu":
            return f"runs CPU tensors only; got a tensor on {str(device)!r}"
        reason = why_no_numba()
        return None if reason is None else f"cannot run: {reason}"
    if not has_triton():
        return "needs Triton: `pip install triton`"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "runs CPU tensors only in Triton's interpreter: set TRITON_INTERPRET=1 before Python starts"
    return None if device.type in KERNEL_DEVICES else f"runs tensors on a GPU; got one on {str(device)!r}"
