"""What users of transformers do with a model: generate, save and load, pipelines, checkpointing, PEFT, half types."""

import json
from pathlib import Path

import pytest
import torch
from fla.models import GatedDeltaNetConfig, TransformerConfig
from fresh import run_fresh
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)
from usage import greedy, lively, train

from fla_bdlru.layers import BDLRU
from fla_bdlru.layers.gated import GatedRecurrence
from fla_bdlru.models import BDLRUConfig, HLRUConfig

ROOT = Path(__file__).parents[2]
VOCAB = 48
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCAB, "intermediate_size": 48}
MODELS = {
    "gated_deltanet": (GatedDeltaNetConfig, {"num_heads": 2, "head_dim": 8, "mixer": "bdlru"}),
    "transformer-mixed": (
        TransformerConfig,
        {
            "num_heads": 4,
            "mixer": ["hlru", "bdlru"],
            "mixer_config": {
                "hlru": {"order": 2, "use_short_conv": True},
                "bdlru": {"gate_bias": "memory", "use_output_gate": True},
            },
        },
    ),
    "transformer-hybrid": (TransformerConfig, {"num_heads": 4, "mixer": ["bdlru", "native"]}),
    "transformer-lstm": (TransformerConfig, {"num_heads": 4, "mixer": "lstm"}),
    "bdlru": (BDLRUConfig, {"block_size": 2, "gate_norm": "tanh"}),
    "hlru": (HLRUConfig, {"order": 3}),
}
each_model = pytest.mark.parametrize("name", MODELS)
GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def build(name, **kwargs):
    Config, fields = MODELS[name]
    return lively(AutoModelForCausalLM.from_config(Config(**SIZES, **fields, **kwargs))).eval()


def tokens(*shape):
    return torch.randint(3, VOCAB, shape)


def generate(model, x, mask=None, **kwargs):
    mask = torch.ones_like(x) if mask is None else mask
    return model.generate(x, attention_mask=mask, max_new_tokens=8, **{**GREEDY, **kwargs})


def full_greedy(model, x, steps=8):
    return greedy(model, x, steps, use_cache=False)


@each_model
def test_greedy_generation_equals_full_forwards(name):
    model = build(name)
    for x in (tokens(3, 7), tokens(1, 1)):
        expected = full_greedy(model, x)
        assert torch.equal(generate(model, x, use_cache=True), expected)
        assert torch.equal(generate(model, x, use_cache=False), expected)


@each_model
def test_beam_search_equals_full_forwards(name):
    """The cache is reordered with the beams: same beams without one, and scores that a single whole forward gives."""
    model, x = build(name), tokens(2, 5)
    beams = {"num_beams": 3, "num_return_sequences": 3, "return_dict_in_generate": True, "output_scores": True}
    out = generate(model, x, use_cache=True, **beams)
    assert torch.equal(out.sequences, generate(model, x, use_cache=False, **beams).sequences)
    with torch.no_grad():
        logp = model(out.sequences, use_cache=False).logits.log_softmax(-1)[:, 4:-1]
    scores = logp.gather(-1, out.sequences[:, 5:, None]).sum((1, 2)) / 8
    torch.testing.assert_close(out.sequences_scores, scores, rtol=1e-4, atol=1e-4)
    assert (out.sequences[0, 5:] != out.sequences[1, 5:]).any()


@each_model
def test_sampling_with_and_without_the_cache(name):
    model, x, drawn = build(name), tokens(2, 5), []
    for use_cache in (True, False):
        torch.manual_seed(1)
        drawn.append(generate(model, x, use_cache=use_cache, do_sample=True, num_return_sequences=2))
    assert torch.equal(*drawn)


@each_model
@pytest.mark.parametrize("num_beams", [1, 3])
def test_left_padded_batch_equals_single_sequences(name, num_beams):
    model, rows = build(name), [tokens(1, n) for n in (7, 3, 1)]
    padded = torch.cat([torch.nn.functional.pad(row, (7 - row.shape[1], 0)) for row in rows])
    mask = torch.stack([(torch.arange(7) >= 7 - row.shape[1]).long() for row in rows])
    batch = generate(model, padded, mask, num_beams=num_beams)[:, 7:]
    for i, row in enumerate(rows):
        assert torch.equal(batch[i], generate(model, row, num_beams=num_beams)[0, row.shape[1] :])


