"""The native CPU functions of both ops, called directly: gate-major tensors, no autograd."""
# ruff: noqa: E402 (imports follow importorskip)

import os
import re
import signal
import threading
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh import run_fresh

numba = pytest.importorskip("numba")
from numba import njit
from references import NAIVE

from fla_bdlru.ops import GATE_NORMS
from fla_bdlru.ops.cpu import gates as cpu_gates
from fla_bdlru.ops.cpu import lanes
from fla_bdlru.ops.cpu import runtime as cpu_runtime
from fla_bdlru.ops.cpu import scan as cpu_scan
from fla_bdlru.ops.cpu.lanes import LANES, load, store

KEYS = ("o", "ht", "dv", "dg", "dh0")
each_op = pytest.mark.parametrize("op", NAIVE)


def make_inputs(op, B=2, T=9, M=3, width=7, num_seqs=None, scale=1.0):
    """v, g, h0, do and dht in gate-major layout."""
    rows = (M,) if op == "bdlru" else ()
    v, g = torch.randn(B, T, *rows, width), scale * torch.randn(B, T, *rows, M + 1, width)
    h0 = torch.randn(num_seqs or B, M, width)
    return v, g, h0, torch.randn_like(v), torch.randn_like(h0)


def native(op, v, g, h0, do, dht, cu_seqlens=None, gate_norm="softmax"):
    o, ht, h = cpu_scan.cpu_fwd(v, g, h0, cu_seqlens, gate_norm)
    assert (h.numel() == 0) == (v.dtype == torch.float32)
    assert o.dtype == v.dtype
    assert h.dtype == ht.dtype == torch.float32
    dv, dg, dh0 = cpu_scan.cpu_bwd(v, g, h if v.dtype != torch.float32 else o, h0, do, dht, cu_seqlens, gate_norm)
    assert (dv.dtype, dg.dtype, dh0.dtype) == (v.dtype, g.dtype, torch.float32)
    return dict(zip(KEYS, (o, ht, dv, dg, dh0)))


def reference(op, v, g, h0, do, dht, cu_seqlens=None, gate_norm="softmax", dtype=torch.float64):
    """The same from the naive recurrence and autograd, in `dtype`."""
    v, g, h0 = (x.detach().to(dtype).requires_grad_() for x in (v, g, h0))
    if op == "bdlru":
        o, ht = NAIVE[op](v.mT, g.permute(0, 1, 4, 2, 3), h0.mT, True, gate_norm, cu_seqlens)
        o = o.mT
    else:
        o, ht = NAIVE[op](v, g.mT, h0.mT, True, gate_norm, cu_seqlens)
    torch.autograd.backward([o, ht.mT], [do.to(o.dtype), dht.to(ht.dtype)])
    return dict(zip(KEYS, (o.detach(), ht.mT.detach(), v.grad, g.grad, h0.grad)))


def assert_close(got, exact, tolerance=2e-6):
    """Largest error against largest value, for each result."""
    for key, x in exact.items():
        error = (got[key].double() - x).abs().max()
        assert error <= tolerance * x.abs().max(), f"{key}: {error / x.abs().max():.1e}"


def check(op, *inputs, tolerance=2e-6, **kwargs):
    got = native(op, *inputs, **kwargs)
    assert_close(got, reference(op, *inputs, **kwargs), tolerance)
    return got


@pytest.fixture
def num_threads(monkeypatch):
    """Sets the number of threads; every call uses them, however small."""
    monkeypatch.setattr(cpu_runtime, "INLINE_WORK", 0)
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------------------ values


@each_op
@pytest.mark.parametrize("gate_norm", GATE_NORMS)
def test_native_equals_naive(op, gate_norm, poisoned_empty):
    """All norms, over two full tiles and a partial one."""
    check(op, *make_inputs(op, width=2 * LANES + 1, scale=0.5 if gate_norm == "none" else 2.0), gate_norm=gate_norm)


@each_op
@pytest.mark.parametrize("M", [1, 2, 4, 5, 6, 8, 16, 32])
def test_native_block_sizes(op, M, poisoned_empty):
    """T below, at and above the order of H-LRU, one lane and some."""
    for T, width in ((1, 7), (5, 1), (20, 7)):
        check(op, *make_inputs(op, T=T, M=M, width=width))


