"""What stored rows say: runs grouped into comparisons, averages over seeds, and who wins by how much."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from statistics import mean, stdev

from benchmarks.records.cell import DISTINCTIONS, SETTINGS
from benchmarks.records.store import MULTIPLES

OURS = ("bdlru", "hlru")
LEARNED = 0.05  # the share of the way from guessing to all right below which nothing was learned
SOLVED = 0.99  # the token accuracy at the longest training length from which a run has solved its task
TIE = 0.0005  # means that print as the same three decimals


@dataclass(frozen=True)
class Line:
    r"""A variant's results over its seeds, at the learning rate that did best on the validation stream.

    Attributes:
        variant (str):
            Name of the variant.
        lr (float):
            The chosen peak learning rate.
        seeds (int):
            Number of runs that are averaged.
        params, mixer_params (int):
            Parameters of the model and of its mixers.
        state (str):
            State elements per sequence; empty where it grows.
        flops (str):
            FLOPs of the model's forward pass, per token; empty where not recorded.
        mixer_flops (str):
            FLOPs per token of the mixers, linear maps included; empty where not recorded.
        lengths (list[int]):
            Evaluated lengths.
        tokens, sequences (list[list[float]]):
            Token and sequence accuracies: one list per length, one value per seed.
        seconds (float):
            Mean training time.
        diverged (int):
            Number of runs whose loss was not finite at some point.
        keys (list[str]):
            The runs that are averaged.
        rule (str):
            What was made equal where that is not the comparison's rule: `"params 28992"`. Default: empty.
        missing (int):
            How many seeds fewer than the comparison's other lines there are. Default: 0.
    """

    variant: str
    lr: float
    seeds: int
    params: int
    mixer_params: int
    state: str
    flops: str
    mixer_flops: str
    lengths: list[int]
    tokens: list[list[float]]
    sequences: list[list[float]]
    seconds: float
    diverged: int
    keys: list[str]
    rule: str = ""
    missing: int = 0

    @property
    def order(self) -> tuple[float, ...]:
        """Sorts best first: token accuracy at the training length, then at longer ones."""
        return tuple(-mean(values) for values in self.tokens)

    @property
    def solved(self) -> int:
        """How many seeds solved the task."""
        return sum(value >= SOLVED for value in self.tokens[0])

    @property
    def ours(self) -> bool:
        """Whether this is a BD-LRU or an H-LRU."""
        return self.variant.startswith(OURS)


def summarise(rows: list[dict[str, str]]) -> list[Line]:
    r"""Averages rows over seeds, best variant first.

    Of a variant's learning rates those with most seeds are candidates, and of these the best on validation data is taken.

    Args:
        rows (list[dict[str, str]]):
            Rows of one comparison as the results file holds them.

    Returns:
        list[Line]:
            One per variant.
    """
    groups: dict[str, dict[str, list[dict[str, str]]]] = {}
    for row in rows:
        groups.setdefault(row["variant"], {}).setdefault(row["lr"], []).append(row)
    lines = []
    most = max((len(last_by_seed(runs)) for by_lr in groups.values() for runs in by_lr.values()), default=0)
    for variant, by_lr in groups.items():
        by_lr = {lr: last_by_seed(runs) for lr, runs in by_lr.items()}
        lr, runs = max(
            by_lr.items(), key=lambda item: (len(item[1]), mean(float(r["validation_token_accuracy"]) for r in item[1]))
        )
        first = runs[0]
        multiples = [k for k in MULTIPLES if first[f"token_accuracy_{k}x"]]
        lines.append(
            Line(
                variant=variant,
                lr=float(lr),
                seeds=len(runs),
                params=int(first["params"]),
                mixer_params=int(first["mixer_params"]),
                state=first["state_size"],
                flops=first["flops_per_token"],
                mixer_flops=first["mixer_flops"],
                lengths=[int(length) for length in first["eval_lengths"].split()],
                tokens=[[float(r[f"token_accuracy_{k}x"]) for r in runs] for k in multiples],
                sequences=[[float(r[f"sequence_accuracy_{k}x"]) for r in runs] for k in multiples],
                seconds=mean(float(r["seconds"]) for r in runs),
                diverged=sum(r["diverged"] == "True" for r in runs),
                keys=[r["key"] for r in runs],
                rule=first["matched"].partition(" (by ")[2].rstrip(")"),
                missing=most - len(runs),
            )
        )
    return sorted(lines, key=lambda line: line.order)


def last_by_seed(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """A seed counts once: of its rows (other `mixer_args`, an older recipe) the one that finished last."""
    return list({row["seed"]: row for row in sorted(rows, key=lambda row: row["finished"])}.values())


@dataclass(frozen=True)
class Comparison:
    r"""Runs that may be compared: one task, one setting, one rule of matching, learning rates that every mixer ran.

    Attributes:
        settings (dict[str, str]):
            The columns named in `SETTINGS`, and `lr`: the rates, separated by spaces.
        matched (str):
            What was made equal, as `"params 28992"`; empty where the rows do not say.
        lines (list[Line]):
            Best first.
        apart (dict[str, str]):
            The settings, and the budget, in which it differs from others of the same task and rule. Default: none.
    """

    settings: dict[str, str]
    matched: str
    lines: list[Line]
    apart: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The rule of matching: `"params"`, `"state"`, or empty."""
        return self.matched.partition(" ")[0]

    @property
    def name(self) -> str:
        """Task, rule and what tells it from others, for a file: `"s3-params-w64"`."""
        return join_name(self.task, self.kind, apart=self.apart)

    @property
    def title(self) -> str:
        """Task, and what tells it from others of the same task and rule, in words."""
        return ", ".join([self.task, *self.differences])

    @property
    def heading(self) -> str:
        """The title for people: what the task asks, and what tells it from others of the same task and rule."""
        from benchmarks.tasks import get_task  # torch is slow to import

        return ", ".join([get_task(self.task).title, *self.differences])

    @property
    def differences(self) -> list[str]:
        """What tells it from others of the same task and rule, in words."""
        return [DISTINCTIONS[name][1].format(value or "default") for name, value in self.apart.items()]

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.settings["task"]

    @property
    def lengths(self) -> list[int]:
        """Evaluated lengths."""
        return self.lines[0].lengths

    @property
    def training(self) -> str:
        """The settings in a line."""
        s = self.settings
        batch = f"{int(s['tokens']):,} tokens" if s["tokens"] else f"{s['batch_size']} sequences"
        parts = ["adaptive curriculum" * (s["curriculum"] == "adaptive"), "BOS" * (s["bos"] == "True")]
        parts += [f"readout noise {s['readout_noise']}"] if s["readout_noise"] else []
        return (
            f"Trained up to length {self.lengths[0]}, {int(s['steps']):,} steps of {batch}, width "
            f"{s['width']}, {s['layers']} block{'s' * (s['layers'] != '1')}" + "".join(f", {part}" for part in parts if part)
        )

    @property
    def description(self) -> str:
        """The settings and what was made equal, in a line."""
        return self.training + (f", matched by {self.kind}" if self.kind else "")


