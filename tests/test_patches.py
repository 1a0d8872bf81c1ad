"""What the import changes in other libraries: the record is whole, and it can be done without."""

import copy
import json
import re
import subprocess
import sys

import pytest
import torch
from fla.layers import GatedLinearAttention
from fla.models import GLAConfig, GLAForCausalLM, MambaConfig, MambaForCausalLM, TransformerConfig, TransformerForCausalLM
from fresh import ROOT, run_fresh
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import AutoConfig, AutoModelForCausalLM

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


def test_the_page_names_every_change():
    """By its attribute, or its module; kernels and parts that are called whole have a row each."""
    page = (ROOT / "docs" / "patches.md").read_text()
    rows = ("on CPU tensors", "a part with hooks, an adapter")
    for target, why in patches.RECORD:
        names = why.split("`")[1].split(".")[:1] if target == "sys.meta_path" else [re.split("[.:]", target)[-1]]
        assert why.startswith(rows) or re.search(rf"[`.]{names[0]}[`.]", page) or f"| {names[0]}" in page, (target, why)
    assert all(row in page for row in ("for CPU tensors", "a part with hooks, an adapter"))


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
own = fla_bdlru.BDLRUForCausalLM(fla_bdlru.BDLRUConfig(hidden_size=32, num_hidden_layers=2, vocab_size=50)).eval()
prompt, options = torch.randint(3, 50, (2, 7)), {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
given = {fla_bdlru.mixers.cache_name.CACHE: own(prompt[:, :4], use_cache=True)["past_key_values"]}
print(torch.equal(own.generate(prompt, **given, **options), own.generate(prompt, use_cache=False, **options)))
for name in ("past_key_values", "cache"):
    cache = own(prompt[:, :4], use_cache=True)["past_key_values"]
    print(torch.allclose(own(prompt[:, 4:], **{name: cache}).logits, own(prompt).logits[:, 4:], atol=1e-5))
""",
        FLA_BDLRU_PATCHES="0",
    )
    record, refusal, swapped, finite, *continued = out.splitlines()
    assert record == "['fla.models.modeling_utils:FLAPreTrainedModel.post_init']"
    assert refusal.startswith("mixer='bdlru' is refused, as FLA_BDLRU_PATCHES=0 leaves FLA as it is")
    assert swapped == "True ['HLRU', 'HLRU']"
    assert finite == "True"
    assert continued == ["True"] * 3  # native models know their cache by either name, patched or not


def test_without_patches_native_models_are_what_they_are_and_plain_fla_refuses_what_was_swapped(tmp_path):
    out = run(
        f"""
import fla_bdlru, torch
from fla.models import GLAConfig, GLAForCausalLM
from fla_bdlru import BDLRUConfig, BDLRUForCausalLM, swap_mixers
from safetensors.torch import load_file, save_file
fla_bdlru.fla_cpu.register()
sizes = {{"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50}}
own = BDLRUForCausalLM(BDLRUConfig(**sizes, initializer_range=0.3, gate_bias="memory")).eval()
row = torch.randint(0, 50, (1, 8))
packed = own(row, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]]), use_cache=False).logits
print(torch.allclose(packed[:, 3:], own(row[:, 3:], use_cache=False).logits, atol=1e-4))
hybrid = BDLRUForCausalLM(BDLRUConfig(**sizes, initializer_range=0.3, attn={{"layers": [1], "num_heads": 2}})).eval()
padded = hybrid(row, attention_mask=torch.tensor([[1] * 5 + [0] * 3])).logits[:, :5]
print(torch.allclose(padded, hybrid(row[:, :5], use_cache=False).logits, atol=1e-4))
folder = {str(tmp_path)!r}
own.save_pretrained(folder)
weights = load_file(folder + "/model.safetensors")
save_file({{k: v for k, v in weights.items() if "a_proj.bias" not in k}}, folder + "/model.safetensors", {{"format": "pt"}})
again = BDLRUForCausalLM.from_pretrained(folder).model.layers[0].attn.a_proj.bias
print(torch.equal(again, own.model.layers[0].attn.a_proj.bias), again._no_weight_decay)
swap_mixers(GLAForCausalLM(GLAConfig(**sizes, num_heads=2)), "bdlru").save_pretrained(folder + "/swapped")
""",
        FLA_BDLRU_PATCHES="0",
    )
    assert [line for line in out.splitlines() if not line.startswith("[")] == ["True", "True", "True True"]  # of DeepSpeed's
    assert json.loads((tmp_path / "swapped/config.json").read_text())["attn_implementation"] == "fla_bdlru"


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


def test_gates_of_a_layer_that_is_swapped_into_half_types_are_rounded_there():
    """Gates without a norm that were rounded up would let states grow."""
    model = GLAForCausalLM(GLAConfig(**SIZES)).bfloat16()
    arguments = {"gate_norm": "none", "gate_bias": "memory", "memory_range": (2.0, 1e5)}
    layer = fla_bdlru.swap_mixers(model, "bdlru", arguments).model.layers[1].attn
    assert layer.a_proj.bias.dtype == torch.bfloat16
    assert (layer.a_proj.bias.double().view(layer.gate_shape) <= layer.initial_gates()).all()


def test_swapping_by_hand_where_head_and_model_have_a_config_each():
    model = GLAForCausalLM(GLAConfig(**SIZES))
    model.model.config = copy.deepcopy(model.config)
    fla_bdlru.swap_mixers(model, "bdlru")
    assert [type(block.attn) for block in model.model.layers] == [BDLRU, BDLRU]
    assert model.config.mixer == model.model.config.mixer == "bdlru"


def test_swapping_by_hand_leaves_the_config_of_another_model_alone():
    config = GLAConfig(**SIZES)
    teacher, student = GLAForCausalLM(config), GLAForCausalLM(config)
    fla_bdlru.swap_mixers(student, "bdlru")
    assert teacher.config is config
    assert config.mixer is None
    holders = [module for module in student.modules() if hasattr(module, "config")]
    assert student.config.mixer == "bdlru"
    assert all(module.config is student.config for module in holders)


def test_what_is_given_is_not_what_is_kept():
    """A dictionary that is changed for the next model is not the last one's."""
    arguments, names = {"gate_norm": "softmax"}, ["bdlru", "native"]
    built = GLAForCausalLM(GLAConfig(**SIZES, mixer=names, mixer_config=arguments))
    swapped = fla_bdlru.swap_mixers(GLAForCausalLM(GLAConfig(**SIZES)), names, arguments)
    arguments["gate_norm"], names[1] = "tanh", "hlru"
    for model in (built, swapped):
        assert model.config.mixer_config == {"gate_norm": "softmax"}
        assert model.config.mixer == ["bdlru", "native"]