@each_op
@pytest.mark.parametrize("width", [1, 16, 33, 16 * 17 + 3])
def test_native_widths(op, width, poisoned_empty, num_threads):
    """More tiles than one task holds included."""
    num_threads(2)
    check(op, *make_inputs(op, T=64, width=width))


@each_op
def test_native_packed_documents(op, poisoned_empty):
    """Documents of no step hand the state on, in both directions."""
    bounds = [0, 0, 1, 8, 8, 19, 20, 20]
    v, g, h0, do, dht = make_inputs(op, B=1, T=20, num_seqs=7, width=33)
    got = check(op, v, g, h0, do, dht, cu_seqlens=torch.tensor(bounds))
    for i in (0, 3, 6):
        assert torch.equal(got["ht"][i], h0[i])
        assert torch.equal(got["dh0"][i], dht[i])


@each_op
def test_native_without_steps(op):
    v, g, h0, do, dht = make_inputs(op, T=0)
    got = native(op, v, g, h0, do, dht)
    assert torch.equal(got["ht"], h0)
    assert got["ht"].data_ptr() != h0.data_ptr()
    assert torch.equal(got["dh0"], dht)


@each_op
def test_native_refuses_strides(op):
    """Memory is read as it lies, so that other layouts would be other values."""
    v, g, h0, _, dht = make_inputs(op)
    o, _, _ = cpu_scan.cpu_fwd(v, g, h0, None, "softmax")
    turned = v.mT.contiguous().mT
    with pytest.raises(ValueError, match="kernels read contiguous memory; got strides"):
        cpu_scan.cpu_fwd(turned, g, h0, None, "softmax")
    with pytest.raises(ValueError, match="kernels read contiguous memory; got strides"):
        cpu_scan.cpu_bwd(v, g, o, h0, turned, dht, None, "softmax")


@each_op
def test_native_none_is_zeros(op):
    v, g, h0, do, dht = make_inputs(op)
    zeros = torch.zeros_like
    for nothing in ("h0", "do", "dht"):
        some = {"h0": h0, "do": do, "dht": dht}
        got = native(op, v, g, **{**some, nothing: None})
        expected = native(op, v, g, **{**some, nothing: zeros(some[nothing])})
        assert all(torch.equal(got[key], expected[key]) for key in KEYS)


@each_op
@pytest.mark.parametrize(
    "dtypes", list(product([torch.float32, torch.bfloat16, torch.float16], repeat=2))[1:], ids=lambda x: f"{x[0]}-{x[1]}"
)
def test_native_half_types(op, dtypes, poisoned_empty):
    """v and g each in its type: at most twice the error of the naive recurrence, plus the rounding of the results."""
    v, g, h0, do, dht = make_inputs(op, T=70, M=3 if dtypes[1] == torch.float16 else 2, width=19)
    v, g, do = v.to(dtypes[0]), g.to(dtypes[1]), do.to(dtypes[0])
    exact, plain = (reference(op, v, g, h0, do, dht, dtype=x) for x in (torch.float64, torch.float32))
    got = native(op, v, g, h0, do, dht)
    for key, x in exact.items():
        allowed = (plain[key].to(got[key].dtype).double() - x).abs().max()
        assert (got[key].double() - x).abs().max() <= 2 * allowed + 1e-6, key


@each_op
def test_native_states_are_kept_for_a_backward_only(op):
    v, g, h0, *_ = (x.bfloat16() for x in make_inputs(op))
    o, ht, h = cpu_scan.cpu_fwd(v, g, h0.float(), None, "softmax")
    same = cpu_scan.cpu_fwd(v, g, h0.float(), None, "softmax", keep=False)
    assert torch.equal(same[0], o)
    assert torch.equal(same[1], ht)
    assert torch.equal(h.bfloat16(), o)
    assert same[2].numel() == 0
    v, g, h0, *_ = (x.bfloat16() for x in make_inputs(op, B=1, T=70, M=2))
    o, _, h = cpu_scan.cpu_fwd(v, g, h0.float(), None, "softmax")  # of small blocks only each 32nd, which the next step reads
    assert torch.equal(h[1:, 0].bfloat16(), o[0, [31, 63]] if op == "hlru" else o[0, [31, 63], 0])


