"""Settings by preset and kind of task; light, so that the command line can read them before it imports torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from benchmarks.records.cell import Setup
from benchmarks.records.fields import option, whole


@dataclass(frozen=True, kw_only=True)
class Preset(Setup):
    """Settings that flags may override, with test lengths as multiples of the longest one, and rates and seeds of a sweep."""

    multiples: tuple[int, ...] = (1, 2, 4)
    lrs: tuple[float, ...] = (1e-2,)
    decays: tuple[float, ...] = ()  # of weights, that are tried with each rate; none: `weight_decay` alone
    seeds: tuple[int, ...] = (0, 1, 2)
    tune: int = option(
        0,
        whole(0, "a whole number from 0 on"),
        help="So many seeds try all lr and weight_decay, the others run at each mixer's best. Default: 0, all try all.",
    )


STATE_TRACKING, MAD = "state tracking", "mad"
# what differs between MAD's tasks, arXiv 2403.17844: in short, and in `paper`, 200 epochs of batches of 128
MAD_TASKS: dict[str, tuple[dict, dict]] = {
    "recall": ({}, {}),
    "noisy_recall": ({}, {}),
    "fuzzy_recall": ({"lengths": (32, 64)}, {}),
    "memorization": ({"lengths": (32,)}, {"lengths": (32,), "train_examples": 256, "steps": 400}),
    "selective_copying": ({"lengths": (64,)}, {"lengths": (256,)}),
    "compression": ({"lengths": (32,)}, {"lengths": (32,)}),
}
_NIGHT = Preset(
    lengths=(4, 8, 16, 32, 64),
    multiples=(1, 2, 4, 8),
    steps=5_000,
    lrs=(1e-3, 3e-3, 1e-2),
    seeds=(0, 1, 2, 3, 4),
    eval_examples=1024,
)
_SHORT_MAD = Preset(lengths=(16, 32, 64), layers=2, lrs=(3e-3,))
PRESETS: dict[str, dict[str, Preset]] = {
    "quick": {STATE_TRACKING: Preset(), MAD: _SHORT_MAD},
    "cpu": {STATE_TRACKING: _NIGHT, MAD: replace(_SHORT_MAD, steps=5_000, lrs=(1e-3, 3e-3), eval_examples=1024)},
    "paper": {
        STATE_TRACKING: replace(_NIGHT, width=128, mlp_width=256, batch_size=128, steps=10_000, eval_examples=1280),
        MAD: Preset(
            width=128,
            layers=2,
            mlp_width=352,
            lengths=(128,),
            batch_size=128,
            steps=20_000,
            lrs=(5e-4,),
            weight_decay=0.0,
            schedule="cosine",
            seeds=(0, 1, 2, 3, 4),
            train_examples=12_800,
            eval_examples=1280,
        ),
    },
    # found in a study of S5 (docs: state tracking, the recipe): 2,048 tokens a step, and exact gates by noise
    "tracking": {
        STATE_TRACKING: Preset(
            lengths=(2, 3, 4, 6, 8, 12, 16, 24, 32),
            multiples=(1, 2, 8),
            steps=2500,
            lrs=(1e-2, 2e-2),
            schedule="trapezoid",
            eval_examples=256,
            curriculum="restarting",
            tokens=2048,
            bos=True,
            readout_noise=1.0,
            initializer_range=0.05,
        )
    },
}
# two thirds of the starts on A5 or more lead astray, and runs begin anew more than once
_STEPS = {"a5": 5000}
_GROUP = "[zsadq][0-9]+(x[zsadq][0-9]+)?"


def get_preset(name: str, task: str) -> Preset:
    """The settings of preset `name` for a task; `ValueError` if it has none."""
    if name == "tracking" and task != "parity" and not re.fullmatch(_GROUP, task):
        raise ValueError(f"{name!r} is for groups (s5, z7, q8, s3xz2, parity); got task {task!r}.")
    if task in MAD_TASKS:
        return replace(PRESETS[name][MAD], **MAD_TASKS[task][name == "paper"])
    preset = PRESETS[name][STATE_TRACKING]
    return replace(preset, steps=_STEPS.get(task, preset.steps)) if name == "tracking" else preset