def test_a_swapped_layer_lies_where_its_block_does():
    """A model may be spread over devices; here all but one block are on none."""
    model = GLAForCausalLM(GLAConfig(**SIZES)).to("meta")
    model.model.layers[1].to_empty(device="cpu")
    fla_bdlru.swap_mixers(model, "bdlru")
    assert model.model.layers[1].attn.v_proj.weight.device.type == "cpu"


@pytest.mark.parametrize("wrap", [checkpoint_wrapper, lambda block: torch.compile(block, backend="eager")])
def test_a_swap_reaches_into_wrapped_blocks(wrap):
    model = GLAForCausalLM(GLAConfig(**SIZES))
    model.model.layers[0] = wrap(model.model.layers[0])
    fla_bdlru.swap_mixers(model, "bdlru")
    assert [type(module) for module in model.modules() if type(module) in (GatedLinearAttention, BDLRU)] == [BDLRU, BDLRU]
    tokens = torch.randint(0, 50, (2, 9))
    model.train()(tokens, labels=tokens).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


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


def test_a_swap_that_is_refused_leaves_the_model_as_it_was():
    model = GLAForCausalLM(GLAConfig(**SIZES))
    with pytest.raises(ValueError, match="block_size=5 does not divide the state"):
        fla_bdlru.swap_mixers(model, "bdlru", [{}, {"block_size": 5}])
    assert [type(block.attn).__name__ for block in model.model.layers] == ["GatedLinearAttention"] * 2
    assert not {"mixer", "mixer_config"} & set(vars(model.config))
    fla_bdlru.swap_mixers(model, ["bdlru", "native"])
    for mixer in (["native", "hlru"], "native"):
        with pytest.raises(ValueError, match="layer 0 holds BDLRU by an earlier swap, and its own mixer is gone"):
            fla_bdlru.swap_mixers(model, mixer)
    assert model.config.mixer == ["bdlru", "native"]
    assert [type(block.attn).__name__ for block in model.model.layers] == ["BDLRU", "GatedLinearAttention"]
    both_ways = fla_bdlru.BDLRUForMaskedLM(
        fla_bdlru.BDLRUConfig(hidden_size=32, num_hidden_layers=1, vocab_size=50, bidirectional=True)
    )
    with pytest.raises(ValueError, match="mixer='hlru' is not accepted with bidirectional=True"):
        fla_bdlru.swap_mixers(both_ways, "hlru")


def test_swapped_mixers_are_what_packing_asks_and_stay_in_eval_mode():
    sizes = {name: value for name, value in SIZES.items() if name != "num_heads"}
    model = MambaForCausalLM(MambaConfig(**sizes)).eval()
    tokens, cu_seqlens = torch.randint(0, 50, (1, 8)), torch.tensor([0, 3, 8])
    fla_bdlru.swap_mixers(model, ["native", "bdlru"])
    with pytest.raises(ValueError, match="Mamba of flash-linear-attention would run on over the boundaries"):
        model(tokens, cu_seqlens=cu_seqlens, use_cache=False)
    fla_bdlru.swap_mixers(model, "bdlru")
    assert not any(module.training for module in model.modules())
    packed = model(tokens, cu_seqlens=cu_seqlens, use_cache=False).logits
    torch.testing.assert_close(packed[:, 3:], model(tokens[:, 3:], use_cache=False).logits)
    fla_bdlru.swap_mixers(model, "mamba")
    with pytest.raises(ValueError, match="Mamba of flash-linear-attention would run on over the boundaries"):
        model(tokens, cu_seqlens=cu_seqlens, use_cache=False)


@pytest.mark.parametrize("auto", [False, True], ids=["class", "auto"])
def test_a_saved_model_takes_a_mixer_as_it_is_loaded(auto, tmp_path):
    GLAForCausalLM(GLAConfig(**SIZES)).save_pretrained(tmp_path)
    fields = {"mixer": "bdlru", "mixer_config": {"block_size": 2}}
    config = (AutoConfig if auto else GLAConfig).from_pretrained(tmp_path, **fields)
    assert (config.mixer, config.mixer_config) == ("bdlru", {"block_size": 2})
    load = (AutoModelForCausalLM if auto else GLAForCausalLM).from_pretrained
    model = load(tmp_path, **fields, ignore_mismatched_sizes=True)
    assert [block.attn.block_size for block in model.model.layers] == [2, 2]
    with pytest.raises(ValueError, match="mixer='bdlr' is not known"):
        load(tmp_path, mixer="bdlr")
    assert load(tmp_path).config.mixer is None
