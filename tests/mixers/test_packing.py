"""Packed documents, by `cu_seqlens` or as transformers' padding-free collator gives them: equal to one by one, or refused."""

import copy

import fla.layers.attn
import pytest
import torch
from datasets import Dataset
from fla.models import (
    GatedDeltaNetConfig,
    GatedDeltaNetForCausalLM,
    LinearAttentionConfig,
    LinearAttentionForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
)
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments, default_data_collator
from usage import lively

from fla_bdlru.integrations.lrnnx import LAYERS as LRNNX_LAYERS
from fla_bdlru.mixers import available_mixers
from fla_bdlru.mixers.cache_name import RENAMED
from fla_bdlru.mixers.packing import documents
from fla_bdlru.mixers.registry import _MIXERS, GPU_ONLY
from fla_bdlru.models import BDLRUConfig, BDLRUForCausalLM

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 40, "intermediate_size": 48}
LENGTHS = (5, 1, 7)
ARGUMENTS = {
    "attn": {"num_heads": 4},
    "bdlru": {"use_short_conv": True},
    "bitnet": {"num_heads": 4},
    "comba": {"num_heads": 2, "head_dim": 16},
    "delta_net": {"num_heads": 2},
    "forgetting_attn": {"num_heads": 4},
    "gated_deltanet": {"num_heads": 2, "head_dim": 8},
    "gated_deltaproduct": {"num_heads": 2, "head_dim": 16},
    "gated_retention": {"num_heads": 2},
    "gdn2": {"num_heads": 2, "head_dim": 16},
    "gla": {"num_heads": 2},
    "hgrn": {"mode": "fused_recurrent"},  # its chunk mode refuses cu_seqlens
    "hgrn2": {"expand_ratio": 8},
    "kda": {"num_heads": 2, "head_dim": 16},
    "lightnet": {"expand_ratio": 8},
    "log_linear_mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 16},
    "mamba": {"state_size": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8},
    "mla": {"num_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "v_head_dim": 8, "qk_head_dim": 16, "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8},
    "momentum_deltanet": {"num_heads": 2, "head_dim": 16},
    "raven": {"num_heads": 2, "num_slots": 8, "topk": 4, "add_gumbel_noise": False},
    "rodimus": {"residual_in_fp32": False, "expand_ratio": 8},
}  # fmt: skip
REFUSED = {
    "abc": (NotImplementedError, "cu_seqlens is not supported yet for ABCAttention"),
    "log_linear_mamba2": (ValueError, "LogLinearMamba2 of flash-linear-attention would run on over the boundaries"),
    "mamba": (ValueError, "Mamba of flash-linear-attention would run on over the boundaries"),
    "mamba2": (ValueError, "Mamba2 of flash-linear-attention would run on over the boundaries"),
    "momentum_deltanet": (NotImplementedError, "Variable-length inputs are not yet supported by MomentumDeltaNet"),
}


def build(mixer):
    fields = {"num_heads": 4, "mixer": mixer}
    if isinstance(mixer, str):
        fields["mixer_config"] = ARGUMENTS.get(mixer, {})
    return lively(TransformerForCausalLM(TransformerConfig(**SIZES, **fields)), 0.2)


MODELS = {
    "transformer": lambda: build(["bdlru", "native"]),
    "gated_deltanet": lambda: lively(
        GatedDeltaNetForCausalLM(GatedDeltaNetConfig(**SIZES, num_heads=2, head_dim=8, mixer="hlru")), 0.2
    ),
    "native": lambda: lively(BDLRUForCausalLM(BDLRUConfig(**SIZES)), 0.2),
}
each_model = pytest.mark.parametrize("name", MODELS)


def draw(*lengths):
    return [torch.randint(3, 40, (n,)) for n in lengths]


def packed(docs):
    """Tokens `[1, T]` and `cu_seqlens`."""
    lengths = torch.tensor([len(doc) for doc in docs])
    return torch.cat(docs)[None], torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def one_by_one(model, docs):
    return torch.cat([model(doc[None], use_cache=False).logits for doc in docs], 1)


