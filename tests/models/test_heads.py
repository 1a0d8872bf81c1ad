"""Heads that classify rows and tokens, one that fills in masked tokens, and models that read both ways."""

import copy

import pytest
import torch
from fla.models import GLAConfig, GLAForCausalLM
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainingArguments,
)
from usage import lively

import fla_bdlru
from fla_bdlru.layers import Bidirectional

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "vocab_size": 30,
    "intermediate_size": 16,
    "pad_token_id": 0,
    "num_labels": 3,
}
AUTO = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForMaskedLM": AutoModelForMaskedLM,
}
each_family = pytest.mark.parametrize("family", ["BDLRU", "HLRU"])
each_head = pytest.mark.parametrize("head, bidirectional", [
    ("ForSequenceClassification", False), ("ForSequenceClassification", True),
    ("ForTokenClassification", False), ("ForTokenClassification", True), ("ForMaskedLM", True),
])  # fmt: skip


def build(family, head, bidirectional=False, **fields):
    config = getattr(fla_bdlru, f"{family}Config")(**SIZES, bidirectional=bidirectional, **fields)
    model = AUTO[head].from_config(config) if head in AUTO else getattr(fla_bdlru, family + head)(config)
    return lively(model).eval()


@each_family
@each_head
def test_rows_are_as_without_their_padding(family, head, bidirectional, tmp_path):
    """Left and right padding; labels and their gradient; saved and loaded by the Auto class."""
    model = build(family, head, bidirectional)
    assert type(model).__name__ == family + head
    assert isinstance(model.model.layers[1].attn, Bidirectional) == bidirectional
    rows = [torch.randint(1, 30, (n,)) for n in (5, 3, 7)]
    x, mask = torch.zeros(2, 3, 7, dtype=torch.long), torch.zeros(2, 3, 7, dtype=torch.long)
    for i, row in enumerate(rows):
        x[0, i, : len(row)], mask[0, i, : len(row)] = row, 1
        x[1, i, 7 - len(row) :], mask[1, i, 7 - len(row) :] = row, 1
    for ids, seen in zip(x, mask):
        logits = model(ids, attention_mask=seen).logits
        for row, out, where in zip(rows, logits, seen.bool()):
            alone = model(row[None]).logits[0]
            torch.testing.assert_close(out if head == "ForSequenceClassification" else out[where], alone, rtol=1e-4, atol=1e-5)
    labels = torch.tensor([0, 2, 1]) if head == "ForSequenceClassification" else x[0] % 3
    model(x[0], attention_mask=mask[0], labels=labels).loss.backward()
    # the masked LM's embedding of the padding, and a last block whose mixer reads the future of the last token
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent
    model.save_pretrained(tmp_path)
    loaded = AUTO[head].from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    assert torch.equal(loaded(x[0], attention_mask=mask[0]).logits, model(x[0], attention_mask=mask[0]).logits)


@each_family
@each_head
@pytest.mark.parametrize("name", ["Protein", "ProteinForCausalLM"])
def test_the_loss_of_a_class_of_another_name(family, head, bidirectional, name):
    """transformers picks a loss by the name of the class, and shifts the labels of those whose name says nothing."""
    model, x = build(family, head, bidirectional), torch.randint(1, 30, (3, 6))
    derived = type(name, (type(model),), {})(model.config)
    derived.load_state_dict(model.state_dict())
    labels = torch.tensor([0, 2, 1]) if head == "ForSequenceClassification" else x % 3
    assert torch.equal(derived.eval()(x, labels=labels).loss, model(x, labels=labels).loss)


@each_family
@each_head
def test_packed_documents(family, head, bidirectional):
    model, docs = build(family, head, bidirectional), torch.randint(1, 30, (1, 9))
    ways = ({"cu_seqlens": torch.tensor([0, 4, 9])}, {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])})
    for way in ways:
        if head == "ForSequenceClassification":
            with pytest.raises(ValueError, match=r"gives a row one label, and cu_seqlens .* holds 2 documents"):
                model(docs, **way)
        else:
            expected = torch.cat([model(doc).logits for doc in docs.split([4, 5], 1)], 1)
            torch.testing.assert_close(model(docs, **way).logits, expected, rtol=1e-4, atol=1e-5)


