"""Accuracy over block size, over the cost of a mixer, and over gate norms: pictures of stored rows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import median

from benchmarks.records.cell import MATCHES
from benchmarks.records.naming import FAMILIES, parse_name
from benchmarks.records.style import FAMILIES as COLOURS
from benchmarks.records.style import label_points, mark_guessing, percent, picture, plot_ranges, plot_seeds, variant_styles
from benchmarks.records.summary import Comparison, Line, counts_text
from benchmarks.tasks import get_task


def _seeds(lines: Iterable[Line]) -> str:
    text = counts_text(lines)
    return text + "; points are medians, bars reach from the lowest to the highest seed" * (text != "1 seed")


def block_size_lines(comparison: Comparison) -> dict[str, list[Line]]:
    """By family, the comparison's plain lines (softmax gates, nothing added) in the order of their block size."""
    families: dict[str, list[Line]] = {}
    for line in comparison.lines:
        ours = parse_name(line.variant)
        if ours and ours.plain:
            families.setdefault(ours.family, []).append(line)
    return {name: sorted(lines, key=_size) for name, lines in sorted(families.items())}


def _size(line: Line) -> int:
    return parse_name(line.variant).size


def draw_block_sizes(comparisons: list[Comparison], path: Path) -> None:
    """Draws token accuracy over block size, a panel for each rule of matching; bars are the range over seeds.

    The comparisons are of one task and one setting. ValueError, if there are not two block sizes of one family to compare.
    """
    found = [(c, block_size_lines(c)) for c in comparisons]
    found = [(c, families) for c, families in found if any(len(lines) > 1 for lines in families.values())]
    if not found:
        raise ValueError("there are no runs of several block sizes in one comparison; run bdlru-m1, bdlru-m2, ...")
    first = found[0][0]
    seeds = _seeds(line for _, families in found for lines in families.values() for line in lines)
    with picture(path, 3.9, f"{first.heading}: block size", f"{first.training}. {seeds}.") as figure:
        panels = figure.subplots(1, len(found), squeeze=False, sharey=True).flat
        for axes, (comparison, families) in zip(panels, found):
            series, styles = {}, {}
            for name, lines in families.items():
                for i, dash in ((0, "-"), (len(comparison.lengths) - 1, ":")):
                    label = f"{FAMILIES[name]}\nat {comparison.lengths[i]}"
                    series[label] = [_size(line) for line in lines], [line.tokens[i] for line in lines]
                    styles[label] = {"color": COLOURS[name], "marker": "o", "linestyle": dash}
            axes.set_xticks(sorted({size for sizes, _ in series.values() for size in sizes}))
            axes.set(title=MATCHES.get(comparison.kind, "sizes as run"), xlabel="block size or order m", ylim=(0, 1.04))
            mark_guessing(axes, get_task(comparison.task).chance)
            percent(axes.yaxis)
            plot_ranges(axes, series, styles)
        figure.axes[0].set_ylabel("token accuracy")


def _costs(lines: list[Line]) -> dict[str, tuple[int, int]]:
    # by name, FLOPs of the mixers, and those that the rest of the model has more than another's: a wider MLP
    rest = {line.variant: line["flops_per_token"] - line["mixer_flops"] for line in lines if line["flops_per_token"]}
    least = min(rest.values(), default=0)
    return {line.variant: (line["mixer_flops"], rest.get(line.variant, least) - least) for line in lines}


def draw_costs(comparison: Comparison, path: Path) -> None:
    """Draws token accuracy at the training length over the FLOPs of the mixers, their linear maps included.

    Where a mixer was matched by a wider MLP, what that costs more than the others' counts as the mixer's. ValueError, if no
    row records `mixer_flops`.
    """
    lines = [line for line in comparison.lines if line["mixer_flops"]]
    if not lines:
        raise ValueError(f"{comparison.task}: no row records mixer_flops; --rerun records them.")
    task, styles, found = get_task(comparison.task), variant_styles([line.variant for line in lines]), _costs(lines)
    wider = ", ".join(name for name, (_, more) in found.items() if more)
    counted = "linear maps included" + f"; of {wider} with what its wider MLP has more than the others'" * bool(wider)
    note = f"{comparison.description}. FLOPs of the forward pass, {counted}. {_seeds(lines)}."
    with picture(path, 4.6, f"{comparison.heading}: accuracy and cost", note) as figure:
        axes = figure.subplots()
        costs = [sum(found[line.variant]) for line in lines]
        axes.set_xscale("log" if max(costs) > 5 * min(costs) else "linear")
        axes.set(xlabel="thousand FLOPs of the mixers, per token", ylim=(0, 1.04))
        axes.set_ylabel(f"token accuracy at length {comparison.lengths[0]}")
        axes.xaxis.set_major_formatter(lambda cost, _: f"{cost / 1000:,.0f}")
        percent(axes.yaxis)
        mark_guessing(axes, task.chance)
        points = {}
        for line, cost in zip(lines, costs):
            middle, colour = median(line.tokens[0]), styles[line.variant]["color"]
            axes.plot([cost] * 2, [min(line.tokens[0]), max(line.tokens[0])], color=colour, linewidth=1)
            axes.plot(cost, middle, color=colour, marker=styles[line.variant]["marker"], markersize=7, markeredgecolor="white")
            points[line.variant] = (cost, line.tokens[0], colour)
        axes.margins(x=0.1)
        label_points(axes, points)


def draw_gate_norms(comparison: Comparison, path: Path) -> None:
    """Draws token accuracy at the training length for each gate norm: every seed, best norm first, model by model.

    ValueError, if there are no two norms of one family and size to compare.
    """
    models: dict[str, list[tuple[str, Line]]] = {}
    for line in comparison.lines:  # best first
        if ours := parse_name(line.variant):
            models.setdefault(ours.label, []).append((ours.norm, line))
    models = {model: norms for model, norms in sorted(models.items()) if len(norms) > 1}
    if not models:
        raise ValueError(f"{comparison.task}: no mixer was run with two gate norms; run bdlru-m4 and bdlru-m4-tanh.")
    rows = sum(map(len, models.values()))
    task, seeds = get_task(comparison.task), counts_text(line for norms in models.values() for _, line in norms)
    note = f"{comparison.description}. {seeds}; dots: every seed, bars: medians."
    with picture(path, 1.6 + 0.55 * len(models) + 0.3 * rows, f"{comparison.heading}: gate norms", note) as figure:
        panels = figure.subplots(len(models), 1, squeeze=False, sharex=True, height_ratios=list(map(len, models.values())))
        for axes, (model, norms) in zip(panels.flat, models.items()):
            colour = COLOURS["bdlru" if model.startswith("BD") else "hlru"]
            lines = [line for _, line in norms]
            words = [f"{median(n.tokens[0]):.3f}" + f", {n.diverged} diverged" * bool(n.diverged) for n in lines]
            plot_seeds(axes, [(norm, colour, line.tokens[0]) for norm, line in norms], {"median": (12, words)})
            axes.set_title(model, loc="left", pad=20)  # above the name of the line of guessing
            mark_guessing(axes, task.chance, along="x")
            percent(axes.xaxis)
        axes.set(xlim=(0, None), xlabel=f"token accuracy at length {comparison.lengths[0]}")
