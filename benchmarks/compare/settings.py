"""What a sweep consists of: fields from a grid file and from flags, checked, and multiplied out.

A grid file is TOML, or YAML where its name ends in .yaml or .yml; `task`, `match`, `budget`, `width` and `layers` may be
lists, and every combination is a comparison of all `mixers` at all `lr`, `weight_decay` and `seeds`. `[settings.<task>]` says
what differs for one task:

    task = ["s3", "recall"]
    mixers = ["bdlru-m1", "bdlru-m4", "lstm"]
    match = ["params", "state"]
    seeds = 3
    lr = [3e-3, 1e-2]

    [settings.recall]
    steps = 4000

Where mixers differ in their rates, say, a file holds several grids, `[[grids]]`, each with fields that win over those above
all of them:

    preset = "tracking"
    seeds = 5

    [[grids]]
    task = ["s3", "z5"]
    mixers = ["lstm", "slice-m5"]
    lr = 2e-2
    settings.z5.lr = 1e-2

    [[grids]]
    task = "s3"
    mixers = "mamba2"
    lr = 5e-3
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from importlib import import_module
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.compare.presets import PRESETS, Preset, get_preset
from benchmarks.records.cell import CURRICULA, MATCHES, RESTARTING, SWEPT
from benchmarks.records.fields import Accepts, FieldError, Refused, nearest, one_of, read_fields, real, whole
from benchmarks.records.naming import parse_name


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

    name = _known(get_variant, _name(value), (*ALL_VARIANTS, *available_mixers()))
    ours = parse_name(name)
    return ours.name if ours else name  # rows go by it, and by one name for one model


def _known(find: Callable[[str], Any], name: str, names: Iterable[str]) -> str:
    try:
        find(name)
    except ValueError as error:
        raise Refused((str(error) if repr(name) in str(error) else f"{name!r}: {error}") + nearest(name, names)) from None
    return name


@dataclass(frozen=True)
class Field:
    """What one value of a field is, what its flag's help says, and whether there may be several."""

    accepts: Accepts
    help: str
    several: bool = True


MOST = 10**9  # layers of that size are built to be measured
MOST_SEEDS = 1000  # of a count: a larger number is meant as a seed
# written out, as benchmarks.tasks imports torch
TASK_NAMES = (
    "s2, s3, s4, s5, a3, a4, a5, d4, q8 (groups), z2, z3, z5, z60 or any z<n> (cyclic), z2xz4 (products), parity, even_pairs, "
    "cycle_navigation, modular_arithmetic, modular_arithmetic_brackets, recall, noisy_recall, fuzzy_recall, memorization, "
    "selective_copying, compression"
)
SEEDS = f"a count up to {MOST_SEEDS:,} (3 means 0,1,2) or a list of numbers from 0 on (0,7 or 7,)"
FIELDS = {
    "task": Field(Accepts(_task, "different names of tasks"), f"{TASK_NAMES}; benchmarks/README.md says what they are."),
    "mixers": Field(Accepts(_mixer, "different names of mixers"), "Comma list, or all; a wrong name prints them. Default: 6."),
    "match": Field(one_of(*MATCHES, words="params, state or both"), "What is made equal: params (default), state, or both."),
    "budget": Field(
        whole(1, f"a whole number from 1 to {MOST:,}", highest=MOST), "Size of one mixer layer. Default: that of bdlru-m4."
    ),
    "preset": Field(one_of(*PRESETS), "quick (default, minutes), cpu (a night), paper (a GPU), tracking.", several=False),
    "lr": Field(
        real(lambda x: 0 < x < math.inf, "numbers greater than 0 such as 3e-3"),
        "Peak learning rate; of a comma list, each mixer's best on validation is shown.",
    ),
    "seeds": Field(whole(0, SEEDS), "A count (3 means 0,1,2) or a list (0,7). Default: as preset."),
    **{
        f.name: Field(f.metadata["accepts"], f.metadata["help"], f.metadata.get("several", False))
        for f in fields(Preset)
        if f.metadata.get("accepts")
    },
}


