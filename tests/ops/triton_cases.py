"""The Triton kernels on CPU tensors, in Triton's interpreter, against the naive recurrences; test_triton.py runs this file.

The interpreter takes about 10 ms an operation, so shapes are tiny: a few steps, two tiles of lanes at most.
"""

import os
from functools import cache, partial
from importlib import import_module

import pytest
import references
import slices
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ranks import run_ranks
from references import NAIVE, OPS, run
from torch.utils._python_dispatch import TorchDispatchMode

import fla_bdlru.ops.gpu.runtime as runtime
from fla_bdlru.ops import GATE_NORMS

each_op = pytest.mark.parametrize("name", NAIVE)
make_inputs = partial(references.make_inputs, B=1, T=9, M=2)
PACKED = [0, 0, 1, 4, 4, 9, 11, 11]


@pytest.fixture(autouse=True)
def _triton(monkeypatch):
    monkeypatch.setenv("FLA_BDLRU_BACKEND", "triton")


@pytest.fixture
def chunks(monkeypatch):
    """Cuts time into chunks of 4 steps, though it is short."""
    monkeypatch.setattr(runtime, "chunk_length", lambda B, T, n, M, warps: min(4, T))


def compare(name, v, g, h0, fused=False, grad_o=True, grad_state=True, **kwargs):
    chunk, fused_recurrent, naive = OPS[f"chunk_{name}"][0], OPS[f"fused_recurrent_{name}"][0], NAIVE[name]
    num_seqs = v.shape[0] if "cu_seqlens" not in kwargs else len(kwargs["cu_seqlens"]) - 1
    do = torch.randn(v.shape, dtype=torch.float64) if grad_o else None
    dht = torch.randn(num_seqs, v.shape[2], g.shape[-1] - 1, dtype=torch.float64) if grad_state else None
    exact = run(naive, v.double(), g.double(), None if h0 is None else h0.double(), do, dht, **kwargs)
    got = run(fused_recurrent if fused else chunk, v, g, h0, do, dht, **kwargs)
    tolerance = 2e-6 if v.dtype == torch.float32 else 2e-2
    for key, x in exact.items():
        error = (got[key].double() - x).abs().max()
        assert error <= tolerance * max(1.0, x.abs().max()), (key, error.item())
    return got


@each_op
@pytest.mark.parametrize("gate_norm", GATE_NORMS)
def test_gate_norms(name, gate_norm, chunks):
    v, g, h0 = make_inputs(name)
    g[:, 2] = 0.0  # where sum|f| is below its floor
    compare(name, v, g / 4 if gate_norm == "none" else g, h0, gate_norm=gate_norm)


@each_op
@pytest.mark.parametrize("gate_norm", ["tanh", "sinh"])
def test_small_logits(name, gate_norm, chunks):
    """Of which both norms keep the digits."""
    compare(name, *make_inputs(name, T=5, scale=1e-3), gate_norm=gate_norm)


@each_op
@pytest.mark.parametrize("gate_norm", ["sigmoid", "linear", "sinh"])
def test_floored_denominator(name, gate_norm, chunks):
    """With sum|f| below 1e-6 it is a constant: gradients have no term in h."""
    v, g, h0 = make_inputs(name, T=5)
    compare(name, v, g - 20 if gate_norm == "sigmoid" else 1e-8 * g, h0, gate_norm=gate_norm)


@each_op
def test_rows_that_pad_a_tile_are_no_gates(name, chunks):
    """Where a logit of 0 is a gate that is not 0; chunks are longer than the window, so that it turns all round."""
    compare(name, *make_inputs(name, T=8, M=3), gate_norm="sigmoid")


@each_op
@pytest.mark.parametrize("M", [1, 2, 3, 4, 5, 6, 8])
def test_sizes(name, M, chunks):
    compare(name, *make_inputs(name, T=6, M=M))


