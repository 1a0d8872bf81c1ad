"""What layers keep for the backward: counted in the code of a GPU, and what the stored rows say."""

import inspect

import pandas as pd
import pytest
import typer
from triton.runtime.jit import JITFunction
from typer.testing import CliRunner

from benchmarks.ops import memory
from benchmarks.report.documents import RESULTS

FULL = memory.WIDTH, memory.BUDGET, memory.TOKENS


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    for name, value in (("WIDTH", 256), ("BUDGET", 2**18), ("TOKENS", 64)):
        monkeypatch.setattr(memory, name, value)


def test_ours_is_counted_by_hand():
    launch, row = JITFunction.run, memory.measure("bdlru-m8", turns=1)
    assert JITFunction.run is launch
    # input, v, gates, o in bfloat16; one chunk has no carries
    assert row["kept"] == 2 * (256 + 11 * row["state"])
    assert row["recomputed"] == 2 * (256 + 2 * row["state"])


@pytest.mark.parametrize("name", memory.PEERS)
def test_peers_keep_their_input_and_more(name):
    row = memory.measure(name, turns=1)
    assert 4 * 2 * 256 < row["kept"] < 20 * 2 * 256
    assert "recomputed" not in row


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(memory.main)
    return lambda *words: CliRunner().invoke(app, words, env={"COLUMNS": "160"})


@pytest.mark.parametrize("turns", ["0", "-3"])
def test_turns_that_time_nothing_are_refused(command, tmp_path, monkeypatch, turns):
    monkeypatch.setattr(memory, "OURS", ("bdlru-m1",))
    done = command("--turns", turns, "--out", str(tmp_path / "memory.csv"))
    assert done.exit_code == 2
    assert "Invalid value for '--turns'" in done.output
    assert not list(tmp_path.iterdir())


def test_rows_go_to_the_results_of_here_and_the_options_are_told(command, tmp_path, monkeypatch):
    assert not inspect.signature(memory.main).parameters["out"].default.is_absolute()  # as the stored rows' file is
    monkeypatch.setattr(memory, "measure", lambda name, turns: {"layer": name, "kept": turns})
    monkeypatch.chdir(tmp_path)
    assert command("--turns", "2").exit_code == 0
    rows = pd.read_csv(tmp_path / "results" / "memory.csv")
    assert rows.layer.tolist() == [*memory.OURS, *memory.PEERS]
    assert set(rows.kept) == {2}
    told = command("--help").output
    assert "The CSV file" in told
    assert "Times that each of ours is timed" in told


def test_the_stored_rows_hold_what_is_claimed():
    rows = pd.read_csv(RESULTS / "memory" / "memory.csv", index_col="layer")
    assert {*memory.OURS, *memory.PEERS} == set(rows.index)
    assert rows.loc["bdlru-m8", "recomputed"] <= rows.loc["bdlru-m8", "kept"] / 2
    assert rows.loc["bdlru-m8", "price"] <= 1.3


@pytest.mark.parametrize("name", ["bdlru-m4", "hlru-m2", "hlru-m4"])
def test_the_stored_rows_are_what_the_code_keeps(monkeypatch, name):
    for size, value in zip(("WIDTH", "BUDGET", "TOKENS"), FULL):
        monkeypatch.setattr(memory, size, value)
    monkeypatch.setattr(memory, "price", lambda layer, turns: 1.0)
    row, stored = memory.measure(name, turns=1), pd.read_csv(RESULTS / "memory" / "memory.csv", index_col="layer").loc[name]
    for column in ("params", "state", "kept", "recomputed"):
        assert row[column] == stored[column]
