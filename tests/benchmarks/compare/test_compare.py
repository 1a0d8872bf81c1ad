"""The command line: wrong input, a whole small comparison, interruption and resumption."""

import contextlib
import csv
import errno
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fresh import ROOT, start_fresh
from typer.testing import CliRunner

from benchmarks.compare.__main__ import app
from benchmarks.compare.models import ALL_VARIANTS, match_variant
from benchmarks.compare.plan import plan
from benchmarks.compare.presets import PRESETS, get_preset
from benchmarks.compare.run import Interrupted
from benchmarks.records.cell import Cell
from benchmarks.records.machine import usable_cores
from benchmarks.records.store import ResultStore, read_rows
from benchmarks.tasks import TASKS

GROUPS = ("s2", "s3", "s4", "s5", "a3", "a4", "a5", "d4", "q8", "z2", "z3", "z5", "z60")
QUICK = ROOT / "benchmarks" / "results" / "quick" / "compare.csv"
TIMES = {"seconds", "finished"}
ONE = ["--mixers", "bdlru-m4", "--width", "16", "--steps", "4", "--workers", "1"]
SMALL = ["--mixers", "bdlru-m4,gated_deltanet", "--seeds", "2", "--width", "16", "--steps", "24"]


def start(out, *extra, small=SMALL):
    words = (*small, "--workers", "2", "--oversubscribe", "--out", str(out), *extra)
    return start_fresh("-m", "benchmarks.compare", *words, COLUMNS="160")


def rows(out):
    with open(Path(out) / "compare.csv", newline="") as file:
        found = list(csv.DictReader(file))
    return sorted(({k: v for k, v in row.items() if k not in TIMES} for row in found), key=lambda row: row["key"])


