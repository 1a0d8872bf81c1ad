"""Which backend runs, and what is said when none can."""

import builtins
from types import SimpleNamespace

import pytest
import torch
from fresh import run_fresh

from fla_bdlru.ops import chunk_bdlru
from fla_bdlru.ops.common import dispatch

CPU = torch.device("cpu")


def test_auto_takes_the_native_path(monkeypatch):
    monkeypatch.delenv("FLA_BDLRU_BACKEND", raising=False)
    assert dispatch.resolve_backend(CPU, torch.float32) == "cpu"
    assert dispatch.resolve_backend(CPU, torch.bfloat16) == "cpu"
    assert dispatch.resolve_backend(CPU, torch.float64) == "torch"
    assert dispatch.resolve_backend(CPU, torch.float32, torch.bfloat16) == "cpu"
    assert dispatch.resolve_backend(CPU, torch.float32, torch.float64) == "torch"
    assert dispatch.resolve_backend(torch.device("cuda"), torch.float32) == "triton"
    assert dispatch.resolve_backend(torch.device("cuda"), torch.float64) == "torch"
    assert dispatch.resolve_backend(torch.device("xpu"), torch.bfloat16) == "triton"
    npu = SimpleNamespace(type="npu")  # a name that PyTorch knows where torch_npu is installed
    assert dispatch.resolve_backend(npu, torch.bfloat16) == "triton"


@pytest.mark.parametrize("value", dispatch.BACKENDS)
def test_tensors_that_are_shapes_alone_have_no_backend(monkeypatch, value):
    monkeypatch.setenv("FLA_BDLRU_BACKEND", value)
    assert dispatch.resolve_backend(torch.device("meta"), torch.float64) == "meta"


@pytest.mark.parametrize("device, reason", [("mps", "the kernels know no device 'mps'"), ("xpu", "Triton is not installed")])
def test_whichever_device_falls_to_plain_pytorch_says_so_once(monkeypatch, device, reason):
    monkeypatch.delenv("FLA_BDLRU_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    dispatch.warn_plain.cache_clear()
    with pytest.warns(UserWarning, match=f"{reason}.* run on '{device}' in plain PyTorch") as caught:
        assert [dispatch.resolve_backend(torch.device(device), torch.float32) for _ in range(2)] == ["torch"] * 2
    assert len(caught) == 1


@pytest.mark.parametrize("value, device, dtype, message", [
    ("gpu", "cpu", torch.float32, "FLA_BDLRU_BACKEND='gpu' is not known; expected one of auto, triton, cpu, torch"),
    ("cpu", "cuda", torch.float32, "runs CPU tensors only; got a tensor on 'cuda'"),
    ("cpu", "cpu", torch.float64, "takes float32, bfloat16 and float16; got torch.float64"),
    ("triton", "cpu", torch.float32, "set TRITON_INTERPRET=1 before Python starts"),
    ("triton", "cuda", torch.float64, "takes float32, bfloat16 and float16; got torch.float64"),
    ("triton", "mps", torch.float32, "runs tensors on a GPU; got one on 'mps'"),
])  # fmt: skip
def test_forced_backends_that_cannot_run(monkeypatch, value, device, dtype, message):
    monkeypatch.setenv("FLA_BDLRU_BACKEND", value)
    with pytest.raises(ValueError, match=message):
        dispatch.resolve_backend(torch.device(device), dtype)


def test_forced_triton_that_cannot_run(monkeypatch):
    """Switched to the GPU by name, or not installed."""
    monkeypatch.setenv("FLA_BDLRU_BACKEND", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1 before Python starts"):
        dispatch.resolve_backend(CPU, torch.float32)
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    with pytest.raises(ValueError, match="FLA_BDLRU_BACKEND='triton' needs Triton: `pip install triton`"):
        dispatch.resolve_backend(torch.device("cuda"), torch.float32)


@pytest.mark.parametrize("reason", ["missing", "broken", "disabled"])
def test_without_numba_plain_pytorch_runs_with_one_warning(monkeypatch, reason):
    """Not installed, installed but of no use, or switched off."""
    message = {
        "missing": r"numba is not installed \(`pip install numba`\)",
        "broken": r"numba cannot be imported \(ImportError: Numba needs NumPy 2.4 or less\)",
        "disabled": "NUMBA_DISABLE_JIT is set, which switches numba off",
    }[reason]
    if reason == "missing":
        monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    elif reason == "disabled":
        monkeypatch.setattr(pytest.importorskip("numba").config, "DISABLE_JIT", 1)
    else:
        original = builtins.__import__

        def broken(name, *args, **kwargs):
            if name == "numba":
                raise ImportError("Numba needs NumPy 2.4 or less")
            return original(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", broken)
    dispatch.why_no_numba.cache_clear()
    dispatch.warn_plain.cache_clear()
    v, g = torch.randn(1, 3, 2, 2), torch.randn(1, 3, 2, 2, 3)
    try:
        with pytest.warns(UserWarning, match=f"{message}, so BD-LRU and H-LRU run on the CPU in plain PyTorch") as caught:
            [chunk_bdlru(v, g) for _ in range(2)]
        assert len([w for w in caught if "numba" in str(w.message).lower()]) == 1
        monkeypatch.setenv("FLA_BDLRU_BACKEND", "cpu")
        with pytest.raises(ValueError, match=f"FLA_BDLRU_BACKEND='cpu' cannot run: {message}"):
            chunk_bdlru(v, g)
    finally:
        dispatch.why_no_numba.cache_clear()


def test_numba_is_imported_by_the_first_call_only():
    code = (
        "import sys, torch; from fla_bdlru.ops import chunk_bdlru; assert 'numba' not in sys.modules; "
        "chunk_bdlru(torch.randn(1, 3, 2, 1), torch.randn(1, 3, 2, 1, 2)); assert 'numba' in sys.modules"
    )
    run_fresh("-c", code)


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch):
    monkeypatch.setenv("FLA_BDLRU_BACKEND", "")
    assert dispatch.resolve_backend(CPU, torch.float64) == "torch"
    assert dispatch.resolve_backend(CPU, torch.float32) == "cpu"