@each_family
def test_hidden_states_of_masked_models(family):
    model, x = build(family, "ForMaskedLM", True), torch.randint(1, 30, (2, 4))
    states = model(x, output_hidden_states=True).hidden_states
    assert len(states) == 3
    torch.testing.assert_close(model.lm_head(states[-1]), model(x).logits)
    assert model(x).hidden_states is None


@each_family
def test_the_loss_of_no_rows(family):
    """With a gradient for every parameter, which DDP waits for."""
    model, x = build(family, "ForMaskedLM", True), torch.randint(1, 30, (2, 4))
    for rows in (x[:0], x[:, :0]):
        for number in (None, torch.tensor(5)):
            model.zero_grad()
            out = model(rows, labels=rows, num_items_in_batch=number)
            assert (out.loss.item(), out.loss.dtype, out.logits.shape) == (0.0, torch.float32, (*rows.shape, 30))
            out.loss.backward()
            assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@each_family
def test_a_language_models_weights_go_into_a_head(family, tmp_path):
    build(family, "ForCausalLM").save_pretrained(tmp_path)
    model = AUTO["ForSequenceClassification"].from_pretrained(tmp_path, num_labels=5)
    trained = AutoModelForCausalLM.from_pretrained(tmp_path).model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in model.model.state_dict().items())
    assert model.score.weight.shape == (5, 16)


@each_family
@each_head
def test_heads_of_ones_own(family, head, bidirectional, tmp_path):
    """Under a type of their own, which no Auto class knows; weights come from a language model of that type."""

    class OwnConfig(getattr(fla_bdlru, f"{family}Config")):
        model_type = f"own-{family}"

    class Own(getattr(fla_bdlru, family + head)):
        config_class = OwnConfig

    class OwnForCausalLM(getattr(fla_bdlru, f"{family}ForCausalLM")):
        config_class = OwnConfig

    config = OwnConfig(**SIZES, bidirectional=bidirectional)
    torch.manual_seed(0)
    model = Own(config)
    torch.manual_seed(0)
    known = getattr(fla_bdlru, family + head)(getattr(fla_bdlru, f"{family}Config")(**SIZES, bidirectional=bidirectional))
    assert list(model.state_dict()) == list(known.state_dict())
    assert all(torch.equal(value, known.state_dict()[name]) for name, value in model.state_dict().items())
    if not bidirectional:
        trained = lively(OwnForCausalLM(config))
        trained.save_pretrained(tmp_path)
        weights = Own.from_pretrained(tmp_path).model.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in trained.model.state_dict().items())


@pytest.mark.parametrize("fields, rate, bias", [
    ({}, 0.1, True),
    ({"classifier_dropout": 0.3, "hidden_dropout": 0.2, "token_classification_bias": False}, 0.3, False),
    ({"classifier_dropout": None, "hidden_dropout": 0.0}, 0.0, True),
])  # fmt: skip
def test_fields_of_the_head_for_tokens(fields, rate, bias):
    """As transformers' heads read them."""
    model = build("BDLRU", "ForTokenClassification", **fields)
    assert (model.dropout.p, model.score.bias is not None) == (rate, bias)


