"""How every picture looks: its size, colours, titles, labels beside lines, and the mark of guessing."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import BinaryIO

from benchmarks import missing_package
from benchmarks.records.store import write_file
from benchmarks.records.summary import OURS

WIDTH = 8.3  # inches, shown at 100 pixels an inch
STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7ea",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.markersize": 5,
}
# Okabe-Ito colours, one per family; members differ by marker and dash
FAMILIES = {
    "bdlru": "#0072B2",
    "hlru": "#3A9BDC",
    "lstm": "#000000",
    "delta": "#D55E00",
    "gated_delta": "#D55E00",
    "gla": "#009E73",
    "hgrn": "#009E73",
    "mamba": "#B35A8D",
    "attn": "#B57B00",
}
OTHER = "#6b7280"
MARKERS = "osD^vPX*"
DASHES = ("-", "--", ":", "-.")
LEADER = {"arrowstyle": "-", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 3, "alpha": 0.6, "relpos": (0, 0.5)}
DOTTED = (0, (1, 3))
TOLD = "Description"  # of a PNG file's texts


def variant_styles(variants: Sequence[str]) -> dict[str, dict]:
    """By variant its colour, marker and dash; the largest of a family gets the solid line, ours are thicker."""
    styles, members = {}, {}
    for variant in sorted(variants, reverse=True):
        family = max((name for name in FAMILIES if variant.startswith(name)), key=len, default="")
        colour = FAMILIES.get(family, OTHER)
        i = members[colour] = members.get(colour, -1) + 1
        styles[variant] = {
            "color": colour,
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": DASHES[i % len(DASHES)],
            "linewidth": 2.4 if variant.startswith(OURS) else 1.4,
            "zorder": 3 if variant.startswith(OURS) else 2,
        }
    return styles


@contextmanager
def picture(
    path: Path | BinaryIO, height: float, title: str, note: str = "", width: float = WIDTH, told: str = ""
) -> Iterator:
    """A figure that is written when the block ends, to a PNG file, replaced if it is there, or to what takes its bytes.

    Height and width are inches, 100 pixels each where a page shows it. The note below says settings, seeds, what marks mean;
    what is `told` goes into the file, unseen, for `read_told`.
    """
    # imported here, as it is slow; the canvas needs no display
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", dpi=200)
        FigureCanvasAgg(figure)
        figure.suptitle(textwrap.fill(title, int(9.5 * width)), x=0.01, ha="left", weight="bold", size=12)
        if note:
            figure.supxlabel(textwrap.fill(note, int(14.5 * width)), x=0.01, ha="left", size=8.5, color="#4b5563")
        yield figure
        drawn = BytesIO()
        figure.savefig(drawn, format="png")
    info = PngInfo()
    if told:
        info.add_itxt(TOLD, told, zip=True)
    # 256 colours are enough for lines and letters, and a third of the bytes
    few = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(path, "png", optimize=True, pnginfo=info)


def read_told(path: Path) -> str:
    """What a picture tells, in words; nothing, if the file is not there."""
    from PIL import Image

    if not path.exists():
        return ""
    with Image.open(path) as image:
        return image.text.get(TOLD, "")


def keep_picture(path: Path, draw: Callable[[BinaryIO], None], say: Callable[[str], None]) -> None:
    """Draws a picture and writes it in one go; says where it lies, or which package it wants."""
    image = BytesIO()
    try:
        draw(image)
    except ModuleNotFoundError as error:
        say(f"no picture, as {missing_package(error)}")
        return
    write_file(path, image.getvalue())
    say(f"picture: {path}")


def spread_apart(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    r"""Moves values as little as it takes to have a gap between neighbours and all of them in a range, if they fit.

    Example:
        >>> from benchmarks.records.style import spread_apart
        >>> spread_apart([1.0, 0.5, 0.5], 0.25, 0.0, 1.0)
        [1.0, 0.375, 0.625]
    """
    ranks = sorted(range(len(values)), key=values.__getitem__)
    pools: list[list[float]] = []  # sums of what a place is less its rank's gaps, and counts: isotonic regression
    for rank, i in enumerate(ranks):
        pools.append([values[i] - rank * gap, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1] = [pools[-1][0] + total, pools[-1][1] + count]
    starts = [total / count for total, count in pools for _ in range(int(count))]
    last = max(low, high - (len(values) - 1) * gap)
    places = [min(max(start, low), last) + rank * gap for rank, start in enumerate(starts)]
    return [places[ranks.index(i)] for i in range(len(values))]


def label_ends(axes, ends: dict[str, tuple[float, float, str]]) -> None:
    """Writes names to the right of the axes, so that none stands on another.

    `ends` has, by name, x, y and colour of the end of a line. The axes' scales and limits are set.
    """
    from matplotlib.transforms import ScaledTranslation

    beside = axes.transAxes + ScaledTranslation(14 / 72, 0, axes.figure.dpi_scale_trans)
    texts = [
        axes.annotate(
            name,
            (x, y),
            (1, 0.5),
            textcoords=beside,
            va="center",
            arrowprops={**LEADER, "color": colour},
            **_look(name, colour),
        )
        for name, (x, y, colour) in ends.items()
    ]
    axes.figure.draw_without_rendering()  # the layout makes room for the names
    places = axes.transAxes.inverted().transform(axes.transData.transform([(x, y) for x, y, _ in ends.values()]))
    gap = 12.5 / 72 * axes.figure.dpi / axes.bbox.height
    for text, height in zip(texts, spread_apart(places[:, 1].tolist(), gap, 0.0, 1.0)):
        text.set_y(height)


def label_points(axes, points: dict[str, tuple[float, Sequence[float], str]]) -> None:
    """Writes names beside points, on the side where they cover least of names, points, ranges and what is not the axes.

    `points` has, by name, x, the seeds' values, whose median is the point, and a colour. The axes' scales and limits are set.
    """
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()
    pixels, renderer = axes.figure.dpi / 72, axes.figure.canvas.get_renderer()
    taken = []
    for x, values, _ in points.values():
        low, middle, high = axes.transData.transform([(x, y) for y in (min(values), median(values), max(values))])
        taken += [Bbox([middle - 4 * pixels, middle + 4 * pixels]), Bbox([low - pixels, high + pixels])]
    for name, (x, values, colour) in points.items():
        texts = [
            axes.annotate(name, (x, median(values)), (dx, dy), textcoords="offset points", ha=ha, va=va, **_look(name, colour))
            for dx, dy, ha, va in SIDES
        ]
        boxes = [text.get_window_extent(renderer) for text in texts]
        # a name above or below stands beside another point sooner than one at the side; at a corner it is the last choice
        covered = [
            _shared(box, taken)
            + 2 * (_area(box) - _shared(box, [axes.bbox]))
            + 0.1 * _area(box) * ((dx == 0) + 2 * (dx * dy != 0))
            for box, (dx, dy, *_) in zip(boxes, SIDES)
        ]
        best = covered.index(min(covered))
        taken += [boxes[best]] * 2  # a name on a name is worse than on a point
        for text in texts[:best] + texts[best + 1 :]:
            text.remove()


# beside a point, above and below, and at its corners: how far off in points, and which part of a name stands there
SIDES = (
    *((7, 0, "left", "center"), (-7, 0, "right", "center"), (0, 6, "center", "bottom"), (0, -6, "center", "top")),
    *((x, y, ha, va) for y, va in ((5, "bottom"), (-5, "top")) for x, ha in ((5, "left"), (-5, "right"))),
)


def _look(name: str, colour: str) -> dict:
    return {"color": colour, "size": 9, "weight": "bold" if name.startswith(OURS) else "normal"}


def _area(box) -> float:
    return box.width * box.height


def _shared(box, others) -> float:
    # how much of a box lies in others
    return sum(_area(part) for other in others if (part := box.intersection(box, other)) is not None)


def plot_ranges(
    axes, series: dict[str, tuple[Sequence[float], Sequence[Sequence[float]]]], styles=None, labels=True, apart=True
) -> None:
    """Draws a line per name through the medians over seeds, with a bar from the lowest to the highest seed.

    `series` has, by name, x and for each x the values of the seeds; the x axis has its scale already. Lines stand `apart`,
    each a little beside its x, so that equal ones are seen: not where x is read off.
    """
    styles = styles or variant_styles(list(series))
    every = [x for xs, _ in series.values() for x in xs]
    logarithmic, reach = axes.get_xscale() == "log", 0.012 * (max(every) - min(every))
    ends = {}
    for place, (name, (xs, values)) in enumerate(series.items()):
        shift = apart * (place - (len(series) - 1) / 2) * min(1.0, 8 / len(series))
        moved = [x * 2 ** (0.03 * shift) if logarithmic else x + shift * reach for x in xs]
        middle = [median(v) for v in values]
        below, above = [m - min(v) for m, v in zip(middle, values)], [max(v) - m for m, v in zip(middle, values)]
        ranges = (below, above) if any(len(v) > 1 for v in values) else None
        axes.errorbar(moved, middle, ranges, elinewidth=1, capsize=2, **{"markeredgecolor": "white", **styles[name]})
        ends[name] = (moved[-1], middle[-1], styles[name]["color"])
    if labels:
        label_ends(axes, ends)


def plot_seeds(axes, rows: Sequence[tuple[str, str, Sequence[float]]], columns: dict[str, tuple[float, list[str]]]) -> None:
    """A row a name, the first on top: its seeds as dots beside each other, their median as a bar, and words beside it.

    `rows` has names, colours and the seeds' values; `columns`, by heading, how many points beside the axes, and a word a row.
    """
    for place, (_, colour, values) in enumerate(rows):
        heights = [place + 0.6 * ((i + 0.5) / len(values) - 0.5) for i in range(len(values))]
        axes.plot(values, heights, "o", color=colour, markersize=4.5, alpha=0.8, clip_on=False, zorder=3)
        if len(values) > 1:
            axes.plot([median(values)] * 2, [place - 0.36, place + 0.36], color=colour, linewidth=2.5, clip_on=False, zorder=2)
    for heading, (x, words) in columns.items():
        axes.annotate(heading, (1, 1), (x, 3), "axes fraction", "offset points", size=8.5, color=OTHER)
        for place, word in enumerate(words):
            axes.annotate(word, (1, place), (x, 0), ("axes fraction", "data"), "offset points", va="center", size=9)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    for label, (name, colour, _) in zip(axes.get_yticklabels(), rows):
        label.set(color=colour, weight="bold" if name.startswith(OURS) else "normal", size=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def mark_guessing(axes, chance: float, along: str = "y") -> None:
    """A dotted line at the accuracy of guessing, with its name below it, for which the axis is lowered if need be."""
    draw = axes.axhline if along == "y" else axes.axvline
    draw(chance, color=OTHER, linewidth=1.2, linestyle=DOTTED, zorder=1)
    place, shift = ((0, chance), (3, -3)) if along == "y" else ((chance, 1), (0, 3))
    if along == "y":
        bottom, top = axes.get_ylim()
        axes.set_ylim(min(bottom, chance - 0.08 * (top - bottom)))
    coordinates = ("axes fraction", "data") if along == "y" else ("data", "axes fraction")
    axes.annotate(
        f"guessing {chance:.2g}",
        place,
        shift,
        xycoords=coordinates,
        textcoords="offset points",
        ha="left" if along == "y" else "center",
        va="top" if along == "y" else "bottom",
        color=OTHER,
        size=8.5,
    )


def percent(*axes) -> None:
    """Accuracies as percentages."""
    from matplotlib.ticker import PercentFormatter

    for axis in axes:
        axis.set_major_formatter(PercentFormatter(1, decimals=0))


def scale_lengths(axes, lengths: Sequence[float]) -> None:
    """Lengths on a scale of doublings, each written out."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
