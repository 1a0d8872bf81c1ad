"""Settings of a comparison: a TOML file in `configs/` or of the user's, changed by `--set`. Light: no torch, no FLA."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from benchmarks.compare.presets import MATCHES
from benchmarks.compare.settings import nearest, tomllib

CONFIGS = Path(__file__).parent / "configs"
PRECISIONS = ("auto", "fp32", "bf16")


def _check(where: str, value: Any, accepted: bool, expected: str) -> None:
    if not accepted:
        raise ValueError(f"{where}={value!r} is not accepted; expected {expected}.")


def _check_positive(section: str, settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        _check(f"{section}.{name}", value, value is None or value > 0, "a number greater than 0")


@dataclass(frozen=True)
class Data:
    r"""The text and how it becomes tokens.

    Attributes:
        dataset (str):
            `"pydoc"` or `"stdlib"` (see `benchmarks.lm.text`), or a path that `datasets.load_dataset` takes.
        name (str, Optional):
            Configuration of that dataset, such as `"sample-10BT"`. Default: `None`.
        files (str, Optional):
            Files for a generic loader such as `dataset = "json"`. Default: `None`.
        split (str):
            Split of that dataset. Default: `"train"`.
        column (str):
            Its column of text. Default: `"text"`.
        tokenizer (str):
            `"bytes"`, or a name that `AutoTokenizer.from_pretrained` takes. Default: `"bytes"`.
        length (int):
            Tokens of a training sequence. Default: 256.
        validation_tokens (int):
            Whole documents are kept for validation until they hold this many tokens. Default: 200,000.
        train_tokens (int, Optional):
            Tokens to prepare at most. Default: as many as the training reads.
        text (str, Optional):
            A file of text, or a folder of them, in place of a dataset: one stream, its last tenth for validation (at most
            about `validation_tokens`). Default: `None`.
    """

    dataset: str = "stdlib"
    name: str | None = None
    files: str | None = None
    split: str = "train"
    column: str = "text"
    tokenizer: str = "bytes"
    length: int = 256
    validation_tokens: int = 200_000
    train_tokens: int | None = None
    text: str | None = None

    @property
    def title(self) -> str:
        """What the text is called."""
        return self.dataset if self.text is None else Path(self.text).name

    def __post_init__(self) -> None:
        _check("data.length", self.length, self.length > 1, "a whole number greater than 1")
        _check_positive("data", self, "validation_tokens", "train_tokens")


@dataclass(frozen=True)
class Training:
    r"""The optimiser: AdamW, linear warm-up, then a cosine down to `min_lr_ratio` of the peak.

    Attributes:
        steps, warmup_steps (int):
            Optimiser steps, and how many of them the warm-up takes.
        batch_size (int):
            Sequences of one optimiser step, over all devices.
        micro_batch_size (int, Optional):
            Sequences that one device holds at a time; the rest is gradient accumulation. Default: its whole share.
        lr, min_lr_ratio, weight_decay, beta1, beta2, clip (float):
            AdamW's numbers and the bound on the gradient's norm. Matrices alone are decayed.
        precision (str):
            `"fp32"`, `"bf16"` (autocast) or `"auto"`: bf16 on a GPU that has it. Default: `"auto"`.
        torch_compile (bool):
            Default: `False`.
        gradient_checkpointing (bool):
            Default: `False`.
        log_every, eval_every, save_every (int):
            Steps between points of the curve, validations and checkpoints.
        keep (int):
            Checkpoints that are kept of a run in progress, 2 or more: one may be incomplete. Default: 2.
        seeds (tuple[int, ...]):
            One run each. A seed sets the initial weights and the order of the data.
    """

    steps: int = 300
    warmup_steps: int = 30
    batch_size: int = 16
    micro_batch_size: int | None = None
    lr: float = 3e-3
    min_lr_ratio: float = 0.0
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    precision: str = "auto"
    torch_compile: bool = False
    gradient_checkpointing: bool = False
    log_every: int = 10
    eval_every: int = 100
    save_every: int = 100
    keep: int = 2
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        names = "steps batch_size micro_batch_size lr clip log_every eval_every save_every"
        _check_positive("training", self, *names.split())
        _check("training.precision", self.precision, self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        _check("training.keep", self.keep, self.keep >= 2, "at least 2")
        warm = f"a number from 0 up to training.steps={self.steps}"
        _check("training.warmup_steps", self.warmup_steps, 0 <= self.warmup_steps <= self.steps, warm)
        for name in ("min_lr_ratio", "beta1", "beta2"):
            value = getattr(self, name)
            _check(f"training.{name}", value, 0 <= value < 1, "a number from 0 to below 1")
        _check("training.weight_decay", self.weight_decay, self.weight_decay >= 0, "a number from 0 on")
        distinct = bool(self.seeds) and len(set(self.seeds)) == len(self.seeds) and min(self.seeds) >= 0
        _check("training.seeds", list(self.seeds), distinct, "different numbers from 0 on")


@dataclass(frozen=True)
class Evaluation:
    r"""What is scored after training: the same validation tokens in windows of several lengths.

    Attributes:
        multiples (tuple[int, ...]):
            Lengths as multiples of the training length.
        tokens (int, Optional):
            Validation tokens to score at most. Default: all.
        batch_tokens (int):
            Tokens that one device scores at a time (one window at least). Default: 16,384.
    """

    multiples: tuple[int, ...] = (1, 2, 4, 8)
    tokens: int | None = None
    batch_tokens: int = 16_384

    def __post_init__(self) -> None:
        rising = bool(self.multiples) and list(self.multiples) == sorted(set(self.multiples)) and self.multiples[0] > 0
        _check("evaluation.multiples", list(self.multiples), rising, "rising whole numbers from 1 on")
        _check_positive("evaluation", self, "tokens", "batch_tokens")


@dataclass(frozen=True)
class Entry:
    r"""One model of the comparison.

    Attributes:
        name (str):
            How it is called; alone, a name that `benchmarks.compare.models.get_variant` knows, matched in size, or `"native"`.
        mixer (str or tuple[str, ...], Optional):
            What the model's config gets as `mixer`: then nothing is matched. Default: `None`.
        mixer_config (dict or tuple[dict, ...], Optional):
            What it gets as `mixer_config`. Default: empty.
        model (dict):
            Fields of the model's config that this entry alone has. Default: empty.
    """

    name: str
    mixer: str | tuple[str, ...] | None = None
    mixer_config: dict | tuple[dict, ...] | None = None
    model: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    r"""A whole comparison.

    Attributes:
        mixers (tuple[Entry, ...]):
            The models; in a file a name stands for an entry that is only a name.
        match (str):
            What is made equal where an entry is only a name: `"params"` or `"state"`. Default: `"params"`.
        budget (int, Optional):
            Size of one mixer layer. Default: that of BD-LRU with block size 4 and a state as wide as the model.
        model (dict):
            `type`, one of FLA's model types, and fields of its config.
        data, training, evaluation:
            See there.
    """

    mixers: tuple[Entry, ...] = ()
    match: str = "params"
    budget: int | None = None
    model: dict = field(default_factory=dict)
    data: Data = field(default_factory=Data)
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.mixers]
        _check("mixers", names, bool(names) and len(set(names)) == len(names), "at least one, with different names")
        _check("match", self.match, self.match in MATCHES, f"one of {', '.join(MATCHES)}")
        _check("model.type", self.model.get("type"), isinstance(self.model.get("type"), str), "one of FLA's model types")

    @property
    def eval_lengths(self) -> tuple[int, ...]:
        """Lengths that are scored."""
        return tuple(k * self.data.length for k in self.evaluation.multiples)

    def select(self, names: tuple[str, ...]) -> Settings:
        """These mixers only: entries of that name, or else variants of `benchmarks.compare.models`."""
        entries = {entry.name: entry for entry in self.mixers}
        return replace(self, mixers=tuple(entries.get(name, Entry(name)) for name in names))


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _make(cls: type, table: Any, where: str) -> Any:
    # a dataclass from a TOML table, its fields checked by name and type
    if not isinstance(table, dict):
        raise ValueError(f"{where}={table!r} is not accepted; expected a table.")
    hints, made = get_type_hints(cls), {}
    for name, value in table.items():
        path = f"{where}.{name}" if where else name
        if name not in hints:
            raise ValueError(f"{path} is not known; expected some of {', '.join(hints)}.")
        if cls is Settings and name == "mixers":
            value = _make_entries(value)
        elif hasattr(hints[name], "__dataclass_fields__"):
            value = _make(hints[name], value, path)
        elif isinstance(value, list):
            value = tuple(value)
        if not _fits(value, hints[name]):
            expected = getattr(hints[name], "__name__", str(hints[name])) if isinstance(hints[name], type) else hints[name]
            raise ValueError(f"{path}={value!r} is not accepted; expected {expected}.")
        made[name] = value
    missing = [f.name for f in fields(cls) if f.name == "name" and cls is Entry and f.name not in made]
    if missing:
        raise ValueError(f"{where} lacks a name; it has {', '.join(made) or 'nothing'}.")
    return cls(**made)


def _make_entries(value: Any) -> tuple[Entry, ...]:
    if not isinstance(value, list):
        raise ValueError(f"mixers={value!r} is not accepted; expected a list of names or tables.")
    return tuple(
        Entry(entry) if isinstance(entry, str) else _make(Entry, entry, f"mixers[{i}]") for i, entry in enumerate(value)
    )


def presets() -> list[str]:
    """Names of the files in `configs/`."""
    return sorted(path.stem for path in CONFIGS.glob("*.toml"))


def _override(table: dict, change: str) -> None:
    path, equals, text = change.partition("=")
    *parents, last = path.strip().split(".")
    if not equals or not last:
        raise ValueError(f"set={change!r} is not accepted; expected section.field=value, such as training.lr=1e-3.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ValueError(f"set={change!r} is not accepted: {parent} has no fields.")
    table[last] = value


def load_settings(preset: str, changes: tuple[str, ...] = ()) -> Settings:
    r"""Reads settings.

    Args:
        preset (str):
            Name of a file in `configs/`, or the path of a TOML file.
        changes (tuple[str, ...]):
            `section.field=value`, the value as TOML has it. Default: none.

    Returns:
        Settings:
            Checked, but for what needs the model or the text.

    Raises:
        ValueError: naming the field, its value and what is accepted.

    Example:
        >>> from benchmarks.lm.settings import load_settings
        >>> settings = load_settings("quick", ("training.lr=1e-3", "data.dataset=pydoc"))
        >>> assert settings.training.lr == 1e-3 and settings.data.dataset == "pydoc"
    """
    path = Path(preset) if preset.endswith(".toml") else CONFIGS / f"{preset}.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        expected = f"one of {', '.join(presets())}, or a .toml file.{nearest(preset, presets())}"
        raise ValueError(f"preset={preset!r} is not there; expected {expected}") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"preset={preset!r} is not TOML: {error}.") from None
    for change in changes:
        _override(table, change)
    return _make(Settings, table, "")
