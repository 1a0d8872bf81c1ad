"""Writes the tables of README and docs from stored rows, between markers: `python -m benchmarks.report.documents`.

A marker names a folder of `benchmarks/results`, `<!-- rows: s3-seeds -->` ... `<!-- /rows -->`, and behind it a task or one of
`KINDS`: `<!-- rows: quick s3 -->`. A test compares pages and rows.
"""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median

import pandas as pd

from benchmarks.records.store import read_folder
from benchmarks.records.summary import SOLVED, Line, compare
from benchmarks.tasks import get_task

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- rows: (\S+)(?: (\S+))? -->\n).*?(<!-- /rows -->)", re.DOTALL)


def pages() -> list[Path]:
    """The documents that may hold tables."""
    readmes = [ROOT / "README.md", ROOT / "benchmarks" / "README.md"]
    return [*readmes, *sorted((ROOT / "docs").glob("*.md"))]


def _cell(values: list[float]) -> str:
    spread = f" ({min(values):.2f}-{max(values):.2f})" if len(values) > 1 and min(values) != max(values) else ""
    return f"{median(values):.3f}{spread}"


def _row(line: Line) -> str:
    name = f"**{line.variant}**" if line.ours else line.variant
    cells = [name, f"{line.mixer_params / 1000:.1f}k", line.state or "grows", f"{line.solved} of {line.seeds}"]
    return f"| {' | '.join([*cells, *map(_cell, line.tokens), f'{line.lr:g}', f'{line.seconds:.0f}'])} |"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))


def _accuracies(*paths: str) -> pd.DataFrame:
    """Token accuracy at the training length, a row a mixer and a column a task, of rows with one seed."""
    rows = [row for path in paths for row in read_folder(RESULTS / path).values()]
    table = pd.DataFrame(rows).astype({"token_accuracy_1x": float})
    return table.pivot(index="variant", columns="task", values="token_accuracy_1x")


def _spectra(name: str) -> str:
    """Eigenvalues of the transitions that were learned on every task of a folder."""
    accuracies, rows = _accuracies(f"{name}/compare.csv"), []
    for task in pd.read_csv(RESULTS / name / "overview-params.csv").columns[1:]:
        of = pd.read_csv(RESULTS / name / f"spectra-{task}-params.csv", index_col="variant")
        two, four = of.loc["bdlru-m2"], of.loc["bdlru-m4"]
        angle, reached = f"{four.angle:.0f} degrees", [f"{accuracies[task][f'bdlru-m{m}']:.2f}" for m in (1, 2, 4)]
        cells = [f"{two.negative:.0%}", f"{two.most_negative:.2f}", f"{four.negative:.0%}", f"{four.complex:.0%}"]
        rows.append([f"`{task}`", *cells, angle, ", ".join(reached)])
    head = [
        "task",
        "m = 2: negative",
        "most negative",
        "m = 4: negative",
        "complex",
        "widest angle",
        "token accuracy, m = 1, 2, 4",
    ]
    return _markdown(head, rows)


def _convolution(name: str) -> str:
    """What a short convolution changes: without to with."""
    plain, with_conv = _accuracies(f"{name}/compare.csv"), _accuracies(f"{name}/compare-conv.csv")
    tasks = [task for task in plain if task in with_conv]
    rows = [
        [f"`{variant}`", *(f"{plain[task][variant]:.2f} to {with_conv[task][f'{variant}-conv']:.2f}" for task in tasks)]
        for variant in ("bdlru-m2", "bdlru-m4", "hlru-m4")
    ]
    return _markdown(["", *(task.replace("_", " ") for task in tasks)], rows)


def _tasks(name: str) -> str:
    """A mixer a row, a task a column; not every mixer ran on every task."""
    table = _accuracies(name)
    rows = [[f"`{variant}`", *("-" if pd.isna(x) else f"{x:.3f}" for x in table.loc[variant])] for variant in table.index]
    return _markdown(["", *(task.replace("_", " ") for task in table)], rows)