def gradients(model, logits, weights):
    model.zero_grad()
    (logits * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# the layers of lrnnx refuse packing by name: tests/integrations/test_lrnnx.py; those of the comparison take none
HERE = {name for name in available_mixers() if not getattr(_MIXERS.get(name), "__module__", "").startswith("benchmarks")}


@pytest.mark.parametrize("mixer", sorted(HERE - {*REFUSED, *GPU_ONLY, *LRNNX_LAYERS}))
def test_packed_equals_documents_one_by_one(mixer):
    model, docs = build(mixer), draw(*LENGTHS)
    x, cu_seqlens = packed(docs)
    expected, found = one_by_one(model, docs), model(x, cu_seqlens=cu_seqlens, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(x, cu_seqlens=cu_seqlens.int(), use_cache=False).logits, found)
    leaking = model(x, use_cache=False).logits
    assert (leaking - expected).abs().max() > 1e-2
    weights = torch.randn_like(expected)
    expected, found = gradients(model, expected, weights), gradients(model, found, weights)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("mixer", REFUSED)
@pytest.mark.parametrize("field", ["cu_seqlens", "position_ids"])
def test_mixers_without_packing_refuse_it(mixer, field):
    error, message = REFUSED[mixer]
    model, (x, cu_seqlens) = build(mixer), packed(draw(*LENGTHS))
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    with pytest.raises(error, match=message):
        model(x, **{field: cu_seqlens if field == "cu_seqlens" else positions})


@each_model
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position_ids_start": 2},
        {"return_position_ids": False, "return_seq_idx": True},
        {"return_position_ids": False, "return_flash_attn_kwargs": True},
        {"return_seq_idx": True, "return_flash_attn_kwargs": True},
    ],
    ids=["position_ids", "from-2", "seq_idx", "cu_seq_lens", "all"],
)
def test_transformers_collator(name, options):
    model, docs = MODELS[name](), draw(*LENGTHS)
    try:
        collate = DataCollatorWithFlattening(return_tensors="pt", **options)
    except TypeError as error:
        pytest.skip(f"this version of transformers: {error}")
    batch = collate([{"input_ids": doc} for doc in docs])
    assert "cu_seqlens" not in batch
    out = model(**batch, use_cache=False)
    logits = model(input_ids=batch["input_ids"], cu_seqlens=packed(docs)[1], use_cache=False).logits
    torch.testing.assert_close(logits, one_by_one(model, docs), rtol=1e-4, atol=1e-4)
    losses = torch.nn.functional.cross_entropy(logits[0, :-1], batch["labels"][0, 1:])
    torch.testing.assert_close(out.loss, losses)


@each_model
def test_positions_without_the_head_and_with_embeddings(name):
    model, docs = MODELS[name](), draw(*LENGTHS)
    x, cu_seqlens = packed(docs)
    positions = torch.cat([torch.arange(n) for n in LENGTHS])
    expected = model.model(x, cu_seqlens=cu_seqlens).last_hidden_state
    assert torch.equal(model.model(x, position_ids=positions).last_hidden_state, expected)
    embeddings = model.get_input_embeddings()(x)
    assert torch.equal(model.model(inputs_embeds=embeddings, position_ids=positions[None]).last_hidden_state, expected)
    # a copy keeps its hook, and an explicit cu_seqlens wins
    again = copy.deepcopy(model).model(x, position_ids=torch.arange(x.shape[1])[None], cu_seqlens=cu_seqlens)
    assert torch.equal(again.last_hidden_state, expected)


def test_embeddings_by_position():
    model, docs = MODELS["transformer"](), draw(*LENGTHS)
    (x, cu_seqlens), positions = packed(docs), torch.cat([torch.arange(n) for n in LENGTHS])
    embeddings = model.get_input_embeddings()(x)
    expected = model.model(x, cu_seqlens=cu_seqlens).last_hidden_state
    assert torch.equal(model.model(None, None, None, embeddings, position_ids=positions).last_hidden_state, expected)


def test_trainer_with_the_collator(tmp_path):
    """A step of transformers' Trainer on a flattened batch is a step on the documents, each token counted once."""
    docs = draw(4, 6, 3, 5)
    model = MODELS["gated_deltanet"]()
    expected = copy.deepcopy(model)
    arguments = TrainingArguments(
        tmp_path, per_device_train_batch_size=4, max_steps=1, learning_rate=0.1, optim="sgd", max_grad_norm=0.0,
        report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", remove_unused_columns=False,
        lr_scheduler_type="constant",
    )  # fmt: skip
    rows = [{"input_ids": doc} for doc in docs]
    Trainer(model, arguments, train_dataset=rows, data_collator=DataCollatorWithFlattening()).train()
    total = sum(expected(doc[None], labels=doc[None], use_cache=False).loss * (len(doc) - 1) for doc in docs)
    (total / sum(len(doc) - 1 for doc in docs)).backward()
    for found, parameter in zip(model.parameters(), expected.parameters()):
        torch.testing.assert_close(found, parameter - 0.1 * parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["native", "gated_deltanet", "peft"])
