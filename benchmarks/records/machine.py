"""Where a result was made: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("torch", "triton", "flash-linear-attention", "transformers", "accelerate", "numba", "fla-bdlru")


@cache
def versions() -> str:
    """Python and the packages that results may depend on."""
    found = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: those of its affinity, and no more than a container's quota of their time."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        share, period = quota.read_text().split()
        return count if share == "max" else max(1, min(count, int(share) // int(period)))
    except (OSError, ValueError):
        return count


def choose_device(name: str, elsewhere: bool = False) -> str:
    """`cpu` or `cuda` for `auto`, `cpu` or `cuda`; ValueError, if it is another or not there (unless runs are `elsewhere`)."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={name!r} is not known; expected one of auto, cpu, cuda.")
    found = torch.cuda.is_available()
    if name == "cuda" and not found and not elsewhere:
        raise ValueError("device='cuda' is not there: torch sees no GPU; expected 'auto' or 'cpu'.")
    return ("cuda" if found else "cpu") if name == "auto" else name


@cache
def commit() -> str:
    """The commit of this checkout, marked if files differ from it; empty outside git."""

    def git(*words: str) -> str:
        # `status` locks the index to refresh it: that stops who commits meanwhile, and the lock stays where git is killed
        command = ["git", "--no-optional-locks", "-C", str(Path(__file__).resolve().parents[2]), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


@cache
def device_name(device: str) -> str:
    """What the machine calls its processor or GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return f"cpu: {model}"


def now() -> str:
    """The time, to the second, as rows have it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def provenance(device: str) -> dict[str, str | int]:
    """What a row says of where, by what and when it was made."""
    made = {"device": device_name(device), "threads": torch.get_num_threads(), "versions": versions()}
    return {**made, "commit": commit(), "finished": now()}