def _block_sizes(name: str) -> str:
    """Accuracies, eigenvalues and time constants of BD-LRU by block size, on S3 at equal parameters."""
    spectra = pd.read_csv(RESULTS / "spectra-s3-params.csv", index_col="variant")
    steps = pd.read_csv(RESULTS / "memory-s3-params.csv").groupby("variant").steps.median()
    lines = next(c for c in compare(list(read_folder(RESULTS / name).values())) if c.matched.startswith("params")).lines
    rows = []
    for line in sorted(lines, key=lambda line: line.variant):
        of, reached = spectra.loc[line.variant], line.tokens[0]
        cells = [f"{median(reached):.3f} ({min(reached):.2f}-{max(reached):.2f})", f"{line.solved} of {line.seeds}"]
        cells += [f"{of.negative:.0%}", f"{of.complex:.0%}", f"{of.angle:.0f} degrees", f"{steps[line.variant]:.0f} steps"]
        rows.append([f"`{line.variant}`", *cells])
    head = ["", f"accuracy @{lines[0].lengths[0]}, median (range)", "solved", "negative", "complex", "widest angle"]
    return _markdown([*head, "median time constant"], rows)


def _lengths(name: str) -> str:
    """How many seeds get every sequence right, by test length (`benchmarks.report.lengths`)."""
    table = pd.read_csv(RESULTS / name / "lengths.csv")
    table["whole"] = table.sequence_accuracy == 1
    counts = table.groupby(["variant", "length"]).agg(right=("whole", "sum"), seeds=("seed", "nunique")).reset_index()
    tested = sorted(table.length.unique())
    rows = [
        [f"`{variant}`", *(f"{of.right} of {of.seeds}" for of in part.set_index("length").reindex(tested).itertuples())]
        for variant, part in sorted(counts.groupby("variant"), key=lambda item: -item[1].right.sum())
    ]
    head = [f"seeds with every one of {table.examples.iloc[0]} sequences right", *(f"length {length:,}" for length in tested)]
    return _markdown(head, rows)


def _gpu(name: str) -> str:
    """Our chunked ops on a GPU, in bfloat16 at two shapes: time, bandwidth, and that over a large copy's."""
    table = pd.read_csv(RESULTS / name / "gpu.csv")
    table = table[(table.contender == "chunk") & (table.dtype == "bfloat16") & (table.channels == 1024)]
    rows = []
    for (op, m, B, T), part in table[table.B.isin((1, 8)) & ((table.B == 8) | (table["T"] > 2048))].groupby(
        ["op", "m", "B", "T"]
    ):
        cells = [
            f"{x.ms:.3f} ms, {x.gb_per_s:,.0f} GB/s, {x.copy_fraction:.2f}" for x in part.sort_values("mode").itertuples()
        ]
        rows.append([op, str(m), f"{B} x {T:,}", *cells])
    first = table.iloc[0]
    device = f"{first.device}, driver {first.driver}, {first.versions}, commit {first.commit}"
    under = f"\n{device}; a copy moves {first.copy_gb_per_s:,.0f} GB/s.\n"
    return _markdown(["op", "m", "B x T", "forward", "forward and backward"], rows) + under


def _memory(name: str) -> str:
    """What layers keep for the backward, without and with `recompute_gates` (`benchmarks.ops.memory`)."""
    table = pd.read_csv(RESULTS / name / "memory.csv")
    rows = []
    for row in table.itertuples():
        ours = f"{row.recomputed:,.0f} ({row.recomputed / row.kept:.0%})", f"{row.price:.2f}"
        ours = ("", "") if pd.isna(row.recomputed) else ours
        rows.append([f"`{row.layer}`", f"{row.params / 1e6:.1f}M", f"{row.state:,}", f"{row.kept:,.0f}", *ours])
    first = table.iloc[0]
    under = f"\nTimes on {first.device}, {first.threads} thread; {first.versions}, commit {first.commit}.\n"
    return _markdown(["", "parameters", "state", "bytes a token", "`recompute_gates`", "time"], rows) + under


