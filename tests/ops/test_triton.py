"""The Triton kernels without a GPU: run in the interpreter, and compiled for sm_80 and sm_90, where the result is read."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch
from fresh import run_fresh

from fla_bdlru import ops
from fla_bdlru.ops import chunk_bdlru, chunk_hlru
from fla_bdlru.ops.bdlru.kernels import KERNELS as bdlru_kernels
from fla_bdlru.ops.gpu import runtime as triton_runtime
from fla_bdlru.ops.gpu.runtime import (
    autotuned,
    chunk_length,
    columns,
    lanes_per_thread,
    register_limit,
    triton_bwd,
    triton_fwd,
    tunes,
)
from fla_bdlru.ops.hlru.kernels import KERNELS as hlru_kernels

HERE = Path(__file__).parent


def test_kernels_use_plain_offsets():
    """`next_power_of_2` belongs to the host, and block pointers are on their way out of Triton."""
    folder = Path(triton_runtime.__file__).parents[1]
    paths = [*folder.glob("gpu/[gl]a*.py"), *folder.glob("*/kernels.py")]
    assert len(paths) == 4
    for path in paths:
        assert not re.search(r"next_power_of_2|make_block_ptr", path.read_text()), path


@pytest.mark.timeout(900)
def test_kernels_in_the_interpreter():
    """TRITON_INTERPRET has to be set before Triton is imported, hence a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_cases.py")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"}, timeout=850)
    assert done.returncode == 0, done.stdout[-6000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 70


def test_chunk_length():
    """One pass where lanes fill the device; else chunks, as long as the device stays full, and never too short for P."""
    assert chunk_length(B=64, T=2048, n=8192, M=2, warps=28) == 2048
    assert chunk_length(B=8, T=2048, n=512, M=4, warps=16) == 63
    assert chunk_length(B=1, T=131_072, n=512, M=4, warps=16) == 497
    assert chunk_length(B=1, T=100, n=64, M=16, warps=8) == 32
    # two chunks gain no more than they cost
    assert [chunk_length(B=1, T=T, n=64, M=16, warps=8) for T in (60, 64, 65)] == [60, 64, 32]
    for T in (1, 100, 5000, 2**20):
        C = chunk_length(1, T, 512, 2, 28)
        assert C == T or (C >= 32 and 4 * -(-T // C) <= 132 * 28)
    # 1,664 programs would be 80 more than run at once, and all the time of a second round
    assert chunk_length(B=32, T=512, n=128, M=8, warps=12) == 43
    # pass 2 is serial, and slow where M is large
    assert chunk_length(B=1, T=32_768, n=64, M=16, warps=8) == 128


@pytest.mark.parametrize("op, M", [(chunk_bdlru, 2), (chunk_hlru, 9)])
def test_lengths_are_not_compiled_for_one_by_one(op, M, monkeypatch):
    """The number of chunks, which is the size of what is saved, follows from B and T: as symbols, or each T had a graph."""

    def forward(kernels, v, g, h0, cu_seqlens, gate_norm, chunk):
        B, n, NC = v.shape[0], g.shape[-1], triton_runtime.num_chunks(kernels, v, g, chunk)
        cut = (B, NC, M, n), (B, NC, M, M, n)
        return torch.zeros_like(v), v.new_zeros(B, M, n), *(v.new_zeros(size if NC > 1 else 0) for size in cut)

    def backward(kernels, v, g, o, h_in, P, *rest):
        NC = triton_runtime.num_chunks(kernels, v, g, True)
        assert h_in.numel() == 0 if NC == 1 else P.shape[1] == h_in.shape[1] == NC
        return torch.zeros_like(v), torch.zeros_like(g), v.new_zeros(v.shape[0], M, g.shape[-1])

    monkeypatch.setenv("FLA_BDLRU_BACKEND", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton_runtime, "triton_fwd", forward)
    monkeypatch.setattr(triton_runtime, "triton_bwd", backward)
    graphs = []
    torch.compiler.reset()
    compiled = torch.compile(
        lambda v, g: op(v, g)[0], fullgraph=True, dynamic=True, backend=lambda graph, inputs: graphs.append(0) or graph
    )
    for B, T in [(5, 90), (4, 361), (4, 1000), (5, 5001), (4, 20_000), (64, 1000), (5, 30), (4, 40)]:
        v = torch.zeros(B, T, *([3, M] if op is chunk_bdlru else [3]), requires_grad=True)
        g = torch.zeros(*v.shape, M + 1, requires_grad=True)
        compiled(v, g).sum().backward()
        assert g.grad.shape == g.shape
    torch.compiler.reset()
    assert len(graphs) <= 2, len(graphs)  # in chunks, and in one pass


@pytest.mark.parametrize("name, rows", [("bdlru", (2,)), ("hlru", ())])
def test_fused_recurrent_is_one_pass(name, rows, monkeypatch):
    """However long the input is; forward and backward are told the same."""
    told = []

    def forward(kernels, v, g, h0, cu_seqlens, gate_norm, chunk):
        told.append(chunk)
        return torch.zeros_like(v), v.new_zeros(1, 2, v.shape[-1]), v.new_zeros(0), v.new_zeros(0)

    def backward(kernels, v, g, o, h_in, P, h0, do, dht, cu_seqlens, gate_norm, chunk):
        told.append(chunk)
        return torch.zeros_like(v), torch.zeros_like(g), v.new_zeros(1, 2, v.shape[-1])

    monkeypatch.setenv("FLA_BDLRU_BACKEND", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton_runtime, "triton_fwd", forward)
    monkeypatch.setattr(triton_runtime, "triton_bwd", backward)
    for kind in ("chunk", "fused_recurrent"):
        v, g = torch.zeros(1, 5000, 3, *rows, requires_grad=True), torch.zeros(1, 5000, 3, *rows, 3)
        getattr(ops, f"{kind}_{name}")(v, g)[0].sum().backward()
    assert told == [True, True, False, False]


def test_tiles():
    assert [lanes_per_thread(M, 1024) for M in (1, 2, 3, 4, 5, 8, 16)] == [4, 4, 2, 2, 1, 1, 1]
    assert [lanes_per_thread(1, n) for n in (1, 32, 33, 64, 65, 66, 68, 128)] == [1, 1, 1, 2, 1, 2, 4, 4]
    assert [lanes_per_thread(1, n, warp=64) for n in (64, 66, 128, 130, 132, 256)] == [1, 2, 2, 2, 4, 4]
    assert all(columns(M) <= M + 1 for M in range(1, 33))


def test_what_the_tuner_may_choose(monkeypatch):
    """Two widths at most, the same key at every T, and switches that turn it off."""
    bf16, fp32 = torch.bfloat16, torch.float32
    for kernels in (bdlru_kernels, hlru_kernels):
        for kernel in (kernels.fwd_h, kernels.fwd_o, kernels.bwd_dh, kernels.bwd_dvg):
            tuner = autotuned(kernel)
            assert {kernels.lane_axis, "M", "NORM", "VARLEN"} <= set(tuner.keys)
            assert not {"T", "C", "NC", "VEC"} & set(tuner.keys)
            for dtype, M, widths in (
                (bf16, 1, [2, 4]),
                (bf16, 4, [2]),
                (bf16, 5, [1]),
                (bf16, 8, [1]),
                (fp32, 4, [1, 2]),
                (fp32, 8, [1]),
            ):
                tuner.nargs = {"g": torch.empty(1, dtype=dtype)}
                found = tuner.prune_configs({"M": M, kernels.lane_axis: 1024})
                assert [config.kwargs["VEC"] for config in found] == widths
    assert tunes()
    monkeypatch.setenv("FLA_BDLRU_AUTOTUNE", "0")
    assert not tunes()
    monkeypatch.setenv("FLA_BDLRU_AUTOTUNE", "yes")
    with pytest.raises(ValueError, match="FLA_BDLRU_AUTOTUNE='yes' is not known; expected 0 or 1"):
        tunes()
    monkeypatch.setenv("FLA_BDLRU_AUTOTUNE", "")
    torch.use_deterministic_algorithms(True)
    try:
        assert not tunes()
    finally:
        torch.use_deterministic_algorithms(False)


class Recorder:
    """Stands for a kernel and keeps the grids it was launched on."""

    def __init__(self):
        self.grids = []

    def __getitem__(self, grid):
        self.grids.append(grid({"VEC": 1, "WARP": 32}) if callable(grid) else grid)
        return lambda *args, **options: None


@pytest.mark.parametrize("kernels", [bdlru_kernels, hlru_kernels])
def test_grids_do_not_grow_with_documents(kernels, monkeypatch):
    """100,000 documents: the grids of one, all of it on axis x, which alone holds more than 65,535."""
    carry = Recorder()
    monkeypatch.setattr(triton_runtime, "chunk_lru_kernel_carry", carry)
    T, M, n = 200_000, 2, 3
    shape = (1, T, M, n) if kernels is bdlru_kernels else (1, T, n)
    v = torch.zeros(shape)
    g = torch.zeros(1, T, M, M + 1, n) if kernels is bdlru_kernels else torch.zeros(1, T, M + 1, n)
    found = []
    for cu_seqlens in (torch.tensor([0, T]), torch.arange(0, T + 1, 2)):
        names = ("fwd_h", "fwd_o", "bwd_dh", "bwd_dvg")
        recorded = replace(kernels, **{name: Recorder() for name in names})
        o, _, h_in, P = triton_fwd(recorded, v, g, None, cu_seqlens, "softmax", True)
        triton_bwd(recorded, v, g, o, h_in, P, None, v, None, cu_seqlens, "softmax", True)
        found.append([getattr(recorded, name).grids for name in names])
    assert found[0] == found[1]
    assert all(len(grid) == 1 for grids in found[0] for grid in grids)
    assert len(carry.grids) == 4


# ------------------------------------------------------------------------------------------------------- launched


def kernel_name(op, kernel):
    """What a profile shows, by FLA's pattern."""
    return "chunk_lru_kernel_carry" if kernel == "carry" else f"chunk_{op}_{kernel.replace('_', '_kernel_')}"


@pytest.mark.timeout(900)
def test_kernels_are_launched():
    """Through Triton's own launcher, on a driver that runs nothing; in a process of its own."""
    for case in _run_script("launch_kernels.py"):
        op, chunked = case["op"], case["T"] == 3000
        passes = {"fwd": ["fwd_o"], "bwd": ["bwd_dvg"]}
        if chunked:
            passes = {name: [f"{name}_{first}", "carry", *last] for first, (name, last) in zip(("h", "dh"), passes.items())}
        if case["T"] == 0:
            passes = {"fwd": [], "bwd": []}
        for name, side in (("fwd", "forward"), ("bwd", "backward")):
            expected = [kernel_name(op, kernel) for kernel in passes[name]]
            assert [launch["kernel"] for launch in case[side]] == expected, case
            assert all(launch["grid"][1:] == [1, 1] and launch["warps"] == 1 for launch in case[side]), case
            # what chunks count on is asked of the compiler, for pass 1 of larger blocks
            limits = {launch["kernel"]: launch["limit"] for launch in case[side]}
            first, limit = kernel_name(op, "fwd_h"), {3: 128, 4: 128}.get(case["M"]) if op == "bdlru" else None
            assert limits == {kernel: limit if kernel == first else None for kernel in limits}, case
        tried = Counter(launch["kernel"] for launch in case["tried"])
        of_choice = {kernel_name(op, kernel) for found in passes.values() for kernel in found if kernel != "carry"}
        assert tried == (dict.fromkeys(of_choice, 2) if case.get("tuned") else {}), case  # two widths each


# ------------------------------------------------------------------------------------------------------- compiled

KERNELS = ("fwd_h", "fwd_o", "bwd_dh", "bwd_dvg", "carry")


def jobs(op):
    """Every M on both architectures in bf16, both widths that the tuner may choose; every norm, type and what else varies."""
    for M in (1, 2, 3, 4, 5, 6, 8, 16):
        yield {"op": op, "M": M, "loops": M == 4}  # to read machine code takes as long as to compile
        yield {"op": op, "M": M, "arch": 80}
        if M <= 2:
            yield {"op": op, "M": M, "VEC": 2}
    for norm in ("sigmoid", "relu", "tanh", "silu", "linear", "square", "sinh", "none"):
        yield {"op": op, "M": 4, "gate_norm": norm}
    yield {"op": op, "M": 8, "gate_norm": "silu"}  # BD-LRU: 173 registers, if none are asked for
    yield {"op": op, "M": 4, "packed": True}
    yield {"op": op, "M": 4, "dtype": "fp32", "n": 1000}
    yield {"op": op, "M": 4, "dtype": "fp32", "VEC": 1}
    yield {"op": op, "M": 4, "dtype": "fp16", "arch": 80, "packed": True, "gate_norm": "tanh"}
    yield {"op": op, "M": 17}
    for n in (1, 31, 33, 65, 100, 130):  # shuffles, where a lane owns VEC blocks and VEC does not divide n
        yield {"op": op, "M": 2, "n": n}
    for arch in (89, 100, 120, "gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201"):
        yield {"op": op, "M": 4, "arch": arch}


@pytest.fixture(scope="module")
def compiled():
    """A row per kernel and configuration, from two processes that compile; what both ops share meets in one of them."""
    work = [[job for op in ("bdlru", "hlru") for job in list(jobs(op))[part::2]] for part in range(2)]
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda part: _run_script("compile_kernels.py", json.dumps(part)), work))
    return [row for part in parts for row in part]


def _run_script(name, *arguments):
    """The JSON objects that a script beside this one prints."""
    printed = run_fresh(HERE / name, *arguments, timeout=850)
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


@pytest.mark.timeout(900)
def test_compiled_kernels_stay_in_registers_and_in_their_lane(compiled):
    counts = Counter(row["kernel"] for row in compiled)
    assert set(counts) == set(KERNELS)
    for row in compiled:
        assert row["local"] == row["stack"] == 0, row
        assert row.get("instructions", 1) > 0, row
        assert row["shuffles"] == row["barriers"] == row["shared"] == row["atomics"] == 0, row
        assert row["registers"] <= 255, row
        if row["M"] <= 4 and row["dtype"] != "fp32" and row["VEC"] > 1:
            assert row["narrowest_load"] >= 4, row
        # as many programs of pass 1 at once as chunk_length counts on
        if row["kernel"] in ("fwd_h", "bwd_dh") and "gfx" not in row["variant"]:
            warps = {"bdlru": bdlru_kernels, "hlru": hlru_kernels}[row["op"]].warps(row["M"])
            assert row["registers"] * 32 * warps <= 65536, row


@pytest.mark.timeout(300)
def test_cross_lane_instructions_show():
    """On purpose: tiles of 32 lanes for AMD's warps of 64, and two blocks a lane where their number is odd."""
    wrong = [{"op": "bdlru", "M": 4, "arch": "gfx942", "WARP": 32}, {"op": "bdlru", "M": 2, "n": 33, "VEC": 2}]
    rows = [row for row in _run_script("compile_kernels.py", json.dumps(wrong)) if row["kernel"] == "fwd_o"]
    assert [row["shuffles"] > 4 for row in rows] == [True, True], rows


def test_programs_that_chunks_count_on_fit_into_registers():
    """By any compiler: as many registers as the kernels' `warps` leave, in steps of eight, or no word."""
    assert register_limit(12, "cuda") == {"maxnreg": 168}
    assert register_limit(16, "cuda") == {"maxnreg": 128}
    assert [register_limit(*case) for case in ((8, "cuda"), (20, "cuda"), (12, "hip"), (12, ""))] == [{}] * 4


def test_relu_gates_keep_a_nan(compiled):
    """The device's maximum of a number and NaN is the number; the interpreter's is NaN."""
    relu = [row for row in compiled if "relu" in row["variant"]]
    assert {row["kernel"] for row in relu} == set(KERNELS)
    assert all(row["maxima"] == 0 for row in relu)
    assert any(row["maxima"] for row in compiled)  # other norms have one


def test_first_call_compiles_quickly(compiled):
    """The kernels of a forward and backward pass together, M <= 8, in seconds of a processor that nothing slows."""
    slowness = max(1.0, median(row["slowness"] for row in compiled))
    for M in (1, 2, 3, 4, 5, 6, 8):
        for op in ("bdlru", "hlru"):
            chosen = (op, M, 1024, "bf16 sm_90 softmax", lanes_per_thread(M, 1024))
            rows = [r for r in compiled if (r["op"], r["M"], r["n"], r["variant"], r["VEC"]) == chosen]
            assert len(rows) == len(KERNELS)
            assert sum(row["seconds"] for row in rows) < 10 * slowness, (op, M, slowness)
