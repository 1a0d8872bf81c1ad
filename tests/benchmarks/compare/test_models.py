"""Matching: sizes as measured on the built layers, and refusals that say what is possible."""

import pytest
import torch

from benchmarks.compare.models import (
    ALL_VARIANTS,
    TOLERANCE,
    VARIANTS,
    build_layer,
    build_model,
    default_budget,
    get_variant,
    layer_flops,
    layer_params,
    layer_state,
    match_variant,
    quiet,
    state_grows,
)
from benchmarks.compare.plan import plan
from benchmarks.compare.presets import get_preset
from benchmarks.records.cell import MATCHES
from fla_bdlru.integrations.lrnnx import LAYERS as LRNNX_LAYERS
from fla_bdlru.layers import LSTM
from fla_bdlru.layers.measure import count_parameters
from fla_bdlru.mixers import registry

RESIZED = [name for name, variant in VARIANTS.items() if not variant.fixed]


@pytest.fixture(autouse=True)
def _quiet():
    quiet()


def test_the_budget_is_the_reference_mixer():
    v, gates, o = 64 * 64, 16 * 4 * 5 * (64 + 1), 64 * 64
    assert default_budget("params", 64) == v + gates + o
    assert default_budget("state", 64) == 64
    assert match_variant("bdlru-m4", "params", 64).args == {"block_size": 4, "num_blocks": 16}


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("name", RESIZED)
def test_parameters_are_matched(name, width):
    variant, matched = VARIANTS[name], match_variant(name, "params", width)
    layer = build_layer(variant.mixer, width, matched.args)
    budget = default_budget("params", width)
    assert abs(sum(p.numel() for p in layer.parameters()) - budget) <= TOLERANCE * budget
    assert variant.args.items() <= matched.args.items()


@pytest.mark.parametrize("name", [name for name in ALL_VARIANTS if not VARIANTS[name].fixed])
def test_states_are_matched(name):
    matched = match_variant(name, "state", 64)
    got = layer_state(VARIANTS[name].mixer, 64, matched.args)
    assert abs(got - 64) <= TOLERANCE * 64


def test_a_registered_mixer_needs_no_recipe(monkeypatch):
    """By a knob that its constructor has, or by the MLP beside it."""

    class Mine(LSTM):
        def __init__(self, hidden_size, num_channels=None, layer_idx=None):
            super().__init__(hidden_size, num_channels, layer_idx=layer_idx)

    monkeypatch.setattr(registry, "_MIXERS", dict(registry._MIXERS))
    registry.register_mixer("mine", Mine)
    budget = default_budget("params", 64)
    matched = match_variant("mine", "params", 64)
    assert abs(layer_params("mine", 64, matched.args) - budget) <= TOLERANCE * budget
    fixed = match_variant("forgetting_attn", "params", 64, 60_000)
    assert fixed.args == {"num_heads": 4}
    assert abs(layer_params("forgetting_attn", 64, fixed.args) + 3 * 64 * fixed.extra_mlp - 60_000) <= 1.5 * 64
    assert "its MLP has" in fixed.note
    with pytest.raises(ValueError, match="or a registered mixer: abc, attn"):
        get_variant("no-such-mixer")


NO_CPU = dict.fromkeys(registry.GPU_ONLY, "runs on a GPU only")
# layers whose parts have fixed sizes, too large for these widths
FIXED = ("mla", "nsa", "rodimus")
FLA_MIXERS = sorted(set(registry.available_mixers()) - {*LRNNX_LAYERS, *FIXED})


@pytest.mark.parametrize("name", FLA_MIXERS)
@pytest.mark.parametrize("width", [64, 128])
def test_every_registered_mixer_is_matched_by_parameters(name, width):
    budget, matched = default_budget("params", width), match_variant(name, "params", width)
    mixer = get_variant(name).mixer
    got = layer_params(mixer, width, matched.args) + 3 * width * matched.extra_mlp
    assert abs(got - budget) <= TOLERANCE * budget
    assert matched.rule == f"params {budget}"
    if name in NO_CPU and not torch.cuda.is_available():
        with pytest.raises(ValueError, match=f"mixer {name!r} cannot decode on cpu.*measured: .*{NO_CPU[name]}"):
            layer_state(mixer, width, matched.args)
    else:
        assert layer_state(mixer, width, matched.args) > 0


@pytest.mark.parametrize("name", FLA_MIXERS)
def test_every_registered_mixer_is_matched_by_state_or_refused(name):
    refused = {**NO_CPU, "hgrn2": "the size of hgrn2 is set by the model's width, the closest are 1,024"}
    alone = {"rwkv7": "1,088", "gated_retention": "1,024"}
    refused |= {name: f"{name} has no argument that sets it, the closest are {size}" for name, size in alone.items()}
    if name in refused and not torch.cuda.is_available():
        with pytest.raises(ValueError, match=f"mixer {name!r} cannot .*{refused[name]}"):
            match_variant(name, "state", 64)
        return
    matched = match_variant(name, "state", 64)
    growing = name in ("attn", "bitnet", "forgetting_attn")
    assert matched.rule == ("params 28992" if growing else "state 64")
    assert state_grows(name, 64, matched.args) is growing
    if not growing:
        assert not matched.extra_mlp
        assert abs(layer_state(name, 64, matched.args) - 64) <= TOLERANCE * 64


@pytest.mark.parametrize("name", FIXED)
def test_a_layer_of_fixed_sizes_is_refused(name):
    with pytest.raises(ValueError, match=f"mixer '{name}' cannot be matched to 28,992 parameters at width=64"):
        match_variant(name, "params", 64)


