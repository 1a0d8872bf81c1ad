"""Worker processes: one cell's failure or one worker's death does not take finished work along."""

import io
import multiprocessing
import time
from dataclasses import replace

import pytest
from rich.console import Console
from small_cell import CELL

from benchmarks.compare.run import Interrupted, WorkerDied, run_cells


def test_a_cell_that_fails_is_reported_and_the_others_go_on():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)  # bars; plain lines are in test_compare.py
    broken = replace(CELL, variant="broken", mixer_args={"block_size": 1, "nonsense": 8})
    done = []

    def finished(cell, result):
        done.append((cell, result["params"]))
        return "fine"

    failures = run_cells([broken, CELL], finished, "cpu", workers=1, threads=1, console=console)
    assert [cell for cell, _ in done] == [CELL]
    assert list(failures) == [broken.key]
    assert "nonsense" in failures[broken.key]["error"]
    assert "Traceback" in failures[broken.key]["traceback"]
    assert "failed: ValueError" in console.file.getvalue()
    assert not multiprocessing.active_children()


def test_a_failure_is_told_when_it_happens_and_processes_of_others_live_on():
    told, other = [], multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    other.start()

    def failed(cell, result):
        told.append(result["traceback"])
        raise KeyboardInterrupt  # whatever comes after it

    broken = replace(CELL, mixer_args={"nonsense": 8})
    console = Console(file=io.StringIO())
    with pytest.raises(Interrupted):
        run_cells([broken, CELL], None, "cpu", workers=1, threads=1, console=console, failed=failed)
    assert "Traceback" in told[0]
    assert multiprocessing.active_children() == [other]
    other.kill()
    other.join()


def test_a_worker_that_dies_is_told_apart_from_an_error():
    done = []

    def finished(cell, result):
        done.append(cell)
        for process in multiprocessing.active_children():
            process.kill()
        return "fine"

    cells = [CELL, *(replace(CELL, seed=seed, steps=20_000) for seed in (1, 2))]
    with pytest.raises(WorkerDied):
        run_cells(cells, finished, "cpu", workers=1, threads=1, console=Console(file=io.StringIO()))
    assert done == [CELL]


def test_nothing_to_do_starts_nothing():
    assert run_cells([], None, "cpu", 1, 1, Console(file=io.StringIO())) == {}
