"""What the import changes in other libraries: the record is whole, and it can be done without."""

import subprocess
import sys

import pytest
import torch
from fla.models import GLAConfig, GLAForCausalLM, TransformerConfig, TransformerForCausalLM
from fresh import ROOT, run_fresh

import fla_bdlru
from fla_bdlru import patches
from fla_bdlru.layers import BDLRU, HLRU

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "vocab_size": 50}


def run(code, **variables):
    return run_fresh("-c", code, env={"PATH": "", **variables})


def test_every_change_is_recorded():
    """Whatever attribute of FLA's and transformers' classes and modules differs after the import is in the record."""
    out = run(
        """
import importlib, sys
for name in ("fla.modules", "fla.ops", "fla.layers", "fla.models", "fla.backends"):
    importlib.import_module(name)
def state():
    found = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("fla", "transformers") and module is not None:
            for key, value in list(vars(module).items()):
                found[name, key] = id(value)
                if isinstance(value, type) and value.__module__ == name:
                    found |= {(name, f"{key}.{k}"): id(v) for k, v in vars(value).items()}
    return found
before = state()
import fla_bdlru
from fla_bdlru.patches import RECORD, resolve
after = state()
known = {id(resolve(entry.target)[2]) for entry in RECORD if ":" in entry.target}  # also under other names
changed = [key for key in before if key in after and before[key] != after[key]]
for module, key in changed:
    if after[module, key] not in known:
        print(module, key)
print("changed", len(changed))
"""
    )
    *missing, last = out.splitlines()
    assert int(last.split()[1]) > 50
    assert not missing, missing


def test_the_record_is_printed_and_says_why_without_a_warning_of_flas():
    command = [sys.executable, "-m", "fla_bdlru.patches"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=200)
    out = done.stdout
    assert "Triton is not supported" not in done.stderr
    assert out.splitlines()[:2] == ["| what | why |", "|---|---|"]
    assert "`fla.models.modeling_utils:FLAPreTrainedModel.post_init` | blocks get the mixers" in out
    assert all((entry.why and ":" in entry.target) or entry.target == "sys.meta_path" for entry in patches.RECORD)
    targets = [entry.target for entry in patches.RECORD]
    assert "fla.ops.gla.chunk:chunk_gla" in targets
    assert "transformers.configuration_utils:PreTrainedConfig.to_dict" in targets


def test_without_patches_a_config_with_mixer_is_refused_and_mixers_are_swapped_by_hand():
    out = run(
        """
import fla_bdlru, torch
from fla.models import GLAConfig, GLAForCausalLM
from fla_bdlru.patches import RECORD
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "vocab_size": 50}
print([entry.target for entry in RECORD])
try:
    GLAForCausalLM(GLAConfig(**sizes, mixer="bdlru"))
except ValueError as error:
    print(error)
GLAForCausalLM(GLAConfig(**sizes, mixer=["native", "native"]))
model = GLAForCausalLM(GLAConfig(**sizes))
print(fla_bdlru.swap_mixers(model, "hlru", {"order": 2}) is model, [type(b.attn).__name__ for b in model.model.layers])
fla_bdlru.fla_cpu.register()
print(model(torch.ones(1, 4, dtype=torch.long)).logits.isfinite().all().item())
""",
        FLA_BDLRU_PATCHES="0",
    )
    record, refusal, swapped, finite = out.splitlines()
    assert record == "['fla.models.modeling_utils:FLAPreTrainedModel.post_init']"
    assert refusal.startswith("mixer='bdlru' is refused, as FLA_BDLRU_PATCHES=0 leaves FLA as it is")
    assert swapped == "True ['HLRU', 'HLRU']"
    assert finite == "True"


@pytest.mark.parametrize("value, enabled", [("", True), ("1", True), ("0", False)])
def test_the_variable(monkeypatch, value, enabled):
    monkeypatch.setenv("FLA_BDLRU_PATCHES", value)
    assert patches.is_enabled() == enabled
    monkeypatch.setenv("FLA_BDLRU_PATCHES", "no")
    with pytest.raises(ValueError, match="FLA_BDLRU_PATCHES='no' is not known; expected 0 or 1"):
        patches.is_enabled()


def test_swapping_by_hand_keeps_the_rest_and_equals_building_with_the_field(tmp_path):
    model = TransformerForCausalLM(TransformerConfig(**SIZES))
    kept = {name: x.clone() for name, x in model.state_dict().items() if ".attn." not in name}
    model = fla_bdlru.swap_mixers(model, ["bdlru", "hlru"], {"bdlru": {"block_size": 4, "gate_bias": "memory"}, "hlru": {}})
    assert [type(block.attn) for block in model.model.layers] == [BDLRU, HLRU]
    for name, x in kept.items():
        assert torch.equal(model.state_dict()[name], x), name
    layer = model.model.layers[0].attn
    assert layer.v_proj.weight.std().item() == pytest.approx(model.config.initializer_range, rel=0.1)
    assert layer.a_proj.bias.abs().max() > 1  # the memory bias survives
    tokens = torch.randint(0, 50, (2, 9))
    logits = model.eval()(tokens).logits
    model.save_pretrained(tmp_path)
    again = TransformerForCausalLM.from_pretrained(tmp_path)
    assert [type(block.attn) for block in again.model.layers] == [BDLRU, HLRU]
    torch.testing.assert_close(again.eval()(tokens).logits, logits)
    packed = model(tokens[:1], position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]), use_cache=False).logits
    torch.testing.assert_close(packed[:, 4:], model(tokens[:1, 4:], use_cache=False).logits)


def test_swapping_by_hand_names_what_is_wrong():
    model = GLAForCausalLM(GLAConfig(**SIZES)).bfloat16()
    with pytest.raises(ValueError, match="mixer=None: the config of the model names none either"):
        fla_bdlru.swap_mixers(model)
    with pytest.raises(ValueError, match="mixer='bdlr' is not known; Did you mean 'bdlru'"):
        fla_bdlru.swap_mixers(model, "bdlr")
    with pytest.raises(ValueError, match="block_sizes=2 is not an argument of 'bdlru'"):
        fla_bdlru.swap_mixers(model, "bdlru", {"block_sizes": 2})
    with pytest.raises(ValueError, match="model must be a model of flash-linear-attention; got Linear"):
        fla_bdlru.swap_mixers(torch.nn.Linear(2, 2), "bdlru")
    assert getattr(model.config, "mixer", None) is None
    assert fla_bdlru.swap_mixers(model, "bdlru").model.layers[0].attn.v_proj.weight.dtype == torch.bfloat16