@each_model
@pytest.mark.parametrize("tied", [True, False])
def test_generation_after_save_and_load(name, tied, tmp_path):
    model, x = build(name, tie_word_embeddings=tied), tokens(2, 5)
    for layer in model.modules():  # trained away from where it starts
        if isinstance(layer, GatedRecurrence):
            torch.nn.init.normal_(layer.a_proj.bias)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
    assert torch.equal(generate(loaded, x), full_greedy(model, x))
    # what is saved again is the same
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("tied", [True, False])
def test_resized_embeddings(tied):
    model, x = build("gated_deltanet", tie_word_embeddings=tied), tokens(1, 5)
    expected = model(x).logits
    model.resize_token_embeddings(VOCAB + 8)
    assert model(x).logits.shape[-1] == VOCAB + 8
    torch.testing.assert_close(model(x).logits[..., :VOCAB], expected)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied


@each_model
def test_text_generation_pipeline(name):
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", padding_side="left")
    model = build(name)
    model.generation_config.eos_token_id = None
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompts = ["w3 w4 w5 w6 w7", "w8", "w9 w10"]
    texts = generator(prompts, batch_size=3, max_new_tokens=6, do_sample=False)
    for prompt, (text,) in zip(prompts, texts):
        x = torch.tensor([[words[w] for w in prompt.split()]])
        expected = full_greedy(model, x, 6)[0, x.shape[1] :]
        generated = text["generated_text"].removeprefix(prompt)
        assert generated.split() == tokenizer.decode(expected, skip_special_tokens=True).split()


@each_model
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("cu_seqlens", [None, [0, 3, 4, 12]], ids=["whole", "packed"])
def test_gradient_checkpointing(name, use_reentrant, cu_seqlens):
    model, x = build(name).train(), tokens(1, 12)
    cu_seqlens = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    calls = []
    mixer = model.model.layers[0].attn
    mixer.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))

    def gradients():
        model.zero_grad()
        calls.clear()
        model(x, labels=x, cu_seqlens=cu_seqlens, use_cache=False).loss.backward()
        return [p.grad.clone() for p in model.parameters()], len(calls)

    expected, once = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    found, twice = gradients()
    assert (once, twice) == (1, 2)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["gated_deltanet", "transformer-mixed", "bdlru", "hlru"])
@pytest.mark.parametrize("targets", [["v_proj", "a_proj", "o_proj"], "all-linear"], ids=["projections", "all-linear"])
def test_lora(name, targets, tmp_path):
    # FLA's fused SwiGLU reads the weight of down_proj past an adapter
    base, x = build(name, fuse_swiglu=targets != "all-linear"), tokens(4, 10)
    before = base(x).logits
    model = get_peft_model(base, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=True))
    adapted = {key.rsplit(".lora_A", 1)[0].rsplit(".", 1)[1] for key, _ in model.named_parameters() if "lora_A" in key}
    assert {"v_proj", "a_proj", "o_proj"} <= adapted
    torch.testing.assert_close(model(x).logits, before)

    def check():
        assert all((p.grad is not None) == ("lora_" in key) for key, p in model.named_parameters())

    losses = train(model.train(), lambda model: model(input_ids=x, labels=x).loss, 4, 1e-2, check)
    assert losses[3] < losses[0]

    model.eval()
    expected = generate(model, x)
    model.save_pretrained(tmp_path)
    fresh = build(name, fuse_swiglu=base.config.fuse_swiglu)
    below = {key.replace(".base_layer", ""): value for key, value in base.state_dict().items() if "lora_" not in key}
    fresh.load_state_dict(below)
    again = PeftModel.from_pretrained(fresh, tmp_path).eval()
    with torch.no_grad():
        logits = model(x).logits
        assert torch.equal(again(x).logits, logits)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(x).logits, logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(full_greedy(merged, x), expected)