def test_what_is_matched_by_another_rule_says_so():
    grid, _ = plan("s3", ("attn", "lstm"), "state", None, get_preset("quick", "s3"), "cpu")
    assert {p.cell.variant: p.matched for p in grid} == {"attn": "state 64 (by params 28992)", "lstm": "state 64"}
    assert {p.cell.variant: p.state_size for p in grid} == {"attn": None, "lstm": 64}


def test_an_mlp_whose_columns_are_too_coarse_is_refused():
    with pytest.raises(
        ValueError, match=r"to 1,050 parameters at width=16 \(within 2%\).*1,024 parameters, and a column .* 48"
    ):
        match_variant("attn", "params", 16, 1050)


@pytest.mark.parametrize("name", RESIZED)
def test_sizes_grow_with_the_knob(name):
    variant = VARIANTS[name]
    for size in variant.sizes:
        counts = [layer_params(variant.mixer, 64, {**variant.args, **size(64, n)}) for n in (1, 2, 3, 8, 21)]
        assert counts == sorted(set(counts))


def test_attention_is_matched_through_its_mlp():
    matched = match_variant("attn", "params", 64)
    models = [
        build_model("attn", matched.args, 6, 64, 2, 128 + matched.extra_mlp),
        build_model("bdlru", match_variant("bdlru-m4", "params", 64).args, 6, 64, 2, 128),
    ]
    assert count_parameters(models[0]) == pytest.approx(count_parameters(models[1]), rel=0.01)
    assert "MLP" in matched.note
    assert "parameters instead" in match_variant("attn", "state", 64).note


@pytest.mark.parametrize(
    "name, budget, message",
    [
        ("nothing", 1000, "'nothing' is not known.*bdlru-m4"),
        ("mamba2", 300, "cannot be matched to 300 parameters at width=64.*closest are.*--budget"),
        ("attn", 1000, "cannot be matched to 1,000 parameters"),
    ],
)
def test_what_cannot_be_matched_is_refused(name, budget, message):
    with pytest.raises(ValueError, match=message):
        match_variant(name, "params", 64, budget)


def test_an_unknown_match_is_refused():
    with pytest.raises(ValueError, match=f"match='flops'.*{', '.join(MATCHES)}"):
        match_variant("bdlru-m4", "flops", 64)


@pytest.mark.parametrize("name", ALL_VARIANTS)
def test_every_mixer_trains_in_the_host_model_and_is_causal(name):
    torch.manual_seed(0)
    args = match_variant(name, "params", 64).args
    model = build_model(VARIANTS[name].mixer, args, 6, 64, 2, 64)
    tokens = torch.randint(6, (2, 12))
    logits = model(input_ids=tokens).logits
    assert logits.shape == (2, 12, 6)
    logits[:, :8].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        changed = torch.cat([tokens[:, :8], (tokens[:, 8:] + 1) % 6], 1)
        torch.testing.assert_close(model.train(False)(input_ids=changed).logits[:, :8], logits[:, :8], rtol=1e-4, atol=1e-5)


def test_only_the_mixer_differs_between_models():
    def rest(name):
        torch.manual_seed(0)
        model = build_model(VARIANTS[name].mixer, match_variant(name, "params", 32).args, 6, 32, 1, 64)
        return {n: p.shape for n, p in model.named_parameters() if ".attn." not in n}

    assert rest("bdlru-m4") == rest("lstm") == rest("gated_deltanet")


def test_mamba_keeps_the_time_steps_that_its_constructor_draws():
    layer = build_model("mamba", match_variant("mamba", "params", 32).args, 6, 32, 1, 64).model.layers[0].attn
    steps = torch.nn.functional.softplus(layer.dt_proj.bias)
    assert steps.min() > 0.0009  # dt_min
    assert steps.max() < 0.11  # dt_max
    assert layer.conv1d.weight.std() > 0.1


def test_flops_of_every_mixer_are_counted():
    for name, variant in VARIANTS.items():
        args = match_variant(name, "params", 64).args
        total, recurrent = layer_flops(variant.mixer, 64, args, context=8)
        assert 0 < recurrent < total, name
        params = layer_params(variant.mixer, 64, args)
        assert total > 1.5 * params, name  # nearly every parameter is multiplied and added


@pytest.mark.parametrize(
    "name, args",
    [
        ("bdlru-m6", {"block_size": 6}),
        ("bdlru-m4-sigmoid", {"block_size": 4, "gate_norm": "sigmoid"}),
        ("hlru-m3-none", {"order": 3, "gate_norm": "none"}),
        ("bdlru-m4-conv", {"block_size": 4, "use_short_conv": True}),
        ("bdlru-m5-square-start", {"block_size": 5, "gate_norm": "square", "initial_state": "learned"}),
        ("hlru-m4-memory-gated", {"order": 4, "gate_bias": "memory", "use_output_gate": True}),
    ],
)
def test_our_mixers_of_any_size_norm_and_parts_are_known(name, args):
    assert get_variant(name).args == args
    assert args.items() <= match_variant(name, "params", 64, 300_000).args.items()


def test_the_default_norm_by_its_name_is_the_same_model():
    assert get_variant("bdlru-m4-softmax").args == get_variant("bdlru-m4").args


def test_a_size_that_blocks_cannot_reach_is_refused():
    """7 or 8 blocks of 8 at width 96: neither is within 2% of the budget."""
    with pytest.raises(ValueError, match=r"cannot be matched to 64,992 parameters at width=96 \(within 2%\); the closest"):
        match_variant("bdlru-m8", "params", 96)


@pytest.mark.parametrize(
    "name", ["bdlru-m0", "bdlru-m4-relux", "bdlru-m4-conv-conv", "bdlru-m4-tanh-silu", "bd-lru", "hlru-m100"]
)
def test_others_are_not(name):
    with pytest.raises(ValueError, match=f"{name!r} is not known.*bdlru-m4-silu"):
        get_variant(name)
