"""Times the native CPU path against the associative-scan formulation and torch.nn.LSTM, in one run.

    python -m benchmarks.ops.cpu
    python -m benchmarks.ops.cpu --op hlru --m 1 --m 4 --dtype bfloat16 --csv results/cpu.csv

Contenders take turns, so that a busy machine slows all of them; medians are reported. The scan and the LSTM run in float32
whatever `--dtype` says: on a CPU that is their fastest type.
"""

from __future__ import annotations

import csv
import platform
import statistics
import time
import warnings
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.ops.scan import scan_bdlru, scan_hlru

# FLA says on import that there is no GPU
warnings.filterwarnings("ignore", message="Triton is not supported on current platform")


class Op(str, Enum):
    """The recurrence to time."""

    bdlru = "bdlru"
    hlru = "hlru"


class DType(str, Enum):
    """The type of the inputs of the native op."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


SHOWN = {  # columns of the table; times are milliseconds
    "op": "op",
    "m": "m",
    "forward_ms": "fwd",
    "ours_ms": "fwd+bwd",
    "scan_ms": "scan",
    "scan_ratio": "scan/ours",
    "lstm_ratio": "LSTM/ours",
    "error": "error",
}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def environment() -> dict[str, str]:
    """Versions, threads and processor, as printed and written beside the figures."""
    import numba

    return {
        "torch": torch.__version__,
        "numba": numba.__version__,
        "threads": str(torch.get_num_threads()),
        "cpu": _cpu_model(),
    }


def make_inputs(op: str, B: int, T: int, H: int, M: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random v, g and do in public axes; memory is gate-major (H last)."""
    if op == "bdlru":
        v, do = (torch.randn(B, T, M, H).transpose(2, 3) for _ in range(2))
        return v, torch.randn(B, T, M, M + 1, H).permute(0, 1, 4, 2, 3), do
    v, do = (torch.randn(B, T, H) for _ in range(2))
    return v, torch.randn(B, T, M + 1, H).transpose(2, 3), do


def _step(function, inputs, do):
    """One forward and backward pass; gradients are fresh memory, as in a training step."""
    o = function(*inputs)
    return o, *torch.autograd.grad(o, inputs, do)


def _milliseconds(function) -> float:
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)


def _error(got, exact) -> float:
    """The largest error of outputs and gradients, each against the largest exact value."""
    return max(((x.double() - y).abs().max() / y.abs().max()).item() for x, y in zip(got, exact))


def measure(op: str, B: int, T: int, H: int, M: int, dtype: torch.dtype, repeats: int) -> dict[str, float | str | int]:
    """One row of the table: medians in milliseconds of interleaved runs, ratios and errors."""
    from fla_bdlru.ops import chunk_bdlru, chunk_hlru, naive_recurrent_bdlru, naive_recurrent_hlru

    native, scan, naive = {
        "bdlru": (chunk_bdlru, scan_bdlru, naive_recurrent_bdlru),
        "hlru": (chunk_hlru, scan_hlru, naive_recurrent_hlru),
    }[op]
    torch.manual_seed(0)
    v, g, do = (x.to(dtype) for x in make_inputs(op, B, T, H, M))
    ours = partial(_step, lambda v, g: native(v, g)[0], (v.requires_grad_(), g.requires_grad_()), do)
    # the scan gets the layout that suits it: matrices last
    leaves = tuple(x.detach().float().contiguous().requires_grad_() for x in (v, g))
    theirs = partial(_step, scan, leaves, do.float().contiguous())
    exact = _step(lambda v, g: naive(v, g)[0], tuple(x.detach().double().requires_grad_() for x in leaves), do.double())
    lstm = torch.nn.LSTM(H * M, H * M, batch_first=True)
    x = torch.randn(B, T, H * M, requires_grad=True)
    lstm_step = partial(_step, lambda x, *_: lstm(x)[0], (x, *lstm.parameters()), torch.randn(B, T, H * M))

    def forward():
        with torch.no_grad():
            native(v, g)

    errors = _error(ours(), exact), _error(theirs(), exact)
    contenders = (forward, ours, theirs, lstm_step)
    for function in contenders:
        function()
    times = [[_milliseconds(function) for function in contenders] for _ in range(repeats)]
    forward_ms, ours_ms, scan_ms, lstm_ms = (statistics.median(column) for column in zip(*times))
    return {
        "op": op, "m": M, "forward_ms": forward_ms, "ours_ms": ours_ms, "scan_ms": scan_ms, "scan_ratio": scan_ms / ours_ms,
        "lstm_ms": lstm_ms, "lstm_ratio": lstm_ms / ours_ms, "error": errors[0], "scan_error": errors[1],
    }  # fmt: skip


def _cell(key: str, value: float | str | int) -> str:
    if "error" in key:
        return f"{value:.1e}"
    if "ratio" in key:
        return f"{value:.1f}x"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def main(
    op: Annotated[Op, typer.Option(help="Which recurrence.")] = Op.bdlru,
    batch: Annotated[int, typer.Option("--batch", "-B", min=1, help="Sequences.")] = 4,
    time_steps: Annotated[int, typer.Option("--time", "-T", min=1, help="Steps of a sequence.")] = 1024,
    heads: Annotated[int, typer.Option("--heads", "-H", min=1, help="Blocks (H-LRU: channels).")] = 32,
    m: Annotated[list[int] | None, typer.Option(min=1, help="Block size or order; may be repeated.")] = None,
    dtype: Annotated[DType, typer.Option(help="Type of our inputs.")] = DType.float32,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds, each with every contender once.")] = 15,
    csv_path: Annotated[Path | None, typer.Option("--csv", help="Also write the rows here.")] = None,
) -> None:
    """Prints one table: our times, the scan's and the LSTM's, their ratios, and errors against float64."""
    console = Console()
    versions = environment()
    console.print(", ".join(f"{key} {value}" for key, value in versions.items()))
    shape = {"B": batch, "T": time_steps, "H": heads, "dtype": dtype.value, "repeats": repeats}
    rows = [
        measure(op.value, batch, time_steps, heads, M, getattr(torch, dtype.value), repeats)
        for M in track(m or [2, 4, 8], description="timing", console=console, transient=True)
    ]
    table = Table(title=", ".join(f"{key}={value}" for key, value in shape.items()))
    table.caption = "ms; scan and LSTM: fwd+bwd; error: outputs and gradients against float64, of the largest value"
    for name in SHOWN.values():
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(key, row[key]) for key in SHOWN))
    console.print(table)
    if csv_path is not None:
        csv_path.parent.mkdir(parents=True, exist_ok=True)
        with csv_path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], *shape, *versions])
            writer.writeheader()
            writer.writerows({**row, **shape, **versions} for row in rows)


if __name__ == "__main__":
    typer.run(main)
