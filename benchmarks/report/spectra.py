"""Eigenvalue spectra and memory of trained BD-LRU and H-LRU layers, over block sizes."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median

import pandas as pd
import torch

from benchmarks.records.naming import parse_name
from benchmarks.records.style import DOTTED, OTHER, picture
from benchmarks.report.transitions import classify, stored_transitions, time_constants

COLOURS = {"positive": "#777777", "negative": "#D55E00", "complex": "#0072B2"}
KINDS = {"positive": "positive real ones are grey", "negative": "negative real ones orange", "complex": "complex ones blue"}
DRAWN = 2000  # eigenvalues in a panel; more are a blot
LONGEST = 1e4  # time constants beyond stand here in the picture


def ours(rows: list[dict]) -> list[dict]:
    """The rows of BD-LRU and H-LRU, sorted by family, size, what is special about them, and seed."""
    found = [(parse_name(row["variant"]), row) for row in rows]
    found = [(ours.family, ours.size, row["variant"], row["seed"], row) for ours, row in found if ours]
    return [row for *_, row in sorted(found, key=lambda entry: entry[:-1])]


def eigenvalues(folder: str | Path, rows: list[dict]) -> pd.DataFrame:
    """Eigenvalues of the transitions that trained layers of BD-LRU and H-LRU apply to test sequences of one task.

    One line per run, layer and different eigenvalue (rounded to four decimals): `variant`, `seed`, `layer`, `real`, `imag`,
    `kind` and `share`, how much of the layer's eigenvalues it makes up. ValueError, if a run's weights were not kept in
    `folder`.
    """
    frames = []
    for row in ours(rows):
        for number, matrices in enumerate(stored_transitions(folder, row)):
            # a layer that sees tokens alone has few different transitions
            different, counts = matrices.flatten(0, 2).unique(dim=0, return_counts=True)
            values = torch.linalg.eigvals(different)
            kinds = classify(values)
            for kind, mask in kinds.items():
                picked = values[mask]
                weight = counts[:, None].expand_as(mask)[mask].double() / matrices.shape[:-1].numel()
                frame = pd.DataFrame({"real": picked.real.numpy().round(4), "imag": picked.imag.numpy().round(4)})
                frame = frame.assign(share=weight.numpy(), kind=kind, variant=row["variant"], seed=row["seed"], layer=number)
                frames.append(frame)
    columns = ["variant", "seed", "layer", "kind", "real", "imag"]
    if not frames:
        return pd.DataFrame(columns=[*columns, "share"])
    return pd.concat(frames).groupby(columns, sort=False, as_index=False)["share"].sum()


def summarise_eigenvalues(table: pd.DataFrame) -> pd.DataFrame:
    """By variant: its `runs`, the shares of `positive`, `negative` and `complex` eigenvalues, and extremes.

    These are the lowest real part (`most_negative`), the largest `angle` in degrees, and the mean and largest modulus.
    """
    lines = []
    for variant, part in table.groupby("variant", sort=False):
        total = part["share"].sum()
        modulus = (part["real"] ** 2 + part["imag"] ** 2) ** 0.5
        turning = part[part["kind"] == "complex"]
        angles = [math.degrees(math.atan2(abs(i), r)) for r, i in zip(turning["real"], turning["imag"])]
        lines.append(
            {
                "variant": variant,
                "runs": part["seed"].nunique(),
                **{kind: part.loc[part["kind"] == kind, "share"].sum() / total for kind in COLOURS},
                "most_negative": part["real"].min(),
                "angle": max(angles, default=0.0),
                "mean_modulus": (modulus * part["share"]).sum() / total,
                "largest_modulus": modulus.max(),
            }
        )
    return pd.DataFrame(lines)


def draw_spectra(table: pd.DataFrame, accuracies: dict[str, list[float]], title: str, note: str, path: Path) -> None:
    """Draws each variant's `eigenvalues` in the complex plane, and how many are of which kind."""
    summary = summarise_eigenvalues(table).set_index("variant")
    across = min(4, len(summary))
    down = -(-len(summary) // across)
    angle = torch.linspace(0, 2 * math.pi, 200)
    with picture(
        path, (7.6 / max(3, across) + 1.25) * down + 0.7, title, f"{note} Eigenvalues: {', '.join(KINDS.values())}."
    ) as figure:
        panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat
        for axes, variant in zip(panels, summary.index):
            part = table[table["variant"] == variant]
            part = part.sample(min(len(part), DRAWN), random_state=0)
            axes.plot(angle.cos(), angle.sin(), color="#bbbbbb", linewidth=1)
            for kind, colour in COLOURS.items():
                points = part[part["kind"] == kind]
                axes.scatter(points["real"], points["imag"], s=7, color=colour, alpha=0.55, linewidths=0)
            axes.set_title(variant, weight="bold", pad=44)
            accuracy = f"accuracy {median(accuracies[variant]):.2f}" + _range(accuracies[variant])
            shares = [(kind, f"{kind} {summary.loc[variant, kind]:.0%}") for kind in ("negative", "complex")]
            for line, (kind, text) in enumerate([("", accuracy), *shares]):
                options = {"ha": "center", "size": 9, "color": COLOURS.get(kind, "black")}
                axes.annotate(text, (0.5, 1), (0, 30 - 13 * line), "axes fraction", "offset points", **options)
            limits = {"xlim": (-1.08, 1.08), "ylim": (-1.08, 1.08), "xticks": (-1, 0, 1), "yticks": (-1, 0, 1)}
            axes.set(aspect="equal", xlabel="real part", **limits)
        for axes in list(panels):
            axes.set_axis_off()
        figure.axes[0].set_ylabel("imaginary part")


def _range(values: list[float]) -> str:
    return f" ({min(values):.2f}-{max(values):.2f})" if len(values) > 1 else ""


def memory(folder: str | Path, rows: list[dict]) -> pd.DataFrame:
    """Time constants of trained layers of BD-LRU and H-LRU on test sequences of one task.

    One line per run, layer and block (or channel): `variant`, `seed`, `layer`, `block` and `steps`, the median over sequences
    of `time_constants`. ValueError, if a run's weights were not kept in `folder`.
    """
    lines = []
    for row in ours(rows):
        for number, matrices in enumerate(stored_transitions(folder, row)):
            for block, steps in enumerate(time_constants(matrices).median(0).values.tolist()):
                run = {"variant": row["variant"], "seed": row["seed"], "layer": number}
                lines.append({**run, "block": block, "steps": steps})
    return pd.DataFrame(lines, columns=["variant", "seed", "layer", "block", "steps"])


def draw_memory(table: pd.DataFrame, length: int, title: str, note: str, path: Path) -> None:
    """Draws the time constants, from `memory`, of each variant's blocks, their median and the training length."""
    note = f"{note} A dot is a block, a bar the median; above {LONGEST:,.0f} steps nothing decays."
    with picture(path, 4.2, title, note) as figure:
        axes = figure.subplots()
        groups = list(table.groupby("variant", sort=False)["steps"])
        for place, (_, steps) in enumerate(groups):
            steps = sorted(steps.clip(upper=LONGEST))
            spread = [place + 0.5 * (i / max(1, len(steps) - 1) - 0.5) for i in range(len(steps))]
            axes.scatter(spread, steps, s=10, alpha=0.6, color=COLOURS["complex"], linewidths=0)
            middle = median(steps)
            axes.plot([place - 0.3, place + 0.3], [middle] * 2, color="black", linewidth=2)
            axes.annotate(f"{middle:,.0f}", (place + 0.32, middle), va="center", size=9)
        axes.axhline(length, color=OTHER, linewidth=1.2, linestyle=DOTTED)
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate(f"training length {length}", (0.99, length), (0, 3), ha="right", color=OTHER, size=8.5, **place)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:,g}")
        names = [name for name, _ in groups]
        axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 5 else 0)
        axes.set(ylabel="time constant in steps", xlim=(-0.6, len(names) - 0.3))
