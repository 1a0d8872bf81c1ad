"""Runs a study, goes on where it stopped, and draws its figure and its table from what is there.

python -m benchmarks.studies law --status
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from benchmarks import run_command

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.compare.plan import Planned
    from benchmarks.lm.train import Run
    from benchmarks.records.store import ResultStore

warnings.filterwarnings("ignore", message="Triton is not supported on current platform")

FOLDER = Path(__file__).parent
QUICK = "quick"  # the part of a study that is run here, whatever is stored
# by study, the folder of benchmarks/results with its stored rows; those of a part lie in <folder>-<part>
STORED = {"state_tracking": "tracking", "law": "tracking", "mad": "mad", "lm": "lm"}
HOUR = 3600

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help=__doc__)
def main(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"{', '.join(STORED)}; benchmarks/studies has their grids.")],
    status: Annotated[bool, typer.Option("--status", help="Say what is done, what is left and how long it takes.")] = False,
    only: Annotated[
        str | None,
        typer.Option(metavar="PART", help="quick: run here, in minutes; else a part that --status names, <NAME>-<PART>.toml."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at once. Default: one per core.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder for new rows, figure and table. Default: results/<NAME>, or <NAME>-<PART>.")
    ] = None,
) -> None:
    if name not in STORED:
        raise typer.BadParameter(f"{name!r} is not known; expected one of {', '.join(STORED)}.", param_hint="NAME")
    if only not in (None, *(known := _parts(name))):
        expected = f"one of {', '.join(known)}" if known[1:] else QUICK
        raise typer.BadParameter(f"{only!r} is not known; expected {expected}.", param_hint="--only")
    study = Study(name, only)
    out = out or study.out
    is_lm = name == "lm"
    if is_lm and workers not in (None, 1):
        raise typer.BadParameter(f"{workers} is not accepted with lm: one runs at a time; expected 1.", param_hint="--workers")
    console = Console(width=None if sys.stdout.isatty() else 160 if is_lm else 100, highlight=False)
    try:
        code = (_language_models if is_lm else _comparison)(console, study, out, status, workers, device)
    except (UnusableError, OSError) as error:
        from benchmarks.records.store import unwritten

        words = unwritten(error) if isinstance(error, OSError) else error
        console.print(f"Error: {words}", markup=False, style="red", soft_wrap=True)
        code = 2
    raise typer.Exit(code)


@dataclass(frozen=True)
class Study:
    """A study, or a part of one: a grid file, and folders with rows."""

    name: str
    part: str | None = None

    @property
    def title(self) -> str:
        """Its name and its part's, as its grid file has them."""
        return self.name + (f"-{self.part}" if self.part else "")

    @property
    def grid(self) -> Path:
        """Its grid file."""
        return FOLDER / f"{self.title}.toml"

    @property
    def out(self) -> Path:
        """The folder for new rows, if no other is named."""
        return Path("results") / self.title

    @property
    def stored(self) -> Path | None:
        """The folder with rows that need not be run again: what others have run does not show that it runs here."""
        folder = STORED[self.name] + (f"-{self.part}" if self.part else "")
        return None if self.part == QUICK else FOLDER.parent / "results" / folder


def _parts(name: str) -> list[str]:
    # of a study, the quick one first
    parts = sorted(path.stem.removeprefix(f"{name}-") for path in FOLDER.glob(f"{name}-*.toml"))
    return sorted(parts, key=lambda part: part != QUICK)


class UnusableError(ValueError):
    """A folder of results that cannot be read, or is another run's."""


def _comparison(console: Console, study: Study, out: Path, status, workers, device) -> int:
    from benchmarks.compare import __main__ as comparison
    from benchmarks.compare.models import quiet
    from benchmarks.compare.settings import read_sweep
    from benchmarks.records.store import ResultStore, read_folder, write_file
    from benchmarks.records.style import keep_picture
    from benchmarks.studies.figures import FIGURES

    quiet()
    device = comparison._device(device, None)
    workers = comparison._fit_workers(console, workers, 1, device, False)
    planned, rows = _lay_out(study, out, device)
    if status:
        _say_status(console, study, planned, rows, workers, device)
        return 0
    _carry_over(rows, study.stored, ResultStore(out))
    parts = read_sweep(study.grid)
    code = comparison._compare(console, parts, comparison.Workers(device, workers, 1, None), out, False, False)
    rows = [row for key, row in read_folder(out, needed=False).items() if key in planned]
    if rows:
        name, say = study.name, partial(console.print, markup=False, soft_wrap=True)
        figure = FIGURES.get(study.title, FIGURES[name])(rows)
        keep_picture(out / f"{name}.png", figure.draw, say)
        write_file(out / f"{name}.md", figure.table().encode())
        say(f"table: {out / name}.md")
    return code


