"""What a worker does, a process of this machine or of Ray's: sets itself up, and trains a cell."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from benchmarks.records.cell import Cell

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def set_up_worker(threads: int) -> None:
    """What a worker process does before its first cell."""
    import torch

    from benchmarks.compare.models import quiet

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # exact gates leave numbers that a processor takes a hundred times as long for
    quiet()


def run_cell(cell: Cell, device: str, report: Callable[[str, int, float, float], None]) -> dict:
    """In a worker: trains a cell; an error is part of the result, and so is the machine."""
    from benchmarks.compare.train import train_cell
    from benchmarks.records.machine import provenance

    report(cell.key, 0, float("nan"), float("nan"))
    try:
        result = train_cell(cell, device, lambda *numbers: report(cell.key, *numbers))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    return {**result, **provenance(device)}
