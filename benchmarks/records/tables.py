"""The table that a comparison prints in the terminal, and the sentence under it."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from rich import box
from rich.table import Table

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


def _sizes(lines: list[Line]) -> str:
    counts = sorted(line.mixer_params for line in lines)
    low, high = (f"{count / 1000:.1f}k" for count in (counts[0], counts[-1]))
    return f"mixers of {low} parameters" if low == high else f"mixers of {low} to {high} parameters"


def make_table(lines: list[Line], title: str, width: int = 160, chance: float | None = None) -> Table:
    r"""The table, best first; with several seeds a cell is the median and, below it, the range.

    Args:
        lines (list[Line]):
            What `summarise` returned.
        title (str):
            Stands above the table.
        width (int):
            Width of the terminal in characters; below `WIDE`, columns that can be spared are left out, down to 80.
            Default: 160.
        chance (float, Optional):
            Token accuracy of guessing, which has a row of its own. Default: none.

    Returns:
        Table:
            For a rich console.
    """
    wide = width >= WIDE
    lengths = lines[0].lengths
    headings = [*(["mixer\nparams"] if wide else []), "state", "seeds\nsolved", *(f"token\n@{length}" for length in lengths)]
    headings += [*([f"sequence\n@{lengths[0]}"] if wide else []), "lr", "time\ns"]
    table = start_table("mixer", headings, title, padding=(0, int(wide)))
    for line in lines:
        table.add_row(
            line.variant,
            *([f"{line.mixer_params / 1000:.1f}k"] if wide else []),
            line.state or "grows",
            f"{line.solved} of {line.seeds}",
            *map(spread, line.tokens),
            *([spread(line.sequences[0])] if wide else []),
            f"{line.lr:g}",
            f"{line.seconds:.0f}",
            style="bold" if line.ours else "",
        )
    if chance is not None:
        guessing = [f"{chance:.3f}"] * len(lengths)
        table.add_row("guessing", *([""] if wide else []), "", "", *guessing, *([""] if wide else []), "", "", style="dim")
    of = f", median and range of {counts_text(lines)}" if max(line.seeds for line in lines) > 1 else ", one seed"
    notes = [f"token: accuracy at that length{of}", f"solved: {SOLVED:g} or more at {lengths[0]}; {_sizes(lines)}"]
    notes += [f"{line.variant}: matched by {line.rule}" for line in lines if line.rule]
    table.caption = "\n".join(notes)
    table.caption_justify = "left"
    return table


def say_what_was_seen(lines: list[Line], title: str) -> str:
    r"""One sentence: who solved the task, with how many seeds.

    Args:
        lines (list[Line]):
            What `summarise` returned, best first.
        title (str):
            Title of the task.

    Example:
        >>> from benchmarks.records.tables import say_what_was_seen
        >>> say_what_was_seen([], "S3")
        'S3: nothing ran.'
    """
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