def _passes(name: str) -> str:
    """What each pass asks of an H100, predicted from executed code (`tests/ops/predict.py`)."""
    table = pd.read_csv(RESULTS / name / "predicted.csv")
    passes = {"1": "fwd_kernel_h", "3": "fwd_kernel_o", "back 1": "bwd_kernel_dh", "back 3": "bwd_kernel_dvg"}
    rows = []
    for (op, m), part in table.groupby(["op", "m"]):
        cells = []
        for kernel in passes.values():
            x = part[part.kernel.str.endswith(kernel)].iloc[0]
            times = f"{x.memory_us:.0f} / {x.issue_us:.0f} / {x.wait_us:.0f}"
            cells.append(f"{x.registers}, {x.warps}; {x.instructions_a_gate:.1f}; {times}")
        rows.append([op, str(m), str(part.chunks.iloc[0]), *cells])
    return _markdown(["op", "m", "chunks", *(f"pass {name}" for name in passes)], rows)


def _predicted(name: str) -> str:
    """The sum of the passes, beside what a GPU was measured to take at the same shape."""
    table, measured = pd.read_csv(RESULTS / name / "predicted.csv"), pd.read_csv(RESULTS / name / "gpu.csv")
    measured = measured[(measured.contender == "chunk") & (measured.dtype == "bfloat16") & (measured.channels == 1024)]
    measured = measured[(measured.B == 8) & (measured["T"] == 2048)].set_index(["op", "m", "mode"])
    rows = []
    for (op, m), part in table.groupby(["op", "m"]):
        cells = [op, str(m)]
        for mode, of in (("fwd", part[part.direction == "forward"]), ("fwd+bwd", part)):
            least, time = of.groupby("direction").least_bytes.first().sum(), of.us.sum()
            share, was = least / time / 3.35e6, measured.copy_fraction[op, m, mode]
            cells += [f"{of.bytes.sum() / least:.2f}", f"{time:.0f}", f"{share:.2f}", f"{was:.2f}"]
        rows.append([*cells, f"{part.sectors_over_fewest.max():.2f}"])
    head = ["bytes over bound", "us", "share", "H200"]
    return _markdown(["op", "m", *head, *(f"both: {x}" for x in head), "sectors over fewest"], rows)


KINDS = {
    "passes": _passes,
    "predicted": _predicted,
    "memory": _memory,
    "lengths": _lengths,
    "gpu": _gpu,
    "spectra": _spectra,
    "convolution": _convolution,
    "tasks": _tasks,
    "block-sizes": _block_sizes,
}


def make_table(name: str, kind: str | None = None) -> str:
    r"""The table of a folder of stored rows: a part for each comparison in it, best mixer first.

    Args:
        name (str):
            A folder of `benchmarks/results`, or a file of rows in it.
        kind (str, Optional):
            A task, where the folder has several; or one of `KINDS`, another table than that of comparisons. Default: `None`.

    Returns:
        str:
            Markdown, and under it what the columns are.

    Raises:
        ValueError: if the folder holds no results.

    Example:
        >>> from benchmarks.report.documents import make_table
        >>> assert "| **bdlru-m4** |" in make_table("s3-seeds")
    """
    if kind in KINDS:
        return KINDS[kind](name)
    rows = [row for row in read_folder(RESULTS / name).values() if kind in (None, row["task"])]
    text = []
    for comparison in compare(rows):
        lengths = comparison.lengths
        head = ["mixer", "parameters", "state", "solved", *(f"@{length}" for length in lengths), "lr", "s"]
        text += [f"{get_task(comparison.task).title}. {comparison.description}.", ""]
        text += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *map(_row, comparison.lines), ""]
    devices = ", ".join(sorted({f"{row['device']}, {row['threads']} thread" for row in rows}))
    seeds = "median and range of seeds" if any(line.seeds > 1 for c in compare(rows) for line in c.lines) else "one seed"
    text.append(
        f"Token accuracy at each length, {seeds}, at the rate of those tried that did best on validation "
        f"data; solved: {SOLVED:g} or more at {lengths[0]}; s: seconds of training. {devices}."
    )
    return "\n".join(text) + "\n"


def fill(text: str) -> str:
    """A document with the tables between its markers as the rows are now."""
    return MARKED.sub(lambda match: f"{match[1]}{make_table(match[2], match[3])}{match[4]}", text)


def main() -> None:
    for path in pages():
        old = path.read_text(encoding="utf-8")
        new = fill(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
