"""Python in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_fresh(*words, cwd: Path = ROOT, env: dict | None = None, timeout: int = 280) -> str:
    """What Python prints with `words`, such as `-c` and code; that it fails is an error with what it said."""
    command = [sys.executable, "-W", "ignore", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=timeout)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def start_fresh(*words, **environ) -> subprocess.Popen:
    """Starts Python with `words`, in a session of its own, with this checkout on its path."""
    return subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **environ}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
