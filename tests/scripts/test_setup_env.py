"""The set-up script: which torch, when it does nothing, and what it says when it cannot go on."""

import importlib.util
import io
import shlex
import shutil
import ssl
import subprocess
import sys
import urllib.error
from pathlib import Path
from unittest.mock import Mock

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setup_env(monkeypatch):
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "scripts" / "setup_env.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("CI", "TORCH_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    return module


@pytest.fixture
def commands(setup_env, monkeypatch):
    """What would be run on a machine without a GPU or a browser; `python -m venv` makes its interpreter."""
    ran = []

    def record(command, **_):
        if "--version" in command:
            return 0
        ran.append(command)
        if "venv" in command:
            (Path(command[-1]) / "bin").mkdir(parents=True, exist_ok=True)
            (Path(command[-1]) / "bin" / "python").touch()
        return 0

    monkeypatch.setattr(setup_env.subprocess, "call", record)
    monkeypatch.setattr(setup_env, "has_gpu", lambda: False)
    monkeypatch.setattr(setup_env.urllib.request, "urlopen", lambda *_, **__: io.BytesIO())
    monkeypatch.setattr(setup_env.shutil, "which", lambda name: None)
    return ran


@pytest.fixture
def opens(setup_env, monkeypatch):
    """Says what opening an index does."""

    def put(raises=None):
        urlopen = Mock(side_effect=raises, return_value=io.BytesIO())
        monkeypatch.setattr(setup_env.urllib.request, "urlopen", urlopen)
        return urlopen

    return put


def test_torch_is_pinned_and_fits_the_machine(setup_env, monkeypatch, opens):
    assert setup_env.pinned("torch").startswith("torch==")
    monkeypatch.setattr(setup_env.sys, "platform", "linux")
    asked = opens()
    assert setup_env.torch_index(gpu=False) == ["--extra-index-url", setup_env.CPU_INDEX]
    asked.assert_called_once()
    asked = opens()
    assert setup_env.torch_index(gpu=True) == []
    monkeypatch.setattr(setup_env.sys, "platform", "darwin")
    assert setup_env.torch_index(gpu=False) == []
    monkeypatch.setenv("TORCH_INDEX_URL", "https://x")
    assert setup_env.torch_index(gpu=True) == ["--extra-index-url", "https://x"]
    asked.assert_not_called()


@pytest.mark.parametrize(
    "error, answers",
    [
        (urllib.error.URLError("timed out"), False),
        (ConnectionRefusedError(), False),
        (urllib.error.HTTPError("https://x", 403, "no", {}, None), True),
        (urllib.error.URLError(ssl.SSLError("certificate")), True),
    ],
)
def test_an_index_that_answers_with_an_error_answers(setup_env, monkeypatch, opens, capsys, error, answers):
    monkeypatch.setattr(setup_env.sys, "platform", "linux")
    opens(error)
    assert setup_env.torch_index(gpu=False) == (["--extra-index-url", setup_env.CPU_INDEX] if answers else [])
    assert ("does not answer; torch comes from pip's indexes" in capsys.readouterr().out) != answers


@pytest.mark.parametrize("listed, found", [("GPU 0: NVIDIA H100", True), ("sh: nvidia-smi: not found", False)])
def test_a_gpu_is_one_that_the_driver_lists(setup_env, monkeypatch, listed, found):
    monkeypatch.setattr(setup_env.subprocess, "getoutput", lambda command: listed)
    assert setup_env.has_gpu() is found


def test_a_set_up_is_made_once_and_completed(setup_env, commands, tmp_path):
    venv = tmp_path / "venv"
    setup_env.set_up(venv, {"cpu"})
    made, torch, package = commands
    assert made[1:] == ["-m", "venv", "--clear", str(venv)]
    assert torch[-3:] == ["--extra-index-url", setup_env.CPU_INDEX, setup_env.pinned("torch")]
    assert package[-4:] == ["-c", str(ROOT / "constraints.txt"), "-e", f"{ROOT}[cpu]"]
    log = (tmp_path / "venv.log").read_text()
    assert all(f"$ {' '.join(command)}" in log for command in commands)

    commands.clear()
    setup_env.set_up(venv, {"cpu"})
    assert not commands
    setup_env.set_up(venv, {"benchmark"})
    assert commands[-1][-1] == f"{ROOT}[benchmark,cpu]"
    commands.clear()
    setup_env.set_up(venv, {"cpu", "benchmark"})
    assert not commands


@pytest.mark.parametrize("lost", ["bin/python", "setup-stamp.txt"])
def test_a_lost_or_interrupted_environment_is_made_good(setup_env, commands, tmp_path, lost):
    setup_env.set_up(tmp_path / "venv", {"cpu"})
    commands.clear()
    (tmp_path / "venv" / lost).unlink()
    setup_env.set_up(tmp_path / "venv", {"cpu"})
    assert ("venv" in commands[0]) == (lost == "bin/python")
    assert commands[-1][-1] == f"{ROOT}[cpu]"


