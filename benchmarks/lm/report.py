"""What a comparison of language models leaves: rows, and of them a table and a picture."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, median
from typing import BinaryIO

import pandas as pd
from rich.table import Table

from benchmarks.lm.evaluate import bits_per_byte, perplexity
from benchmarks.lm.models import Sizes
from benchmarks.lm.settings import Settings, Training
from benchmarks.lm.text import Corpus
from benchmarks.lm.train import Run
from benchmarks.records.cell import MATCHES
from benchmarks.records.machine import provenance
from benchmarks.records.store import (
    JSON,
    LATER_COLUMNS,
    LOSS,
    NUMBER,
    SECONDS,
    SWITCH,
    TEXT,
    WHOLE,
    WHOLES,
    Column,
    check_whole,
    read_rows,
    several,
)
from benchmarks.records.style import DOTTED, OTHER, picture, plot_ranges, scale_lengths
from benchmarks.records.summary import Line, best_lines, counts_text
from benchmarks.records.tables import fill_table, grows, score_columns, short

LOSSES = several(LOSS, "numbers")


def _octave(text: str) -> tuple[int, float]:
    last, _, loss = text.partition(":")
    return int(last), float(loss)


OCTAVES = several(Column(_octave, lambda pair: f"{pair[0]}:{pair[1]:.6f}"), "last position:loss, by octave")
_KINDS = {
    TEXT: "key name mixer precision dataset tokenizer text_digest device versions commit finished match",
    WHOLE: "budget params embedding_params mixer_params state_size seed scored_tokens steps batch_size length warmup_steps "
    "vocab_size train_tokens validation_tokens processes threads",
    NUMBER: "train_loss validation_loss lr weight_decay min_lr_ratio beta1 beta2 clip",
    JSON: "mixer_config model backbone",
    WHOLES: "eval_lengths",
    LOSSES: "loss perplexity bits_per_byte",
    OCTAVES: "loss_by_position",
    SWITCH: "diverged torch_compile gradient_checkpointing",
    SECONDS: "seconds",
    LOSS: "bytes_per_token",
}
COLUMNS = {name: kind for kind, names in _KINDS.items() for name in names.split()}
CURVE_COLUMNS = ("step", "tokens", "lr", "loss", "grad_norm", "validation_loss", "seconds")
# a comparison's models share these, and the model that the mixers stand in: how each is told, where it tells two apart
SETTINGS = {
    **dict.fromkeys(("dataset", "tokenizer", "steps", "batch_size", "length", "lr"), ""),  # by `training_words`
    "text_digest": "text {}",
    "train_tokens": "{:,} tokens of text",
    "validation_tokens": "{:,} validation tokens",
    "scored_tokens": "{:,} tokens scored",
    "eval_lengths": "scored at {}",
    "match": "matched by {}",
    "budget": "a budget of {}",
    "warmup_steps": "{} steps of warm-up",
    "min_lr_ratio": "cosine to {:g} of it",
    "weight_decay": "weight decay {:g}",
    "beta1": "beta1 {:g}",
    "beta2": "beta2 {:g}",
    "clip": "gradients clipped to {:g}",
    "precision": "{}",
    "torch_compile": "torch_compile {}",
    "gradient_checkpointing": "gradient checkpointing {}",
}
# older rows do not say these, and are taken to have the defaults
LATER = {name: getattr(Training, name) for name in SETTINGS if name in LATER_COLUMNS and hasattr(Training, name)}
LATER["match"] = Settings.match
EQUAL = 1.05  # how far sizes that are called equal may be apart: each is within 2% of the budget


def model_row(run: Run, sizes: Sizes, corpus: Corpus, result: dict, device: str) -> dict:
    """The row of a finished run."""
    t, data = run.settings.training, run.settings.data
    return {
        **{name: value for name, value in {**vars(data), **vars(t), **vars(sizes), **result}.items() if name in COLUMNS},
        "key": run.key,
        "name": run.entry.name,
        "mixer": run.entry.mixer if isinstance(run.entry.mixer, str) else JSON.write(run.entry.mixer),
        "mixer_config": run.entry.mixer_config,
        "model": {**run.settings.model, **run.entry.model},
        "backbone": run.settings.model,
        "match": run.settings.match,
        "budget": run.settings.budget,
        "seed": run.seed,
        "eval_lengths": run.settings.eval_lengths,
        "loss": result["losses"],
        "perplexity": [perplexity(loss) for loss in result["losses"]],
        "bits_per_byte": [bits_per_byte(loss, corpus.bytes_per_token) for loss in result["losses"]],
        "loss_by_position": result["positions"],
        "scored_tokens": result["scored"],
        "dataset": data.title,
        "vocab_size": run.config.vocab_size,
        "train_tokens": len(corpus.train),
        "validation_tokens": len(corpus.validation),
        "bytes_per_token": corpus.bytes_per_token,
        "text_digest": corpus.digest,
        **provenance(device),
    }


def read(paths: list[Path]) -> list[dict]:
    """The rows of files, each run once. ValueError, if a file is not ours, or a row lacks a value."""
    rows = {}
    for path in paths:
        rows |= (own := read_rows(path, COLUMNS)[0])
        check_whole(own.values(), path)
    return list(rows.values())


def rank_models(rows: list[dict]) -> list[Line]:
    """A model's runs over its seeds, best at the training length first, by the median bits per byte."""
    lines = best_lines(rows, "name", lambda row: -row["validation_loss"])
    return sorted(lines, key=lambda line: median(line.scores("bits_per_byte")[0]))


