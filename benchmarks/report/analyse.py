"""What `benchmarks.analysis` writes: pictures by kind, and the numbers of those that load trained weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks.lm.report import draw_models, group, rank_models, read, read_curves, titles
from benchmarks.records.cell import MATCHES
from benchmarks.records.plots import draw
from benchmarks.records.summary import Comparison, counts_text, distinguish, join_name
from benchmarks.report.accuracy import draw_block_sizes, draw_costs, draw_gate_norms
from benchmarks.report.blocks import SHOWN, block_roles, blocks_figure
from benchmarks.report.gates import best_and_worst, draw_gates, read_panels
from benchmarks.report.overview import draw_overview, overview
from benchmarks.report.spectra import draw_memory, draw_spectra, eigenvalues, memory, summarise_eigenvalues


def _picture(name: str, paint: Callable, comparison: Comparison, folder: Path, out: Path) -> list[Path]:
    picture = out / f"{name}-{comparison.name}.png"
    paint(comparison, picture)
    return [picture]


def _weights(
    name: str, make: Callable, paint: Callable, comparison: Comparison, folder: Path, out: Path, end: str = ".csv"
) -> list[Path]:
    picture, numbers = (out / f"{name}-{comparison.name}{ending}" for ending in (".png", end))
    if numbers.exists() and not (folder / "weights").exists():  # stored before, and the weights were not kept
        table = pd.read_csv(numbers)
    else:
        table = make(folder, [run for line in comparison.lines for run in line.runs])
        if table.empty:
            return []
        table.to_csv(numbers, index=False, float_format="%.4g")
    return [picture, *(paint(table, comparison, picture) or ()), numbers]


def _note(comparison: Comparison) -> str:
    return f"{comparison.description}, {counts_text(comparison.lines)}."


def _paint_spectra(table: pd.DataFrame, comparison: Comparison, picture: Path) -> list[Path]:
    accuracies = {line.variant: line.tokens[0] for line in comparison.lines}
    draw_spectra(table, accuracies, f"{comparison.heading}: learned eigenvalues", _note(comparison), picture)
    summary = picture.with_suffix(".csv")
    summarise_eigenvalues(table).round(4).to_csv(summary, index=False)
    return [summary]


def _paint_memory(table: pd.DataFrame, comparison: Comparison, picture: Path) -> None:
    draw_memory(table, comparison.lengths[0], f"{comparison.heading}: how long blocks remember", _note(comparison), picture)


def _paint_gates(table: pd.DataFrame, comparison: Comparison, picture: Path) -> None:
    note = "A tile is a letter's matrix in the block with the most exact gates: blue 1, red -1; framed where it forgets."
    draw_gates(read_panels(table), f"{comparison.heading}: what a block does at each letter", note, picture)


def _paint_blocks(table: pd.DataFrame, comparison: Comparison, picture: Path) -> None:
    note = f"Blocks by what they tell alone, then by how loud they are, {SHOWN} at most. What is silenced says its mean."
    blocks_figure(table, f"{comparison.heading}: which blocks hold it", note).draw(picture)


def _block_sizes(comparisons: list[Comparison], apart: dict, out: Path) -> list[Path]:
    picture = out / f"{join_name('block-size', comparisons[0].task, apart=apart)}.png"
    draw_block_sizes(comparisons, picture)
    return [picture]


def _overviews(comparisons: list[Comparison], out: Path) -> list[Path]:
    written = []
    for matched in dict.fromkeys(c.kind for c in comparisons):
        alike = [c for c in comparisons if c.kind == matched]
        table, counts = overview(alike), counts_text(line for c in alike for line in c.lines)
        picture, numbers = (out / f"overview{f'-{matched}' if matched else ''}{end}" for end in (".png", ".csv"))
        draw_overview(table, ", ".join(["All mixers on all tasks", *([MATCHES[matched]] if matched else []), counts]), picture)
        table.round(4).rename_axis("mixer").to_csv(numbers)
        written += [picture, numbers]
    return written


def _language_models(path: Path, out: Path) -> list[Path]:
    # a picture for each text, model and training; several are numbered
    kept, groups, pictures = path.with_name(f"{path.stem}-curves"), group(read([path])), []
    for number, (rows, title) in enumerate(zip(groups, titles(groups)), 1):
        curves = read_curves(kept if kept.exists() else path.with_name("curves"), rows)
        pictures.append(out / f"{path.stem}{f'-{number}' * (len(groups) > 1)}.png")
        draw_models(rank_models(rows), curves, title, pictures[-1])
    return pictures


EACH: dict[str, Callable[[Comparison, Path, Path], list[Path]]] = {  # of each comparison, a folder's, into another
    "accuracy": partial(_picture, "compare", lambda c, path: draw(c.lines, c.task, c.description, path)),
    "spectra": partial(_weights, "spectra", eigenvalues, _paint_spectra, end="-values.csv"),
    "memory": partial(_weights, "memory", memory, _paint_memory),
    "flops": partial(_picture, "flops", draw_costs),
    "gate-norms": partial(_picture, "gate-norms", draw_gate_norms),
    "gates": partial(_weights, "gates", best_and_worst, _paint_gates),
    "blocks": partial(_weights, "blocks", block_roles, _paint_blocks),
}


def calls(kind: str, comparisons: list[Comparison], folder: Path, out: Path) -> Iterator[tuple[str, Callable[[], list[Path]]]]:
    """(what it is about, what writes it) of one kind of analysis: of all runs, of each setting, or of each comparison."""
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
