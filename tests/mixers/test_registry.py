"""The registry, and what `mixer=` and `mixer_config=` accept; tests/models walks through FLA's models."""

import copy
import re

import fla.layers
import numpy as np
import pytest
import torch
from fla.models import (
    GatedDeltaNetConfig,
    GatedDeltaNetForCausalLM,
    GLAConfig,
    GLAForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RWKV7Config,
    RWKV7ForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
)
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import fla_bdlru
from fla_bdlru.layers import BDLRU, HLRU, LSTM
from fla_bdlru.layers.measure import count_parameters, measure_state_size
from fla_bdlru.mixers import registry

SIZES = {"hidden_size": 32, "num_heads": 4, "vocab_size": 40, "num_hidden_layers": 3, "intermediate_size": 64}


def build(**kwargs):
    return TransformerForCausalLM(TransformerConfig(**{**SIZES, **kwargs}))


def mixers_of(model):
    return [block.attn for block in model.model.layers]


@pytest.fixture
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_MIXERS", dict(registry._MIXERS))


def test_one_name_for_all_layers():
    layers = mixers_of(build(mixer="bdlru", mixer_config={"block_size": 2}))
    assert [(type(layer), layer.block_size, layer.layer_idx) for layer in layers] == [(BDLRU, 2, i) for i in range(3)]


def test_one_name_a_layer():
    model = build(mixer=["bdlru", "native", "lstm"], mixer_config={"bdlru": {"block_size": 2}, "lstm": {"num_channels": 5}})
    first, second, third = mixers_of(model)
    assert isinstance(first, BDLRU)
    assert first.block_size == 2
    assert type(second).__name__ == "Attention"
    assert isinstance(third, LSTM)
    assert third.num_channels == 5


def test_arguments_by_layer_and_for_the_only_name():
    by_layer = build(mixer=["bdlru", "hlru", "bdlru"], mixer_config=[{"block_size": 2}, None, {"block_size": 8}])
    assert [getattr(layer, "block_size", layer) for layer in mixers_of(by_layer)][::2] == [2, 8]
    assert isinstance(mixers_of(by_layer)[1], HLRU)
    only = build(mixer=["native", "bdlru", "native"], mixer_config={"block_size": 2})
    assert mixers_of(only)[1].block_size == 2


def test_a_name_without_arguments_may_stand_in_their_table():
    """As YAML reads `hlru:` with nothing behind it."""
    for empty in (None, {}):
        first, second, _ = mixers_of(build(mixer=["bdlru", "hlru", "native"], mixer_config={"bdlru": empty, "hlru": empty}))
        assert (first.block_size, second.order) == (4, 4)


def test_attention_layers_of_the_config_stay():
    config = GatedDeltaNetConfig(**{**SIZES, "num_heads": 2}, head_dim=8, attn={"layers": [1], "num_heads": 4}, mixer="bdlru")
    assert [type(layer).__name__ for layer in mixers_of(GatedDeltaNetForCausalLM(config))] == ["BDLRU", "Attention", "BDLRU"]


@pytest.mark.parametrize("name", ["attn", "delta_net", "gated_deltanet", "gla", "hgrn", "lstm", "mamba", "mamba2"])
def test_fla_layers_by_name_train_in_another_model(name):
    arguments = {
        "attn": {"num_heads": 4}, "delta_net": {"num_heads": 2}, "gated_deltanet": {"num_heads": 2, "head_dim": 8},
        "gla": {"num_heads": 2}, "mamba": {"state_size": 4}, "mamba2": {"head_dim": 16, "state_size": 8},
    }.get(name, {})  # fmt: skip
    model = build(mixer=name, mixer_config=arguments, num_hidden_layers=1)
    x = torch.randint(0, 40, (2, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loss = model(x, labels=x).loss
    loss.backward()
    optimizer.step()
    assert model(x, labels=x).loss < loss


def test_fields_survive_save_and_auto_load(tmp_path):
    model = build(
        mixer=["bdlru", "native", "hlru"], mixer_config={"bdlru": {"gate_bias": "memory"}, "hlru": {"order": 2}}
    ).eval()
    # trained away from the initial bias, so that drawing it again on loading would show
    nn.init.normal_(model.model.layers[0].attn.a_proj.bias)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.mixer == ["bdlru", "native", "hlru"]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values()))
    x = torch.randint(0, 40, (2, 8))
    with torch.no_grad():
        assert torch.equal(model(x).logits, loaded(x).logits)


