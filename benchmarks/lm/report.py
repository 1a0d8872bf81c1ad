"""What a comparison of language models leaves: rows, curves, a table and a picture."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean

from rich.table import Table

from benchmarks.lm.evaluate import bits_per_byte, perplexity
from benchmarks.lm.models import Sizes
from benchmarks.lm.text import Corpus
from benchmarks.lm.train import Run
from benchmarks.records.machine import commit, device_name, versions
from benchmarks.records.style import DOTTED, OTHER, picture, plot_ranges, scale_lengths
from benchmarks.records.summary import OURS, last_by_seed
from benchmarks.records.tables import spread, start_table

# lists (lengths, losses) are separated by spaces; `loss_by_position` has last position:loss, by octave
_NAMES = (
    "key name mixer mixer_config model params embedding_params mixer_params state_size seed eval_lengths loss "
    "perplexity bits_per_byte loss_by_position scored_tokens train_loss validation_loss diverged seconds steps "
    "batch_size length lr warmup_steps weight_decay precision dataset tokenizer vocab_size train_tokens "
    "validation_tokens bytes_per_token text_digest processes device threads versions commit finished"
)
COLUMNS = tuple(_NAMES.split())
CURVE_COLUMNS = ("step", "tokens", "lr", "loss", "grad_norm", "validation_loss", "seconds")


def make_row(run: Run, sizes: Sizes, corpus: Corpus, result: dict, device: str, threads: int) -> dict:
    """The row of a finished run."""
    t, data = run.settings.training, run.settings.data

    def several(values) -> str:
        return " ".join(f"{value:.6f}" for value in values)

    return {
        **{name: value for part in (data, t) for name, value in vars(part).items() if name in COLUMNS},
        "key": run.key,
        "name": run.entry.name,
        "mixer": run.entry.mixer if isinstance(run.entry.mixer, str) else json.dumps(run.entry.mixer),
        "mixer_config": json.dumps(run.entry.mixer_config, sort_keys=True),
        "model": json.dumps({**run.settings.model, **run.entry.model}, sort_keys=True),
        **vars(sizes),
        "seed": run.seed,
        "eval_lengths": " ".join(map(str, run.settings.eval_lengths)),
        "loss": several(result["losses"]),
        "perplexity": several(map(perplexity, result["losses"])),
        "bits_per_byte": several(bits_per_byte(loss, corpus.bytes_per_token) for loss in result["losses"]),
        "loss_by_position": " ".join(f"{last}:{loss:.6f}" for last, loss in result["positions"]),
        "scored_tokens": result["scored"],
        **{name: result[name] for name in ("train_loss", "validation_loss", "diverged", "processes")},
        "seconds": f"{result['seconds']:.2f}",
        "dataset": data.title,
        "precision": result["precision"],
        "vocab_size": run.config.vocab_size,
        "train_tokens": len(corpus.train),
        "validation_tokens": len(corpus.validation),
        "bytes_per_token": f"{corpus.bytes_per_token:.6f}",
        "text_digest": corpus.digest,
        "device": device_name(device),
        "threads": threads,
        "versions": versions(),
        "commit": commit(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


@dataclass(frozen=True)
class Line:
    r"""A model's results over its seeds.

    Attributes:
        name (str):
            Name of the entry.
        params, mixer_params (int):
            Parameters of the model and of its mixers.
        state (str):
            State values per sequence; empty if it grows.
        lengths (list[int]):
            Evaluated lengths.
        bits, perplexities (list[list[float]]):
            One list per length, one value per seed.
        positions (list[tuple[int, float]]):
            Last position of each octave, and the loss in it, averaged over seeds.
        speed (float):
            Training tokens per second, validation included.
        keys (list[str]):
            Keys of the runs, whose curves are drawn.
        diverged (int):
            Number of runs with a loss that was not finite.
    """

    name: str
    params: int
    mixer_params: int
    state: str
    lengths: list[int]
    bits: list[list[float]]
    perplexities: list[list[float]]
    positions: list[tuple[int, float]]
    speed: float
    keys: list[str]
    diverged: int


def _numbers(rows: list[dict[str, str]], column: str) -> list[list[float]]:
    # per length, one value per seed
    return [list(values) for values in zip(*([float(x) for x in row[column].split()] for row in rows))]


def summarise(rows: list[dict[str, str]]) -> list[Line]:
    """Averages rows over seeds, best at the training length first."""
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(row["name"], []).append(row)
    lines = []
    for name, runs in groups.items():
        runs = last_by_seed(runs)
        first = runs[0]
        octaves = [[pair.split(":") for pair in row["loss_by_position"].split()] for row in runs]
        lines.append(
            Line(
                name=name,
                params=int(first["params"]),
                mixer_params=int(first["mixer_params"]),
                state=first["state_size"],
                lengths=[int(length) for length in first["eval_lengths"].split()],
                bits=_numbers(runs, "bits_per_byte"),
                perplexities=_numbers(runs, "perplexity"),
                positions=[(int(pairs[0][0]), mean(float(loss) for _, loss in pairs)) for pairs in zip(*octaves)],
                speed=mean(int(r["steps"]) * int(r["batch_size"]) * int(r["length"]) / float(r["seconds"]) for r in runs),
                keys=[row["key"] for row in runs],
                diverged=sum(row["diverged"] == "True" for row in runs),
            )
        )
    return sorted(lines, key=lambda line: mean(line.bits[0]))


def make_table(lines: list[Line], title: str) -> Table:
    """The table, best first; with several seeds a cell is the median and, below it, the range."""
    headings = ["params", "mixer\nparams", "state", *(f"bits/byte\n@{length}" for length in lines[0].lengths)]
    table = start_table("model", [*headings, f"perplexity\n@{lines[0].lengths[0]}", "tokens/s"], title)
    for line in lines:
        table.add_row(
            line.name,
            _short(line.params),
            _short(line.mixer_params),
            line.state or "grows",
            *(spread(values, 4) for values in line.bits),
            spread(line.perplexities[0]),
            f"{line.speed:,.0f}",
            style="bold" if line.name.startswith(OURS) else "",
        )
    return table


def _short(number: int) -> str:
    return f"{number / 1e6:.1f}M" if number >= 10**7 else f"{number / 1e3:.1f}k"


def describe(row: dict[str, str]) -> str:
    """What a row's model was trained on and how, in words."""
    return (
        f"{row['dataset']} by {row['tokenizer']}: {int(row['steps']):,} steps of {row['batch_size']} sequences of "
        f"{row['length']}, learning rate {row['lr']}"
    )


