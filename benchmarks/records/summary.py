"""What stored rows say: runs grouped into comparisons, medians over seeds, and who wins by how much."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import pandas as pd

from benchmarks.records.cell import DISTINCTIONS, MATCHES, SETTINGS, TRIED, Setup
from benchmarks.records.store import MULTIPLES

OURS = ("bdlru", "hlru")
LEARNED = 0.05  # the share of the way from guessing to all right below which nothing was learned
SOLVED = 0.99  # the token accuracy at the longest training length from which a run has solved its task
CLAIM = 5  # seeds; what has fewer is a demonstration
TIE = 0.0005  # medians that print as the same three decimals


def _validated(row: dict) -> float:
    return row["validation_token_accuracy"]


@dataclass(frozen=True)
class Line:
    """A mixer's runs, one a seed, at the rates, learning and decay, that did best on the validation stream."""

    variant: str  # or a language model's name
    runs: list[dict]  # rows as they are read
    missing: int = 0  # how many seeds fewer than the comparison's other lines there are

    def __getitem__(self, column: str) -> Any:
        """What all runs share, sizes and settings, as the first one's row has it."""
        return self.runs[0][column]

    @property
    def seeds(self) -> int:
        """Number of runs."""
        return len(self.runs)

    @property
    def keys(self) -> list[str]:
        """The runs' keys."""
        return [run["key"] for run in self.runs]

    @property
    def seconds(self) -> float:
        """Median training time."""
        return median(run["seconds"] for run in self.runs)

    @property
    def diverged(self) -> int:
        """Number of runs whose loss was not finite at some point."""
        return sum(run["diverged"] is True for run in self.runs)

    @property
    def rule(self) -> str:
        """What was made equal where that is not the comparison's rule: `"params 28992"`; else empty."""
        return self["matched"].partition(" (by ")[2].rstrip(")")

    def scores(self, name: str) -> list[list[float]]:
        """One list per evaluated length, one value per seed, of a tuple's column or of the columns `<name>_1x`, ..."""
        if name in self.runs[0]:
            return [list(values) for values in zip(*(run[name] for run in self.runs))]
        columns = [f"{name}_{k}x" for k in MULTIPLES if self[f"{name}_{k}x"] is not None]
        return [[run[column] for run in self.runs] for column in columns]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Evaluated lengths."""
        return self["eval_lengths"]

    @property
    def tokens(self) -> list[list[float]]:
        """Token accuracies, as `scores`."""
        return self.scores("token_accuracy")

    @property
    def sequences(self) -> list[list[float]]:
        """Sequence accuracies, as `scores`."""
        return self.scores("sequence_accuracy")

    @property
    def order(self) -> tuple[float, ...]:
        """Sorts best first: median token accuracy at the training length, seeds that solved it, then longer lengths."""
        first, *longer = (-round(median(values), 3) for values in self.tokens)
        return (first, -self.solved / self.seeds, *longer)

    @property
    def solved(self) -> int:
        """How many seeds solved the task."""
        return sum(value >= SOLVED for value in self.tokens[0])

    @property
    def ours(self) -> bool:
        """Whether this is a BD-LRU or an H-LRU."""
        return self.variant.startswith(OURS)


def best_lines(rows: list[dict], name: str = "variant", score: Callable[[dict], float] = _validated) -> list[Line]:
    """A line per name: of its rates, learning and decay, those with most seeds are candidates, and the best by `score` counts.

    Where several score the same (all tokens right), the least training loss counts, then the smallest rate. A seed counts
    once: of its rows (other arguments, an older recipe) the one that finished last.
    """
    given = [{**row, "name": row[name], "score": score(row), "row": row} for row in rows]
    own = ["name", *TRIED]
    table = pd.DataFrame(given, columns=[*own, "seed", "finished", "score", "train_loss", "row"])
    table = table.sort_values("finished", kind="stable").drop_duplicates([*own, "seed"], keep="last")
    runs = table.groupby(own, sort=False, dropna=False).agg(
        rows=("row", list), seeds=("row", "size"), score=("score", "mean"), loss=("train_loss", "mean")
    )
    order = ["seeds", "score", "loss", *TRIED]
    best = runs.sort_values(order, ascending=[False, False, True, True, True], kind="stable")
    best = best.groupby(level="name", sort=False).head(1)
    return [Line(of.Index[0], of.rows, runs["seeds"].max() - of.seeds) for of in best.itertuples()]


def summarise(rows: list[dict]) -> list[Line]:
    """The lines of one comparison's rows, best first."""
    return sorted(best_lines(rows), key=lambda line: line.order)


