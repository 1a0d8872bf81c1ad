"""Runs a study, goes on where it stopped, and draws its figure and its table from what is there.

python -m benchmarks.studies law --status
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from benchmarks import run_command

if TYPE_CHECKING:
    from benchmarks.compare.plan import Planned
    from benchmarks.lm.train import Run
    from benchmarks.records.store import ResultStore

warnings.filterwarnings("ignore", message="Triton is not supported on current platform")

FOLDER = Path(__file__).parent
# by study, the folder of benchmarks/results with its stored rows
STORED = {"state_tracking": "tracking", "law": "tracking", "mad": "mad", "lm": "lm"}
HOUR = 3600

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"{', '.join(STORED)}; benchmarks/studies has their grids.")],
    status: Annotated[bool, typer.Option("--status", help="Say what is done, what is left and how long it takes.")] = False,
    only: Annotated[str | None, typer.Option(metavar="quick", help="quick: its first part, run here, in minutes.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at once. Default: one per core.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder for new rows, figure and table. Default: results/<name>, or -quick.")
    ] = None,
) -> None:
    if name not in STORED:
        raise typer.BadParameter(f"{name!r} is not known; expected one of {', '.join(STORED)}.", param_hint="NAME")
    if only not in (None, "quick"):
        raise typer.BadParameter(f"{only!r} is not known; expected quick.", param_hint="--only")
    title = name + (f"-{only}" if only else "")
    grid, out = FOLDER / f"{title}.toml", out or Path("results") / title
    # what others have run does not show that it runs here
    stored = FOLDER.parent / "results" / STORED[name] if only is None else None
    is_lm = name == "lm"
    if is_lm and workers not in (None, 1):
        raise typer.BadParameter(f"{workers} is not accepted with lm: one runs at a time; expected 1.", param_hint="--workers")
    console = Console(width=None if sys.stdout.isatty() else 160 if is_lm else 100, highlight=False)
    try:
        code = (_language_models if is_lm else _comparison)(console, name, grid, stored, out, status, workers, device)
    except (UnusableError, OSError) as error:
        from benchmarks.records.store import unwritten

        words = unwritten(error) if isinstance(error, OSError) else error
        console.print(f"Error: {words}", markup=False, style="red", soft_wrap=True)
        code = 2
    raise typer.Exit(code)


class UnusableError(ValueError):
    """A folder of results that cannot be read, or is another run's."""


def _comparison(console: Console, name: str, grid: Path, stored: Path | None, out: Path, status, workers, device) -> int:
    from benchmarks.compare import __main__ as comparison
    from benchmarks.compare.models import quiet
    from benchmarks.compare.plan import merge, narrow, plan
    from benchmarks.compare.settings import lay_out, read_grid
    from benchmarks.records.store import ResultStore, read_folder, write_file
    from benchmarks.records.style import keep_picture
    from benchmarks.studies.figures import FIGURES

    quiet()
    device = comparison._device(device, None)
    workers = comparison._fit_workers(console, workers, 1, device, False)
    parts = lay_out({}, *read_grid(grid))
    planned = merge([plan(p.task, p.mixers, p.match, p.budget, p.settings, device)[0] for p in parts])
    folders = [folder for folder in (stored, out) if folder is not None]
    with _usable():
        rows = {key: row for folder in folders for key, row in read_folder(folder, needed=False).items() if key in planned}
    if status:
        known, later = narrow(planned, rows)
        rows = {key: row for key, row in rows.items() if key in known}
        _say_status(console, name, [*known.values(), *later], rows, workers)
        return 0
    _carry_over(rows, stored, ResultStore(out))
    code = comparison._compare(console, parts, comparison.Workers(device, workers, 1, None), out, False, False)
    rows = [row for key, row in read_folder(out, needed=False).items() if key in planned]
    if rows:
        figure, say = FIGURES[name](rows), partial(console.print, markup=False, soft_wrap=True)
        keep_picture(out / f"{name}.png", figure.draw, say)
        write_file(out / f"{name}.md", figure.table().encode())
        say(f"table: {out / name}.md")
    return code


@contextmanager
def _usable() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise UnusableError(str(error)) from None


