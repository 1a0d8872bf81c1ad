"""Every config class of FLA with `mixer=`: swapped, trained a step, saved, loaded with equal logits; or the reason why not."""

import warnings

import fla.models
import pytest
import torch
from fla.ops.cp import FLACPContext
from usage import decode, lively

from fla_bdlru import swap_mixers
from fla_bdlru.layers import BDLRU, HLRU

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "vocab_size": 40,
    "num_heads": 4,
    "head_dim": 8,
    "intermediate_size": 64,
    "hidden_ratio": 2,
    "expand_ratio": 8,
}
# what a tiny model of a class needs beside or instead of SIZES
MORE = {
    "LogLinearMamba2Config": {"num_heads": 8, "state_size": 16},
    "Mamba2Config": {"num_heads": 8, "state_size": 16},
    "Mamba3Config": {"num_heads": 8, "state_size": 16},
    "MambaConfig": {"state_size": 4},
    "NSAConfig": {"num_kv_heads": 2},
    "RodimusConfig": {"block_type": "rodimus", "residual_in_fp32": False},
    "SambaConfig": {"attn": None, "state_size": 4},
    "YOCOConfig": {"num_self_decoder_layers": 1, "cross_decoder_attn": {"num_heads": 4}},
}
REFUSED = {
    "CATConfig": "CATModel keeps its own mixer, as its attention works on chunk summaries",
    "MomConfig": "MomModel keeps its own mixer, as its loss reads router logits",
}
# FLA's own model refuses a cache, whatever its mixer
NO_CACHE = {"StickBreakingAttentionConfig"}
# parts that look at other tokens and are not the mixer
NOT_IN_SLICES = {
    "LinearAttentionConfig": "LinearAttentionModel does not hand it on",
    "RWKV6Config": "layers.0.ffn.time_shift of RWKV6ForCausalLM",
    "RWKV7Config": "layers.0.ffn.time_shift of RWKV7ForCausalLM",
    "YOCOConfig": "cross_layers.0.attn of YOCOForCausalLM",
}
CONFIGS = sorted(name for name in fla.models.__all__ if name.endswith("Config"))


def build(name, **kwargs):
    config = getattr(fla.models, name)(**{**SIZES, **MORE.get(name, {}), **kwargs})
    return getattr(fla.models, name.replace("Config", "ForCausalLM"))(config)


def test_every_model_has_its_config_here():
    """A new version of FLA brings new models: they are walked too, and a name that is gone is noticed."""
    models = {name.replace("ForCausalLM", "Config") for name in fla.models.__all__ if name.endswith("ForCausalLM")}
    assert models == set(CONFIGS)
    assert {*MORE, *REFUSED, *NO_CACHE, *NOT_IN_SLICES} <= set(CONFIGS)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in REFUSED])
@pytest.mark.parametrize("mixer, mixer_config, cls", [
    ("bdlru", {"block_size": 4, "gate_bias": "memory"}, BDLRU),
    ("hlru", {"order": 2}, HLRU),
], ids=["bdlru", "hlru"])  # fmt: skip
def test_swapped_trained_saved_loaded(name, mixer, mixer_config, cls, tmp_path):
    model = build(name, mixer=mixer, mixer_config=mixer_config)
    swapped = [module for module in model.modules() if isinstance(module, cls)]
    assert len(swapped) == (1 if name == "YOCOConfig" else 2)  # YOCO's cross-decoder keeps its attention
    assert [layer.layer_idx for layer in swapped] == list(range(len(swapped)))

    x = torch.randint(3, 40, (2, 9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loss = model(x, labels=x).loss
    loss.backward()
    # what only the native mixer reads (HGRN's lower bounds) is frozen: DDP stops at a parameter without a gradient
    assert {key for key, p in model.named_parameters() if p.grad is None and p.requires_grad} == set()
    optimizer.step()
    assert model(x, labels=x).loss < loss

    model.eval()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert loaded.config.mixer == mixer
    assert loaded.config.mixer_config == mixer_config
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, model(x).logits)


@pytest.mark.parametrize("name", ["HGRNConfig", "HGRN2Config"])
def test_lower_bounds_are_trained_where_a_mixer_takes_them(name):
    own, arguments = ("hgrn", {}) if name == "HGRNConfig" else ("hgrn2", {"expand_ratio": 8})
    fields = {"mixer": ["bdlru", "native"], "attn": {"layers": [1], "num_heads": 2}}
    assert not build(name, **fields).model.lower_bounds.requires_grad  # attention takes none either
    for mixer, trained in (("bdlru", False), (["bdlru", "native"], True)):
        assert build(name, mixer=mixer).model.lower_bounds.requires_grad == trained
    assert build(name, mixer=own, mixer_config=arguments).model.lower_bounds.requires_grad
    model = swap_mixers(build(name), "bdlru")
    assert not model.model.lower_bounds.requires_grad
    assert swap_mixers(model, own, arguments).model.lower_bounds.requires_grad


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in {*REFUSED, *NO_CACHE}])
def test_decoding_with_the_cache_equals_the_whole_forward(name):
    model = build(name, mixer="bdlru", mixer_config={"block_size": 4}).eval()
    x = torch.randint(3, 40, (2, 7))
    torch.testing.assert_close(decode(model, x, 4), model(x).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in REFUSED])
