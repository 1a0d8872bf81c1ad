"""How long near-exact gates last: the op against the formula, and the stored rows against both."""

import math

import pandas as pd
import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks.ops import half_lives
from benchmarks.report.documents import RESULTS, stored_table


@pytest.mark.parametrize("gate_norm, distance, small", [("softmax", 6.0, 0.3), ("sinh", 5.0, 1.0), ("square", 6.0, 0.2)])
@pytest.mark.parametrize("m", [2, 5])
def test_measured_is_the_formula(gate_norm, distance, small, m):
    measured = half_lives.measured_half_life(gate_norm, distance, small, m, torch.float64)
    assert measured == pytest.approx(half_lives.half_life(gate_norm, distance, small, m), rel=1e-9)


def test_softmax_lasts_as_long_as_the_page_says():
    for d in (6.0, 8.0, 11.0):
        ratio = (1 - math.exp(-d)) / (1 + 5 * math.exp(-d))
        assert half_lives.half_life("softmax", d) == pytest.approx(math.log(2) / -math.log(ratio))
        assert half_lives.half_life("softmax", d) == pytest.approx(math.exp(d) * math.log(2) / 6, rel=0.006)


def test_the_stored_rows_are_what_the_code_measures():
    """In float32 gates of 1 - e^-11 are rounded, which moves the longest by a hundredth."""
    rows = pd.read_csv(RESULTS / "half-lives.csv")
    assert len(rows) == sum(map(len, half_lives.SMALL.values())) * len(half_lives.DISTANCES)
    for x in rows.itertuples():
        assert x.formula == pytest.approx(half_lives.half_life(x.gate_norm, x.distance, x.small, x.m), abs=1e-3)
        assert x.measured == pytest.approx(x.formula, rel=0.01)
        if x.formula < 3000:
            again = half_lives.measured_half_life(x.gate_norm, x.distance, x.small, x.m)
            assert again == pytest.approx(x.measured, rel=1e-3, abs=1e-3)


def test_the_command_writes_what_the_table_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(half_lives, "DISTANCES", (3.0,))
    monkeypatch.setattr("benchmarks.report.documents.RESULTS", tmp_path)
    app = typer.Typer()
    app.command()(half_lives.main)
    assert CliRunner().invoke(app, ["--out", str(tmp_path / "rows.csv")]).exit_code == 0
    text = stored_table("rows.csv", "half-lives")
    assert "| 3 | 2.5 | 2.5 | 2.3 |" in text
    assert "| `linear`, s = 1 | 0.6 (0.6) |" in text
