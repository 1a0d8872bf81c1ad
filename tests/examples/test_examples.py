"""The recipes of examples/, run as a user would, on 2 gloo processes."""

import json
import os
import re
import runpy
from pathlib import Path

import pytest
import torch
from fresh import run_fresh
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from fla_bdlru import BDLRU, HLRU

EXAMPLES = Path(__file__).parents[2] / "examples"
ENV = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}


def run(module: str, *arguments) -> str:
    """What a launcher's run prints."""
    return run_fresh("-m", *module.split(), *arguments, env={**os.environ, **ENV})


def losses_in(printed: str) -> list[float]:
    return [float(x) for x in re.findall(r"loss'?:? '?(\d+\.\d+)", printed)]


def torchrun(ranks: int, *arguments) -> list[float]:
    return losses_in(
        run(f"torch.distributed.run --standalone --nproc-per-node {ranks}", EXAMPLES / "train_torchrun.py", *arguments)
    )


def test_torchrun(tmp_path):
    """A sequence on two ranks trains as on one, and its checkpoint becomes a model."""
    small = ("--steps", 4, "--seq-len", 64, "--hidden-size", 16)
    losses = torchrun(2, *small, "--context-parallel", 2, "--checkpoint", tmp_path / "dcp")
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(torchrun(1, *small), abs=1e-3)
    app = runpy.run_path(str(EXAMPLES / "convert_checkpoint.py"))["app"]
    arguments = ["dcp-to-hf", str(tmp_path / "dcp"), str(tmp_path / "dcp"), str(tmp_path / "hf")]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / "hf").model.layers[0].attn, BDLRU)


def test_accelerate(tmp_path):
    launcher = (
        "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    )
    small = ("--steps", 4, "--seq-len", 32, "--hidden-size", 16)
    printed = run(launcher, EXAMPLES / "train_accelerate.py", *small, "--output", tmp_path)
    losses = losses_in(printed)
    assert "trained by 2 processes" in printed
    assert losses[3] < losses[0]
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path).model.layers[0].attn, HLRU)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("flame/*.json")), ids=lambda path: path.stem)
def test_flame_configs(path):
    """What flame does with a config: import, `AutoConfig`, a model on no device, of the size that the name says."""
    runpy.run_path(str(EXAMPLES / "flame" / "register.py"))
    config = AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert any(isinstance(module, BDLRU) for module in model.modules())
    assert set(json.loads(path.read_text())) <= set(config.to_dict())
    assert 300e6 < sum(p.numel() for p in model.parameters()) < 450e6


def test_speculative_decoding(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / "speculative_decoding.py"))["main"](steps=2, hidden_size=16, new_tokens=20)
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["plain greedy", "assistant", "prompt lookup"]
    assert all("20 tokens in" in line and line.endswith("as plain greedy: True") for line in lines[1:])
