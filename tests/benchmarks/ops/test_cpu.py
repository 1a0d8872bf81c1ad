"""The timing of the CPU path: the contender computes the same recurrence, and a run gives whole rows."""

import csv
import math

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("numba")

import typer

from benchmarks.ops.cpu import main, make_inputs
from benchmarks.ops.scan import scan_bdlru, scan_hlru
from fla_bdlru.ops import naive_recurrent_bdlru, naive_recurrent_hlru


@pytest.mark.parametrize("M", [1, 3])
@pytest.mark.parametrize("op, scan, naive", [
    ("bdlru", scan_bdlru, naive_recurrent_bdlru), ("hlru", scan_hlru, naive_recurrent_hlru),
])  # fmt: skip
def test_scan_equals_naive(op, scan, naive, M):
    v, g, do = (x.contiguous() for x in make_inputs(op, 2, 13, 3, M))
    v, g = v.requires_grad_(), g.requires_grad_()
    got, exact = scan(v, g), naive(v, g)[0]
    torch.testing.assert_close(got, exact)
    torch.testing.assert_close(torch.autograd.grad(got, (v, g), do), torch.autograd.grad(exact, (v, g), do))


def test_benchmark_writes_whole_rows(tmp_path):
    app = typer.Typer()
    app.command()(main)
    path = tmp_path / "cpu.csv"
    options = ["-B", "1", "-T", "5", "-H", "3", "--m", "1", "--m", "2", "--repeats", "1", "--csv", str(path)]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(path.open()))
    assert [row["m"] for row in rows] == ["1", "2"]
    for row in rows:
        assert all(value != "" for value in row.values())
        assert float(row["error"]) < 2e-6
        assert math.isclose(float(row["scan_ratio"]), float(row["scan_ms"]) / float(row["ours_ms"]))
