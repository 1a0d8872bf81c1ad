"""The results file: one CSV, one row per finished cell, valid whenever the program is killed."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from filelock import FileLock, Timeout

from benchmarks.records.cell import DEFAULTS, NAMES

MULTIPLES = (1, 2, 4, 8, 32, 256)  # evaluated lengths as multiples of the longest training length
SCORES = ("token_accuracy", "sequence_accuracy", "loss")
SIZES = ("params", "mixer_params", "state_size", "flops_per_token", "mixer_flops", "recurrent_flops")
_SCORED = tuple(f"{score}_{k}x" for score in SCORES for k in MULTIPLES)
OUTCOME = ("validation_token_accuracy", "train_loss", "diverged", "seconds", "steps_done")
COLUMNS = ("key", *NAMES, *SIZES, "matched", *_SCORED, *OUTCOME, "device", "threads", "versions", "commit", "finished")
# older files lack some
LATER_COLUMNS = {*DEFAULTS, "matched", "mixer_flops", "recurrent_flops", "flops_per_token", "steps_done"}
LATER_COLUMNS |= {name for name in _SCORED if name.endswith(("_32x", "_256x"))}


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


_WHOLE = {"params", "mixer_params", "seed", "steps", "batch_size", "width", "layers"}
# what the columns that are read as numbers hold, where they hold something
NUMBERS: dict[str, tuple] = {
    **{name: (_share, "a number from 0 to 1") for name in (*_SCORED, "validation_token_accuracy") if "accuracy" in name},
    **dict.fromkeys((*(name for name in _SCORED if "loss" in name), "seconds", "lr"), (float, "a number")),
    **dict.fromkeys((*_WHOLE, "state_size", "recurrent_flops"), (int, "a whole number")),
    **{name: (lambda text: [int(n) for n in text.split()], "whole numbers") for name in ("lengths", "eval_lengths")},
}
CURVE_COLUMNS = ("step", "length", "lr", "loss", "token_accuracy")


def read_rows(path: str | Path, columns: tuple[str, ...] = COLUMNS) -> tuple[dict[str, dict[str, str]], list[int]]:
    r"""Reads a results file, also one that a killed program or an older version left.

    Args:
        path (str | Path):
            A CSV file of finished runs.
        columns (tuple[str, ...]):
            The columns it should have, the key first; those of `LATER_COLUMNS` it may lack. Default: a comparison's.

    Returns:
        (dict[str, dict[str, str]], list[int]):
            Rows by key, with every column (empty where the file lacks it), and the numbers of broken lines.

    Raises:
        ValueError: if the file has other columns, or a comparison's has no number where there should be one.
    """
    header, *lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    names = next(csv.reader([header]), [])
    if not lines:
        if not any(",".join(known).startswith(header) for known in (columns, _older(columns))):
            raise ValueError(f"{path} is not a results file; move it or name another folder (it holds {header[:60]!r}).")
        return {}, []  # killed while an older program wrote the header
    unknown, missing = set(names) - set(columns), set(columns) - LATER_COLUMNS - set(names)
    if unknown or missing:
        raise ValueError(
            f"{path} holds results with other columns; move it or name another folder "
            f"(unknown: {sorted(unknown)}, missing: {sorted(missing)})."
        )
    rows, broken = {}, []
    # the last element is what follows the last newline: empty in a whole file
    for number, line in enumerate(lines, 2):
        values = next(csv.reader([line]), []) if "\0" not in line else []
        if len(values) == len(names) and number < len(lines) + 1:
            found = dict(zip(names, values))
            if columns is COLUMNS:
                _check_numbers(found, f"{path}: line {number}")
            rows[found[columns[0]]] = {name: found.get(name, "") for name in columns}
        elif line:
            broken.append(number)
    return rows, broken


def _older(columns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in columns if name not in LATER_COLUMNS)


def _check_numbers(row: dict[str, str], where: str) -> None:
    for name, (convert, expected) in NUMBERS.items():
        try:
            if row.get(name):
                convert(row[name])
        except ValueError:
            raise ValueError(f"{where}: {name}={row[name]!r} is not accepted; expected {expected}.") from None


def read_folder(folder: str | Path) -> dict[str, dict[str, str]]:
    r"""All finished runs of a folder, from every `compare*.csv` in it.

    Args:
        folder (str | Path):
            Where results are kept, or one file of them.

    Returns:
        dict[str, dict[str, str]]:
            Rows by key; of rows with one key, the one that finished last, with what all of them were `matched` by (an older
            row that does not say stays comparable with others that do not).

    Raises:
        ValueError: if there is no such file, or one with other columns.
    """
    paths = [Path(folder)] if Path(folder).is_file() else sorted(Path(folder).glob("compare*.csv"))
    if not paths:
        raise ValueError(f"folder={str(folder)!r} holds no results; expected one with a compare.csv, or compare-*.csv.")
    rows = [row for path in paths for row in read_rows(path)[0].values()]
    found: dict[str, dict[str, str]] = {}
    for row in sorted(rows, key=lambda row: row["finished"]):
        before = found.get(row["key"], row)["matched"].split("; ")
        found[row["key"]] = {**row, "matched": "; ".join(dict.fromkeys(before + row["matched"].split("; ")))}
    return found


class ResultStore:
    r"""Rows by key, in a folder: `<name>.csv`, `curves/<key>.csv` and `weights/<key>.safetensors`.

    Every change writes the whole file anew beside the old one and swaps the two, so a reader or a kill finds either the
    old or the new file. Broken lines that others left are dropped on entering. One process at a time may hold a store; use it
    as a context manager.

    Args:
        folder (str | Path):
            Where results are kept; made if it is not there.
        name (str):
            Name of the rows' file. Default: `"compare"`.
        columns, curve_columns (tuple[str, ...]):
            Columns of a row, the key first, and of a curve. Default: those of a comparison.

    Raises:
        ValueError: on entering, if the folder cannot be written, another run holds it, or the file is not ours.
    """

    def __init__(
        self,
        folder: str | Path,
        name: str = "compare",
        columns: tuple[str, ...] = COLUMNS,
        curve_columns: tuple[str, ...] = CURVE_COLUMNS,
    ):
        self.folder = Path(folder)
        self.path = self.folder / f"{name}.csv"
        self.columns, self.curve_columns = columns, curve_columns
        self.rows: dict[str, dict[str, str]] = {}
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

        The row is written last: where it is, its curve and weights are.
        """
        unknown = set(row) - set(self.columns)
        assert not unknown, f"unknown columns {unknown}"
        if curve:
            write_file(self.folder / "curves" / f"{row['key']}.csv", _csv(self.curve_columns, curve))
        if weights:
            (self.folder / "weights").mkdir(exist_ok=True)
            write_file(self.folder / "weights" / f"{row['key']}.safetensors", weights)
        row = {name: "" if row.get(name) is None else str(row[name]) for name in self.columns}
        self._write_rows({**self.rows, row["key"]: row})

    def _write_rows(self, rows: dict[str, dict[str, str]]) -> None:
        write_file(self.path, _csv(self.columns, [row.values() for row in rows.values()]))
        self.rows = rows


def _csv(header: tuple[str, ...], rows) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


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
