"""The timing of training steps: its parts are those of a step, and its steps those of a comparison."""

import csv

import pytest
import torch
import typer
from safetensors.torch import load
from typer.testing import CliRunner

pytest.importorskip("numba")

from benchmarks.compare import train
from benchmarks.compare.plan import plan
from benchmarks.compare.presets import get_preset
from benchmarks.ops import steps


@pytest.fixture
def run():
    app = typer.Typer()
    app.command()(steps.main)
    return lambda *arguments: CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200"})


def test_rows_and_a_table(run, tmp_path, capfd):
    path = tmp_path / "steps.csv"
    result = run(
        "--task", "recall", "--preset", "quick", "--mixers", "bdlru-m2,lstm", "--rounds", "1", "--steps", "2", "--csv", path
    )
    assert result.exit_code == 0, result.output
    assert "recall: 64 sequences of 64, 2 block(s) of width 64, 1 thread(s)" in result.output
    first, second = csv.DictReader(path.open())
    assert (first["mixer"], float(first["ratio"]), second["mixer"]) == ("bdlru-m2", 1.0, "lstm")
    assert float(second["ratio"]) == pytest.approx(float(second["step_ms"]) / float(first["step_ms"]))
    for row in (first, second):
        assert 0 < float(row["products_share"]) < 1
        assert sum(float(row[f"{part}_ms"]) for part in steps.PARTS) == pytest.approx(float(row["step_ms"]), rel=0.5)
    assert "USDT" not in capfd.readouterr().err


def test_its_steps_are_those_of_a_comparison(run):
    """As many steps of `train_cell` leave the same weights."""
    settings = get_preset("quick", "s3")
    shape = {"lengths": (8,), "steps": 3, "seeds": (0,), "eval_examples": 8, "multiples": (1,)}
    [one] = plan("s3", ("bdlru-m2",), "params", None, steps.replace(settings, **shape), "cpu")[0]
    trained = train.train_cell(one.cell)
    training = steps.Training(one.cell)
    for _ in range(one.cell.steps):
        assert tuple(training.step()) == steps.PARTS
    weights = load(trained["weights"])
    assert all(torch.equal(x, weights[name]) for name, x in training.model.state_dict().items())


def test_bad_names_are_refused(run):
    for option, message in (
        (("--task", "s33"), "s33"),
        (("--preset", "quack"), "quick, cpu"),
        (("--mixers", "bd"), "bdlru-m<M>"),
    ):
        refused = run(*option)
        assert refused.exit_code == 2
        assert message in refused.output
