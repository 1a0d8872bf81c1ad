"""The results file: one CSV, one row per finished cell, valid whenever the program is killed."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from filelock import FileLock, Timeout

MULTIPLES = (1, 2, 4, 8)  # evaluated lengths as multiples of the longest training length
SCORES = ("token_accuracy", "sequence_accuracy", "loss")
COLUMNS = (
    "key",
    "task",
    "variant",
    "mixer",
    "mixer_args",
    "params",
    "mixer_params",
    "state_size",
    "seed",
    *(f"{score}_{k}x" for score in SCORES for k in MULTIPLES),
    "validation_token_accuracy",
    "train_loss",
    "diverged",
    "seconds",
    "steps",
    "lr",
    "batch_size",
    "weight_decay",
    "width",
    "layers",
    "mlp_width",
    "lengths",
    "eval_lengths",
    "train_examples",
    "eval_examples",
    "device",
    "threads",
    "versions",
    "commit",
    "finished",
)
CURVE_COLUMNS = ("step", "length", "lr", "loss", "token_accuracy")


class ResultStore:
    r"""Rows by key, in a folder: `<name>.csv` and `curves/<key>.csv`.

    Every change writes the whole file anew beside the old one and swaps the two, so a reader or a kill finds either the
    old or the new file. One process at a time may hold a store; use it as a context manager.

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
            self._load()
        except ValueError:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._lock.release()

    def _load(self) -> None:
        if not self.path.exists():
            return
        header, *lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        names = next(csv.reader([header]), [])
        if not lines:  # killed while an older program wrote the header
            return
        if tuple(names) != self.columns:
            raise ValueError(f"out={str(self.folder)!r} holds a {self.path.name} with other columns; move it or name another.")
        # the last element is what follows the last newline: empty in a whole file
        for number, line in enumerate(lines, 2):
            values = next(csv.reader([line]), []) if "\0" not in line else []
            if len(values) == len(names) and number < len(lines) + 1:
                self.rows[values[0]] = dict(zip(names, values))
            elif line:
                self.dropped.append(number)

    def add(self, row: dict, curve: list[tuple] = ()) -> None:
        """Stores a finished cell; a row with the same key is replaced. Columns that `row` lacks stay empty."""
        unknown = set(row) - set(self.columns)
        assert not unknown, f"unknown columns {unknown}"
        if curve:
            self._write(self.folder / "curves" / f"{row['key']}.csv", self.curve_columns, curve)
        row = {name: "" if row.get(name) is None else str(row[name]) for name in self.columns}
        rows = {**self.rows, row["key"]: row}
        self._write(self.path, self.columns, [r.values() for r in rows.values()])
        self.rows = rows

    @staticmethod
    def _write(path: Path, header: tuple[str, ...], rows) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        temporary = path.with_name(f".{path.name}.new")
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(text.getvalue())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
