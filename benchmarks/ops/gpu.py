"""Times the kernels and layers on a GPU beside their peers, in one run: one command for the whole table.

    python -m benchmarks.ops.gpu                        # on a CUDA device; rows go to results/gpu.csv
    python -m benchmarks.ops.gpu --minutes 9            # stops in time; the same command goes on where it stopped
    python -m benchmarks.ops.gpu --contenders chunk,chunk_hgrn   # these alone
    python -m benchmarks.ops.gpu --rehearse             # tiny shapes on a CPU: that everything runs, no times worth reading
    python -m benchmarks.ops.plots results/gpu.csv      # the pictures

Ops are timed as CUDA graphs (device time), or launched one by one where a contender cannot be captured; inputs are built
outside. GB/s counts every input once and every output once, whatever a kernel really moves, and is shown as a fraction of
what a large copy reaches in the same run. Small shapes go round several sets of inputs, so that they are read from memory
and not from the L2 cache. Layers are timed as they are launched.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.compare.models import quiet
from benchmarks.ops.cases import MODES, Case, layer_shapes, op_cases, peer_cases, published_cases, rehearsal, scan_cases
from benchmarks.ops.layers import BUDGET, MIXERS, make_layer, matrix_products
from benchmarks.ops.peers import OURS, PEERS, SCANS, Contender
from benchmarks.records.machine import commit, now, versions
from benchmarks.records.store import ResultStore
from benchmarks.records.tables import start_table

WIDTH = 1024  # of the layers
QUANTILES = (0.5, 0.2, 0.8)
COLUMNS = (
    "key", "table", "contender", "op", "m", "B", "T", "channels", "dtype", "mode", "ms", "ms_p20", "ms_p80", "timer",
    "gb_per_s", "copy_fraction", "tokens_per_s", "params", "matmul_ms", "over_matmul", "note", "copy_gb_per_s", "device",
    "driver", "versions", "commit", "finished",
)  # fmt: skip


class Timer:
    """Median, 20% and 80% quantile of a function's time in milliseconds, on the device of this run."""

    def __init__(self, device: str):
        self.device = device

    def graph(self, function: Callable) -> tuple[tuple[float, float, float], str]:
        """Device time where the function can be captured."""
        if self.device != "cuda":
            return self.launched(function)
        from triton.testing import do_bench_cudagraph

        for _ in range(3):  # compiles and tunes, which a capture may not
            function()
        torch.cuda.synchronize()
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                return tuple(do_bench_cudagraph(function, rep=60, quantiles=QUANTILES)), "graph"
        except Exception:
            torch.cuda.synchronize()
            return self.launched(function)

    def launched(self, function: Callable) -> tuple[tuple[float, float, float], str]:
        if self.device != "cuda":
            function()
            start = time.perf_counter()
            function()
            return (1e3 * (time.perf_counter() - start),) * 3, "once"
        from triton.testing import do_bench

        return tuple(do_bench(function, warmup=25, rep=100, quantiles=QUANTILES)), "launched"

    def copy_gb_per_s(self) -> float:
        """Bytes read and written by a large copy."""
        x = torch.empty(2**30 if self.device == "cuda" else 2**20, dtype=torch.uint8, device=self.device)
        y = torch.empty_like(x)
        (ms, _, _), _ = self.graph(lambda: y.copy_(x))
        return 2 * x.numel() / ms / 1e6


def work(function: Callable, inputs: tuple[torch.Tensor, ...], mode: str) -> Callable[[], object]:
    """What is timed: the forward pass, or it and all gradients."""
    if mode == "fwd":
        return partial(torch.no_grad()(function), *inputs)
    outputs = function(*inputs)
    gradients = tuple(map(torch.randn_like, outputs if isinstance(outputs, tuple) else (outputs,)))
    return lambda: torch.autograd.grad(function(*inputs), inputs, gradients)


