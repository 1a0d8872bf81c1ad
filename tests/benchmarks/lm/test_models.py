"""Configs and sizes: the published models counted by hand, and FLA's own model types."""

import csv
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.compare.models import TOLERANCE, default_budget, quiet
from benchmarks.lm.models import build_model, make_config, measure, model_types, settle
from benchmarks.lm.plan import make_runs
from benchmarks.lm.settings import Entry, load_settings
from fla_bdlru.layers.measure import count_parameters

quiet()


def first_config(comparison):
    settled = settle(comparison)
    return make_config(settled, settled.mixers[0], 256)


def settings(*changes):
    return load_settings("quick", ("model.hidden_size=40", "model.intermediate_size=64", *changes))


PAPER = load_settings("paper-140m")


@pytest.mark.parametrize("entry", PAPER.mixers, ids=lambda entry: entry.name)
def test_the_published_models_are_about_140m(entry):
    m, blocks = entry.mixer_config["block_size"], entry.mixer_config["num_blocks"]
    width, layers, vocab = 768, 12, 50257
    v_and_o, gates = 2 * width * m * blocks, (width + 1) * blocks * m * (m + 1)
    mlp, norms = 3 * width * 2048, 2 * width
    by_hand = layers * (v_and_o + gates + mlp + norms) + width
    sizes = measure(make_config(PAPER, entry, None))
    assert sizes.params - sizes.embedding_params == by_hand
    assert sizes.embedding_params == vocab * width  # tied
    assert sizes.mixer_params == layers * (v_and_o + gates)
    assert sizes.state_size == layers * m * blocks
    # the published figure is 140M; without embeddings these have 134.5M to 135.2M
    assert by_hand == pytest.approx(140e6, rel=0.05)
    with_seven_thousand_tokens = by_hand + 7_000 * width
    assert with_seven_thousand_tokens == pytest.approx(140e6, rel=0.005)


def test_published_models_are_matched_to_each_other():
    counts = [measure(make_config(PAPER, entry, None)).mixer_params for entry in PAPER.mixers]
    assert max(counts) / min(counts) < 1.01


def test_measured_sizes_are_those_of_the_built_model():
    for entry in settle(settings()).mixers:
        config = make_config(settings(), entry, 256)
        assert measure(config).params == count_parameters(build_model(config)), entry.name


def test_names_are_matched_by_parameters():
    budget = default_budget("params", 40)
    quick = settings('mixers=["bdlru-m4", "bdlru-m4-tanh", "lstm", "gla", "attn"]')
    total = []
    for entry in settle(quick).mixers:
        sizes = measure(make_config(quick, entry, 256))
        total.append(sizes.params)
        if entry.name != "attn":  # which has a wider MLP instead
            assert sizes.mixer_params == pytest.approx(2 * budget, rel=TOLERANCE), entry.name
    assert max(total) / min(total) < 1 + TOLERANCE


@pytest.mark.parametrize("name", ["hlru-m3-conv", "bdlru-m6-silu", "gsa"])
def test_every_name_of_the_comparisons_is_known(name):
    (entry,) = settle(settings("budget=40000").select((name,))).mixers
    built = type(build_model(make_config(settings(), entry, 256)).model.layers[0].attn)
    assert built.__name__ == {"hl": "HLRU", "bd": "BDLRU", "gs": "GatedSlotAttention"}[name[:2]]


def test_names_are_matched_by_state():
    entries = settle(settings("match=state", "budget=64", 'mixers=["bdlru-m4", "lstm"]')).mixers
    sizes = [measure(make_config(settings(), entry, 256)) for entry in entries]
    assert [size.state_size for size in sizes] == [128, 128]  # two layers


def test_explicit_arguments_are_left_alone():
    entry = Entry("mine", mixer="bdlru", mixer_config={"block_size": 2, "num_blocks": 5})
    config = first_config(replace(settings(), mixers=(entry,)))
    model = build_model(config)
    assert [(layer.attn.block_size, layer.attn.num_blocks) for layer in model.model.layers] == [(2, 5), (2, 5)]


def test_one_mixer_per_layer():
    entry = Entry("hybrid", mixer=("bdlru", "native"), mixer_config=({"block_size": 2}, {}))
    model = build_model(make_config(settings(), entry, 256))
    assert [type(layer.attn).__name__ for layer in model.model.layers] == ["BDLRU", "Attention"]
    assert measure(make_config(settings(), entry, 256)).state_size is None  # attention's grows


