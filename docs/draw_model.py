"""Draws docs/model.png: what mixes with what in one step of a diagonal, a block-diagonal and a higher-order recurrence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

N, M = 8, 4
GATE, SHIFT = "#0072B2", "#b8b8b8"


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
    figure = Figure(figsize=(8.3, 3.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, panel) in zip(figure.subplots(1, 3), transitions().items()):
        for squares, colour, name in zip(panel, (GATE, SHIFT), ("", "1")):
            for y, x in zip(*np.nonzero(squares)):
                axes.add_patch(Rectangle((x + 0.06, y + 0.06), 0.88, 0.88, color=colour, linewidth=0))
                axes.annotate(name, (x + 0.5, y + 0.55), ha="center", va="center", fontsize=8)
        axes.set(xlim=(0, N), ylim=(N, 0), xticks=[], yticks=[], aspect="equal")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("state before", fontsize=9)
    figure.axes[0].set_ylabel("state after", fontsize=9)
    figure.supxlabel("blue: a gate made from the token; the |gates| of a row and of its input sum to 1", fontsize=9)
    figure.savefig(Path(__file__).with_name("model.png"))


if __name__ == "__main__":
    main()
