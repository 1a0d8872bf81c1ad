"""The set-up script: which torch, when it does nothing, and what it says when it cannot go on."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "setup_env.py"


@pytest.fixture
def setup_env():
    spec = importlib.util.spec_from_file_location("setup_env", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_torch_is_pinned_and_fits_the_machine(setup_env):
    pin = setup_env.pinned("torch")
    assert pin.startswith("torch==")
    with pytest.raises(setup_env.SetupError, match="does not pin left-pad"):
        setup_env.pinned("left-pad")

    def choose(gpu=False, platform="linux", environ=(), answers=True):
        return setup_env.torch_arguments(gpu, platform, dict(environ), lambda url: answers)

    assert choose() == ["--extra-index-url", setup_env.CPU_INDEX, pin]
    assert choose(answers=False) == [pin]
    assert choose(gpu=True) == [pin]
    assert choose(platform="darwin") == [pin]
    assert choose(environ={"TORCH_INDEX_URL": "https://x"}.items()) == ["--extra-index-url", "https://x", pin]


def test_an_unreachable_index_is_found_out_quickly(setup_env, monkeypatch):
    assert not setup_env.reachable("https://no-such-host.invalid/whl")
    assert not setup_env.reachable("http://127.0.0.1:9/whl")


def test_a_complete_environment_is_left_alone(setup_env, tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("set-up was done again")

    python = setup_env.venv_python(tmp_path)
    python.parent.mkdir()
    python.write_text("")
    stamp = {"digest": setup_env.digest(), "extras": ["cpu", "test"]}
    (tmp_path / "setup-stamp.json").write_text(json.dumps(stamp))
    monkeypatch.setattr(setup_env.subprocess, "call", forbidden)
    setup_env.set_up(tmp_path, {"cpu"})
    with pytest.raises(AssertionError, match="again"):
        setup_env.set_up(tmp_path, {"cpu", "benchmark"})


def test_other_inputs_or_a_lost_environment_mean_a_new_set_up(setup_env, tmp_path, monkeypatch):
    commands = []

    def record(command, **_):
        commands.append(command)
        if "venv" in command:
            python = setup_env.venv_python(tmp_path)
            python.parent.mkdir(exist_ok=True)
            python.write_text("")
        return 0

    monkeypatch.setattr(setup_env.subprocess, "call", record)
    monkeypatch.setattr(setup_env, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(setup_env, "reachable", lambda url: True)
    setup_env.set_up(tmp_path, {"cpu", "test"})
    made, torch, package, _, mamba, _, lrnnx = commands
    assert "venv" in made
    assert torch[-1].startswith("torch==")
    assert package[-1].endswith("[cpu,test]")
    assert str(ROOT / "constraints.txt") in package
    assert mamba[-1] == setup_env.pinned("mamba-ssm")
    assert lrnnx[-1] == setup_env.pinned("lrnnx")
    assert {"--no-build-isolation", "--no-deps"} <= set(mamba) & set(lrnnx)

    commands.clear()
    setup_env.set_up(tmp_path, {"cpu"})
    assert not commands
    monkeypatch.setattr(setup_env, "digest", lambda: "other")
    setup_env.set_up(tmp_path, {"benchmark"})
    assert commands[2][-1].endswith("[benchmark,cpu,test]")
    assert [command[-1].split("==")[0] for command in commands[-3::2]] == ["mamba-ssm", "lrnnx"]
    setup_env.venv_python(tmp_path).unlink()
    commands.clear()
    setup_env.set_up(tmp_path, {"cpu"})
    assert "venv" in commands[0]


def test_a_gpu_brings_the_cuda_extra(setup_env, tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(setup_env.subprocess, "call", lambda command, **_: commands.append(command) or 0)
    monkeypatch.setattr(setup_env, "has_nvidia_gpu", lambda: True)
    tmp_path.joinpath("bin").mkdir()
    setup_env.set_up(tmp_path, {"cpu"})
    assert commands[-1][-1].endswith("[cpu,cuda]")


def test_a_failed_command_leaves_no_stamp_and_says_so(setup_env, tmp_path, monkeypatch):
    monkeypatch.setattr(setup_env.subprocess, "call", lambda *_, **__: 1)
    with pytest.raises(setup_env.SetupError, match="exit code 1"):
        setup_env.set_up(tmp_path, {"cpu"})
    assert not (tmp_path / "setup-stamp.json").exists()


def test_what_cannot_be_built_is_said_loudly_and_fails_in_ci(setup_env, monkeypatch, capfd):
    calls = []

    def fail(command, env, **_):
        calls.append((command, env))
        return int("--no-build-isolation" in command)

    monkeypatch.setattr(setup_env.subprocess, "call", fail)
    setup_env.install_python_parts(["pip", "install"], {})
    assert calls[1][1]["MAMBA_SKIP_CUDA_BUILD"] == "TRUE"
    said = capfd.readouterr().out
    for package, tests in (("mamba-ssm", "test_mamba_ssm.py"), ("lrnnx", "test_lrnnx.py")):
        assert f"{package} could not be installed: tests/integrations/{tests} WILL BE SKIPPED" in said
    with pytest.raises(setup_env.SetupError, match="exit code 1"):
        setup_env.install_python_parts(["pip", "install"], {"CI": "true"})


def test_old_python_and_missing_venv_are_explained(setup_env, monkeypatch):
    with pytest.raises(setup_env.SetupError, match=r"Python 3.9.2 is too old: 3.10 .*PYTHON=python3.12"):
        setup_env.check_python((3, 9, 2))
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(setup_env.SetupError, match="apt install python3-venv"):
        setup_env.check_python()
