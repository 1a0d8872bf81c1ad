"""One run of a comparison, field by field: flags, columns, keys, names of files and words about it come from here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from benchmarks.records.fields import SWITCH, Accepts, one_of, option, real, whole

SCHEDULES = ("one-cycle", "cosine", "trapezoid")  # of the learning rate
CURRICULA = ("stages", "adaptive", "restarting", "louder")  # of the training lengths
RESTARTING = ("restarting", "louder")  # those that begin anew if a state fades
MATCHES = {"params": "equal parameters", "state": "equal state"}  # rules of matching, and what they make of a comparison
TRIED = ("lr", "weight_decay")  # of several values, each mixer is shown at those that did best on validation data
WIDEST = 2**14  # layers of that width are built to be measured


def _setting(default: Any, letter: str, words: str, accepts: Accepts | None = None, help: str = "", **more: bool) -> Any:
    # `letter` and `words` tell comparisons of one task apart, in names of files and in headings; what has `accepts` is a flag
    return option(default, accepts, apart=(letter, words), help=help, **more)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A run's model and training, without its mixer: a preset sets it, flags and grid files change it.

    A field that is `later` was not there in older results, and then had its default; one that is `several` may be a list.
    """

    width: int = _setting(
        64, "w", "width {}", whole(8, f"a positive multiple of 8 up to {WIDEST:,}", 8, WIDEST),
        "Width of the model, a multiple of 8.", several=True,
    )  # fmt: skip
    layers: int = _setting(1, "l", "{} block(s)", whole(1), "Number of blocks.", several=True)
    mlp_width: int = 128
    # training lengths, each for an equal share of the steps in this order, or as the curriculum says
    lengths: tuple[int, ...] = _setting((4, 8, 16, 32), "t", "lengths {}")
    batch_size: int = _setting(64, "n", "batches of {}")
    steps: int = _setting(1200, "s", "{} steps", whole(1), "Optimiser steps.")
    weight_decay: float = _setting(
        0.01, "d", "weight decay {}", real(lambda x: 0 <= x <= 1, "numbers from 0 to 1"),
        "AdamW's decay of matrices; a comma list: as lr. Default: as preset.", several=True,
    )  # fmt: skip
    train_examples: int = _setting(0, "x", "{} training examples")  # in fresh orders; 0: new ones at each step
    eval_examples: int = _setting(512, "y", "{} test examples")  # sequences per length
    stop_at: float = _setting(
        0.0, "e", "stopped at {}", real(lambda x: 0 <= x <= 1, "a token accuracy from 0 (never stop early) to 1"),
        "End a run early at this validation token accuracy. Default: 0, never.", later=True,
    )  # fmt: skip
    schedule: str = _setting(  # torch's `OneCycleLR`; `lr` to `MIN_LR`; a warm-up, `lr`, and to zero over the last fifth
        "one-cycle", "c", "schedule {}", one_of(*SCHEDULES),
        f"Of the learning rate: {', '.join(SCHEDULES)}. Default: as preset.", later=True,
    )  # fmt: skip
    # an equal share of the steps a length; the next when one is learned; anew if a state fades; and with noise that is borne
    curriculum: str = _setting(
        "stages", "u", "{} curriculum", one_of(*CURRICULA), f"One of {', '.join(CURRICULA)}. Default: as preset.", later=True
    )
    threshold: float = _setting(
        0.95, "h", "threshold {}", real(lambda x: 0 < x < 1, "an accuracy between 0 and 1"),
        "Accuracy at the last position, without noise, at which the curriculum moves on.", later=True,
    )  # fmt: skip
    tokens: int = _setting(
        0, "k", "{} tokens a step", whole(0, "tokens of a step, or 0 for the preset's batch size"),
        "Tokens of a step, in place of sequences. Default: as preset.", later=True,
    )  # fmt: skip
    bos: bool = _setting(False, "o", "BOS {}", SWITCH, "true: sequences begin with a token of their own.", later=True)
    readout_noise: float = _setting(  # relative to the root mean square; a curriculum's final level, or its unit
        0.0, "z", "readout noise {}", real(lambda x: 0 <= x <= 10, "a level from 0 (none) to 10"),
        "Noise on what mixers return while training. Default: as preset, 0.", later=True,
    )  # fmt: skip
    initializer_range: float = _setting(
        0.02, "i", "weights of {}", real(lambda x: 0 < x <= 1, "a standard deviation greater than 0 and up to 1"),
        "Standard deviation of embeddings' and linear maps' weights at the start. Default: as preset, 0.02.", later=True,
    )  # fmt: skip

    @property
    def words(self) -> str:
        """What is trained and how, in a line."""
        batch = f"{self.tokens:,} tokens" if self.tokens else f"{self.batch_size} sequences"
        parts = [f"{self.steps:,} steps of {batch}", f"width {self.width}", f"{self.layers} block{'s' * (self.layers > 1)}"]
        parts += [f"{self.curriculum} curriculum"] * (self.curriculum != "stages") + ["BOS"] * self.bos
        parts += [f"weights of {self.initializer_range:g}"] * (self.initializer_range != LATER["initializer_range"])
        return ", ".join(parts + [f"readout noise {self.readout_noise:g}"] * bool(self.readout_noise))


@dataclass(frozen=True, kw_only=True)
class Cell(Setup):
    """Everything that a result depends on. Two cells with the same `key` are the same experiment."""

    task: str
    variant: str  # a label, one of `benchmarks.compare.models.VARIANTS`; the next two say what is built
    mixer: str
    mixer_args: dict
    eval_lengths: tuple[int, ...] = _setting(MISSING, "v", "tested at {}")  # scored after training
    lr: float  # its peak
    seed: int  # of the initial weights and the training data

    @property
    def key(self) -> str:
        """A digest of all fields but the label."""
        spec = asdict(self)
        del spec["variant"]
        for name in LATER:  # the keys of results from before there were these fields
            if spec[name] == LATER[name]:
                del spec[name]
        return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        """A short name for people."""
        return f"{self.task} {self.variant} lr {self.lr:g} seed {self.seed}"

    @classmethod
    def from_row(cls, row: dict) -> Cell:
        """The run that a row of the results file is of."""
        return cls(**{name: row[name] for name in NAMES})


NAMES = tuple(sorted((f.name for f in fields(Cell)), key=lambda name: name in Setup.__dataclass_fields__))
LATER = {f.name: f.default for f in fields(Cell) if f.metadata.get("later")}
_APART = {f.name: f.metadata["apart"] for f in fields(Cell) if f.metadata.get("apart")}
SWEPT = tuple(f.name for f in fields(Setup) if f.metadata.get("several") and f.name not in TRIED)
# rows that agree in these are runs of the same experiment with different mixers, rates, learning and decay, and seeds
SETTINGS = ("task", *(name for name in _APART if name not in TRIED))
# of those, the budget and the learning rates: how a file's name and a heading say what tells comparisons of one task apart
DISTINCTIONS = {"budget": ("b", "a budget of {}"), **_APART, "lr": ("r", "learning rate {}")}