@each_op
@pytest.mark.parametrize("M", [9, 16, 32])
def test_large_sizes_forward(name, M, chunks):
    chunk, naive = OPS[f"chunk_{name}"]
    v, g, h0 = make_inputs(name, T=5, M=M, width=2)
    for a, b in zip(chunk(v, g, h0, True), naive(v, g, h0, True)):
        torch.testing.assert_close(a, b)


def test_large_blocks_backward(chunks):
    """Above 8 rows a chunk's transition is computed in parts."""
    compare("bdlru", *make_inputs("bdlru", T=5, M=9, width=2))
    compare("hlru", *make_inputs("hlru", T=5, M=16, width=2))


@each_op
def test_run_time_loops(name, chunks, monkeypatch):
    """As above 16 rows: those of a block and turns of a window are not unrolled, and pass 2 reads column by column."""
    for module in (import_module(f"fla_bdlru.ops.{name}.kernels"), runtime):
        monkeypatch.setattr(module, "MAX_UNROLLED", 1)
    compare(name, *make_inputs(name, M=3, width=2))
    compare(name, *make_inputs(name, T=11, M=3, width=2, num_seqs=7), cu_seqlens=torch.tensor(PACKED))
    test_nan_stays_in_its_document(name, "h0", 4, chunks)


@each_op
@pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 7, 8])
def test_lengths_around_a_chunk(name, T, chunks):
    compare(name, *make_inputs(name, B=2, T=T))


@each_op
def test_no_steps(name, poisoned_empty):
    """States are handed on, in both directions."""
    v, g, h0 = make_inputs(name, T=0)
    do, dht = torch.zeros_like(v), torch.randn_like(h0)
    got = run(OPS[f"chunk_{name}"][0], v, g, h0, do, dht)
    assert torch.equal(got["ht"], h0)
    assert torch.equal(got["dh0"], dht)
    assert torch.equal(OPS[f"chunk_{name}"][0](v, g, None, True)[1], torch.zeros_like(h0))


@each_op
@pytest.mark.parametrize("T", [1, 9])
def test_one_pass(name, T):
    """No chunks: short inputs of the chunkwise op, and the fused recurrent one at any length."""
    compare(name, *make_inputs(name, B=2, T=T, M=3))
    compare(name, *make_inputs(name, B=2, T=T, M=3), fused=True)


@each_op
@pytest.mark.parametrize("width", [31, 40, 130])
def test_lanes(name, width, chunks):
    compare(name, *make_inputs(name, T=5, width=width, M=2))


@each_op
def test_without_states_and_with_one_gradient(name, chunks):
    v, g, h0 = make_inputs(name)
    compare(name, v, g, None, grad_state=False)
    compare(name, v, g, h0, grad_o=False)
    compare(name, v, g, None)


@each_op
@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_packed(name, fused, with_state, chunks):
    v, g, h0 = make_inputs(name, T=11, M=3, num_seqs=7)
    compare(name, v, g, h0 if with_state else None, fused, cu_seqlens=torch.tensor(PACKED))


@each_op
def test_packed_without_a_gradient_of_states(name, chunks):
    """Where no document's last step takes one, its first alone ends what is handed back."""
    compare(name, *make_inputs(name, T=11, M=3, num_seqs=7), grad_state=False, cu_seqlens=torch.tensor(PACKED))


@each_op
@pytest.mark.parametrize("where, first", [("v", 4), ("g", 4), ("h0", 4), ("g", 6)])
def test_nan_stays_in_its_document(name, where, first, chunks):
    """The other documents, which share chunks with it, do not change by a bit, be they after it or before."""
    v, g, h0 = make_inputs(name, T=13, num_seqs=4, width=2)
    do, dht = torch.randn(v.shape, dtype=torch.float64), torch.randn(h0.shape, dtype=torch.float64)
    bounds = torch.tensor([0, 3, 6, 10, 13])
    clean = run(OPS[f"chunk_{name}"][0], v, g, h0, do, dht, cu_seqlens=bounds)
    {"v": v[0, first : first + 2], "g": g[0, first : first + 2], "h0": h0[1]}[where].fill_(float("nan"))
    got = run(OPS[f"chunk_{name}"][0], v, g, h0, do, dht, cu_seqlens=bounds)
    assert got["o"][0, first + 1].isnan().all()
    seq = torch.searchsorted(bounds, first, right=True) - 1
    steps = torch.arange(13)
    for key, x in clean.items():
        kept = torch.arange(4) != seq if key in ("ht", "dh0") else (steps < bounds[seq]) | (steps >= bounds[seq + 1])
        a, b = (y if key in ("ht", "dh0") else y[0] for y in (got[key], x))
        assert torch.equal(a[kept], b[kept]), key


