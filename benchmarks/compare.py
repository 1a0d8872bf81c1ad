"""Compares mixers on one backbone: the same data, the same optimiser, matched in size.

Run it with `make compare` or `python -m benchmarks.compare --help`.
"""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from benchmarks.presets import PRESETS, get_preset

if TYPE_CHECKING:
    from benchmarks.train import Cell

# FLA says on import that there is no GPU; worker processes import this module first, too
warnings.filterwarnings("ignore", message="Triton is not supported on current platform")

# written out, as benchmarks.tasks imports torch
TASK_NAMES = (
    "s2, s3, s4, s5, a5 (permutation groups), z2, z3, z5, z60 or any z<n> (cyclic groups), parity, even_pairs, "
    "cycle_navigation, modular_arithmetic, modular_arithmetic_brackets, recall, noisy_recall, fuzzy_recall, memorization, "
    "selective_copying, compression"
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _fail(option: str, message: str) -> None:
    raise typer.BadParameter(message, param_hint=option)


def _count(text: str) -> int:
    # typer calls it with what the user typed
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise typer.BadParameter(f"{text!r} is not accepted; expected a whole number greater than 0.")
    return value


def _numbers(option: str, text: str, kind: type, accepted: str) -> tuple:
    try:
        values = tuple(dict.fromkeys(kind(part) for part in text.split(",") if part.strip()))
    except ValueError:
        values = ()
    if not values:
        _fail(option, f"{text!r} is not accepted; expected {accepted}.")
    return values


def _parse_seeds(text: str) -> tuple[int, ...]:
    accepted = "a count (3 means 0,1,2) or a list of numbers from 0 on (0,7 or 7,)"
    values = _numbers("--seeds", text, int, accepted)
    if "," not in text:
        values = tuple(range(values[0]))
    if not values or min(values) < 0:
        _fail("--seeds", f"{text!r} is not accepted; expected {accepted}.")
    return values


def _parse_mixers(text: str | None) -> tuple[str, ...]:
    from benchmarks.models import DEFAULT_VARIANTS, get_variant

    names = DEFAULT_VARIANTS if text is None else tuple(name.strip() for name in text.split(",") if name.strip())
    if not names or len(set(names)) < len(names):
        _fail("--mixers", f"{text!r} is not accepted; expected different names, separated by commas.")
    for name in names:
        try:
            get_variant(name)
        except ValueError as error:
            _fail("--mixers", str(error))
    return names


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        _fail("--device", "'cuda' is not there: torch sees no GPU; expected 'auto' or 'cpu'.")
    return name


def _summary(cell: Cell, result: dict) -> str:
    scores = ", ".join(f"{s['token_accuracy']:.3f} @{n}" for n, s in zip(cell.eval_lengths, result["scores"]))
    return f"token accuracy {scores} ({result['seconds']:.0f} s)" + (", DIVERGED" if result["diverged"] else "")


@app.command(help=__doc__)
def main(
    task: Annotated[str, typer.Option(help=f"{TASK_NAMES}; benchmarks/README.md says what they are.")] = "s3",
    mixers: Annotated[str | None, typer.Option(help="Comma list; a wrong name prints all. Default: 14 of them.")] = None,
    seeds: Annotated[str | None, typer.Option(help="A count (3 means 0,1,2) or a list (0,7).")] = None,
    match: Annotated[str, typer.Option(help="What is made equal: params or state.")] = "params",
    budget: Annotated[
        int | None, typer.Option(parser=_count, metavar="INTEGER", help="Size of one mixer layer. Default: that of bdlru-m4.")
    ] = None,
    preset: Annotated[str, typer.Option(help="quick (minutes on two cores) or paper (long).")] = "quick",
    steps: Annotated[int | None, typer.Option(parser=_count, metavar="INTEGER", help="Optimiser steps.")] = None,
    width: Annotated[
        int | None, typer.Option(parser=_count, metavar="INTEGER", help="Width of the model, a multiple of 8.")
    ] = None,
    layers: Annotated[int | None, typer.Option(parser=_count, metavar="INTEGER", help="Number of blocks.")] = None,
    lr: Annotated[
        str | None, typer.Option(help="Peak learning rate; of a comma list, each mixer's best on validation is shown.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(parser=_count, metavar="INTEGER", help="Processes. Default: one per core; one on a GPU.")
    ] = None,
    threads: Annotated[int, typer.Option(parser=_count, metavar="INTEGER", help="Threads of each process.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for results; runs that are there are not done again.")] = Path("results"),
    rerun: Annotated[bool, typer.Option("--rerun", help="Do runs again that are there already.")] = False,
) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    from benchmarks.tasks import get_task

    try:
        get_task(task)
    except ValueError as error:
        _fail("--task", str(error))
    for option, value, known in (
        ("--match", match, ("params", "state")),
        ("--preset", preset, tuple(PRESETS)),
        ("--device", device, ("auto", "cpu", "cuda")),
    ):
        if value not in known:
            _fail(option, f"{value!r} is not known; expected one of {', '.join(known)}.")
    if width is not None and (width < 8 or width % 8):
        _fail("--width", f"{width} is not accepted; expected a positive multiple of 8.")
    lrs = None if lr is None else _numbers("--lr", lr, float, "a number such as 3e-3, or several separated by commas")
    for value in lrs or ():
        if not 0 < value < float("inf"):
            _fail("--lr", f"{value:g} is not accepted; expected numbers greater than 0.")
    names = _parse_mixers(mixers)
    chosen = {"steps": steps, "width": width, "layers": layers, "lrs": lrs, "seeds": seeds and _parse_seeds(seeds)}
    if width is not None:
        chosen["mlp_width"] = 2 * width
    settings = replace(
        get_preset(preset, task),
        **{name: value for name, value in chosen.items() if value is not None},
    )
    if settings.steps < len(settings.lengths):
        _fail("--steps", f"{settings.steps} is not accepted; expected at least one per length {settings.lengths}.")
    device = _device(device)
    workers = workers or (1 if device == "cuda" else max(1, (os.cpu_count() or 1) // threads))
    raise typer.Exit(_compare(console, task, names, match, budget, settings, device, workers, threads, out, rerun))


def _compare(console, task, names, match, budget, settings, device, workers, threads, out, rerun) -> int:
    from benchmarks.grid import make_row, plan
    from benchmarks.models import quiet
    from benchmarks.runner import Interrupted, WorkerDied, run_cells
    from benchmarks.store import ResultStore

    quiet()
    with ExitStack() as stack:
        try:
            grid, matches = plan(task, names, match, budget, settings, device)
            store = stack.enter_context(ResultStore(out))
        except ValueError as error:
            console.print(f"[bold red]Error:[/] {error}", highlight=False)
            return 2
        planned = {p.cell.key: p for p in grid}
        todo = [p.cell for p in grid if rerun or p.cell.key not in store.rows]
        _announce(console, store, task, match, settings, grid, todo, workers, threads)

        def finished(cell: Cell, result: dict) -> str:
            store.add(make_row(planned[cell.key], result, device, threads), result["curve"])
            return _summary(cell, result)

        try:
            failures = run_cells(todo, finished, device, workers, threads, console)
        except Interrupted:
            return _stopped(console, store, planned, "Stopped.", 130)
        except WorkerDied:
            return _stopped(console, store, planned, "A worker died (out of memory? --workers 1 needs less).", 1)
        rows = [store.rows[key] for key in planned if key in store.rows]
        if rows:
            _show(console, store, task, match, rows, matches)
        for key, failure in failures.items():
            path = store.folder / f"error-{key}.txt"
            path.write_text(failure["traceback"])
            console.print(f"[red]failed:[/] {planned[key].cell.title}: {failure['error']} (see {path})", highlight=False)
        return 1 if failures else 0


def _stopped(console, store, planned, reason: str, code: int) -> int:
    done = sum(key in store.rows for key in planned)
    console.print(f"{reason} {done} of {len(planned)} runs are kept in {store.path}.", highlight=False)
    console.print("The same command goes on from there.")
    return code


def _announce(console, store, task, match, settings, grid, todo, workers, threads) -> None:
    from benchmarks.grid import commit

    for number in store.dropped:
        console.print(f"{store.path}: line {number} is incomplete; its run is done again.", highlight=False)
    lengths = "/".join(map(str, settings.lengths))
    console.print(
        f"task {task}, matched by {match}: {settings.layers} block(s) of width {settings.width}, {settings.steps:,} steps "
        f"of {settings.batch_size} sequences, lengths {lengths}, AdamW lr {'/'.join(f'{x:g}' for x in settings.lrs)}",
        highlight=False,
    )
    console.print(
        f"{len(grid)} runs, {len(grid) - len(todo)} of them in {store.path} already; "
        f"{workers} worker(s) of {threads} thread(s)",
        highlight=False,
    )
    old = {store.rows[p.cell.key]["commit"] for p in grid if p.cell not in todo} - {commit()}
    if old:
        console.print(f"note: some were made by another version of the code ({', '.join(old)}); --rerun does them again")


def _show(console, store, task, match, rows, matches) -> None:
    from benchmarks.plots import draw
    from benchmarks.summary import summarise
    from benchmarks.tables import make_table

    lines = summarise(rows)
    first = rows[0]
    title = (
        f"{task}: trained up to length {lines[0].lengths[0]}, {int(first['steps']):,} steps, width {first['width']}, "
        f"{first['layers']} block(s), matched by {match}"
    )
    console.print(make_table(lines, title, console.width))
    for name, matched in matches.items():
        if matched.note:
            console.print(f"{name}: {matched.note}.", highlight=False)
    for line in lines:
        if line.diverged:
            console.print(f"{line.variant}: {line.diverged} of {line.seeds} runs had a loss that was not finite.")
    picture = store.folder / f"compare-{task}-{match}.png"
    draw(lines, task, title, picture)
    console.print(f"rows: {store.path}\ncurves: {store.folder / 'curves'}\npicture: {picture}", highlight=False)


if __name__ == "__main__":
    app()
