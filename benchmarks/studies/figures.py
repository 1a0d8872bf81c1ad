"""What the studies show, as figures and tables: a matrix whose cells say how many seeds, or how much."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median

from benchmarks.compare.presets import MAD_TASKS
from benchmarks.records.naming import FAMILIES, parse_name
from benchmarks.records.plots import Figure, Panel
from benchmarks.records.summary import CLAIM, SOLVED, best_lines
from benchmarks.tasks import get_task
from benchmarks.tasks.groups import find_group


def best_runs(rows: list[dict]) -> dict[tuple[str, str], list[dict]]:
    r"""By (variant, task), the runs at the learning rate and weight decay that did best on validation data.

    Of those with most seeds; a seed counts once.

    Example:
        >>> from benchmarks.studies.figures import best_runs
        >>> row = {"variant": "lstm", "task": "s3", "seed": 0, "finished": "", "weight_decay": 0.0}
        >>> rows = [{**row, "lr": lr, "validation_token_accuracy": v} for lr, v in ((0.1, 0.2), (0.01, 0.9))]
        >>> best_runs(rows)["lstm", "s3"][0]["lr"]
        0.01
    """
    tasks = _in_order(row["task"] for row in rows)
    return {(line.variant, task): line.runs for task in tasks for line in best_lines([r for r in rows if r["task"] == task])}


def _solved(runs: list[dict], multiple: str) -> tuple[float, str]:
    k = sum(run[f"token_accuracy_{multiple}"] >= SOLVED for run in runs)
    return k / len(runs), f"{k}/{len(runs)}"


def _in_order(names) -> list[str]:
    return list(dict.fromkeys(names))


def _span(counts: Iterable[int]) -> str:
    return " to ".join(map(str, _in_order((min(counts), max(counts)))))


def _grey(panels: list[Panel], why: str = "not run") -> str:
    # what a note says of cells that are not there, where there are such
    some = any((row, column) not in panel.cells for panel in panels for row in panel.rows for column in panel.columns)
    return f" Grey: {why}." * some


def _solved_panels(rows: list[dict], labels: dict[str, str], borders: dict[str, str] | None = None) -> list[Panel]:
    # a mixer a row, under its label: seeds that solved each group at the training length, and at 8 times that
    best, tasks = best_runs(rows), in_order_of_law({row["task"] for row in rows})
    return [
        Panel(
            title,
            list(labels.values()),
            tasks,
            {(labels[variant], task): _solved(runs, multiple) for (variant, task), runs in best.items()},
            borders,
        )
        for multiple, title in (("1x", "at the training length, 32"), ("8x", "at 256"))
    ]


def in_order_of_law(groups: Iterable[str]) -> list[str]:
    """Groups by the block size that they need, then by their order.

    Example:
        >>> from benchmarks.studies.figures import in_order_of_law
        >>> in_order_of_law({"a5", "q8", "z2"})
        ['z2', 'q8', 'a5']
    """
    return sorted(groups, key=lambda task: (smallest_block(task), find_group(task).order, task))


def solved(rows: list[dict]) -> Figure:
    """Seeds that solved each group at the training length, and at 8 times that."""
    panels = _solved_panels(rows, {name: name for name in _in_order(row["variant"] for row in rows)})
    note = f"Seeds of which at least {SOLVED:.0%} of tokens are right, at each mixer's best learning rate on validation data."
    note += _grey(panels)
    return Figure("Groups that are learned, and kept", note, panels)


LOUDER = ", louder"  # behind a mixer's name: by that curriculum


def state_tracking(rows: list[dict]) -> Figure:
    r"""Seeds that make no error on any group at the lengths that all rows were tested at, side by side.

    Mixers that keep more, for longer, come first; what they do by louder noise stands above what they do by the older recipe.

    Example:
        >>> from benchmarks.studies.figures import state_tracking
        >>> row = {"task": "s3", "lengths": (16, 32), "seed": 0, "lr": 0.1, "weight_decay": 0.0, "finished": ""}
        >>> row |= {"validation_token_accuracy": 1.0, "sequence_accuracy_1x": 1.0, "sequence_accuracy_8x": 0.99}
        >>> figure = state_tracking([{**row, "variant": "lstm", "curriculum": by} for by in ("restarting", "louder")])
        >>> [(panel.title, panel.rows, panel.cells["lstm", "s3"]) for panel in figure.panels]
        [('length 32', ['lstm, louder', 'lstm'], (1.0, '1/1')), ('length 256', ['lstm, louder', 'lstm'], (0.0, '0/1'))]
    """
    found = best_runs([{**row, "variant": row["variant"] + LOUDER * (row["curriculum"] == "louder")} for row in rows])
    columns = {k: f"sequence_accuracy_{k}x" for k in (1, 8, 256)}
    columns = {k: name for k, name in columns.items() if all(row.get(name) is not None for row in rows)}
    exact = {k: {of: sum(run[name] == 1 for run in runs) for of, runs in found.items()} for k, name in columns.items()}

    def score(label: str) -> list[float]:
        return [sum(n / len(found[of]) for of, n in exact[k].items() if of[0] == label) for k in reversed(columns)]

    def best(label: str) -> list[float]:
        mixer = label.removesuffix(LOUDER)
        return max(score(other) for other, _ in found if other.removesuffix(LOUDER) == mixer)

    names = sorted({label for label, _ in found}, key=lambda label: (label.removesuffix(LOUDER), not label.endswith(LOUDER)))
    labels = sorted(names, key=best, reverse=True)
    panels = []
    for k, counts in exact.items():
        cells = {of: (n / len(found[of]), f"{n}/{len(found[of])}") for of, n in counts.items()}
        tasks = in_order_of_law({task for _, task in found})
        panels.append(Panel(f"length {k * max(rows[0]['lengths']):,}", labels, tasks, cells))
    claimed = all(len(runs) >= CLAIM for runs in found.values())
    note = (
        "Seeds with every sequence right, at each mixer's best on validation data of the learning rates that it ran with. "
        f"Trained up to length {max(rows[0]['lengths'])}. Louder: by noise that grows as long as it is borne."
    )
    note += _grey(panels, "not run" + ", by fewer than five seeds, or not tested at all lengths" * claimed)
    return Figure("Groups that are held without an error", note, panels, beside=True)


def smallest_block(task: str, signed: bool = True) -> int:
    r"""The smallest block size with which one layer of BD-LRU can hold a group, by the law: with signed gates, or softmax.

    That is the largest orbit of its smallest permutations, signed or plain, as blocks are as many as needed; Q8 is also a
    quotient of a group of permutations of half as many things, twice (docs: groups).

    Example:
        >>> from benchmarks.studies.figures import smallest_block
        >>> assert [smallest_block(g) for g in ("z2", "z4", "q8", "z6", "s4", "a5")] == [1, 2, 2, 3, 3, 5]
        >>> assert [smallest_block(g, signed=False) for g in ("z2", "z4", "q8", "z6", "s4", "a5")] == [2, 4, 4, 3, 4, 5]
    """
    size = max(orbit.size for orbit in find_group(task).orbits(signed=signed))
    return size // 2 if task == "q8" else size


def law(rows: list[dict]) -> Figure:
    """Seeds that learned each group, and kept it at 8 times the training length, by block size, with the law's border."""
    label = "{}, m = {}".format
    ours = sorted((parse_name(name).family, parse_name(name).size, name) for name in {row["variant"] for row in rows})
    labels = {name: label(FAMILIES[family], size) for family, size, name in ours}
    borders = {task: label(FAMILIES["bdlru"], smallest_block(task)) for task in {row["task"] for row in rows}}
    note = (
        f"One layer, signed gates (sinh). Seeds of which at least {SOLVED:.0%} of tokens are right. Below the thick line "
        "BD-LRU can hold the group, by the law; H-LRU can hold powers of Z2 alone."
    )
    panels = _solved_panels(rows, labels, borders)
    return Figure("Which block holds which group", note + _grey(panels), panels)


