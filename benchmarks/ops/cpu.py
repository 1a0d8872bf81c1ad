"""Times the native CPU path, in one run: the op against the associative scan, the layer against torch.nn.LSTM.

    python -m benchmarks.ops.cpu
    python -m benchmarks.ops.cpu --op bdlru --op hlru --m 1 --m 4 --dtype bfloat16 --csv results/cpu.csv
    python -m benchmarks.ops.cpu --roofline -T 2048 -H 256     # how near to a copy of memory the op runs

Like is compared with like. Ops have no projections. Layers have theirs: ours, of width w (`--width`) and a state of w values,
and `nn.LSTM(w, w)`; ours stands over its own matrix products too. Contenders take turns, so that a busy machine slows all, and
medians are reported. The scan and the layers run in float32 whatever `--dtype` says: on a CPU that is their fastest type.
"""

from __future__ import annotations

import statistics
import time
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.ops import check_file
from benchmarks.ops.roofline import COLUMNS, keep_memory, make_inputs, measure_roofline
from benchmarks.ops.scan import scan_bdlru, scan_hlru
from benchmarks.records.machine import provenance
from benchmarks.records.tables import start_table


class Op(str, Enum):
    """The recurrence to time; typer takes a list of nothing else."""

    bdlru = "bdlru"
    hlru = "hlru"


OPS = {  # columns of the two tables; times are milliseconds
    "m": "m",
    "forward_ms": "fwd",
    "ours_ms": "fwd+bwd",
    "scan_ms": "scan",
    "scan_ratio": "scan/ours",
    "error": "error",
}
LAYERS = {
    "m": "m",
    "layer_ms": "ours",
    "lstm_ms": "LSTM",
    "lstm_ratio": "LSTM/ours",
    "products_ratio": "ours/products",
    "layer_params": "parameters",
    "lstm_params": "LSTM's",
}


def forward_backward(function, inputs, do):
    """One forward and backward pass; gradients are fresh memory, as in a training step."""
    o = function(*inputs)
    return o, *torch.autograd.grad(o, inputs, do)


def _milliseconds(function, clock) -> float:
    start = clock()
    function()
    return 1e3 * (clock() - start)


def _error(got, exact) -> float:
    """The largest error of outputs and gradients, each against the largest exact value."""
    return max(((x.double() - y).abs().max() / y.abs().max()).item() for x, y in zip(got, exact))


def medians(contenders, repeats: int, clock=time.perf_counter) -> list[float]:
    """Milliseconds of each, which take turns; the first calls, which compile, are not counted."""
    for function in contenders:
        function()
    times = [[_milliseconds(function, clock) for function in contenders] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*times)]