def _lay_out(study: Study, out: Path, device: str) -> tuple[dict[str, Planned], dict[str, dict]]:
    # what it consists of, and the rows of it that are there, by key
    from benchmarks.compare.plan import merge, plan
    from benchmarks.compare.settings import read_sweep
    from benchmarks.records.store import read_folder

    parts = read_sweep(study.grid)
    planned = merge([plan(p.task, p.mixers, p.match, p.budget, p.settings, device)[0] for p in parts])
    folders = [folder for folder in (study.stored, out) if folder is not None]
    with _usable():
        rows = {key: row for folder in folders for key, row in read_folder(folder, needed=False).items() if key in planned}
    return planned, rows


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


def _say_status(console: Console, study: Study, planned: dict[str, Planned], rows: dict, workers: int, device: str) -> None:
    from benchmarks.records.tables import start_table

    runs = _runs(planned, rows)
    columns = ("runs", "done", "left", "hours left")
    table = start_table("task", columns, f"{study.title}: {len(runs)} runs")
    for task, of in runs.groupby("task", sort=False):
        table.add_row(task, *_counts(of))
    console.print(table)
    done, left, hours = runs["done"].sum(), (~runs["done"]).sum(), runs["seconds"].sum() / HOUR / workers
    if not done:
        console.print("Nothing has run yet, so how long it takes is not known.")
    elif left:
        console.print(
            f"{done} done, {left} left: about {hours:.1f} h with {workers} worker(s), by the seconds in the rows (a "
            "mixer that has none is taken to cost as much as the others)."
        )
        if open_ := (runs["done"] & runs["follows"]).sum():
            console.print(f"Of those done {open_} count as long as the rates that are best so far stay the best.")
    else:
        console.print("All of it is done; the same command without --status draws it.")
    if spare := len(rows) - done:
        console.print(f"Stored besides, at rates that are not the best: {spare}.")
    others = [Study(study.name, part) for part in _parts(study.name) if part != QUICK] if study.part is None else []
    if others:
        console.print()
        table = start_table("part", columns, "parts, each by --only PART")
        for part in others:
            table.add_row(part.part, *_counts(_runs(*_lay_out(part, part.out, device), others=rows)))
        console.print(table)


def _runs(planned: dict[str, Planned], rows: dict[str, dict], others: dict[str, dict] = MappingProxyType({})) -> pd.DataFrame:
    # a run a row: its task, whether it is done, the seconds that it takes if not, whether it follows from rates yet unknown
    import pandas as pd

    from benchmarks.compare.plan import narrow

    known, later = narrow(planned, rows)
    found = []
    for p, follows in [*((p, False) for p in known.values()), *((p, True) for p in later)]:
        done = p.cell.key in rows
        found.append((p.cell.task, done, 0.0 if done else _seconds(p, [*rows.values()], [*others.values()]), follows))
    return pd.DataFrame(found, columns=["task", "done", "seconds", "follows"])


def _counts(runs: pd.DataFrame) -> list[str]:
    done = runs["done"].sum()
    return [*map(str, (len(runs), done, len(runs) - done)), f"{runs['seconds'].sum() / HOUR:.1f}"]


def _seconds(planned: Planned, rows: list[dict], others: list[dict]) -> float:
    """Seconds of a run, by the rows of its mixer, or of all, else by those of `others`; per step, as rows may have fewer."""
    cell = planned.cell

    def alike(rows: list[dict]) -> list[dict]:
        return [row for row in rows if (row["variant"], row["layers"]) == (cell.variant, cell.layers)]

    per_step = [row["seconds"] / (row["steps_done"] or row["steps"]) for row in alike(rows) or alike(others) or rows or others]
    return cell.steps * median(per_step) if per_step else 0.0


def _language_models(console: Console, study: Study, out: Path, status, workers, device) -> int:
    from benchmarks.lm.__main__ import compare_models
    from benchmarks.lm.report import COLUMNS, CURVE_COLUMNS
    from benchmarks.lm.settings import load_settings
    from benchmarks.records.store import ResultStore, read_rows, write_file
    from benchmarks.report.documents import language_models

    rows, grid, stored = {}, study.grid, study.stored
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
        console.print(f"{study.title}: {len(planned) - len(left)} of {len(planned)} runs done, {len(left)} left{time}.")
        return 0
    keys = [run.key for run in planned]
    _carry_over({key: rows[key] for key in keys if key in rows}, stored, ResultStore(out, "lm", COLUMNS, CURVE_COLUMNS))
    code = compare_models(console, partial(load_settings, str(grid)), device, out, study.name)
    with _usable():
        rows = read_rows(out / "lm.csv", COLUMNS)[0] if (out / "lm.csv").exists() else {}
        if done := [rows[key] for key in keys if key in rows]:
            write_file(out / f"{study.name}.md", language_models(done).encode())
            console.print(f"table: {out / study.name}.md", markup=False)
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
