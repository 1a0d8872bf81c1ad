"""Every mixer on every task at a glance: a table of token accuracies and its picture."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.records.naming import task_label
from benchmarks.records.style import picture
from benchmarks.records.summary import LEARNED, OURS, TIE, Comparison
from benchmarks.tasks import TASKS, get_task

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
    order = {task: place for place, task in enumerate(TASKS)}
    chosen = dict(sorted(chosen.items(), key=lambda item: order.get(item[0], len(order))))
    table = pd.DataFrame({task: {line.variant: median(line.tokens[0]) for line in c.lines} for task, c in chosen.items()})
    few = table.count(axis=1) < len(table.columns) / 2
    ranks = pd.DataFrame({"few": few, "score": -above_chance(table).mean(axis=1)})
    return table.loc[ranks.sort_values(["few", "score"], kind="stable").index]


def above_chance(table: pd.DataFrame) -> pd.DataFrame:
    """How far each accuracy lies on the way from guessing (0) to all right (1), clipped."""
    chances = {task: get_task(task).chance for task in table.columns}
    return table.apply(lambda column: (column - chances[column.name]) / (1 - chances[column.name])).clip(0, 1)


def draw_overview(table: pd.DataFrame, title: str, path: Path) -> None:
    """Draws the table: the darker, the further above guessing; what did not run is a dash.

    The best of a task is bold where it has learned something and shares its place with none. ValueError, if there are not two
    tasks with two mixers.
    """
    if min(table.shape, default=0) < 2:
        raise ValueError("there are not two tasks and two mixers; run more, such as --task s3,parity.")
    shades = above_chance(table)
    note = "Token accuracy at the longest training length. White: guessing. Bold: best of a task, learned and not shared."
    with picture(path, 2.5 + 0.27 * len(table), title, note) as figure:
        axes = figure.subplots()
        axes.imshow(shades.fillna(0).to_numpy(), cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
        for j, task in enumerate(table.columns):
            near = table.index[table[task] > table[task].max() - TIE]
            alone = near[0] if len(near) == 1 and shades.loc[near[0], task] >= LEARNED else None
            for i, variant in enumerate(table.index):
                value, shade = table.loc[variant, task], shades.loc[variant, task]
                text = "-" if value != value else f"{value:.2f}"
                colour, weight = "white" if shade > 0.6 else "black", "bold" if variant == alone else "normal"
                axes.annotate(text, (j, i), ha="center", va="center", size=8.5, color=colour, weight=weight)
        axes.set_xticks(
            range(len(table.columns)), map(task_label, table.columns), size=9, rotation=40, ha="left", rotation_mode="anchor"
        )
        axes.set_yticks(range(len(table)), table.index, size=9)
        for label in axes.get_yticklabels():
            label.set_weight("bold" if label.get_text().startswith(OURS) else "normal")
        axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
