"""Makes a virtual environment with this project in it. Standard library only; a second call does nothing.

    python3 scripts/setup_env.py --venv .venv --extras cpu,test,benchmark

torch comes first, pinned by constraints.txt: the CPU build, or on a machine with an NVIDIA GPU the default build. pip's own
settings apply; TORCH_INDEX_URL names another index for torch. A line a step is printed, the rest goes to VENV.log.
"""

import argparse
import hashlib
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# built from source without CUDA extensions, against the torch that is there; only these tests need them
SOURCES = {"mamba-ssm": "tests/integrations/test_mamba_ssm.py", "lrnnx": "tests/integrations/test_lrnnx.py"}
APT = "DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300"


def pinned(package: str) -> str:
    return re.search(rf"^{package}==[^\s;]+", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group()


def has_gpu() -> bool:
    return "GPU 0" in subprocess.getoutput("timeout 30 nvidia-smi -L")


def torch_index(gpu: bool) -> list:
    """pip's arguments for torch: on an extra index a local version (2.13.0+cpu) goes before 2.13.0."""
    index = os.environ.get("TORCH_INDEX_URL") or ("" if gpu or sys.platform == "darwin" else CPU_INDEX)
    try:
        if index == CPU_INDEX:
            urllib.request.urlopen(index + "/torch/", timeout=5).close()
    except OSError as error:  # an HTTP error is an answer; certificates are left to pip
        if not (hasattr(error, "code") or isinstance(getattr(error, "reason", None), ssl.SSLError)):
            print(f"[setup] {index} does not answer; torch comes from pip's indexes (PyPI's brings CUDA: gigabytes)")
            return []
    return ["--extra-index-url", index] if index else []


def set_up(venv: Path, extras: set) -> None:
    """Makes or completes the environment; a stamp in it says what it was made of."""
    inputs = (ROOT / name for name in ("pyproject.toml", "constraints.txt", "scripts/setup_env.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()
    python, stamp, log = venv / "bin" / "python", venv / "setup-stamp.txt", venv.with_name(venv.name + ".log")
    found = stamp.read_text().split() if stamp.exists() and python.exists() else []
    if found[:1] == [digest] and extras <= {*found}:
        return
    version, extras, gpu = sys.version.split()[0], extras.union(found[1:]), has_gpu()
    if sys.version_info < (3, 10) or not (find_spec("venv") and find_spec("ensurepip")):
        needed = "3.10 or newer with its venv module (on Debian and Ubuntu: apt install python3-venv)"
        sys.exit(f"[setup] error: Python {version} will not do: {needed}, as in make PYTHON=python3.12 ...")

    def step(what: str, *command, tests: str = "") -> None:
        """Runs a command into the log. If it fails its end is shown, and the script stops, or only `tests` will be skipped."""
        print(f"[setup] {what} ...", end=" ", flush=True)
        start, words = time.time(), [*map(str, command)]
        with log.open("a") as file:
            print("\n$", *words, file=file, flush=True)
            code = subprocess.call(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        print("failed" if code else f"{time.time() - start:.0f} s", flush=True)
        end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        if code and (not tests or os.environ.get("CI")):
            sys.exit(f"{end}\n[setup] error: {what}: exit code {code}; {log} says why. Mend it and run this again.")
        if code:
            print(f"{end}\n[setup] {what} could not be installed, {log} says why: {tests} WILL BE SKIPPED")

    stamp.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    print(f"[setup] {venv} is being filled; what pip says goes to {log}")
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    package = f"fla_bdlru[{','.join(sorted(extras | {'cuda'} if gpu else extras))}]"
    if not python.exists() or subprocess.call([*pip, "--version"], stdout=subprocess.DEVNULL):  # cut short, perhaps
        others = {path.name for path in venv.glob("*")} - {"bin", "include", "lib", "lib64"}
        if others and not (venv / "pyvenv.cfg").exists():
            sys.exit(f"[setup] error: {venv} is no environment: {min(others)!r} in it would be deleted. Name another.")
        step(f"environment of Python {version}", sys.executable, "-m", "venv", "--clear", venv)
    step(pinned("torch"), *pip, "install", *torch_index(gpu), pinned("torch"))
    step(package, *pip, "install", "-c", ROOT / "constraints.txt", "-e", package.replace("fla_bdlru", str(ROOT)))
    for name, tests in SOURCES.items() if "test" in extras else ():
        build = ("env", "MAMBA_FORCE_BUILD=TRUE", "MAMBA_SKIP_CUDA_BUILD=TRUE", *pip, "install", "--no-build-isolation")
        step(f"{name}, its Python part", *build, "--no-deps", pinned(name), tests=tests)
    if "test" in extras and not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        command = f"{APT} update && {APT} install -y --no-install-recommends chromium fonts-liberation"
        step("Chromium", "sh", "-c", command, tests="tests in a browser")
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