def read_curves(folder: Path, rows: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Learning curves of rows by key, as their files hold them; none where the files are not there."""
    paths = {row["key"]: folder / f"{row['key']}.csv" for row in rows}
    return {key: list(csv.DictReader(path.read_text().splitlines())) for key, path in paths.items() if path.exists()}


def draw(lines: list[Line], curves: dict[str, list[dict[str, str]]], settings: str, path: Path) -> None:
    r"""Draws bits per byte by window length, loss by position, and validation loss by tokens seen where there are curves.

    Args:
        lines (list[Line]):
            What `summarise` returned.
        curves (dict[str, list[dict[str, str]]]):
            What `read_curves` returned.
        settings (str):
            What was trained, in words; stands below the picture.
        path (Path):
            A PNG file; replaced if it is there.
    """
    learning: dict[str, tuple[list[int], list[list[float]]]] = {}
    for line in lines:
        points: dict[int, list[float]] = {}  # by tokens, a value a seed
        for point in (point for key in line.keys for point in curves.get(key, ()) if point["validation_loss"]):
            points.setdefault(int(point["tokens"]), []).append(float(point["validation_loss"]))
        if points:
            learning[line.name] = list(points), list(points.values())
    counts = sorted({len(line.keys) for line in lines})
    seeds = "1 seed" if counts == [1] else f"{counts[0]} to {counts[-1]} seeds; a bar is their range"
    note = f"{settings}, {lines[0].params / 1e6:.2f}M parameters, {seeds}. Lower is better; dotted: the trained length."
    with picture(path, 6 + 2.6 * bool(learning), "Language models, equal parameters", note) as figure:
        by_length, by_position, *rest = figure.subplots(2 + bool(learning), 1)
        scale_lengths(by_length, lines[0].lengths)
        by_length.set(xlabel=f"window in tokens (trained at {lines[0].lengths[0]})", ylabel="bits per byte")
        plot_ranges(by_length, {line.name: (line.lengths, line.bits) for line in lines})
        scale_lengths(by_position, [last for last, _ in lines[0].positions])
        by_position.axvline(lines[0].lengths[0], color=OTHER, linewidth=1.2, linestyle=DOTTED)
        by_position.set(xlabel=f"position in a window of {lines[0].lengths[-1]}, by octave", ylabel="loss, nats a token")
        octaves = {line.name: list(zip(*line.positions)) for line in lines}
        plot_ranges(by_position, {name: (last, [[loss] for loss in losses]) for name, (last, losses) in octaves.items()})
        for axes in rest:
            axes.set(xlabel="training tokens", ylabel="validation loss")
            axes.xaxis.set_major_formatter("{x:,.0f}")
            plot_ranges(axes, learning)