def test_numbers_of_numpys_are_saved(tmp_path):
    """Built and trained with them, a model would not be saved at the end."""
    model = build(mixer="bdlru", mixer_config={"block_size": np.int64(2), "expand": np.float32(0.5)})
    model.save_pretrained(tmp_path / "swapped")
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "swapped").config
    assert config.mixer_config == {"block_size": 2, "expand": 0.5}
    config = fla_bdlru.HLRUConfig(order=np.int64(3), expand=np.float32(0.5), memory_range=(np.float64(2), 8))
    config.save_pretrained(tmp_path / "native")
    loaded = fla_bdlru.HLRUConfig.from_pretrained(tmp_path / "native")
    assert (loaded.order, loaded.expand, loaded.memory_range) == (3, 0.5, [2.0, 8])


def test_memory_bias_survives_initialisation(tmp_path):
    expected = BDLRU(32, gate_bias="memory").a_proj.bias
    arguments = {"mixer": "bdlru", "mixer_config": {"gate_bias": "memory"}}
    model = build(**arguments)
    assert all(torch.equal(layer.a_proj.bias, expected) for layer in mixers_of(model))
    # projections are drawn as the model draws its own
    assert abs(mixers_of(model)[0].v_proj.weight.std().item() - 0.02) < 0.003
    # a checkpoint of another mixer: what it lacks is initialised, not left blank or zeroed
    build().save_pretrained(tmp_path)
    config = TransformerConfig.from_pretrained(tmp_path)
    config.mixer, config.mixer_config = arguments["mixer"], arguments["mixer_config"]
    loaded = TransformerForCausalLM.from_pretrained(tmp_path, config=config)
    assert all(torch.equal(layer.a_proj.bias, expected) for layer in mixers_of(loaded))
    # and a deep copy, a change of dtype or another round of initialisation do not lose it
    again = copy.deepcopy(model)
    again.init_weights()
    assert torch.equal(mixers_of(again)[0].a_proj.bias, expected)


def test_mamba_keeps_its_time_steps_in_another_model():
    """The bias of Mamba's dt_proj holds its time steps, which a Transformer's initialisation would zero."""
    layer = mixers_of(build(mixer="mamba", mixer_config={"state_size": 4, "intermediate_size": 64}))[0]
    steps = torch.nn.functional.softplus(layer.dt_proj.bias)
    assert 1e-4 <= steps.min() < 0.02 < steps.max() <= 0.11
    assert layer.in_proj.weight.std() < 0.03
    assert layer.conv1d.weight.std() > 0.2  # of a window of 4, as torch draws a convolution


@pytest.mark.parametrize("name", ["gated_deltanet", "hgrn", "kda", "mamba", "mamba2", "rodimus", "rwkv6"])
def test_what_a_checkpoint_lacks_is_drawn_as_in_a_new_model(name, tmp_path):
    """transformers leaves memory as it was allocated; the model knows the parts of its own mixer only."""
    arguments = {
        "gated_deltanet": {"num_heads": 4, "head_dim": 8}, "kda": {"num_heads": 4, "head_dim": 8}, "mamba": {"state_size": 4},
        "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8}, "rodimus": {"expand_ratio": 8, "residual_in_fp32": False},
    }.get(name, {})  # fmt: skip
    build().save_pretrained(tmp_path)
    junk = [torch.full((2**n,), 1e30) for n in range(1, 14) for _ in range(40)]  # what is allocated next holds it
    del junk
    fields = {"mixer": name, "mixer_config": arguments, "ignore_mismatched_sizes": True}
    loaded = TransformerForCausalLM.from_pretrained(tmp_path, **fields)
    new = dict(build(mixer=name, mixer_config=arguments).named_parameters())
    for key, found in loaded.named_parameters():
        if ".attn." in key:
            low, high = new[key].min().item(), new[key].max().item()
            spread = 1 + 4 * (high - low)
            assert low - spread < found.min(), key
            assert found.max() < high + spread, key
            assert found.numel() < 32 or 0.5 < (found.std() + 1e-6) / (new[key].std() + 1e-6) < 2, key
    x = torch.randint(3, 40, (2, 6))
    loaded(x, labels=x).loss.backward()
    loaded.save_pretrained(tmp_path)
    again = TransformerForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), again.parameters()))


