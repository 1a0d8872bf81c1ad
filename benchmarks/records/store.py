"""The results file: one CSV, a row per finished cell, whole whenever the program is killed. Rows are typed when read, once."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from benchmarks.records.cell import LATER, NAMES, Cell


@dataclass(frozen=True)
class Column:
    """How the values of a column are read and written, and what they are called; nothing is written as nothing."""

    read: Callable[[str], Any] = str
    write: Callable[[Any], str] = str
    words: str = "text"


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def _switch(text: str) -> bool:
    if text not in ("True", "False"):  # a spreadsheet writes TRUE
        raise ValueError
    return text == "True"


def several(column: Column, words: str) -> Column:
    """A column of tuples, their values separated by spaces."""
    return Column(lambda text: tuple(map(column.read, text.split())), lambda xs: " ".join(map(column.write, xs)), words)


TEXT, WHOLE, NUMBER = Column(), Column(int, words="a whole number"), Column(float, words="a number")
SWITCH = Column(_switch, words="True or False")
JSON = Column(json.loads, lambda value: json.dumps(value, sort_keys=True), "JSON")
LOSS, SECONDS = Column(float, "{:.6f}".format, "a number"), Column(float, "{:.2f}".format, "a number")
SHARE = Column(_share, "{:.6f}".format, "a number from 0 to 1")
WHOLES = several(WHOLE, "whole numbers")
BY_TYPE = {"str": TEXT, "int": WHOLE, "float": NUMBER, "bool": SWITCH, "dict": JSON, "tuple[int, ...]": WHOLES}

MULTIPLES = (1, 2, 4, 8, 32, 256)  # evaluated lengths as multiples of the longest training length
SIZES = ("params", "mixer_params", "state_size", "flops_per_token", "mixer_flops", "recurrent_flops")
SCORES = {"token_accuracy": SHARE, "sequence_accuracy": SHARE, "loss": LOSS}
SCORED = {f"{name}_{k}x": column for name, column in SCORES.items() for k in MULTIPLES}
COLUMNS: dict[str, Column] = {
    "key": TEXT,
    **{name: BY_TYPE[Cell.__dataclass_fields__[name].type] for name in NAMES},
    **dict.fromkeys(SIZES, WHOLE),
    "matched": TEXT,
    **SCORED,
    "validation_token_accuracy": SHARE,
    "train_loss": Column(float, "{:.6g}".format, "a number"),
    "diverged": SWITCH,
    "seconds": SECONDS,
    "steps_done": WHOLE,
    "restarts": WHOLE,
    "device": TEXT,
    "threads": WHOLE,
    **dict.fromkeys(("versions", "commit", "finished"), TEXT),
}
# older files lack some
LATER_COLUMNS = {*LATER, "matched", "mixer_flops", "recurrent_flops", "flops_per_token", "steps_done", "restarts"}
LATER_COLUMNS |= {name for name in SCORED if name.endswith(("_32x", "_256x"))}
LATER_COLUMNS |= {"match", "budget", "backbone", "min_lr_ratio", "beta1", "beta2", "clip"}  # of language models
LATER_COLUMNS |= {"torch_compile", "gradient_checkpointing"}
# what a row of a file cannot lack, where there is such a column; of language models the last line's, too
NEEDED = {"key", *NAMES, "validation_token_accuracy", "diverged", "seconds", "finished"} - set(LATER)
NEEDED |= {"name", "loss", "perplexity", "bits_per_byte", "loss_by_position", "validation_loss", "length"}
CURVE_COLUMNS = ("step", "length", "lr", "loss", "token_accuracy")


def read_row(row: Mapping[str, str], columns: Mapping[str, Column] = COLUMNS, where: str = "row") -> dict[str, Any]:
    """A row's values by column; where there is nothing, the default of a run's field, `""` for text, `None` for the rest."""
    found = {}
    for name, column in columns.items():
        text = row.get(name, "")
        try:
            found[name] = column.read(text) if text else LATER.get(name, "" if column is TEXT else None)
        except ValueError:
            raise ValueError(f"{where}: {name}={text!r} is not accepted; expected {column.words}.") from None
    return found


def write_row(row: Mapping[str, Any], columns: Mapping[str, Column] = COLUMNS) -> dict[str, str]:
    """The text of a row's values; those that a run has by default, and those that it lacks, are empty."""
    values = {name: row.get(name) for name in columns}
    empty = {name for name, value in values.items() if value is None or (name in LATER and value == LATER[name])}
    return {name: "" if name in empty else columns[name].write(value) for name, value in values.items()}


def read_rows(path: str | Path, columns: Mapping[str, Column] = COLUMNS) -> tuple[dict[str, dict[str, Any]], list[int]]:
    """Reads a results file, also one that a killed program or an older version left: rows by key, and numbers of broken lines.

    ValueError, if the file has other columns (those of `LATER_COLUMNS` it may lack), or a value is not what its column holds.
    """
    header, *lines = Path(path).read_text(encoding="utf-8-sig", errors="replace").split("\n")
    names = next(csv.reader([header]), [])
    if not lines:
        older = (name for name in columns if name not in LATER_COLUMNS)
        if not any(",".join(known).startswith(header) for known in (columns, older)):
            raise ValueError(f"{path} is not a results file; move it or name another folder (it holds {header[:60]!r}).")
        return {}, []  # killed while an older program wrote the header
    unknown, missing = set(names) - set(columns), set(columns) - LATER_COLUMNS - set(names)
    if unknown or missing:
        raise ValueError(
            f"{path} holds results with other columns; move it or name another folder "
            f"(unknown: {sorted(unknown)}, missing: {sorted(missing)})."
        )
    rows, broken, key = {}, [], next(iter(columns))
    # the last element is what follows the last newline: empty in a whole file
    for number, line in enumerate(lines, 2):
        values = next(csv.reader([line]), []) if "\0" not in line else []
        if len(values) == len(names) and number < len(lines) + 1:
            row = read_row(dict(zip(names, values)), columns, f"{path}: line {number}")
            rows[row[key]] = row
        elif line:
            broken.append(number)
    return rows, broken


