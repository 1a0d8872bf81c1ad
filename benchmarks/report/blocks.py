"""Which blocks of a trained BD-LRU layer hold the state, and which mislead: what is told by one alone, and without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from benchmarks.compare.train import evaluate
from benchmarks.records.plots import Figure, Panel
from benchmarks.report.transitions import load_model
from benchmarks.tasks import get_task, make_generator
from fla_bdlru.layers import BDLRU

EXAMPLES = 64
SHOWN = 12  # blocks of a run in the figure
ALL = "all"
MEASURES = {"alone": "by one block alone", "without": "without one block", "together": "by the first so many blocks together"}


@contextmanager
def silenced(layer: BDLRU, silent: torch.Tensor, said: torch.Tensor) -> Iterator[None]:
    r"""The blocks of a layer in the mask `silent`, of shape `[H]`, always say the same: `said`, `[M*H]`, gate-major.

    Example:
        >>> import torch
        >>> from benchmarks.report.blocks import silenced
        >>> from fla_bdlru.layers import BDLRU
        >>> layer, x = BDLRU(8, block_size=2), torch.randn(1, 5, 8)
        >>> with silenced(layer, torch.ones(4, dtype=torch.bool), torch.zeros(8)):
        ...     assert not layer(x)[0].any()
        >>> assert layer(x)[0].any()
    """
    features = silent.repeat(layer.block_size)
    hook = layer.o_proj.register_forward_pre_hook(lambda module, args: (torch.where(features, said.to(args[0]), args[0]),))
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def what_is_said(model: nn.Module, layer: BDLRU, tokens: torch.Tensor) -> torch.Tensor:
    """What `o_proj` of a layer of the model reads, `[B, T, M*H]`, at tokens `[B, T]`."""
    found = []
    hook = layer.o_proj.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    try:
        model(input_ids=tokens)
    finally:
        hook.remove()
    return found[0]


def block_roles(folder: str | Path, rows: list[dict]) -> pd.DataFrame:
    """What runs of one BD-LRU layer on one task tell by each block alone, and without it; the others say their mean.

    One line per run and block, those that tell most by themselves first, then the loudest: `variant`, `seed`, `block`; `share`
    of what is said (mean squares after `o_proj`); `length`, the longest of the test; sequence accuracies there: of the `whole`
    model, by the block `alone`, `without` it, and `together` with those of the lines before. Empty, if no such runs are there;
    ValueError, if weights were not kept in `folder`.
    """
    lines = []
    for row in rows:
        if row["mixer"] != "bdlru" or row["layers"] != 1 or row["mixer_args"].get("use_output_gate"):
            continue
        model, task, length = load_model(folder, row), get_task(row["task"], row["bos"]), max(row["eval_lengths"])
        (layer,) = (module for module in model.modules() if isinstance(module, BDLRU))
        trained = max(row["lengths"])
        said = what_is_said(model, layer, task.sample(make_generator(row["task"], "test", trained), EXAMPLES, trained)[0])
        said = said[:, row["bos"] :].flatten(0, 1)
        mean = said.mean(0)
        by_block = (layer.block_size, layer.num_blocks)
        weight = layer.o_proj.weight.detach().unflatten(1, by_block)
        spoken = torch.einsum("nmh,dmh->nhd", (said - mean).unflatten(1, by_block), weight).square().mean((0, 2))

        def accuracy(silent: torch.Tensor) -> float:
            with silenced(layer, silent, mean):  # noqa: B023  called in this turn only
                return evaluate(model, task, length, EXAMPLES, "cpu")["sequence_accuracy"]  # noqa: B023

        nobody = torch.zeros(layer.num_blocks, dtype=torch.bool)
        run = {"variant": row["variant"], "seed": row["seed"], "length": length, "whole": accuracy(nobody)}
        own = []
        for block, share in enumerate((spoken / spoken.sum()).tolist()):
            itself = nobody.clone().index_fill_(0, torch.tensor(block), True)
            own.append({**run, "block": block, "share": share, "alone": accuracy(~itself), "without": accuracy(itself)})
        silent = ~nobody
        for line in sorted(own, key=lambda line: (-line["alone"], -line["share"])):
            silent[line["block"]] = False
            lines.append({**line, "together": accuracy(silent)})
    return pd.DataFrame(lines, columns=["variant", "seed", "block", "share", "length", "whole", *MEASURES])


def blocks_figure(table: pd.DataFrame, title: str, note: str) -> Figure:
    """The accuracies of `block_roles`: a run a row, the whole model in the first column, then its first blocks."""
    length = table["length"].max()
    panels = []
    for kind, text in MEASURES.items():
        if kind not in table:  # numbers of before there was that
            continue
        cells, names, most = {}, [], 0
        for (variant, seed), blocks in table.groupby(["variant", "seed"], sort=False):
            names.append(f"{variant}, seed {seed}")
            cells[names[-1], ALL] = blocks["whole"].iloc[0], f"{blocks['whole'].iloc[0]:.2f}"
            most = max(most, min(SHOWN, len(blocks)))
            for place, accuracy in enumerate(blocks[kind][:SHOWN], 1):
                cells[names[-1], str(place)] = accuracy, f"{accuracy:.2f}"
        columns = [ALL, *map(str, range(1, most + 1))]
        panels.append(Panel(f"sequences of {length:,} all right: by all, and {text}", names, columns, cells))
    return Figure(title, note, panels)
