"""What a comparison shows: a table in the terminal and a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from rich import box
from rich.table import Table

from benchmarks.store import MULTIPLES
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


@dataclass(frozen=True)
class Line:
    r"""A variant's results over its seeds, at the learning rate that did best on the validation stream.

    Attributes:
        variant (str):
            Name of the variant.
        lr (float):
            The chosen peak learning rate.
        seeds (int):
            Number of runs that are averaged.
        params, mixer_params (int):
            Parameters of the model and of its mixers.
        state (str):
            State elements per sequence.
        lengths (list[int]):
            Evaluated lengths.
        tokens, sequences (list[list[float]]):
            Token and sequence accuracies: one list per length, one value per seed.
        seconds (float):
            Mean training time.
        diverged (int):
            Number of runs whose loss was not finite at some point.
    """

    variant: str
    lr: float
    seeds: int
    params: int
    mixer_params: int
    state: str
    lengths: list[int]
    tokens: list[list[float]]
    sequences: list[list[float]]
    seconds: float
    diverged: int

    @property
    def order(self) -> tuple[float, ...]:
        """Sorts best first: token accuracy at the training length, then at longer ones."""
        return tuple(-mean(values) for values in self.tokens)


def summarise(rows: list[dict[str, str]]) -> list[Line]:
    r"""Averages rows over seeds, best variant first.

    Args:
        rows (list[dict[str, str]]):
            Rows of one task as the results file holds them.

    Returns:
        list[Line]:
            One per variant.
    """
    groups: dict[str, dict[str, list[dict[str, str]]]] = {}
    for row in rows:
        groups.setdefault(row["variant"], {}).setdefault(row["lr"], []).append(row)
    lines = []
    for variant, by_lr in groups.items():
        lr, runs = max(by_lr.items(), key=lambda item: mean(float(r["validation_token_accuracy"]) for r in item[1]))
        first = runs[0]
        multiples = [k for k in MULTIPLES if first[f"token_accuracy_{k}x"]]
        lines.append(
            Line(
                variant=variant,
                lr=float(lr),
                seeds=len(runs),
                params=int(first["params"]),
                mixer_params=int(first["mixer_params"]),
                state=first["state_size"],
                lengths=[int(length) for length in first["eval_lengths"].split()],
                tokens=[[float(r[f"token_accuracy_{k}x"]) for r in runs] for k in multiples],
                sequences=[[float(r[f"sequence_accuracy_{k}x"]) for r in runs] for k in multiples],
                seconds=mean(float(r["seconds"]) for r in runs),
                diverged=sum(r["diverged"] == "True" for r in runs),
            )
        )
    return sorted(lines, key=lambda line: line.order)


def _spread(values: list[float], ranges: bool) -> str:
    return f"{mean(values):.3f}" + (f"\n{min(values):.2f}-{max(values):.2f}" if ranges else "")


def make_table(lines: list[Line], title: str, width: int = 160) -> Table:
    r"""The table, best first; with several seeds a cell is the mean and, below it, the range.

    Args:
        lines (list[Line]):
            What `summarise` returned.
        title (str):
            Stands above the table.
        width (int):
            Width of the terminal in characters; below 100, columns that can be spared are left out. Default: 160.

    Returns:
        Table:
            For a rich console.
    """
    seeds = lines[0].seeds > 1
    wide = width >= (124 if seeds else 100)
    ranges = seeds and width >= 100
    several_lrs = len({line.lr for line in lines}) > 1
    scores = [("token", i) for i in range(len(lines[0].lengths))]
    scores += [("sequence", i) for i in range(len(lines[0].lengths) if wide else 1)]

    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False, show_lines=False)
    table.add_column("mixer", no_wrap=True)
    table.add_column("mixer\nparams", justify="right")
    if wide:
        table.add_column("all\nparams", justify="right")
    table.add_column("state", justify="right")
    for kind, i in scores:
        table.add_column(f"{kind if wide else kind[:3]}\n@{lines[0].lengths[i]}", justify="right")
    if several_lrs:
        table.add_column("lr", justify="right")
    table.add_column("time\ns", justify="right")
    for line in lines:
        cells = [line.variant, f"{line.mixer_params / 1000:.1f}k"]
        cells += [f"{line.params / 1000:.1f}k"] if wide else []
        cells += [line.state or "grows"]
        cells += [_spread((line.tokens if kind == "token" else line.sequences)[i], ranges) for kind, i in scores]
        cells += [f"{line.lr:g}"] if several_lrs else []
        table.add_row(*cells, f"{line.seconds:.0f}", style="bold" if line.variant.startswith("bdlru") else "")
    table.caption = "token, sequence: accuracy at that length" + (
        f"; mean{', range' if ranges else ''} of {lines[0].seeds} seeds" if seeds else ""
    )
    table.caption_justify = "left"
    return table


def _family(variant: str) -> str:
    return max((name for name in FAMILIES if variant.startswith(name)), key=len, default="")


def line_styles(variants: list[str]) -> dict[str, dict]:
    """Colour, marker and dash of each variant: one colour a family."""
    styles, members = {}, {}
    for variant in sorted(variants, reverse=True):  # the largest of a family gets the solid line
        colour = FAMILIES.get(_family(variant), OTHER)
        i = members[colour] = members.get(colour, -1) + 1
        styles[variant] = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "linestyle": DASHES[i % len(DASHES)]}
    return styles


def draw(lines: list[Line], task_name: str, title: str, path: Path) -> None:
    r"""Draws token accuracy by length, and both accuracies at the training length beside each mixer's size.

    Args:
        lines (list[Line]):
            What `summarise` returned.
        task_name (str):
            Name of the task.
        title (str):
            Stands above the picture.
        path (Path):
            A PNG file; replaced if it is there.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter, ScalarFormatter

    chance = get_task(task_name).chance
    styles = line_styles([line.variant for line in lines])
    figure = Figure(figsize=(14, max(4.5, 1.6 + 0.36 * len(lines))), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1))

    for line in lines:
        ours = line.variant.startswith(("bdlru", "hlru"))
        left.plot(
            line.lengths,
            [mean(values) for values in line.tokens],
            label=line.variant,
            linewidth=2.6 if ours else 1.4,
            markersize=7 if ours else 5,
            zorder=3 if ours else 2,
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
    if lines[0].seeds > 1:
        low = [a - min(line.tokens[0]) for a, line in zip(tokens, lines)]
        high = [max(line.tokens[0]) - a for a, line in zip(tokens, lines)]
        right.errorbar(tokens, places, xerr=(low, high), fmt="none", ecolor="#444444", capsize=3, linewidth=1.2)
    right.axvline(chance, color=OTHER, linewidth=1, linestyle=(0, (1, 3)))
    labels = [f"{n.variant}\n{n.mixer_params / 1000:.1f}k mixer params, state {n.state or 'grows'}" for n in lines]
    right.set_yticks(places, labels, fontsize=7)
    right.invert_yaxis()
    right.set(xlim=(0, 1.03), xlabel=f"accuracy at length {lines[0].lengths[0]}: bar = tokens, diamond = whole sequences")
    right.xaxis.set_major_formatter(PercentFormatter(1))
    right.grid(alpha=0.3, axis="x")
    figure.savefig(path)
