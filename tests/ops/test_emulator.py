"""The executor itself: compiled kernels against the naive recurrences, and what it refuses."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from emulator import COMPILED, EmulatorError, Kernel, Refused, emulated

import fla_bdlru.ops as ops

HEAD = ".visible .entry f(\n .param .u64 f_param_0\n)\n.reqntid 32\n{\n"


@pytest.fixture
def driver():
    with emulated() as driver:
        yield driver


def results(op, v, g, h0, cu_seqlens):
    leaves = [x.detach().clone().requires_grad_() for x in (v, g, h0)]
    o, ht = op(*leaves, True, cu_seqlens=cu_seqlens)
    (o.double().sin().sum() + ht.double().sin().sum()).backward()
    return [x.detach().double() for x in (o, ht, *(x.grad for x in leaves))]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name, M, width, packed", [("bdlru", 2, 70, False), ("bdlru", 3, 33, True), ("hlru", 2, 33, True)])
def test_compiled_kernels_equal_the_naive_recurrence(driver, name, M, width, packed):
    T = 260
    shape = (1, T, width, M) if name == "bdlru" else (1, T, width)
    v, g, cu_seqlens = torch.randn(shape), torch.randn(*shape, M + 1), None
    if packed:
        cu_seqlens = torch.tensor([0, 0, 1, 65, 200, T, T])
    h0 = torch.randn(6 if packed else 1, width, M)
    exact = results(getattr(ops, f"naive_recurrent_{name}"), v.double(), g.double(), h0.double(), cu_seqlens)
    got = results(getattr(ops, f"chunk_{name}"), v, g, h0, cu_seqlens)
    for x, y in zip(got, exact):
        assert (x - y).abs().max() < 2e-6 * y.abs().max().clamp_min(1)
    parts = ("fwd_kernel_h", "fwd_kernel_o", "bwd_kernel_dh", "bwd_kernel_dvg")
    assert set(driver.totals) == {"chunk_lru_kernel_carry", *(f"chunk_{name}_{part}" for part in parts)}
    assert all(counts["float"] and counts["sectors"] >= counts["fewest"] > 0 for counts in driver.totals.values())


@pytest.mark.parametrize("name", ["bdlru", "hlru"])
def test_slices_of_buffers_stay_in_their_lane(driver, name):
    """Memory that begins between multiples of 16 bytes would have rows moved across lanes, through shared memory."""
    gate_major = [(1, 3, 2, 128), (1, 3, 2, 3, 128)] if name == "bdlru" else [(1, 3, 128), (1, 3, 3, 128)]
    v, g, h0, do = (
        torch.randn(1 + 2304)[1 : 1 + math.prod(shape)].view(shape) for shape in (*gate_major, (1, 2, 128), gate_major[0])
    )
    v, g, do = (v.mT, g.permute(0, 1, 4, 2, 3), do.mT) if name == "bdlru" else (v, g.mT, do)
    both = []
    for form in ("chunk", "naive_recurrent"):
        leaves = [x.detach().requires_grad_() for x in (v, g, h0.mT)]
        o, _ = getattr(ops, f"{form}_{name}")(*leaves)
        both.append((o, *torch.autograd.grad(o, leaves, do)))
    for x, y in zip(*both):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    assert not any(counts["shuffle"] for counts in driver.totals.values())


# of tests/gpu, a test for each of sizes, types, documents, widths, what is never forgotten, layers and decoding
KERNELS = (
    "float32[chunk-softmax-3-bdlru]", "float32[fused_recurrent-silu-2-hlru]", "half_types[dtype0-tanh-2-hlru]",
    "half_types[dtype1-softmax-4-bdlru]", "packed[chunk-2-bdlru]", "packed[chunk-2-hlru]", "awkward_shapes[33-65-hlru]",
    "no_decay[2-bdlru]", "a_nan_is_not_hidden[relu-bdlru]",
)  # fmt: skip
MODELS = ("layer_equals_the_cpu_path[True-bdlru]", "decoding_in_a_cuda_graph[HLRU]")


@pytest.mark.timeout(600)
def test_a_part_of_the_gpu_tests_runs_here():
    """`FLA_BDLRU_DEVICE=emulated pytest tests/gpu -m gpu` runs all of them, but for devices, streams, graphs and clocks."""
    folder = Path(__file__).parents[1] / "gpu"
    chosen = [f"{folder}/test_{file}.py::test_{x}" for file, of in (("kernels", KERNELS), ("models", MODELS)) for x in of]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "gpu", *chosen],
        capture_output=True, text=True, timeout=580, env={**os.environ, "FLA_BDLRU_DEVICE": "emulated"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) == len(chosen)


# ----------------------------------------------------------------------------------------------------- what it refuses


@triton.jit
def copy_kernel(x, y, n, shift: tl.constexpr):
    i = tl.arange(0, 32)
    tl.store(y + i, tl.load(x + i + shift, mask=i < n), mask=i < n)


def test_errors_of_access(driver):
    x, y = torch.randn(32), torch.zeros(32)
    copy_kernel[(1,)](x, y, 32, 0, num_warps=1)
    assert torch.equal(x, y)
    with pytest.raises(EmulatorError, match="outside of the launch's tensors"):
        copy_kernel[(1,)](x, y, 32, 1, num_warps=1)
    with pytest.raises(EmulatorError, match="of bytes that nothing wrote"):
        copy_kernel[(1,)](driver.poison(torch.empty(32)), y, 32, 0, num_warps=1)
    with pytest.raises(EmulatorError, match="one warp, one axis"):
        copy_kernel[(1, 2)](x, y, 32, 0, num_warps=1)


def test_what_a_kernel_wrote_can_be_read(driver):
    x, y, z = torch.randn(32), driver.poison(torch.empty(32)), torch.zeros(32)
    copy_kernel[(1,)](x, y, 20, 0, num_warps=1)
    copy_kernel[(1,)](y, z, 20, 0, num_warps=1)
    assert torch.equal(z[:20], x[:20])
    with pytest.raises(EmulatorError, match="nothing wrote"):
        copy_kernel[(1,)](y, z, 21, 0, num_warps=1)


@pytest.mark.parametrize("line", [
    "bar.sync 0;", "atom.global.add.u32 %r1, [%rd1], 1;", "add.f32 %f1, %f2, %f3;", "add.sat.s32 %r1, %r1, 1;",
    "ld.shared.b32 %r1, [%rd1];", "ld.volatile.global.b32 %r1, [%rd1];",
])  # fmt: skip
def test_unknown_instructions_are_refused(line):
    with pytest.raises(Refused, match="line 8: "):
        Kernel(HEAD + f".reg .b32 %r<3>;\n.reg .b64 %rd<3>;\n{line}\nret;\n$L__func_end0:\n}}")


def test_more_than_a_warp_is_refused():
    with pytest.raises(Refused, match="more than one warp"):
        Kernel(HEAD.replace("32", "64") + "ret;\n}")


def test_lanes_that_branch_apart_are_an_error(driver):
    class Metadata:
        hash, num_warps, shared = "apart", 1, 0

    registers = ".reg .pred %p<2>;\n.reg .b32 %r<2>;\n"
    body = "mov.u32 %r1, %tid.x;\nsetp.lt.s32 %p1, %r1, 7;\n@%p1 bra $L_1;\n$L_1:\nret;\n"
    COMPILED["apart"] = {"ptx": f"{HEAD}{registers}{body}$L__func_end0:\n}}"}
    with pytest.raises(EmulatorError, match="lanes branch apart"):
        driver.launch(Metadata, 1, {})


def test_misaligned_accesses_are_an_error(driver):
    class Metadata:
        hash, num_warps, shared = "odd", 1, 0

    registers = ".reg .b32 %r<3>;\n.reg .b64 %rd<2>;\n"
    body = registers + "ld.param.b64 %rd1, [f_param_0];\nld.global.v2.b32 {%r1, %r2}, [%rd1 + 4];\nret;\n"
    COMPILED["odd"] = {"ptx": f"{HEAD}{body}$L__func_end0:\n}}"}
    with pytest.raises(EmulatorError, match="not aligned to its size"):
        driver.launch(Metadata, 1, {"x": torch.zeros(64)})