@dataclass(frozen=True)
class Comparison:
    """Runs that may be compared: one task, one setting, one rule of matching, rates that every mixer ran."""

    settings: dict[str, Any]  # the fields named in `SETTINGS`, and of those in `TRIED` a tuple of values
    matched: str  # what was made equal, as "params 28992"; empty where the rows do not say
    lines: list[Line]  # best first
    apart: dict[str, Any] = field(default_factory=dict)  # what tells it from others of the same task and rule

    @property
    def kind(self) -> str:
        """The rule of matching: `"params"`, `"state"`, or empty."""
        return self.matched.partition(" ")[0]

    @property
    def budget(self) -> str:
        """What every mixer's size was matched to; empty where the rows do not say."""
        return self.matched.partition(" ")[2]

    @property
    def told(self) -> dict[str, Any]:
        """What may tell it from others: the settings and the budget."""
        return {"budget": self.budget, **self.settings}

    @property
    def decays(self) -> bool:
        """Whether several weight decays were tried, so that a line's own is worth telling."""
        return len(self.settings["weight_decay"]) > 1

    @property
    def name(self) -> str:
        """Task, rule and what tells it from others, for a file: `"s3-params-w64"`."""
        return join_name(self.task, self.kind, apart=self.apart)

    @property
    def title(self) -> str:
        """Task, and what tells it from others of the same task and rule, in words."""
        return ", ".join([self.task, *tell(self.apart)])

    @property
    def heading(self) -> str:
        """The title for people: what the task asks, and what tells it from others of the same task and rule."""
        from benchmarks.tasks import get_task  # torch is slow to import

        return ", ".join([get_task(self.task).title, *tell(self.apart)])

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.settings["task"]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Evaluated lengths."""
        return self.settings["eval_lengths"]

    @property
    def training(self) -> str:
        """The settings in a line."""
        setup = Setup(**{name: self.settings[name] for name in SETTINGS if name in Setup.__dataclass_fields__})
        return f"Trained up to length {self.lengths[0]}, {setup.words}"

    @property
    def description(self) -> str:
        """The settings and what was made equal, in a line."""
        return ", ".join([self.training, *([MATCHES[self.kind]] if self.kind else [])])


def compare(rows: list[dict]) -> list[Comparison]:
    """Sorts rows of any tasks and settings into comparisons; a row that was matched in two ways is in two of them."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        for matched, label in {label.partition(" (by ")[0]: label for label in row["matched"].split("; ")}.items():
            groups.setdefault((*(row[name] for name in SETTINGS), matched), []).append({**row, "matched": label})
    found, alike = [], {}
    for (*values, matched), group in groups.items():
        for rates, shared in share_rates(group).items():
            tried = {name: tuple(dict.fromkeys(of)) for name, of in zip(TRIED, zip(*rates))}
            found.append(Comparison({**dict(zip(SETTINGS, values)), **tried}, matched, summarise(shared)))
            alike.setdefault((found[-1].task, found[-1].kind), []).append(found[-1])
    told = {id(c): apart for members in alike.values() for c, apart in zip(members, distinguish([c.told for c in members]))}
    return [replace(c, apart=told[id(c)]) for c in found]


def _rates(row: dict) -> tuple[float, ...]:
    return tuple(row[name] for name in TRIED)


def share_rates(rows: list[dict]) -> dict[tuple[tuple[float, ...], ...], list[dict]]:
    r"""Splits runs so that every mixer of a part ran all learning rates and decays in it: the best of more is no fair best.

    Pairs of these that the same mixers ran are together; one that only a part of those ran is left out.

    Example:
        >>> from benchmarks.records.summary import share_rates
        >>> ran = {"lstm": (0.01, 0.003), "gla": (0.01,), "my_own": (0.1,)}
        >>> rows = [{"variant": name, "lr": lr, "weight_decay": 0.0} for name, rates in ran.items() for lr in rates]
        >>> {rates: [row["variant"] for row in part] for rates, part in share_rates(rows).items()}
        {((0.01, 0.0),): ['lstm', 'gla'], ((0.1, 0.0),): ['my_own']}
    """
    ran: dict[tuple, set[str]] = {}
    for row in rows:
        ran.setdefault(_rates(row), set()).add(row["variant"])
    parts: dict[frozenset[str], list[tuple]] = {}
    for rates, mixers in ran.items():
        if not any(mixers < others for others in ran.values()):
            parts.setdefault(frozenset(mixers), []).append(rates)
    return {tuple(shared): [row for row in rows if _rates(row) in shared] for shared in parts.values()}


def distinguish(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    r"""Of several settings, for each the entries that tell them apart, no more than it takes.

    A budget follows the width, and a learning rate is chosen for a task: these two go first; steps and lengths go last.

    Example:
        >>> from benchmarks.records.summary import distinguish
        >>> distinguish([{"width": 64, "layers": 1}, {"width": 128, "layers": 1}])
        [{'width': 64}, {'width': 128}]
    """
    varying = [name for name in DISTINCTIONS if len({s.get(name) for s in settings}) > 1]
    told = len({tuple(s.get(name) for name in varying) for s in settings})
    last = [name for name in ("lengths", "steps") if name in varying]
    first = [name for name in ("budget", "lr") if name in varying]
    for spare in (*first, *(name for name in varying if name not in (*first, *last)), *last):
        others = [name for name in varying if name != spare]
        if len({tuple(s.get(name) for name in others) for s in settings}) == told:
            varying = others
    return [{name: s[name] for name in varying} for s in settings]


def _text(value: Any, separator: str) -> str:
    return separator.join(map(str, value)) if isinstance(value, tuple) else "" if value is None else str(value)


def tell(apart: dict[str, Any], separator: str = " ") -> list[str]:
    """In words, what tells comparisons apart."""
    return [DISTINCTIONS[name][1].format(_text(value, separator) or "default") for name, value in apart.items()]


def join_name(*parts: str, apart: dict[str, Any]) -> str:
    r"""A name for a file: parts that are not empty, and what tells it from others.

    Example:
        >>> from benchmarks.records.summary import join_name
        >>> join_name("spectra", "s3", "", apart={"width": 64, "lengths": (4, 8)})
        'spectra-s3-w64-t4_8'
    """
    varying = (f"{DISTINCTIONS[name][0]}{_text(value, '_') or 'none'}" for name, value in apart.items())
    return "-".join(part for part in (*parts, *varying) if part)


@dataclass(frozen=True)
class Win:
    """Who wins a comparison at one length, by the median token accuracy."""

    length: int
    best: Line
    winners: list[Line]  # several where their medians are equal to three decimals, none where the best is near guessing
    runner_up: Line | None  # the best of the rest, where somebody wins
    margin: float | None  # the winner's median less the runner-up's
    ours: Line | None  # the best BD-LRU or H-LRU
    behind: float | None  # how much better the winner is than that one
    verdict: str  # what the seeds say about the margin, or that the best is near guessing


def find_wins(comparison: Comparison, chance: float = 0.0) -> list[Win]:
    """Who wins at each length; a best that is not `LEARNED` of the way from `chance`, guessing, to 1 has learned nothing.

    Where nobody has at the training length, which comes first, nobody wins at a longer one.
    """
    wins = []
    for i, length in enumerate(comparison.lengths):
        middle = {line.variant: median(line.tokens[i]) for line in comparison.lines}
        ranked = sorted(comparison.lines, key=lambda line: -middle[line.variant])
        top = middle[ranked[0].variant]
        learned = top - chance >= LEARNED * (1 - chance) and (not wins or bool(wins[0].winners))
        winners = [line for line in ranked if learned and top - middle[line.variant] < TIE]
        rest = ranked[len(winners) :] if learned else []
        ours = next((line for line in ranked if line.ours), None) if learned else None
        wins.append(
            Win(
                length=length,
                best=ranked[0],
                winners=winners,
                runner_up=rest[0] if rest else None,
                margin=top - middle[rest[0].variant] if rest else None,
                ours=ours,
                behind=top - middle[ours.variant] if ours else None,
                verdict=_verdict([line.tokens[i] for line in winners], [line.tokens[i] for line in rest[:1]]),
            )
        )
    return wins


def _verdict(winners: list[list[float]], rest: list[list[float]]) -> str:
    if not winners:
        return "near guessing"
    if not rest:
        return "tie" if len(winners) > 1 else "alone"
    if min(len(values) for values in winners + rest) < 2:
        return "one seed: no claim"
    apart = min(min(values) for values in winners) > max(rest[0])
    return "seeds do not overlap" if apart else "seeds overlap"


def counts_text(lines: Iterable[Line]) -> str:
    """How many seeds the lines have, in words: `"3 seeds"`, `"1 to 3 seeds"`."""
    counts = {line.seeds for line in lines}
    low, high = min(counts), max(counts)
    return f"{high} seed{'s' if high > 1 else ''}" if low == high else f"{low} to {high} seeds"
