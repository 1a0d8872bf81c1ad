"""What a comparison consists of: settings, the grid of cells, and the row that each leaves."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.models import VARIANTS, Matched, layer_flops, layer_params, layer_state, match_variant
from benchmarks.presets import Preset
from benchmarks.tasks import get_task
from benchmarks.train import Cell

PACKAGES = ("torch", "triton", "flash-linear-attention", "transformers", "numba", "fla-bdlru")


@dataclass(frozen=True)
class Planned:
    r"""A cell with what its row says about the mixer, all layers together.

    Attributes:
        cell (Cell):
            The experiment.
        mixer_params (int):
            Parameters of the mixers.
        state_size (int, Optional):
            State elements per sequence; `None` where it grows.
        mixer_flops, recurrent_flops (int, Optional):
            FLOPs per token of the mixers, all and without their linear maps; `None` where they cannot be counted.
    """

    cell: Cell
    mixer_params: int
    state_size: int | None
    mixer_flops: int | None
    recurrent_flops: int | None


def plan(
    task: str, names: tuple[str, ...], match: str, budget: int | None, preset: Preset, device: str
) -> tuple[list[Planned], dict[str, Matched]]:
    r"""Lays out the grid: every mixer, learning rate and seed, with sizes settled.

    Args:
        task (str):
            Name of the task.
        names (tuple[str, ...]):
            Names of variants.
        match (str):
            `"params"` or `"state"`.
        budget (int, Optional):
            Parameters or state elements of one mixer layer. Default: the reference mixer's.
        preset (Preset):
            Everything else.
        device (str):
            Where a layer is run to measure its state.

    Returns:
        (list[Planned], dict[str, Matched]):
            The cells in the order they are run, and how each variant was matched.

    Raises:
        ValueError: if a mixer cannot be matched, or a length does not fit the task.
    """
    definition = get_task(task)
    multiples = preset.multiples if definition.extrapolates else (1,)
    eval_lengths = tuple(k * max(preset.lengths) for k in multiples)
    for length in (*preset.lengths, *eval_lengths):
        definition.check_length(length)
    cells, matches = [], {}
    for name in names:
        matched = matches[name] = match_variant(name, match, preset.width, budget)
        mixer, growing = VARIANTS[name].mixer, VARIANTS[name].fixed
        mixer_params = preset.layers * layer_params(mixer, preset.width, matched.args)
        state = None if growing else preset.layers * layer_state(mixer, preset.width, matched.args, device)
        flops = tuple(n and preset.layers * n for n in layer_flops(mixer, preset.width, matched.args, max(preset.lengths)))
        for lr in preset.lrs:
            for seed in preset.seeds:
                cell = Cell(
                    task=task,
                    variant=name,
                    mixer=mixer,
                    mixer_args=matched.args,
                    width=preset.width,
                    layers=preset.layers,
                    mlp_width=preset.mlp_width + matched.extra_mlp,
                    lengths=preset.lengths,
                    eval_lengths=eval_lengths,
                    batch_size=preset.batch_size,
                    steps=preset.steps,
                    lr=lr,
                    weight_decay=preset.weight_decay,
                    seed=seed,
                    train_examples=preset.train_examples,
                    eval_examples=preset.eval_examples,
                )
                cells.append(Planned(cell, mixer_params, state, *flops))
    return cells, matches


@cache
def versions() -> str:
    """Python and the packages that results may depend on."""
    found = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


@cache
def commit() -> str:
    """The commit of this checkout, marked if files differ from it; empty outside git."""

    def git(*words: str) -> str:
        root = Path(__file__).resolve().parent
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


@cache
def device_name(device: str) -> str:
    """What the machine calls its processor or GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return f"cpu: {model}"


def make_row(planned: Planned, result: dict, device: str, threads: int) -> dict:
    """The row of a finished cell."""
    counted = planned.recurrent_flops is not None
    flops = result["linear_flops"] + planned.recurrent_flops if counted else None
    row = {
        "key": planned.cell.key,
        **planned.cell.describe(),
        "params": result["params"],
        "mixer_params": planned.mixer_params,
        "state_size": planned.state_size,
        "flops_per_token": flops,
        "mixer_flops": planned.mixer_flops,
        "recurrent_flops": planned.recurrent_flops,
        "validation_token_accuracy": f"{result['validation']:.6f}",
        "train_loss": f"{result['train_loss']:.6g}",
        "diverged": result["diverged"],
        "seconds": f"{result['seconds']:.2f}",
        "device": device_name(device),
        "threads": threads,
        "versions": versions(),
        "commit": commit(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    longest = max(planned.cell.lengths)
    for length, scores in zip(planned.cell.eval_lengths, result["scores"]):
        for name, value in scores.items():
            row[f"{name}_{length // longest}x"] = f"{value:.6f}"
    return row
