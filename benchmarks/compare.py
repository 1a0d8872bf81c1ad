"""Compares mixers on one backbone: the same data, the same optimiser, matched in size.

Run it with `make compare` or `python -m benchmarks.compare --help`.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import warnings
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from benchmarks.models import Matched
    from benchmarks.train import Cell

# FLA says on import that there is no GPU; worker processes import this module first, too
warnings.filterwarnings("ignore", message="Triton is not supported on current platform")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
PACKAGES = ("torch", "triton", "flash-linear-attention", "transformers", "numba", "fla-bdlru")


@dataclass(frozen=True)
class Preset:
    """Settings that the command line may override."""

    width: int = 64
    layers: int = 1
    mlp_width: int = 128
    lengths: tuple[int, ...] = (4, 8, 16, 32)
    multiples: tuple[int, ...] = (1, 2, 4)
    batch_size: int = 64
    steps: int = 1200
    lrs: tuple[float, ...] = (3e-3,)
    weight_decay: float = 0.01
    seeds: tuple[int, ...] = (0,)
    train_examples: int = 0
    eval_examples: int = 512


# `paper`, recall: the settings of MAD, arXiv 2403.17844 (12,800 examples, 200 epochs of 100 steps)
STATE_TRACKING, RECALL = "state tracking", "recall"
PRESETS: dict[str, dict[str, Preset]] = {
    "quick": {
        STATE_TRACKING: Preset(),
        RECALL: Preset(lengths=(16, 32, 64), layers=2),
    },
    "paper": {
        STATE_TRACKING: Preset(
            width=128,
            mlp_width=256,
            lengths=(4, 8, 16, 32, 64),
            multiples=(1, 2, 4, 8),
            batch_size=128,
            steps=10_000,
            lrs=(1e-3, 3e-3),
            seeds=(0, 1, 2, 3, 4),
            eval_examples=1280,
        ),
        RECALL: Preset(
            width=128,
            layers=2,
            mlp_width=256,
            lengths=(128,),
            batch_size=128,
            steps=20_000,
            lrs=(5e-4,),
            seeds=(0, 1, 2, 3, 4),
            train_examples=12_800,
            eval_examples=1280,
        ),
    },
}


@dataclass(frozen=True)
class Planned:
    """A cell with what its row says about the mixer's size."""

    cell: Cell
    mixer_params: int
    state_size: int | None


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
        values = tuple(kind(part) for part in text.split(",") if part.strip())
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
    if not values or min(values) < 0 or len(set(values)) < len(values):
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


def plan(
    task: str, names: tuple[str, ...], match: str, budget: int | None, preset: Preset, device: str
) -> tuple[list[Planned], dict[str, Matched]]:
    r"""Lays out the grid: every mixer, learning rate and seed, with sizes settled.

    Args:
        task (str):
            Name of the task.
        names (tuple[str, ...]):
            Names of variants.
        match (str):
            `"params"` or `"state"`.
        budget (int, Optional):
            Parameters or state elements of one mixer layer. Default: the reference mixer's.
        preset (Preset):
            Everything else.
        device (str):
            Where a layer is run to measure its state.

    Returns:
        (list[Planned], dict[str, Matched]):
            The cells in the order they are run, and how each variant was matched.

    Raises:
        ValueError: if a mixer cannot be matched, or a length does not fit the task.
    """
    from benchmarks.models import VARIANTS, layer_params, layer_state, match_variant, quiet
    from benchmarks.tasks import get_task
    from benchmarks.train import Cell

    quiet()
    eval_lengths = tuple(k * max(preset.lengths) for k in preset.multiples)
    for length in (*preset.lengths, *eval_lengths):
        get_task(task).check_length(length)
    cells, matches = [], {}
    for name in names:
        matched = matches[name] = match_variant(name, match, preset.width, budget)
        mixer, growing = VARIANTS[name].mixer, VARIANTS[name].fixed
        mixer_params = preset.layers * layer_params(mixer, preset.width, matched.args)
        state = None if growing else preset.layers * layer_state(mixer, preset.width, matched.args, device)
        for lr in preset.lrs:
            for seed in preset.seeds:
                cell = Cell(
                    task=task,
                    variant=name,
                    mixer=mixer,
                    mixer_args=matched.args,
                    width=preset.width,
                    layers=preset.layers,
                    mlp_width=preset.mlp_width + matched.extra_mlp,
                    lengths=preset.lengths,
                    eval_lengths=eval_lengths,
                    batch_size=preset.batch_size,
                    steps=preset.steps,
                    lr=lr,
                    weight_decay=preset.weight_decay,
                    seed=seed,
                    train_examples=preset.train_examples,
                    eval_examples=preset.eval_examples,
                )
                cells.append(Planned(cell, mixer_params, state))
    return cells, matches


@cache
def _versions() -> str:
    found = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


@cache
def _commit() -> str:
    def git(*words: str) -> str:
        root = Path(__file__).resolve().parent
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


@cache
def _device_name(device: str) -> str:
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return f"cpu: {model}"


