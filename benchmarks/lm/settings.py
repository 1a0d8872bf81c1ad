"""Settings of a comparison: a TOML file in `configs/` or of the user's, changed by `--set`. Light: no torch, no FLA."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from benchmarks.records.cell import MATCHES
from benchmarks.records.fields import Accepts, accept, nearest, one_of, option, read_fields, real, tomllib, whole

CONFIGS = Path(__file__).parent / "configs"

MORE = accept(lambda x: 0 < x < math.inf, "a finite number greater than 0")
SHARE = real(lambda x: 0 <= x < 1, "a number from 0 to below 1")
RISING = accept(
    lambda x: bool(x) and list(x) == sorted(set(x)) and x[0] > 0, "rising whole numbers from 1 on, such as [1, 2, 4]"
)
SEEDS = accept(
    lambda x: bool(x) and len(set(x)) == len(x) and min(x) >= 0, "different whole numbers from 0 on, such as [0, 1]"
)
LISTS = {str: 'a list of strings, such as ["bdlru", "attn"]', dict: "a list of tables, such as [{block_size = 4}, {}]"}


@dataclass(frozen=True)
class Data:
    """The text and how it becomes tokens."""

    dataset: str = "stdlib"  # `pydoc` or `stdlib` (see `benchmarks.lm.text`), or a path that `datasets.load_dataset` takes
    name: str | None = None  # configuration of that dataset, such as "sample-10BT"
    files: str | None = None  # files for a generic loader such as dataset = "json"
    split: str = "train"
    column: str = "text"
    tokenizer: str = "bytes"  # or a name that `AutoTokenizer.from_pretrained` takes
    length: int = option(256, accept(lambda x: x > 1, "a whole number greater than 1"))  # tokens of a training sequence
    validation_tokens: int = option(200_000, MORE)  # whole documents are kept for validation until they hold so many
    train_tokens: int | None = option(None, MORE)  # tokens to prepare at most; as many as the training reads
    # a file of text, or a folder of them, in place of a dataset: one stream, its last tenth for validation, at most about
    # `validation_tokens`
    text: str | None = None

    @property
    def title(self) -> str:
        """What the text is called."""
        return self.dataset if self.text is None else Path(self.text).name


@dataclass(frozen=True)
class Training:
    """The optimiser: AdamW, linear warm-up, then a cosine down to `min_lr_ratio` of the peak. Matrices alone are decayed.

    A result does not depend on what is not `keyed`.
    """

    steps: int = option(300, MORE)
    warmup_steps: int = 30
    batch_size: int = option(16, MORE)  # sequences of an optimiser step, over all devices
    # that one device holds at a time; the rest is gradient accumulation
    micro_batch_size: int | None = option(None, MORE, keyed=False)
    lr: float = option(3e-3, MORE)
    min_lr_ratio: float = option(0.0, SHARE)
    weight_decay: float = option(0.1, real(lambda x: 0 <= x < math.inf, "a finite number from 0 on"))
    beta1: float = option(0.9, SHARE)
    beta2: float = option(0.95, SHARE)
    clip: float = option(1.0, MORE)  # bound on the gradient's norm
    precision: str = option("auto", one_of("auto", "fp32", "bf16"))  # bf16 is autocast; auto: on a GPU that has it
    torch_compile: bool = False
    gradient_checkpointing: bool = False
    log_every: int = option(10, MORE, keyed=False)  # steps between points of the curve
    eval_every: int = option(100, MORE, keyed=False)
    save_every: int = option(100, MORE, keyed=False)
    # checkpoints of a run in progress: one may be incomplete
    keep: int = option(2, accept(lambda x: x >= 2, "at least 2"), keyed=False)
    seeds: tuple[int, ...] = option((0,), SEEDS, keyed=False)  # a run each: initial weights and the order of the data

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps <= self.steps:
            expected = f"a number from 0 up to training.steps={self.steps}"
            raise ValueError(f"training.warmup_steps={self.warmup_steps} is not accepted; expected {expected}.")


@dataclass(frozen=True)
class Evaluation:
    """What is scored after training: the same validation tokens in windows of several lengths."""

    multiples: tuple[int, ...] = option((1, 2, 4, 8), RISING)  # of the training length
    tokens: int | None = option(None, MORE)  # validation tokens to score at most
    batch_tokens: int = option(16_384, MORE)  # that one device scores at a time (one window at least)


@dataclass(frozen=True)
class Entry:
    """One model; alone, a name is a mixer that `benchmarks.compare` knows, matched in size, or `"native"`."""

    name: str
    mixer: str | tuple[str, ...] | None = None  # what the model's config gets as `mixer`: then nothing is matched
    mixer_config: dict | tuple[dict, ...] | None = None
    model: dict = field(default_factory=dict)  # fields of the model's config that this entry alone has


@dataclass(frozen=True)
class Settings:
    """A whole comparison."""

    mixers: tuple[Entry, ...] = ()  # in a file a name stands for an entry that is only a name
    match: str = option("params", one_of(*MATCHES))  # what is made equal where an entry is only a name
    budget: int | None = option(None, whole(1))  # of a mixer layer; None: that of `bdlru-m4`
    model: dict = field(default_factory=dict)  # `type`, one of FLA's model types, and fields of its config
    data: Data = field(default_factory=Data)
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.mixers]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"mixers={names!r} is not accepted; expected at least one, with different names.")
        if not isinstance(self.model.get("type"), str):
            raise ValueError(f"model.type={self.model.get('type')!r} is not accepted; expected one of FLA's model types.")

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


def _words(hint: Any, accepts: Accepts | None) -> str:
    # what is expected where the type is wrong
    if isinstance(hint, UnionType):
        return " or ".join(_words(option, accepts) for option in get_args(hint) if option is not NoneType)
    if get_origin(hint) is tuple:
        return accepts.words if accepts else LISTS[get_args(hint)[0]]
    return hint.__name__


def _make(cls: type, table: Any, where: str) -> Any:
    # a dataclass from a TOML table, its fields checked by name, type and what they accept
    if not isinstance(table, dict):
        raise ValueError(f"{where}={table!r} is not accepted; expected a table.")
    hints, made = get_type_hints(cls), {}
    for name, value in table.items():
        path = f"{where}.{name}" if where else name
        if name not in hints:
            raise ValueError(f"{path} is not known; expected some of {', '.join(hints)}.{nearest(name, hints)}")
        made[name] = _value(path, value, hints[name], cls.__dataclass_fields__[name].metadata.get("accepts"))
    if cls is Entry and "name" not in made:
        raise ValueError(f"{where} lacks a name; it has {', '.join(made) or 'nothing'}.")
    return cls(**made)


def _value(path: str, value: Any, hint: Any, accepts: Accepts | None) -> Any:
    if hint == tuple[Entry, ...]:
        if not isinstance(value, list):
            raise ValueError(f"{path}={value!r} is not accepted; expected a list of names or tables.")
        return tuple(Entry(e) if isinstance(e, str) else _make(Entry, e, f"{path}[{i}]") for i, e in enumerate(value))
    if hasattr(hint, "__dataclass_fields__"):
        return _make(hint, value, path)
    given = tuple(value) if isinstance(value, list) else value
    expected = _words(hint, accepts)
    try:
        if _fits(given, hint):
            expected = accepts.words if accepts else expected
            return accepts.convert(given) if accepts else given
    except ValueError:
        pass
    raise ValueError(f"{path}={value!r} is not accepted; expected {expected}.")


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
    r"""Settings of a preset, a file in `configs/` or the path of a TOML file, with changes such as `training.lr=1e-3`.

    They are checked, but for what needs the model or the text; ValueError names the field, its value and what is accepted.

    Example:
        >>> from benchmarks.lm.settings import load_settings
        >>> settings = load_settings("quick", ("training.lr=1e-3", "data.dataset=pydoc"))
        >>> assert settings.training.lr == 1e-3 and settings.data.dataset == "pydoc"
    """
    path = Path(preset) if preset.endswith(".toml") else CONFIGS / f"{preset}.toml"
    if not path.is_file():
        expected = f"one of {', '.join(presets())}, or a .toml file.{nearest(preset, presets())}"
        raise ValueError(f"preset={preset!r} is not there; expected {expected}")
    table = read_fields(path)
    for change in changes:
        _override(table, change)
    return _make(Settings, table, "")