def wait_for_rows(out, number, pid):
    """Until there are so many, or the process has ended."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        with contextlib.suppress(FileNotFoundError):
            if len(rows(out)) >= number:
                return
        time.sleep(0.02)
    assert rows(out), "the run wrote nothing"


def wait_for_empty_group(group):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    raise AssertionError("processes were left behind")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    process = start(out)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    return out, stdout, stderr


def test_a_comparison_gives_rows_curves_a_table_and_a_picture(unbroken):
    out, stdout, stderr = unbroken
    found = rows(out)
    assert len(found) == 4
    assert {row["variant"] for row in found} == {"bdlru-m4", "gated_deltanet"}
    for row in found:
        for name in ("token_accuracy", "sequence_accuracy"):
            assert [bool(row[f"{name}_{k}x"]) for k in (1, 2, 4, 8)] == [True, True, True, False]
            assert 0 <= float(row[f"{name}_1x"]) <= 1
        assert float(row["token_accuracy_1x"]) >= float(row["sequence_accuracy_1x"])
        assert row["eval_lengths"] == "32 64 128"
        assert row["threads"] == "1"
        assert "torch" in row["versions"]
        assert row["device"]
        curve = (out / "curves" / f"{row['key']}.csv").read_text().splitlines()
        assert len(curve) == 25
    assert next(row for row in found if row["variant"] == "bdlru-m4")["state_size"] == "16"
    picture = (out / "compare-s3-params.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000
    for text in ("4 runs", "[4/4]", "bdlru-m4", "token", "sequence", "compare.csv", "compare-s3-params.png"):
        assert text in stdout, text
    assert "Traceback" not in stderr
    assert not list(out.glob(".*.new"))


def test_a_second_call_does_nothing_again(unbroken):
    out, _, _ = unbroken
    before = (out / "compare.csv").read_bytes()
    process = start(out)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert "4 of them in" in stdout
    assert "[1/" not in stdout
    assert (out / "compare.csv").read_bytes() == before


KILLS = 10


@pytest.fixture
def forked_sweep():
    """Starts a sweep in a process that has imported everything; its process id."""
    code = [sys.executable, str(Path(__file__).with_name("forked_sweeps.py"))]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(code, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(*arguments):
        print(*arguments, file=server.stdin, flush=True)
        return int(server.stdout.readline())

    yield start
    server.communicate(timeout=60)


@pytest.mark.timeout(600)
def test_a_sweep_killed_at_random_moments_and_resumed_equals_an_unbroken_one(unbroken, forked_sweep, tmp_path):
    (tmp_path / "grid.toml").write_text(
        'task = ["s3", "parity"]\nmixers = ["bdlru-m4", "hlru-m2"]\nmatch = ["params", "state"]\n'
        "seeds = 4\nwidth = 16\nsteps = 24\n"
    )
    grid = ("--grid", str(tmp_path / "grid.toml"))
    pid = forked_sweep(*grid, "--workers", "2", "--oversubscribe", "--out", str(tmp_path / "whole"))
    wait_for_rows(tmp_path / "whole", math.inf, pid)
    whole = rows(tmp_path / "whole")
    assert len(whole) == 24  # bdlru-m4 is the same model at equal parameters and at equal state
    assert {row["matched"] for row in whole if row["variant"] == "bdlru-m4"} == {"params 1872; state 16"}
    by_key = {row["key"]: row for row in whole}
    for row in rows(unbroken[0]):  # the same runs from flags, matched in one way
        if row["variant"] == "bdlru-m4":
            assert {**by_key[row["key"]], "matched": row["matched"]} == row

    out, seed, survived = tmp_path / "killed", time.time_ns(), 0
    print("moments drawn with seed", seed)
    moments = random.Random(seed)
    for kill in range(KILLS):
        pid = forked_sweep(*grid, "--workers", "2", "--oversubscribe", "--out", str(out))
        if kill % 2:
            time.sleep(moments.uniform(0, 1.5))
        else:
            wait_for_rows(out, survived + 1, pid)
            time.sleep(moments.uniform(0, 0.4))
        with contextlib.suppress(ProcessLookupError):
            if kill % 3:
                os.killpg(pid, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGKILL)  # the parent alone: its workers have to notice
        wait_for_empty_group(pid)
        if (out / "compare.csv").exists():
            kept = rows(out)
            assert survived <= len(kept)
            assert all(by_key[row["key"]] == row for row in kept)
            survived = len(kept)
    path = out / "compare.csv"
    path.write_bytes(path.read_bytes() + b"deadbeef,s3,bdl")  # and a line cut short

    process = start(out, *grid, small=())
    stdout, stderr = process.communicate(timeout=280)
    assert process.returncode == 0, stderr
    assert f"24 runs, {survived} of them in" in stdout
    assert "is incomplete" in stdout
    assert rows(out) == whole
    assert sorted(p.name for p in (out / "curves").glob("*.csv")) == sorted(f"{row['key']}.csv" for row in whole)
    assert {p.name for p in out.glob("*.png")} == {
        f"compare-{task}-{match}.png" for task in ("s3", "parity") for match in ("params", "state")
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_is_quiet_and_says_how_to_go_on(number, tmp_path):
    process = start(tmp_path, "--steps", "4000")
    deadline = time.monotonic() + 120
    out = process.stdout
    while time.monotonic() < deadline and "worker(s)" not in (line := out.readline()):
        assert line, process.stderr.read()
    time.sleep(4)  # workers are starting or training
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # what a terminal does
    else:
        process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped. 0 of 4 runs are kept" in stdout
    assert "The same command goes on from there." in stdout
    assert "Traceback" not in stdout + stderr
    assert stderr == ""
    wait_for_empty_group(process.pid)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--task", "s9"], ["--task", "'s9'", "s2, s3, s4, s5, a3", "compression", "z<n>"]),
        (["--mixers", "bdlru-m4,nope"], ["--mixers", "'nope'", "gated_deltanet"]),
        (["--mixers", ","], ["--mixers", "different names"]),
        (["--mixers", "lstm,lstm"], ["--mixers", "different names"]),
        (["--seeds", "x"], ["--seeds", "'x'", "a count"]),
        (["--seeds", "0"], ["--seeds", "'0'", "a count"]),
        (["--seeds", "1,-2"], ["--seeds", "a list of numbers from 0 on"]),
        (["--match", "flops"], ["--match", "'flops'", "params, state"]),
        (["--preset", "long"], ["--preset", "'long'", "quick, cpu, paper"]),
        (["--steps", "0"], ["--steps", "0", "greater than 0"]),
        (["--steps", "2"], ["--steps", "2", "one per length"]),
        (["--steps", "many"], ["--steps", "many", "whole number"]),
        (["--width", "20"], ["--width", "20", "multiple of 8"]),
        (["--layers", "-1"], ["--layers", "-1", "greater than 0"]),
        (["--lr", "fast"], ["--lr", "'fast'", "3e-3"]),
        (["--lr", "nan"], ["--lr", "nan", "greater than 0"]),
        (["--workers", "0"], ["--workers", "greater than or equal to 1"]),
        (["--workers", "640", "--threads", "64"], ["--workers, --threads", "need 40960 cores", "--oversubscribe"]),
        (["--threads", "6400"], ["1 worker(s) of 6400 thread(s) need 6400 cores", "expected at most"]),
        (["--budget", "99", "--match", "params,state"], ["--budget", "99 is not accepted", "expected one rule"]),
        (["--width", "100000000"], ["--width", "up to 16,384"]),
        (["--budget", "100000000000"], ["--budget", "1,000,000,000"]),
        (["--schedule", "step"], ["--schedule", "'step'", "one-cycle, cosine"]),
        (["--device", "tpu"], ["--device", "'tpu'", "auto, cpu, cuda"]),
        (["--mixers", "mamba2", "--budget", "300"], ["mamba2", "300", "closest are"]),
    ],
)
def test_wrong_input_is_named_and_answered_with_exit_code_2(arguments, words, tmp_path):
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")], env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    text = " ".join(result.output.replace("│", " ").split())
    for word in words:
        assert word in text, text
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists()


def test_help_names_every_task():
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "1000"})
    assert result.exit_code == 0
    names = result.output.replace(",", " ").replace(";", " ").split()
    assert not set(TASKS) - set(names)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("task", [*TASKS, "z7"])
def test_every_preset_fits_every_task(preset, task):
    if preset == "tracking" and task not in (*GROUPS, "parity", "z7"):
        with pytest.raises(ValueError, match=f"'tracking' is for groups .*; got task '{task}'"):
            get_preset(preset, task)
        return
    settings = get_preset(preset, task)
    grid, _ = plan(task, ("lstm",), "params", None, settings, "cpu")
    cell = grid[0].cell
    longest = max(settings.lengths)
    # an autoencoder knows only the positions that it was trained on
    multiples = (1,) if task == "compression" else settings.multiples
    assert cell.eval_lengths == tuple(k * longest for k in multiples)


def test_paper_settings_of_mad_are_its_published_ones():
    published = {  # length, training examples; 200 epochs of batches of 128
        "recall": (128, 12_800),
        "noisy_recall": (128, 12_800),
        "fuzzy_recall": (128, 12_800),
        "memorization": (32, 256),
        "selective_copying": (256, 12_800),
        "compression": (32, 12_800),
    }
    for task, (length, examples) in published.items():
        settings = get_preset("paper", task)
        assert (settings.lengths, settings.train_examples) == ((length,), examples)
        assert settings.steps * 128 == 200 * examples
        assert (settings.batch_size, settings.eval_examples, settings.lrs) == (128, 1280, (5e-4,))
        assert (settings.width, settings.layers, settings.mlp_width) == (128, 2, 352)  # 8/3 of the width, in steps of 16
        assert (settings.weight_decay, settings.schedule) == (0.0, "cosine")


def test_a_task_of_one_length_is_compared_at_that_length(tmp_path):
    arguments = ["--task", "compression", "--mixers", "lstm", "--seeds", "1", "--width", "32", *ONE[4:]]  # steps, workers
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    (row,) = rows(tmp_path)
    assert row["eval_lengths"] == "32"
    for name in ("token_accuracy", "sequence_accuracy"):
        assert [bool(row[f"{name}_{k}x"]) for k in (1, 2, 4, 8)] == [True, False, False, False]
    assert (tmp_path / "compare-compression-params.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_stands_in_a_second_comparison_is_not_done_again(tmp_path):
    arguments = [*ONE, "--seeds", "1", "--no-weights"]
    for match, already, labels in (("params", 0, "params 1872"), ("state", 1, "params 1872; state 16")):
        result = CliRunner().invoke(app, [*arguments, "--match", match, "--out", str(tmp_path)], env={"COLUMNS": "160"})
        assert result.exit_code == 0, result.output
        assert f"1 runs, {already} of them in" in " ".join(result.output.split())
        (row,) = rows(tmp_path)
        assert row["matched"] == labels
        assert 0 < int(row["recurrent_flops"]) < int(row["mixer_flops"]) < int(row["flops_per_token"])
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("task", ["s3", "compression"])
def test_stored_results_are_what_the_command_would_do(task):
    """Nothing that has changed since gives their runs another meaning."""
    stored, broken = read_rows(QUICK)
    assert not broken
    grid, _ = plan(task, ALL_VARIANTS, "params", None, replace(get_preset("quick", task), seeds=(0,)), "cpu")
    assert {planned.cell.key for planned in grid} == {key for key, row in stored.items() if row["task"] == task}


def test_every_stored_run_is_known_by_its_key():
    """Rebuilt from their rows, with a variant's arguments as they are settled now: nothing would be done again."""
    stored, _ = read_rows(QUICK)
    assert len(stored) > 200
    matches = {}
    for key, row in stored.items():
        width, variant = int(row["width"]), row["variant"]
        if (variant, width) not in matches:
            matches[variant, width] = match_variant(variant, "params", width)
        cell, matched = Cell.from_row(row), matches[variant, width]
        assert cell.mlp_width == get_preset("quick", row["task"]).mlp_width + matched.extra_mlp
        assert replace(cell, mixer_args=matched.args).key == cell.key == key
        assert row["matched"] == matched.rule


