"""Draws the pictures of a table that `benchmarks.ops.gpu` measured.

python -m benchmarks.ops.plots results/gpu.csv --out benchmarks/results
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from benchmarks.ops.cases import MODES, TOKENS
from benchmarks.records.store import unwritten
from benchmarks.records.style import OTHER, picture, plot_ranges, plot_seeds, scale_lengths, variant_styles

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B35A8D", "#B57B00", "#000000")  # of lengths
TARGETS = {"fwd": {1: 0.75, 2: 0.75, 4: 0.75, 8: 0.5}, "fwd+bwd": {1: 0.6, 2: 0.6, 4: 0.6, 8: 0.5}}


def read(path: Path) -> pd.DataFrame:
    """The rows that have a time; raises `ValueError` if the file is not a table of `benchmarks.ops.gpu`."""
    rows = pd.read_csv(path)
    missing = {"table", "contender", "mode", "ms", "device", "commit"} - set(rows)
    if missing:
        raise ValueError(f"{path} is not a table of benchmarks.ops.gpu: it has no column {', '.join(sorted(missing))}.")
    rows = rows[rows["ms"].notna()]
    if rows.empty:
        raise ValueError(f"{path} has no row with a time.")
    return rows


def ours(rows: pd.DataFrame, mode: str) -> pd.DataFrame:
    """BD-LRU in the middle of the table: per m and T the smallest batch of at least 16K tokens."""
    chosen = rows.query("table == 'op' and contender == 'chunk' and op == 'bdlru' and channels == 1024 and mode == @mode")
    chosen = chosen[(chosen["dtype"] == "bfloat16") & (chosen["B"] * chosen["T"] >= TOKENS)]
    return chosen.sort_values(["B", "m", "T"]).drop_duplicates(["m", "T"])


def draw_bandwidth(rows: pd.DataFrame, figure) -> None:
    """Fraction of copy bandwidth over block size, a line a length; dashes are the targets."""
    for axes, mode in zip(figure.subplots(1, 2, sharey=True), MODES):
        axes.set(xlabel="block size m", title=f"BD-LRU, {mode}, bf16", ylim=(0, None))
        scale_lengths(axes, [1, 2, 4, 8, 16])
        lines = [(T, line.sort_values("m")) for T, line in ours(rows, mode).groupby("T")]
        series = {f"T = {T:,}": (list(line["m"]), [[x] for x in line["copy_fraction"]]) for T, line in lines}
        styles = {name: {"color": colour, "marker": "o"} for name, colour in zip(series, COLOURS)}
        targets = TARGETS[mode]
        series["target"] = list(targets), [[x] for x in targets.values()]
        plot_ranges(axes, series, {**styles, "target": {"color": OTHER, "linestyle": "--"}})
    figure.axes[0].set_ylabel("bytes once, over copy bandwidth")


def draw_peers(rows: pd.DataFrame, figure) -> None:
    """Time of forward and backward over length, ours and the peers at the same tokens and channels."""
    ops = rows.query("table == 'op' and mode == 'fwd+bwd' and channels == 1024 and dtype == 'bfloat16'")
    lines = [*ops[ops["op"].isna()].groupby("contender")]
    lines += [(f"bdlru-m{m:g}", line) for m, line in ours(rows, "fwd+bwd").groupby("m")]
    series = {}
    for name, line in lines:
        line = line.sort_values("T")
        series[name] = list(line["T"]), [[x] for x in 1e6 * line["ms"] / (line["B"] * line["T"])]
    axes = figure.subplots()
    scale_lengths(axes, sorted({T for Ts, _ in series.values() for T in Ts}))
    axes.set(yscale="log", xlabel="length T", ylabel="ns a token, forward and backward")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter("{x:,g}")
    plot_ranges(axes, series)


def draw_layers(rows: pd.DataFrame, figure) -> None:
    """Tokens per second of each layer, a dot a length."""
    table = rows[rows["table"] == "layer"].pivot_table(index="contender", columns="T", values="tokens_per_s", sort=False) / 1e6
    axes = figure.subplots()
    styles = variant_styles(list(table.index))
    words = {f"T = {T:,}": (12 + 60 * i, [f"{x:.2f}" for x in table[T]]) for i, T in enumerate(table)}
    plot_seeds(axes, [(name, styles[name]["color"], list(line.dropna())) for name, line in table.iterrows()], words)
    axes.set(xlim=(0, None), xlabel="million tokens a second, forward and backward; a dot a length")


def draw(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Writes a picture for each part of the table that is there; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    newest = rows[rows["commit"] == rows.iloc[-1]["commit"]] if rows["commit"].notna().any() else rows
    note = f"{newest.iloc[-1]['device']}, commit {newest.iloc[-1]['commit']}, {newest.iloc[-1]['versions']}"
    layers = newest.query("table == 'layer'").drop_duplicates("contender")
    written = []
    for name, title, height, needs, paint in (
        ("gpu-bandwidth", "How near to copying memory BD-LRU runs", 4, newest.query("contender == 'chunk'"), draw_bandwidth),
        ("gpu-peers", "Time of ops at 1,024 channels", 4.6, newest.query("table == 'op'"), draw_peers),
        ("gpu-layers", "Layers of 33M parameters, width 1,024", 1.8 + 0.3 * len(layers), layers, draw_layers),
    ):
        if needs.empty:
            continue
        written.append(folder / f"{name}.png")
        with picture(written[-1], height, title, note) as figure:
            paint(newest, figure)
    return written


def main(
    table: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="gpu.csv of a run.")],
    out: Annotated[Path, typer.Option(help="Where the pictures go.")] = Path("results"),
) -> None:
    """Draws what the table holds."""
    try:
        rows = read(table)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    try:
        written = draw(rows, out)
    except OSError as error:
        raise typer.BadParameter(unwritten(error), param_hint="--out") from None
    for path in written:
        print(path)


if __name__ == "__main__":
    typer.run(main)
