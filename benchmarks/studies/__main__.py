"""Runs a study, goes on where it stopped, and draws its figure and its table from what is there.

python -m benchmarks.studies law --status
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from benchmarks.compare.plan import Planned
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
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    run = _language_models if name == "lm" else _comparison
    raise typer.Exit(run(console, name, grid, stored, out, status, workers, device))


def _comparison(console: Console, name: str, grid: Path, stored: Path | None, out: Path, status, workers, device) -> int:
    from benchmarks.compare import __main__ as comparison
    from benchmarks.compare.models import quiet
    from benchmarks.compare.plan import merge, narrow, plan
    from benchmarks.compare.settings import lay_out, read_grid
    from benchmarks.records.store import ResultStore, read_folder
    from benchmarks.studies.figures import FIGURES

    quiet()
    device = comparison._device(device, None)
    workers = comparison._fit_workers(console, workers, 1, device, False)
    parts = lay_out({}, *read_grid(grid))
    planned = merge([plan(p.task, p.mixers, p.match, p.budget, p.settings, device)[0] for p in parts])
    folders = [folder for folder in (stored, out) if folder is not None]
    rows = {key: row for folder in folders for key, row in read_folder(folder, needed=False).items() if key in planned}
    if status:
        known, later = narrow(planned, rows)
        rows = {key: row for key, row in rows.items() if key in known}
        _say_status(console, name, [*known.values(), *later], rows, workers)
        return 0
    _carry_over(rows, ResultStore(out))
    code = comparison._compare(console, parts, comparison.Workers(device, workers, 1, None), out, False, False)
    rows = [row for key, row in read_folder(out, needed=False).items() if key in planned]
    if rows:
        figure = FIGURES[name](rows)
        figure.draw(out / f"{name}.png")
        (out / f"{name}.md").write_text(figure.table(), encoding="utf-8")
        console.print(f"figure: {out / name}.png\ntable: {out / name}.md", markup=False)
    return code


def _carry_over(rows: dict[str, dict], store: ResultStore) -> None:
    with store:
        for row in [row for key, row in rows.items() if key not in store.rows]:
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
    from benchmarks.lm.__main__ import app as language_models
    from benchmarks.lm.report import COLUMNS, CURVE_COLUMNS
    from benchmarks.lm.settings import load_settings
    from benchmarks.records.store import ResultStore, read_rows

    rows = {}
    for path in (folder / "lm.csv" for folder in (stored, out) if folder is not None):
        rows |= read_rows(path, COLUMNS)[0] if path.exists() else {}
    if status:
        settings = load_settings(str(grid), ())
        seconds: dict[str, dict[int, float]] = {}
        for row in rows.values():
            seconds.setdefault(row["name"], {})[row["seed"]] = row["seconds"]
        usual = median(time for of in seconds.values() for time in of.values()) if rows else 0
        left = [
            median(seconds[entry.name].values()) if entry.name in seconds else usual
            for entry in settings.mixers
            for seed in settings.training.seeds
            if seed not in seconds.get(entry.name, ())
        ]
        runs = len(settings.mixers) * len(settings.training.seeds)
        time = f": about {sum(left) / HOUR:.1f} h, one at a time" if rows else "; how long it takes is not known yet"
        console.print(f"{name}: {runs - len(left)} of {runs} runs done, {len(left)} left{time}.")
        return 0
    _carry_over(rows, ResultStore(out, "lm", COLUMNS, CURVE_COLUMNS))
    return language_models(["--preset", str(grid), "--out", str(out), "--device", device], standalone_mode=False) or 0


if __name__ == "__main__":
    app()
