"""Makes a virtual environment with this project in it. Standard library only; a second call does nothing.

    python3 scripts/setup_env.py --venv .venv --extras cpu,test,benchmark

torch comes first, pinned by constraints.txt: the CPU build, or on a machine with an NVIDIA GPU the default build. pip's own
settings apply; TORCH_INDEX_URL names another index for torch. A line a step is printed, the rest goes to VENV.log.
"""

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# built from source without CUDA extensions, against the torch that is there; only these tests need them
SOURCES = {"mamba-ssm": "tests/integrations/test_mamba_ssm.py", "lrnnx": "tests/integrations/test_lrnnx.py"}
SOURCE_VARIABLES = {"MAMBA_FORCE_BUILD": "TRUE", "MAMBA_SKIP_CUDA_BUILD": "TRUE"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
APT = "DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300"


def pinned(package: str) -> str:
    """The requirement on a package in constraints.txt."""
    return re.search(rf"^{package}==[^\s;]+", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group()


def has_gpu() -> bool:
    return "GPU 0" in subprocess.getoutput("timeout 30 nvidia-smi -L")


def answers(url: str) -> bool:
    """Whether a host answers within seconds. An HTTP error is an answer; certificates are left to pip."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError as error:
        return hasattr(error, "code") or isinstance(getattr(error, "reason", None), ssl.SSLError)
    return True


def torch_index(gpu: bool) -> list:
    """pip's arguments for torch: on an extra index a local version (2.13.0+cpu) goes before 2.13.0."""
    index = os.environ.get("TORCH_INDEX_URL")
    if not index and not gpu and sys.platform != "darwin":
        index = answers(CPU_INDEX + "/torch/") and CPU_INDEX
        if not index:
            print(f"[setup] {CPU_INDEX} does not answer; torch comes from pip's indexes (PyPI's brings CUDA: gigabytes)")
    return ["--extra-index-url", index] if index else []


def step(log: Path, what: str, *command, tests: str = "", **variables) -> None:
    """Runs a command into `log`. If it fails its end is shown, and the script stops, or only `tests` will be skipped."""
    print(f"[setup] {what} ...", end=" ", flush=True)
    start, words = time.time(), [*map(str, command)]
    with log.open("a") as file:
        print("\n$", *words, file=file, flush=True)
        environ = {**os.environ, **variables}
        code = subprocess.call(words, cwd=str(ROOT), env=environ, stdout=file, stderr=subprocess.STDOUT)
    print("failed" if code else f"{time.time() - start:.0f} s", flush=True)
    if code:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        if not tests or os.environ.get("CI"):
            sys.exit(f"{end}\n[setup] error: {what}: exit code {code}; {log} says why. Mend it and run this again.")
        print(f"{end}\n[setup] {what} could not be installed, {log} says why: {tests} WILL BE SKIPPED")


def set_up(venv: Path, extras: set) -> None:
    """Makes or completes the environment; a stamp in it says what it was made of."""
    inputs = (ROOT / name for name in ("pyproject.toml", "constraints.txt", "scripts/setup_env.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()
    python, stamp, log = venv / "bin" / "python", venv / "setup-stamp.txt", venv.with_name(venv.name + ".log")
    found = stamp.read_text().split() if stamp.exists() and python.exists() else []
    if found[:1] == [digest] and extras <= set(found[1:]):
        return
    if sys.version_info < (3, 10):  # noqa: UP036
        version = sys.version.split()[0]
        sys.exit(f"[setup] error: Python {version} is too old: 3.10 or newer is needed, as in make PYTHON=python3.12 ...")
    if not all(map(importlib.util.find_spec, ("venv", "ensurepip"))):
        sys.exit("[setup] error: Python's venv module is missing. On Debian and Ubuntu: apt install python3-venv")
    extras, gpu = extras | set(found[1:]), has_gpu()
    names = ",".join(sorted(extras | {"cuda"} if gpu else extras))
    stamp.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    print(f"[setup] {venv} is being filled; what pip says goes to {log}")
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    if not python.exists() or subprocess.call([*pip, "--version"], stdout=subprocess.DEVNULL):  # cut short, perhaps
        step(log, f"environment of Python {sys.version.split()[0]}", sys.executable, "-m", "venv", "--clear", venv)
    step(log, pinned("torch"), *pip, "install", *torch_index(gpu), pinned("torch"))
    step(log, f"fla_bdlru[{names}]", *pip, "install", "-c", ROOT / "constraints.txt", "-e", f"{ROOT}[{names}]")
    if "test" in extras:
        for package, tests in SOURCES.items():
            build = (*pip, "install", "--no-build-isolation", "--no-deps", pinned(package))
            step(log, f"{package}, its Python part", *build, tests=tests, **SOURCE_VARIABLES)
        if not any(map(shutil.which, BROWSERS)):
            command = f"{APT} update && {APT} install -y --no-install-recommends chromium fonts-liberation"
            step(log, "Chromium", "sh", "-c", command, tests="tests in a browser")
    stamp.write_text(" ".join([digest, *sorted(extras)]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="the environment's folder (default: .venv)")
    parser.add_argument("--extras", default="cpu", help="extras of the package, comma list (default: cpu)")
    options = parser.parse_args()
    try:
        set_up(options.venv.absolute(), set(options.extras.split(",")))
    except KeyboardInterrupt:
        sys.exit("\n[setup] stopped; run it again to go on")
