"""Where a result was made: device, commit, and what a row says of it."""

import os
import subprocess
from types import SimpleNamespace

import pytest

from benchmarks.records import machine


@pytest.mark.parametrize("found", [True, False])
def test_auto_is_a_gpu_where_there_is_one(monkeypatch, found):
    monkeypatch.setattr("torch.cuda.is_available", lambda: found)
    assert machine.choose_device("auto") == ("cuda" if found else "cpu")
    assert machine.choose_device("cpu") == "cpu"
    assert machine.choose_device("cuda", elsewhere=True) == "cuda"
    if not found:
        with pytest.raises(ValueError, match="device='cuda' is not there"):
            machine.choose_device("cuda")


@pytest.mark.parametrize("changed, mark", [(" M a.py\n", "+changes"), ("", "")])
def test_a_commit_says_whether_files_differ_from_it(monkeypatch, changed, mark):
    monkeypatch.setattr("subprocess.run", lambda words, **_: SimpleNamespace(stdout=changed if "status" in words else "abc\n"))
    assert machine.commit.__wrapped__() == f"abc{mark}"


def test_asking_for_the_commit_leaves_the_index_alone(tmp_path, monkeypatch):
    """`git status` would write it anew where a file is newer, under a lock that stops others."""
    git = lambda *words: subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True)  # noqa: E731
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "benchmarks" / "records" / "machine.py"))
    (tmp_path / "a.py").write_text("a")
    git("init")
    git("add", "a.py")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "a")
    index = tmp_path / ".git" / "index"
    before = index.read_bytes()
    os.utime(tmp_path / "a.py", (1, 1))
    assert len(machine.commit.__wrapped__()) == 12
    assert index.read_bytes() == before
    git("status")
    assert index.read_bytes() != before


def test_a_row_says_where_by_what_and_when_it_was_made():
    said = machine.provenance("cpu")
    assert list(said) == ["device", "threads", "versions", "commit", "finished"]
    assert said["device"].startswith("cpu: ")
    assert "torch " in said["versions"]
    assert said["finished"].endswith("+00:00")