def _settings(row: dict) -> dict:
    # what the models of a comparison share, by name
    told = {name: LATER.get(name) if row[name] in (None, "") else row[name] for name in SETTINGS}
    # a model of its own, such as an MLP that was widened for the mixer's sake, is no setting; older rows say that one alone
    model = row["backbone"] or row["model"]
    return {**told, **{f"model.{name}": JSON.write(value) for name, value in model.items()}}


def group(rows: list[dict]) -> list[list[dict]]:
    """Rows of one text, model and training each, whatever their mixer and seed."""
    groups: dict[frozenset, list[dict]] = {}
    for row in rows:
        groups.setdefault(frozenset(_settings(row).items()), []).append(row)
    return list(groups.values())


def titles(groups: list[list[dict]]) -> list[str]:
    """What the models of each group were trained on and how, with what tells apart those for which that reads the same."""
    settings, words = [_settings(rows[0]) for rows in groups], [training_words(rows[0]) for rows in groups]
    names, found = dict.fromkeys(name for own in settings for name in own), []
    for own, said in zip(settings, words):
        alike = [other for other, theirs in zip(settings, words) if theirs == said]
        apart = [name for name in names if len({other.get(name) for other in alike}) > 1 and own.get(name) is not None]
        found.append(", ".join([said, *(SETTINGS.get(name, f"{name} {{}}").format(own[name]) for name in apart)]))
    return found


def equal(lines: list[Line]) -> str:
    """What the models have equal by their rule of matching, in words; empty where their sizes are not, as they were given."""
    match = _settings(lines[0].runs[0])["match"]
    sizes = [line["params" if match == "params" else "state_size"] for line in lines]
    sizes = [size for size in sizes if size]  # a state that grows is no size
    return MATCHES[match] if sizes and max(sizes) <= EQUAL * min(sizes) else ""


def speed(line: Line) -> float:
    """Training tokens per second, validation included."""
    return line["steps"] * line["batch_size"] * line["length"] * mean(1 / run["seconds"] for run in line.runs)


