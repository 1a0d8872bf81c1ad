"""What a trained block does at each letter of a group: its matrices, a model that holds the group beside one that does not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.records.style import picture
from benchmarks.report.transitions import load_model, run_transitions
from benchmarks.tasks import get_task

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = 15  # letters beside each other


def letter_matrices(folder: str | Path, row: dict) -> torch.Tensor:
    """The matrices `[letters, M, M]` of the block whose gates are the most exact, a letter at a time.

    The run is of one BD-LRU layer without convolution, so that gates depend on the letter alone; ValueError, if it has no such
    layer, or kept no weights in `folder`.
    """
    if row["mixer"] != "bdlru" or row["layers"] != 1 or row["mixer_args"].get("use_short_conv"):
        raise ValueError(f"{row['variant']} with {row['layers']} block(s): gates of a letter need one plain BD-LRU layer.")
    letters = torch.arange(get_task(row["task"]).vocab_size)[:, None]  # without BOS
    blocks = run_transitions(load_model(folder, row), letters)[0][:, 0]  # [letters, H, M, M]
    exact = blocks.abs().amax(-1).mean((0, 2))
    return blocks[:, exact.argmax()]


def are_permutations(matrices: torch.Tensor, above: float = 0.9) -> torch.Tensor:
    r"""Which of the matrices `[..., M, M]` are signed permutations, up to what is missing to `above` in each row.

    Example:
        >>> import torch
        >>> from benchmarks.report.gates import are_permutations
        >>> turn, leak = torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.full((2, 2), 0.5)
        >>> merge = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> are_permutations(torch.stack([turn, leak, merge])).tolist()
        [True, False, False]
    """
    large = matrices.abs() > above
    return (large.sum(-1) == 1).all(-1) & (large.sum(-2) == 1).all(-1)


def best_and_worst(folder: str | Path, rows: Sequence[dict]) -> pd.DataFrame:
    """The letters' matrices of the run that holds its group longest, and of the one that does not learn it or loses it first.

    Where all do equally well, of one run. Of `rows` of one task other mixers do not count. `run` says what it is, and scores;
    `matrix` has a `letter`'s entries with three decimals, row by row; empty with less than two runs. ValueError, if gates are
    not those of single letters, or no weights were kept in `folder`.
    """
    import pandas as pd

    ours = [row for row in rows if row["mixer"] == "bdlru"]
    if len(ours) < 2:
        return pd.DataFrame()
    longest, trained = max(ours[0]["eval_lengths"]), min(ours[0]["eval_lengths"])
    kept = f"token_accuracy_{longest // trained}x"
    best = max(ours, key=lambda row: row[kept])
    worst = min(ours, key=lambda row: (row["token_accuracy_1x"], row[kept]))
    found = []
    for row in (best,) if worst is best else (best, worst):
        matrices = letter_matrices(folder, row)
        scores = ", ".join(f"{row[f'token_accuracy_{n // trained}x']:.2f} at {n}" for n in (trained, longest))
        words = f"{row['variant']}, seed {row['seed']}, lr {row['lr']:g}: {scores}"
        found += [
            (words, letter, " ".join(f"{entry:.3f}" for entry in matrix.flatten())) for letter, matrix in enumerate(matrices)
        ]
    return pd.DataFrame(found, columns=["run", "letter", "matrix"])


def read_panels(table: pd.DataFrame) -> list[tuple[str, torch.Tensor]]:
    """Words and matrices `[letters, M, M]` of each run in what `best_and_worst` returned."""
    panels = []
    for words, rows in table.groupby("run", sort=False):
        entries = torch.tensor([[float(entry) for entry in text.split()] for text in rows["matrix"]], dtype=torch.float64)
        size = round(entries.shape[1] ** 0.5)
        panels.append((words, entries.unflatten(1, (size, size))))
    return panels


def draw_gates(panels: Sequence[tuple[str, torch.Tensor]], title: str, note: str, path: Path) -> None:
    """Draws the matrices `[letters, M, M]` of panels, a tile a letter: blue 1, red -1, a frame where it is no permutation."""
    from matplotlib.patches import Rectangle

    with picture(path, 3.2, title, note) as figure:
        for axes, (words, matrices) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels):
            n, m, _ = matrices.shape
            rows = -(-n // COLUMNS)
            grid = torch.full((rows * (m + 1) - 1, COLUMNS * (m + 1) - 1), float("nan"), dtype=torch.float64)
            for i, matrix in enumerate(matrices):
                top, left = i // COLUMNS * (m + 1), i % COLUMNS * (m + 1)
                grid[top : top + m, left : left + m] = matrix
            exact = are_permutations(matrices)
            for i in (~exact).nonzero().flatten().tolist():
                corner = (i % COLUMNS * (m + 1) - 0.9, i // COLUMNS * (m + 1) - 0.9)
                axes.add_patch(
                    Rectangle(corner, m + 0.8, m + 0.8, fill=False, edgecolor="#E69F00", linewidth=1.6, clip_on=False)
                )
            axes.imshow(grid.numpy(), cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")
            axes.set_facecolor("#c9ced4")  # between the tiles
            axes.set_title(f"{words}\n{exact.sum()} of {n} letters are signed permutations", loc="left", size=9)
            axes.spines[:].set_visible(False)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(visible=False)