KNOWN_BY = {"task": "benchmarks.tasks", "mixers": "benchmarks.compare.models"}  # what imports torch, and knows the names


def parse_field(name: str, value: Any, where: str) -> tuple:
    r"""A field's values, from what is typed after a flag (commas separate several), or a value or a list of a grid file.

    FieldError, if they are wrong, says what the user calls the field (`where`), the value and what is accepted.

    Example:
        >>> from benchmarks.compare.settings import parse_field
        >>> assert parse_field("lr", "3e-3,1e-2", "--lr") == (3e-3, 1e-2)
        >>> assert parse_field("seeds", 3, "seeds") == (0, 1, 2)
    """
    field = FIELDS[name]
    if name in KNOWN_BY:
        import_module(KNOWN_BY[name])  # here, as an error in it is not one of the value
    if name == "mixers" and value in ("all", ["all"]):
        from benchmarks.compare.models import ALL_VARIANTS

        return ALL_VARIANTS
    wrong = FieldError(where, f"{value!r} is not accepted; expected {field.accepts.words}.")
    listed = isinstance(value, list) or (isinstance(value, str) and "," in value)
    parts = [p for p in value.split(",") if p.strip()] if isinstance(value, str) else value if listed else [value]
    if not parts or (listed and not field.several):
        raise wrong
    try:
        values = tuple(field.accepts.convert(part) for part in parts)
    except Refused as error:
        raise FieldError(where, str(error)) from None
    except (TypeError, ValueError):
        raise wrong from None
    if name == "seeds" and not listed:
        values = tuple(range(values[0])) if values[0] <= MOST_SEEDS else ()
    if not values or len(set(values)) < len(values):
        raise wrong
    return values


@dataclass(frozen=True)
class Part:
    """One comparison of a sweep: a task, a rule of matching, and settings with all learning rates and seeds."""

    task: str
    mixers: tuple[str, ...]
    match: str
    budget: int | None
    settings: Preset


def read_sweep(path: Path, flags: Mapping[str, tuple] = MappingProxyType({})) -> list[Part]:
    """Reads a grid file, TOML or YAML, and multiplies it out, each of its `[[grids]]` by itself: see `lay_out`.

    FieldError names the file, the field, the value and what is accepted.
    """
    content = read_fields(path)
    grids = content.pop("grids", [{}])
    if not isinstance(grids, list) or not grids or not all(isinstance(grid, dict) for grid in grids):
        raise FieldError(f"{path}: grids", f"{grids!r} is not accepted; expected tables, each below a line [[grids]].")
    above, shared = _take_tables(content, str(path))
    own = [_take_tables(grid, f"{path}: grids {i}") for i, grid in enumerate(grids, 1)]
    tasks = [(*values.get("task", above.get("task", ())), *flags.get("task", ())) for values, _ in own]
    settings = _read_tables(shared, tuple(dict.fromkeys(sum(tasks, ()))), str(path))
    parts = []
    for i, ((values, tables), names) in enumerate(zip(own, tasks), 1):
        found = _read_tables(tables, names, f"{path}: grids {i}")
        merged = {task: {**settings.get(task, {}), **found.get(task, {})} for task in (*settings, *found)}
        parts += lay_out(flags, {**above, **values}, merged)
    return parts