def test_trainer_keeps_the_columns_of_packed_documents(name, tmp_path):
    """A dataset that is packed already, under Trainer's default of dropping what `forward` does not name."""
    model, docs = MODELS["native" if name == "peft" else name]().eval(), draw(*LENGTHS)
    row, positions = torch.cat(docs), torch.cat([torch.arange(n) for n in LENGTHS])
    columns = {"input_ids": row.tolist(), "position_ids": positions.tolist(), "labels": row.tolist(), "stray": 1}
    expected = model(row[None], position_ids=positions[None], labels=row[None], use_cache=False).loss.item()
    run_together = model(row[None], labels=row[None], use_cache=False).loss.item()
    if name == "peft":
        model = get_peft_model(model, LoraConfig(target_modules=["o_proj"], task_type="CAUSAL_LM"))
    arguments = TrainingArguments(tmp_path, report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = Trainer(model, arguments, eval_dataset=Dataset.from_list([columns]), data_collator=default_data_collator)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)
    assert abs(run_together - expected) > 1e-2 * expected
    assert "stray" not in trainer._signature_columns


def test_trainer_drops_columns_for_other_models_as_before(tmp_path):
    model = TransformerForCausalLM(TransformerConfig(**SIZES, num_heads=4))
    trainer = Trainer(model, TrainingArguments(tmp_path, report_to=[], use_cpu=True))
    trainer._set_signature_columns_if_needed()
    assert "position_ids" not in trainer._signature_columns


@each_model
def test_padded_generation_with_positions(name):
    """What transformers' own models are given for left-padded batches is no packing."""
    model, (row,) = MODELS[name]().eval(), draw(4)
    x, mask = torch.nn.functional.pad(row, (2, 0))[None], torch.tensor([[0, 0, 1, 1, 1, 1]])
    expected = model(row[None]).logits
    for fill in (0, 1):
        positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, fill)
        with torch.no_grad():
            out = model(x, attention_mask=mask, position_ids=positions, use_cache=True)
            torch.testing.assert_close(out.logits[:, 2:], expected, rtol=1e-4, atol=1e-5)
            step = model(
                row[-1:][None], attention_mask=torch.ones(1, 7), past_key_values=out.past_key_values,
                position_ids=torch.tensor([[4]]), use_cache=True,
            )  # fmt: skip
        assert step.logits.shape == (1, 1, 40)


DOCUMENTS = [
    ((1, 5), {"position_ids": [[0, 1, 2, 0, 1]]}, [0, 3, 5]),
    ((1, 5), {"position_ids": [0, 0, 0, 1, 0]}, [0, 1, 2, 4, 5]),
    ((1, 5), {"position_ids": [[7, 8, 9, 0, 1]]}, [0, 3, 5]),
    ((1, 5), {"position_ids": [[3, 4, 5, 6, 7]]}, None),
    ((3, 5), {"position_ids": [[0, 1, 2, 3, 4]]}, None),
    ((1, 1), {"position_ids": [[9]]}, None),
    ((2, 3), {"position_ids": [[1, 1, 0], [0, 1, 2]], "attention_mask": [[0, 0, 1], [1, 1, 1]]}, None),
    ((1, 4), {"position_ids": [[0, 1, 0, 1]], "attention_mask": [[1, 1, 1, 1]]}, [0, 2, 4]),
    ((1, 4), {"position_ids": [[0, 1, 2, 3]], "attention_mask": [[1, 1, 0, 1]]}, None),
    ((1, 4), {"seq_idx": [[0, 0, 1, 2]]}, [0, 2, 3, 4]),
    ((2, 4), {"seq_idx": [[0, 0, 0, 0], [5, 5, 5, 5]]}, None),
    ((1, 4), {"cu_seq_lens_q": [0, 3, 4], "position_ids": [[0, 1, 2, 3]]}, [0, 3, 4]),
    ((1, 4), {"position_ids": None}, None),
]  # fmt: skip
ERRORS = [
    ((2, 4), {"position_ids": [[0, 1, 0, 1], [0, 1, 2, 3]]}, "position_ids has several documents in a row.* a batch of 2"),
    ((2, 4), {"seq_idx": [[0, 0, 1, 1]]}, "seq_idx has several documents in a row.* a batch of 2"),
    ((1, 4), {"position_ids": [[0, 1, 3, 4]]}, "position_ids must count up by one.* Got a step of 2"),
    ((1, 5), {"position_ids": [[0, 1, 0, 0, 1]], "attention_mask": [[1, 1, 0, 1, 1]]}, "position_ids has several .* padding"),
    ((1, 4), {"position_ids": [[1, 0, 0, 1]], "attention_mask": [[0, 1, 1, 1]]}, "position_ids has several .* padding"),
    ((1, 4), {"position_ids": [[0, 1, 0, 1]], "attention_mask": [[1, 1]]}, r"attention_mask must have shape .* got \[1, 2\]"),
    ((1, 5), {"position_ids": [[0, 1, 2]]}, r"position_ids must have shape \[1, 5\], as the inputs; got \[1, 3\]"),
    ((1, 2), {"position_ids": [[[0, 1]]]}, r"position_ids must have shape \[1, 2\].* got \[1, 1, 2\]"),
    ((1, 4), {"cu_seq_lens_q": [0, 3, 4], "cu_seq_lens_k": [0, 2, 4]}, r"must be equal; got \[0, 3, 4\] and \[0, 2, 4\]"),
]  # fmt: skip


