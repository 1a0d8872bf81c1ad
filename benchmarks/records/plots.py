"""The pictures of a comparison, and matrices of shares and words, as a picture and as a table."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import BinaryIO

import pandas as pd

from benchmarks.records.naming import FAMILIES, task_label
from benchmarks.records.style import (
    DOTTED,
    OTHER,
    label_ends,
    mark_guessing,
    percent,
    picture,
    plot_ranges,
    plot_seeds,
    scale_lengths,
    variant_styles,
)
from benchmarks.records.summary import OURS, SOLVED, Line, counts_text
from benchmarks.records.tables import grows, short
from benchmarks.tasks import get_task

BLANK = "#f3f4f6"
SLANTED = {"rotation": 40, "ha": "left", "rotation_mode": "anchor"}


def draw(lines: list[Line], task_name: str, settings: str, path: Path | BinaryIO) -> None:
    """Draws token accuracy by length, if there are several, and each mixer's seeds at the training length, below.

    `settings`, in words, stand below the picture: a PNG file, replaced if it is there, or what takes its bytes.
    """
    task, trained = get_task(task_name), lines[0].lengths[0]
    several = max(line.seeds for line in lines) > 1
    marks = "Lines and thick bars: medians; dots: every seed" if several else "One seed is no claim"
    note = (
        f"{settings}, {counts_text(lines)}. {marks}. Solved: at least {SOLVED:.0%} of tokens right at length {trained}; "
        f"sequences: the share of them that is right as a whole there{' (median)' if several else ''}."
    )
    rows, by_length = 0.3 * len(lines), len(lines[0].lengths) > 1
    with picture(path, (4.8 if by_length else 1.6) + rows, task.title, note) as figure:
        heights = [*([3] * by_length), rows + 0.3]
        *above, bottom = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        for top in above:
            scale_lengths(top, lines[0].lengths)
            top.set(xlabel=f"test length (trained up to {trained})", ylabel="token accuracy", ylim=(0, 1.04))
            mark_guessing(top, task.chance)
            plot_ranges(top, {line.variant: (line.lengths, line.tokens) for line in lines})
        _draw_seeds(bottom, lines)
        mark_guessing(bottom, task.chance, along="x")
        bottom.set_xlabel(f"token accuracy at length {trained}")
        percent(*(top.yaxis for top in above), bottom.xaxis)


def _draw_seeds(axes, lines: list[Line]) -> None:
    # with how many seeds solved the task, and the mixer's size
    styles = variant_styles([line.variant for line in lines])
    columns = {
        "solved": (12, [f"{line.solved} of {line.seeds}" for line in lines]),
        "sequences": (50, [f"{median(line.sequences[0]):.2f}" for line in lines]),
        "params": (104, [short(line["mixer_params"]) for line in lines]),
        "state": (142, [grows(line) for line in lines]),
    }
    for heading, name in (("lr", "lr"), ("decay", "weight_decay")):
        if len({line[name] for line in lines}) > 1:
            columns[heading] = (210 if "lr" in columns else 176, [f"{line[name]:g}" for line in lines])
    plot_seeds(axes, [(line.variant, styles[line.variant]["color"], line.tokens[0]) for line in lines], columns)
    axes.set_xlim(0, 1.01)


def draw_curves(
    curves: dict[str, list[pd.DataFrame]],
    lengths: Sequence[int],
    title: str,
    path: Path | BinaryIO,
    curriculum: str = "stages",
) -> None:
    """Draws token accuracy on the training batches by step, smoothed over five points: the median seed, and all seeds' range.

    `curves` has, by variant, a table per seed with columns `step` and `token_accuracy`; the training `lengths` come in turn,
    each for an equal share of the steps in `"stages"`, and else when each run has learned the one before, so that no line is
    drawn between them.
    """
    styles = variant_styles(list(curves))
    last = max(run["step"].iloc[-1] for runs in curves.values() for run in runs)
    seeds = max(map(len, curves.values()))
    staged = curriculum == "stages"
    turn = "in turn" if staged else f"as each run's own accuracy moves it ({curriculum} curriculum), so no lines between them"
    note = f"Accuracy on the training batches; lengths {', '.join(map(str, lengths))} {turn}. " + (
        f"Line: median of {seeds} seeds; shade: their range." if seeds > 1 else "One seed."
    )
    with picture(path, 4.2, title, note) as figure:
        axes = figure.subplots()
        axes.set(xlabel="step", ylabel="token accuracy", ylim=(0, 1.04), xlim=(0, last))
        ends = {}
        for variant, runs in curves.items():
            table = pd.concat([run.set_index("step")["token_accuracy"] for run in runs], axis=1, join="inner")
            of = table.agg(["median", "min", "max"], axis=1).rolling(5, center=True, min_periods=1).mean()
            style = {**styles[variant], "marker": ""}
            axes.plot(of.index, of["median"], **style)
            axes.fill_between(of.index, of["min"], of["max"], color=style["color"], alpha=0.12, linewidth=0)
            ends[variant] = (of.index[-1], of["median"].iloc[-1], style["color"])
        for i in range(1, len(lengths) if staged else 1):
            axes.axvline(last * i / len(lengths), color=OTHER, linewidth=1, linestyle=DOTTED)
        percent(axes.yaxis)
        label_ends(axes, ends)


@dataclass(frozen=True)
class Panel:
    """A matrix: by (row, column) a share from 0 to 1, which is its colour, and a word."""

    title: str  # stands above it
    rows: list[str]
    columns: list[str]
    cells: dict[tuple[str, str], tuple[float, str]]  # what has not run is not there
    borders: dict[str, str] | None = None  # by column, the row above which a border runs, if every column has one
    bold: Collection[tuple[str, str]] = ()

    @property
    def slanted(self) -> bool:
        """Whether the columns' names are too long to stand below them."""
        return max(map(len, self.columns)) > 5

    def draw(self, axes, size: float = 8.5) -> None:
        """Draws it into empty axes, words in points."""
        from matplotlib import colormaps
        from matplotlib.patches import Rectangle

        for y, row in enumerate(self.rows):
            for x, column in enumerate(self.columns):
                share, word = self.cells.get((row, column), (None, ""))
                colour = BLANK if share is None else colormaps["Blues"](0.08 + 0.8 * share)
                axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=colour))
                ink = "white" if share is not None and share > 0.6 else "black"
                weight = "bold" if (row, column) in self.bold else "normal"
                axes.text(x, y, word, ha="center", va="center", size=size, color=ink, weight=weight)
        places = [self.rows.index(row) for column in self.columns if (row := (self.borders or {}).get(column)) in self.rows]
        if len(places) == len(self.columns):
            edges = [(x + side, y - 0.5) for x, y in enumerate(places) for side in (-0.5, 0.5)]
            axes.plot(*zip(*edges), color="#D55E00", linewidth=2.5, clip_on=False)
        axes.set(xlim=(-0.5, len(self.columns) - 0.5), ylim=(len(self.rows) - 0.5, -0.5))
        axes.set_xticks(range(len(self.columns)), map(task_label, self.columns), **(SLANTED if self.slanted else {}))
        axes.set_yticks(range(len(self.rows)), self.rows)
        for label, row in zip(axes.get_yticklabels(), self.rows):
            label.set(weight="bold" if row.startswith((*OURS, *FAMILIES.values())) else "normal")
        axes.set_title(self.title, loc="left", color=OTHER)
        axes.grid(visible=False)
        axes.tick_params(length=0, labeltop=self.slanted, labelbottom=not self.slanted)
        axes.spines[:].set_visible(False)

    def table(self) -> str:
        """The same in Markdown."""
        lines = [["", *self.columns], ["---", *[":-:"] * len(self.columns)]]
        lines += [[row, *(self.cells.get((row, column), (0, ""))[1] for column in self.columns)] for row in self.rows]
        return "\n".join(["**" + self.title + "**", "", *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"


@dataclass(frozen=True)
class Figure:
    """Panels one below the other, or beside each other with the same rows, with a title and a note."""

    title: str
    note: str
    panels: list[Panel]
    beside: bool = False

    def draw(self, path: Path | BinaryIO) -> None:
        """Draws all panels."""
        heights = [len(panel.rows) + 1.5 + 4 * panel.slanted for panel in self.panels]
        height = max(heights) if self.beside else sum(heights)
        with picture(path, 1.1 + 0.3 * height, self.title, self.note, told=self.text) as figure:
            if self.beside:
                axes = figure.subplots(1, len(heights), squeeze=False)[0]
            else:
                axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
            for panel, place in zip(self.panels, axes):
                panel.draw(place, 7.5 if self.beside else 8.5)
                place.tick_params(labelleft=not self.beside or place is axes[0])

    def table(self) -> str:
        """All panels' tables."""
        return "\n".join(panel.table() for panel in self.panels)

    @property
    def text(self) -> str:
        """All that it says, which its PNG file bears too: whether one is of these rows."""
        return f"{self.title}\n\n{self.table()}\n{self.note}"
