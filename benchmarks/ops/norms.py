"""Times the gate norms beside softmax on a CPU, in one run: what signed gates, and exact ones, cost.

    python -m benchmarks.ops.norms
    python -m benchmarks.ops.norms --op hlru --m 4 --norms softmax,silu,linear --csv results/norms.csv

Of a size all norms take turns, so that a busy machine slows all, and one thread is timed by its processor time, which other
processes stretch less. A time stands over that of the first norm.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.progress import track

from benchmarks.ops import check_file
from benchmarks.ops.cpu import Op, forward_backward, medians
from benchmarks.ops.roofline import make_inputs
from benchmarks.records.machine import provenance
from benchmarks.records.tables import start_table
from fla_bdlru import ops
from fla_bdlru.ops.common.gate_norm import GATE_NORMS

DTYPES = ("float32", "bfloat16")


def measure(op: str, B: int, T: int, H: int, M: int, dtype: str, norms: tuple[str, ...], repeats: int) -> list[dict]:
    """A row a norm: medians in milliseconds, forward and both ways, and each over the first norm's.

    `B` sequences of `T` steps, `H` blocks of `M` channels (H-LRU: channels of order `M`), inputs of `dtype`.
    """
    torch.manual_seed(0)
    native = getattr(ops, f"chunk_{op}")
    v, g, do = (x.to(getattr(torch, dtype)) for x in make_inputs(op, B, T, H, M))
    leaves = tuple(x.detach().clone().requires_grad_() for x in (v, g))
    contenders = []
    for norm in norms:
        function = partial(native, gate_norm=norm)
        contenders.append(partial(function, v, g))
        contenders.append(partial(forward_backward, lambda v, g, function=function: function(v, g)[0], leaves, do))
    times = medians(contenders, repeats, time.thread_time if torch.get_num_threads() == 1 else time.perf_counter)
    rows = []
    for i, norm in enumerate(norms):
        forward, both = times[2 * i : 2 * i + 2]
        ratios = {"forward_ratio": forward / times[0], "both_ratio": both / times[1]}
        rows.append({"m": M, "dtype": dtype, "gate_norm": norm, "forward_ms": forward, "both_ms": both, **ratios})
    return rows


def main(
    op: Annotated[Op, typer.Option(help="The recurrence.")] = Op.bdlru,
    norms: Annotated[
        str, typer.Option(help=f"Comma list of {', '.join(GATE_NORMS)}; the others stand over the first.")
    ] = "softmax,tanh,square,sinh",
    batch: Annotated[int, typer.Option("--batch", "-B", min=1, help="Sequences.")] = 4,
    time_steps: Annotated[int, typer.Option("--time", "-T", min=1, help="Steps of a sequence.")] = 512,
    channels: Annotated[int, typer.Option(min=1, help="Channels in all; --m divides it.")] = 256,
    m: Annotated[list[int] | None, typer.Option(min=1, help="Block size or order; may be repeated.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds, each with every norm once.")] = 31,
    csv_path: Annotated[Path | None, typer.Option("--csv", help="Also write the rows here.")] = None,
) -> None:
    """Prints a table: the op's time with each norm over that with the first, forward and forward + backward, in two types."""
    names, sizes = tuple(norms.split(",")), m or [1, 2, 4, 8]
    for name in names:
        if name not in GATE_NORMS:
            raise typer.BadParameter(f"--norms {name!r} is not known; expected some of {', '.join(GATE_NORMS)}.")
    for M in sizes:
        if channels % M:
            raise typer.BadParameter(f"--m {M} does not divide --channels {channels}; expected a divisor.")
    if csv_path is not None:
        check_file(csv_path, "--csv")
    console, found, rows = Console(), provenance("cpu"), []
    console.print(", ".join(f"{key} {value}" for key, value in found.items()))
    shape = {"B": batch, "T": time_steps, "channels": channels, "repeats": repeats}
    sweep = [(M, dtype) for M in sizes for dtype in DTYPES]
    for M, dtype in track(sweep, description=f"timing {op.value}", console=console, transient=True):
        found_here = measure(op.value, batch, time_steps, channels // M, M, dtype, names, repeats)
        rows += [{"op": op.value, **shape, **row, **found} for row in found_here]
    table = start_table(op.value, names, f"over {names[0]}'s time: B={batch}, T={time_steps}, {channels} channels")
    for M, dtype in sweep:
        of = [row for row in rows if (row["m"], row["dtype"]) == (M, dtype)]
        for way, column in (("fwd", "forward_ratio"), ("fwd+bwd", "both_ratio")):
            table.add_row(f"m={M} {dtype} {way}", *(f"{row[column]:.2f}" for row in of))
    console.print(table)
    if csv_path is not None:
        pd.DataFrame(rows).to_csv(csv_path, index=False)


if __name__ == "__main__":
    typer.run(main)