@each_op
def test_boundaries_may_have_strides(name, chunks):
    v, g, h0 = make_inputs(name, T=11, M=3, num_seqs=7)
    compare(name, v, g, h0, cu_seqlens=torch.tensor([PACKED, PACKED]).T[:, 0])


@each_op
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(name, dtype, chunks):
    got = compare(name, *make_inputs(name, dtype=dtype))
    assert got["o"].dtype == got["dg"].dtype == dtype
    assert got["ht"].dtype == torch.float32


@each_op
@pytest.mark.parametrize("gate_norm", ["softmax", "tanh", "silu", "square", "sinh"])
def test_large_logits(name, gate_norm, chunks):
    got = compare(name, *make_inputs(name, scale=30.0), gate_norm=gate_norm)
    assert all(torch.isfinite(x).all() for x in got.values())


@each_op
def test_no_decay(name, chunks):
    """Rows of signed gates with norm 1 and no input, over chunk boundaries."""
    v, g, h0 = make_inputs(name, T=24, M=4, width=2)
    g = torch.zeros_like(g)
    index = torch.randint(0, 4, g.shape[:-1]).unsqueeze(-1)
    if name == "bdlru":
        index = torch.stack([torch.randperm(4) for _ in range(48)]).view(1, 24, 2, 4, 1)
    g.scatter_(-1, index, torch.randint(0, 2, index.shape) * 2.0 - 1)
    compare(name, v, g, h0, gate_norm="linear")


@each_op
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_shapes_norms_chunks_and_documents(name, data, monkeypatch):
    """Whatever T, width, M, norm and chunk length, dense or packed, with boundaries anywhere."""
    T, width, M, length = (data.draw(st.integers(1, most)) for most in (12, 40, 6, 13))
    monkeypatch.setattr(runtime, "chunk_length", lambda B, T, n, M, warps: min(length, T))
    kwargs = {"gate_norm": data.draw(st.sampled_from(GATE_NORMS[:-1]))}
    B = 1
    if data.draw(st.booleans()):
        inner = data.draw(st.lists(st.integers(0, T), max_size=5))
        kwargs["cu_seqlens"] = torch.tensor([0, *sorted(inner), T])
    else:
        B = data.draw(st.integers(1, 2))
    num_seqs = len(kwargs["cu_seqlens"]) - 1 if "cu_seqlens" in kwargs else B
    v, g, h0 = make_inputs(name, B=B, T=T, width=width, M=M, num_seqs=num_seqs)
    if kwargs["gate_norm"] in ("linear", "silu", "tanh", "square", "sinh"):
        g = g.abs() + 0.1 * g.sign() + 0.2  # away from denominators near zero, where rounding is the error of any float32
    compare(name, v, g, h0 if data.draw(st.booleans()) else None, fused=data.draw(st.booleans()), **kwargs)