@pytest.mark.parametrize("own", [True, False])
def test_bfloat16_is_rounded_to_nearest(own, monkeypatch):
    """Ties to even, NaN and Inf as PyTorch rounds them, by the machine's own instruction (if it has one) or without."""
    monkeypatch.setattr(lanes, "_HAS", lanes._HAS if own else {})

    @njit
    def copy(source, target):
        for x in range(0, source.size, LANES):
            store(target, x, load(source, x, None), None)

    bits = torch.randint(-(2**31), 2**31, (1 << 16,)).to(torch.int32)
    bits[:4] = torch.tensor([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800001])
    x = bits.view(torch.float32)
    got = torch.empty(len(x), dtype=torch.bfloat16)
    copy(x.numpy(), got.view(torch.int16).numpy())
    tiny = torch.finfo(torch.float32).tiny
    torch.testing.assert_close(got, x.bfloat16(), rtol=0, atol=tiny if own else 0, equal_nan=True)  # the instruction flushes


@pytest.mark.parametrize("variable", [{"NUMBA_CPU_NAME": "generic"}, {"NUMBA_ENABLE_AVX": "0"}], ids=str)
def test_vectors_of_another_machine_than_this(variable):
    """What numba is told to compile for, as for a cache that several machines share, has no instructions of this one."""
    code = """
import runpy, sys, numba, numpy
vars().update(runpy.run_path("fla_bdlru/ops/cpu/lanes.py"))
@numba.njit
def f(x, y):
    store(y, 0, larger(load(x, 0, None), load(x, 16, None)), None)
x, y = numpy.arange(32, dtype=numpy.float32), numpy.zeros(16, numpy.float32)
f(x, y)
print((y == x[16:]).all(), _HAS.get("avx512f", False))
"""
    assert run_fresh("-c", code, env={**os.environ, **variable}).split() == ["True", "False"]


# -------------------------------------------------------------------------------------------------------- activations