@each_family
def test_a_masked_token_is_found_from_both_sides(family):
    """A row that is its own mirror image: the middle is told by what stands behind."""
    model = build(family, "ForMaskedLM", True, tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embeddings.weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        x = torch.randint(2, 6, (32, 5))
        x[:, 0] = x[:, 4]
        labels = torch.full_like(x, -100)
        labels[:, 0] = x[:, 0]
        loss = model(x.index_fill(1, torch.tensor([0]), 1), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2  # guessing one of four is 1.39


@each_family
def test_what_does_not_go_both_ways(family):
    config = getattr(fla_bdlru, f"{family}Config")
    with pytest.raises(ValueError, match=f"bidirectional=True: {family}ForCausalLM would see the tokens"):
        build(family, "ForCausalLM", bidirectional=True)
    with pytest.raises(ValueError, match=f"bidirectional=False: {family}ForMaskedLM reads what is behind a mask"):
        build(family, "ForMaskedLM")
    for field in ({"attn": {"layers": [1], "num_heads": 2}}, {"mixer": "lstm"}):
        with pytest.raises(ValueError, match=f"{next(iter(field))} is not accepted with bidirectional=True"):
            config(bidirectional=True, **field)
    with pytest.raises(ValueError, match="bidirectional must be True or False; got 'yes'"):
        config(bidirectional="yes")
    model, x = build(family, "ForTokenClassification", True), torch.randint(1, 30, (1, 4))
    assert not model.config.use_cache
    with pytest.raises(ValueError, match=r"use_cache=True is not accepted: a bidirectional layer reads whole sequences"):
        model(x, use_cache=True)


@each_family
def test_both_ways_by_a_config_that_was_made_for_one(family, tmp_path):
    build(family, "ForCausalLM", attn={"layers": [1], "num_heads": 2}).save_pretrained(tmp_path / "attn")
    causal, x = build(family, "ForCausalLM"), torch.randint(1, 30, (2, 4))
    causal.save_pretrained(tmp_path)
    with_head = AutoModelForSequenceClassification.from_pretrained(tmp_path, bidirectional=True)
    config = AutoConfig.from_pretrained(tmp_path)
    config.bidirectional = True
    for model in (with_head, AutoModelForMaskedLM.from_config(config), AutoModel.from_config(config)):
        assert isinstance(getattr(model, "model", model).layers[1].attn, Bidirectional)
        assert not model.config.use_cache
        assert torch.isfinite(model.eval()(x)[0]).all()
    for folder, fields, name in ((tmp_path / "attn", {}, "attn"), (tmp_path, {"mixer": "lstm"}, "mixer")):
        with pytest.raises(ValueError, match=f"{name} is not accepted with bidirectional=True"):
            AutoModelForTokenClassification.from_pretrained(folder, bidirectional=True, **fields)


def test_continuous_batching_is_refused():
    gla = GLAForCausalLM(GLAConfig(hidden_size=16, num_hidden_layers=1, num_heads=2, vocab_size=30, mixer="hlru"))
    for model in (build("BDLRU", "ForCausalLM"), gla):
        with pytest.raises(ValueError, match=r"continuous batching .* has no place for a recurrent state: use generate"):
            model.generate_batch([[1, 2]])
        with pytest.raises(ValueError, match=r"continuous batching .* has no place for a recurrent state: use generate"):
            model.generate(torch.tensor([[1, 2]]), cache_implementation="paged")


@pytest.mark.parametrize("head", ["MaskedLM", "SequenceClassification", "TokenClassification"])
def test_accumulated_gradients_are_those_of_the_batch(head, tmp_path):
    """Trainer leaves the division to models whose loss takes `num_items_in_batch`; rows have unequal numbers of labels."""
    model = build("BDLRU", f"For{head}", bidirectional=head == "MaskedLM")
    tokens = torch.randint(3, 30, (4, 6))
    labels = torch.randint(0, 2, (4, 6)) if head == "TokenClassification" else tokens.clone()
    if head == "MaskedLM":
        labels[0, :4] = -100
    labels = [0, 1, 0, 1] if head == "SequenceClassification" else labels
    rows, steps = [{"input_ids": x, "labels": y} for x, y in zip(tokens, labels)], []
    for batch, accumulated in ((4, 1), (1, 4)):
        options = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0, "max_steps": 1}
        options |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated, "report_to": []}
        trained = copy.deepcopy(model)
        for part in trained.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        args = TrainingArguments(tmp_path, save_strategy="no", use_cpu=True, disable_tqdm=True, **options)
        Trainer(trained, args, train_dataset=rows).train()
        steps.append(torch.cat([(p - q).detach().flatten() for p, q in zip(trained.parameters(), model.parameters())]))
    assert steps[0].abs().max() > 0
    torch.testing.assert_close(*steps, rtol=1e-4, atol=1e-6)