class Computations(TorchDispatchMode):
    """Names of what PyTorch runs, but for views and uninitialised memory."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(("empty", "new_empty")):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("with_state", [True, False])
@each_op
def test_a_decode_step_is_one_launch(name, with_state, monkeypatch):
    """One kernel, and nothing that PyTorch computes."""
    launches = []
    monkeypatch.setattr(runtime.Launch, "run", lambda self, kernel, *args, **options: launches.append(kernel))
    monkeypatch.setattr(runtime.Launch, "carry", lambda self, *args, **options: launches.append("carry"))
    v, g = (
        (torch.randn(2, 1, 4, 3), torch.randn(2, 1, 4, 5, 3))
        if name == "bdlru"
        else (torch.randn(2, 1, 3), torch.randn(2, 1, 5, 3))
    )
    h0 = torch.randn(2, 4, 3) if with_state else None
    kernels = import_module(f"fla_bdlru.ops.{name}.kernels").KERNELS
    for chunk in (True, False):
        launches.clear()
        with Computations() as seen:
            o, ht, *_ = runtime.triton_fwd(kernels, v, g, h0, None, "softmax", chunk)
        assert launches == [kernels.fwd_o]
        assert seen.names == []
        assert (o.shape, ht.shape) == (v.shape, (2, 4, 3))


@each_op
def test_tuned_kernels(name, chunks, monkeypatch):
    """Behind the autotuner, with times made up: the narrower tile is chosen, once for all T, and is as right."""
    timed = []

    def bench(self, *args, config, **meta):
        timed.append((self.base_fn.__name__, config.kwargs["VEC"]))
        return [float(config.kwargs["VEC"])] * 3

    monkeypatch.setattr(runtime, "tunes", lambda: True)
    monkeypatch.setattr(runtime, "TUNED_ELEMENTS", 0)
    monkeypatch.setattr(runtime.Autotuner, "_bench", bench)
    runtime.autotuned.cache_clear()
    for T in (6, 9):
        compare(name, *make_inputs(name, T=T, width=132, M=2))
        assert len(timed) == 2 * 4
    assert {VEC for _, VEC in timed} == {2, 4}
    runtime.autotuned.cache_clear()


@each_op
def test_outputs_are_written_whole_and_runs_are_bit_equal(name, chunks, poisoned_empty):
    v, g, h0 = make_inputs(name, T=7, width=33)
    do, dht = torch.randn(v.shape).double(), torch.randn(h0.shape).double()
    first, second = (run(OPS[f"chunk_{name}"][0], v, g, h0, do, dht) for _ in range(2))
    assert all(torch.isfinite(x).all() for x in first.values())
    assert all(torch.equal(first[key], second[key]) for key in first)


@each_op
def test_fake_kernels_know_the_shapes(name, chunks):
    v, g, h0 = make_inputs(name)
    if name == "bdlru":
        v, g = v.transpose(2, 3).contiguous(), g.permute(0, 1, 3, 4, 2).contiguous()
    else:
        g = g.transpose(2, 3).contiguous()
    h0 = h0.transpose(1, 2).contiguous()
    op = getattr(torch.ops.fla_bdlru, name)
    torch.library.opcheck(op, (v.requires_grad_(), g.requires_grad_(), h0, None, "softmax", True))
    torch.library.opcheck(op, (v, g, None, None, "softmax", False))


SLICES = {
    "one": slices.Case([0, 11], [2, 7, 2], M=2),
    "packed": slices.Case([0, 3, 9, 10], [4, 4, 2], M=2),
    "parts": slices.Case([0, 2, 16, 18], 3, M=2, layout="zigzag"),  # two on each rank, whose chunks are those of neither
}
SLICED = [(op, key) for op in ("chunk_bdlru", "chunk_hlru") for key in SLICES]
SLICED += [("fused_recurrent_bdlru", key) for key in ("one", "packed")]


def run_slices_in_chunks(rank, cases):
    os.environ["FLA_BDLRU_BACKEND"] = "triton"
    runtime.chunk_length = lambda B, T, n, M, warps: min(3, T)
    return {key: slices.run_slice(rank, case) for key, case in cases.items()}


@cache
def launch():
    """One launch for all cases."""
    return run_ranks(3, run_slices_in_chunks, {(op, key): SLICES[key]._replace(op=op) for op, key in SLICED})


@pytest.mark.parametrize("op, key", SLICED)
def test_context_parallelism(op, key):
    """A slice's transition from those of its chunks, and without chunks."""
    slices.compare(SLICES[key]._replace(op=op), [rank[op, key] for rank in launch()])