def make_row(planned: Planned, result: dict, device: str, threads: int) -> dict:
    """The row of a finished cell."""
    row = {
        "key": planned.cell.key,
        **planned.cell.describe(),
        "params": result["params"],
        "mixer_params": planned.mixer_params,
        "state_size": planned.state_size,
        "validation_token_accuracy": f"{result['validation']:.6f}",
        "train_loss": f"{result['train_loss']:.6g}",
        "diverged": result["diverged"],
        "seconds": f"{result['seconds']:.2f}",
        "device": _device_name(device),
        "threads": threads,
        "versions": _versions(),
        "commit": _commit(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    longest = max(planned.cell.lengths)
    for length, scores in zip(planned.cell.eval_lengths, result["scores"]):
        for name, value in scores.items():
            row[f"{name}_{length // longest}x"] = f"{value:.6f}"
    return row


def _summary(cell: Cell, result: dict) -> str:
    scores = ", ".join(f"{s['token_accuracy']:.3f} @{n}" for n, s in zip(cell.eval_lengths, result["scores"]))
    return f"token accuracy {scores} ({result['seconds']:.0f} s)" + (", DIVERGED" if result["diverged"] else "")


@app.command(help=__doc__)
def main(
    task: Annotated[str, typer.Option(help="s2, s3, s4, s5 (permutation composition), parity or recall.")] = "s3",
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
    from dataclasses import replace

    console = Console(width=None if sys.stdout.isatty() else 160)
    from benchmarks.tasks import TASKS

    for option, value, known in (
        ("--task", task, tuple(TASKS)),
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
        PRESETS[preset][RECALL if task == "recall" else STATE_TRACKING],
        **{name: value for name, value in chosen.items() if value is not None},
    )
    if settings.steps < len(settings.lengths):
        _fail("--steps", f"{settings.steps} is not accepted; expected at least one per length {settings.lengths}.")
    device = _device(device)
    workers = workers or (1 if device == "cuda" else max(1, (os.cpu_count() or 1) // threads))
    raise typer.Exit(_compare(console, task, names, match, budget, settings, device, workers, threads, out, rerun))


def _compare(console, task, names, match, budget, settings, device, workers, threads, out, rerun) -> int:
    from benchmarks.results import ResultStore
    from benchmarks.runner import Interrupted, WorkerDied, run_cells

    try:
        grid, matches = plan(task, names, match, budget, settings, device)
    except ValueError as error:
        console.print(f"[bold red]Error:[/] {error}", highlight=False)
        return 2
    planned = {p.cell.key: p for p in grid}
    try:
        with ResultStore(out) as store:
            for number in store.dropped:
                console.print(f"{store.path}: line {number} is incomplete; its run is done again.", highlight=False)
            todo = [p.cell for p in grid if rerun or p.cell.key not in store.rows]
            _announce(console, store, task, match, settings, grid, todo, workers, threads)

            def finished(cell: Cell, result: dict) -> str:
                store.add(make_row(planned[cell.key], result, device, threads), result["curve"])
                return _summary(cell, result)

            failures, code, stopped = {}, 0, ""
            try:
                failures = run_cells(todo, finished, device, workers, threads, console)
            except Interrupted:
                code, stopped = 130, "Stopped."
            except WorkerDied:
                code, stopped = 1, "A worker process died (out of memory?); fewer --workers may help."
            done = [store.rows[key] for key in planned if key in store.rows]
            if stopped:
                console.print(f"{stopped} {len(done)} of {len(grid)} runs are kept in {store.path}.", highlight=False)
                console.print("The same command goes on from there.")
                return code
            if done:
                _show(console, store, task, done, matches)
            for key, failure in failures.items():
                path = store.folder / f"error-{key}.txt"
                path.write_text(failure["traceback"])
                console.print(f"[red]failed:[/] {planned[key].cell.title}: {failure['error']} (see {path})", highlight=False)
            return 1 if failures else 0
    except ValueError as error:
        console.print(f"[bold red]Error:[/] {error}", highlight=False)
        return 2


def _announce(console, store, task, match, settings, grid, todo, workers, threads) -> None:
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
    old = {store.rows[p.cell.key]["commit"] for p in grid if p.cell not in todo} - {_commit()}
    if old:
        console.print(f"note: some were made by another version of the code ({', '.join(old)}); --rerun does them again")


def _show(console, store, task, rows, matches) -> None:
    from benchmarks.report import draw, make_table, summarise

    lines = summarise(rows)
    first = rows[0]
    title = (
        f"{task}: trained up to length {lines[0].lengths[0]}, {int(first['steps']):,} steps, width {first['width']}, "
        f"{first['layers']} block(s)"
    )
    console.print(make_table(lines, title))
    for name, matched in matches.items():
        if matched.note:
            console.print(f"{name}: {matched.note}.", highlight=False)
    for line in lines:
        if line.diverged:
            console.print(f"{line.variant}: {line.diverged} of {line.seeds} runs had a loss that was not finite.")
    picture = store.folder / f"compare-{task}.png"
    draw(lines, task, title, picture)
    console.print(f"rows: {store.path}\ncurves: {store.folder / 'curves'}\npicture: {picture}", highlight=False)


if __name__ == "__main__":
    app()
