"""Which backend runs, and what is said when none can."""

import subprocess
import sys
import warnings

import pytest
import torch

from fla_bdlru.ops import chunk_bdlru, dispatch

CPU = torch.device("cpu")


def test_auto_takes_the_native_path(monkeypatch):
    monkeypatch.delenv("FLA_BDLRU_BACKEND", raising=False)
    assert dispatch.resolve_backend(CPU, torch.float32) == "cpu"
    assert dispatch.resolve_backend(CPU, torch.bfloat16) == "cpu"
    assert dispatch.resolve_backend(CPU, torch.float64) == "torch"
    assert dispatch.resolve_backend(torch.device("cuda"), torch.float32) == "triton"
    assert dispatch.resolve_backend(torch.device("cuda"), torch.float64) == "torch"
    assert dispatch.resolve_backend(torch.device("mps"), torch.float32) == "torch"


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


def test_without_numba_plain_pytorch_runs_with_one_warning(monkeypatch):
    monkeypatch.setattr(dispatch, "has_numba", lambda: False)
    dispatch.warn_no_numba.cache_clear()
    v, g = torch.randn(1, 3, 2, 2), torch.randn(1, 3, 2, 2, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chunk_bdlru(v, g)
        chunk_bdlru(v, g)
    assert [str(w.message) for w in caught if "numba is not installed" in str(w.message)] != []
    assert len([w for w in caught if "numba is not installed" in str(w.message)]) == 1
    monkeypatch.setenv("FLA_BDLRU_BACKEND", "cpu")
    with pytest.raises(ValueError, match=r"needs numba: `pip install 'fla-bdlru\[cpu\]'`"):
        chunk_bdlru(v, g)


def test_numba_is_imported_by_the_first_call_only():
    code = (
        "import sys, torch; from fla_bdlru.ops import chunk_bdlru; assert 'numba' not in sys.modules; "
        "chunk_bdlru(torch.randn(1, 3, 2, 1), torch.randn(1, 3, 2, 1, 2)); assert 'numba' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