@pytest.mark.parametrize("name", ["bdlru", "hlru", "gated_deltanet", "gla", "mamba2", "rwkv7"])
def test_native_models_of_any_type(name):
    extra = {
        "mamba2": ("model.head_dim=16", "model.num_heads=4"),
        "gated_deltanet": ("model.head_dim=8",),
        "rwkv7": ("model.head_dim=16",),
    }
    base = load_settings(
        "quick", (f"model={{type = '{name}', hidden_size = 32, num_hidden_layers = 2}}", *extra.get(name, ()))
    )
    config = first_config(base.select(("native",)))
    model = build_model(config)
    assert config.model_type == name
    assert config.vocab_size == 256
    tokens = torch.randint(256, (1, 8))
    assert model(input_ids=tokens, labels=tokens).loss.item() == pytest.approx(5.55, abs=0.5)
    assert measure(config).params == count_parameters(model)


def test_flas_model_types_are_known():
    types = model_types()
    assert {"bdlru", "hlru", "transformer", "gated_deltanet", "delta_net", "gla", "hgrn", "mamba", "mamba2", "rwkv7"} <= set(
        types
    )
    assert all(cls.model_type == name for name, cls in types.items())


@pytest.mark.parametrize(
    "changes, message",
    [
        (("model.type=gpt",), r"model\.type='gpt' is not known; expected one of .*transformer"),
        (("model.depth=3",), r"model\.depth=3 is not a field of 'transformer'; it has .*num_hidden_layers"),
        (('model.hidden_size="x"',), r"model\.hidden_size='x' is not accepted; expected a whole number greater than 0"),
        (("model.num_hidden_layers=0",), r"model\.num_hidden_layers=0 is not accepted; expected a whole number"),
        (("model.intermediate_size=1.5",), r"model\.intermediate_size=1\.5 is not accepted"),
        (("model.tie_word_embeddings=False",), r"tie_word_embeddings='False' is not accepted; expected true or false"),
        (("model.vocab_size=100",), r"model\.vocab_size=100 is too small; the tokenizer has 256"),
        (('mixers=["nope"]',), r"mixer 'nope' is not known; expected some of bdlru-m1"),
        (('mixers=[{name = "a", mixer_config = {order = 2}}]',), r"mixers: 'a' has a mixer_config but no mixer"),
        (("budget=30", 'mixers=["mamba2"]'), r"mixer 'mamba2' cannot be matched to 30 parameters"),
    ],
)
def test_wrong_models_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        first_config(settings(*changes))


def test_fields_that_do_not_go_together_are_named():
    message = r"model: 'transformer' with hidden_size=36: .*even, got 9\."  # FLA's words
    with pytest.raises(ValueError, match=message):
        measure(first_config(settings("model.hidden_size=36", "model.num_heads=4")))


@pytest.mark.parametrize(
    "entry, message",
    [
        (Entry("a", mixer="nope"), "mixer='nope' is not known"),
        (Entry("a", mixer="bdlru", mixer_config={"depth": 2}), "depth=2 is not an argument of 'bdlru'"),
        (Entry("a", mixer=("bdlru",)), "one entry for each of the 2 layers"),
    ],
)
def test_wrong_mixers_are_named(entry, message):
    with pytest.raises(ValueError, match=message):
        measure(first_config(replace(settings(), mixers=(entry,))))


def test_a_name_with_fields_of_its_own_is_settled():
    entries = (Entry("bdlru-m2", model={"intermediate_size": 96}), Entry("mine", mixer="native", model={"hidden_size": 48}))
    settled = settle(replace(settings(), mixers=entries))
    ours, native = settled.mixers
    assert (ours.mixer, ours.mixer_config["block_size"], ours.model) == ("bdlru", 2, {"intermediate_size": 96})
    model = build_model(make_config(settled, ours, 256))
    assert type(model.model.layers[0].attn).__name__ == "BDLRU"
    assert type(build_model(make_config(settled, native, 256)).model.layers[0].attn).__name__ == "Attention"
    with pytest.raises(ValueError, match=r"'lstn' is not known.* Did you mean lstm"):
        settle(replace(settings(), mixers=(Entry("lstn", model={"intermediate_size": 96}),)))


def test_stored_runs_are_known_by_their_keys():
    with open("benchmarks/results/lm-quick.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    text = SimpleNamespace(vocab_size=256, digest=rows[0]["text_digest"])
    assert {run.key for run in make_runs(settle(load_settings("quick")), text, 1)} == {row["key"] for row in rows}


def test_every_model_runs_with_one_seed_before_the_next():
    chosen = settings("training.seeds=[3,1]", 'mixers=["bdlru-m4", "lstm"]')
    runs = make_runs(settle(chosen), SimpleNamespace(vocab_size=256, digest="0"), 1)
    assert [(run.seed, run.entry.name) for run in runs] == [(3, "bdlru-m4"), (3, "lstm"), (1, "bdlru-m4"), (1, "lstm")]