def measure_op(op: str, B: int, T: int, H: int, M: int, dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """Our op and the associative scan: medians in milliseconds, their ratio, and errors against float64."""
    from fla_bdlru.ops import chunk_bdlru, chunk_hlru, naive_recurrent_bdlru, naive_recurrent_hlru

    native, scan, naive = {
        "bdlru": (chunk_bdlru, scan_bdlru, naive_recurrent_bdlru),
        "hlru": (chunk_hlru, scan_hlru, naive_recurrent_hlru),
    }[op]
    torch.manual_seed(0)
    v, g, do = (x.to(dtype) for x in make_inputs(op, B, T, H, M))
    ours = partial(forward_backward, lambda v, g: native(v, g)[0], (v.requires_grad_(), g.requires_grad_()), do)
    # the scan gets the layout that suits it: matrices last
    leaves = tuple(x.detach().float().contiguous().requires_grad_() for x in (v, g))
    theirs = partial(forward_backward, scan, leaves, do.float().contiguous())
    exact = forward_backward(
        lambda v, g: naive(v, g)[0], tuple(x.detach().double().requires_grad_() for x in leaves), do.double()
    )

    def forward():
        with torch.no_grad():
            native(v, g)

    errors = _error(ours(), exact), _error(theirs(), exact)
    forward_ms, ours_ms, scan_ms = medians((forward, ours, theirs), repeats)
    return {
        "forward_ms": forward_ms, "ours_ms": ours_ms, "scan_ms": scan_ms, "scan_ratio": scan_ms / ours_ms,
        "error": errors[0], "scan_error": errors[1],
    }  # fmt: skip


def measure_layer(op: str, B: int, T: int, width: int, M: int, repeats: int) -> dict[str, float]:
    """Our layer, its matrix products alone, and an LSTM of its width and state: forward and backward in float32."""
    from benchmarks.ops.layers import matrix_products
    from fla_bdlru.layers import BDLRU, HLRU

    torch.manual_seed(0)
    layer = BDLRU(width, block_size=M) if op == "bdlru" else HLRU(width, order=M, num_channels=width // M)
    lstm = torch.nn.LSTM(width, width, batch_first=True)
    products, pairs = matrix_products(layer, B, T, torch.float32)
    gradients = tuple(torch.randn_like(y) for y in products(*pairs))
    x, do = torch.randn(B, T, width, requires_grad=True), torch.randn(B, T, width)
    layer_ms, products_ms, lstm_ms = medians(
        (
            partial(forward_backward, lambda x, *_: layer(x)[0], (x, *layer.parameters()), do),
            partial(forward_backward, products, pairs, gradients),
            partial(forward_backward, lambda x, *_: lstm(x)[0], (x, *lstm.parameters()), do),
        ),
        repeats,
    )
    return {
        "width": width, "state": layer.state_size(), "layer_ms": layer_ms, "products_ms": products_ms, "lstm_ms": lstm_ms,
        "lstm_ratio": lstm_ms / layer_ms, "products_ratio": layer_ms / products_ms,
        "layer_params": sum(p.numel() for p in layer.parameters()), "lstm_params": sum(p.numel() for p in lstm.parameters()),
    }  # fmt: skip


def _cell(key: str, value: float | int) -> str:
    if "error" in key:
        return f"{value:.1e}"
    if "share" in key:
        return f"{value:.0%}"
    if "ratio" in key:
        return f"{value:.1f}x"
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}"


def _table(title: str, columns: dict[str, str], rows: list[dict]) -> Table:
    first, *others = columns.values()
    table = start_table(first, others, title)
    for row in rows:
        table.add_row(*(_cell(key, row[key]) for key in columns))
    return table


def main(
    op: Annotated[list[Op] | None, typer.Option(help="Which recurrence; may be repeated. Default: bdlru.")] = None,
    batch: Annotated[int, typer.Option("--batch", "-B", min=1, help="Sequences.")] = 4,
    time_steps: Annotated[int, typer.Option("--time", "-T", min=1, help="Steps of a sequence.")] = 1024,
    heads: Annotated[int, typer.Option("--heads", "-H", min=1, help="Blocks of the op (H-LRU: channels).")] = 32,
    width: Annotated[int, typer.Option(min=1, help="Width and state of the layers.")] = 256,
    m: Annotated[list[int] | None, typer.Option(min=1, help="Block size or order; may be repeated.")] = None,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Type of the op's inputs.")] = "float32",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds, each with every contender once.")] = 15,
    roofline: Annotated[bool, typer.Option(help="Shares of a copy's bandwidth instead.")] = False,
    csv_path: Annotated[Path | None, typer.Option("--csv", help="Also write the rows here.")] = None,
) -> None:
    """Prints two tables: our op and the associative scan, our layer and torch.nn.LSTM; or one, of the op beside a copy."""
    sizes = m or ([1, 2, 4, 8] if roofline else [2, 4, 8])
    for M in sizes:
        if width % M and not roofline:
            raise typer.BadParameter(f"--m {M} does not divide --width {width}; expected a divisor, so that states are equal.")
    if csv_path is not None:
        check_file(csv_path, "--csv")
    console = Console()
    found = provenance("cpu")
    console.print(", ".join(f"{key} {value}" for key, value in found.items()))
    shape = {"B": batch, "T": time_steps, "H": heads, "dtype": dtype, "repeats": repeats}
    size, rows = f"B={batch}, T={time_steps}", []
    if roofline:
        keep_memory()
        del shape["dtype"]
    for name in [one.value for one in op or [Op.bdlru]]:
        own = []
        for M in track(sizes, description=f"timing {name}", console=console, transient=True):
            if roofline:
                times = measure_roofline(name, batch, time_steps, heads, M, repeats)
            else:
                times = measure_op(name, batch, time_steps, heads, M, getattr(torch, dtype), repeats)
                times |= measure_layer(name, batch, time_steps, width, M, repeats)
            own.append({"op": name, **shape, "m": M, **times, **found})
        rows += own
        if roofline:
            title = f"{name}: {size}, H={heads}, least bytes over time, of what a copy moves"
            console.print(_table(title, COLUMNS, own))
            continue
        console.print(_table(f"{name}, the op alone: {size}, H={heads}, {dtype}; ms; scan: fwd+bwd", OPS, own))
        title = f"{name}, whole layers: {size}, width and state {width}, float32; ms, fwd+bwd"
        console.print(_table(title, LAYERS, own))
    if csv_path is not None:
        pd.DataFrame(rows).to_csv(csv_path, index=False)


if __name__ == "__main__":
    typer.run(main)
