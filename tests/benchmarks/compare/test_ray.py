"""Ray as a backend: the same results, no more at once than there is room for, errors told."""

import builtins
import io
from dataclasses import replace

import pytest
import small_cell
import torch
from rich.console import Console

from benchmarks.compare.run import run_cells
from benchmarks.compare.train import train_cell

CELL = replace(small_cell.CELL, steps=20)


@pytest.fixture
def one_thread():
    """As Ray's workers have: on some processors a matrix product's last bits depend on the number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_ray_gives_the_results_of_a_plain_call(one_thread):
    pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    cells = [CELL, replace(CELL, seed=1), replace(CELL, mixer_args={"nonsense": 1})]
    console, done = Console(file=io.StringIO()), {}
    failures = run_cells(cells, lambda cell, result: str(done.update({cell.key: result})), "cpu", None, 1, console, "local")
    assert set(done) == {cell.key for cell in cells[:2]}
    for cell in cells[:2]:
        plain = train_cell(cell)
        for name in ("scores", "validation", "train_loss", "curve", "params"):
            assert done[cell.key][name] == plain[name], name
        assert done[cell.key]["threads"] == 1
        assert "torch" in done[cell.key]["versions"]
    assert list(failures) == [cells[2].key]
    assert "nonsense" in failures[cells[2].key]["error"]
    assert "[3/3]" in console.file.getvalue()

    import ray

    assert not ray.is_initialized()


def test_more_threads_than_there_are_cores_are_refused():
    pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    with pytest.raises(ValueError, match=r"no room for 10000 thread\(s\) on cpu"):
        run_cells([CELL], None, "cpu", None, 10_000, Console(file=io.StringIO()), "local")


def test_no_cluster_at_the_address_is_an_error():
    pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    with pytest.raises(ValueError, match="ray_address='auto': no Ray cluster answers there"):
        run_cells([CELL], None, "cpu", None, 1, Console(file=io.StringIO()), "auto")


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    original = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.split(".")[0] == "ray":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match=r"ray_address='local' needs Ray.*pip install ray"):
        run_cells([CELL], None, "cpu", None, 1, Console(file=io.StringIO()), "local")
