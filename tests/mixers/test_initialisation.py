"""What is drawn when a model is initialised, and what is not drawn again: loaded and copied weights, other models' parts."""

import copy

import pytest
import torch
from fla.models import (
    Mamba2Config,
    Mamba2ForCausalLM,
    Mamba3Config,
    Mamba3ForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
)
from fla.models.modeling_utils import FLAPreTrainedModel
from torch import nn

from fla_bdlru import BDLRUConfig, BDLRUForCausalLM, swap_mixers
from fla_bdlru.layers import BDLRU
from fla_bdlru.layers.weight_decay import decaying_parameters
from fla_bdlru.mixers import registry

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 20}
MAMBA = {**SIZES, "head_dim": 16, "num_heads": 4, "state_size": 8}
DELTA = {"num_heads": 2, "head_dim": 16}


class WithValue(FLAPreTrainedModel):
    """A head of one's own over a model that is there already, as transformers' documentation has it."""

    def __init__(self, config, backbone):
        super().__init__(config)
        self.model = backbone
        self.value = nn.Linear(config.hidden_size, 1)
        self.post_init()


def mixed():
    names = ["gated_deltanet", "lstm", "bdlru", "native"]
    config = TransformerConfig(
        **{**SIZES, "num_hidden_layers": 4}, num_heads=2, mixer=names, mixer_config=[DELTA, {}, {}, None]
    )
    return TransformerForCausalLM(config)


def native():
    return BDLRUForCausalLM(BDLRUConfig(**SIZES, gate_bias="memory", initial_state="learned"))


def trained(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("is_loaded", [False, True])
@pytest.mark.parametrize("make", [mixed, native])
def test_a_copy_in_another_model_keeps_its_weights(tmp_path, make, is_loaded):
    model = trained(make())
    if is_loaded:
        model.save_pretrained(tmp_path)
        model = type(model).from_pretrained(tmp_path)
    expected = {name: p.detach().clone() for name, p in model.model.named_parameters()}

    def assert_kept(backbone):
        for name, parameter in backbone.named_parameters():
            assert torch.equal(parameter, expected[name]), name

    assert_kept(WithValue(model.config, copy.deepcopy(model.model)).model)
    again = copy.deepcopy(model)
    again.init_weights()
    assert_kept(again.model)
    weights = copy.deepcopy(model).state_dict()
    model.load_state_dict(weights, assign=True)
    model.init_weights()
    assert_kept(model.model)


@pytest.mark.parametrize("model, config", [(Mamba2ForCausalLM, Mamba2Config), (Mamba3ForCausalLM, Mamba3Config)])
@pytest.mark.parametrize(
    "mixer, arguments", [("bdlru", {"initial_state": "learned"}), ("gated_deltanet", DELTA)], ids=["bdlru", "gated_deltanet"]
)
def test_models_that_refuse_an_o_proj(tmp_path, model, config, mixer, arguments):
    """Mamba2 and Mamba3 raise where a layer has one; of a swapped layer they see the projections alone."""
    x = torch.randint(20, (2, 5))
    swapped = swap_mixers(model(config(**MAMBA)), mixer, arguments)
    built = model(config(**MAMBA, mixer=mixer, mixer_config=arguments))
    for each in (swapped, built):
        layer = each.backbone.layers[0].mixer
        assert 0.01 < layer.o_proj.weight.std() < 0.03  # as the model draws a linear map
        assert each(x, labels=x).loss.isfinite()
    built.save_pretrained(tmp_path)
    again = model.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), built.parameters(), strict=True))


def test_a_start_that_a_folder_lacks_is_drawn_in_mamba2_too(tmp_path):
    model = trained(Mamba2ForCausalLM(Mamba2Config(**MAMBA, mixer="bdlru")))
    model.save_pretrained(tmp_path)
    loaded = Mamba2ForCausalLM.from_pretrained(tmp_path, mixer_config={"initial_state": "learned"})
    for before, after in zip(model.backbone.layers, loaded.backbone.layers):
        assert 0.05 < after.mixer.h0.std() < 0.2
        assert torch.equal(before.mixer.a_proj.bias, after.mixer.a_proj.bias)


def test_a_second_post_init_draws_no_mixer_anew():
    """transformers' documentation has a model call it after parts were added."""
    model = mixed().model
    before = [block.attn for block in model.layers]
    weights = {name: p.clone() for name, p in trained(model).named_parameters()}
    model.post_init()
    assert [block.attn for block in model.layers] == before
    model.config.mixer_config[3] = None
    model.config.mixer = [*model.config.mixer[:2], "hlru", "native"]
    model.post_init()
    assert [type(block.attn).__name__ for block in model.layers] == ["GatedDeltaNet", "LSTM", "HLRU", "Attention"]
    assert [a is b.attn for a, b in zip(before, model.layers)] == [True, True, False, True]
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters() if "layers.2" not in name)


class LowRank(BDLRU):
    """Gates by way of a few channels."""

    def __init__(self, hidden_size, bias=True, layer_idx=None):
        super().__init__(hidden_size, layer_idx=layer_idx)
        last = nn.Linear(4, self.num_gates())
        self.a_proj = (
            nn.Sequential(nn.Linear(hidden_size, 4), last) if bias else nn.Linear(hidden_size, self.num_gates(), bias=False)
        )


@pytest.mark.parametrize("bias", [True, False])
def test_a_projection_of_the_gates_without_a_bias(monkeypatch, bias):
    monkeypatch.setattr(registry, "_MIXERS", dict(registry._MIXERS))
    registry.register_mixer("low_rank", LowRank)
    config = TransformerConfig(**SIZES, num_heads=2, mixer="low_rank", mixer_config={"bias": bias})
    model, x = TransformerForCausalLM(config), torch.randint(20, (2, 5))
    model(x, labels=x).loss.backward()
    assert any("a_proj" in name for name in decaying_parameters(model))