def test_packed_equals_documents_one_by_one(name):
    model = lively(build(name, mixer="bdlru"), 0.2).eval()
    docs = [torch.randint(3, 40, (1, n)) for n in (5, 1, 7)]
    x, positions = torch.cat(docs, 1), torch.cat([torch.arange(n) for n in (5, 1, 7)])[None]
    with torch.no_grad():
        if name == "LinearAttentionConfig":  # its forward drops the boundaries
            with pytest.raises(ValueError, match=r"LinearAttentionModel .* would run on over the boundaries"):
                model(x, position_ids=positions)
            return
        expected = torch.cat([model(doc, use_cache=False).logits for doc in docs], 1)
        torch.testing.assert_close(model(x, position_ids=positions, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    with pytest.raises(ValueError, match=REFUSED[name]):
        build(name, mixer="bdlru")
    build(name)  # and left alone without the field


@pytest.mark.parametrize("name", ["LogLinearMamba2Config", "Mamba2Config", "Mamba3Config", "MambaConfig"])
def test_mamba_initialisation_takes_any_mixer(name):
    """These models' `_init_weights` refuse modules that hold parameters beside an `o_proj`."""
    model = build(name, mixer="bdlru", mixer_config={"selective": False}, rescale_prenorm_residual=True)
    assert torch.isfinite(model(torch.randint(3, 40, (1, 5))).logits).all()


def test_rodimus_plus_is_refused_by_name():
    attn = {"num_heads": 4, "window_size": 8}
    with pytest.raises(ValueError, match="RodimusModel keeps its own mixer, as its shared-key attention reads the keys"):
        build("RodimusConfig", block_type="rodimus_plus", ska_attn=attn, mixer="bdlru")


@pytest.mark.parametrize("name", ["TransformerConfig", "GatedDeltaNetConfig"])
def test_without_the_field_nothing_changes(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = build(name)
    assert not any(isinstance(module, (BDLRU, HLRU)) for module in model.modules())


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in REFUSED])
def test_cp_context_reaches_every_mixer(name, monkeypatch):
    """Or is refused: a layer that does not see it would take a rank's slice for the whole sequence."""
    model, seen, check = build(name, mixer="bdlru").train(), [], BDLRU.check_context_parallel
    monkeypatch.setattr(BDLRU, "check_context_parallel", lambda self, *args: (seen.append(self), check(self, *args))[1])
    x, context = torch.randint(3, 40, (1, 9)), FLACPContext(cu_seqlens=torch.tensor([0, 4, 9]), is_first_rank=True)
    if name in NOT_IN_SLICES:
        with pytest.raises(ValueError, match=f"cp_context: .*{NOT_IN_SLICES[name]}"):
            model(x, cp_context=context)
    else:
        model(x, cp_context=context)
        assert seen == [module for module in model.modules() if isinstance(module, BDLRU)]
