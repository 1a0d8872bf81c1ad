"""Times the parts of a training step of each mixer, as `benchmarks.compare` trains it.

    python -m benchmarks.ops.steps
    python -m benchmarks.ops.steps --task recall --mixers bdlru-m4,mamba2 --csv results/steps.csv

Mixers of equal parameters take turns, so that a busy machine slows all; medians over all steps. A time stands over the first
mixer's. `products` is the share of the operators' own time that matrix products take, the least that such a step costs.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from rich.console import Console

from benchmarks.ops import check_file
from benchmarks.records.machine import provenance
from benchmarks.records.tables import start_table

PARTS = ("data", "forward", "backward", "optimiser")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
WARM_UP = 2  # steps, in which kernels are compiled


@contextmanager
def _without_stderr() -> Iterator[None]:
    # the profiler's library tells there that it starts and stops
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class Training:
    """A cell's model, its optimiser and its batches: a step at a time, with the milliseconds of its parts."""

    def __init__(self, cell):
        from benchmarks.compare.train import batches, begin
        from benchmarks.tasks import get_task

        task = get_task(cell.task, cell.bos)
        self.model, self.optimizer, self.schedule = begin(cell, task)
        self.batches = batches(task, cell)

    def step(self) -> dict[str, float]:
        from benchmarks.compare.train import take_step

        times, since = {}, time.perf_counter()

        def mark(part: str) -> None:
            nonlocal since
            now = time.perf_counter()
            times[part], since = 1e3 * (now - since), now

        inputs, targets = next(self.batches)
        mark("data")
        take_step(self.model, self.optimizer, self.schedule, inputs, targets, mark)
        return times

    def share_of_products(self) -> float:
        activities = [torch.profiler.ProfilerActivity.CPU]
        with _without_stderr(), torch.profiler.profile(activities=activities, acc_events=True) as found:
            self.step()
        own = {event.key: event.self_cpu_time_total for event in found.key_averages()}
        return sum(own.get(name, 0.0) for name in PRODUCTS) / sum(own.values())


def measure(cells: dict, rounds: int, steps: int) -> list[dict]:
    """A row a mixer: milliseconds of a step and of its parts, and the share of matrix products."""
    trainings = {name: Training(replace(cell, steps=WARM_UP + rounds * steps + 1)) for name, cell in cells.items()}
    for training in trainings.values():
        for _ in range(WARM_UP):
            training.step()
    times = defaultdict(list)
    for _ in range(rounds):
        for name, training in trainings.items():
            times[name] += [training.step() for _ in range(steps)]
    rows = []
    for name, training in trainings.items():
        whole = statistics.median(sum(step.values()) for step in times[name])
        parts = {f"{part}_ms": statistics.median(step[part] for step in times[name]) for part in PARTS}
        rows.append({"mixer": name, "step_ms": whole, **parts, "products_share": training.share_of_products()})
    return [{**row, "ratio": row["step_ms"] / rows[0]["step_ms"]} for row in rows]


def main(
    task: Annotated[str, typer.Option(help="A task of benchmarks.compare.")] = "s3",
    mixers: Annotated[str, typer.Option(help="Comma list of mixers, as in benchmarks.compare, or all.")] = "all",
    preset: Annotated[str, typer.Option(help="Whose settings count; sequences are of its longest length.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each mixer.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Steps a turn.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    csv_path: Annotated[Path | None, typer.Option("--csv", help="Also write the rows here.")] = None,
) -> None:
    """Prints a table: a step of each mixer over the first one's, and the shares of its parts."""
    from benchmarks.compare.models import ALL_VARIANTS, quiet
    from benchmarks.compare.plan import plan
    from benchmarks.compare.presets import PRESETS, get_preset

    if preset not in PRESETS:
        raise typer.BadParameter(f"--preset {preset!r} is not known; expected one of {', '.join(PRESETS)}.")
    quiet()
    torch.set_num_threads(threads)
    names = ALL_VARIANTS if mixers == "all" else tuple(mixers.split(","))
    try:
        settings = get_preset(preset, task)
        settings = replace(settings, lengths=settings.lengths[-1:], lrs=settings.lrs[:1], seeds=(0,), curriculum="stages")
        planned, _ = plan(task, names, "params", None, settings, "cpu")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if csv_path is not None:
        check_file(csv_path, "--csv")
    cells = {one.cell.variant: one.cell for one in planned}
    console = Console()
    found = provenance("cpu")
    console.print(", ".join(f"{key} {value}" for key, value in found.items()))
    [shape] = {
        (cell.layers, cell.width, max(1, cell.tokens // cell.lengths[0]) if cell.tokens else cell.batch_size)
        for cell in cells.values()
    }
    rows = measure(cells, rounds, steps)
    title = (
        f"{task}: {shape[2]} sequences of {settings.lengths[0]}, {shape[0]} block(s) of width {shape[1]}, {threads} thread(s)"
    )
    table = start_table("mixer", [f"over {names[0]}", *PARTS, "products"], title)
    for row in rows:
        shares = [f"{row[f'{part}_ms'] / row['step_ms']:.0%}" for part in PARTS]
        table.add_row(row["mixer"], f"{row['ratio']:.2f}", *shares, f"{row['products_share']:.0%}")
    console.print(table)
    if csv_path is not None:
        pd.DataFrame([{"task": task, "preset": preset, "threads": threads, **row, **found} for row in rows]).to_csv(
            csv_path, index=False
        )


if __name__ == "__main__":
    typer.run(main)