def compare(rows: list[dict[str, str]]) -> list[Comparison]:
    r"""Sorts rows into comparisons; a row that was matched in two ways is in two of them.

    Args:
        rows (list[dict[str, str]]):
            Rows as the results file holds them, of any tasks and settings.

    Returns:
        list[Comparison]:
            In the order in which their first rows stand.
    """
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        for matched, label in {label.partition(" (by ")[0]: label for label in row["matched"].split("; ")}.items():
            groups.setdefault((*(row[name] for name in SETTINGS), matched), []).append({**row, "matched": label})
    found = []
    for key, group in groups.items():
        for rates, shared in share_rates(group).items():
            found.append(Comparison({**dict(zip(SETTINGS, key)), "lr": " ".join(rates)}, key[-1], summarise(shared)))
    alike: dict[tuple[str, str], list[Comparison]] = {}
    for c in found:
        alike.setdefault((c.task, c.kind), []).append(c)
    apart = {}
    for members in alike.values():
        told = distinguish([{"budget": c.matched.partition(" ")[2], **c.settings} for c in members])
        apart |= {id(c): differences for c, differences in zip(members, told)}
    return [replace(c, apart=apart[id(c)]) for c in found]


def share_rates(rows: list[dict[str, str]]) -> dict[tuple[str, ...], list[dict[str, str]]]:
    r"""Splits runs so that every mixer of a part ran every learning rate in it: the best of more rates is no fair best.

    Args:
        rows (list[dict[str, str]]):
            Rows that agree in everything but mixer, learning rate and seed.

    Returns:
        dict[tuple[str, ...], list[dict[str, str]]]:
            By rates, their rows. Rates that the same mixers ran are together; one that only a part of those ran is left out.

    Example:
        >>> from benchmarks.records.summary import share_rates
        >>> ran = {"lstm": ("0.01", "0.003"), "gla": ("0.01",), "my_own": ("0.1",)}
        >>> parts = share_rates([{"variant": name, "lr": lr} for name, rates in ran.items() for lr in rates])
        >>> {rates: [row["variant"] for row in rows] for rates, rows in parts.items()}
        {('0.01',): ['lstm', 'gla'], ('0.1',): ['my_own']}
    """
    ran: dict[str, set[str]] = {}
    for row in rows:
        ran.setdefault(row["lr"], set()).add(row["variant"])
    parts: dict[frozenset[str], list[str]] = {}
    for lr, mixers in ran.items():
        if not any(mixers < others for others in ran.values()):
            parts.setdefault(frozenset(mixers), []).append(lr)
    return {tuple(rates): [row for row in rows if row["lr"] in rates] for rates in parts.values()}


