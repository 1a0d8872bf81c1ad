"""What is run: the text, the models and seeds, checked before anything is trained."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from benchmarks.lm.evaluate import scored_tokens
from benchmarks.lm.models import make_config, measure
from benchmarks.lm.settings import Settings, Training
from benchmarks.lm.text import BUILT_IN, BYTES, Blocks, Corpus, get_tokenizer, prepare, read_text
from benchmarks.lm.train import Run, micro_batch
from benchmarks.records.tables import start_table

if TYPE_CHECKING:
    from collections.abc import Callable


def prepare_corpus(settings: Settings, out: Path, say: Callable[[str], None]) -> Corpus:
    """The settings' text, prepared under `out/text`, and its sizes said; raises `ValueError` if it cannot serve."""
    data, t = settings.data, settings.training
    if data.text is None and data.dataset not in BUILT_IN:
        say(f"text: {data.dataset} is read and tokenised the first time; once begun it has to finish in one go")
    corpus = prepare(data, data.train_tokens or t.steps * t.batch_size * data.length, out / "text")
    Blocks(corpus.train, data.length, t.batch_size)
    total = scored_tokens(len(corpus.validation), max(settings.eval_lengths), settings.evaluation.tokens)
    epochs = t.steps * t.batch_size * data.length / len(corpus.train)
    say(
        f"text: {len(corpus.train):,} tokens to train on ({epochs:.2f} times), {len(corpus.validation):,} for validation, "
        f"{total:,} of them scored at every length; {corpus.bytes_per_token:.3f} bytes per token; digest {corpus.digest}"
    )
    return corpus


def check_text(settings: Settings, say: Callable[[str], None]) -> None:
    """Says how much text of one's own there is; raises `ValueError` if it cannot be read or, byte by byte, is too short."""
    data = settings.data
    train, validation = read_text(data)
    say(f"text: {len(train):,} characters of {data.text} to train on, {len(validation):,} for validation")
    if data.tokenizer == BYTES:
        scored_tokens(len(validation.encode()) + 1, max(settings.eval_lengths), settings.evaluation.tokens)
        Blocks(np.empty(len(train.encode()) + 1, np.uint8), data.length, settings.training.batch_size)


def make_runs(settings: Settings, corpus: Corpus, processes: int) -> list[Run]:
    """The runs in order: every seed with every model, checked; the entries are settled, and `processes` devices share a batch.

    ValueError, if a model cannot be made, or the batch does not divide.
    """
    t = settings.training
    micro_batch(t.batch_size, t.micro_batch_size, processes)
    common = {name: asdict(getattr(settings, name)) for name in ("data", "training", "evaluation")}
    for f in fields(Training):
        if not f.metadata.get("keyed", True):
            del common["training"][f.name]
    if common["data"].pop("text") is not None:  # its digest counts, wherever it lies
        del common["data"]["dataset"]
    models = []
    for entry in settings.mixers:
        model = {"model": settings.model, "entry": {**asdict(entry), "name": None}, "text": corpus.digest}
        models.append((entry, make_config(settings, entry, corpus.vocab_size), {**common, **model}))
    runs = []
    for seed in t.seeds:  # of a comparison that stops early, every model has the first seeds
        for entry, config, said in models:
            spec = json.dumps({**said, "seed": seed}, sort_keys=True)
            runs.append(Run(hashlib.sha256(spec.encode()).hexdigest()[:16], entry, seed, config, settings))
    return runs


def describe(settings: Settings, processes: int) -> list[str]:
    """What the settings ask for, in lines."""
    t, data = settings.training, settings.data
    size, accumulation = micro_batch(t.batch_size, t.micro_batch_size, processes)
    tokens = t.steps * t.batch_size * data.length
    return [
        f"text {data.title}{f' ({data.name})' if data.name else ''}, tokenizer {data.tokenizer}, "
        f"{tokens:,} training tokens in sequences of {data.length:,}",
        f"{t.steps:,} steps of {t.batch_size} sequences ({processes} process(es) x {size} x {accumulation} accumulated), "
        f"AdamW lr {t.lr:g} after {t.warmup_steps:,} steps of warm-up, cosine to {t.min_lr_ratio * t.lr:g}, "
        f"weight decay {t.weight_decay:g}, precision {t.precision}",
        f"scored at lengths {', '.join(f'{n:,}' for n in settings.eval_lengths)}; "
        f"a checkpoint every {t.save_every:,} steps; seeds {', '.join(map(str, t.seeds))}",
    ]


def size_table(settings: Settings, device: str) -> Table:
    """Sizes of the models, which are not allocated; the tokenizer is loaded only if `model.vocab_size` is not set."""
    vocab_size = None if "vocab_size" in settings.model else get_tokenizer(settings.data.tokenizer).vocab_size
    table = start_table("model", ("params", "without\nembeddings", "mixer\nparams", "state per\nsequence"))
    table.add_column("built as")
    for entry in settings.mixers:
        config = make_config(settings, entry, vocab_size)
        sizes = measure(config, device)
        built = f"{config.model_type}" + (f", {entry.mixer} {json.dumps(entry.mixer_config)}" if entry.mixer else "")
        table.add_row(
            entry.name,
            f"{sizes.params:,}",
            f"{sizes.params - sizes.embedding_params:,}",
            f"{sizes.mixer_params:,}",
            "grows" if sizes.state_size is None else f"{sizes.state_size:,}",
            built,
        )
    return table
