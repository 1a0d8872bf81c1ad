"""The table that a comparison prints in the terminal, and the sentence under it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from statistics import median

from rich import box
from rich.table import Table

from benchmarks.records.cell import TRIED
from benchmarks.records.summary import SOLVED, Line, counts_text

WIDE = 110  # characters from which both sizes and sequence accuracies fit


def start_table(first: str, headings: Iterable[str], title: str | None = None, **look) -> Table:
    """A table without rows: names in its first column, numbers in the others."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False, **look)
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def spread(values: list[float], digits: int = 3) -> str:
    """The median and, below it, with a digit less, the range of several values."""
    low, high = (f"{value:.{digits - 1}f}" for value in (min(values), max(values)))
    return f"{median(values):.{digits}f}" + (f"\n{low}-{high}" if len(values) > 1 else "")


def short(number: float) -> str:
    """28,992 as 29.0k."""
    scale = min(3, int(math.log10(abs(number) or 1) // 3))
    return f"{number / 1000**scale:.1f}{'kMG'[scale - 1]}" if scale > 0 else f"{number:g}"


def grows(line: Line) -> str:
    """State values per sequence, in words where they grow."""
    return "grows" if line["state_size"] is None else str(line["state_size"])


def fill_table(lines: list[Line], columns: dict[str, Callable[[Line], str]], title: str, **look) -> Table:
    """A row a line, ours bold; a column a heading and what its cells say of a line."""
    table = start_table("mixer", columns, title, **look)
    for line in lines:
        table.add_row(line.variant, *(cell(line) for cell in columns.values()), style="bold" if line.ours else "")
    return table


def score_columns(heading: str, lines: list[Line], name: str, digits: int = 3) -> dict[str, Callable[[Line], str]]:
    """A column a length: the median and range of a score."""
    lengths = lines[0].lengths
    return {f"{heading}\n@{n}": lambda line, i=i: spread(line.scores(name)[i], digits) for i, n in enumerate(lengths)}


def _sizes(lines: list[Line]) -> str:
    sizes = [line["mixer_params"] for line in lines]
    low, high = short(min(sizes)), short(max(sizes))
    return f"mixers of {low} parameters" if low == high else f"mixers of {low} to {high} parameters"


def make_table(lines: list[Line], title: str, width: int = 160, chance: float | None = None, decays: bool = False) -> Table:
    """The table, best first; with several seeds a cell is the median and, below it, the range.

    `width` is that of the terminal in characters; below `WIDE`, columns that can be spared are left out, down to 80. `chance`
    is the token accuracy of guessing, which has a row of its own; with `decays`, several were tried, and each line's is told.
    """
    wide, tokens = width >= WIDE, score_columns("token", lines, "token_accuracy")
    params = {"mixer\nparams": lambda line: short(line["mixer_params"])}
    sequences = score_columns("sequence", lines, "sequence_accuracy")
    columns = {
        **(params if wide else {}),
        "state": grows,
        "seeds\nsolved": lambda line: f"{line.solved} of {line.seeds}",
        **tokens,
        **dict([*sequences.items()][: int(wide)]),
        "lr" + "\ndecay" * decays: lambda line: "\n".join(f"{line[name]:g}" for name in TRIED[: 1 + decays]),
        "time\ns": lambda line: f"{line.seconds:.0f}",
    }
    table = fill_table(lines, columns, title, padding=(0, int(wide)))
    if chance is not None:
        table.add_row("guessing", *(f"{chance:.3f}" if heading in tokens else "" for heading in columns), style="dim")
    of = f", median and range of {counts_text(lines)}" if max(line.seeds for line in lines) > 1 else ", one seed"
    notes = [f"token: accuracy at that length{of}", f"solved: {SOLVED:g} or more at {lines[0].lengths[0]}; {_sizes(lines)}"]
    notes += [f"{line.variant}: matched by {line.rule}" for line in lines if line.rule]
    table.caption = "\n".join(notes)
    table.caption_justify = "left"
    return table


def say_what_was_seen(lines: list[Line], title: str) -> str:
    """One sentence: who solved the task, with how many seeds."""
    if not lines:
        return f"{title}: nothing ran."
    solvers = sorted((line for line in lines if line.solved), key=lambda line: -line.solved / line.seeds)
    if not solvers:
        best = lines[0]
        return (
            f"{title}: solved by none; {best.variant} is first with {median(best.tokens[0]):.3f} at length {best.lengths[0]}."
        )
    told = [f"{line.variant} with {line.solved} of {line.seeds} seed{'s' * (line.seeds > 1)}" for line in solvers]
    rest = len(lines) - len(solvers)
    others = f", by none of the other {rest} mixers" if rest > 1 else ", not by the other mixer" if rest else ""
    return f"{title}: solved by {', '.join(told)}{others}."


def say_what_diverged(lines: list[Line]) -> list[str]:
    """A sentence for each mixer some of whose runs had a loss that was not finite."""
    return [f"{x.variant}: {x.diverged} of {x.seeds} runs had a loss that was not finite." for x in lines if x.diverged]
