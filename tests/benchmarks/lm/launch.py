"""Starts the command line in processes of its own, alone or under torchrun, and reads what it leaves."""

import contextlib
import csv
import time
from pathlib import Path

import psutil
from fresh import start_fresh
from ranks import Forked

SETTINGS = (
    "model.hidden_size=32", "model.intermediate_size=64", "data.dataset=pydoc", "data.length=32",
    "data.validation_tokens=3000", "evaluation.tokens=512", "training.steps=60", "training.warmup_steps=6",
    "training.batch_size=8", "training.log_every=1", "training.eval_every=20", "training.save_every=5",
)  # fmt: skip


def launch(processes, *words):
    """Python with `words`, under torchrun if there are several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    return start_fresh(*launcher, *words, OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")


def start(out, *arguments, processes=1, changes=(), by=launch):
    """The command on a small model; `processes` > 1 starts it as under torchrun."""
    options = [word for change in (*SETTINGS, *changes) for word in ("--set", change)]
    return by(processes, "-m", "benchmarks.lm", "--device", "cpu", "--out", str(out), *options, *arguments)


def finish(process):
    """Waits for success; what it wrote to its output."""
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stdout + stderr
    return stdout


def wait_for_checkpoint(out, process, number=1):
    """Returns when `number` complete checkpoints are there."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if len(list(Path(out).glob("checkpoints/*/*/complete"))) >= number:
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint; the run said: {process.communicate(timeout=60)}")


def kill_all(process):
    """SIGKILL for all processes; torchrun's children have sessions of their own."""
    if isinstance(process, Forked):
        return process.kill()
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=30)
    process.communicate(timeout=60)


def rows(out):
    """Rows of the results file by name."""
    with open(Path(out) / "lm.csv", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def curve(out, name):
    """A learning curve without its clock."""
    with open(Path(out) / "curves" / f"{rows(out)[name]['key']}.csv", newline="") as file:
        return [{column: value for column, value in point.items() if column != "seconds"} for point in csv.DictReader(file)]


def weights(out, name):
    """The bytes of a saved model."""
    return (Path(out) / "models" / rows(out)[name]["key"] / "model.safetensors").read_bytes()
