"""Timings of the ops, synthetic tasks and the comparison of mixers."""

import sys
import warnings
from collections.abc import Callable

# FLA says on import that there is no GPU: not for commands' output, nor for that of worker processes
warnings.filterwarnings("ignore", message="Triton is not supported on current platform")


def run_command(command: Callable[[], None]) -> None:
    """Calls what writes to a terminal; a character that the terminal's encoding lacks becomes a question mark."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    command()
