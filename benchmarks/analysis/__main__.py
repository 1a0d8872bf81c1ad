"""Analyses a results folder: a picture of each kind, and the numbers of those that load trained weights.

python -m benchmarks.analysis results --what spectra,memory --task s3
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks import run_command

KINDS = ("overview", "accuracy", "spectra", "memory", "flops", "gate-norms", "gates", "blocks", "block-size", "lm")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help=__doc__.splitlines()[0])
def main(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder with compare.csv (or one such file), and weights/ for what reads them."),
    ] = Path("results"),
    what: Annotated[str, typer.Option(help=f"Comma list of {', '.join(KINDS)}.")] = ",".join(KINDS),
    task: Annotated[str | None, typer.Option(help="Comma list. Default: all that are there.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where pictures and numbers go. Default: the folder itself.")] = None,
) -> None:
    from benchmarks.compare.models import quiet
    from benchmarks.records.store import read_folder, unwritten
    from benchmarks.records.summary import compare

    kinds = [kind.strip() for kind in what.split(",") if kind.strip()]
    if not kinds or set(kinds) - set(KINDS):
        raise typer.BadParameter(f"{what!r} is not accepted; expected some of {', '.join(KINDS)}.", param_hint="--what")
    try:
        stored = [] if kinds == ["lm"] else list(read_folder(folder).values())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="FOLDER") from None
    here = folder.parent if folder.is_file() else folder
    there = list(dict.fromkeys(row["task"] for row in stored))
    tasks = [name.strip() for name in task.split(",")] if task else there
    if set(tasks) - set(there):
        raise typer.BadParameter(f"{task!r} is not accepted; the folder has runs of {', '.join(there)}.", param_hint="--task")
    quiet()
    from benchmarks.report.analyse import calls  # transformers is slow to import

    out = out or here
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{str(out)!r} cannot be a folder: {error.strerror}.", param_hint="--out") from None
    comparisons = [c for c in compare(stored) if c.task in tasks]
    written = 0
    for kind in kinds:
        for name, call in calls(kind, comparisons, here, out):
            try:
                paths = call()
            except ValueError as error:
                typer.echo(f"{kind}, {name}: left out: {error}")
                continue
            except OSError as error:
                typer.echo(f"Error: {unwritten(error)}", err=True)
                raise typer.Exit(1) from None
            written += len(paths)
            for path in paths:
                typer.echo(f"{kind}, {name}: {path}")
            if not paths and len(kinds) < len(KINDS):  # it was asked for
                typer.echo(f"{kind}, {name}: left out: too few runs (see Analysis in benchmarks/README.md)")
    raise typer.Exit(0 if written else 1)


if __name__ == "__main__":
    run_command(app)
