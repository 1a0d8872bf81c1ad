"""What a sweep consists of: fields from a grid file and from flags, checked, and multiplied out.

A grid file is TOML, or YAML where its name ends in .yaml or .yml; `task`, `match`, `budget`, `width`, `layers` and
`weight_decay` may be lists, and every combination is a comparison of all `mixers` at all `lr` and `seeds`. `[settings.<task>]`
says what differs for one task:

    task = ["s3", "recall"]
    mixers = ["bdlru-m1", "bdlru-m4", "lstm"]
    match = ["params", "state"]
    seeds = 3
    lr = [3e-3, 1e-2]

    [settings.recall]
    steps = 4000
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from benchmarks.compare.presets import CURRICULA, MATCHES, PRESETS, SCHEDULES, Preset, get_preset

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class FieldError(ValueError):
    """A field that is wrong: `where` names it, the message says what was found and what is accepted."""

    def __init__(self, where: str, message: str):
        super().__init__(f"{where}: {message}")
        self.where, self.message = where, message


class _Refused(ValueError):
    """A value that is refused for a reason of its own."""


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value.strip()


def _task(value: Any) -> str:
    from benchmarks.tasks import TASKS, get_task

    return _known(get_task, _name(value), TASKS)


def _mixer(value: Any) -> str:
    from benchmarks.compare.models import ALL_VARIANTS, get_variant
    from fla_bdlru import available_mixers

    return _known(get_variant, _name(value), (*ALL_VARIANTS, *available_mixers()))


def _known(find: Callable[[str], Any], name: str, names: Iterable[str]) -> str:
    try:
        find(name)
    except ValueError as error:
        raise _Refused((str(error) if repr(name) in str(error) else f"{name!r}: {error}") + nearest(name, names)) from None
    return name


def nearest(name: Any, names: Iterable[str]) -> str:
    """What an error adds to a wrong name: the right one that is most like it, if one is near."""
    near = get_close_matches(str(name), list(names), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _one_of(*known: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in known:
            raise _Refused(f"{value!r} is not known; expected one of {', '.join(known)}.{nearest(value, known)}")
        return value

    return convert


def _whole(lowest: int, multiple: int = 1, highest: float = math.inf) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if isinstance(value, (bool, float)):
            raise ValueError
        number = int(value)
        if not lowest <= number <= highest or number % multiple:
            raise ValueError
        return number

    return convert


def _real(accepts: Callable[[float], bool]) -> Callable[[Any], float]:
    def convert(value: Any) -> float:
        if isinstance(value, bool) or not accepts(float(value)):
            raise ValueError
        return float(value)

    return convert


def _switch(value: Any) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ValueError
    return str(value).lower() == "true"


@dataclass(frozen=True)
class Field:
    """How one value of a field is converted, what is accepted and said of it, and whether there may be several."""

    convert: Callable[[Any], Any]
    accepted: str
    help: str  # of its flag
    several: bool = True


WIDEST, MOST = 2**14, 10**9  # layers of that width or size are built to be measured
_POSITIVE = "a whole number greater than 0"
# written out, as benchmarks.tasks imports torch
TASK_NAMES = (
    "s2, s3, s4, s5, a3, a4, a5, d4, q8 (groups), z2, z3, z5, z60 or any z<n> (cyclic), z2xz4 (products), parity, even_pairs, "
    "cycle_navigation, modular_arithmetic, modular_arithmetic_brackets, recall, noisy_recall, fuzzy_recall, memorization, "
    "selective_copying, compression"
)
FIELDS = {
    "task": Field(_task, "different names of tasks", f"{TASK_NAMES}; benchmarks/README.md says what they are."),
    "mixers": Field(_mixer, "different names of mixers", "Comma list, or all; a wrong name prints them. Default: 6."),
    "match": Field(_one_of(*MATCHES), "params, state or both", "What is made equal: params (default), state, or both."),
    "budget": Field(
        _whole(1, highest=MOST), f"a whole number from 1 to {MOST:,}", "Size of one mixer layer. Default: that of bdlru-m4."
    ),
    "preset": Field(
        _one_of(*PRESETS),
        f"one of {', '.join(PRESETS)}",
        "quick (default, minutes), cpu (a night), paper (a GPU), tracking.",
        several=False,
    ),
    "steps": Field(_whole(1), _POSITIVE, "Optimiser steps.", several=False),
    "width": Field(_whole(8, 8, WIDEST), f"a positive multiple of 8 up to {WIDEST:,}", "Width of the model, a multiple of 8."),
    "layers": Field(_whole(1), _POSITIVE, "Number of blocks."),
    "lr": Field(
        _real(lambda x: 0 < x < math.inf),
        "numbers greater than 0 such as 3e-3",
        "Peak learning rate; of a comma list, each mixer's best on validation is shown.",
    ),
    "weight_decay": Field(
        _real(lambda x: 0 <= x <= 1), "numbers from 0 to 1", "AdamW's decay of matrices, or a list. Default: as preset."
    ),
    "seeds": Field(
        _whole(0),
        "a count (3 means 0,1,2) or a list of numbers from 0 on (0,7 or 7,)",
        "A count (3 means 0,1,2) or a list (0,7). Default: as preset.",
    ),
    "schedule": Field(
        _one_of(*SCHEDULES),
        f"one of {', '.join(SCHEDULES)}",
        "Of the learning rate: one-cycle or cosine. Default: as preset.",
        several=False,
    ),
    "curriculum": Field(
        _one_of(*CURRICULA), f"one of {', '.join(CURRICULA)}", "stages or adaptive. Default: as preset.", several=False
    ),
    "tokens": Field(
        _whole(0),
        "tokens of a step, or 0 for the preset's batch size",
        "Tokens of a step, in place of sequences. Default: as preset.",
        several=False,
    ),
    "bos": Field(_switch, "true or false", "true: sequences begin with a token of their own.", several=False),
    "readout_noise": Field(
        _real(lambda x: 0 <= x <= 10),
        "a level from 0 (none) to 10",
        "Noise on what mixers return while training. Default: as preset, 0.",
        several=False,
    ),
    "stop_at": Field(
        _real(lambda x: 0 <= x <= 1),
        "a token accuracy from 0 (never stop early) to 1",
        "End a run early at this validation token accuracy. Default: 0, never.",
        several=False,
    ),
}


def parse_field(name: str, value: Any, where: str) -> tuple:
    r"""Checks a field's value.

    Args:
        name (str):
            One of `FIELDS`.
        value (Any):
            As typed after a flag (commas separate several values), or as it stands in a grid file (a value or a list).
        where (str):
            What the user calls the field, for errors.

    Returns:
        tuple:
            The values.

    Raises:
        FieldError: naming the field, the value and what is accepted.

    Example:
        >>> from benchmarks.compare.settings import parse_field
        >>> assert parse_field("lr", "3e-3,1e-2", "--lr") == (3e-3, 1e-2)
        >>> assert parse_field("seeds", 3, "seeds") == (0, 1, 2)
    """
    field = FIELDS[name]
    if name == "mixers" and value in ("all", ["all"]):
        from benchmarks.compare.models import ALL_VARIANTS

        return ALL_VARIANTS
    wrong = FieldError(where, f"{value!r} is not accepted; expected {field.accepted}.")
    listed = isinstance(value, list) or (isinstance(value, str) and "," in value)
    parts = [p for p in value.split(",") if p.strip()] if isinstance(value, str) else value if listed else [value]
    if not parts or (listed and not field.several):
        raise wrong
    try:
        values = tuple(field.convert(part) for part in parts)
    except _Refused as error:
        raise FieldError(where, str(error)) from None
    except (TypeError, ValueError):
        raise wrong from None
    if name == "seeds" and not listed:
        values = tuple(range(values[0]))
    if not values or len(set(values)) < len(values):
        raise wrong
    return values


def read_grid(path: Path, tasks: tuple[str, ...] = ()) -> tuple[dict[str, tuple], dict[str, dict[str, tuple]]]:
    r"""Reads a grid file.

    Args:
        path (Path):
            A TOML file, this module's docstring shows one, or a YAML file.
        tasks (tuple[str, ...]):
            Tasks given beside the file, which may have a table in it. Default: none.

    Returns:
        (dict[str, tuple], dict[str, dict[str, tuple]]):
            Fields for all tasks, and those of `[settings.<task>]` by task.

    Raises:
        FieldError: naming the file, the field, the value and what is accepted.
    """
    content = _parse(path)
    tables = content.pop("settings", {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise FieldError(f"{path}: settings", f"{tables!r} is not accepted; expected tables such as [settings.recall].")
    fields = _read_table(content, tuple(FIELDS), str(path))
    names = (*fields.get("task", ()), *tasks)
    settings = {}
    for task, table in tables.items():
        if task not in names:
            expected = f"one of its tasks: {', '.join(names) or 'there are none, set task'}"
            raise FieldError(f"{path}: settings", f"{task!r} is not known; expected {expected}.")
        own = tuple(name for name in FIELDS if name not in ("task", "preset"))
        settings[task] = _read_table(table, own, f"{path}: settings.{task}")
    return fields, settings


class _UniqueKeys(yaml.SafeLoader):
    """YAML as it is meant: a key stands once."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for (key, _), value in zip(node.value, keys):
            if keys.count(value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{value!r} stands there twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _parse(path: Path) -> dict[str, Any]:
    is_yaml = path.suffix.lower() in (".yaml", ".yml")
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, _UniqueKeys) if is_yaml else tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise FieldError(str(path), f"cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    except (yaml.YAMLError, tomllib.TOMLDecodeError) as error:
        reason = " ".join(str(error).split())
        raise FieldError(str(path), f"is not {'YAML' if is_yaml else 'TOML'}: {reason}.") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise FieldError(str(path), f"{content!r} is not accepted; expected fields such as task: [s3, parity].")
    return content


def _read_table(table: dict[str, Any], known: tuple[str, ...], where: str) -> dict[str, tuple]:
    for name in table:
        if name not in known:
            raise FieldError(where, f"field {name!r} is not known; expected some of {', '.join(known)}.")
    return {name: parse_field(name, value, f"{where}: {name}") for name, value in table.items()}


@dataclass(frozen=True)
class Part:
    """One comparison of a sweep: a task, a rule of matching, and settings with all learning rates and seeds."""

    task: str
    mixers: tuple[str, ...]
    match: str
    budget: int | None
    settings: Preset


def lay_out(flags: dict[str, tuple], fields: dict[str, tuple], settings: dict[str, dict[str, tuple]]) -> list[Part]:
    r"""Multiplies a sweep out; a flag wins over the file, and in the file a task's own table over the rest.

    Args:
        flags, fields (dict[str, tuple]):
            Values by field, from the command line and from the grid file.
        settings (dict[str, dict[str, tuple]]):
            What the grid file sets for single tasks.

    Returns:
        list[Part]:
            One per combination of task, rule of matching, budget, width, number of layers and weight decay.

    Raises:
        FieldError: if there are fewer steps than training lengths, or a budget for two rules of matching.
    """
    from benchmarks.compare.models import DEFAULT_VARIANTS

    parts = []
    for task in {**fields, **flags}.get("task", ("s3",)):
        values = {**fields, **settings.get(task, {}), **flags}
        (preset,) = values.get("preset", ("quick",))
        try:
            base = get_preset(preset, task)
        except ValueError as error:
            raise FieldError("--preset" if "preset" in flags else "preset", str(error)) from None
        single = {name: value for name, (value, *_) in values.items() if hasattr(base, name) and not FIELDS[name].several}
        base = replace(base, **single)
        base = replace(base, lrs=values.get("lr", base.lrs), seeds=values.get("seeds", base.seeds))
        if base.steps < len(base.lengths):
            where = "--steps" if "steps" in flags else "steps"
            raise FieldError(where, f"{base.steps} is not accepted; expected at least one per length {base.lengths}.")
        if len(values.get("match", ())) > 1 and "budget" in values:
            where, given = "--budget" if "budget" in flags else "budget", values["budget"][0]
            raise FieldError(where, f"{given} is not accepted with match params,state; expected one rule: their units differ.")
        sizes = product(
            values.get("match", ("params",)),
            values.get("budget", (None,)),
            values.get("width", (base.width,)),
            values.get("layers", (base.layers,)),
            values.get("weight_decay", (base.weight_decay,)),
        )
        for match, budget, width, layers, decay in sizes:
            mlp_width = base.mlp_width * width // base.width
            sized = replace(base, width=width, layers=layers, mlp_width=mlp_width, weight_decay=decay)
            parts.append(Part(task, values.get("mixers", DEFAULT_VARIANTS), match, budget, sized))
    return parts
