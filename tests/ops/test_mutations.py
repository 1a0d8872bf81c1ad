"""The interpreter tests notice a broken kernel: each of these breaks one thing in a copy of the package."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# what is broken: the file, what stands there, what the mutant has instead, the tests that run
MUTATIONS = {
    "the backward uses A, not its transpose": (
        "bdlru/kernels.py",
        "return u + f * (pick(s, rj, i) * r)",
        "return tl.where(rj == i, rows_sum(f * s, is_gate) * r, u)",
        "sizes",
    ),
    "pass 2 uses P in both directions": (
        "gpu/lanes.py",
        "(j * M + rj if REVERSE else rj * M + j)",
        "(rj * M + j)",
        "sizes",
    ),
    "dh0 is dropped": (
        "bdlru/kernels.py",
        "tl.store(dh0 + i_b * (M * H) + rj * H + o_n, u, mask",
        "tl.store(dh0 + i_b * (M * H) + rj * H + o_n, u * 0, mask",
        "one_pass",
    ),
    "dh0 of a document is dropped": (
        "hlru/kernels.py",
        "tl.store(dh0 + doc * (M * N) + lag * N + o_n, u,",
        "tl.store(dh0 + doc * (M * N) + lag * N + o_n, u * 0,",
        "packed",
    ),
    "the last chunk has no end": (
        "bdlru/kernels.py",
        "n_t = tl.minimum(C, T - i_c * C)",
        "n_t = tl.minimum(C, C + i_c * 0)",
        "around_a_chunk",
    ),
    "lanes beyond the last block are written": (
        "gpu/lanes.py",
        "in_n = o_n < H",
        "in_n = o_n < H + 1",
        "lanes",
    ),
    "the window turns the wrong way": (
        "hlru/kernels.py",
        "(turn % M + 2 * M - 1 - rj) % M",
        "(2 * M - turn % M + rj) % M",
        "sizes",
    ),
    "a document keeps the state before it": (
        "hlru/kernels.py",
        "h = tl.zeros([MP, WARP * VEC], tl.float32)\n                        if HAS_H0",
        "h = h + 0.0\n                        if HAS_H0",
        "packed",
    ),
    "the denominator has no gradient": (
        "gpu/gates.py",
        "return df * (u - pulled)",
        "return df * u",
        "gate_norms",
    ),
    "the state that enters a chunk is ignored": (
        "bdlru/kernels.py",
        "if HAS_H_IN:\n        h =",
        "if HAS_H_IN and VARLEN:\n        h =",
        "around_a_chunk",
    ),
}


def survives(folder, file, old, new, tests):
    """Whether the interpreter tests pass over the mutant, and what they printed."""
    shutil.copytree(ROOT / "fla_bdlru", folder / "fla_bdlru", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests/ops", folder / "tests/ops", ignore=shutil.ignore_patterns("__pycache__"))
    for helper in ROOT.glob("tests/*.py"):
        if not helper.name.startswith("test_"):
            shutil.copy(helper, folder / "tests")
    path = folder / "fla_bdlru/ops" / file
    source = path.read_text()
    assert old in source, f"{file} no longer has {old!r}"
    path.write_text(source.replace(old, new))
    found = f"{folder}{os.pathsep}{folder / 'tests'}"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--import-mode=importlib"]
    done = subprocess.run(
        [*command, "tests/ops/triton_cases.py", "-k", tests],
        capture_output=True, text=True, cwd=folder, timeout=600,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": found, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(900)
def test_broken_kernels_are_noticed(tmp_path):
    def try_one(item):
        number, (what, mutation) = item
        folder = tmp_path / str(number)
        folder.mkdir()
        passed, output = survives(folder, *mutation)
        # noticed by a test that ran, not by a file that does not import
        return what, "survived" if passed else "noticed" if "1 failed" in output or "Fatal" in output else output[-2000:]

    with ThreadPoolExecutor(2) as pool:
        results = dict(pool.map(try_one, enumerate(MUTATIONS.items())))
    assert set(results.values()) == {"noticed"}, {what: r for what, r in results.items() if r != "noticed"}