def test_cores_are_those_that_a_process_may_use(tmp_path):
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert usable_cores(tmp_path / "cpu.max") == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path / "cpu.max") == usable_cores(tmp_path / "none")
    if hasattr(os, "sched_setaffinity"):
        code = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        code += "from benchmarks.records.machine import usable_cores\nassert usable_cores() == 1"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_failed_run_leaves_its_traceback_at_once_and_brackets_are_kept(tmp_path, monkeypatch):
    def fail(cells, finished, *rest):
        failed = rest[-1]
        failed(cells[0], {"error": "ValueError: x[/b]", "traceback": "Traceback ..."})
        raise Interrupted

    monkeypatch.setattr("benchmarks.compare.run.run_cells", fail)
    out = tmp_path / "q[/b]x"  # a folder's name with markup of rich
    result = CliRunner().invoke(app, [*SMALL, "--out", str(out)], env={"COLUMNS": "300"})
    assert result.exit_code == 130, result.output
    assert [path.read_text() for path in out.glob("error-*.txt")] == ["Traceback ..."]
    text = " ".join(result.output.split())
    assert "Stopped. 0 of 4 runs are kept. The same command" in text
    assert "compare.csv" not in text
    assert f"4 runs, 0 of them in {out} already" in text


def test_results_of_an_older_version_are_known(older_results, tmp_path):
    with ResultStore(tmp_path) as store:
        assert store.rows == older_results


