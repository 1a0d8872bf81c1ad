"""What a comparison consists of: settings, the grid of cells, and the row that each leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

from benchmarks.compare.models import (
    Matched,
    default_budget,
    get_variant,
    layer_flops,
    layer_params,
    layer_state,
    match_variant,
    state_grows,
)
from benchmarks.compare.presets import Preset
from benchmarks.records.cell import NAMES, Cell
from benchmarks.records.machine import commit, now
from benchmarks.records.store import COLUMNS
from benchmarks.records.summary import best_lines
from benchmarks.tasks import get_task


@dataclass(frozen=True)
class Planned:
    """A cell with what its row says about the mixer, all layers together; `None` is what grows, or cannot be counted."""

    cell: Cell
    mixer_params: int
    state_size: int | None
    mixer_flops: int | None
    recurrent_flops: int | None
    # what was made equal, and the budget of a layer: "params 28992", with the rule that was used in brackets if that is
    # another: "state 64 (by params 28992)"; several are separated by semicolons
    matched: str
    # whether its seed is one that tries every rate
    tries: bool = True
    # cells of a lower one run first: one seed and rate of all mixers, then the next rate, then the next seed
    turn: int = 0


def plan(
    task: str, names: tuple[str, ...], match: str, budget: int | None, preset: Preset, device: str
) -> tuple[list[Planned], dict[str, Matched]]:
    """Lays out the grid: every mixer, learning rate, weight decay and seed, with sizes settled; and how variants were matched.

    A budget of `None` is the reference mixer's. On `device` a layer is run to measure its state. ValueError, if a mixer cannot
    be matched or run, or a length does not fit the task.
    """
    definition = get_task(task)
    multiples = preset.multiples if definition.extrapolates else (1,)
    eval_lengths = tuple(k * max(preset.lengths) for k in multiples)
    for length in (*preset.lengths, *eval_lengths):
        definition.check_length(length)
    label = f"{match} {default_budget(match, preset.width) if budget is None else budget}"
    shared = {name: value for name, value in vars(preset).items() if name in NAMES}
    cells, matches = [], {}
    for name in names:
        matched = matches[name] = match_variant(name, match, preset.width, budget)
        mixer = get_variant(name).mixer
        by = "" if matched.rule == label else f" (by {matched.rule})"
        mixer_params = preset.layers * layer_params(mixer, preset.width, matched.args)
        growing = state_grows(mixer, preset.width, matched.args, device)
        state = None if growing else preset.layers * layer_state(mixer, preset.width, matched.args, device)
        flops = tuple(n and preset.layers * n for n in layer_flops(mixer, preset.width, matched.args, max(preset.lengths)))
        own = {**shared, "mlp_width": preset.mlp_width + matched.extra_mlp, "eval_lengths": eval_lengths, "task": task}
        own |= {"variant": name, "mixer": mixer, "mixer_args": matched.args}
        decays = preset.decays or (preset.weight_decay,)
        for decay, (rate, lr), (i, seed) in product(decays, enumerate(preset.lrs), enumerate(preset.seeds)):
            cell = Cell(**{**own, "weight_decay": decay, "lr": lr, "seed": seed})
            turn = i * len(preset.lrs) + rate
            cells.append(Planned(cell, mixer_params, state, *flops, label + by, i < (preset.tune or math.inf), turn))
    return cells, matches


def join_labels(*labels: str) -> str:
    """Labels of `Planned.matched`, each once.

    Example:
        >>> from benchmarks.compare.plan import join_labels
        >>> assert join_labels("params 99; state 64", "", "params 99") == "params 99; state 64"
    """
    return "; ".join(dict.fromkeys(part for label in labels for part in label.split("; ") if part))


def merge(grids: list[list[Planned]]) -> dict[str, Planned]:
    """The cells of several grids by key; one that stands in more than one is run once and bears all labels.

    It is among those that all rates try, if one of the grids has it there, so what a grid names by itself is run.
    """
    cells: dict[str, Planned] = {}
    for planned in (p for grid in grids for p in grid):
        before = cells.get(planned.cell.key)
        if before is not None:
            labels, tries = join_labels(before.matched, planned.matched), before.tries or planned.tries
            planned = replace(before, matched=labels, tries=tries)
        cells[planned.cell.key] = planned
    return cells


def narrow(planned: dict[str, Planned], rows: dict[str, dict]) -> tuple[dict[str, Planned], list[Planned]]:
    """The cells to run, in turn, and those that follow once these are there, at rates that `rows` do not say yet.

    Seeds that do not try every rate (`Preset.tune`) run at the learning rate and weight decay that did best on validation data
    with those that do; what follows is told at the best so far, or at the first.
    """
    mixers: dict[str, list[Planned]] = {}
    for p in planned.values():
        mixers.setdefault(replace(p.cell, lr=1.0, weight_decay=0.0, seed=0).key, []).append(p)
    known, later = [], []
    for cells in mixers.values():
        tried, rest = [p for p in cells if p.tries], [p for p in cells if not p.tries]
        known += tried
        found = [rows[p.cell.key] for p in tried if p.cell.key in rows]
        unknown = len(found) < len(tried)
        seeds: dict[tuple, set[int]] = {}
        for p in tried:
            seeds.setdefault((p.cell.lr, p.cell.weight_decay), set()).add(p.cell.seed)
        common = set.intersection(*seeds.values())  # another grid may give one rate more
        compared = [row for row in found if row["seed"] in common] or found
        best = best_lines(compared)[0].runs[0] if found else vars(tried[0].cell)
        at_best = [p for p in rest if (p.cell.lr, p.cell.weight_decay) == (best["lr"], best["weight_decay"])]
        (later if unknown else known).extend(at_best)
    return {p.cell.key: p for p in sorted(known, key=lambda p: p.turn)}, later


def make_row(planned: Planned, result: dict, labels: str = "") -> dict:
    """The row of a finished cell; `labels` are those of an older row that it replaces."""
    counted = planned.recurrent_flops is not None
    row = {
        "key": planned.cell.key,
        **vars(planned.cell),
        **{name: getattr(planned, name) for name in ("mixer_params", "state_size", "mixer_flops", "recurrent_flops")},
        "flops_per_token": result["linear_flops"] + planned.recurrent_flops if counted else None,
        "validation_token_accuracy": result["validation"],
        **{name: value for name, value in result.items() if name in COLUMNS},
        "matched": join_labels(labels, planned.matched),
        "commit": commit(),  # Ray sends no .git
        "finished": now(),
    }
    longest = max(planned.cell.lengths)
    for length, scores in zip(planned.cell.eval_lengths, result["scores"]):
        row |= {f"{name}_{length // longest}x": value for name, value in scores.items()}
    return row
