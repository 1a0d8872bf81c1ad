"""Calls that would be wrong in silence, or whose error would speak of something else."""

import pytest
import torch
from fla.models import (
    GatedDeltaNetConfig,
    GatedDeltaNetForCausalLM,
    GLAConfig,
    GLAModel,
    LinearAttentionConfig,
    LinearAttentionForCausalLM,
    RWKV7Config,
    RWKV7ForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
)
from fla.models.gla.modeling_gla import GLAPreTrainedModel
from fla.models.utils import Cache
from transformers import DynamicCache
from usage import lively

from fla_bdlru import rewind_cache
from fla_bdlru.layers import BDLRU, HLRU, LSTM
from fla_bdlru.mixers.arguments import argument_names
from fla_bdlru.mixers.cache_name import cache_of
from fla_bdlru.mixers.packing import documents
from fla_bdlru.models import BDLRUConfig, BDLRUForCausalLM, BDLRUForTokenClassification

SIZES = {"hidden_size": 32, "num_heads": 4, "vocab_size": 40, "num_hidden_layers": 2, "intermediate_size": 64}
NATIVE = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 40}
LAYERS = {"bdlru": BDLRU, "hlru": HLRU, "lstm": LSTM}
each_layer = pytest.mark.parametrize("layer_class", LAYERS.values(), ids=LAYERS)


def hybrid(mixer="bdlru"):
    return lively(TransformerForCausalLM(TransformerConfig(**SIZES, mixer=[mixer, "native"]))).eval()


@torch.no_grad()
@each_layer
def test_a_cache_of_another_batch_size(layer_class):
    layer, cache, x = layer_class(16, layer_idx=0).eval(), Cache(), torch.randn(2, 5, 16)
    layer(x, past_key_values=cache, use_cache=True)
    message = r"past_key_values holds states of 2 sequences, the inputs are {}"
    hint = r"; repeat it first: past_key_values.batch_repeat_interleave\(2\)"
    with pytest.raises(ValueError, match=message.format(4) + hint):
        layer(torch.randn(4, 1, 16), past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match=message.format(4) + hint):
        layer(torch.randn(4, 1, 16), torch.ones(4, 6), past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match=message.format(3) + r"\."):
        layer(torch.randn(3, 1, 16), past_key_values=cache, use_cache=True)
    step = torch.randn(2, 1, 16).repeat_interleave(2, 0)
    expected = layer(torch.cat([x.repeat_interleave(2, 0), step], 1))[0][:, -1:]
    cache.batch_repeat_interleave(2)
    torch.testing.assert_close(layer(step, past_key_values=cache, use_cache=True)[0], expected)


@torch.no_grad()
@each_layer
def test_a_cache_of_another_layer(layer_class):
    """What it lacks would begin anew in silence."""
    layer, cache, x = layer_class(16, layer_idx=0).eval(), Cache(), torch.randn(2, 5, 16)
    cache.update(layer_idx=0, attn_state=(x, x), offset=5)
    with pytest.raises(ValueError, match=r"no recurrent_state for layer 0, where .* keeps one: it is the cache of another"):
        layer(x, past_key_values=cache, use_cache=True)
    if layer_class is not LSTM:
        plain, convolved = Cache(), Cache()
        with_conv = layer_class(16, layer_idx=0, use_short_conv=True)
        layer(x, past_key_values=plain, use_cache=True)
        with_conv(x, past_key_values=convolved, use_cache=True)
        with pytest.raises(ValueError, match=r"holds no conv_state for layer 0, where .* keeps one"):
            with_conv(x, past_key_values=plain, use_cache=True)
        with pytest.raises(ValueError, match=r"holds a conv_state for layer 0, where .* keeps none"):
            layer(x, past_key_values=convolved, use_cache=True)