def sets(case: Case, device: str) -> int:
    """How many sets of inputs a measurement goes round, so that none is still in the L2 cache when its turn comes."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device == "cuda" else 0
    return max(1, -(-2 * cache // case.least_bytes("fwd")))


def op_rows(timer: Timer, copy: float, small: bool, done: Callable[[dict], bool]) -> Iterator[dict]:
    """Ours and the peers, length by length, so that a run that stops has compared what it has; then the associative scan."""
    plan: list[tuple[str, Callable[[Case, str], Contender], Case]] = []
    plan += [("chunk", OURS["chunk"], case) for case in published_cases()]
    for peer in peer_cases():
        plan += [("chunk", OURS["chunk"], case) for case in op_cases() if case.beside(peer)]
        plan += [(name, make, peer) for name, make in PEERS.items()]
    plan += [(name, make, case) for case in scan_cases() for name, make in SCANS.items()]
    plan += [("fused_recurrent", OURS["fused_recurrent"], case) for case in op_cases()[:5]]
    plan += [("chunk", OURS["chunk"], case) for case in op_cases() if ("chunk", OURS["chunk"], case) not in plan]
    for contender, make, case in plan:
        case = rehearsal(case) if small else case
        for mode in MODES:
            row = {"table": "op", "contender": contender, "mode": mode, **vars(case)}
            if contender in PEERS:
                row["op"] = row["m"] = ""
            if done(row):
                continue
            try:
                steps = [work(*make(case, timer.device), mode) for _ in range(sets(case, timer.device))]
                row |= timed(row, *timer.graph(lambda steps=steps: [step() for step in steps]), len(steps))
                if contender in OURS or contender in SCANS:
                    row["gb_per_s"] = case.least_bytes(mode) / row["ms"] / 1e6
                    row["copy_fraction"] = row["gb_per_s"] / copy
            except Exception as error:
                row["note"] = describe(error)
            free_memory(timer.device)
            yield row


def layer_rows(timer: Timer, small: bool, done: Callable[[dict], bool]) -> Iterator[dict]:
    """Layers of about 33M parameters, and what their matrix products alone take."""
    width, budget = (128, 40_000) if small else (WIDTH, BUDGET)
    dtype = torch.float32 if small else torch.bfloat16
    for B, T in layer_shapes():
        B, T = (1, 16) if small else (B, T)
        for name in MIXERS:
            row = {"table": "layer", "contender": name, "B": B, "T": T, "channels": width, "mode": "fwd+bwd"}
            row["dtype"] = str(dtype).removeprefix("torch.")
            if done(row):
                continue
            try:
                layer = make_layer(name, width, budget, timer.device).to(dtype)
                x = torch.randn(B, T, width, device=timer.device, dtype=dtype).requires_grad_()
                inputs = (x, *(p for p in layer.parameters() if p.requires_grad))
                step = work(lambda x, *_, layer=layer: layer(x)[0], inputs, "fwd+bwd")
                row |= timed(row, *timer.launched(step))
                row["params"] = sum(p.numel() for p in layer.parameters())
                del step, inputs
                function, pairs = matrix_products(layer, B, T, dtype)
                if pairs:
                    (row["matmul_ms"], _, _), _ = timer.launched(work(function, pairs, "fwd+bwd"))
                    row["over_matmul"] = row["ms"] / row["matmul_ms"]
            except Exception as error:
                row["note"] = describe(error)
            free_memory(timer.device)
            yield row


def timed(row: dict, times: tuple[float, float, float], timer: str, runs: int = 1) -> dict:
    """What a row says of the time of so many runs, one after the other."""
    ms, low, high = (time / runs for time in times)
    return {"ms": ms, "ms_p20": low, "ms_p80": high, "timer": timer, "tokens_per_s": 1e3 * row["B"] * row["T"] / ms}


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def free_memory(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def driver(device: str) -> str:
    """The NVIDIA driver's version, as the kernel module says it."""
    path = Path("/sys/module/nvidia/version")
    return path.read_text().strip() if device == "cuda" and path.exists() else ""


