"""The command line: wrong input, the plan, a whole small comparison, interruption."""

import errno
import os
import signal

import pytest
from ranks import Forked
from typer.testing import CliRunner

from benchmarks.lm.__main__ import _set_threads, app
from tests.benchmarks.lm.launch import curve, finish, rows, start, wait_for_checkpoint, weights

TWO = ("--mixers", "bdlru-m4,lstm")
STEPS = ("training.steps=20",)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    return out, finish(start(out, *TWO, changes=STEPS))


def test_a_comparison_gives_rows_curves_models_a_table_and_a_picture(unbroken):
    out, stdout = unbroken
    found = rows(out)
    assert set(found) == {"bdlru-m4", "lstm"}
    for name, row in found.items():
        assert row["eval_lengths"] == "32 64 128 256"
        bits = [float(x) for x in row["bits_per_byte"].split()]
        assert len(bits) == 4
        assert all(2 < x < 8 for x in bits)
        assert [2 ** float(b) for b in bits] == pytest.approx([float(p) for p in row["perplexity"].split()], rel=1e-4)
        assert row["steps"] == "20"
        assert row["precision"] == "fp32"
        assert (row["match"], row["budget"], row["clip"]) == ("params", "", "1.0")
        assert row["backbone"] == row["model"]
        assert "accelerate" in row["versions"]
        assert row["text_digest"]
        assert len(curve(out, name)) == 20
        assert weights(out, name)
    assert abs(int(found["lstm"]["params"]) / int(found["bdlru-m4"]["params"]) - 1) < 0.05
    assert not list(out.glob("checkpoints/*"))
    assert (out / "lm-quick.png").read_bytes().startswith(b"\x89PNG")
    for text in (
        "2 runs, 0 of them",
        "bdlru-m4",
        "bits/byte",
        "perplexity",
        "lm.csv",
        "lm-quick.png",
        "5,120 training tokens",
    ):
        assert text in stdout, text


def test_a_second_call_trains_nothing(unbroken):
    out, _ = unbroken
    before = (out / "lm.csv").read_bytes()
    stdout = finish(start(out, *TWO, changes=STEPS, by=Forked))
    assert "2 runs, 2 of them" in stdout
    assert "step" not in stdout.split("2 of them")[1].split("bits/byte")[0].replace("20 steps", "")
    assert (out / "lm.csv").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_is_quiet_and_the_same_command_goes_on(number, unbroken, tmp_path):
    process = start(tmp_path, *TWO, changes=STEPS)
    wait_for_checkpoint(tmp_path, process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # what a terminal does
    else:
        process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stdout + stderr
    assert "where a checkpoint was saved" in stdout
    assert "The same command goes on from there." in stdout
    assert "Traceback" not in stdout + stderr
    finish(start(tmp_path, *TWO, changes=STEPS, by=Forked))
    for name in ("bdlru-m4", "lstm"):
        assert curve(tmp_path, name) == curve(unbroken[0], name)
        assert weights(tmp_path, name) == weights(unbroken[0], name)


def invoke(*arguments):
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    return result.exit_code, " ".join(result.output.replace("│", " ").split())


def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path):
    code, text = invoke("--preset", "paper-140m", "--dry-run", "--out", str(tmp_path / "out"))
    assert code == 0
    for words in (
        "HuggingFaceFW/fineweb-edu (sample-10BT)",
        "bdlru-m16 173,777,664 135,180,288 78,537,984 5,376",
        '{"block_size": 16, "num_blocks": 28}',
        "2,621,440,000 training tokens in sequences of 2,048",
        "lr 0.006 after 500 steps of warm-up",
        "lengths 2,048, 4,096, 8,192, 16,384",
    ):
        assert words in text, text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--preset", "slow"], ["preset='slow'", "paper-140m, quick"]),
        (["--preset", "quik"], ["preset='quik'", "Did you mean quick?"]),
        (["--mixers", "bdlur-m4"], ["'bdlur-m4' is not known", "Did you mean bdlru-m4?"]),
        (["--mixers", "bdlru-m4,nope"], ["'nope' is not known", "gated_deltanet"]),
        (["--mixers", ","], ["mixers=[]", "at least one"]),
        (["--mixers", "lstm,lstm"], ["mixers=['lstm', 'lstm']", "different names"]),
        (["--seeds", "0"], ["--seeds", "greater than or equal to 1"]),
        (["--set", "training.lr"], ["set='training.lr'", "section.field=value"]),
        (["--set", "data.length=0"], ["data.length=0", "greater than 1"]),
        (["--set", "data.dataset=nobody/nothing"], ["data.dataset='nobody/nothing'", "pydoc, stdlib"]),
        (["--set", "data.dataset=pydoc", "--set", "data.length=50000"], ["data.length=50,000"]),
        (["--set", "data.dataset=pydoc", "--set", "evaluation.tokens=1000"], ["window of 2,048", "evaluation.multiples"]),
        (["--set", "training.micro_batch_size=3"], ["training.batch_size=16", "micro_batch_size=3"]),
        (["--set", "model.type=gpt"], ["model.type='gpt'", "transformer"]),
        (["--seeds", "20261127"], ["--seeds", "less than or equal to 1000"]),
        (["--device", "tpu"], ["device='tpu'", "auto, cpu, cuda"]),
        (["--fsdp", "--device", "cpu"], ["fsdp shards over GPUs", "without it the model is copied"]),
    ],
)
def test_wrong_input_is_named_and_answered_with_exit_code_2(arguments, words, tmp_path):
    code, text = invoke(*arguments, "--out", str(tmp_path / "out"))
    assert code == 2, text
    for word in words:
        assert word in text, text
    assert "Traceback" not in text
    assert not (tmp_path / "out" / "lm.csv").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    code, text = invoke("--set", "data.dataset=pydoc", "--out", str(tmp_path / "file"))
    assert code == 2
    assert "cannot be written" in text


def test_a_full_disk_while_training_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "lm.csv")

    for name, does in (
        ("_set_threads", print),
        ("_announce", print),
        ("_prepare", lambda *_: ([], None)),
        ("_train_all", full),
    ):
        monkeypatch.setattr(f"benchmarks.lm.__main__.{name}", does)
    code, text = invoke("--out", str(tmp_path))
    assert code == 1
    assert "lm.csv cannot be written: No space left on device. The same command goes on from there." in text
    assert "Traceback" not in text


def test_own_text_is_checked_before_anything_is_written(tmp_path):
    path = tmp_path / "mine.txt"
    options = ("--mixers", "lstm", "--dry-run", "--text", str(path), "--out", str(tmp_path / "out"))
    path.write_text("".join(f"line {i}\n" for i in range(4000)))
    code, text = invoke(*options)
    assert code == 0, text
    assert "text mine.txt, tokenizer bytes" in text
    assert " characters of " in text
    assert "3,880 for validation" in text
    path.write_text("a few words\n")
    code, text = invoke(*options)
    assert code == 2
    assert "a window of 2,048 tokens is longer than the 1 validation tokens" in text
    code, text = invoke(*options[:-3], str(tmp_path / "none"), *options[-2:])
    assert (code, "cannot be read: No such file" in text) == (2, True)
    assert not (tmp_path / "out").exists()


def test_one_core_is_left_free_unless_threads_are_given(monkeypatch):
    asked = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    monkeypatch.setattr("benchmarks.records.machine.usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for threads in (None, 3):
        _set_threads(threads)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    _set_threads(None)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    _set_threads(None)
    assert asked == [7, 3, 3]