@torch.no_grad()
def test_several_sequences_from_a_prefix():
    model, tokens = lively(BDLRUForCausalLM(BDLRUConfig(**NATIVE))), None
    tokens = torch.randint(3, 40, (1, 6))
    cache = model(tokens[:, :4], use_cache=True).past_key_values
    options = {"max_new_tokens": 3, "do_sample": True, "num_return_sequences": 2, "pad_token_id": 0, "eos_token_id": None}
    with pytest.raises(ValueError, match=r"batch_repeat_interleave\(2\)"):
        model.generate(tokens, past_key_values=cache, **options)


@each_layer
def test_an_empty_batch_with_a_mask(layer_class):
    for shape in ((0, 5), (2, 0)):
        assert layer_class(16)(torch.randn(*shape, 16), torch.ones(shape))[0].shape == (*shape, 16)


def test_positions_that_are_all_the_same():
    for value in (0, 7):
        with pytest.raises(ValueError, match=f"position_ids hold {value} for every token"):
            documents(1, 4, position_ids=torch.full((1, 4), value))


@pytest.mark.parametrize("make", [lambda: BDLRUForCausalLM(BDLRUConfig(**NATIVE)), hybrid], ids=["native", "hybrid"])
def test_a_cache_of_another_library(make):
    """FLA puts an empty one of its own in its place: what the caller holds stays empty, and each call forgets the last."""
    with pytest.raises(ValueError, match=r"past_key_values must be a fla.models.utils.Cache; got DynamicCache"):
        make().eval()(torch.randint(3, 40, (1, 4)), past_key_values=DynamicCache(), use_cache=True)


