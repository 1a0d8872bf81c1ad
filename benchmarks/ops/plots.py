"""Draws the pictures of a table that `benchmarks.ops.gpu` measured.

python -m benchmarks.ops.plots results/gpu.csv --out benchmarks/results
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import typer

from benchmarks.ops.cases import MODES, TOKENS

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


def draw_bandwidth(rows: pd.DataFrame, axes) -> None:
    """Fraction of copy bandwidth over block size, a line a length; dashes are the targets."""
    for axis, mode in zip(axes, MODES):
        for T, line in ours(rows, mode).groupby("T"):
            axis.plot(line["m"], line["copy_fraction"], marker="o", label=f"T = {T:,}")
        targets = TARGETS[mode]
        axis.plot(list(targets), list(targets.values()), linestyle="--", color="grey", label="target")
        axis.set(xscale="log", xlabel="block size m", title=f"BD-LRU, {mode}, bf16", ylim=(0, None))
        axis.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("bytes once, over copy bandwidth")
    axes[0].legend(fontsize=8)


def draw_peers(rows: pd.DataFrame, axis) -> None:
    """Time of forward and backward over length, ours and the peers at the same tokens and channels."""
    ops = rows.query("table == 'op' and mode == 'fwd+bwd' and channels == 1024 and dtype == 'bfloat16'")
    for name, line in ops[ops["op"].isna()].groupby("contender"):
        line = line.sort_values("T")
        axis.plot(line["T"], 1e6 * line["ms"] / (line["B"] * line["T"]), marker=".", linewidth=1, label=name)
    for m, line in ours(rows, "fwd+bwd").groupby("m"):
        line = line.sort_values("T")
        axis.plot(line["T"], 1e6 * line["ms"] / (line["B"] * line["T"]), marker="o", linewidth=2, label=f"BD-LRU m = {m:g}")
    axis.set(xscale="log", yscale="log", xlabel="T", ylabel="ns a token", title="forward and backward, 1,024 channels")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def draw_layers(rows: pd.DataFrame, axis) -> None:
    """Tokens per second of each layer."""
    layers = rows[rows["table"] == "layer"]
    table = layers.pivot_table(index="contender", columns="T", values="tokens_per_s", sort=False)
    (table / 1e6).plot.barh(ax=axis, width=0.8)
    axis.invert_yaxis()
    axis.legend(title="T", loc="center left", bbox_to_anchor=(1, 0.5))
    axis.set(xlabel="million tokens a second, forward and backward", ylabel="", title="layers of 33M parameters, width 1,024")
    axis.grid(alpha=0.3, axis="x")


def draw(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Writes a picture for each part of the table that is there; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    newest = rows[rows["commit"] == rows.iloc[-1]["commit"]] if rows["commit"].notna().any() else rows
    footer = f"{newest.iloc[-1]['device']}, commit {newest.iloc[-1]['commit']}, {newest.iloc[-1]['versions']}"
    written = []
    for name, columns, needs, paint in (
        ("gpu-bandwidth", 2, newest.query("table == 'op' and contender == 'chunk'"), draw_bandwidth),
        ("gpu-peers", 1, newest.query("table == 'op'"), draw_peers),
        ("gpu-layers", 1, newest.query("table == 'layer'"), draw_layers),
    ):
        if needs.empty:
            continue
        figure, axes = plt.subplots(1, columns, figsize=(5.5 * columns + 1.5, 4.6), sharey=columns > 1)
        paint(newest, axes)
        figure.text(0.01, 0.005, footer, fontsize=5, color="grey")
        figure.tight_layout(rect=(0, 0.02, 1, 1))
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], dpi=150)
        plt.close(figure)
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
    for path in draw(rows, out):
        print(path)


if __name__ == "__main__":
    typer.run(main)
