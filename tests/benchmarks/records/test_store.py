"""The results file: whole after any interruption, one writer at a time."""

import csv
import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.lm.report import COLUMNS as lm_columns
from benchmarks.records.store import (
    COLUMNS,
    LATER_COLUMNS,
    ResultStore,
    check_whole,
    read_folder,
    read_row,
    read_rows,
    write_row,
)


def fill(folder, keys):
    with ResultStore(folder) as store:
        for key in keys:
            store.add({"key": key, "task": "s3", "mixer_args": {"a": "x,y"}, "state_size": None}, [(1, 4, 0.1, 2.0, 0.5)])


def test_rows_and_curves_come_back(tmp_path):
    fill(tmp_path, ["one", "two"])
    with ResultStore(tmp_path) as store:
        assert list(store.rows) == ["one", "two"]
        assert store.rows["one"]["mixer_args"] == {"a": "x,y"}
        assert store.rows["one"]["state_size"] is None
        assert not store.dropped
    with open(tmp_path / "compare.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert len(rows) == 2
    assert (tmp_path / "curves" / "two.csv").read_text() == "step,length,lr,loss,token_accuracy\n1,4,0.1,2.0,0.5\n"


def test_a_folder_of_several_files_keeps_the_last_row_and_every_label(make_row, tmp_path):
    for name, finished, matched, task in (("new", "2", "params 9; state 4", "s4"), ("old", "1", "", "s3")):
        with ResultStore(tmp_path / name) as store:
            store.add(make_row("gla", 0.5, key="one", task=task, finished=finished, matched=matched))
        (tmp_path / name / "compare.csv").rename(tmp_path / f"compare-{name}.csv")
    (row,) = read_folder(tmp_path).values()
    assert row["task"] == "s4"
    assert sorted(row["matched"].split("; ")) == ["", "params 9", "state 4"]
    with pytest.raises(ValueError, match=r"holds no results; expected one with a compare\.csv"):
        read_folder(tmp_path / "old")


@pytest.mark.parametrize("name", ["lr", "seed", "lengths", "mixer_args", "seconds", "token_accuracy_2x"])
def test_a_value_that_somebody_deleted_is_named(name, make_row, tmp_path):
    with ResultStore(tmp_path) as store:
        store.add(make_row("gla", 0.5, state_size=""))  # a state that grows
        store.add(make_row("lstm", 0.5, eval_lengths="32", token_accuracy_2x="", key="one"))
    assert len(read_folder(tmp_path)) == 2
    with ResultStore(tmp_path) as store:
        store.add({**store.rows["one"], "eval_lengths": (32, 64), "token_accuracy_2x": 0.5, name: None})
    message = rf"compare\.csv: run 'one' has no {name}; fill it in, or delete the line"
    with pytest.raises(ValueError, match=message):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", ["name", "seed", "bits_per_byte", "loss_by_position", "seconds"])
def test_so_it_is_in_a_row_of_a_language_model(name):
    row = next(iter(read_rows("benchmarks/results/lm-quick.csv", lm_columns)[0].values()))
    check_whole([row], "lm.csv")
    with pytest.raises(ValueError, match=rf"lm\.csv: run '{row['key']}' has no {name};"):
        check_whole([{**row, name: None}], "lm.csv")


def test_a_row_with_the_same_key_is_replaced(tmp_path):
    fill(tmp_path, ["one"])
    with ResultStore(tmp_path) as store:
        store.add({"key": "one", "task": "s5", "seconds": 1.239})
        held = dict(store.rows)
    assert (held["one"]["task"], held["one"]["seconds"]) == ("s5", 1.24)
    assert held == read_rows(tmp_path / "compare.csv")[0]  # as it will be read again
    assert (tmp_path / "compare.csv").read_text().count("\none,") == 1


def test_an_error_of_an_earlier_try_goes_when_the_run_has_ended(tmp_path):
    with ResultStore(tmp_path) as store:
        paths = [store.keep_error(key, "Traceback ...") for key in ("one", "two")]
        store.add({"key": "two", "task": "s3"})  # as where a label is added: nothing ran
    assert all(path.exists() for path in paths)
    fill(tmp_path, ["one"])
    assert list(tmp_path.glob("error-*")) == [paths[1]]


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_last_line_that_was_cut_is_dropped(tmp_path, cut):
    fill(tmp_path, ["one", "two"])
    path = tmp_path / "compare.csv"
    path.write_bytes(path.read_bytes()[:-cut])
    with ResultStore(tmp_path) as store:
        assert list(store.rows) == ["one"]
        assert store.dropped == [3]
        store.add({"key": "three"})
    with ResultStore(tmp_path) as store:
        assert list(store.rows) == ["one", "three"]
        assert not store.dropped


def test_a_broken_line_in_the_middle_costs_only_itself(tmp_path):
    fill(tmp_path, ["one", "two", "three"])
    path = tmp_path / "compare.csv"
    lines = path.read_text().split("\n")
    lines[2] = "two,\0\0\0"
    path.write_text("\n".join(lines))
    with ResultStore(tmp_path) as store:
        assert list(store.rows) == ["one", "three"]
        assert store.dropped == [3]
    assert path.read_text() == "\n".join(lines[:2] + lines[3:])  # gone, though no run was added


OLDER = ",".join(name for name in COLUMNS if name not in LATER_COLUMNS)


@pytest.mark.parametrize("text", ["", "key,ta", OLDER[:-3]])
def test_a_header_that_was_cut_starts_a_new_file(tmp_path, text):
    (tmp_path / "compare.csv").write_text(text)
    fill(tmp_path, ["one"])
    with ResultStore(tmp_path) as store:
        assert list(store.rows) == ["one"]


def test_another_file_is_refused(tmp_path):
    (tmp_path / "compare.csv").write_text("a,b\n1,2\n")
    store = ResultStore(tmp_path)
    with pytest.raises(ValueError, match="other columns"), store:
        pass
    (tmp_path / "compare.csv").unlink()
    fill(tmp_path, ["one"])  # the lock was given back
    for header, words in (
        (f"{OLDER},mine", r"unknown: \['mine'\], missing: \[\]"),
        (OLDER.replace(",seed,", ","), r"unknown: \[\], missing: \['seed'\]"),
    ):
        (tmp_path / "compare.csv").write_text(f"{header}\n")
        with pytest.raises(ValueError, match=words):
            read_rows(tmp_path / "compare.csv")


def test_a_foreign_file_without_a_newline_is_not_replaced(tmp_path):
    (tmp_path / "compare.csv").write_text("my only copy")
    with pytest.raises(ValueError, match=r"compare\.csv is not a results file; .*'my only copy'"), ResultStore(tmp_path):
        pass
    assert (tmp_path / "compare.csv").read_text() == "my only copy"


@pytest.mark.parametrize(
    "column, value, expected",
    [
        ("token_accuracy_1x", "abc", "a number"),
        ("sequence_accuracy_2x", "7.5", "a number from 0 to 1"),
        ("state_size", "6.5", "a whole number"),
        ("lengths", "4;8", "whole numbers"),
        ("bos", "TRUE", "True or False"),
        ("diverged", "no", "True or False"),
    ],
)
def test_what_is_not_a_number_is_named(tmp_path, column, value, expected):
    with ResultStore(tmp_path) as store:
        store.add({"key": "one"})
    text = {"key": "two", column: value}
    with open(tmp_path / "compare.csv", "a", newline="") as file:
        csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(text)
    with pytest.raises(ValueError, match=rf"compare\.csv: line 3: {column}='{value}' is not accepted; expected {expected}"):
        read_folder(tmp_path)


def test_line_ends_and_a_mark_of_another_editor_are_read(tmp_path):
    fill(tmp_path, ["one", "two"])
    path = tmp_path / "compare.csv"
    whole = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + whole.replace(b"\n", b"\r\n"))
    with ResultStore(tmp_path) as store:
        assert (list(store.rows), store.dropped) == (["one", "two"], [])
        store.add(store.rows["one"])
    assert path.read_bytes() == whole


