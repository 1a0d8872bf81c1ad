"""Two processes (gloo), under torchrun or forked: copied and sharded models, killed at a random step and resumed."""

import csv
import json
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from ranks import Forked
from safetensors.torch import load_file

from tests.benchmarks.lm.launch import SETTINGS, curve, finish, kill_all, rows, start, wait_for_checkpoint, weights

NAME = "bdlru-m4"
WORKER = Path(__file__).with_name("fsdp_worker.py")


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


def killed_at_random(process, out):
    wait_for_checkpoint(out, process)
    time.sleep(random.uniform(0, 0.5))
    kill_all(process)
    assert not list(out.glob("*.csv")), "the run had ended before it was killed"
    assert 5 <= last_step(out) < 60


def test_kill_and_resume_is_bit_equal_to_an_unbroken_run(unbroken, tmp_path):
    killed_at_random(start(tmp_path, "--mixers", NAME, processes=2, by=Forked), tmp_path)
    assert "goes on from" in finish(start(tmp_path, "--mixers", NAME, processes=2, by=Forked))
    assert len(curve(tmp_path, NAME)) == 60
    assert curve(tmp_path, NAME) == curve(unbroken, NAME)
    assert weights(tmp_path, NAME) == weights(unbroken, NAME)


def test_sharded_killed_and_resumed_gives_the_losses_of_copies(unbroken, tmp_path):
    command = [2, str(WORKER), str(tmp_path), *SETTINGS, f'mixers=["{NAME}"]']
    killed_at_random(Forked(*command), tmp_path)
    stdout = finish(Forked(*command))
    assert "goes on from" in stdout
    params = int(rows(unbroken)[NAME]["params"])
    assert f"{params // 2:,} parameters on each of 2 processes" in stdout
    with open(next(tmp_path.glob("curves/*.csv")), newline="") as file:
        points = list(csv.DictReader(file))
    assert len(points) == 60
    for column in ("loss", "grad_norm", "validation_loss"):
        assert [float(p[column]) for p in points if p[column]] == pytest.approx(numbers(unbroken, column), rel=1e-4)
    with open(tmp_path / "fsdp.csv", newline="") as file:
        scored = [float(loss) for loss in next(csv.DictReader(file))["loss"].split()]
    assert scored == pytest.approx(losses(unbroken), rel=1e-4)
    saved, other = (load_file(next(out.glob("models/*/model.safetensors"))) for out in (tmp_path, unbroken))
    assert saved.keys() == other.keys()
    assert all(torch.allclose(saved[name], other[name], atol=1e-3) for name in saved)


def test_sharding_takes_tied_embeddings(tmp_path):
    changes = ("training.steps=4", "training.save_every=4", "training.warmup_steps=1", "model.tie_word_embeddings=true")
    stdout = finish(Forked(2, str(WORKER), str(tmp_path), *SETTINGS, *changes, f'mixers=["{NAME}"]'))
    assert "parameters on each of 2 processes" in stdout


def losses(out):
    return [float(loss) for loss in rows(out)[NAME]["loss"].split()]


def test_one_process_gives_the_losses_of_two(unbroken, tmp_path):
    finish(start(tmp_path, "--mixers", NAME, by=Forked))
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
    finish(start(tmp_path, "--mixers", NAME, processes=2, by=Forked))
    assert curve(tmp_path, NAME) == curve(unbroken, NAME)
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in (p.info["cmdline"] or ())]
