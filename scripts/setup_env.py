"""Makes a virtual environment with this project in it. Standard library only; a second call does nothing.

    python3 scripts/setup_env.py --venv .venv --extras cpu,test,benchmark

torch comes first, pinned by constraints.txt: the CPU build, or on a machine with an NVIDIA GPU the default build.
pip's own configuration and environment variables apply; TORCH_INDEX_URL names another index for torch.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 10)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_SECONDS = 5
INPUTS = ("pyproject.toml", "constraints.txt", "scripts/setup_env.py")


class SetupError(Exception):
    """Something the user has to do; the message says what."""


def check_python(version=sys.version_info) -> None:
    """Raises `SetupError` unless this Python can make the environment."""
    if tuple(version[:2]) < OLDEST:
        found, oldest = ".".join(map(str, version[:3])), ".".join(map(str, OLDEST))
        raise SetupError(
            f"Python {found} is too old: {oldest} or newer is needed. Name another one: make PYTHON=python3.12 ..."
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise SetupError(
            "Python's venv module is missing. On Debian and Ubuntu: apt install python3-venv; then run this again."
        ) from None


def has_nvidia_gpu() -> bool:
    """Whether an NVIDIA driver answers."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        done = subprocess.run([program, "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and b"GPU" in done.stdout


def pinned(package: str) -> str:
    """The requirement on a package in constraints.txt."""
    match = re.search(rf"^{package}==[^\s;]+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if match is None:
        raise SetupError(f"constraints.txt does not pin {package}; add a line such as {package}==1.0.")
    return match.group()


def reachable(url: str) -> bool:
    """Whether the host answers at all within a few seconds; certificates are left to pip, which has its own settings."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False


def torch_arguments(gpu: bool, platform: str, environ, is_reachable=reachable) -> list:
    r"""What `pip install` is given for torch.

    Args:
        gpu (bool):
            Whether there is an NVIDIA GPU.
        platform (str):
            As `sys.platform`.
        environ (Mapping):
            Environment variables.
        is_reachable (Callable):
            Tells whether an index answers.

    Returns:
        list:
            Arguments. A local version (2.13.0+cpu) goes before 2.13.0, so an extra index with CPU builds wins.
    """
    index = environ.get("TORCH_INDEX_URL")
    if index:
        return ["--extra-index-url", index, pinned("torch")]
    if gpu or platform == "darwin":  # the default builds are the right ones
        return [pinned("torch")]
    if is_reachable(CPU_INDEX + "/torch/"):
        return ["--extra-index-url", CPU_INDEX, pinned("torch")]
    say(f"{CPU_INDEX} does not answer; torch comes from pip's usual indexes (PyPI's Linux build brings CUDA: gigabytes).")
    return [pinned("torch")]


def digest() -> str:
    """Changes when the environment has to be made anew."""
    whole = hashlib.sha256()
    for name in INPUTS:
        whole.update((ROOT / name).read_bytes())
    return whole.hexdigest()


def venv_python(venv: Path) -> Path:
    """The environment's interpreter."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def has_pip(python: Path) -> bool:
    """Whether this interpreter is there and can install; not so in an environment that was cut short."""
    return python.exists() and subprocess.call([str(python), "-m", "pip", "--version"], stdout=subprocess.DEVNULL) == 0


def read_stamp(venv: Path) -> dict:
    """What the last complete set-up left; empty if there was none, or if the environment is gone."""
    try:
        if venv_python(venv).exists():
            return json.loads((venv / "setup-stamp.json").read_text())
    except (OSError, ValueError):
        pass
    return {}


def say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


def run(*command, **variables) -> None:
    words = [str(word) for word in command]
    say("$ " + " ".join([*(f"{name}={value}" for name, value in variables.items()), *words]))
    code = subprocess.call(words, cwd=str(ROOT), env={**os.environ, **variables})
    if code:
        raise SetupError(f"that command failed (exit code {code}); its output above says why. Mend it and run this again.")


# packages whose CUDA extensions are left out, and the tests of ours that run with their Python part
PYTHON_PARTS = {
    "mamba-ssm": ("tests/integrations/test_mamba_ssm.py", {"MAMBA_FORCE_BUILD": "TRUE", "MAMBA_SKIP_CUDA_BUILD": "TRUE"}),
    "lrnnx": ("tests/integrations/test_lrnnx.py", {}),
}


def install_python_parts(install: list, environ) -> None:
    """Installs the Python parts of packages that are built from source, for the tests of our integrations.

    Sources build against the torch that is there, so not in isolation, and without their other requirements. If that fails
    the tests are skipped; in continuous integration it is an error.
    """
    for package, (tests, variables) in PYTHON_PARTS.items():
        try:
            run(*install, "-c", ROOT / "constraints.txt", "setuptools", "packaging")
            run(*install, "--no-build-isolation", "--no-deps", pinned(package), **variables)
        except SetupError as error:
            if environ.get("CI"):
                raise
            say("*" * 100)
            say(f"{package} could not be installed: {tests} WILL BE SKIPPED. {error}")
            say("*" * 100)


def set_up(venv: Path, extras: set) -> None:
    r"""Makes or completes the environment.

    Args:
        venv (Path):
            Where it is.
        extras (set):
            Extras of the package that have to be in it.

    Raises:
        SetupError: with what the user has to do.
    """
    stamp, wanted = read_stamp(venv), digest()
    if stamp.get("digest") == wanted and extras <= set(stamp.get("extras", [])):
        return
    check_python()
    extras = extras | set(stamp.get("extras", []))
    if stamp:
        (venv / "setup-stamp.json").unlink()
    python = venv_python(venv)
    if not has_pip(python):
        say(f"making {venv} with Python {sys.version.split()[0]}")
        run(sys.executable, "-m", "venv", "--clear", venv)
    gpu = has_nvidia_gpu()
    install = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    run(*install, *torch_arguments(gpu, sys.platform, os.environ))
    names = sorted(extras | {"cuda"} if gpu else extras)
    run(*install, "-c", ROOT / "constraints.txt", "-e", f"{ROOT}[{','.join(names)}]")
    if "test" in extras:
        install_python_parts(install, os.environ)
    (venv / "setup-stamp.json").write_text(json.dumps({"digest": wanted, "extras": sorted(extras)}))
    say(f"{venv} is ready")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="the environment's folder (default: .venv)")
    parser.add_argument("--extras", default="cpu", help="extras of the package, comma list (default: cpu)")
    options = parser.parse_args()
    try:
        set_up(options.venv.absolute(), {name.strip() for name in options.extras.split(",") if name.strip()})
    except SetupError as error:
        print(f"[setup] error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("[setup] stopped; run it again to go on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