def distinguish(settings: list[dict[str, str]]) -> list[dict[str, str]]:
    r"""Of several settings, for each the entries in which they are not all the same.

    A budget follows the width, and a learning rate is chosen for a task: these two stand only where nothing else tells.

    Example:
        >>> from benchmarks.records.summary import distinguish
        >>> distinguish([{"width": "64", "layers": "1"}, {"width": "128", "layers": "1"}])
        [{'width': '64'}, {'width': '128'}]
    """
    varying = [name for name in DISTINCTIONS if len({s.get(name) for s in settings}) > 1]
    for spare in ("budget", "lr"):
        others = [name for name in varying if name != spare]
        if len({tuple(s.get(name) for name in others) for s in settings}) == len(settings):
            varying = others
    return [{name: s[name] for name in varying} for s in settings]


def join_name(*parts: str, apart: dict[str, str]) -> str:
    r"""A name for a file: parts that are not empty, and what tells it from others.

    Example:
        >>> from benchmarks.records.summary import join_name
        >>> join_name("spectra", "s3", "", apart={"width": "64", "lengths": "4 8"})
        'spectra-s3-w64-t4_8'
    """
    varying = (f"{DISTINCTIONS[name][0]}{value.replace(' ', '_') or 'none'}" for name, value in apart.items())
    return "-".join(part for part in (*parts, *varying) if part)


@dataclass(frozen=True)
class Win:
    r"""Who wins a comparison at one length, by token accuracy.

    Attributes:
        length (int):
            Length of the test sequences.
        best (Line):
            Of the highest mean.
        winners (list[Line]):
            The best; several where their means are equal to three decimals, none where the best is near guessing.
        runner_up (Line, Optional):
            The best of the rest, where somebody wins.
        margin (float, Optional):
            Mean token accuracy of the winner less that of the runner-up.
        ours (Line, Optional):
            The best BD-LRU or H-LRU.
        behind (float, Optional):
            How much better the winner is than that one.
        verdict (str):
            What the seeds say about the margin, or that the best is near guessing.
    """

    length: int
    best: Line
    winners: list[Line]
    runner_up: Line | None
    margin: float | None
    ours: Line | None
    behind: float | None
    verdict: str


def find_wins(comparison: Comparison, chance: float = 0.0) -> list[Win]:
    r"""Who wins at each evaluated length.

    Args:
        comparison (Comparison):
            With at least one line.
        chance (float):
            Token accuracy of guessing; a winner that is not `LEARNED` of the way from there to 1 has learned nothing.
            Default: 0.

    Returns:
        list[Win]:
            One per length.
    """
    wins = []
    for i, length in enumerate(comparison.lengths):
        ranked = sorted(comparison.lines, key=lambda line: -mean(line.tokens[i]))
        top = mean(ranked[0].tokens[i])
        learned = top - chance >= LEARNED * (1 - chance)
        winners = [line for line in ranked if learned and top - mean(line.tokens[i]) < TIE]
        rest = ranked[len(winners) :] if learned else []
        ours = next((line for line in ranked if line.ours), None) if learned else None
        wins.append(
            Win(
                length=length,
                best=ranked[0],
                winners=winners,
                runner_up=rest[0] if rest else None,
                margin=top - mean(rest[0].tokens[i]) if rest else None,
                ours=ours,
                behind=top - mean(ours.tokens[i]) if ours else None,
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


def deviation(values: list[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    return stdev(values) if len(values) > 1 else 0.0