@each_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loading_in_half_types(name, dtype, tmp_path):
    model, x = build(name), tokens(2, 7)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert all(torch.equal(value, model.state_dict()[key].to(dtype)) for key, value in loaded.state_dict().items())
    rounded = build(name)
    rounded.load_state_dict({key: value.float() for key, value in loaded.state_dict().items()})
    with torch.no_grad():
        expected, logits = rounded(x).logits, loaded(x)
    error = (logits.logits.float() - expected).abs().max() / expected.abs().max()
    assert error < (0.05 if dtype == torch.bfloat16 else 0.01)
    # states stay in float32
    for layer_idx, layer in enumerate(loaded.model.layers):
        if isinstance(layer.attn, GatedRecurrence):
            assert logits.past_key_values[layer_idx]["recurrent_state"].dtype == torch.float32
    assert generate(loaded, x).shape == (2, 15)
    loaded.save_pretrained(tmp_path / "half")
    auto = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert {p.dtype for p in auto.parameters()} == {dtype}


WITHOUT = """
import sys, warnings
import fla
from fla.models import GatedDeltaNetForCausalLM, TransformerForCausalLM
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
assert "fla_bdlru" not in sys.modules
for path, cls in ((sys.argv[1], GatedDeltaNetForCausalLM), (sys.argv[2], TransformerForCausalLM)):
    for load in (
        lambda: AutoModelForCausalLM.from_pretrained(path),
        lambda: AutoModel.from_pretrained(path),
        lambda: AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path)),
        lambda: cls.from_pretrained(path),
        lambda: cls.from_pretrained(path, dtype="bfloat16", ignore_mismatched_sizes=True),
        lambda: cls(cls.config_class.from_pretrained(path)),
    ):
        try:
            load()
            print("built another model")
        except ValueError as error:
            print(error)
"""


def test_a_saved_mixer_is_refused_where_this_package_was_not_imported(tmp_path):
    paths = [tmp_path / "gated_deltanet", tmp_path / "transformer"]
    build("gated_deltanet").save_pretrained(paths[0])
    build("transformer-hybrid").save_pretrained(paths[1])
    lines = run_fresh("-c", WITHOUT, *paths, cwd=tmp_path).splitlines()
    assert len(lines) == 12
    assert all('attn_implementation="fla_bdlru"` is not supported' in line for line in lines), lines


def test_only_configs_with_another_mixer_are_marked(tmp_path):
    def marked(**fields):
        config = TransformerConfig(**SIZES, num_heads=4, **fields)
        config.save_pretrained(tmp_path)
        return json.loads((tmp_path / "config.json").read_text()).get("attn_implementation") == "fla_bdlru"

    assert marked(mixer="bdlru")
    assert marked(mixer="gated_deltanet")
    assert marked(mixer=["native", "hlru"])
    assert not marked()
    assert not marked(mixer=None)
    assert not marked(mixer="native")
    assert not marked(mixer=["native", "native"])
    assert not marked(mixer=("native", "native"))
    others = type("OtherConfig", (PreTrainedConfig,), {"model_type": "other"})(mixer="convolution")
    assert others.to_dict()["mixer"] == "convolution"
    assert "attn_implementation" not in others.to_dict()


def test_a_checkpoint_without_the_mark_still_loads(tmp_path):
    """What earlier versions saved."""
    model, x = build("gated_deltanet"), tokens(1, 5)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    assert fields.pop("attn_implementation") == "fla_bdlru"
    path.write_text(json.dumps(fields))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(loaded.model.layers[0].attn, BDLRU)
    assert torch.equal(loaded(x).logits, model(x).logits)


def test_trainer_goes_on_from_a_checkpoint(tmp_path):
    """transformers' Trainer: stopped after two steps and resumed, it ends with the weights of a run in one go."""
    rows = [{"input_ids": row, "labels": row} for row in tokens(8, 6)]
    start = build("gated_deltanet").state_dict()

    def train(folder, resume=False, **kwargs):
        model = build("gated_deltanet")
        model.load_state_dict(start)
        options = {"per_device_train_batch_size": 2, "max_steps": 4, "save_steps": 2, "learning_rate": 1e-2}
        arguments = TrainingArguments(folder, report_to=[], use_cpu=True, disable_tqdm=True, seed=0, **{**options, **kwargs})
        Trainer(model, arguments, train_dataset=rows).train(resume_from_checkpoint=resume)
        return model

    whole = train(tmp_path / "whole")
    resumed = train(tmp_path / "whole", resume=str(tmp_path / "whole/checkpoint-2"))
    for (key, a), b in zip(whole.named_parameters(), resumed.parameters()):
        assert not torch.equal(a, start[key]), key
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "whole/checkpoint-4")
    assert torch.equal(saved.lm_head.weight, resumed.lm_head.weight)
