"""The Triton kernels on a GPU, against the naive recurrences in float64."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from functools import partial

import pytest
import references
import torch
from references import run

import fla_bdlru.ops as ops
from fla_bdlru.ops import GATE_NORMS, normalize_gates

NAMES = ("bdlru", "hlru")
SEVERAL_CHUNKS = 260  # steps
SIZES = (1, 2, 3, 4, 5, 6, 8, 16)
each_op = pytest.mark.parametrize("name", NAMES)
make_inputs = partial(references.make_inputs, T=130, width=70, M=2)


def gradients_of(v, g, num_seqs):
    do = torch.randn(v.shape, device=v.device, dtype=torch.float64)
    return do, torch.randn(num_seqs, v.shape[2], g.shape[-1] - 1, device=v.device, dtype=torch.float64)


def errors(got, exact):
    """Per result, the largest error over the largest value."""
    return {key: ((got[key].double() - x).abs().max() / x.abs().max().clamp_min(1e-30)).item() for key, x in exact.items()}


def plain(name):
    """The recurrence in PyTorch with everything in the dtype of the inputs: what a user would write."""

    def recurrence(v, g, h0, output_final_state, gate_norm):
        p = normalize_gates(g, gate_norm)
        h, outputs = h0.to(v.dtype), []
        for t in range(v.shape[1]):
            if name == "bdlru":
                h = (p[:, t, :, :, :-1] @ h.unsqueeze(-1)).squeeze(-1) + p[:, t, :, :, -1] * v[:, t]
                outputs.append(h)
            else:
                new = (p[:, t, :, :-1] * h).sum(-1) + p[:, t, :, -1] * v[:, t]
                h = torch.cat([new.unsqueeze(-1), h[..., :-1]], -1)
                outputs.append(new)
        return torch.stack(outputs, 1), h

    return recurrence


@each_op
@pytest.mark.parametrize("M", SIZES)
@pytest.mark.parametrize("gate_norm", GATE_NORMS)
@pytest.mark.parametrize("kind", ["chunk", "fused_recurrent"])
def test_float32(device, name, M, gate_norm, kind):
    if M == 16 and gate_norm not in ("softmax", "silu"):
        pytest.skip("the other norms share all of their code with these; compiling M = 16 takes 20 s a norm")
    v, g, h0 = make_inputs(name, device=device, M=M, T=SEVERAL_CHUNKS if kind == "chunk" else 33)
    g = g / (M + 1) if gate_norm == "none" else g
    do, dht = gradients_of(v, g, 2)
    exact = run(getattr(ops, f"naive_recurrent_{name}"), v.double(), g.double(), h0.double(), do, dht, gate_norm=gate_norm)
    got = run(getattr(ops, f"{kind}_{name}"), v, g, h0, do, dht, gate_norm=gate_norm)
    found = errors(got, exact)
    # linear gates near a zero denominator amplify rounding: there the errors of PyTorch itself are the measure
    theirs = errors(run(plain(name), v, g, h0, do, dht, gate_norm=gate_norm), exact)
    assert all(found[key] <= max(2e-6, 2 * theirs[key]) for key in exact), (found, theirs)


@each_op
@pytest.mark.parametrize("M", SIZES)
@pytest.mark.parametrize("gate_norm", ["softmax", "tanh"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(device, name, M, gate_norm, dtype):
    """At most twice the error of PyTorch computing in the same type."""
    v, g, h0 = make_inputs(name, device=device, M=M, T=SEVERAL_CHUNKS)
    v, g = v.to(dtype), g.to(dtype)
    do, dht = gradients_of(v, g, 2)
    exact = run(getattr(ops, f"naive_recurrent_{name}"), v.double(), g.double(), h0.double(), do, dht, gate_norm=gate_norm)
    theirs = errors(run(plain(name), v, g, h0, do, dht, gate_norm=gate_norm), exact)
    found = errors(run(getattr(ops, f"chunk_{name}"), v, g, h0, do, dht, gate_norm=gate_norm), exact)
    assert all(found[key] <= 2 * theirs[key] for key in exact), (found, theirs)


@each_op
@pytest.mark.parametrize("T", [1, 2, 3, 4, 63, 64, 65, 127, 129, 1000])
@pytest.mark.parametrize("width", [1, 31, 33, 128, 300])
def test_awkward_shapes(device, name, T, width):
    v, g, h0 = make_inputs(name, device=device, B=3, T=T, width=width, M=4)
    do, dht = gradients_of(v, g, 3)
    exact = run(getattr(ops, f"naive_recurrent_{name}"), v.double(), g.double(), h0.double(), do, dht)
    for states in (h0, None):
        if states is None:
            exact = run(getattr(ops, f"naive_recurrent_{name}"), v.double(), g.double(), None, do, None)
        found = errors(run(getattr(ops, f"chunk_{name}"), v, g, states, do, None if states is None else dht), exact)
        assert max(found.values()) < 2e-6, found


@each_op
@pytest.mark.parametrize("M", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["chunk", "fused_recurrent"])
def test_packed(device, name, M, kind):
    """Documents of no steps, of one, and over chunk boundaries."""
    cu_seqlens = torch.tensor([0, 0, 1, 65, 65, 200, 201, 1023, 1500, 1500], device=device)
    v, g, h0 = make_inputs(name, device=device, B=1, T=1500, width=40, M=M, num_seqs=9)
    do, dht = gradients_of(v, g, 9)
    naive = getattr(ops, f"naive_recurrent_{name}")
    exact = run(naive, v.double(), g.double(), h0.double(), do, dht, cu_seqlens=cu_seqlens)
    found = errors(run(getattr(ops, f"{kind}_{name}"), v, g, h0, do, dht, cu_seqlens=cu_seqlens), exact)
    assert max(found.values()) < 2e-6, found


@each_op
def test_a_hundred_thousand_documents(device, name):
    """As many one-step and two-step documents: equal to their batch."""
    num = 100_000
    v, g, h0 = make_inputs(name, device=device, B=num // 2, T=2, width=3, M=2)
    packed = {"v": v.flatten(0, 1).unsqueeze(0), "g": g.flatten(0, 1).unsqueeze(0)}
    op = getattr(ops, f"chunk_{name}")
    o, ht = op(v, g, h0, True)
    cu_seqlens = torch.arange(0, num + 1, 2, device=device)
    o_packed, ht_packed = op(**packed, initial_state=h0, output_final_state=True, cu_seqlens=cu_seqlens)
    torch.testing.assert_close(o_packed.view_as(o), o)
    torch.testing.assert_close(ht_packed, ht)
    ones = torch.arange(num + 1, device=device)
    states = torch.randn(num, 3, 2, device=device)
    o, ht = op(**packed, initial_state=states, output_final_state=True, cu_seqlens=ones)
    batch = op(packed["v"].transpose(0, 1), packed["g"].transpose(0, 1), states, True)
    torch.testing.assert_close(o.transpose(0, 1), batch[0])
    torch.testing.assert_close(ht, batch[1])


@each_op
@pytest.mark.parametrize("T", [65_537, 2**20])
def test_long_sequences(device, name, T):
    """Against the naive recurrence in float64, chunk by chunk where it would take minutes."""
    v, g, h0 = make_inputs(name, device=device, B=1, T=T, width=3, M=2)
    do, dht = gradients_of(v, g, 1)
    naive = getattr(ops, f"naive_chunk_{name}")
    exact = run(naive, v.double(), g.double(), h0.double(), do, dht, chunk_size=1024)
    found = errors(run(getattr(ops, f"chunk_{name}"), v, g, h0, do, dht), exact)
    assert max(found.values()) < 5e-6, found


@each_op
@pytest.mark.parametrize("M", [1, 2, 4, 8])
def test_no_decay(device, name, M):
    """Permutations with signs: nothing is forgotten, and errors add up."""
    T, width = 2048, 8
    v, _, h0 = make_inputs(name, device=device, B=1, T=T, width=width, M=M)
    if name == "bdlru":
        index = torch.rand(1, T, width, M, device=device).argsort(-1).unsqueeze(-1)
    else:
        # an order of lags that loses nothing: always the oldest value comes back
        index = torch.full((1, T, width, 1), M - 1, device=device)
    g = torch.zeros(*v.shape, M + 1, device=device)
    g.scatter_(-1, index, torch.randint(0, 2, index.shape, device=device) * 2.0 - 1)
    do, dht = gradients_of(v, g, 1)
    naive = getattr(ops, f"naive_recurrent_{name}")
    exact = run(naive, v.double(), g.double(), h0.double(), do, dht, gate_norm="linear")
    found = errors(run(getattr(ops, f"chunk_{name}"), v, g, h0, do, dht, gate_norm="linear"), exact)
    assert max(found.values()) < 1e-5, found


@each_op
def test_large_logits(device, name):
    for gate_norm in ("softmax", "sigmoid", "tanh", "silu"):
        v, g, h0 = make_inputs(name, device=device, M=4, scale=30.0)
        do, dht = gradients_of(v, g, 2)
        naive = getattr(ops, f"naive_recurrent_{name}")
        exact = run(naive, v.double(), g.double(), h0.double(), do, dht, gate_norm=gate_norm)
        found = errors(run(getattr(ops, f"chunk_{name}"), v, g, h0, do, dht, gate_norm=gate_norm), exact)
        assert max(found.values()) < 5e-5, (gate_norm, found)


@each_op
@pytest.mark.parametrize("gate_norm", GATE_NORMS)
def test_a_nan_is_not_hidden(device, name, gate_norm):
    """One logit that is not a number: the outputs after it say so."""
    v, g, h0 = make_inputs(name, device=device, M=4)
    g[0, 5, 3] = float("nan")
    o, _ = getattr(ops, f"chunk_{name}")(v, g, h0, gate_norm=gate_norm)
    assert o[0, 5, 3].isnan().all()
    assert not o[0, :5].isnan().any()
    assert not o[1].isnan().any()


@each_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slices_of_buffers(device, name, dtype):
    """Inputs, states and gradients whose memory begins between multiples of 16 bytes: the bits of those that do not."""

    def shifted(x):
        buffer = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
        return buffer[1:].view(x.shape).copy_(x)

    T, width, M = SEVERAL_CHUNKS, 128, 2
    rows = (M,) if name == "bdlru" else ()
    shapes = (2, T, *rows, width), (2, T, *rows, M + 1, width), (2, M, width)
    v, g, h0 = (torch.randn(shape, dtype=dtype, device=device) for shape in shapes)
    do = torch.randn_like(v)
    both = []
    for lay in (torch.clone, shifted):
        *inputs, d = map(lay, (v, g, h0, do))
        assert all((x.data_ptr() % 16 == 0) == (lay is torch.clone) for x in (*inputs, d))
        x, y, h = (x.requires_grad_() for x in inputs)
        if name == "bdlru":
            o, ht = ops.chunk_bdlru(x.mT, y.permute(0, 1, 4, 2, 3), h.mT, True)
            d = d.mT
        else:
            o, ht = ops.chunk_hlru(x, y.mT, h.mT, True)
        both.append((o, ht, *torch.autograd.grad(o, inputs, d)))
    assert all(map(torch.equal, *both))


@each_op
def test_runs_are_bit_equal(device, name):
    v, g, h0 = make_inputs(name, device=device, B=4, T=2000, width=300, M=4)
    do, dht = gradients_of(v, g, 4)
    first, second = (run(getattr(ops, f"chunk_{name}"), v, g, h0, do, dht) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


@each_op
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(device, name, dynamic):
    op = getattr(ops, f"chunk_{name}")

    def function(v, g, h0):
        o, ht = op(v * 2, g, h0, True)
        return o.sin(), ht

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic or None)
    for T in (300, 301, 2000) if dynamic else (300,):
        v, g, h0 = make_inputs(name, device=device, T=T, M=4)
        do, dht = gradients_of(v, g, 2)
        eager = run(lambda v, g, h0, _: function(v, g, h0), v, g, h0, do, dht)
        found = errors(run(lambda v, g, h0, _: compiled(v, g, h0), v, g, h0, do, dht), eager)
        assert max(found.values()) < 1e-6, found


@each_op
@pytest.mark.parametrize("T", [1, 300])
def test_cuda_graph(cuda, name, T):
    """Captured once, replayed on other inputs; forward and backward."""
    op = getattr(ops, f"chunk_{name}")
    v, g, h0 = make_inputs(name, device=cuda, T=T, M=4)
    inputs = tuple(x.requires_grad_() for x in (v, g, h0))

    def step(v, g, h0):
        o, ht = op(v, g, h0, True)
        return o, ht

    graphed = torch.cuda.make_graphed_callables(step, tuple(x.detach().clone().requires_grad_() for x in inputs))
    for _ in range(2):
        fresh = tuple(torch.randn_like(x).requires_grad_() for x in inputs)
        same = tuple(x.detach().clone().requires_grad_() for x in fresh)
        expected, got = step(*fresh), graphed(*same)
        grads = [torch.autograd.grad(sum(x.sum() for x in out), xs) for out, xs in ((expected, fresh), (got, same))]
        for a, b in zip((*expected, *grads[0]), (*got, *grads[1])):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@each_op
def test_offsets_beyond_int32(cuda, name):
    """More than 2^31 gate logits: the last lanes and steps equal the same lanes run on their own."""
    free = torch.cuda.mem_get_info()[0]
    if free < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    M, width, T = 4, 256, 480_000 if name == "bdlru" else 1_800_000
    rows = M if name == "bdlru" else 1
    op = getattr(ops, f"chunk_{name}")
    v = torch.randn(1, T, rows, width, device=cuda, dtype=torch.bfloat16)
    g = torch.randn(1, T, rows, M + 1, width, device=cuda, dtype=torch.bfloat16)
    if name == "bdlru":
        public = lambda v, g: (v.transpose(2, 3), g.permute(0, 1, 4, 2, 3))  # noqa: E731
    else:
        public = lambda v, g: (v[:, :, 0], g[:, :, 0].transpose(2, 3))  # noqa: E731
    assert g.numel() > 2**31
    whole = [x.requires_grad_() for x in (v, g)]
    o, _ = op(*public(*whole))
    part = [x[..., -32:].detach().clone().requires_grad_() for x in (v, g)]
    o_part, _ = op(*public(*part))
    torch.testing.assert_close(o[:, :, -32:], o_part)
    grads = torch.autograd.grad(o[:, -1000:].float().sum(), whole)
    grads_part = torch.autograd.grad(o_part[:, -1000:].float().sum(), part)
    for a, b in zip(grads, grads_part):  # chunks begin elsewhere, and there states are read that were not rounded
        a, b = a[:, -2000:, ..., -32:].float(), b[:, -2000:].float()
        assert (a - b).abs().max() < 1e-2 * b.abs().max()


def test_another_device_than_the_current_one(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    v, g, h0 = make_inputs("bdlru", device="cuda:1")
    assert torch.cuda.current_device() == 0
    o, _ = ops.chunk_bdlru(v, g, h0)
    torch.testing.assert_close(o, ops.naive_recurrent_bdlru(v, g, h0)[0], rtol=1e-5, atol=1e-5)


@each_op
def test_tuned_and_fixed_configurations_agree(cuda, name, monkeypatch):
    v, g, h0 = make_inputs(name, device=cuda, B=8, T=2048, width=256, M=2)
    do, dht = gradients_of(v, g, 8)
    tuned = run(getattr(ops, f"chunk_{name}"), v, g, h0, do, dht)
    monkeypatch.setenv("FLA_BDLRU_AUTOTUNE", "0")
    fixed = run(getattr(ops, f"chunk_{name}"), v, g, h0, do, dht)
    assert max(errors(fixed, tuned).values()) < 1e-6


def in_new_process(code, *command, **environment):
    return subprocess.run(
        [*command, sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True, text=True, env={**os.environ, **environment}, timeout=900,
    )  # fmt: skip


@each_op
@pytest.mark.parametrize("M", [1, 2, 3, 4, 5, 6, 8])
def test_first_call_is_quick(cuda, name, M, tmp_path):
    """Under 10 s from an empty cache, forward and backward."""
    code = f"""
        import time, torch, fla_bdlru.ops as ops
        shape = (8, 2048, 128, {M}) if {name!r} == "bdlru" else (8, 2048, 128)
        v = torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        g = torch.randn(*shape, {M + 1}, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        torch.cuda.synchronize()
        start = time.perf_counter()
        ops.chunk_{name}(v, g)[0].sum().backward()
        torch.cuda.synchronize()
        print("seconds", time.perf_counter() - start)
    """
    done = in_new_process(code, TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout.split("seconds")[1]) < 10


def find_compute_sanitizer():
    """On the path, in the CUDA toolkit, or from the wheel nvidia-cuda-sanitizer-api."""
    found = shutil.which("compute-sanitizer")
    places = ["/usr/local/cuda/bin", *(f"{root}/nvidia/cu{major}/bin" for root in sys.path for major in (12, 13))]
    return found or next((p for place in places if os.path.exists(p := f"{place}/compute-sanitizer")), None)


@each_op
@pytest.mark.parametrize("tool", ["memcheck", "initcheck"])
def test_compute_sanitizer(cuda, name, tool):
    """Every kernel on a small shape: chunks and one pass, dense and packed, with lanes to spare.

    The kernels have no shared memory, which is all that racecheck looks at.
    """
    program = find_compute_sanitizer()
    if program is None:
        pytest.skip("compute-sanitizer is not installed (pip install nvidia-cuda-sanitizer-api)")
    code = f"""
        import torch, fla_bdlru.ops as ops
        cu_seqlens = torch.tensor([0, 0, 5, 130, 200], device="cuda")
        for op in (ops.chunk_{name}, ops.fused_recurrent_{name}):
            for M in (3, 4):
                for packed in (None, cu_seqlens):
                    shape = (1, 200, 37, M) if {name!r} == "bdlru" else (1, 200 if packed is not None else 600, 37)
                    v, g = torch.randn(shape, device="cuda"), torch.randn(*shape, M + 1, device="cuda")
                    h0 = torch.randn(1 if packed is None else 4, 37, M, device="cuda")
                    inputs = [x.requires_grad_() for x in (v, g, h0)]
                    o, ht = op(v, g, h0, True, cu_seqlens=packed)
                    torch.autograd.grad(o.sum() + ht.sum(), inputs)
        torch.cuda.synchronize()
        print("done")
    """
    options = ["--error-exitcode", "9", "--kernel-name", "kernel_substring=lru_"]
    if tool == "initcheck":  # has to see PyTorch's kernels write what ours read; what it says of PyTorch's own is left out
        options = ["--print-limit", "10000"]
    done = in_new_process(
        code, program, "--tool", tool, "--report-api-errors", "no", *options, PYTORCH_NO_CUDA_MEMORY_CACHING="1"
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "done" in done.stdout
    reports = re.findall(r"Uninitialized __global__ memory read.*\n.*", done.stdout)
    assert not [report for report in reports if "lru_" in report]