def law_counts(rows: list[dict]) -> str:
    r"""What the cells of the law's figure come to at 8 times the training length, on each side of its border.

    Example:
        >>> from benchmarks.studies.figures import law_counts
        >>> row = {"seed": 0, "finished": "", "weight_decay": 0.0, "lr": 0.1, "validation_token_accuracy": 1.0}
        >>> runs = [("bdlru-m3-sinh", "s3", 1.0), ("bdlru-m2-sinh", "s3", 0.4), ("hlru-m4-sinh", "z2", 1.0)]
        >>> rows = [{**row, "variant": name, "task": task, "token_accuracy_8x": x} for name, task, x in runs]
        >>> law_counts(rows).split("; ")[1]
        'below it 1 of 1 cells are kept by every seed. H-LRU keeps Z2 by 1 of 1 runs, other groups by 0 of 0.'
    """
    cells: dict[str, list[tuple[int, int]]] = {"above": [], "below": [], "z2": [], "other": []}
    for (variant, task), runs in best_runs(rows).items():
        name = parse_name(variant)
        if name.family == "bdlru":
            side = "below" if name.size >= smallest_block(task) else "above"
        else:
            side = "z2" if task == "z2" else "other"
        cells[side].append((sum(run["token_accuracy_8x"] >= SOLVED for run in runs), len(runs)))
    kept = {side: "{} of {}".format(*map(sum, zip(*of, (0, 0)))) for side, of in cells.items()}
    every = f"{sum(k == n for k, n in cells['below'])} of {len(cells['below'])}"
    return (
        f"At 256, above the border, {kept['above']} runs of BD-LRU keep their group; below it {every} cells are kept by every "
        f"seed. H-LRU keeps Z2 by {kept['z2']} runs, other groups by {kept['other']}."
    )