@pytest.mark.parametrize("base", [nn.Module, BDLRU])
def test_buffers_that_are_not_saved_are_there_after_loading(base, own_registry, tmp_path):
    class Decay(base):
        def __init__(self, hidden_size, layer_idx=None, rate=0.5):
            super().__init__(*([] if base is nn.Module else [hidden_size]))
            self.register_buffer("decay", torch.full((hidden_size,), rate), persistent=False)
            self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    fla_bdlru.register_mixer("decay", Decay)
    model = build(mixer="decay", mixer_config={"rate": 0.25})
    model.save_pretrained(tmp_path)
    loaded = TransformerForCausalLM.from_pretrained(tmp_path)
    for layer, expected in zip(mixers_of(loaded), mixers_of(model)):
        assert torch.equal(layer.decay, expected.decay)
        assert all(torch.equal(p, q) for p, q in zip(layer.parameters(), expected.parameters()))


def test_the_first_values_of_rwkv7_pass_through_swapped_layers():
    """Its layers after the first mix in the first one's values, which each block hands on."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 40, "intermediate_size": 64, "head_dim": 8}
    tokens, seen = torch.randint(3, 40, (2, 5)), []
    model = RWKV7ForCausalLM(RWKV7Config(**sizes, mixer=["native", "bdlru", "native"]))
    last = model.model.layers[2].attn
    last.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["v_first"]), with_kwargs=True)
    model(tokens, labels=tokens).loss.backward()
    assert [bool(values.any()) for values in seen] == [True]
    with pytest.raises(ValueError, match="layer 2 keeps RWKV-7's own mixer, which mixes in the first layer's values; name"):
        RWKV7ForCausalLM(RWKV7Config(**sizes, mixer=["bdlru", "hlru", "native"]))


def test_register_mixer(own_registry):
    class Doubled(BDLRU):
        def mix(self, *args):
            o, *rest = super().mix(*args)
            return 2 * o, *rest

    fla_bdlru.register_mixer("doubled", Doubled)
    assert "doubled" in fla_bdlru.available_mixers()
    assert all(isinstance(layer, Doubled) for layer in mixers_of(build(mixer="doubled", mixer_config={"block_size": 2})))
    with pytest.raises(ValueError, match="mixer name 'doubled' is taken"):
        fla_bdlru.register_mixer("doubled", BDLRU)
    with pytest.raises(ValueError, match="mixer name 'native' is taken"):
        fla_bdlru.register_mixer("native", BDLRU)
    with pytest.raises(ValueError, match="it lacks hidden_size, layer_idx"):
        fla_bdlru.register_mixer("linear", nn.Linear)
    for name in (5, "", None, ["mine"]):
        with pytest.raises(ValueError, match=re.escape(f"name={name!r} is not accepted; expected a string")):
            fla_bdlru.register_mixer(name, Doubled)
    for cls in (Doubled(32), dict, "bdlru"):
        with pytest.raises(ValueError, match=r"is not accepted; expected a subclass of torch.nn.Module"):
            fla_bdlru.register_mixer("mine", cls)
    assert "mine" not in fla_bdlru.available_mixers()


def test_ones_own_mixer_under_a_name_of_a_package_that_is_not_installed(own_registry, monkeypatch):
    class Mine(BDLRU):
        pass

    source = registry.Source(("theirs",), lambda: False, lambda name: pytest.fail("the package was asked for it"))
    monkeypatch.setattr(registry, "SOURCES", [source, *registry.SOURCES])
    assert "theirs" not in fla_bdlru.available_mixers()
    fla_bdlru.register_mixer("theirs", Mine)
    assert isinstance(fla_bdlru.build_mixer("theirs", 32), Mine)


@pytest.mark.parametrize("fields, message", [
    ({"mixer": "bdrlu"}, "mixer='bdrlu' is not known; Did you mean 'bdlru'\\? expected one of native, abc, attn, bdlru"),
    ({"mixer": "BDLRU"}, "mixer='BDLRU' is not known; Did you mean 'bdlru'\\?"),
    ({"mixer": ["bdlru", "blah", "bdlru"]}, "mixer='blah' is not known"),
    ({"mixer": ["bdlru"]}, "mixer must have one entry for each of the 3 layers; got 1"),
    ({"mixer": "bdlru", "mixer_cfg": {"block_size": 2}}, "mixer_cfg=.* is not a field of .*; it takes mixer and mixer_c"),
    ({"mixer": "bdlru", "block_size": 2},
     "block_size=2 is not a field of TransformerConfig, but an argument of 'bdlru': pass mixer_config={'block_size': 2}"),
    ({"mixer": ["native", "gated_deltanet", "bdlru"], "head_dim": 8}, "head_dim=8 is not .* of 'gated_deltanet': pass"),
    ({"mixer": 3}, "mixer must be a name or a list of names, one a layer; got 3"),
    ({"mixer": "bdlru", "mixer_config": {"blocksize": 4}},
     "mixer_config: blocksize=4 is not an argument of 'bdlru'; it takes block_size, num_blocks, expand, gate_norm"),
    ({"mixer": "gla", "mixer_config": {"order": 4}}, "order=4 is not an argument of 'gla'; it takes mode, expand_k"),
    ({"mixer": "bdlru", "mixer_config": {"block_size": 5}}, "expand=1.0 times hidden_size=32 .* positive multiple of 5"),
    ({"mixer": "bdlru", "mixer_config": 4}, "mixer_config must be a dictionary, or a list of them, one a layer; got 4"),
    ({"mixer": "bdlru", "mixer_config": [{}]}, "mixer_config must have one entry for each of the 3 layers; got 1"),
    ({"mixer": ["bdlru", "hlru", "native"], "mixer_config": {"order": 4}},
     "mixer_config={'order': 4} does not say which of 'bdlru', 'hlru' it is for"),
    ({"mixer": "bdlru", "mixer_config": {"hidden_size": 16}}, "mixer_config: hidden_size=16 is not an argument of 'bdlru'"),
    ({"mixer": "bdlru", "mixer_config": {"layer_idx": 3}}, "mixer_config: layer_idx=3 is not an argument of 'bdlru'"),
    ({"mixer": "bdlru", "mixer_config": [1, 2, 3]}, r"mixer_config\[0\]=1 is not accepted; expected a dictionary or None"),
    ({"mixer": "bdlru", "mixer_config": {1: 2}}, "mixer_config: 1=2 is not an argument of 'bdlru'"),
    ({"mixer": ["bdlru", ["hlru"], "lstm"]}, r"mixer=\['hlru'\] is not known;"),
    ({"mixer": "bdlru", "mixer_config": {"bdlru": {}, "hlru": {"order": 2}}},
     "mixer_config has arguments for 'hlru', which mixer='bdlru' does not name"),
    ({"mixer_config": {"block_size": 2}}, "mixer_config={'block_size': 2} is not accepted without mixer"),
    ({"mixer": "native", "mixer_config": {"block_size": 2}}, "mixer='native' names no layer that would take it"),
    ({"mixer": ["native", "hlru", "hlru"], "mixer_config": [{"order": 2}, {}, None]},
     r"mixer_config\[0\]={'order': 2} is not accepted; layer 0 is the model's own"),
    ({"mixer": "gla", "mixer_config": {"num_heads": 5}}, "mixer='gla' with {'num_heads': 5} at hidden_size=32: key dim"),
], ids=lambda x: x if isinstance(x, str) else "")  # fmt: skip
def test_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        build(**fields)


def test_what_a_config_has_beside_the_mixers_arguments_stays(tmp_path):
    """Its own fields, those that it works out of others, what no mixer takes, and what a saved one has."""
    GLAForCausalLM(GLAConfig(**SIZES, mixer="bdlru", use_short_conv=True, expand_v=2.0, note="mine"))
    MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=40, mixer="mamba"))  # intermediate_size
    config = TransformerConfig(**SIZES, mixer="bdlru")
    config.block_size = 2  # before it was refused it had no effect
    config.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    assert [layer.block_size for layer in mixers_of(model)] == [4, 4, 4]


def test_every_layer_of_fla_is_registered_or_refused_by_name(monkeypatch):
    classes = {cls.__name__ for cls in registry._MIXERS.values()}
    refused = {"based": "BasedLinearAttention", "mom": "MomAttention", "rebased": "ReBasedLinearAttention"} | {
        "rwkv7": "RWKV7Attention", "yoco": "YOCOCrossAttention YOCOSharedKVBuilder",
    }  # fmt: skip
    assert refused.keys() == registry.NO_MIXERS.keys()
    # the part of Rodimus that reads the keys of the part before it
    known = classes.union(*map(str.split, refused.values())) | {"SlidingWindowSharedKeyAttention"}
    assert set(fla.layers.__all__) <= known
    for name in refused:
        monkeypatch.delitem(registry._MIXERS, name, raising=False)  # the comparison has an RWKV-7 of its own
        with pytest.raises(ValueError, match=f"mixer='{name}' is refused, as .*: (use FLA's own model|take 'linear_attn')"):
            fla_bdlru.build_mixer(name, 32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(registry._MIXERS.keys() - {"bdlru", "hlru", "lstm"}))
def test_every_layer_runs_on_a_cpu_or_is_refused_there_by_name(name):
    accepted = registry.mixer_arguments(registry._MIXERS[name])
    small = {"num_heads": 2, "head_dim": 16, "state_size": 16, "num_kv_heads": None, "num_slots": 8, "topk": 4}
    arguments = {key: value for key, value in small.items() if key in accepted} | {
        "hgrn2": {"expand_ratio": 16}, "log_linear_mamba2": {"num_heads": 8, "head_dim": 8}, "mamba2": {"num_heads": 4},
        "mla": {"q_lora_rank": 8, "kv_lora_rank": 8, "v_head_dim": 8, "qk_head_dim": 16, "qk_nope_head_dim": 8,
                "qk_rope_head_dim": 8},
        "nsa": {"num_heads": 16, "num_kv_heads": 1}, "rodimus": {"residual_in_fp32": False, "expand_ratio": 16},
    }.get(name, {})  # fmt: skip
    layer, x = fla_bdlru.build_mixer(name, 32, layer_idx=0, **arguments), torch.randn(2, 9, 32)
    if name in registry.GPU_ONLY:
        for args, kwargs in (((x,), {}), ((), {"hidden_states": x})):
            with pytest.raises(NotImplementedError, match=f"mixer='{name}': {type(layer).__name__} of .* runs on a GPU only"):
                layer(*args, **kwargs)
        return
    if name == "momentum_deltanet":  # trains in bfloat16 alone
        layer, x = layer.bfloat16(), x.bfloat16()
    o, _, _ = layer(x, attention_mask=None)
    assert o.shape == x.shape
    o.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_build_mixer_takes_one_name():
    with pytest.raises(ValueError, match=r"mixer=\['bdlru'\] is not known;"):
        fla_bdlru.build_mixer(["bdlru"], 32)


def test_arguments_by_name_for_one_name():
    assert all(layer.block_size == 2 for layer in mixers_of(build(mixer="bdlru", mixer_config={"bdlru": {"block_size": 2}})))


@pytest.mark.parametrize(
    "name", ["attn", "bdlru", "delta_net", "gated_deltanet", "gla", "hgrn", "hlru", "lstm", "mamba", "mamba2"]
)
def test_measured_state_sizes(name):
    arguments = {
        "attn": {"num_heads": 4}, "delta_net": {"num_heads": 2, "use_short_conv": False},
        "gated_deltanet": {"num_heads": 2, "head_dim": 8, "expand_v": 1, "use_short_conv": False}, "gla": {"num_heads": 2},
        "hlru": {"order": 2}, "mamba": {"state_size": 4, "intermediate_size": 64}, "mamba2": {"head_dim": 16, "state_size": 8},
    }.get(name, {})  # fmt: skip
    expected = {
        "attn": 2 * 32,  # keys and values of a token
        "bdlru": 32, "hlru": 64, "lstm": 64, "hgrn": 32,
        "delta_net": 2 * 16 * 16, "gated_deltanet": 2 * 8 * 8,
        "gla": 2 * 8 * 16,  # expand_k = 0.5
        "mamba": 64 * 4 + 64 * 4,  # state and convolution
        "mamba2": 64 * 8 + (64 + 2 * 8) * 4,
    }[name]  # fmt: skip
    layer = registry.build_mixer(name, hidden_size=32, **arguments).train()
    assert measure_state_size(layer) == expected
    assert layer.training
    assert count_parameters(layer) == sum(p.numel() for p in layer.parameters())