@pytest.mark.parametrize("name, low, high, ulps", [
    ("exp", -87.3, 88.0, 1.5), ("expm1", -87.3, 0.0, 2.0), ("tanh", -20.0, 20.0, 3.0), ("sigmoid", -87.0, 20.0, 2.5),
    ("silu", -87.0, 20.0, 3.0),
])  # fmt: skip
def test_activations_in_ulps(name, low, high, ulps):
    """Errors in units of the last place of the exact value, near 0 too."""
    function, pair = getattr(cpu_gates, name), name in ("tanh", "sigmoid", "silu")

    @njit
    def apply(source, target):
        for x in range(0, source.size, LANES):
            y = function(load(source, x, None))
            store(target, x, y[0] if pair else y, None)

    x = np.concatenate([np.linspace(low, high, 1 << 16), np.geomspace(1e-30, 1, 1 << 12), -np.geomspace(1e-30, 1, 1 << 12)])
    x = x[(x >= low) & (x <= high)].astype(np.float32)
    x = x[: len(x) // LANES * LANES]
    got = np.full_like(x, np.nan)
    apply(x, got)
    wide = x.astype(np.float64)
    half = np.exp(-np.abs(wide))
    logistic = np.where(wide < 0, half, 1) / (1 + half)
    exact = {"exp": np.exp, "expm1": np.expm1, "tanh": np.tanh}.get(name, lambda x: logistic)(wide)
    exact = wide * exact if name == "silu" else exact
    error = np.abs(got - exact) / np.spacing(np.abs(exact).astype(np.float32))
    assert error.max() <= ulps, (error.max(), x[error.argmax()])


def test_the_derivative_of_sigmoid_in_ulps():
    """Where a gate is nearly 1 too: y (1 - y) would be 0 there."""

    @njit
    def apply(source, target):
        for x in range(0, source.size, LANES):
            store(target, x, cpu_gates.sigmoid(load(source, x, None))[1], None)

    x = np.linspace(-40, 40, 1 << 16).astype(np.float32)
    got = np.full_like(x, np.nan)
    apply(x, got)
    half = np.exp(-np.abs(x.astype(np.float64)))
    exact = half / (1 + half) ** 2
    error = np.abs(got - exact) / np.spacing(exact.astype(np.float32))
    assert error.max() <= 4, (error.max(), x[error.argmax()])


def test_exp_at_the_edges():
    @njit
    def apply(source, target):
        store(target, 0, cpu_gates.exp(load(source, 0, None)), None)

    x = np.array([-np.inf, -1e30, -200, -104, -88.1, 0, 88, np.nan, -0.0] + [1.0] * 7, dtype=np.float32)
    got = np.empty_like(x)
    apply(x, got)
    assert (got[:5] == 0).all()
    assert got[5] == got[8] == 1
    assert np.isfinite(got[6])
    assert np.isnan(got[7])


def test_larger_without_avx512(monkeypatch):
    """By comparing, as on other machines; the other way is LLVM's own intrinsic."""
    monkeypatch.setattr(lanes, "_HAS", {})

    @njit
    def apply(a, b, target):
        store(target, 0, lanes.larger(load(a, 0, None), load(b, 0, None)), None)

    a, b = (np.random.default_rng(seed).standard_normal(LANES, dtype=np.float32) for seed in (0, 1))
    got = np.empty_like(a)
    apply(a, b, got)
    assert np.array_equal(got, np.maximum(a, b))


# -------------------------------------------------------------------------------------------------------- hard regime


@each_op
@pytest.mark.parametrize("gate_norm", GATE_NORMS[:-1])
def test_native_large_logits(op, gate_norm):
    """Saturated gates, and rows that are all very negative: below the floor of the denominator."""
    v, g, h0, do, dht = make_inputs(op, T=40, scale=30.0)
    g[:, ::5] = -g[:, ::5].abs() - 20
    got = check(op, v, g, h0, do, dht, gate_norm=gate_norm, tolerance=4e-6)
    assert all(torch.isfinite(x).all() for x in got.values())


@each_op
@pytest.mark.parametrize(
    "gate_norm, scale", [("square", 1e-2), ("square", 1e4), ("sinh", 1e-3), ("sinh", 20.0), ("sinh", 1e4)]
)
def test_native_exact_gates(op, gate_norm, scale):
    """Large logits, and small ones, of which sinh keeps the digits."""
    inputs = make_inputs(op, scale=scale)
    got, exact = (run(op, *inputs, gate_norm=gate_norm) for run in (native, reference))
    if scale == 1e4 and gate_norm == "sinh":
        assert got.pop("dg").abs().max() < 1e-6  # the gates are exact
        assert exact.pop("dg").abs().max() < 1e-6
    assert_close(got, exact, 4e-6)
    assert all(torch.isfinite(x).all() for x in got.values())


@each_op
@pytest.mark.parametrize("gate_norm", ["sigmoid", "tanh", "silu", "linear", "square", "sinh"])
def test_native_floored_denominator(op, gate_norm):
    """With sum|f| below 1e-6 it is a constant: gradients have no term in h."""
    v, g, h0, do, dht = make_inputs(op)
    check(op, v, g - 20 if gate_norm == "sigmoid" else 1e-8 * g, h0, do, dht, gate_norm=gate_norm)


@each_op
@pytest.mark.parametrize("gate_norm", ["relu", "tanh", "silu", "linear", "square", "sinh"])
def test_native_zero_logits(op, gate_norm):
    """sign(0) is 0, and so is relu's derivative."""
    v, g, h0, do, dht = make_inputs(op)
    g[..., 0, ::2] = 0
    g[..., -1, ::3] = 0
    check(op, v, g, h0, do, dht, gate_norm=gate_norm)


@each_op
def test_native_near_identity(op):
    """Time constants of about 1000 steps over 2000: errors add up, but to no more than in the naive float32 recurrence."""
    v, g, h0, do, dht = make_inputs(op, B=1, T=2000, M=2)
    g = 0.1 * g
    if op == "bdlru":
        for i in range(2):
            g[:, :, i, i] += 8
    else:
        g[:, :, 0] += 8
    inputs = v, g, h0, do, dht
    exact, plain = (reference(op, *inputs, dtype=x) for x in (torch.float64, torch.float32))
    got = native(op, *inputs)
    for key, x in exact.items():
        error, allowed = ((y[key].double() - x).abs().max() / x.abs().max() for y in (got, plain))
        assert error <= 2 * allowed + 2e-6, key


@each_op
def test_native_signed_gates_without_decay(op):
    """Rows with a single +-1: states and adjoints are only moved, so every bit survives."""
    M, T = 3, 300
    v, g, h0, do, dht = make_inputs(op, T=T, M=M)
    g.zero_()
    picked = torch.randint(0, 2, (2, T, 1, 7)) * 2.0 - 1
    if op == "bdlru":
        for i in range(M):
            g[:, :, i, (i + 1) % M] = picked[:, :, 0]
    else:
        g[:, :, M - 1 : M] = picked
    got = check(op, v, g, h0, 0 * do, dht, gate_norm="linear")
    for state, start in ((got["ht"], h0), (got["dh0"], dht)):
        assert torch.equal(state.abs().sort(1)[0], start.abs().sort(1)[0])


@each_op
def test_native_states_reach_zero(op):
    """A state that decays ends at 0, not in subnormal numbers, which cost a hundred times more to compute with."""
    v, g, h0, _, _ = make_inputs(op, T=1000)
    o, _, _ = cpu_scan.cpu_fwd(v.zero_(), g.zero_(), h0, None, "softmax")
    tiny = torch.finfo(torch.float32).tiny
    assert ((o == 0) | (o.abs() >= tiny)).all()
    assert (o[:, -1] == 0).all()
    _, _, dh0 = cpu_scan.cpu_bwd(v, g, o, h0, None, torch.ones_like(h0), None, "softmax")
    assert (dh0 == 0).all()


@each_op
@pytest.mark.parametrize("gate_norm", GATE_NORMS)
@pytest.mark.parametrize("gates", [slice(None), 0, 1, -1], ids=str)
def test_native_nan_stays_in_its_lane(op, gate_norm, gates):
    """And is not hidden there, be it one logit of a row."""
    v, g, h0, do, dht = make_inputs(op, width=20, scale=0.5)
    clean = native(op, v, g, h0, do, dht, gate_norm=gate_norm)
    g[0, 4, ..., gates, 5] = float("nan")
    got = native(op, v, g, h0, do, dht, gate_norm=gate_norm)
    assert got["o"][0, 4:, ..., 5].isnan().all()
    others = [i for i in range(20) if i != 5]
    assert all(torch.equal(got[key][..., others], clean[key][..., others]) for key in KEYS)


# ------------------------------------------------------------------------------------------------------------ threads


@each_op
def test_native_bit_equal_for_any_thread_count(op, num_threads):
    inputs = make_inputs(op, B=3, T=40, width=147)
    num_threads(1)
    alone = native(op, *inputs)
    for threads in (2, 3, 7):
        num_threads(threads)
        got = native(op, *inputs)
        assert all(torch.equal(got[key], alone[key]) for key in KEYS)


def test_native_concurrent_callers(num_threads):
    """Callers share the pool while it grows; none sees another's data."""
    num_threads(1)
    inputs = [make_inputs(op, T=128, width=64 + i) for op, i in product(NAIVE, range(2))]
    expected = [native(op, *x) for (op, _), x in zip(product(NAIVE, range(2)), inputs)]
    wrong = []

    def call(i):
        torch.set_num_threads(2 + i)
        for _ in range(5):
            got = native(("bdlru", "bdlru", "hlru", "hlru")[i], *inputs[i])
            if not all(torch.equal(got[key], expected[i][key]) for key in KEYS):
                wrong.append(i)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_native_after_fork(num_threads):
    num_threads(3)
    inputs = make_inputs("bdlru", B=4, T=64, width=32)
    before = native("bdlru", *inputs)
    pool = cpu_runtime._pool
    assert pool is not None
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)
            # compared by numpy: PyTorch's own threads do not survive a fork
            same = all(np.array_equal(x.numpy(), before[key].numpy()) for key, x in native("bdlru", *inputs).items())
            os._exit(0 if same and cpu_runtime._pool not in (None, pool) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def test_run_jobs_without_threads(num_threads, monkeypatch):
    """Where no thread can be started (the interpreter shuts down), the caller does it all."""
    num_threads(4)

    class Refuses:
        def submit(self, function):
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(cpu_runtime, "_pool", Refuses())
    monkeypatch.setattr(cpu_runtime, "_pool_size", 8)
    done = []
    cpu_runtime.run_jobs([lambda i=i: done.append(i) for i in range(5)])
    assert done == [0, 1, 2, 3, 4]


def test_run_jobs_raises_what_a_job_raises(num_threads):
    num_threads(2)
    ready = threading.Event()

    def fail():
        ready.set()
        raise KeyError("broken")

    for jobs in ([fail, ready.wait], [ready.wait, fail]):
        ready.clear()
        with pytest.raises(KeyError, match="broken"):
            cpu_runtime.run_jobs(jobs)


# -------------------------------------------------------------------------------------------------------------- cache


def test_kernels_are_read_from_disk_by_the_next_process(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    make = cpu_scan.forward_kernel.__wrapped__
    monkeypatch.setattr(cpu_scan, "forward_kernel", lambda *constants: compiled)
    compiled = make(1, cpu_gates.NONE, False, 0)
    v, g, h0 = torch.ones(1, 2, 1, 16), torch.ones(1, 2, 1, 2, 16), torch.ones(1, 1, 16)
    cpu_scan.cpu_fwd(v, g, h0, None, "none")
    assert (sum(compiled.stats.cache_hits.values()), sum(compiled.stats.cache_misses.values())) == (0, 1)
    code = (
        "import torch; from fla_bdlru.ops.cpu import scan as cpu; "
        "v, g = torch.ones(1, 2, 1, 16), torch.ones(1, 2, 1, 2, 16); "
        "cpu.cpu_fwd(v, g, None, None, 'none'); stats = cpu.forward_kernel(1, 8, False, 0).stats; "
        "assert sum(stats.cache_hits.values()) == 1 and not stats.cache_misses"
    )
    run_fresh("-c", code, env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)})


