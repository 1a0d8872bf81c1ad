"""Every mixer on every task at a glance: a table of token accuracies and its picture."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.records.plots import Figure, Panel
from benchmarks.records.summary import LEARNED, TIE, Comparison
from benchmarks.tasks import get_task, rank_task

if TYPE_CHECKING:
    import pandas as pd


def overview(comparisons: list[Comparison]) -> pd.DataFrame:
    """Token accuracy at the training length, the median over seeds: a column per task, a row per mixer, NaN where none ran.

    Best first by the mean of `above_chance` over a mixer's tasks; those that ran on less than half of the tasks below. Where a
    task has several comparisons, which are of one rule of matching, the one with most mixers counts, of these the last.

    Example:
        >>> from benchmarks.report.overview import overview
        >>> assert overview([]).empty
    """
    import pandas as pd

    chosen: dict[str, Comparison] = {}
    for comparison in comparisons:
        if len(comparison.lines) >= len(getattr(chosen.get(comparison.task), "lines", ())):
            chosen[comparison.task] = comparison
    tasks = sorted(chosen, key=rank_task)
    table = pd.DataFrame({task: {line.variant: median(line.tokens[0]) for line in chosen[task].lines} for task in tasks})
    few = table.count(axis=1) < len(table.columns) / 2
    ranks = pd.DataFrame({"few": few, "score": -above_chance(table).mean(axis=1)})
    return table.loc[ranks.sort_values(["few", "score"], kind="stable").index]


def above_chance(table: pd.DataFrame) -> pd.DataFrame:
    """How far each accuracy lies on the way from guessing (0) to all right (1), clipped."""
    chances = {task: get_task(task).chance for task in table.columns}
    return table.apply(lambda column: (column - chances[column.name]) / (1 - chances[column.name])).clip(0, 1)


def draw_overview(table: pd.DataFrame, title: str, path: Path) -> None:
    """Draws the table: the darker, the further above guessing; what did not run is grey.

    The best of a task is bold where it has learned something and shares its place with none. ValueError, if there are not two
    tasks with two mixers.
    """
    if min(table.shape, default=0) < 2:
        raise ValueError("there are not two tasks and two mixers; run more, such as --task s3,parity.")
    shades, cells, bold = above_chance(table), {}, []
    for task in table.columns:
        cells |= {(name, task): (shades.loc[name, task], f"{x:.2f}") for name, x in table[task].dropna().items()}
        near = table.index[table[task] > table[task].max() - TIE]
        bold += [(name, task) for name in near if len(near) == 1 and shades.loc[name, task] >= LEARNED]
    note = "Token accuracy at the longest trained length. Palest: guessing; grey: not run. Bold: best of a task, and learned."
    Figure(title, note, [Panel("", list(table.index), list(table.columns), cells, bold=bold)]).draw(path)
