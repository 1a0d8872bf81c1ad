"""Timings of the ops, synthetic tasks and the comparison of mixers."""

import logging
import sys
import warnings
from collections.abc import Callable

# FLA says on import that there is no GPU: not for commands' output, nor for that of worker processes
warnings.filterwarnings("ignore", message="Triton is not supported on current platform")
# nor that FLA 0.6's models name their cache as transformers did before 5.24
OLD_NAME = "`past_key_values`/`cache_params` are deprecated"
logging.getLogger("transformers.utils.generic").addFilter(lambda record: OLD_NAME not in record.getMessage())


def run_command(command: Callable[[], None]) -> None:
    """Calls what writes to a terminal; a character that the terminal's encoding lacks becomes a question mark."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    command()
