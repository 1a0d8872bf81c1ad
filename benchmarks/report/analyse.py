"""Analyses a results folder: a picture of each kind, and the numbers of those that load trained weights.

python -m benchmarks.analysis results --what spectra,memory --task s3
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _table(path: Path, folder: Path, make: Callable):
    # the numbers that were stored before, where the weights that they came from were not kept
    import pandas as pd

    if path.exists() and not (folder / "weights").exists():
        return pd.read_csv(path)
    table = make()
    if len(table):
        table.to_csv(path, index=False, float_format="%.4g")
    return table


def _note(comparison) -> str:
    from benchmarks.records.summary import counts_text

    return f"{comparison.description}, {counts_text(comparison.lines)}."


def _runs(comparison) -> list[dict]:
    return [run for line in comparison.lines for run in line.runs]


def _spectra(comparison, folder: Path, out: Path) -> list[Path]:
    from benchmarks.report.spectra import draw_spectra, eigenvalues, summarise_eigenvalues

    picture, summary, values = (out / f"spectra-{comparison.name}{end}" for end in (".png", ".csv", "-values.csv"))
    table = _table(values, folder, lambda: eigenvalues(folder, _runs(comparison)))
    if table.empty:
        return []
    accuracies = {line.variant: line.tokens[0] for line in comparison.lines}
    draw_spectra(table, accuracies, f"{comparison.heading}: learned eigenvalues", _note(comparison), picture)
    summarise_eigenvalues(table).round(4).to_csv(summary, index=False)
    return [picture, summary, values]


def _memory(comparison, folder: Path, out: Path) -> list[Path]:
    from benchmarks.report.spectra import draw_memory, memory

    picture, numbers = (out / f"memory-{comparison.name}{end}" for end in (".png", ".csv"))
    table = _table(numbers, folder, lambda: memory(folder, _runs(comparison)))
    if table.empty:
        return []
    draw_memory(table, comparison.lengths[0], f"{comparison.heading}: how long blocks remember", _note(comparison), picture)
    return [picture, numbers]


def _gates(comparison, folder: Path, out: Path) -> list[Path]:
    from benchmarks.report.gates import best_and_worst, draw_gates, read_panels

    picture, numbers = (out / f"gates-{comparison.name}{end}" for end in (".png", ".csv"))
    table = _table(numbers, folder, lambda: best_and_worst(folder, _runs(comparison)))
    if table.empty:
        return []
    note = "A tile is a letter's matrix in the block with the most exact gates: blue 1, red -1; framed where it forgets."
    draw_gates(read_panels(table), f"{comparison.heading}: what a block does at each letter", note, picture)
    return [picture, numbers]


def _picture(kind: str, comparison, folder: Path, out: Path) -> list[Path]:
    from benchmarks.records.plots import draw
    from benchmarks.report.accuracy import draw_costs, draw_gate_norms

    picture = out / f"{'compare' if kind == 'accuracy' else kind}-{comparison.name}.png"
    if kind == "accuracy":
        draw(comparison.lines, comparison.task, comparison.description, picture)
    else:
        {"flops": draw_costs, "gate-norms": draw_gate_norms}[kind](comparison, picture)
    return [picture]


def _block_sizes(comparisons, apart: dict, out: Path) -> list[Path]:
    from benchmarks.records.summary import join_name
    from benchmarks.report.accuracy import draw_block_sizes

    picture = out / f"{join_name('block-size', comparisons[0].task, apart=apart)}.png"
    draw_block_sizes(comparisons, picture)
    return [picture]


def _overviews(comparisons, out: Path) -> list[Path]:
    from benchmarks.records.cell import MATCHES
    from benchmarks.records.summary import counts_text
    from benchmarks.report.overview import draw_overview, overview

    written = []
    for matched in dict.fromkeys(c.kind for c in comparisons):
        alike = [c for c in comparisons if c.kind == matched]
        table, counts = overview(alike), counts_text(line for c in alike for line in c.lines)
        picture, numbers = (out / f"overview{f'-{matched}' if matched else ''}{end}" for end in (".png", ".csv"))
        title = ", ".join(["All mixers on all tasks", *([MATCHES[matched]] if matched else []), counts])
        draw_overview(table, title, picture)
        table.round(4).rename_axis("mixer").to_csv(numbers)
        written += [picture, numbers]
    return written


def _language_models(path: Path, out: Path) -> list[Path]:
    from benchmarks.lm.report import draw_models, rank_models, read, read_curves, training_words

    rows, kept = read([path]), path.with_name(f"{path.stem}-curves")
    curves = read_curves(kept if kept.exists() else path.with_name("curves"), rows)
    picture = out / f"{path.stem}.png"
    draw_models(rank_models(rows), curves, training_words(rows[0]), picture)
    return [picture]


EACH: dict[str, Callable] = {  # of each comparison
    "accuracy": partial(_picture, "accuracy"),
    "spectra": _spectra,
    "memory": _memory,
    "flops": partial(_picture, "flops"),
    "gate-norms": partial(_picture, "gate-norms"),
    "gates": _gates,
}
KINDS = ("overview", *EACH, "block-size", "lm")


def _calls(kind: str, comparisons, folder: Path, out: Path) -> Iterator[tuple[str, Callable[[], list[Path]]]]:
    """(what it is about, what writes it) of one kind of analysis: of all runs, of each setting, or of each comparison."""
    from benchmarks.records.summary import distinguish

    if kind == "lm":
        yield from ((path.name, partial(_language_models, path, out)) for path in sorted(folder.glob("lm*.csv")))
    elif kind == "overview":
        yield "all tasks", partial(_overviews, comparisons, out)
    for name in dict.fromkeys(c.task for c in comparisons):
        alike = [c for c in comparisons if c.task == name]
        if kind == "block-size":
            settings = list({tuple(c.settings.items()): c.settings for c in alike}.values())
            for own, apart in zip(settings, distinguish(settings)):
                yield name, partial(_block_sizes, [c for c in alike if c.settings == own], apart, out)
        elif kind in EACH:
            yield from ((c.title, partial(EACH[kind], c, folder, out)) for c in alike)


@app.command(help=__doc__.splitlines()[0])
def main(
    folder: Annotated[
        Path, typer.Argument(help="Folder with compare.csv (or one such file), and weights/ for spectra and memory.")
    ] = Path("results"),
    what: Annotated[str, typer.Option(help=f"Comma list of {', '.join(KINDS)}.")] = ",".join(KINDS),
    task: Annotated[str | None, typer.Option(help="Comma list. Default: all that are there.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where pictures and numbers go. Default: the folder itself.")] = None,
) -> None:
    from benchmarks.compare.models import quiet
    from benchmarks.records.store import read_folder
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
    out = out or here
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{str(out)!r} cannot be a folder: {error.strerror}.", param_hint="--out") from None
    comparisons = [c for c in compare(stored) if c.task in tasks]
    written = 0
    for kind in kinds:
        for name, call in _calls(kind, comparisons, here, out):
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