def _carry_over(rows: dict[str, dict], stored: Path | None, store: ResultStore) -> None:
    # with their curves, where these are kept
    from benchmarks.records.store import write_file

    with _usable(), store:
        for key, row in rows.items():
            curve = Path("curves", f"{key}.csv")
            if stored is not None and (stored / curve).exists() and not (store.folder / curve).exists():
                write_file(store.folder / curve, (stored / curve).read_bytes())
            if key not in store.rows:
                store.add(row)


def _say_status(console: Console, name: str, planned: list[Planned], rows: dict[str, dict], workers: int) -> None:
    import pandas as pd

    from benchmarks.records.tables import start_table

    stored = list(rows.values())
    runs = pd.DataFrame(
        [(p.cell.task, done := p.cell.key in rows, 0 if done else _seconds(p, stored) or 0) for p in planned],
        columns=["task", "done", "left"],
    )
    table = start_table("task", ("runs", "done", "left", "hours left"), f"{name}: {len(planned)} runs")
    for task, of in runs.groupby("task", sort=False):
        done = of["done"].sum()
        table.add_row(task, *map(str, (len(of), done, len(of) - done)), f"{of['left'].sum() / HOUR:.1f}")
    console.print(table)
    missing = len(planned) - len(rows)
    if not rows:
        console.print("Nothing has run yet, so how long it takes is not known.")
    elif missing:
        hours = runs["left"].sum() / HOUR / workers
        console.print(
            f"{len(rows)} done, {missing} left: about {hours:.1f} h with {workers} worker(s), by the seconds in the rows (a "
            "mixer that has none is taken to cost as much as the others)."
        )
    else:
        console.print("All of it is done; the same command without --status draws it.")


def _seconds(planned: Planned, rows: list[dict]) -> float | None:
    """Seconds of a run, by the rows of its mixer, or of all; per step, as rows may have fewer."""
    cell = planned.cell
    alike = [row for row in rows if (row["variant"], row["layers"]) == (cell.variant, cell.layers)] or rows
    per_step = [row["seconds"] / (row["steps_done"] or row["steps"]) for row in alike]
    return cell.steps * median(per_step) if alike else None


def _language_models(console: Console, name: str, grid: Path, stored: Path | None, out: Path, status, workers, device) -> int:
    from benchmarks.lm.__main__ import compare_models
    from benchmarks.lm.report import COLUMNS, CURVE_COLUMNS
    from benchmarks.lm.settings import load_settings
    from benchmarks.records.store import ResultStore, read_rows, write_file
    from benchmarks.report.documents import language_models

    rows = {}
    with _usable():
        for path in (folder / "lm.csv" for folder in (stored, out) if folder is not None):
            rows |= read_rows(path, COLUMNS)[0] if path.exists() else {}
    planned = _model_runs(grid)
    if status:
        seconds: dict[str, list[float]] = {}
        for row in rows.values():
            seconds.setdefault(row["name"], []).append(row["seconds"])
        usual = median(time for of in seconds.values() for time in of) if rows else 0
        left = [median(seconds.get(run.entry.name, [usual])) for run in planned if run.key not in rows]
        time = f": about {sum(left) / HOUR:.1f} h, one at a time" if rows else "; how long it takes is not known yet"
        console.print(f"{name}: {len(planned) - len(left)} of {len(planned)} runs done, {len(left)} left{time}.")
        return 0
    keys = [run.key for run in planned]
    _carry_over({key: rows[key] for key in keys if key in rows}, stored, ResultStore(out, "lm", COLUMNS, CURVE_COLUMNS))
    code = compare_models(console, partial(load_settings, str(grid)), device, out, name)
    with _usable():
        rows = read_rows(out / "lm.csv", COLUMNS)[0] if (out / "lm.csv").exists() else {}
        if done := [rows[key] for key in keys if key in rows]:
            write_file(out / f"{name}.md", language_models(done).encode())
            console.print(f"table: {out / name}.md", markup=False)
    return code


def _model_runs(grid: Path) -> list[Run]:
    # with the keys that they get where they are run: the text that this Python has counts
    from benchmarks.compare.models import quiet
    from benchmarks.lm.models import settle
    from benchmarks.lm.plan import make_runs, prepare_corpus
    from benchmarks.lm.settings import load_settings

    quiet()
    settings = settle(load_settings(str(grid)))
    with TemporaryDirectory() as folder:
        return make_runs(settings, prepare_corpus(settings, Path(folder), lambda line: None), 1)


if __name__ == "__main__":
    run_command(app)