def model_table(lines: list[Line], title: str) -> Table:
    """The table, best first; with several seeds a cell is the median and, below it, the range."""
    first, *_ = score_columns("perplexity", lines, "perplexity").items()
    columns = {
        "params": lambda line: short(line["params"]),
        "mixer\nparams": lambda line: short(line["mixer_params"]),
        "state": grows,
        **score_columns("bits/byte", lines, "bits_per_byte", 4),
        **dict([first]),
        "tokens/s": lambda line: f"{speed(line):,.0f}",
    }
    return fill_table(lines, columns, title)


def training_words(row: dict) -> str:
    """What a row's model was trained on and how, in words."""
    return (
        f"{row['dataset']} by {row['tokenizer']}: {row['steps']:,} steps of {row['batch_size']} sequences of "
        f"{row['length']}, learning rate {row['lr']:g}"
    )


def size_words(lines: list[Line]) -> str:
    """How many parameters the models have, in words."""
    sizes = sorted({line["params"] for line in lines})
    return " to ".join(dict.fromkeys(short(size) for size in (sizes[0], sizes[-1]))) + " parameters"


def read_curves(folder: Path, rows: list[dict]) -> pd.DataFrame:
    """Learning curves of rows, one under the other, with their keys; empty where the files are not there."""
    paths = {row["key"]: folder / f"{row['key']}.csv" for row in rows}
    found = [pd.read_csv(path).assign(key=key) for key, path in paths.items() if path.exists()]
    return pd.concat(found) if found else pd.DataFrame(columns=["key", *CURVE_COLUMNS])


def draw_models(lines: list[Line], curves: pd.DataFrame, settings: str, path: Path | BinaryIO) -> None:
    """Draws bits per byte by window length, loss by position, and validation loss by tokens seen where there are curves.

    `settings` say in words what was trained, and stand below the picture.
    """
    learning: dict[str, tuple[list[int], list[list[float]]]] = {}
    for line in lines:
        own = curves[curves["key"].isin(line.keys)].dropna(subset="validation_loss")
        points = own.groupby("tokens")["validation_loss"].agg(list)
        if len(points):
            learning[line.variant] = list(points.index), list(points)
    seeds = "1 seed" if counts_text(lines) == "1 seed" else f"{counts_text(lines)}; a bar is their range"
    trained, longest = lines[0].lengths[0], lines[0].lengths[-1]
    note = f"{settings}, {size_words(lines)}, {seeds}. Lower is better; dotted: the trained length."
    with picture(path, 6 + 2.6 * bool(learning), ", ".join(filter(None, ["Language models", equal(lines)])), note) as figure:
        by_length, by_position, *rest = figure.subplots(2 + bool(learning), 1)
        scale_lengths(by_length, lines[0].lengths)
        by_length.set(xlabel=f"window in tokens (trained at {trained})", ylabel="bits per byte")
        plot_ranges(by_length, {line.variant: (line.lengths, line.scores("bits_per_byte")) for line in lines})
        octaves = {line.variant: line.scores("loss_by_position") for line in lines}
        ends = [seeds[0][0] for seeds in octaves[lines[0].variant]]
        scale_lengths(by_position, ends)
        by_position.axvline(trained, color=OTHER, linewidth=1.2, linestyle=DOTTED)
        by_position.set(xlabel=f"position in a window of {longest}, by octave", ylabel="loss, nats a token")
        losses = {name: [[loss for _, loss in seeds] for seeds in found] for name, found in octaves.items()}
        if len(lines) > 1:  # they fall alike, by far more than they are apart
            middle = [median(median(seeds) for seeds in at) for at in zip(*losses.values())]
            losses = {name: [[x - m for x in seeds] for seeds, m in zip(of, middle)] for name, of in losses.items()}
            by_position.set_ylabel("loss less the models' median")
        plot_ranges(by_position, {name: (ends, values) for name, values in losses.items()})
        for axes in rest:
            axes.set(xlabel="training tokens", ylabel="validation loss")
            axes.xaxis.set_major_formatter("{x:,.0f}")
            plot_ranges(axes, learning, apart=False)
