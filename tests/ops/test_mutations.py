"""The tests of triton_cases.py notice a broken kernel: each of these breaks one thing, and what it compiles to is executed."""

import contextlib
from collections import defaultdict
from importlib import import_module

import pytest
import torch
from emulator import EmulatorError, emulated
from triton.runtime import JITFunction

from fla_bdlru.ops.gpu import runtime
from tests.ops import triton_cases as cases

# what is broken: the module, what stands there, what stands there instead, the test that notices
MUTATIONS = {
    "the backward uses A, not its transpose": (
        "bdlru.kernels",
        "return u + f * (pick(s, rj, i) * r)",
        "return tl.where(rj == i, rows_sum(f * s, is_gate) * r, u)",
        lambda: cases.test_sizes("bdlru", 2, None),
    ),
    "pass 2 uses P in both directions": (
        "gpu.lanes",
        "(j * M + rj if REVERSE else rj * M + j)",
        "(rj * M + j)",
        lambda: cases.test_sizes("bdlru", 2, None),
    ),
    "dh0 is dropped": (
        "bdlru.kernels",
        "tl.store(dh0 + i_b * (M * H) + rj * H + o_n, u, mask",
        "tl.store(dh0 + i_b * (M * H) + rj * H + o_n, u * 0, mask",
        lambda: cases.test_one_pass("bdlru", 1),
    ),
    "dh0 of a document is dropped": (
        "hlru.kernels",
        "tl.store(dh0 + doc * (M * N) + lag * N + o_n, u,",
        "tl.store(dh0 + doc * (M * N) + lag * N + o_n, u * 0,",
        lambda: cases.test_packed("hlru", False, True, None),
    ),
    "the last chunk has no end": (
        "gpu.lanes",
        "return i_c, i_b, i_bc, tl.minimum(C, T - i_c * C)",
        "return i_c, i_b, i_bc, tl.minimum(C, C + i_c * 0)",
        lambda: cases.test_lengths_around_a_chunk("bdlru", 5, None),
    ),
    "lanes beyond the last block are written": (
        "gpu.lanes",
        "in_n = o_n < H",
        "in_n = o_n < H + 1",
        lambda: cases.test_lanes("bdlru", 31, None),
    ),
    "the window turns the wrong way": (
        "hlru.kernels",
        "(turn % M + 2 * M - 1 - rj) % M",
        "(2 * M - turn % M + rj) % M",
        lambda: cases.test_sizes("hlru", 3, None),
    ),
    "a document keeps the state before it": (
        "hlru.kernels",
        "h = tl.zeros([MP, WARP * VEC], tl.float32)\n                        if HAS_H0",
        "h = h + 0.0\n                        if HAS_H0",
        lambda: cases.test_packed("hlru", False, False, None),
    ),
    "the denominator has no gradient": (
        "gpu.gates",
        "return q * (df * (u - pulled))",
        "return q * (df * u)",
        lambda: cases.test_gate_norms("bdlru", "sigmoid", None),
    ),
    "square's gradient forgets the sign": (
        "gpu.gates",
        "tl.abs(df) * u - df * pulled",
        "tl.abs(df) * u - tl.abs(df) * pulled",
        lambda: cases.test_gate_norms("bdlru", "square", None),
    ),
    "the state that enters a chunk is ignored": (
        "bdlru.kernels",
        "if HAS_H_IN:\n        h =",
        "if HAS_H_IN and VARLEN:\n        h =",
        lambda: cases.test_lengths_around_a_chunk("bdlru", 5, None),
    ),
}
MODULES = [import_module(f"fla_bdlru.ops.{name}") for name in ("bdlru.kernels", "hlru.kernels", "gpu.gates", "gpu.lanes")]
FUNCTIONS = [f for module in MODULES for f in vars(module).values() if isinstance(f, JITFunction)]


@pytest.fixture(scope="module", autouse=True)
def _executor():
    """The cases' shapes in chunks of 4 steps, run by compiled kernels."""
    with pytest.MonkeyPatch.context() as patch, emulated():
        patch.setattr(runtime, "chunk_length", lambda B, T, n, M, warps: min(4, T))
        yield


@contextlib.contextmanager
def broken(module, old, new):
    """Kernels in whose source `old` is `new`; what depends on it is compiled anew."""
    before = [(f, f.src, f.device_caches) for f in FUNCTIONS]
    assert any(old in f.src for f in FUNCTIONS if f.__module__.endswith(module)), f"{module} no longer has {old!r}"
    for f, source, _ in before:
        f._unsafe_update_src(source.replace(old, new) if f.__module__.endswith(module) else source)
        f.device_caches = defaultdict(f.create_binder)
    try:
        yield
    finally:
        for f, source, caches in before:
            f._unsafe_update_src(source)
            f.device_caches = caches


@pytest.mark.parametrize("what", MUTATIONS)
def test_broken_kernels_are_noticed(what):
    *mutation, case = MUTATIONS[what]
    case()
    torch.manual_seed(0)
    with broken(*mutation), pytest.raises((AssertionError, EmulatorError)):
        case()
