"""The Triton kernels without a GPU: run in the interpreter, and compiled for sm_80 and sm_90, where the result is read."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fla_bdlru.ops.triton_runtime import FILL, chunk_length, columns, lanes_per_thread

HERE = Path(__file__).parent


@pytest.mark.timeout(900)
def test_kernels_in_the_interpreter():
    """TRITON_INTERPRET has to be set before Triton is imported, hence a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_cases.py")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"}, timeout=850)
    assert done.returncode == 0, done.stdout[-6000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 70


def test_chunk_length():
    """One pass where lanes fill the device; else chunks, as long as the device stays full, and never too short for P."""
    assert chunk_length(B=64, T=2048, tiles=40, M=2) >= 2048
    assert chunk_length(B=8, T=2048, tiles=8, M=4) == 64
    assert chunk_length(B=1, T=131_072, tiles=8, M=4) == 512
    assert chunk_length(B=1, T=100, tiles=1, M=16) == 256
    for T in (1, 100, 5000, 2**20):
        C = chunk_length(1, T, 4, 2)
        assert T <= C or 4 * T <= FILL * C


def test_tiles():
    assert [lanes_per_thread(M, 1024) for M in (1, 2, 3, 4, 5, 8, 16)] == [4, 4, 2, 2, 1, 1, 1]
    assert [lanes_per_thread(1, n) for n in (1, 32, 33, 64, 65)] == [1, 1, 2, 2, 4]
    assert all(columns(M) <= M + 1 for M in range(1, 33))


# ------------------------------------------------------------------------------------------------------- compiled

KERNELS = ("fwd_chunk", "fwd_scan", "bwd_chunk", "bwd_scan", "carry")


def jobs():
    """Every configuration of M <= 8 on sm_90 in bf16, and a sample of the others."""
    for op in ("bdlru", "hlru"):
        for M in (1, 2, 3, 4, 5, 6, 8):
            yield {"op": op, "M": M}
        for norm in ("sigmoid", "relu", "tanh", "silu", "linear", "none"):
            yield {"op": op, "M": 4, "gate_norm": norm}
        yield {"op": op, "M": 4, "packed": True}
        yield {"op": op, "M": 2, "arch": 80}
        yield {"op": op, "M": 4, "dtype": "fp32", "n": 1000}
        yield {"op": op, "M": 4, "dtype": "fp16", "arch": 80, "packed": True, "gate_norm": "tanh"}
        yield {"op": op, "M": 16}


@pytest.fixture(scope="module")
def compiled():
    """A row per kernel and configuration, from two processes that compile."""
    work = list(jobs())
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(_compile, (work[::2], work[1::2])))
    return [row for part in parts for row in part]


def _compile(work):
    command = [sys.executable, "-W", "ignore", str(HERE / "compile_kernels.py"), json.dumps(work)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.timeout(900)
def test_compiled_kernels_stay_in_registers_and_in_their_lane(compiled):
    counts = Counter(row["kernel"] for row in compiled)
    assert set(counts) == set(KERNELS)
    for row in compiled:
        assert row["local"] == row["stack"] == 0, row
        assert row["shuffles"] == row["barriers"] == row["shared"] == row["atomics"] == 0, row
        assert row["registers"] <= 255, row
        if row["M"] <= 4 and row["dtype"] != "fp32":
            assert row["narrowest_load"] >= 4, row
        if row["M"] <= 8 and row["kernel"] != "fwd_chunk":
            assert row["registers"] <= 96, row  # five warps and more on each quarter of a multiprocessor


def test_first_call_compiles_quickly(compiled):
    """The kernels of a forward and backward pass together, M <= 8: under 10 s here, with another process compiling beside."""
    for M in (1, 2, 3, 4, 5, 6, 8):
        for op in ("bdlru", "hlru"):
            rows = [r for r in compiled if (r["op"], r["M"], r["variant"]) == (op, M, "bf16 sm_90 softmax")]
            assert len(rows) == len(KERNELS)
            assert sum(row["seconds"] for row in rows) < 20, (op, M)
