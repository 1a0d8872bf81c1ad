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

# packages that commands stand on, as they are imported, and as they are installed
PACKAGES = {"PIL": "pillow", "jinja2": "jinja2", "matplotlib": "matplotlib", "pandas": "pandas", "yaml": "pyyaml"}


def missing_package(error: ModuleNotFoundError) -> str:
    """What is not installed, and what installs it."""
    return f"{error.name} is not installed: pip install {PACKAGES.get(error.name, error.name)}"


def run_command(command: Callable[[], None]) -> None:
    """Calls what writes to a terminal; a character that the terminal's encoding lacks becomes a question mark.

    Where one of `PACKAGES` is missing it ends with a line that says so.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    try:
        command()
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        sys.exit(f"Error: {missing_package(error)}")
