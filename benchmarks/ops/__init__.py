"""Timings of the ops."""

import importlib.util
import sys
import types
from pathlib import Path

import typer

# mamba_ssm's Triton kernels, which Mamba2 runs, do without its CUDA extension; importing them does not
NAME = "selective_scan_cuda"
if importlib.util.find_spec("mamba_ssm") and NAME not in sys.modules and importlib.util.find_spec(NAME) is None:
    sys.modules[NAME] = types.ModuleType(NAME)


def check_file(path: Path, option: str) -> None:
    """Before anything is timed: makes the file's folder; `typer.BadParameter`, if it cannot be written."""
    from benchmarks.records.store import unwritten

    there = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise typer.BadParameter(unwritten(error), param_hint=option) from None
    if not there:
        path.unlink()