def test_a_folder_in_use_is_refused(tmp_path):
    with ResultStore(tmp_path):
        result = CliRunner().invoke(app, [*SMALL, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "in use by another run" in " ".join(result.output.split())


def test_a_full_disk_is_one_line_and_finished_rows_stay(tmp_path, monkeypatch):
    written = []

    def full(number):
        written.append(number)
        if len(written) > 5:  # a run's curve, weights and row, then the next one's
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = CliRunner().invoke(app, [*ONE, "--seeds", "3", "--out", str(tmp_path)], env={"COLUMNS": "300"})
    assert result.exit_code == 1, result.output
    text = " ".join(result.output.split())
    assert "cannot be written: No space left on device. 1 of 3 runs are kept" in text
    assert "Traceback" not in text
    assert len(rows(tmp_path)) == 1
    assert not list(tmp_path.rglob("*.new"))
    result = CliRunner().invoke(app, [*ONE, "--seeds", "3", "--out", str(tmp_path)], env={"COLUMNS": "300"})
    assert "3 runs, 1 of them in" in " ".join(result.output.split())
    assert len(rows(tmp_path)) == 3


def test_a_terminal_that_lacks_characters_gets_others():
    command = [sys.executable, "-m", "benchmarks.compare", "--help"]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    result = subprocess.run(command, cwd=ROOT, env=ascii_only, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "--oversubscribe" in result.stdout


def test_without_matplotlib_a_comparison_ends_well(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(app, [*ONE, "--seeds", "1", "--out", str(tmp_path)], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "matplotlib is not installed" in text
    assert "solved by none" in text
    assert not list(tmp_path.glob("*.png"))


@pytest.fixture
def told(monkeypatch):
    # runs that take no time; what validation data says of a rate is given, and the cells that ran come in order
    ran, good = [], {"lr": 3e-3, "weight_decay": 0.1}

    def run_cells(cells, finished, *_):
        for cell in cells:
            ran.append((cell.lr, cell.weight_decay, cell.seed))
            score = 0.01 * cell.seed + 0.5 * (cell.lr == good["lr"]) + 0.2 * (cell.weight_decay == good["weight_decay"])
            scores = [{"token_accuracy": score, "sequence_accuracy": 0.0, "loss": 1.0} for _ in cell.eval_lengths]
            result = {"params": 1, "linear_flops": 1, "scores": scores, "validation": score, "train_loss": 1.0, "seconds": 1.0}
            result |= {"diverged": False, "steps_done": cell.steps, "restarts": 0, "curve": [], "weights": b""}
            finished(cell, result)
        return {}

    monkeypatch.setattr("benchmarks.compare.run.run_cells", run_cells)
    return ran, good


def test_some_seeds_try_all_rates_and_the_others_run_at_the_best(told, tmp_path):
    ran, good = told
    sweep = ["--lr", "1e-3,3e-3", "--weight-decay", "0,0.1", "--seeds", "4,5,6", "--tune", "1", "--task", "s3"]
    arguments = [*ONE, *sweep, "--out", str(tmp_path / "out")]
    said = " ".join(CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}).output.split())
    assert "4 runs, 0 of them" in said
    assert "then 2 more, at each mixer's best learning rate and weight decay" in said
    assert sorted(ran[:4]) == [(lr, decay, 4) for lr in (1e-3, 3e-3) for decay in (0, 0.1)]
    assert ran[4:] == [(3e-3, 0.1, 5), (3e-3, 0.1, 6)]
    assert "AdamW lr 0.001/0.003, weight decay 0/0.1, one-cycle" in said
    assert said.count("of 3 seeds") == said.count("solved by none") == 1  # one table, with what was chosen
    table = [line.split() for line in CliRunner().invoke(app, arguments).output.splitlines()]
    (chosen,) = [i for i, words in enumerate(table) if words[:1] == ["bdlru-m4"]]
    assert (table[chosen][-2], table[chosen + 1][-1]) == ("0.003", "0.1")
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["compare-s3-params.png"]

    # nothing is left; with more seeds that try, what follows from fewer is not run again
    ran.clear()
    said = " ".join(CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}).output.split())
    assert "6 runs, 6 of them" in said
    assert "more, at each" not in said
    assert not ran
    CliRunner().invoke(app, [*arguments, "--tune", "2"])
    assert sorted(ran) == [(1e-3, 0, 5), (1e-3, 0.1, 5), (3e-3, 0, 5)]
    # without it every seed tries every rate
    ran.clear()
    CliRunner().invoke(app, [*arguments, "--tune", "0"])
    assert sorted(ran) == [(1e-3, 0, 6), (1e-3, 0.1, 6), (3e-3, 0, 6)]

    # again from the start, where another rate is the best by now
    ran.clear()
    good["lr"] = 1e-3
    CliRunner().invoke(app, [*arguments, "--rerun"])
    assert ran[-2:] == [(1e-3, 0.1, 5), (1e-3, 0.1, 6)]


def test_a_sweep_runs_all_tasks_at_one_rate_and_seed_before_the_next(told, tmp_path):
    ran, _ = told
    sweep = ["--lr", "3e-3,1e-3", "--seeds", "2", "--task", "s3,s2", "--out", str(tmp_path)]
    CliRunner().invoke(app, [*ONE, *sweep])
    assert [(lr, seed) for lr, _, seed in ran] == [(lr, seed) for seed in (0, 1) for lr in (3e-3, 1e-3) for _ in range(2)]


def test_grids_of_one_comparison_share_a_table_and_a_picture(told, tmp_path):
    """Mixers at rates of their own are one comparison; another recipe is one of its own, whose picture says so."""
    ran, _ = told
    grids = ("mixers = 'bdlru-m1'\nlr = 1e-2", "mixers = 'bdlru-m4'\nseeds = 2", "mixers = 'bdlru-m1'\nschedule = 'cosine'")
    above = "task = 's3'\nsteps = 9\nwidth = 16\nlr = 3e-3\nseeds = 1\n"
    (tmp_path / "grid.toml").write_text(above + "".join(f"[[grids]]\n{grid}\n" for grid in grids))
    arguments = ["--grid", str(tmp_path / "grid.toml"), "--workers", "1", "--out", str(tmp_path / "out")]
    said = " ".join(CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}).output.split())
    assert sorted(ran) == [(3e-3, 0.01, 0), (3e-3, 0.01, 0), (3e-3, 0.01, 1), (1e-2, 0.01, 0)]
    assert said.count("solved by none") == 2
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert names == ["compare-s3-params-ccosine.png", "compare-s3-params-cone-cycle.png"]


def test_a_sweep_that_stops_counts_what_follows_from_the_rates(told, tmp_path, monkeypatch):
    def stop(*_):
        raise Interrupted

    monkeypatch.setattr("benchmarks.compare.run.run_cells", stop)
    result = CliRunner().invoke(app, [*ONE, "--lr", "1e-3,3e-3", "--seeds", "3", "--tune", "1", "--out", str(tmp_path)])
    assert result.exit_code == 130
    assert "0 of 4 runs are kept" in " ".join(result.output.split())
