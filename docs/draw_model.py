"""Draws docs/model.png: what mixes with what in one step of a diagonal, a block-diagonal and a higher-order recurrence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

N, M = 8, 4
GATE, SHIFT = "#1f77b4", "#b8b8b8"


def transitions() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per panel its title, where gates stand and where ones stand (companion blocks shift)."""
    block = np.kron(np.eye(N // M), np.ones((M, M)))
    companion = np.kron(np.eye(N // M), np.vstack([np.ones((1, M)), np.zeros((M - 1, M))]))
    shift = np.kron(np.eye(N // M), np.eye(M, k=-1))
    nothing = np.zeros((N, N))
    return {
        "diagonal LRU\na channel keeps itself": (np.eye(N), nothing),
        f"BD-LRU, m = {M}\nchannels of a block mix": (block, nothing),
        f"H-LRU, order {M}\na channel mixes its last {M} values": (companion, shift),
    }


def main() -> None:
    figure = Figure(figsize=(8.3, 3.3), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, (gates, ones)) in zip(figure.subplots(1, 3), transitions().items()):
        for value, colour, name in ((gates, GATE, "gate"), (ones, SHIFT, "1")):
            for i, j in zip(*np.nonzero(value)):
                axes.add_patch(_square(j, i, colour))
            if value.any() and value is ones:
                i, j = next(zip(*np.nonzero(value)))
                axes.annotate(name, (j + 0.5, i + 0.55), ha="center", va="center", fontsize=7)
        axes.set(xlim=(0, N), ylim=(N, 0), xticks=[], yticks=[], aspect="equal")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("state before", fontsize=8)
    figure.axes[0].set_ylabel("state after", fontsize=8)
    figure.supxlabel("blue: a gate made from the token; the |gates| of a row and of its input sum to 1", fontsize=8)
    figure.savefig(Path(__file__).with_name("model.png"))


def _square(x: int, y: int, colour: str) -> Rectangle:
    return Rectangle((x + 0.06, y + 0.06), 0.88, 0.88, color=colour, linewidth=0)


if __name__ == "__main__":
    main()