def _take_tables(content: dict[str, Any], where: str) -> tuple[dict[str, tuple], dict[str, dict[str, Any]]]:
    # fields, and what `[settings.<task>]` holds by task
    tables = content.pop("settings", {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise FieldError(f"{where}: settings", f"{tables!r} is not accepted; expected tables such as [settings.recall].")
    return _read_table(content, tuple(FIELDS), where), tables


def _read_tables(tables: dict[str, dict[str, Any]], tasks: tuple[str, ...], where: str) -> dict[str, dict[str, tuple]]:
    own = tuple(name for name in FIELDS if name not in ("task", "preset"))
    for task in tables:
        if task not in tasks:
            expected = f"one of its tasks: {', '.join(tasks) or 'there are none, set task'}"
            raise FieldError(f"{where}: settings", f"{task!r} is not known; expected {expected}.")
    return {task: _read_table(table, own, f"{where}: settings.{task}") for task, table in tables.items()}


def _read_table(table: dict[str, Any], known: tuple[str, ...], where: str) -> dict[str, tuple]:
    for name in table:
        if name not in known:
            raise FieldError(where, f"field {name!r} is not known; expected some of {', '.join(known)}.")
    return {name: parse_field(name, value, f"{where}: {name}") for name, value in table.items()}


def lay_out(flags: Mapping[str, tuple], fields: dict[str, tuple], settings: dict[str, dict[str, tuple]]) -> list[Part]:
    """Multiplies a sweep out: a part per combination of task, rule of matching, budget and what is `SWEPT`.

    A flag wins over the file's fields, and in the file a task's own settings over the rest. FieldError, if there are fewer
    steps than training lengths, a budget for two rules of matching, or a field that would change nothing.
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
        decays = values.get("weight_decay", (base.weight_decay,))
        base = replace(base, weight_decay=decays[0], decays=decays)
        if base.steps < len(base.lengths):
            where = "--steps" if "steps" in flags else "steps"
            raise FieldError(where, f"{base.steps} is not accepted; expected at least one per length {base.lengths}.")
        if base.curriculum in RESTARTING and base.schedule != "trapezoid":
            typed = "schedule" in flags or ("curriculum" in flags and "schedule" not in values)
            where = "--schedule" if typed else "schedule"
            raise FieldError(
                where, f"{base.schedule!r} is not accepted with curriculum {base.curriculum}; expected trapezoid."
            )
        _check_effect(task, base, values, flags)
        if len(values.get("match", ())) > 1 and "budget" in values:
            where, given = "--budget" if "budget" in flags else "budget", values["budget"][0]
            raise FieldError(where, f"{given} is not accepted with match params,state; expected one rule: their units differ.")
        swept = (values.get(name, (getattr(base, name),)) for name in SWEPT)
        for match, budget, *own in product(values.get("match", ("params",)), values.get("budget", (None,)), *swept):
            sized = replace(base, **dict(zip(SWEPT, own)))
            sized = replace(sized, mlp_width=base.mlp_width * sized.width // base.width)
            parts.append(Part(task, values.get("mixers", DEFAULT_VARIANTS), match, budget, sized))
    return parts


def _check_effect(task: str, base: Preset, values: dict[str, tuple], flags: Mapping[str, tuple]) -> None:
    # FieldError, if a field is given that the run would not heed: it would be another key for the same training; or one that
    # does not fit the task
    from benchmarks.tasks import get_task

    def refuse(name: str, value: Any, words: str) -> None:
        raise FieldError(f"--{name.replace('_', '-')}" if name in flags else name, f"{value!r} is not accepted {words}.")

    examples = f"with a set of {base.train_examples:,} training examples"
    if base.train_examples and base.tokens:
        refuse("tokens", base.tokens, f"{examples}, of which a step takes {base.batch_size} sequences; expected 0")
    if base.train_examples and base.curriculum != "stages":
        refuse("curriculum", base.curriculum, f"{examples}, as it draws new ones; expected stages")
    if base.curriculum != "stages" and not get_task(task).asks_last:
        refuse("curriculum", base.curriculum, f"with {task}, whose last token is always the same; expected stages")
    if base.curriculum == "louder" and not base.readout_noise:
        refuse("readout_noise", base.readout_noise, "with curriculum louder, whose unit it is; expected a level above 0")
    if "threshold" in values and base.curriculum == "stages":
        others = " or ".join(name for name in CURRICULA if name != "stages")
        refuse("threshold", base.threshold, f"with curriculum stages, which has none; expected none, or curriculum {others}")
