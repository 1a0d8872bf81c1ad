"""transformers 5.24 calls `cache` what FLA 0.6 calls `past_key_values`: both reach a model, by hand and in `generate`."""

import inspect

import numpy as np
import pytest
import torch
from fla.models import TransformerConfig, TransformerForCausalLM, YOCOConfig, YOCOForCausalLM
from fla.models.utils import Cache
from transformers import Trainer, TrainingArguments

from fla_bdlru import BDLRUConfig, BDLRUForCausalLM, BDLRUForTokenClassification
from fla_bdlru.mixers.cache_name import CACHE, NEW, OLD, RENAMED, cache_of, given_cache

VOCAB = 40
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCAB}
ATTENTION = {**SIZES, "num_heads": 4}
YOCO = {**SIZES, "num_self_decoder_layers": 1, "cross_decoder_attn": {"num_heads": 4}, "mixer": "bdlru"}
BUILD = {
    "bdlru": lambda: BDLRUForCausalLM(BDLRUConfig(**SIZES)),
    "hybrid": lambda: TransformerForCausalLM(TransformerConfig(**ATTENTION, mixer=["bdlru", "native"])),
    "FLA's own": lambda: TransformerForCausalLM(TransformerConfig(**ATTENTION)),
    "yoco": lambda: YOCOForCausalLM(YOCOConfig(**YOCO)),
}
# FLA's own is left alone where transformers has not renamed anything
TAKES_BOTH = [name for name in BUILD if RENAMED or name != "FLA's own"]


def build(name):
    torch.manual_seed(0)
    return BUILD[name]().eval()


@pytest.mark.parametrize("name", TAKES_BOTH)
def test_a_call_takes_either_name(name):
    model, x = build(name), torch.randint(3, VOCAB, (2, 9))
    expected = model(x).logits[:, 8:]
    for word in (OLD, NEW):
        cache = cache_of(model(x[:, :8], use_cache=True))
        torch.testing.assert_close(model(x[:, 8:], use_cache=True, **{word: cache}).logits, expected, rtol=1e-4, atol=1e-5)
        assert cache.get_seq_length() == 9


def test_a_head_takes_either_name():
    torch.manual_seed(0)
    model, x = BDLRUForTokenClassification(BDLRUConfig(**SIZES)).eval(), torch.randint(3, VOCAB, (2, 9))
    for word in (OLD, NEW):
        cache = cache_of(model.model(x[:, :5], use_cache=True))
        rest = model(x[:, 5:], use_cache=True, **{word: cache}).logits
        torch.testing.assert_close(rest, model(x).logits[:, 5:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BUILD)
def test_generation_reads_what_came_before(name):
    """Token by token behind a cache as from the start each time; one that was given is taken, and grows."""
    model, x = build(name), torch.randint(3, VOCAB, (2, 7))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(x, use_cache=False, **options)
    assert torch.equal(model.generate(x, **options), expected)
    cache = cache_of(model(x[:, :6], use_cache=True))
    assert torch.equal(model.generate(x, **{CACHE: cache}, **options), expected)
    assert cache.get_seq_length() == 12
    kept = model.generate(x, return_dict_in_generate=True, **options)
    assert cache_of(kept).get_seq_length() == 12


@pytest.mark.parametrize("name", BUILD)
def test_prepared_inputs_are_those_of_the_new_tokens(name):
    """As callers of their own have it: by position, with positions of the cache, without a number of logits."""
    model, x = build(name), torch.randint(3, VOCAB, (2, 7))
    cache = cache_of(model(x[:, :5], use_cache=True))
    inputs = model.prepare_inputs_for_generation(
        x, cache_position=torch.arange(5, 7), logits_to_keep=None, **{CACHE: cache}, attention_mask=torch.ones(2, 7)
    )
    assert inputs[OLD] is cache
    assert (inputs["use_cache"], NEW in inputs, "logits_to_keep" in inputs) == (True, False, False)
    assert torch.equal(inputs["input_ids"], x[:, 5:])
    embeddings = torch.randn(2, 7, 32)
    inputs = model.prepare_inputs_for_generation(None, inputs_embeds=embeddings, use_cache=False, is_first_iteration=True)
    assert torch.equal(inputs["inputs_embeds"], embeddings)
    assert (inputs.get(OLD), inputs["use_cache"]) == (None, False)


def test_two_caches_are_refused():
    model, x, cache = build("bdlru"), torch.randint(3, VOCAB, (1, 3)), Cache()
    with pytest.raises(ValueError, match="past_key_values and cache are two names of one argument; pass one of them"):
        model(x, past_key_values=cache, cache=Cache())
    assert given_cache({OLD: cache, NEW: cache}) is cache
    assert given_cache({OLD: None, NEW: cache}) is cache
    with pytest.raises(ValueError, match=r"past_key_values must be a fla.models.utils.Cache; got int"):
        model(x, cache=3)


@pytest.mark.parametrize("name", ["bdlru", "hybrid"])
def test_blocks_that_run_again_in_the_backward_find_no_cache(name):
    """Checkpointed, with the cache on: what a block left there would be what it starts from the second time."""
    model, x, grads = build(name).train(), torch.randint(3, VOCAB, (2, 8)), []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        out = model(x, use_cache=checkpointed)
        out.logits.square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert cache_of(out) is None
    for plain, again in zip(*grads):
        torch.testing.assert_close(again, plain)


@pytest.mark.parametrize("name", BUILD)
def test_predictions_are_logits_alone(name, tmp_path):
    """`Trainer.predict` without labels: not the cache, which cannot be gathered."""
    rows = [{"input_ids": torch.randint(3, VOCAB, (6,))} for _ in range(3)]
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, per_device_eval_batch_size=3)
    trainer = Trainer(build(name), arguments)
    trainer.model.config.use_cache = True  # as `TrainingArguments(use_cache=True)` leaves it
    predictions = trainer.predict(rows).predictions
    assert isinstance(predictions, np.ndarray)
    assert predictions.shape == (3, 6, VOCAB)


def test_transformers_calls_it_as_this_package_does():
    from transformers import LlamaForCausalLM

    assert CACHE in inspect.signature(LlamaForCausalLM.forward).parameters
