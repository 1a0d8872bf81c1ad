"""What each kernel asks of an H100, from executed code and its machine code: a prediction, no measurement.

`python tests/ops/predict.py` runs forward and backward at B=8, T=2048, 1,024 channels in bfloat16 and writes a row a kernel to
`benchmarks/results/gpu/predicted.csv`, of which `python -m benchmarks.report.documents` makes tables. `--norms` compiles the
kernels with each gate norm and writes their registers and instructions to `norms.csv` beside it.

A pass takes (memory^3 + issue^3 + wait^3)^(1/3). Memory: its 32-byte sectors at 3.35 TB/s. Issue: its machine instructions,
four a cycle and multiprocessor. Wait: steps of a chunk times the cycles that a lone warp takes for one, in order, a load 600
cycles away, times the rounds in which programs run.
"""

import csv
import math
import os
import re
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import torch  # noqa: E402
import triton  # noqa: E402
from compile_kernels import cuobjdump, longest_loop  # noqa: E402
from compile_kernels import rows as compiled  # noqa: E402
from emulator import COMPILED, emulated  # noqa: E402

import fla_bdlru.ops as ops  # noqa: E402
from benchmarks.ops.cases import Case  # noqa: E402
from fla_bdlru.ops.bdlru.kernels import KERNELS as bdlru_kernels  # noqa: E402
from fla_bdlru.ops.common.gate_norm import GATE_NORMS  # noqa: E402
from fla_bdlru.ops.gpu import runtime  # noqa: E402
from fla_bdlru.ops.hlru.kernels import KERNELS as hlru_kernels  # noqa: E402

ROWS = Path(__file__).parents[2] / "benchmarks/results/gpu/predicted.csv"
KERNELS = {"bdlru": bdlru_kernels, "hlru": hlru_kernels}
SIZES = {"bdlru": (1, 2, 4, 8, 16), "hlru": (2, 4, 8, 16)}
BANDWIDTH, CLOCK, LATENCY, REGISTERS = 3.35e12, 1.755e9, 600, 65536


def machine_code(cubin):
    """Registers of a kernel, and the instructions of its longest loop."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        registers = int(re.search(r"REG:(\d+)", cuobjdump("--dump-resource-usage", file.name))[1])
        return registers, longest_loop(cuobjdump("-sass", file.name))


def cycles(loop, rounds=4):
    """Cycles of a round of a loop, one instruction a cycle in order, where what reads a loaded register waits for it."""
    now, ready, ends = 0, {}, []
    for _ in range(rounds):
        for text in loop:
            name, _, operands = re.sub(r"^@!?U?P\w+\s+", "", text).partition(" ")
            registers = [int(x) for x in re.findall(r"\bR(\d+)\b", operands)]
            now = max(now, *(ready.get(x, 0) for x in registers), 0) + 1
            if name.startswith("LDG") and registers:
                words = 4 if ".128" in name else 2 if re.search(r"\.E\.64\b", name) else 1
                ready |= {registers[0] + i: now + LATENCY for i in range(words)}
        ends.append(now)
    return ends[-1] - ends[-2]


def rows(driver, op, m, B=8, T=2048, channels=1024):
    """A row for each kernel of a forward and a backward pass; B = 1 is executed, in chunks as for B."""
    kernels, case = KERNELS[op], Case(op, m, B, T, channels)
    n, length = case.lanes, runtime.chunk_length(B, T, case.lanes, m, KERNELS[op].warps(m))
    runtime.chunk_length, whole = lambda *_: length, runtime.chunk_length
    shape = (1, T, m, n) if op == "bdlru" else (1, T, n)
    g = torch.randn(*shape[:-1], m + 1, n, dtype=torch.bfloat16)
    v = torch.randn(shape, dtype=torch.bfloat16)
    public = (v.transpose(2, 3), g.permute(0, 1, 4, 2, 3)) if op == "bdlru" else (v, g.transpose(2, 3))
    driver.totals.clear()
    driver.kernels.clear()
    try:
        leaves = [x.requires_grad_() for x in public]
        o, _ = getattr(ops, f"chunk_{op}")(*leaves)
        forward = {name: dict(counts) for name, counts in driver.totals.items()}
        driver.totals.clear()
        torch.autograd.grad(o, leaves, torch.ones_like(o))
        backward = {name: dict(counts) for name, counts in driver.totals.items()}
    finally:
        runtime.chunk_length = whole
    chunks, VEC = triton.cdiv(T, length), runtime.lanes_per_thread(m, n, 32)
    code = {program.kernel.name: machine_code(COMPILED[key]["cubin"]) for key, program in driver.kernels.items()}
    for direction, totals in (("forward", forward), ("backward", backward)):
        for name, counts in totals.items():
            registers, loop = code[name]
            carry, first = name.endswith("carry"), name.endswith("_h")
            splits = triton.cdiv(m + 1, runtime.columns(m)) if first else 1
            programs = B * triton.cdiv(n, 32 * (1 if carry else VEC)) * splits * (1 if carry else chunks)
            steps = max(runtime.chunks_ahead(m), 1) if carry else kernels.unrolled(m).get("TURN", 1)
            gates = VEC * steps * (m * (m + 1) if op == "bdlru" else m + 1)
            turns = (chunks if carry else triton.cdiv(T, chunks)) / steps
            warps = min(32, REGISTERS // (32 * 8 * triton.cdiv(registers, 8)))
            times = {
                "memory_us": 32 * B * counts["sectors"] / BANDWIDTH * 1e6,
                "issue_us": programs * turns * len(loop) / (4 * 132 * CLOCK) * 1e6,
                "wait_us": math.ceil(programs / (132 * warps)) * turns * cycles(loop) / CLOCK * 1e6,
            }
            yield {
                "op": op,
                "m": m,
                "direction": direction,
                "kernel": name,
                "registers": registers,
                "warps": warps,
                "chunks": chunks,
                "bytes": B * (counts["read"] + counts["wrote"]),
                "least_bytes": case.least_bytes("fwd") if direction == "forward" else
                case.least_bytes("fwd+bwd") - case.least_bytes("fwd"),
                "sectors_over_fewest": f"{counts['sectors'] / counts['fewest']:.3f}",
                "instructions_a_gate": "" if carry else f"{len(loop) / gates:.1f}",
                **{name: f"{x:.1f}" for name, x in times.items()},
                "us": f"{sum(x**3 for x in times.values()) ** (1 / 3):.1f}",
            }  # fmt: skip


def norm_rows(op, m):
    """A row for each pass with each gate norm: what it compiles to."""
    for norm in (name for name in GATE_NORMS if name != "none"):
        for row in compiled(op, m, norm, loops=True):
            if row["kernel"] != "carry":
                instructions = f"{row['instructions'] / row['gates']:.1f}"
                yield {
                    "op": op, "m": m, "gate_norm": norm, "kernel": row["kernel"], "registers": row["registers"],
                    "local": row["local"], "instructions_a_gate": instructions,
                }  # fmt: skip


def write(path, rows):
    """Writes rows as they come."""
    with path.open("w", newline="") as file:
        writer = None
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(file, row, lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            print(*row.values(), flush=True)


def main():
    os.environ["FLA_BDLRU_AUTOTUNE"] = "0"
    torch.set_num_threads(1)
    if sys.argv[1:] == ["--norms"]:
        write(ROWS.with_name("norms.csv"), (row for op in SIZES for m in SIZES[op] if m <= 8 for row in norm_rows(op, m)))
        return
    with emulated() as driver:
        write(ROWS, (row for op in SIZES for m in SIZES[op] for row in rows(driver, op, m)))


if __name__ == "__main__":
    main()