def identify(row: dict, context: dict) -> str:
    names = ("table", "contender", "op", "m", "B", "T", "channels", "dtype", "mode")
    return "/".join(str(row.get(name, "")) for name in names) + f"/{context['device']}/{context['commit']}"


def cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)


def show(console: Console, rows: list[dict]) -> None:
    """The rows of this run."""
    for name, columns in (
        ("op", ("contender", "op", "m", "B", "T", "channels", "dtype", "mode", "ms", "gb_per_s", "copy_fraction", "note")),
        ("layer", ("contender", "B", "T", "params", "ms", "tokens_per_s", "matmul_ms", "over_matmul", "note")),
    ):
        chosen = [row for row in rows if row["table"] == name]
        if chosen:
            table = start_table(columns[0], columns[1:], f"{name}s")
            for row in chosen:
                table.add_row(*(cell(row.get(column)) for column in columns))
            console.print(table)


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results; rows that are there are not measured again.")] = Path(
        "results"
    ),
    minutes: Annotated[float, typer.Option(min=0.1, help="Stop starting new rows after so long.")] = 240.0,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Tiny shapes on a CPU, into OUT/rehearsal.")] = False,
    only: Annotated[str, typer.Option(help="op, layer or all.")] = "all",
    contenders: Annotated[str, typer.Option(help="These alone, with commas between: chunk, chunk_hgrn, bdlru-m4, ...")] = "",
    commit_name: Annotated[str, typer.Option("--commit", help="The commit, where the code is not in a git checkout.")] = "",
) -> None:
    """Measures what is missing in OUT/gpu.csv, row by row, and prints the tables."""
    if only not in ("op", "layer", "all"):
        raise typer.BadParameter(f"only={only!r} is not known; expected op, layer or all.")
    named, known = tuple(filter(None, contenders.split(","))), (*OURS, *PEERS, *SCANS, *MIXERS)
    if unknown := sorted(set(named) - set(known)):
        raise typer.BadParameter(f"contenders={','.join(unknown)!r} is not known; expected some of {', '.join(known)}.")
    if not rehearse and not torch.cuda.is_available():
        raise typer.BadParameter("there is no CUDA device here; --rehearse runs tiny shapes on a CPU.")
    quiet()
    torch.manual_seed(0)
    console = Console(width=None if Console().is_terminal else 180)
    timer = Timer("cpu" if rehearse else "cuda")
    copy = timer.copy_gb_per_s()
    context = {
        "copy_gb_per_s": copy,
        "device": "cpu (rehearsal)" if rehearse else torch.cuda.get_device_name(),
        "driver": driver(timer.device),
        "versions": versions(),
        "commit": commit_name or commit(),
    }
    console.print(f"{context['device']}, {context['versions']}, commit {context['commit']}, copy {copy:,.0f} GB/s")
    stop, rows = time.monotonic() + 60 * minutes, []
    with ExitStack() as stack:
        try:
            store = stack.enter_context(ResultStore(out / "rehearsal" if rehearse else out, "gpu", COLUMNS))
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--out") from None

        def done(row: dict) -> bool:
            found = store.rows.get(identify(row, context))
            return found is not None or time.monotonic() > stop or (bool(named) and row["contender"] not in named)

        def all_rows() -> Iterator[dict]:
            if only != "layer":
                yield from op_rows(timer, copy, rehearse, done)
            if only != "op":
                yield from layer_rows(timer, rehearse, done)

        for row in all_rows():
            store.add({"key": identify(row, context), **row, **context, "finished": now()})
            rows.append(row)
            words = (row["contender"], row.get("op"), row.get("m"), row["B"], row["T"], row["mode"], row.get("note"))
            console.print(" ".join(str(x) for x in words if x not in (None, "")), cell(row.get("ms")), "ms", highlight=False)
        show(console, rows)
        console.print(f"{len(rows)} rows measured, {len(store.rows)} in {store.path}")
        if time.monotonic() > stop:
            console.print("Out of time: the same command goes on.")


if __name__ == "__main__":
    typer.run(main)