def tensors(fields):
    return {name: None if value is None else torch.tensor(value) for name, value in fields.items()}


@pytest.mark.parametrize("shape, fields, expected", DOCUMENTS)
def test_documents(shape, fields, expected):
    found = documents(*shape, **tensors(fields))
    assert (None if found is None else found.tolist()) == expected


@pytest.mark.parametrize("mixer", ["bdlru", "hlru", "lstm", "gated_deltaproduct", "rwkv6"])
@pytest.mark.parametrize("options", [{}, {"return_flash_attn_kwargs": True, "return_position_ids": False}])
def test_boundaries_are_those_that_flash_attention_takes(mixer, options, monkeypatch):
    """int32, from tokens that are numbered and from lengths; on a GPU it refuses others."""
    model, docs, seen = build([mixer, "native"]), draw(*LENGTHS), []
    attention = fla.layers.attn.flash_attn_varlen_func

    def spy(*args, cu_seqlens_q, cu_seqlens_k, **kwargs):
        seen.extend((cu_seqlens_q.dtype, cu_seqlens_k.dtype))
        return attention(*args, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, **kwargs)

    monkeypatch.setattr(fla.layers.attn, "flash_attn_varlen_func", spy)
    batch = DataCollatorWithFlattening(return_tensors="pt", **options)([{"input_ids": doc} for doc in docs])
    out = model(**batch, use_cache=False)
    torch.testing.assert_close(out.logits, one_by_one(model, docs), rtol=1e-4, atol=1e-4)
    assert seen == [torch.int32] * 2
    out.loss.backward()


def test_boundaries_are_of_one_type():
    found = documents(1, 4, cu_seq_lens_q=torch.tensor([0, 3, 4]))
    assert found.dtype == documents(1, 4, seq_idx=torch.tensor([[0, 0, 0, 1]])).dtype == torch.int32


@pytest.mark.parametrize("shape, fields, message", ERRORS)
def test_documents_errors(shape, fields, message):
    with pytest.raises(ValueError, match=message):
        documents(*shape, **tensors(fields))


def test_calls_without_proper_inputs():
    model = BDLRUForCausalLM(BDLRUConfig(**SIZES))
    positions = torch.arange(4)[None]
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        model(position_ids=positions)
    with pytest.raises(ValueError, match=r"input_ids must have shape \[B, T\]; got \[4\]"):
        model(torch.arange(4), position_ids=positions)
    with pytest.raises(ValueError, match=r"inputs_embeds must have shape \[B, T, D\]; got \[32\]"):
        model(inputs_embeds=torch.zeros(32), position_ids=positions)
    with pytest.raises(ValueError, match=r"position_ids must be a tensor; got \[\[0, 1, 2, 3\]\]"):
        model(positions, position_ids=[[0, 1, 2, 3]])


def test_a_model_that_drops_the_boundaries_refuses_them():
    model, (x, cu_seqlens) = LinearAttentionForCausalLM(LinearAttentionConfig(**SIZES, mixer="bdlru")), packed(draw(*LENGTHS))
    with pytest.raises(ValueError, match="LinearAttentionModel of flash-linear-attention would run on over the boundaries"):
        model(x, cu_seqlens=cu_seqlens)
    assert model(x).logits.shape == (1, 13, 40)


def test_models_without_our_mixers_are_left_alone():
    model = TransformerForCausalLM(TransformerConfig(**SIZES, num_heads=4))
    expected = ["fla_bdlru.mixers.cache_name"] * RENAMED  # the cache's name, in newer versions of transformers
    for part in (model, model.model):
        assert [hook.__module__ for hook in part._forward_pre_hooks.values()] == expected
