"""Accuracy over block size, over the cost of a recurrent step, and over gate norms: pictures of stored rows."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from benchmarks.compare.presets import MATCHES
from benchmarks.records.naming import FAMILIES, parse_name
from benchmarks.records.style import FAMILIES as COLOURS
from benchmarks.records.style import OTHER, new_figure, variant_styles
from benchmarks.records.summary import Comparison, Line
from benchmarks.tasks import get_task
from fla_bdlru.ops import GATE_NORMS


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
    r"""Draws token accuracy over block size, a panel for each rule of matching; bars are the range over seeds.

    Args:
        comparisons (list[Comparison]):
            Of one task and one setting, matched by parameters, by state or both.
        path (Path):
            A PNG file; replaced if it is there.

    Raises:
        ValueError: if there are not two block sizes of one family to compare.
    """
    found = [(c, block_size_lines(c)) for c in comparisons]
    found = [(c, families) for c, families in found if any(len(lines) > 1 for lines in families.values())]
    if not found:
        raise ValueError("there are no runs of several block sizes in one comparison; run bdlru-m1, bdlru-m2, ...")
    figure = new_figure(5.2 * len(found), 4.2)
    for axes, (comparison, families) in zip(figure.subplots(1, len(found), squeeze=False, sharey=True).flat, found):
        for name, lines in families.items():
            sizes = [_size(line) for line in lines]
            for i, dash in ((0, "-"), (len(comparison.lengths) - 1, ":")):
                means = [mean(line.tokens[i]) for line in lines]
                below = [m - min(line.tokens[i]) for m, line in zip(means, lines)]
                above = [max(line.tokens[i]) - m for m, line in zip(means, lines)]
                label = f"{FAMILIES[name]} @{comparison.lengths[i]}"
                axes.errorbar(sizes, means, (below, above), fmt=f"o{dash}", color=COLOURS[name], capsize=3, label=label)
        axes.axhline(get_task(comparison.task).chance, color=OTHER, linewidth=1, linestyle=(0, (1, 3)))
        kind = MATCHES.get(comparison.kind, "sizes as run")
        seeds = max(line.seeds for line in comparison.lines)
        axes.set_xticks(sorted({_size(line) for lines in families.values() for line in lines}))
        axes.set(title=f"{comparison.title}: {kind}, {seeds} seed(s)", xlabel="block size or order m", ylim=(0, 1.03))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("token accuracy (mean, range)")
    figure.savefig(path, format="png")


def draw_costs(comparison: Comparison, path: Path) -> None:
    r"""Draws token accuracy at the training length over the FLOPs of a recurrent step.

    Args:
        comparison (Comparison):
            Whose rows record `recurrent_flops`.
        path (Path):
            A PNG file; replaced if it is there.

    Raises:
        ValueError: if none of them does.
    """
    lines = [line for line in comparison.lines if line.recurrent_flops]
    if not lines:
        raise ValueError(f"{comparison.task}: no row records recurrent_flops; --rerun records them.")
    styles = variant_styles([line.variant for line in lines])
    figure = new_figure(9, 4.6)
    axes = figure.subplots()
    for line in lines:
        means = mean(line.tokens[0])
        spread = [[means - min(line.tokens[0])], [max(line.tokens[0]) - means]]
        style = {**styles[line.variant], "linestyle": "none"}
        axes.errorbar(int(line.recurrent_flops), means, spread, capsize=3, label=line.variant, markersize=8, **style)
    axes.axhline(get_task(comparison.task).chance, color=OTHER, linewidth=1, linestyle=(0, (1, 3)))
    costs = [int(line.recurrent_flops) for line in lines]
    axes.set_xscale("log" if max(costs) > 5 * min(costs) else "linear")
    xlabel = "FLOPs of a recurrent step (mixers without their linear maps, per token)"
    axes.set(title=f"{comparison.task}: {comparison.description}", xlabel=xlabel, ylim=(0, 1.03))
    axes.set_ylabel(f"token accuracy @{comparison.lengths[0]} (mean, range)")
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    figure.savefig(path, format="png")


def draw_gate_norms(comparison: Comparison, path: Path) -> None:
    r"""Draws token accuracy at the training length for each gate norm, a group of bars per norm.

    Args:
        comparison (Comparison):
            With variants of one family and size that differ in their gate norm.
        path (Path):
            A PNG file; replaced if it is there.

    Raises:
        ValueError: if there are no two norms to compare.
    """
    models: dict[str, dict[str, Line]] = {}
    for line in comparison.lines:
        if ours := parse_name(line.variant):
            models.setdefault(ours.label, {})[ours.norm] = line
    models = {model: norms for model, norms in sorted(models.items()) if len(norms) > 1}
    if not models:
        raise ValueError(f"{comparison.task}: no mixer was run with two gate norms; run bdlru-m4 and bdlru-m4-tanh.")
    norms = [norm for norm in GATE_NORMS if any(norm in found for found in models.values())]
    figure = new_figure(max(6, 1.2 * len(norms) + 2), 4.2)
    axes = figure.subplots()
    width = 0.8 / len(models)
    for i, (model, found) in enumerate(models.items()):
        places = [norms.index(norm) + (i - (len(models) - 1) / 2) * width for norm in found]
        means = [mean(line.tokens[0]) for line in found.values()]
        below = [m - min(line.tokens[0]) for m, line in zip(means, found.values())]
        above = [max(line.tokens[0]) - m for m, line in zip(means, found.values())]
        colour = COLOURS["bdlru" if model.startswith("BD") else "hlru"]
        alpha = 1 - 0.5 * i / len(models)
        axes.bar(places, means, width * 0.92, yerr=(below, above), capsize=3, color=colour, alpha=alpha, label=model)
        for place, line, value in zip(places, found.values(), means):
            text = f"{value:.2f}" + ("\ndiverged" if line.diverged else "")
            top = (place, max(line.tokens[0]))
            axes.annotate(text, top, (0, 4), textcoords="offset points", ha="center", va="bottom", fontsize=7)
    axes.axhline(get_task(comparison.task).chance, color=OTHER, linewidth=1, linestyle=(0, (1, 3)))
    axes.set_xticks(range(len(norms)), norms)
    seeds = max(line.seeds for found in models.values() for line in found.values())
    axes.set(title=f"{comparison.title}: gate norms, {seeds} seed(s)", ylim=(0, 1.08))
    axes.set_ylabel(f"token accuracy @{comparison.lengths[0]} (mean, range)")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8)
    figure.savefig(path, format="png")
