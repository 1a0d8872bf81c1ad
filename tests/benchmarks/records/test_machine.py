"""Where a result was made: device, commit, and what a row says of it."""

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


def test_a_row_says_where_by_what_and_when_it_was_made():
    said = machine.provenance("cpu")
    assert list(said) == ["device", "threads", "versions", "commit", "finished"]
    assert said["device"].startswith("cpu: ")
    assert "torch " in said["versions"]
    assert said["finished"].endswith("+00:00")
