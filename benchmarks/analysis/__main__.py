"""Analyses a results folder: a picture of each kind, and the numbers of those that load trained weights.

python -m benchmarks.analysis results --what spectra,memory --task s3
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

warnings.filterwarnings("ignore", message="Triton is not supported on current platform")

KINDS = ("spectra", "memory", "block-size", "flops", "gate-norms")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _spectra(comparison, rows, folder: Path, out: Path) -> list[Path]:
    from benchmarks.analysis.spectra import draw_spectra, eigenvalues, summarise_eigenvalues

    table = eigenvalues(folder, rows)
    if table.empty:
        return []
    name = _name("spectra", comparison)
    picture, summary, values = (out / f"{name}{end}" for end in (".png", ".csv", "-values.csv"))
    accuracies = {line.variant: sum(line.tokens[0]) / line.seeds for line in comparison.lines}
    title = f"{comparison.task}: eigenvalues of the learned transitions, {_seeds(comparison)}"
    draw_spectra(table, accuracies, title, picture)
    summarise_eigenvalues(table).round(4).to_csv(summary, index=False)
    table.to_csv(values, index=False, float_format="%.4g")
    return [picture, summary, values]


def _memory(comparison, rows, folder: Path, out: Path) -> list[Path]:
    from benchmarks.analysis.spectra import draw_memory, memory

    table = memory(folder, rows)
    if table.empty:
        return []
    picture, numbers = (out / f"{_name('memory', comparison)}{end}" for end in (".png", ".csv"))
    title = f"{comparison.task}: time constants of blocks, {_seeds(comparison)}"
    draw_memory(table, comparison.lengths[0], title, picture)
    table.round(3).to_csv(numbers, index=False)
    return [picture, numbers]


def _costs(comparison, rows, folder: Path, out: Path) -> list[Path]:
    from benchmarks.analysis.accuracy import draw_costs

    picture = out / f"{_name('flops', comparison)}.png"
    draw_costs(comparison, picture)
    return [picture]


def _gate_norms(comparison, rows, folder: Path, out: Path) -> list[Path]:
    from benchmarks.analysis.accuracy import draw_gate_norms

    picture = out / f"{_name('gate-norms', comparison)}.png"
    draw_gate_norms(comparison, picture)
    return [picture]


EACH: dict[str, Callable] = {"spectra": _spectra, "memory": _memory, "flops": _costs, "gate-norms": _gate_norms}


def _name(kind: str, comparison) -> str:
    matched = comparison.matched.partition(" ")[0]
    return f"{kind}-{comparison.task}" + (f"-{matched}" if matched else "")


def _seeds(comparison) -> str:
    seeds = max(line.seeds for line in comparison.lines)
    return f"{seeds} seed{'s' if seeds > 1 else ''}"


def _block_sizes(comparisons, out: Path) -> list[Path]:
    from benchmarks.analysis.accuracy import draw_block_sizes

    picture = out / f"block-size-{comparisons[0].task}.png"
    draw_block_sizes(comparisons, picture)
    return [picture]


@app.command(help=__doc__.splitlines()[0])
def main(
    folder: Annotated[Path, typer.Argument(help="Folder with compare.csv, and weights/ for spectra and memory.")] = Path(
        "results"
    ),
    what: Annotated[str, typer.Option(help=f"Comma list of {', '.join(KINDS)}.")] = ",".join(KINDS),
    task: Annotated[str | None, typer.Option(help="Comma list. Default: all that are there.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where pictures and numbers go. Default: the folder itself.")] = None,
) -> None:
    from benchmarks.models import quiet
    from benchmarks.store import read_folder
    from benchmarks.summary import compare

    kinds = [kind.strip() for kind in what.split(",") if kind.strip()]
    if not kinds or set(kinds) - set(KINDS):
        raise typer.BadParameter(f"{what!r} is not accepted; expected some of {', '.join(KINDS)}.", param_hint="--what")
    try:
        stored = read_folder(folder)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="FOLDER") from None
    there = list(dict.fromkeys(row["task"] for row in stored.values()))
    tasks = [name.strip() for name in task.split(",")] if task else there
    if set(tasks) - set(there):
        raise typer.BadParameter(f"{task!r} is not accepted; the folder has runs of {', '.join(there)}.", param_hint="--task")
    quiet()
    out = out or folder
    out.mkdir(parents=True, exist_ok=True)
    comparisons = [c for c in compare(list(stored.values())) if c.task in tasks]
    written = 0
    for kind in kinds:
        for name in dict.fromkeys(c.task for c in comparisons):
            alike = [c for c in comparisons if c.task == name]
            calls = (
                [lambda alike=alike: _block_sizes(alike, out)]
                if kind == "block-size"
                else [
                    lambda c=c, kind=kind: EACH[kind](c, [stored[key] for line in c.lines for key in line.keys], folder, out)
                    for c in alike
                ]
            )
            for call in calls:
                try:
                    paths = call()
                except ValueError as error:
                    typer.echo(f"{kind}, {name}: left out: {error}")
                    continue
                written += len(paths)
                for path in paths:
                    typer.echo(f"{kind}, {name}: {path}")
    raise typer.Exit(0 if written else 1)


if __name__ == "__main__":
    app()
