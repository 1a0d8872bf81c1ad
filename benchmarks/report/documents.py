"""Writes the tables of README and docs from stored rows, between markers: `python -m benchmarks.report.documents`.

A marker names a folder of `benchmarks/results`: `<!-- rows: s3-seeds -->` ... `<!-- /rows -->`. A test compares
pages and rows.
"""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median

from benchmarks.records.store import read_folder
from benchmarks.records.summary import SOLVED, Line, compare
from benchmarks.tasks import get_task

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- rows: (\S+) -->\n).*?(<!-- /rows -->)", re.DOTALL)


def pages() -> list[Path]:
    """The documents that may hold tables."""
    return [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _cell(values: list[float]) -> str:
    spread = f" ({min(values):.2f}-{max(values):.2f})" if len(values) > 1 and min(values) != max(values) else ""
    return f"{median(values):.3f}{spread}"


def _row(line: Line) -> str:
    name = f"**{line.variant}**" if line.ours else line.variant
    cells = [name, f"{line.mixer_params / 1000:.1f}k", line.state or "grows", f"{line.solved} of {line.seeds}"]
    return f"| {' | '.join([*cells, *map(_cell, line.tokens), f'{line.lr:g}', f'{line.seconds:.0f}'])} |"


def make_table(name: str) -> str:
    r"""The table of a folder of stored rows: a part for each comparison in it, best mixer first.

    Args:
        name (str):
            A folder of `benchmarks/results`.

    Returns:
        str:
            Markdown, and under it what the columns are.

    Raises:
        ValueError: if the folder holds no results.

    Example:
        >>> from benchmarks.report.documents import make_table
        >>> assert "| **bdlru-m4** |" in make_table("s3-seeds")
    """
    rows = list(read_folder(RESULTS / name).values())
    text = []
    for comparison in compare(rows):
        lengths = comparison.lengths
        head = ["mixer", "parameters", "state", "solved", *(f"@{length}" for length in lengths), "lr", "s"]
        text += [f"{get_task(comparison.task).title}. {comparison.description}.", ""]
        text += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *map(_row, comparison.lines), ""]
    devices = ", ".join(sorted({f"{row['device']}, {row['threads']} thread" for row in rows}))
    text.append(
        f"Token accuracy at each length, median and range of seeds, at the rate of those tried that did best on validation "
        f"data; solved: {SOLVED:g} or more at {lengths[0]}; s: seconds of training. {devices}."
    )
    return "\n".join(text) + "\n"


def fill(text: str) -> str:
    """A document with the tables between its markers as the rows are now."""
    return MARKED.sub(lambda match: f"{match[1]}{make_table(match[2])}{match[3]}", text)


def main() -> None:
    for path in pages():
        old = path.read_text(encoding="utf-8")
        new = fill(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