def test_a_row_is_typed_when_read_and_written_as_it_was(tmp_path):
    """Every stored row comes back as it stands in its file, value by value."""
    row = read_row({"key": "one", "lengths": "4 8", "bos": "True", "lr": "0.01", "mixer_args": '{"a": 2}', "seconds": "1.50"})
    assert (row["lengths"], row["bos"], row["lr"], row["mixer_args"], row["seconds"]) == ((4, 8), True, 0.01, {"a": 2}, 1.5)
    assert (row["state_size"], row["matched"], row["stop_at"], row["schedule"]) == (None, "", 0.0, "one-cycle")
    for path in sorted(Path("benchmarks/results").rglob("compare*.csv")):
        typed, _ = read_rows(path)
        with open(path, newline="") as file:
            for text in csv.DictReader(file):
                assert write_row(typed[text["key"]]).items() >= text.items()


def test_a_second_run_is_refused(tmp_path):
    with ResultStore(tmp_path), pytest.raises(ValueError, match="in use by another run"), ResultStore(tmp_path):
        pass


def test_a_column_that_there_is_not_is_an_error(tmp_path):
    with ResultStore(tmp_path) as store, pytest.raises(AssertionError, match=r"unknown columns {'mine'}"):
        store.add({"key": "one", "mine": 1})


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"out=.*file/results"), ResultStore(tmp_path / "file" / "results"):
        pass


def test_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    code = (
        "from benchmarks.records.store import ResultStore\n"
        f"with ResultStore({str(tmp_path)!r}) as store:\n"
        "    for i in range(10**6):\n"
        "        store.add({'key': f'k{i % 50}', 'versions': 'x' * 2000})\n"
    )
    for wait in (0.0, 0.05, 0.1):
        process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.getcwd()})
        deadline = time.monotonic() + 60
        before = (tmp_path / "compare.csv").stat().st_mtime_ns if (tmp_path / "compare.csv").exists() else 0
        while time.monotonic() < deadline:
            if (tmp_path / "compare.csv").exists() and (tmp_path / "compare.csv").stat().st_mtime_ns > before:
                break
            time.sleep(0.005)
        time.sleep(wait)
        process.kill()
        process.wait()
        with ResultStore(tmp_path) as store:
            assert store.rows
            assert not store.dropped


def test_a_full_disk_leaves_the_old_file_and_no_half_one(tmp_path, monkeypatch):
    fill(tmp_path, ["one"])
    before = (tmp_path / "compare.csv").read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with ResultStore(tmp_path) as store:
        with pytest.raises(OSError, match=r"No space left on device.*compare\.csv"):
            store.add({"key": "two"})
        assert list(store.rows) == ["one"]
    assert (tmp_path / "compare.csv").read_bytes() == before
    assert not list(tmp_path.rglob("*.new"))