def best_of_mad(rows: list[dict]) -> dict[str, dict[str, list[dict]]]:
    r"""Each mixer's best runs of MAD's tasks, which stand in MAD's order.

    Mixers with more tasks come first, then those with the higher mean of the tasks' medians.

    Example:
        >>> from benchmarks.studies.figures import best_of_mad
        >>> row = {"lr": 0.01, "weight_decay": 0.0, "seed": 0, "finished": "", "validation_token_accuracy": 0.5}
        >>> rows = [("gla", 0.5), ("hgrn", 0.8)]
        >>> rows = [{**row, "task": "recall", "variant": name, "token_accuracy_1x": x} for name, x in rows]
        >>> list(best_of_mad(rows))
        ['hgrn', 'gla']
    """
    best = best_runs(rows)
    by_mixer = {}
    for task in MAD_TASKS:
        for variant, of in best:
            if of == task:
                by_mixer.setdefault(variant, {})[task] = best[variant, of]

    def order(item: tuple) -> tuple:
        medians = [_middle(runs) for runs in item[1].values()]
        return len(medians), sum(medians) / len(medians)

    return dict(sorted(by_mixer.items(), key=order, reverse=True))


def _middle(runs: list[dict]) -> float:
    return median(run["token_accuracy_1x"] for run in runs)


def mad(rows: list[dict]) -> Figure:
    """Median token accuracy of MAD's tasks, with a star where fewer seeds than a claim asks for have run."""
    best = best_of_mad(rows)
    cells = {(name, task): _told(runs) for name in best for task, runs in best[name].items()}
    tasks = [task for task in MAD_TASKS if any(task in of for of in best.values())]
    seeds = [len(runs) for of in best.values() for runs in of.values()]
    panels = [Panel("token accuracy at the training length", list(best), tasks, cells)]
    star = "; a star: fewer than five" * (min(seeds) < CLAIM)
    note = (
        "Each mixer at the best on validation data of the learning rates and weight decays that it ran with "
        f"({_rates_tried(rows, tasks)}). Medians of {_span(seeds)} seed(s){star}. "
        "Guessing: " + ", ".join(f"{task.replace('_', ' ')} {get_task(task).chance:.2f}" for task in tasks) + "."
    )
    return Figure("MAD's tasks", note + _grey(panels), panels)


def _told(runs: list[dict]) -> tuple[float, str]:
    return _middle(runs), f"{_middle(runs):.2f}{'*' * (len(runs) < CLAIM)}"


def _rates_tried(rows: list[dict], tasks: list[str]) -> str:
    # pairs of learning rate and weight decay that a mixer ran with, by task, where some mixer ran with more than one
    tried: dict[str, dict[str, set]] = {task: {} for task in tasks}
    for row in rows:
        tried[row["task"]].setdefault(row["variant"], set()).add((row["lr"], row["weight_decay"]))
    counts = {task: [len(pairs) for pairs in of.values()] for task, of in tried.items()}
    more = [f"{_span(of)} on {task.replace('_', ' ')}" for task, of in counts.items() if max(of) > 1]
    return ", ".join([*more, "else one" if more else "one"])


# of studies, and of parts that have one of their own: one layer's law is none of two layers
FIGURES: dict[str, Callable[[list[dict]], Figure]] = {
    "state_tracking": state_tracking,
    "law": law,
    "law-depth": solved,
    "mad": mad,
}
