"""One run of a comparison; from its fields come columns, keys, titles, what sweeps may set and how files are named."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any


def _told(letter: str, words: str, default: Any = MISSING) -> Any:
    # a field that may tell comparisons of one task apart, and how a file's name and a heading say so
    return field(default=default, metadata={"apart": (letter, words)})


@dataclass(frozen=True)
class Cell:
    r"""Everything that a result depends on. Two cells with the same `key` are the same experiment.

    Attributes:
        task (str):
            Name in `benchmarks.tasks.TASKS`.
        variant (str):
            Name in `benchmarks.compare.models.VARIANTS`; a label, the next two fields say what is built.
        mixer (str):
            Name in `fla_bdlru.mixers`.
        mixer_args (dict):
            Arguments of the layer.
        width (int):
            Width of the model.
        layers (int):
            Number of blocks.
        mlp_width (int):
            Inner width of the MLP.
        lengths (tuple[int, ...]):
            Training lengths, each used for an equal share of the steps, in this order.
        eval_lengths (tuple[int, ...]):
            Lengths that are scored after training.
        batch_size (int):
            Sequences per step.
        steps (int):
            Optimiser steps.
        lr (float):
            Peak learning rate.
        weight_decay (float):
            AdamW's decay, on matrices only.
        seed (int):
            Seeds the initial weights and the training data.
        train_examples (int):
            Size of the training set, visited again and again in fresh orders; 0 draws new sequences at every step.
        eval_examples (int):
            Sequences per evaluated length.
        stop_at (float):
            Training ends once the token accuracy on validation sequences of the longest training length reaches this;
            0 never ends it early. Default: 0.
        schedule (str):
            How the learning rate moves: `"one-cycle"`, torch's `OneCycleLR`, which warms up to `lr` and moves AdamW's first
            beta the other way, or `"cosine"`, from `lr` to `MIN_LR` with constant betas, or `"trapezoid"`,
            a warm-up of `WARM_UP` steps, `lr`, and to zero over the last fifth. Default: `"one-cycle"`.
        curriculum (str):
            `"stages"`, an equal share of the steps for each length, or `"adaptive"`, the next length when one is learned
            (`benchmarks.compare.recipe`). Default: `"stages"`.
        threshold (float):
            Accuracy at the last position, without noise, at which the adaptive curriculum moves on. Default: 0.95.
        tokens (int):
            Tokens of a step, in place of `batch_size` sequences; 0 keeps those. Default: 0.
        bos (bool):
            Whether sequences begin with a token of their own. Default: False.
        readout_noise (float):
            Noise on what mixers return while training, relative to its root mean square; under the adaptive curriculum the
            final level. Default: 0.
    """

    task: str
    variant: str
    mixer: str
    mixer_args: dict
    width: int = _told("w", "width {}")
    layers: int = _told("l", "{} block(s)")
    mlp_width: int
    lengths: tuple[int, ...] = _told("t", "lengths {}")
    eval_lengths: tuple[int, ...] = _told("v", "tested at {}")
    batch_size: int = _told("n", "batches of {}")
    steps: int = _told("s", "{} steps")
    lr: float
    weight_decay: float = _told("d", "weight decay {}")
    seed: int
    train_examples: int = _told("x", "{} training examples")
    eval_examples: int = _told("y", "{} test examples")
    stop_at: float = _told("e", "stopped at {}", 0.0)
    schedule: str = _told("c", "schedule {}", "one-cycle")
    curriculum: str = _told("u", "{} curriculum", "stages")
    threshold: float = _told("h", "threshold {}", 0.95)
    tokens: int = _told("k", "{} tokens a step", 0)
    bos: bool = _told("o", "BOS {}", False)
    readout_noise: float = _told("z", "readout noise {}", 0.0)

    @property
    def key(self) -> str:
        """A digest of all fields but the label."""
        spec = asdict(self)
        del spec["variant"]
        for name in DEFAULTS:  # the keys of results from before there were these fields
            if spec[name] == DEFAULTS[name]:
                del spec[name]
        return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        """A short name for people."""
        return f"{self.task} {self.variant} lr {self.lr:g} seed {self.seed}"

    def describe(self) -> dict:
        """The fields as they stand in a row of the results file."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        row["mixer_args"] = json.dumps(self.mixer_args, sort_keys=True)
        row["lengths"] = " ".join(map(str, self.lengths))
        row |= {name: "" for name in DEFAULTS if row[name] == DEFAULTS[name]}
        row["eval_lengths"] = " ".join(map(str, self.eval_lengths))
        return row

    @classmethod
    def from_row(cls, row: dict[str, str]) -> Cell:
        """The run that a row of the results file is of."""
        read = {"int": int, "float": float, "dict": json.loads, "tuple[int, ...]": lambda text: tuple(map(int, text.split()))}
        read["bool"] = "True".__eq__
        given = {f.name: read.get(f.type, str)(row[f.name]) for f in fields(cls) if row[f.name] or f.name not in DEFAULTS}
        return cls(**given)


NAMES = tuple(f.name for f in fields(Cell))
# what older results lack, and then has its default
DEFAULTS = {f.name: f.default for f in fields(Cell) if f.default is not MISSING}
_TOLD = {f.name: f.metadata["apart"] for f in fields(Cell) if f.metadata}
# rows that agree in these are runs of the same experiment with different mixers, learning rates and seeds
SETTINGS = ("task", *_TOLD)
# of those, the budget and the learning rates: how a file's name and a heading say what tells comparisons of one task apart
DISTINCTIONS = {"budget": ("b", "a budget of {}"), **_TOLD, "lr": ("r", "learning rate {}")}
