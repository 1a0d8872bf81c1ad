"""What users of FLA, mamba_ssm and transformers have reported, tried on a recurrent, a convolved and a hybrid model."""

import copy
import io
import pickle
import threading

import pytest
import torch

pytest.importorskip("triton", reason="FLA's layers import Triton")

from fla.models import TransformerConfig, TransformerForCausalLM
from fla.models.utils import Cache
from transformers import Trainer, TrainingArguments

from fla_bdlru import BDLRUConfig, BDLRUForCausalLM

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 40, "intermediate_size": 48}
ENDLESS = {"eos_token_id": None, "pad_token_id": 0}
HYBRID = {**SIZES, **ENDLESS, "num_heads": 4, "mixer": ["bdlru", "native"]}
MODELS = {
    "plain": lambda: BDLRUForCausalLM(BDLRUConfig(**SIZES, **ENDLESS)),
    "convolved": lambda: BDLRUForCausalLM(BDLRUConfig(**SIZES, **ENDLESS, use_short_conv=True, use_output_gate=True)),
    "hybrid": lambda: TransformerForCausalLM(TransformerConfig(**HYBRID)),
    "window": lambda: TransformerForCausalLM(TransformerConfig(**HYBRID, window_size=4)),
}
GREEDY = {"max_new_tokens": 5, "do_sample": False}


def draw(*shape):
    return torch.randint(3, 40, shape)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(params=MODELS)
def model(request):
    model = MODELS[request.param]()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@torch.no_grad()
def test_batches_padded_on_the_left_generate_what_rows_do(model):
    """transformers#31540, fla#204; with an attention window fla#431."""
    long, short = draw(1, 7), draw(1, 4)
    mask = torch.tensor([[1] * 7, [0] * 3 + [1] * 4])
    out = model.generate(torch.cat([long, torch.cat([mask[1:, :3], short], 1)]), attention_mask=mask, **GREEDY)
    assert torch.equal(out[:1], model.generate(long, **GREEDY))
    assert torch.equal(out[1:, 3:], model.generate(short, use_cache=False, **GREEDY))


@torch.no_grad()
def test_generation_with_beams_pieces_prefixes_and_turns(model):
    """Beams reorder states; a prompt in pieces; fla#555; a second turn on the first one's cache."""
    x = draw(2, 9)
    beams = {"num_beams": 3, "num_return_sequences": 2, **GREEDY}
    assert torch.equal(model.generate(x, **beams), model.generate(x, use_cache=False, **beams))
    expected = model.generate(x, return_dict_in_generate=True, **GREEDY)
    if not getattr(model.config, "window_size", None):  # FLA's attention has an index out of bounds there, fla#431
        assert torch.equal(model.generate(x, prefill_chunk_size=4, past_key_values=Cache(), **GREEDY), expected.sequences)
        prefix = model(x[:, :5], use_cache=True).past_key_values
        assert torch.equal(model.generate(x, past_key_values=prefix, **GREEDY), expected.sequences)
        turn = torch.cat([expected.sequences, draw(2, 3)], 1)
        options = {**GREEDY, "attention_mask": torch.ones_like(turn)}  # else padding is where the pad token is
        continued = model.generate(turn, past_key_values=expected.past_key_values, **options)
        assert torch.equal(continued, model.generate(turn, **options))


@torch.no_grad()
def test_caches_are_copied_pickled_and_converted(model):
    """fla#601, fla#747."""
    x = draw(2, 9)
    expected, cache = model(x).logits[:, 8:], model(x[:, :8], use_cache=True).past_key_values
    assert cache.get_seq_length() == cache.get_seq_length(1) == 8
    legacy = Cache.from_legacy_cache(copy.deepcopy(cache).to_legacy_cache(), seen_tokens=8)
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache)), legacy):
        close(model(x[:, 8:], past_key_values=other, use_cache=True).logits, expected)
    cache.reorder_cache(torch.tensor([1, 1]))
    close(model(x[1:, 8:].expand(2, 1), past_key_values=cache, use_cache=True).logits, expected[[1, 1]])


