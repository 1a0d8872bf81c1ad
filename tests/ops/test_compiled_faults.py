"""Faults that only compiled code can have are noticed by the executor; offsets beyond 2^31 elements are executed."""

import mmap
import re
import sys

import pytest
import torch
from emulator import COMPILED, EmulatorError, Kernel, Program, emulated

import fla_bdlru.ops as ops
from fla_bdlru.ops.bdlru.kernels import KERNELS as bdlru_kernels
from fla_bdlru.ops.gpu import runtime
from fla_bdlru.ops.gpu.gates import NORM_CODES
from fla_bdlru.ops.hlru.kernels import KERNELS as hlru_kernels

# what is broken: the kernel's ending, what stands in its PTX, what stands there instead
FAULTS = {
    "half of a vector is loaded": ("_o", r"ld\.global\.v2\.b32 \{ (%r\d+), %r\d+ \}", r"ld.global.b32 { \1 }"),
    "a vector is loaded from the middle of another": ("_dvg", r"(ld\.global\.v2.*)\+ 0 \]", r"\1+ 4 ]"),
    "a vector is stored in the wrong order": ("_h", r"(st\.global\.v2.*)\{ (%r\d+), (%r\d+) \}", r"\1{ \3, \2 }"),
    "a load has no mask": ("_o", r"@%p\d+ ld\.global", "ld.global"),
    "a store has no mask": ("_o", r"@%p\d+ st\.global", "st.global"),
    "a mask is turned round": ("_dh", r"@(%p\d+) st\.global", r"@!\1 st.global"),
    "a row lies one element further": ("_dvg", r"(mul\.wide\.s32 \s*%rd\d+, %r\d+), 4;", r"\1, 8;"),
    "a loop ends one step early": ("_dh", r"(setp\.ne\.b64 \s*%p\d+, %rd\d+), 0;", r"\1, -1;"),
    "a pointer does not move on": ("_o", r"add\.s64 \s*(%rd\d+), \1, \d{3,};", ""),
    "lanes branch apart": ("_h", r"setp\.ne\.b64 (\s*%p\d+), %rd\d+, 0;", r"setp.lt.u32 \1, %tid.x, 7;"),
}  # fmt: skip


def results(op):
    """Outputs, final state and gradients of fixed inputs, 66 lanes in chunks of 14 steps."""
    generator = torch.Generator().manual_seed(0)
    v, g, h0, do, dht = (torch.randn(s, generator=generator) for s in (V, (*V, 3), H0, V, H0))
    leaves = [x.requires_grad_() for x in (v, g, h0)]
    o, ht = op(*leaves, True)
    ((o * do).sum() + (ht * dht).sum()).backward()
    return [x.detach() for x in (o, ht, *(x.grad for x in leaves))]


V, H0 = (1, 70, 66, 2), (1, 66, 2)


@pytest.fixture
def driver(monkeypatch):
    monkeypatch.setattr(runtime, "chunk_length", lambda B, T, n, M, warps: min(T, 14))
    with emulated() as driver:
        yield driver


def noticed(driver, exact):
    """How the executor notices that something is wrong, or None."""
    driver.totals.clear()
    try:
        found = results(ops.chunk_bdlru)
    except EmulatorError as error:
        return str(error)
    if any(counts["shuffle"] for counts in driver.totals.values()):
        return "lanes are shuffled"
    return None if all((x - y).abs().max() < 1e-5 for x, y in zip(found, exact)) else "wrong values"


def test_faults_of_compiled_code_are_noticed(driver, monkeypatch):
    exact = results(ops.naive_recurrent_bdlru)
    assert noticed(driver, exact) is None
    missed = []
    for what, (ending, pattern, replacement) in FAULTS.items():
        key = next(k for k, program in driver.kernels.items() if program.kernel.name.endswith("kernel" + ending))
        right = driver.kernels[key]
        text, found = re.subn(pattern, replacement, COMPILED[key]["ptx"])
        assert found, f"{what}: {pattern} is not in {right.kernel.name}"
        driver.kernels[key] = Program(Kernel(text))
        missed += [what] if noticed(driver, exact) is None else []
        driver.kernels[key] = right
    assert not missed
    assert noticed(driver, exact) is None
    driver.window = lambda grid: (0, grid - 1)  # as where the host takes warps to be wider than they are
    assert noticed(driver, exact)


