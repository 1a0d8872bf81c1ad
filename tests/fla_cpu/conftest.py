import pytest
import torch

pytest.importorskip("triton", reason="FLA's layers import Triton")

import fla_bdlru.fla_cpu as fla_cpu

# How far a result may be from the float64 formula, relative to the formula's largest value.
TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    """Tiny tensors: threads cost more than they bring, many times more where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _cpu_backend(monkeypatch):
    monkeypatch.delenv("FLA_BDLRU_CPU_BACKEND", raising=False)
    fla_cpu.register()


def _flat(outputs):
    return [o for o in (outputs if isinstance(outputs, (tuple, list)) else (outputs,)) if o is not None]


def run_with_gradients(fn, inputs, weights=None):
    """Outputs of `fn(*inputs)`, and the gradients of a fixed random sum of them with respect to every float input."""
    leaves = [x.detach().clone().requires_grad_() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs]
    outputs = _flat(fn(*leaves))
    weights = weights or [torch.randn(o.shape, dtype=torch.float64) for o in outputs]
    loss = sum((o.double() * w).sum() for o, w in zip(outputs, weights))
    wanted = [x for x in leaves if torch.is_tensor(x) and x.requires_grad]
    return outputs, torch.autograd.grad(loss, wanted, allow_unused=True), weights


def assert_close(got, expected, tolerance, what):
    assert (got is None) == (expected is None), what
    if expected is None:
        return
    got, expected = got.detach().double(), expected.detach().double()
    assert got.shape == expected.shape, (what, got.shape, expected.shape)
    assert got.isfinite().all(), what
    if expected.numel():
        error = (got - expected).abs().max().item() / max(expected.abs().max().item(), 1e-2)
        assert error <= tolerance, (what, error)


@pytest.fixture
def check():
    """`check(fn, reference, inputs, dtype)`: fn agrees with the formula in float64, outputs and all gradients."""

    def check(fn, reference, inputs, dtype=torch.float32, out_dtypes=None, tolerance=None):
        inputs = [x.to(dtype) if torch.is_tensor(x) and x.dtype == torch.float64 else x for x in inputs]
        exact = [x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs]
        expected, expected_grads, weights = run_with_gradients(reference, exact)
        outputs, grads, _ = run_with_gradients(fn, inputs, weights)
        tolerance = tolerance or TOLERANCES[dtype]
        assert len(outputs) == len(expected)
        for i, (o, e) in enumerate(zip(outputs, expected)):
            assert o.dtype == (out_dtypes[i] if out_dtypes else dtype), (i, o.dtype)
            assert_close(o, e, tolerance, f"output {i}")
        for i, (g, e) in enumerate(zip(grads, expected_grads)):
            assert_close(g, e, tolerance, f"gradient {i}")

    return check


@pytest.fixture
def close():
    """`close(got, expected, tolerance, what)`: relative to the largest expected value."""
    return assert_close


@pytest.fixture
def with_gradients():
    """`with_gradients(fn, inputs, weights=None)`: outputs, gradients and the weights of the sum that was derived."""
    return run_with_gradients