@torch.no_grad()
def test_steps_equal_the_whole_and_empty_documents_change_nothing(model):
    """mamba#683 (wrong after some thirty steps); fla#103."""
    x, cache, logits = draw(1, 60), None, []
    for t in range(60):
        out = model(x[:, t : t + 1], past_key_values=cache, use_cache=True)
        cache, logits = out.past_key_values, [*logits, out.logits]
    close(torch.cat(logits, 1), model(x).logits)
    cu_seqlens = torch.tensor([0, 0, 7, 7, 7, 60, 60], dtype=torch.int32)
    parts = [model(part, use_cache=False).logits for part in (x[:, :7], x[:, 7:])]
    close(model(x, cu_seqlens=cu_seqlens, use_cache=False).logits, torch.cat(parts, 1))


@torch.no_grad()
def test_a_model_is_resized_pickled_and_called_from_threads(model):
    x, out, buffer = draw(2, 6), [None] * 4, io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x).logits, model(x).logits)
    expected = model.generate(x, **GREEDY)

    def generate(i):
        out[i] = model.generate(x, **GREEDY)

    threads = [threading.Thread(target=generate, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(each, expected) for each in out)
    model.resize_token_embeddings(47)
    assert model(x + 7, labels=x).logits.shape == (2, 6, 47)


def trainer_of(model, folder, rows, **options):
    quiet = {"report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "max_steps": 1}
    return Trainer(model, TrainingArguments(folder, **quiet, **options), train_dataset=rows, eval_dataset=rows)


@torch.no_grad()
def test_smoothed_labels_are_those_of_the_next_token(model, tmp_path):
    """transformers' Trainer shifts labels for the names that it knows, with `label_smoothing_factor`."""
    x = draw(2, 8)
    trainer = trainer_of(model, tmp_path, [{"input_ids": row} for row in x], label_smoothing_factor=1e-6)
    close(trainer.compute_loss(model, {"input_ids": x, "labels": x.clone()}), model(x, labels=x).loss)


def test_generating_with_checkpointed_blocks_is_refused(model):
    """In training they drop the cache, and every token but the last would be forgotten."""
    x, cache = draw(2, 6), model(draw(2, 3), use_cache=True).past_key_values
    expected = model.generate(x, **GREEDY)
    model.gradient_checkpointing_enable()
    assert torch.equal(model.generate(x, **GREEDY), expected)
    model.train()
    for call in (lambda: model.generate(x, **GREEDY), lambda: model(x, past_key_values=cache)):
        with pytest.raises(ValueError, match=r"gradient_checkpointing in training drops the cache"):
            call()
    model(x, labels=x, use_cache=True).loss.backward()
    assert torch.equal(model.generate(x, use_cache=False, **GREEDY), expected)
    model.gradient_checkpointing_disable()
    assert torch.equal(model.generate(x, **GREEDY), expected)


def test_accumulated_gradients_are_those_of_the_batch(model, tmp_path):
    """transformers' Trainer leaves the division to models that take its `num_items_in_batch`; rows have unequal labels."""
    rows = [{"input_ids": row, "labels": row.clone()} for row in draw(4, 8)]
    rows[0]["labels"][:5] = -100
    steps = []
    for batch, accumulated in ((4, 1), (1, 4)):
        options = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0}
        options |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated}
        trained = copy.deepcopy(model)
        trainer = trainer_of(trained, tmp_path, rows, **options)
        trainer.train()
        steps.append(torch.cat([(p - q).flatten() for p, q in zip(trained.parameters(), model.parameters())]))
    close(*steps)
    assert trainer.predict([{"input_ids": row["input_ids"]} for row in rows]).predictions.shape == (4, 8, 40)  # no cache in it
