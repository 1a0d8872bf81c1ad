"""The table that a comparison prints in the terminal."""

from __future__ import annotations

from statistics import mean

from rich import box
from rich.table import Table

from benchmarks.records.summary import Line, counts_text


def _spread(values: list[float], ranges: bool) -> str:
    return f"{mean(values):.3f}" + (f"\n{min(values):.2f}-{max(values):.2f}" if ranges and len(values) > 1 else "")


def make_table(lines: list[Line], title: str, width: int = 160) -> Table:
    r"""The table, best first; with several seeds a cell is the mean and, below it, the range.

    Args:
        lines (list[Line]):
            What `summarise` returned.
        title (str):
            Stands above the table.
        width (int):
            Width of the terminal in characters; below 100, columns that can be spared are left out. Default: 160.

    Returns:
        Table:
            For a rich console.
    """
    counts = sorted({line.seeds for line in lines})
    seeds = counts[-1] > 1
    wide = width >= (124 if seeds else 100)
    ranges = seeds and width >= 100
    several_lrs = len({line.lr for line in lines}) > 1
    scores = [("token", i) for i in range(len(lines[0].lengths))]
    scores += [("sequence", i) for i in range(len(lines[0].lengths) if wide else 1)]

    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False, show_lines=False)
    table.add_column("mixer", no_wrap=True)
    table.add_column("mixer\nparams", justify="right")
    if wide:
        table.add_column("all\nparams", justify="right")
    table.add_column("state", justify="right")
    for kind, i in scores:
        table.add_column(f"{kind if wide else kind[:3]}\n@{lines[0].lengths[i]}", justify="right")
    if several_lrs:
        table.add_column("lr", justify="right")
    if len(counts) > 1:
        table.add_column("seeds", justify="right")
    table.add_column("time\ns", justify="right")
    for line in lines:
        cells = [line.variant, f"{line.mixer_params / 1000:.1f}k"]
        cells += [f"{line.params / 1000:.1f}k"] if wide else []
        cells += [line.state or "grows"]
        cells += [_spread((line.tokens if kind == "token" else line.sequences)[i], ranges) for kind, i in scores]
        cells += [f"{line.lr:g}"] if several_lrs else []
        cells += [str(line.seeds)] if len(counts) > 1 else []
        table.add_row(*cells, f"{line.seconds:.0f}", style="bold" if line.variant.startswith("bdlru") else "")
    of = f"; mean{', range' if ranges else ''} of {counts_text(lines)}" if seeds else ""
    others = [f"{line.variant}: matched by {line.rule}" for line in lines if line.rule]
    table.caption = "\n".join([f"token, sequence: accuracy at that length{of}", *others])
    table.caption_justify = "left"
    return table
