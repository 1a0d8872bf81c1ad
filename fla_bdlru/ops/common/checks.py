"""What the ops ask of their arguments, once for the kernels, the plain PyTorch forms and the layers."""

from __future__ import annotations

import os
from numbers import Integral

import torch
from torch._subclasses.fake_tensor import is_fake

from fla_bdlru.ops.common.gate_norm import check_gate_norm

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def read_switch(variable: str) -> bool:
    """Whether an environment variable is on, as it is unless it is 0; `ValueError` for what is neither 0 nor 1."""
    value = os.environ.get(variable) or "1"
    if value not in ("0", "1"):
        raise ValueError(f"{variable}={value!r} is not known; expected 0 or 1.")
    return value == "1"


def check_integer(field: str, value: object) -> None:
    """Raises `ValueError` unless `value` is an integer."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{field} must be an integer; got {value!r}.")


def check_count(field: str, value: object) -> None:
    """Raises `ValueError` unless `value` is a positive integer."""
    check_integer(field, value)
    if value < 1:
        raise ValueError(f"{field} must be positive; got {value}.")


def check_tensor(field: str, value: object) -> None:
    """Raises `ValueError` unless `value` is a dense tensor."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{field} must be a tensor; got {value!r}.")
    if value.layout != torch.strided:
        raise ValueError(f"{field} must be a dense tensor, of layout torch.strided; got {value.layout}.")


def check_device(field: str, value: torch.Tensor, name: str, x: torch.Tensor) -> None:
    """Raises `ValueError` unless `value` is on the device of `x`."""
    if value.device != x.device:
        raise ValueError(f"{field} must be on the device of {name}, {str(x.device)!r}; got {str(value.device)!r}.")


def is_readable(x: torch.Tensor) -> bool:
    """Whether values can be looked at: on a GPU a look would be a sync, and who traces or batches has no values."""
    traced = torch.compiler.is_compiling() or torch._C._functorch.is_batchedtensor(x) or is_fake(x)
    return x.device.type == "cpu" and not traced


def check_cu_seqlens(cu_seqlens: torch.Tensor | None, T: int, field: str = "cu_seqlens") -> None:
    """Raises `ValueError` unless `cu_seqlens`, where they can be read, run from 0 to T without falling."""
    if cu_seqlens is None or not is_readable(cu_seqlens):
        return
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != T or (cu_seqlens.diff() < 0).any():
        raise ValueError(f"{field} must rise from 0 to T={T}; got {cu_seqlens.tolist()}.")


def num_sequences(name: str, x: torch.Tensor, cu_seqlens: torch.Tensor | None) -> int:
    """How many sequences `x` [B, T, ...] holds; `ValueError` for `cu_seqlens` that do not go with it, by all but values."""
    if cu_seqlens is None:
        return x.shape[0]
    check_tensor("cu_seqlens", cu_seqlens)
    check_device("cu_seqlens", cu_seqlens, name, x)
    if x.shape[0] != 1:
        raise ValueError(f"cu_seqlens needs a batch of 1 (pack the sequences); got B={x.shape[0]}.")
    if cu_seqlens.ndim != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64) or cu_seqlens.shape[0] < 2:
        raise ValueError(
            f"cu_seqlens must be integers of shape [num_seqs+1]; got {cu_seqlens.dtype} {list(cu_seqlens.shape)}."
        )
    return cu_seqlens.shape[0] - 1


def check_float(name: str, x: torch.Tensor) -> None:
    """Raises `ValueError` unless `x` is of one of `DTYPES`."""
    if x.dtype not in DTYPES:
        accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(f"{name} must be of a floating-point dtype; got {x.dtype}, expected one of {accepted}.")


def check_state(initial_state: torch.Tensor | None, shape: tuple[int, ...], name: str, x: torch.Tensor) -> None:
    """Raises `ValueError` unless an initial state is a floating-point tensor of `shape` on the device of `x`."""
    if initial_state is None:
        return
    check_tensor("initial_state", initial_state)
    check_float("initial_state", initial_state)
    if tuple(initial_state.shape) != shape:
        raise ValueError(f"initial_state must have shape {list(shape)}; got {list(initial_state.shape)}.")
    check_device("initial_state", initial_state, name, x)


def check_arguments(
    axes: str,
    v: torch.Tensor,
    g: torch.Tensor,
    initial_state: torch.Tensor | None,
    gate_norm: str,
    cu_seqlens: torch.Tensor | None,
) -> None:
    """Raises `ValueError`, naming the argument, for what an op over `axes` cannot take; values of `cu_seqlens` aside.

    `axes` are those of `v`: `"[B, T, H, M]"` is BD-LRU, `"[B, T, N]"` H-LRU.
    """
    check_tensor("v", v)
    if v.ndim != axes.count(",") + 1 or (v.ndim == 4 and v.shape[-1] < 1):
        raise ValueError(f"v must have shape {axes}{' with M >= 1' if v.ndim == 4 else ''}; got {list(v.shape)}.")
    check_tensor("g", g)
    if v.ndim == 3 and (g.ndim != 4 or g.shape[-1] < 2):
        raise ValueError(f"g must have shape [B, T, N, M+1] with order M >= 1; got {list(g.shape)}.")
    M = v.shape[-1] if v.ndim == 4 else g.shape[-1] - 1
    check_gate_norm(gate_norm)
    if g.shape != (*v.shape, M + 1):
        raise ValueError(f"g must have shape {[*v.shape, M + 1]} for v of shape {list(v.shape)}; got {list(g.shape)}.")
    check_float("v", v)
    check_float("g", g)
    check_device("g", g, "v", v)
    check_state(initial_state, (num_sequences("v", v, cu_seqlens), v.shape[2], M), "v", v)