def check_whole(rows: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """ValueError, if one of a file's rows has nothing where every table and picture looks: a cell that somebody emptied."""
    for row in rows:
        needed = [name for name in row if name in NEEDED]
        if row.get("lengths") and row["eval_lengths"]:
            needed += [f"token_accuracy_{length // max(row['lengths'])}x" for length in row["eval_lengths"]]
        empty = [name for name in needed if row[name] in (None, "", ())]
        if empty:
            raise ValueError(f"{path}: run {row['key']!r} has no {', '.join(empty)}; fill it in, or delete the line.")


def read_folder(folder: str | Path, needed: bool = True) -> dict[str, dict[str, Any]]:
    """All finished runs of a folder, from every `compare*.csv` in it, or of one such file, by key.

    Of rows with one key the one that finished last counts, with what all of them were `matched` by (an older row that does not
    say stays comparable with others that do not). ValueError, if there is none but one is `needed`, it has other columns, or a
    row lacks a value.
    """
    paths = [Path(folder)] if Path(folder).is_file() else sorted(Path(folder).glob("compare*.csv"))
    if needed and not paths:
        raise ValueError(f"folder={str(folder)!r} holds no results; expected one with a compare.csv, or compare-*.csv.")
    rows = []
    for path in paths:
        rows += (own := read_rows(path)[0].values())
        check_whole(own, path)
    found: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["finished"]):
        before = found.get(row["key"], row)["matched"].split("; ")
        found[row["key"]] = {**row, "matched": "; ".join(dict.fromkeys(before + row["matched"].split("; ")))}
    return found


class ResultStore:
    """Rows by key, in a folder: `<name>.csv`, `curves/<key>.csv` and `weights/<key>.safetensors`.

    Every change writes the whole file anew beside the old one and swaps the two, so a reader or a kill finds either the
    old or the new file. Broken lines that others left are dropped on entering. One process at a time may hold a store; use it
    as a context manager, which raises ValueError if the folder cannot be written, another run holds it, or the file is not
    ours. Columns, the key first, that are only names hold text.
    """

    def __init__(
        self,
        folder: str | Path,
        name: str = "compare",
        columns: Mapping[str, Column] | Iterable[str] = COLUMNS,
        curve_columns: tuple[str, ...] = CURVE_COLUMNS,
    ):
        self.folder = Path(folder)
        self.path = self.folder / f"{name}.csv"
        self.columns = columns if isinstance(columns, Mapping) else dict.fromkeys(columns, TEXT)
        self.curve_columns = curve_columns
        self.rows: dict[str, dict[str, Any]] = {}
        self.dropped: list[int] = []
        self._lock = FileLock(self.folder / f".{name}.lock", timeout=0)

    def __enter__(self) -> ResultStore:
        try:
            (self.folder / "curves").mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise ValueError(f"out={str(self.folder)!r} is in use by another run; wait for it or name another.") from None
        except OSError as error:
            raise ValueError(f"out={str(self.folder)!r} cannot be written: {error.strerror or error}.") from None
        try:
            if self.path.exists():
                self.rows, self.dropped = read_rows(self.path, self.columns)
                if self.dropped:
                    self._write_rows(self.rows)
        except (OSError, ValueError):
            self._lock.release()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._lock.release()

    def add(self, row: dict, curve: list[tuple] = (), weights: bytes | None = None) -> None:
        """Stores a finished cell; a row with the same key is replaced. Columns that `row` lacks stay empty.

        The row is written last: where it is, its curve and weights are. What `keep_error` wrote of an earlier try goes.
        """
        unknown = set(row) - set(self.columns)
        assert not unknown, f"unknown columns {unknown}"
        if curve:
            write_file(self.folder / "curves" / f"{row['key']}.csv", _csv(self.curve_columns, curve))
        if weights:
            (self.folder / "weights").mkdir(exist_ok=True)
            write_file(self.folder / "weights" / f"{row['key']}.safetensors", weights)
        row = read_row(write_row(row, self.columns), self.columns)  # as it will be read again
        self._write_rows({**self.rows, row["key"]: row})
        if curve:  # a run that ended, no new label
            self._error_path(row["key"]).unlink(missing_ok=True)

    def keep_error(self, key: str, traceback: str) -> Path:
        """Writes down why a cell failed; returns the file."""
        path = self._error_path(key)
        path.write_text(traceback, encoding="utf-8")
        return path

    def _error_path(self, key: str) -> Path:
        return self.folder / f"error-{key}.txt"

    def _write_rows(self, rows: dict[str, dict[str, Any]]) -> None:
        write_file(self.path, _csv(self.columns, [write_row(row, self.columns).values() for row in rows.values()]))
        self.rows = rows


def _csv(header: Iterable[str], rows) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def unwritten(error: OSError) -> str:
    """What a command says of a file that it could not write."""
    return f"{error.filename or '--out'} cannot be written: {error.strerror or error}."


def write_file(path: Path, content: bytes) -> None:
    """Writes a file in one go: a reader, a kill or a full disk finds the old one or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # a full disk, say
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
