"""What is released: both archives are built, checked, and installed where nothing of this checkout is on the path."""

import compileall
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import fla_bdlru

ROOT = Path(__file__).resolve().parents[1]
NAME = f"fla_bdlru-{fla_bdlru.__version__}"
# neither files of this checkout that are no part of it, nor what others leave behind
LEFT_OUT = re.compile(r"\.(?!ci|pre-commit).*|results|build|dist|site|.*\.egg-info|.*\.log")

USED_AS_INSTALLED = """
import importlib.metadata, torch, fla_bdlru
from fla_bdlru import BDLRU, BDLRUConfig, BDLRUForCausalLM
BDLRU(16)(torch.randn(1, 5, 16))[0].sum().backward()
config = BDLRUConfig(hidden_size=16, num_hidden_layers=1, vocab_size=8)
BDLRUForCausalLM(config)(torch.zeros(1, 4, dtype=torch.long))
tops = {file.parts[0] for file in importlib.metadata.files("fla_bdlru")}
print(fla_bdlru.__file__, importlib.metadata.version("fla_bdlru"), *sorted(tops))
"""


def run(*command, cwd: Path) -> str:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environ, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The wheel and the source distribution, built by `python -m build`."""
    source, out = tmp_path_factory.mktemp("source") / "checkout", tmp_path_factory.mktemp("dist")

    def ignore(folder, names):
        return [name for name in names if name == "__pycache__" or (folder == str(ROOT) and LEFT_OUT.fullmatch(name))]

    shutil.copytree(ROOT, source, ignore=ignore)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source, cwd=out)
    return out / f"{NAME}-py3-none-any.whl", out / f"{NAME}.tar.gz"


@pytest.fixture
def environment(tmp_path):
    """An environment's interpreter, which finds this one's packages after its own; its installer needs no network."""
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    here = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    # a folder on the path, whose own .pth files (such as this checkout's) are not read
    Path(own, "packages.pth").write_text("\n".join(here))

    def install(archive):
        offline = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
        run(sys.executable, "-m", "pip", "--python", python, "install", *offline, archive, cwd=tmp_path)
        return python

    return install


def test_twine_accepts_the_archives(archives, tmp_path):
    run(sys.executable, "-m", "twine", "check", "--strict", *archives, cwd=tmp_path)


@pytest.mark.parametrize("index", [0, 1], ids=["wheel", "sdist"])
def test_an_archive_is_installed_elsewhere_and_used(archives, environment, tmp_path, index):
    python = environment(archives[index])
    file, version, *tops = run(python, "-W", "ignore", "-c", USED_AS_INSTALLED, cwd=tmp_path).splitlines()[-1].split()
    assert Path(file).is_relative_to(tmp_path)
    assert (version, tops) == (fla_bdlru.__version__, ["fla_bdlru", f"{NAME}.dist-info"])
    assert {path.name for path in Path(file).parent.glob("ops/*/*.md")} == {"README.md"}
    assert Path(file).with_name("py.typed").exists()


def test_the_source_distribution_runs_its_tests(archives, tmp_path):
    """All of them are found, so what they import and read is there; the quick ones pass."""
    shutil.unpack_archive(archives[1], tmp_path)
    pytest_command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    collected = run(*pytest_command, "--collect-only", cwd=tmp_path / NAME)
    assert int(re.search(r"(\d+) tests collected", collected)[1]) > 2000
    files = ("tests/ops/test_naive.py", "tests/test_package.py", "tests/docs/test_house.py")
    smoke = (*files, "-k", "naive and not gradcheck or public or citation or house")
    passed = int(re.search(r"(\d+) passed", run(*pytest_command, *smoke, cwd=tmp_path / NAME))[1])
    assert passed > 10


@pytest.mark.parametrize("kind", ["zip", "pyc"])
def test_the_package_runs_from_a_zip_and_without_its_sources(tmp_path, kind):
    folder = tmp_path / "lib"
    shutil.copytree(ROOT / "fla_bdlru", folder / "fla_bdlru", ignore=shutil.ignore_patterns("__pycache__"))
    if kind == "zip":
        path = Path(shutil.make_archive(str(tmp_path / "archive"), "zip", folder))
        shutil.rmtree(folder)
    else:
        path = folder
        compileall.compile_dir(folder, quiet=1, legacy=True)
        for source in folder.rglob("*.py"):
            source.unlink()
    code = (
        f"import sys; sys.path.insert(0, {str(path)!r}); import torch, fla_bdlru; from fla_bdlru.layers import HLRU; "
        "HLRU(16, order=1)(torch.randn(1, 3, 16)); assert fla_bdlru.BDLRUConfig; print(fla_bdlru.__file__)"
    )
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.startswith(str(path))
    assert "cannot be used" not in done.stderr