@torch.no_grad()
@pytest.mark.parametrize("layer_class", [BDLRU, HLRU])
def test_a_cache_of_another_type(layer_class):
    layer, cache = layer_class(16, use_short_conv=True, layer_idx=0).eval().double(), Cache()
    x = torch.randn(1, 6, 16, dtype=torch.float64)
    layer(x[:, :4], past_key_values=cache, use_cache=True)
    cache[0]["conv_state"] = cache[0]["conv_state"].float()
    rest = layer(x[:, 4:], past_key_values=cache, use_cache=True)[0]
    torch.testing.assert_close(rest, layer(x)[0][:, 4:], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_cache_that_cannot_be_rewound_is_refused():
    """RWKV-7's feed-forward layers shift along time, and keep the last token."""
    config = RWKV7Config(**{**SIZES, "num_heads": None}, head_dim=8, mixer="bdlru")
    model, tokens = lively(RWKV7ForCausalLM(config)), torch.randint(3, 40, (1, 6))
    cache = model(tokens, use_cache=True, step_states=3).past_key_values
    with pytest.raises(ValueError, match=r"the block of layer 0 keeps a state of its own \(ffn_state"):
        rewind_cache(cache, 2)


@torch.no_grad()
def test_the_loss_of_padded_rows():
    """In eval the cache is on by default, where FLA's attention takes any mask for left padding."""
    model, tokens = hybrid(), torch.randint(3, 40, (2, 7))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    labels = tokens.masked_fill(mask == 0, -100)
    parts = [model(tokens[:1], labels=tokens[:1]).loss * 6, model(tokens[1:, :4], labels=tokens[1:, :4]).loss * 3]
    out = model(tokens, attention_mask=mask, labels=labels)
    torch.testing.assert_close(out.loss, sum(parts) / 9)
    assert out.past_key_values is None
    assert model(tokens, labels=labels, use_cache=True).past_key_values is not None
    assert model(tokens).past_key_values is not None


@torch.no_grad()
def test_shifted_labels_of_padded_rows():
    """They turn the cache off as `labels` do."""
    model = lively(BDLRUForCausalLM(BDLRUConfig(**NATIVE, attn={"layers": [1], "num_heads": 2}))).eval()
    tokens, mask = torch.randint(3, 40, (2, 7)), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    labels = tokens.masked_fill(mask == 0, -100)
    shifted = torch.cat([labels[:, 1:], torch.full((2, 1), -100)], 1)
    for given in ({"attention_mask": mask}, {}):
        out = model(tokens, shift_labels=shifted, **given)
        torch.testing.assert_close(out.loss, model(tokens, labels=labels, **given).loss)
        assert out.past_key_values is None
    assert model(tokens, shift_labels=shifted, use_cache=True).past_key_values is not None


@pytest.mark.parametrize("mixer", ["bdlru", "gated_deltanet"])
def test_shifted_labels_where_no_loss_takes_them(mixer):
    """FLA's RWKV-7 takes them; its other models take any keyword and drop it."""
    tokens = torch.randint(3, 40, (2, 7))
    rwkv7 = lively(RWKV7ForCausalLM(RWKV7Config(**{**SIZES, "num_heads": None}, head_dim=8, mixer=mixer)))
    shifted = torch.cat([tokens[:, 1:], torch.full((2, 1), -100)], 1)
    torch.testing.assert_close(rwkv7(tokens, shift_labels=shifted).loss, rwkv7(tokens, labels=tokens).loss)
    linear = LinearAttentionForCausalLM(LinearAttentionConfig(**SIZES, mixer=mixer))
    for model, base in ((hybrid(mixer), "TransformerModel"), (linear, "LinearAttentionModel")):
        message = f"shift_labels would have no effect: neither {base} nor the head on top of it takes any. Pass labels"
        for labels in ({}, {"labels": tokens}):
            with pytest.raises(ValueError, match=message):
                model(tokens, shift_labels=shifted, **labels)
        with pytest.raises(ValueError, match=message):
            model.model(tokens, shift_labels=shifted)
        assert model(tokens, labels=tokens, shift_labels=None).loss > 0
    head = BDLRUForTokenClassification(BDLRUConfig(**NATIVE))
    with pytest.raises(ValueError, match="neither BDLRUModel nor the head on top of it takes any"):
        head(tokens, labels=tokens % 2, shift_labels=shifted % 2)


@torch.no_grad()
@pytest.mark.parametrize("mask", [[1] * 4 + [0] * 3, [0] + [1] * 3 + [0] + [1] * 2], ids=["right", "hole"])
@pytest.mark.parametrize("mixer", ["bdlru", "lstm", "gla"])
def test_masks_that_attention_would_take_for_left_padding(mask, mixer):
    model, tokens = hybrid(mixer), torch.randint(3, 40, (2, 7))
    mask = torch.tensor([[1] * 7, mask])
    out = model(tokens, attention_mask=mask)
    torch.testing.assert_close(out.logits, model(tokens, attention_mask=mask, use_cache=False).logits)
    torch.testing.assert_close(out.logits[:1], model(tokens[:1]).logits)
    assert out.past_key_values is None
    torch.testing.assert_close(model(tokens, mask).logits, out.logits)
    message = "attention_mask has padding after tokens, which FLA's attention takes for left padding"
    with pytest.raises(ValueError, match=message):
        model(tokens, mask.bool(), use_cache=True)
    with pytest.raises(ValueError, match=message):
        model.generate(tokens, attention_mask=mask, max_new_tokens=2, pad_token_id=0)
    with pytest.raises(ValueError, match=message):  # by position
        model(tokens, mask, Cache())
    assert model(tokens, attention_mask=mask.flip(1).sort().values).past_key_values is not None
    recurrent = lively(BDLRUForCausalLM(BDLRUConfig(**NATIVE))).eval()
    assert recurrent(tokens, attention_mask=mask).past_key_values is not None


@torch.no_grad()
@pytest.mark.parametrize("by_position", [True, False])
def test_a_mask_that_is_written_to_between_calls(by_position):
    """FLA's attention keeps what it found in a mask, by the object."""
    model, tokens, mask = hybrid(), torch.randint(3, 40, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    args, kwargs = ((tokens, mask), {}) if by_position else ((tokens,), {"attention_mask": mask})
    for each, field in ((model, "logits"), (model.model, "last_hidden_state")):
        mask.fill_(1)
        each(*args, **kwargs)
        mask[0, :3] = 0
        torch.testing.assert_close(each(*args, **kwargs)[field][0, 3:], each(tokens[:1, 3:])[field][0])


@torch.no_grad()
def test_a_mask_without_the_tokens_of_the_cache():
    """FLA's attention would look at the first keys only."""
    model, tokens = hybrid(), torch.randint(3, 40, (2, 7))
    message = r"attention_mask must have shape \[2, 7\], of the 6 tokens in the cache and the 1 new .* got \[2, 1\]"
    cache = model(tokens[:, :6], use_cache=True).past_key_values
    for args, kwargs in (((tokens[:, 6:],), {"attention_mask": torch.ones(2, 1)}), ((tokens[:, 6:], torch.ones(2, 1)), {})):
        with pytest.raises(ValueError, match=message):
            model(*args, past_key_values=cache, **kwargs)
    step = model(tokens[:, 6:], attention_mask=torch.ones(2, 7), past_key_values=cache)
    torch.testing.assert_close(step.logits[:, 0], model(tokens).logits[:, -1])
    recurrent = lively(BDLRUForCausalLM(BDLRUConfig(**NATIVE))).eval()
    cache = recurrent(tokens[:, :6], use_cache=True).past_key_values
    step = recurrent(tokens[:, 6:], attention_mask=torch.ones(2, 1), past_key_values=cache)
    torch.testing.assert_close(step.logits[:, 0], recurrent(tokens).logits[:, -1])


CACHED = {
    "hybrid": hybrid,
    "native": lambda: lively(BDLRUForCausalLM(BDLRUConfig(**NATIVE, attn={"layers": [1], "num_heads": 4}))),
    "window": lambda: lively(
        BDLRUForCausalLM(BDLRUConfig(**NATIVE, attn={"layers": [1], "num_heads": 4, "window_size": 3}, use_short_conv=True))
    ),
    "recurrent": lambda: lively(BDLRUForCausalLM(BDLRUConfig(**NATIVE))),
    "gated_deltanet": lambda: lively(  # whose convolutions write to what they are given
        GatedDeltaNetForCausalLM(GatedDeltaNetConfig(**SIZES, head_dim=8, mixer=["bdlru", "native"]))
    ),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("new", [1, 4])
@pytest.mark.parametrize("name", CACHED)
def test_a_cache_that_is_not_to_be_written_to(name, new, training):
    """Several continuations of a prefix, and what comes after; FLA's attention adds its keys whatever `use_cache` says."""
    model, tokens = CACHED[name]().eval(), torch.randint(3, 40, (2, 9))
    cache = model(tokens[:, :-new], use_cache=True).past_key_values
    expected, options = model(tokens).logits[:, -new:], {} if training else {"use_cache": False}
    for part, field in ((model, "logits"), (model.model, "last_hidden_state")):
        part.train(training)
        whole = model(tokens, use_cache=False).logits if part is model else part(tokens, use_cache=False)[field]
        for return_dict in (True, False):
            with torch.no_grad():
                out = part(tokens[:, -new:], past_key_values=cache, return_dict=return_dict, **options)
            assert (cache_of(out) if return_dict else out[1]) is cache
            torch.testing.assert_close(out[0], whole[:, -new:], rtol=1e-4, atol=1e-4)
    assert [layer.get_seq_length() for layer in cache.layers] == [9 - new] * 2
    with torch.no_grad():
        out = model.eval()(tokens[:, -new:], past_key_values=cache)
    torch.testing.assert_close(out.logits, expected, rtol=1e-4, atol=1e-4)
    assert [layer.get_seq_length() for layer in cache.layers] == [9, 9]


def test_gradients_through_a_cache_that_is_not_written_to():
    model, tokens = hybrid(), torch.randint(3, 40, (2, 9))
    grads = []
    for parts in ((tokens,), (tokens[:, :5], tokens[:, 5:])):
        cache = None
        for part in parts[:-1]:
            cache = cache_of(model(part, use_cache=True))
        model.zero_grad()
        model(parts[-1], past_key_values=cache, use_cache=False).logits[:, -4:].square().sum().backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    for found, expected in zip(*grads):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("place", [2, 3])
@pytest.mark.parametrize("head", [True, False])
def test_a_cache_by_position(place, head):
    """In the third place of some of FLA's models, in the fourth of others."""
    native = lively(BDLRUForCausalLM(BDLRUConfig(**NATIVE, attn={"layers": [1], "num_heads": 4}))).eval()
    model = {2: hybrid(), 3: native}[place]
    model, field = (model, "logits") if head else (model.model, "last_hidden_state")
    tokens, between = torch.randint(3, 40, (2, 7)), [None] * (place - 2)
    cache = model(tokens[:, :6], use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"attention_mask must have shape \[2, 7\], of the 6 tokens in the cache"):
        model(tokens[:, 6:], torch.ones(2, 1), *between, cache)
    with pytest.raises(ValueError, match=r"past_key_values must be a fla.models.utils.Cache; got DynamicCache"):
        model(tokens[:, :6], None, *between, DynamicCache())
    with pytest.raises(TypeError, match="multiple values for argument 'past_key_values'"):
        model(tokens[:, 6:], None, *between, cache, past_key_values=cache)
    with pytest.raises(TypeError, match="positional arguments"):
        model(tokens[:, 6:], *[None] * 20)
    step = model(tokens[:, 6:], torch.ones(2, 7), *between, cache)
    torch.testing.assert_close(step[field][:, 0], model(tokens)[field][:, -1])


def test_a_forward_that_hands_on_what_it_gets():
    class Own(BDLRUForCausalLM):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    model, tokens = Own(BDLRUConfig(**NATIVE, attn={"layers": [1], "num_heads": 4})).eval(), torch.randint(3, 40, (2, 7))
    assert argument_names(Own) == argument_names(BDLRUForCausalLM)
    with pytest.raises(ValueError, match="attention_mask has padding after tokens"):
        model(tokens, torch.tensor([[1] * 7, [1] * 4 + [0] * 3]), None, Cache())


class Scorer(GLAPreTrainedModel):
    """A head of one's own, which takes neither `use_cache` nor any other argument, and returns a tensor."""

    def __init__(self, config):
        super().__init__(config)
        self.model = GLAModel(config)
        self.score = torch.nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None, past_key_values=None):
        hidden = self.model(input_ids, attention_mask=attention_mask, past_key_values=past_key_values)[0]
        scores = self.score(hidden[:, -1])[:, 0]
        return scores if labels is None else ((scores - labels) ** 2).mean()


@pytest.mark.parametrize("training", [False, True])
def test_a_head_of_ones_own(training):
    config = GLAConfig(
        **{**SIZES, "num_heads": 2}, mixer=["bdlru", "attn"], mixer_config={"bdlru": {}, "attn": {"num_heads": 2}}
    )
    model, tokens = lively(Scorer(config)).train(training), torch.randint(3, 40, (2, 7))
    scores = model(tokens)
    assert scores.shape == (2,)
    assert model(tokens, labels=torch.zeros(2)).item() == pytest.approx((scores**2).mean().item(), rel=1e-4)
    assert model(tokens, torch.tensor([[1] * 7, [1] * 4 + [0] * 3])).shape == (2,)  # a cache would misread this mask
    with torch.no_grad():
        cache = model.model.eval()(tokens[:, :3], use_cache=True).past_key_values
        model.train(training)
        torch.testing.assert_close(model(tokens[:, 3:], past_key_values=cache), scores)


def test_token_ids_under_the_debug_flag(monkeypatch):
    model, tokens = hybrid(), torch.tensor([[3, 40]])
    monkeypatch.setenv("FLA_BDLRU_DEBUG", "1")
    with pytest.raises(ValueError, match=r"input_ids must lie between 0 and 39 \(vocab_size - 1\); got 3 to 40"):
        model(tokens)
    with pytest.raises(ValueError, match="got -1 to 2"):
        model(input_ids=torch.tensor([[-1, 2]]))
    model(tokens - 1)