def triple(x):
    return 3 * x


@pytest.fixture
def run_kernel(tmp_path, monkeypatch):
    """Compiles and runs a kernel as a new process would; returns how often it was read from disk, and what was warned of."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cpu_runtime, "_BUILD", 0)

    def run():
        cpu_runtime._warn_cache.cache_clear()
        monkeypatch.setattr(triple, "__qualname__", "triple")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            compiled = cpu_runtime.kernel(triple)
            assert (compiled(7), compiled(0.5)) == (21, 1.5)
        return sum(compiled.stats.cache_hits.values()), [str(w.message) for w in caught]

    return run


@pytest.mark.parametrize("kept", [0, 0.5])
@pytest.mark.parametrize("suffix", ["nbi", "1.nbc"], ids=["index", "object"])
def test_a_damaged_cache_is_written_anew(run_kernel, tmp_path, suffix, kept):
    assert run_kernel() == (0, [])
    (path,) = tmp_path.rglob(f"*.{suffix}")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    hits, warned = run_kernel()
    assert hits < 2
    assert len(warned) == 1
    assert re.search(r"cannot be used \((EOFError|UnpicklingError): .*compiled without it", warned[0])
    assert run_kernel() == (2, [])


@pytest.mark.parametrize("suffix", ["nbi", "nbc"], ids=["index", "object"])
def test_a_full_disk_is_warned_of_and_leaves_nothing(run_kernel, tmp_path, monkeypatch, suffix):
    def full(path, mode="r", *args, **kwargs):
        return open("/dev/full" if "w" in mode and f".{suffix}.tmp" in str(path) else path, mode, *args, **kwargs)

    monkeypatch.setattr(numba.core.caching, "open", full, raising=False)
    hits, warned = run_kernel()
    assert hits == 0
    assert len(warned) == 1
    assert "OSError: [Errno 28] No space left on device" in warned[0]
    assert not list(tmp_path.rglob("*.nb*"))
    monkeypatch.undo()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert run_kernel()[1] == []


def test_kernels_leave_the_gil_to_others():
    """Else threads would wait for each other."""
    for make in (cpu_scan.forward_kernel, cpu_scan.backward_kernel):
        assert make(1, cpu_gates.NONE, False, 0).targetoptions["nogil"]


def test_kernel_compiles_where_nothing_can_be_cached():
    """A function without a file has no place for a cache, as in an installation where nothing is writable."""
    scope = {}
    exec("def double(x):\n    return 2 * x", scope)
    assert cpu_runtime.kernel(scope["double"])(21) == 42


def test_the_cache_sees_everything_that_kernels_are_built_from():
    """All modules of the ops that a kernel's module imports, itself aside: numba looks at that one."""

    def imported(path):
        names = re.findall(r"^from fla_bdlru\.ops\.([\w.]+) import", path.read_text(), re.MULTILINE)
        paths = [folder / f"{name.replace('.', '/')}.py" for name in names]
        return set(paths).union(*map(imported, paths))

    folder = Path(cpu_runtime.__file__).parents[1]
    found = imported(folder / "cpu" / "scan.py")
    assert sorted(path.relative_to(folder).as_posix() for path in found) == sorted(cpu_runtime.SOURCES)
