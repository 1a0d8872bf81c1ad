"""The timing of the CPU path: the contender computes the same recurrence, and a run gives whole rows."""

import csv
import math
from functools import partial
from itertools import count

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("numba")

import typer
from references import NAIVE

from benchmarks.ops import check_file, cpu, norms, roofline, steps
from benchmarks.ops.cpu import main, make_inputs, measure_layer
from benchmarks.ops.scan import scan_bdlru, scan_hlru


@pytest.mark.parametrize("M", [1, 3])
@pytest.mark.parametrize("op, scan", [("bdlru", scan_bdlru), ("hlru", scan_hlru)])
def test_scan_equals_naive(op, scan, M):
    v, g, do = (x.contiguous() for x in make_inputs(op, 2, 13, 3, M))
    v, g = v.requires_grad_(), g.requires_grad_()
    got, exact = scan(v, g), NAIVE[op](v, g)[0]
    torch.testing.assert_close(got, exact)
    torch.testing.assert_close(torch.autograd.grad(got, (v, g), do), torch.autograd.grad(exact, (v, g), do))


def test_benchmark_writes_whole_rows(tmp_path):
    app = typer.Typer()
    app.command()(main)
    path = tmp_path / "cpu.csv"
    options = ["-B", "1", "-T", "5", "-H", "3", "--width", "8", "--m", "1", "--m", "2", "--repeats", "1", "--csv", str(path)]
    options += ["--op", "bdlru", "--op", "hlru"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(path.open()))
    assert [(row["op"], row["m"]) for row in rows] == [("bdlru", "1"), ("bdlru", "2"), ("hlru", "1"), ("hlru", "2")]
    for row in rows:
        assert all(value != "" for value in row.values())
        assert float(row["error"]) < 2e-6
        assert math.isclose(float(row["scan_ratio"]), float(row["scan_ms"]) / float(row["ours_ms"]))
    refused = CliRunner().invoke(app, ["--width", "8", "--m", "3"], env={"COLUMNS": "200"})
    assert refused.exit_code == 2
    assert "--m 3 does not divide --width 8" in refused.output


def test_norms_take_turns_and_stand_over_the_first(tmp_path):
    app, path = typer.Typer(), tmp_path / "norms.csv"
    app.command()(norms.main)
    options = ["-B", "1", "-T", "5", "--channels", "6", "--m", "2", "--repeats", "1", "--op", "hlru", "--csv", str(path)]
    result = CliRunner().invoke(app, [*options, "--norms", "softmax,square"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(path.open()))
    named = [(row["op"], row["m"], row["dtype"], row["gate_norm"]) for row in rows]
    assert named == [("hlru", "2", dtype, norm) for dtype in norms.DTYPES for norm in ("softmax", "square")]
    for first, second in (rows[:2], rows[2:]):
        assert (float(first["forward_ratio"]), float(first["both_ratio"])) == (1.0, 1.0)
        assert math.isclose(float(second["both_ratio"]), float(second["both_ms"]) / float(first["both_ms"]))
    for bad, message in ((["--norms", "softmx"], "softmx"), (["--m", "4"], "--m 4 does not divide --channels 6")):
        refused = CliRunner().invoke(app, [*options, *bad], env={"COLUMNS": "200"})
        assert (refused.exit_code, message in refused.output) == (2, True), refused.output


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "measure_op", lambda *shape: pytest.fail("it was timed"))
    for module in (norms, steps):
        monkeypatch.setattr(module, "measure", lambda *shape: pytest.fail("it was timed"))
    (tmp_path / "file").touch()
    for command, options in ((main, []), (norms.main, []), (steps.main, ["--mixers", "bdlru-m2"])):
        app = typer.Typer()
        app.command()(command)
        for path, words in ((tmp_path, "Is a directory"), (tmp_path / "file" / "cpu.csv", "cannot be written")):
            refused = CliRunner().invoke(app, [*options, "--csv", str(path)], env={"COLUMNS": "400"})
            assert (refused.exit_code, words in refused.output) == (2, True), refused.output
    check_file(tmp_path / "new" / "cpu.csv", "--csv")
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("op", ["bdlru", "hlru"])
def test_layers_that_are_compared_have_one_width_and_state(op):
    """The whole layer against the whole LSTM, of parameters that are counted; and against all of its matrix products."""
    row = measure_layer(op, 1, 5, 12, 3, repeats=1)
    state = width = 12
    gates = 4 * (state if op == "bdlru" else state // 3)
    channels = state if op == "bdlru" else state // 3
    assert row["state"] == row["width"] == width
    # v_proj, a_proj with its bias, o_proj
    assert row["layer_params"] == width * channels + (width + 1) * gates + state * width
    assert row["lstm_params"] == 4 * (2 * width * width + 2 * width)
    assert math.isclose(row["lstm_ratio"], row["lstm_ms"] / row["layer_ms"])
    assert math.isclose(row["products_ratio"], row["layer_ms"] / row["products_ms"])


@pytest.mark.parametrize("threads, clock", [(1, "thread_time"), (2, "perf_counter")])
def test_shares_of_a_copy(monkeypatch, threads, clock):
    """A clock that ticks once a call: an op and the copy take as long as each other, and bfloat16 as float32."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for name in ("thread_time", "perf_counter"):
        monkeypatch.setattr(roofline.time, name, count().__next__ if name == clock else lambda: 0.0)
    row = roofline.measure_roofline("bdlru", 2, 5, 3, 4, repeats=2, copied=1000)
    assert row.keys() == roofline.COLUMNS.keys() - {"m"}
    elements = {"fwd": 4 * 5 + 2 * 4, "both": 3 * 4 * 5 + 6 * 4}  # gates, and v, o, then do, dv
    for mode, number in elements.items():
        assert math.isclose(row[f"float32_{mode}_share"], number * 2 * 5 * 3 / 2000)
        assert math.isclose(row[f"bfloat16_{mode}_share"], number * 2 * 5 * 3 / 4000)
        assert row[f"{mode}_ratio"] == 1
    assert math.isclose(row["copy_gb_per_s"], 8000 / 1e9)


@pytest.mark.parametrize("op", NAIVE)
def test_inputs_are_gate_major(op):
    for x in make_inputs(op, 2, 3, 5, 4):
        gates = x.ndim == (5 if op == "bdlru" else 4)
        assert (x.movedim(2, -1) if gates or op == "bdlru" else x).is_contiguous()


def test_roofline_writes_whole_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "keep_memory", lambda: None)  # of this process
    monkeypatch.setattr(cpu, "measure_roofline", partial(roofline.measure_roofline, copied=1000))
    app = typer.Typer()
    app.command()(main)
    path = tmp_path / "cpu.csv"
    options = ["--roofline", "-B", "1", "-T", "5", "-H", "3", "--m", "3", "--repeats", "1", "--csv", str(path)]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    (row,) = csv.DictReader(path.open())
    assert row["m"] == "3"
    assert all(value != "" for value in row.values())