def test_a_vector_width_that_does_not_divide_the_lanes_is_noticed(driver, monkeypatch):
    monkeypatch.setattr(runtime, "lanes_per_thread", lambda M, n, warp=None: 2)
    v, g = torch.randn(1, 20, 33, 2), torch.randn(1, 20, 33, 2, 3)
    ops.fused_recurrent_bdlru(v, g)
    assert any(counts["shuffle"] for counts in driver.totals.values())


def reserved(*shape, dtype=torch.float32):
    """A tensor of addresses, whose memory comes as it is touched."""
    size = torch.Size(shape).numel() * dtype.itemsize
    no_reserve = 0x4000  # MAP_NORESERVE, which Python has no name for before 3.13
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is reserved as Linux does it")
@pytest.mark.parametrize("name", ["bdlru", "hlru"])
def test_offsets_beyond_int32(driver, name):
    """The last chunk of one sequence, whose gates lie more than 2^31 elements behind the first."""
    blocks = name == "bdlru"
    M, n, C, kernels = 2, 34, 32, bdlru_kernels if blocks else hlru_kernels
    rows = (M,) if blocks else ()
    NC = 2**31 // (C * n * (M + 1) * (M if blocks else 1)) + 2
    g, dg = (reserved(1, NC * C, *rows, M + 1, n, dtype=torch.bfloat16) for _ in range(2))
    v, o, do, dv = (reserved(1, NC * C, *rows, n, dtype=torch.bfloat16) for _ in range(4))
    h_in, u_in = (reserved(1, NC, M, n) for _ in range(2))
    last = slice(-C, None)
    assert g[:, : 1 - C].numel() > 2**31
    for x in (g, v, do):
        x[:, last] = torch.randn(x[:, last].shape)
    # H-LRU's window reaches into the chunk before, whose outputs are rounded
    h_in[:, -1], u_in[:, -1] = torch.randn(2, M, n).bfloat16().float()
    o[:, -C - M : -C] = h_in[:, -1:] if blocks else h_in[:, -1].flip(1)
    options = {kernels.lane_axis: n, "M": M, "MP": M, "VEC": 2, "WARP": 32, **kernels.unrolled(M), **runtime.OPTIONS}
    options |= {"NORM": NORM_CODES["softmax"], "VARLEN": False, "HAS_H0": False, "LAST": False}
    has = {"HAS_DO": True, "HAS_DHT": False, "HAS_U_IN": True, **({"HAS_H_IN": True} if blocks else {})}
    states, documents = ((h_in,), (None,) * 2) if blocks else ((), (None,) * 4)
    driver.window = lambda grid: (grid - 1, grid)

    def run():
        steps = (NC * C, C, NC, 0)
        kernels.fwd_o[(NC,)](g, v, None, None, None, h_in, o, None, *steps, **options, HAS_H_IN=True)
        arguments = (g, v, o, None, *states, do, None, u_in, *documents, dg, dv, None)
        kernels.bwd_dvg[(NC,)](*arguments, *steps, **options, **has)
        return [x[:, last].double().movedim(-1, 2) for x in (o, dv, dg)]

    leaves = [x[:, last].double().movedim(-1, 2).clone().requires_grad_() for x in (v, g)]
    h0, dht = (x[:, -1].double().transpose(1, 2) for x in (h_in, u_in))
    outputs = getattr(ops, f"naive_recurrent_{name}")(*leaves, h0, True)
    torch.autograd.backward(outputs, (do[:, last].double().movedim(-1, 2), dht))
    exact = (outputs[0].detach(), *(leaf.grad for leaf in leaves))
    for x, y in zip(run(), exact):
        assert (x - y).abs().max() < 2e-2 * y.abs().max()
    key = next(k for k, program in driver.kernels.items() if program.kernel.name.endswith("kernel_dvg"))
    text, found = re.subn(r"(?:mul|mad)\.lo\.s64 \s*(%rd\d+), .*;", r"\g<0> cvt.s64.s32 \1, \1;", COMPILED[key]["ptx"])
    driver.kernels[key] = Program(Kernel(text))  # offsets in 32 bits
    assert found
    dg[:, last] = 0
    try:
        short = run()[2]
    except EmulatorError:
        return
    assert not (short - exact[2]).abs().max() < 2e-2 * exact[2].abs().max()
