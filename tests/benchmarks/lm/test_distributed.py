"""Two processes under torchrun (gloo): copied and sharded models, killed at a random step and resumed."""

import json
import random
import signal
import time

import psutil
import pytest

from tests.benchmarks.lm.launch import curve, finish, kill_all, rows, start, wait_for_checkpoint, weights

NAME = "bdlru-m4"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    finish(start(out, "--mixers", NAME, processes=2))
    return out


def last_step(out):
    """The newest step that a complete checkpoint holds."""
    return max(int(mark.parent.name.split("-")[1]) for mark in out.glob("checkpoints/*/*/complete"))


def numbers(out, column):
    return [float(point[column]) for point in curve(out, NAME) if point[column]]


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_kill_and_resume_gives_the_losses_of_an_unbroken_run(unbroken, tmp_path, sharded):
    arguments = ["--mixers", NAME, *(["--fsdp"] if sharded else [])]
    process = start(tmp_path, *arguments, processes=2)
    wait_for_checkpoint(tmp_path, process)
    time.sleep(random.uniform(0, 0.5))
    kill_all(process)
    assert not (tmp_path / "lm.csv").exists(), "the run had ended before it was killed"
    assert 5 <= last_step(tmp_path) < 60

    stdout = finish(start(tmp_path, *arguments, processes=2))
    assert "goes on from" in stdout
    assert len(curve(tmp_path, NAME)) == 60
    if not sharded:  # the same arithmetic: bit-equal, weights included
        assert curve(tmp_path, NAME) == curve(unbroken, NAME)
        assert weights(tmp_path, NAME) == weights(unbroken, NAME)
        return
    params = int(rows(tmp_path)[NAME]["params"])
    assert f"{params // 2:,} parameters on each of 2 processes" in stdout
    for column in ("loss", "grad_norm", "validation_loss"):
        assert numbers(tmp_path, column) == pytest.approx(numbers(unbroken, column), rel=1e-4)
    assert losses(tmp_path) == pytest.approx(losses(unbroken), rel=1e-5)


def losses(out):
    return [float(loss) for loss in rows(out)[NAME]["loss"].split()]


def test_one_process_gives_the_losses_of_two(unbroken, tmp_path):
    finish(start(tmp_path, "--mixers", NAME))
    assert numbers(tmp_path, "loss") == pytest.approx(numbers(unbroken, "loss"), rel=1e-4)
    assert losses(tmp_path) == pytest.approx(losses(unbroken), rel=1e-4)
    one, two = rows(tmp_path)[NAME], rows(unbroken)[NAME]
    assert (one["processes"], two["processes"]) == ("1", "2")
    assert one["key"] == two["key"]


def test_interruption_saves_a_checkpoint_on_every_process(unbroken, tmp_path):
    process = start(tmp_path, "--mixers", NAME, processes=2)
    wait_for_checkpoint(tmp_path, process)
    process.send_signal(signal.SIGINT)  # torchrun hands it to its workers
    stdout, _ = process.communicate(timeout=60)
    assert "where a checkpoint was saved" in stdout
    assert "The same command goes on from there." in stdout
    folder = next(tmp_path.glob(f"checkpoints/*/checkpoint-{last_step(tmp_path)}"))
    assert {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt", "model.safetensors"} <= {p.name for p in folder.iterdir()}
    stopped = json.loads((folder / "trainer_state.json").read_text())["global_step"]
    assert f"stopped at step {stopped}," in stdout
    finish(start(tmp_path, "--mixers", NAME, processes=2))
    assert curve(tmp_path, NAME) == curve(unbroken, NAME)
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in (p.info["cmdline"] or ())]
