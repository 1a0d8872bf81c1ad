"""The pictures of a comparison."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, median
from typing import BinaryIO

from benchmarks.records.summary import OURS, Line, counts_text
from benchmarks.tasks import get_task

# Okabe-Ito colours, one per family; members differ by marker and dash
FAMILIES = {
    "bdlru": "#0072B2",
    "hlru": "#56B4E9",
    "lstm": "#000000",
    "delta": "#D55E00",
    "gated_delta": "#D55E00",
    "gla": "#009E73",
    "hgrn": "#009E73",
    "mamba": "#CC79A7",
    "attn": "#E69F00",
}
OTHER = "#777777"
MARKERS = "osD^vPX*"
DASHES = ("-", "--", ":", "-.")


def _family(variant: str) -> str:
    return max((name for name in FAMILIES if variant.startswith(name)), key=len, default="")


def variant_styles(variants: list[str]) -> dict[str, dict]:
    styles, members = {}, {}
    for variant in sorted(variants, reverse=True):  # the largest of a family gets the solid line
        colour = FAMILIES.get(_family(variant), OTHER)
        i = members[colour] = members.get(colour, -1) + 1
        styles[variant] = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "linestyle": DASHES[i % len(DASHES)]}
    return styles


def new_figure(width: float, height: float):
    """A figure that needs no display; matplotlib is imported here, as it is slow."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure


def draw(lines: list[Line], task_name: str, title: str, path: Path | BinaryIO) -> None:
    r"""Draws token accuracy by length, and both accuracies at the training length beside each mixer's size.

    Args:
        lines (list[Line]):
            What `summarise` returned.
        task_name (str):
            Name of the task.
        title (str):
            Stands above the picture.
        path (Path | BinaryIO):
            A PNG file, replaced if it is there, or what takes its bytes.
    """
    from matplotlib.ticker import PercentFormatter, ScalarFormatter

    chance = get_task(task_name).chance
    styles = variant_styles([line.variant for line in lines])
    figure = new_figure(14, max(4.5, 1.6 + 0.36 * len(lines)))
    figure.suptitle(title, fontsize=12)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1))

    for line in lines:
        left.plot(
            line.lengths,
            [mean(values) for values in line.tokens],
            label=line.variant,
            linewidth=2.6 if line.ours else 1.4,
            markersize=7 if line.ours else 5,
            zorder=3 if line.ours else 2,
            **styles[line.variant],
        )
    left.axhline(chance, color=OTHER, linewidth=1, linestyle=(0, (1, 3)))
    left.annotate(
        "chance",
        (1, chance),
        xycoords=("axes fraction", "data"),
        xytext=(-2, -2),
        textcoords="offset points",
        ha="right",
        va="top",
        color=OTHER,
    )
    left.set_xscale("log", base=2)
    left.set_xticks(lines[0].lengths)
    left.xaxis.set_major_formatter(ScalarFormatter())
    left.minorticks_off()
    left.set(xlabel=f"test length (trained up to {lines[0].lengths[0]})", ylabel="token accuracy", ylim=(0, 1.03))
    left.yaxis.set_major_formatter(PercentFormatter(1))
    left.grid(alpha=0.3)
    left.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, handlelength=3.5)

    places = range(len(lines))
    tokens = [mean(line.tokens[0]) for line in lines]
    right.barh(places, tokens, color=[styles[line.variant]["color"] for line in lines], alpha=0.75, height=0.7)
    sequences = [mean(line.sequences[0]) for line in lines]
    right.plot(sequences, places, "D", color="white", markeredgecolor="black", markersize=6, clip_on=False, zorder=4)
    counts = {line.seeds for line in lines}
    if max(counts) > 1:
        low = [a - min(line.tokens[0]) for a, line in zip(tokens, lines)]
        high = [max(line.tokens[0]) - a for a, line in zip(tokens, lines)]
        right.errorbar(tokens, places, xerr=(low, high), fmt="none", ecolor="#444444", capsize=3, linewidth=1.2)
    right.axvline(chance, color=OTHER, linewidth=1, linestyle=(0, (1, 3)))
    labels = [
        f"{n.variant}\n{n.mixer_params / 1000:.1f}k mixer params, state {n.state or 'grows'}"
        + (f", {counts_text([n])}" if len(counts) > 1 else "")
        for n in lines
    ]
    right.set_yticks(places, labels, fontsize=7)
    right.invert_yaxis()
    right.set(xlim=(0, 1.03), xlabel=f"accuracy at length {lines[0].lengths[0]}: bar = tokens, diamond = whole sequences")
    right.xaxis.set_major_formatter(PercentFormatter(1))
    right.grid(alpha=0.3, axis="x")
    figure.savefig(path, format="png")


def draw_curves(
    curves: dict[str, list[list[tuple[int, float]]]], lengths: list[int], title: str, path: Path | BinaryIO
) -> None:
    r"""Draws token accuracy on the training batches by step, smoothed: the median seed, best variant first.

    Args:
        curves (dict[str, list[list[tuple[int, float]]]]):
            By variant, one list of (step, token accuracy) per seed.
        lengths (list[int]):
            Training lengths, which come in turn.
        title (str):
            Stands above the picture.
        path (Path | BinaryIO):
            A PNG file, replaced if it is there, or what takes its bytes.
    """
    from matplotlib.ticker import PercentFormatter

    styles = variant_styles(list(curves))
    figure = new_figure(9, 4)
    axes = figure.subplots()
    for variant, seeds in curves.items():
        steps = [step for step, _ in seeds[0]]
        accuracy = [median(values) for values in zip(*([a for _, a in curve] for curve in seeds))]
        smooth = [mean(accuracy[max(0, i - 2) : i + 3]) for i in range(len(accuracy))]
        style = {**styles[variant], "marker": ""}
        axes.plot(steps[: len(smooth)], smooth, label=variant, linewidth=2.4 if variant.startswith(OURS) else 1.3, **style)
    last = max(curve[-1][0] for seeds in curves.values() for curve in seeds)
    for i in range(1, len(lengths)):
        axes.axvline(last * i / len(lengths), color=OTHER, linewidth=1, linestyle=(0, (1, 3)))
    axes.set(
        title=title, xlabel=f"step (lengths {', '.join(map(str, lengths))} in turn)", ylabel="token accuracy", ylim=(0, 1.03)
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, handlelength=3.5)
    figure.savefig(path, format="png")