def test_a_folder_of_other_things_is_left_alone(setup_env, commands, tmp_path):
    """`venv --clear` deletes whatever is there."""
    (tmp_path / "envs" / "bin").mkdir(parents=True)
    notes = tmp_path / "envs" / "notes.txt"
    notes.touch()
    with pytest.raises(SystemExit, match=r"envs is no environment: 'notes\.txt' in it would be deleted"):
        setup_env.set_up(tmp_path / "envs", {"cpu"})
    assert not commands
    assert notes.exists()
    notes.rename(notes.with_name("pyvenv.cfg"))  # an environment that was cut short is made anew
    setup_env.set_up(tmp_path / "envs", {"cpu"})
    assert commands[0][-2:] == ["--clear", str(tmp_path / "envs")]


def test_other_pins_mean_a_new_set_up(setup_env, commands, tmp_path, monkeypatch):
    for name in ("pyproject.toml", "constraints.txt", "scripts/setup_env.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(setup_env, "ROOT", tmp_path)
    setup_env.set_up(tmp_path / "venv", {"cpu"})
    commands.clear()
    (tmp_path / "constraints.txt").write_text("torch==2.7.1\n")
    setup_env.set_up(tmp_path / "venv", {"cpu"})
    assert commands[0][-1] == "torch==2.7.1"


def test_a_gpu_brings_the_cuda_extra(setup_env, commands, tmp_path, monkeypatch):
    monkeypatch.setattr(setup_env, "has_gpu", lambda: True)
    setup_env.set_up(tmp_path / "venv", {"cpu"})
    assert [command[-1] for command in commands[-2:]] == [setup_env.pinned("torch"), f"{ROOT}[cpu,cuda]"]


def test_tests_bring_python_parts_and_a_browser(setup_env, commands, tmp_path, monkeypatch):
    setup_env.set_up(tmp_path / "venv", {"cpu", "test"})
    mamba, lrnnx, browser = commands[-3:]
    assert mamba[-1] == setup_env.pinned("mamba-ssm")
    assert lrnnx[-1] == setup_env.pinned("lrnnx")
    assert {"--no-build-isolation", "--no-deps", "MAMBA_SKIP_CUDA_BUILD=TRUE"} <= set(mamba) & set(lrnnx)
    assert "install -y --no-install-recommends chromium" in browser[-1]
    monkeypatch.setattr(setup_env.shutil, "which", lambda name: "/usr/bin/chromium")
    setup_env.set_up(tmp_path / "other", {"cpu", "test"})
    assert commands[-1][-1] == lrnnx[-1]


def test_a_failed_step_shows_the_end_of_the_log_and_leaves_no_stamp(setup_env, commands, tmp_path, monkeypatch, capsys):
    def fail(command, stdout, **_):
        print(*range(100), "no space left", sep="\n", file=stdout)
        return 7

    monkeypatch.setattr(setup_env.subprocess, "call", fail)
    with pytest.raises(SystemExit) as stopped:
        setup_env.set_up(tmp_path / "venv", {"cpu"})
    end = str(stopped.value).splitlines()
    assert end[-2] == "no space left"
    assert len(end) == 21
    assert "environment of Python" in end[-1]
    assert f"exit code 7; {tmp_path}/venv.log says why" in end[-1]
    assert "no space" not in capsys.readouterr().out
    assert not (tmp_path / "venv" / "setup-stamp.txt").exists()


def test_what_only_tests_need_is_missed_loudly_and_fails_in_ci(setup_env, commands, tmp_path, monkeypatch, capsys):
    record = setup_env.subprocess.call

    def fail(command, **options):
        return int("--no-build-isolation" in command or "sh" in command) or record(command, **options)

    monkeypatch.setattr(setup_env.subprocess, "call", fail)
    setup_env.set_up(tmp_path / "venv", {"test"})
    said = capsys.readouterr().out
    for what, tests in (
        ("mamba-ssm, its Python part", "tests/integrations/test_mamba_ssm.py"),
        ("lrnnx, its Python part", "tests/integrations/test_lrnnx.py"),
        ("Chromium", "tests in a browser"),
    ):
        assert f"{what} could not be installed, {tmp_path}/venv.log says why: {tests} WILL BE SKIPPED" in said
    monkeypatch.setenv("CI", "true")
    with pytest.raises(SystemExit, match="mamba-ssm, its Python part: exit code 1"):
        setup_env.set_up(tmp_path / "ci", {"test"})


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", ["clean", "lint", "compare"])
def test_an_environment_in_a_folder_with_a_space(target):
    command = ("make", "-n", target, "VENV=/tmp/my env", "PYTHON=python3")
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = [word for line in said.splitlines() for word in shlex.split(line) if "/tmp/my" in word or word.startswith("env")]
    assert words
    assert all(word.startswith("/tmp/my env") for word in words)


def test_old_python_and_missing_venv_are_explained(setup_env, commands, tmp_path, monkeypatch):
    with monkeypatch.context() as old:
        old.setattr(setup_env.sys, "version_info", (3, 9, 2))
        old.setattr(setup_env.sys, "version", "3.9.2 (main)")
        with pytest.raises(SystemExit, match=r"Python 3.9.2 will not do: 3.10 .*PYTHON=python3.12"):
            setup_env.set_up(tmp_path / "venv", {"cpu"})
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(SystemExit, match="apt install python3-venv"):
        setup_env.set_up(tmp_path / "venv", {"cpu"})
    assert not commands
