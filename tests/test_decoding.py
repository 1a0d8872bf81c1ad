"""A decoding step costs the same at any length, states are never changed in place, and tokens can be taken back."""

import statistics
import time

import pytest
import torch
from fla.models import GatedDeltaNetConfig, GatedDeltaNetForCausalLM, TransformerConfig, TransformerForCausalLM
from fla.models.utils import Cache
from transformers import DynamicCache
from usage import greedy, lively

from fla_bdlru import BDLRUConfig, BDLRUForCausalLM, rewind_cache
from fla_bdlru.layers import BDLRU, HLRU, LSTM

VOCAB = 32
FIELDS = {
    "bdlru": {"mixer": "bdlru"},
    "hlru": {"mixer": "hlru", "mixer_config": {"order": 3}},
    "conv-gate": {"mixer": "bdlru", "mixer_config": {"block_size": 2, "use_short_conv": True, "use_output_gate": True}},
    "hybrid": {"mixer": ["hlru", "native"], "mixer_config": {"use_short_conv": True}},
}
each_model = pytest.mark.parametrize("name", FIELDS)


def build(name, hidden_size=32):
    config = TransformerConfig(
        hidden_size=hidden_size, num_hidden_layers=2, num_heads=2, vocab_size=VOCAB, intermediate_size=32, **FIELDS[name]
    )
    return lively(TransformerForCausalLM(config)).eval()


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in values for tensor in tensors(item)]


def held(cache):
    return [tensor for layer in cache for tensor in tensors(layer)]


@pytest.mark.parametrize("make", [
    lambda: BDLRU(16, block_size=4, use_short_conv=True, layer_idx=0),
    lambda: HLRU(16, order=3, layer_idx=0),
], ids=["bdlru", "hlru"])  # fmt: skip
def test_ten_thousand_steps_cost_the_same_each(make):
    """Time per token and the size of the cache, early and late."""
    layer, cache, x = make().eval(), Cache(), torch.randn(1, 1, 16)
    seconds, sizes = [], set()
    with torch.no_grad():
        for _ in range(10_000):
            start = time.perf_counter()
            layer(x, past_key_values=cache, use_cache=True)
            seconds.append(time.perf_counter() - start)
            sizes.add(sum(tensor.untyped_storage().nbytes() for tensor in held(cache)))
    assert cache.get_seq_length() == 10_000
    assert sizes == {4 * layer.state_size()}
    # medians: the machine may be shared; a cost that grew with the length would be ten times higher
    assert statistics.median(seconds[9_000:]) < 2 * statistics.median(seconds[500:1_500])


@pytest.mark.parametrize("name", ["bdlru", "hlru", "conv-gate"])
def test_a_models_cache_does_not_grow(name):
    model, x = build(name), torch.randint(0, VOCAB, (2, 600))
    shapes = []
    with torch.no_grad():
        for length in (1, 600):
            cache = model(x[:, :length], use_cache=True).past_key_values
            for _ in range(3):
                cache = model(x[:, :1], past_key_values=cache, use_cache=True).past_key_values
                shapes.append([tensor.shape for tensor in held(cache)])
    assert all(found == shapes[0] for found in shapes)


@each_model
def test_a_cache_given_earlier_is_unchanged(name):
    """Two continuations of one prefix do not see each other."""
    model, x = build(name), torch.randint(0, VOCAB, (2, 9))
    with torch.no_grad():
        prefix = model(x[:, :5], use_cache=True, step_states=1).past_key_values
        copies = [tensor.clone() for tensor in held(prefix)]
        other = rewind_cache(prefix, 0)
        model(torch.randint(0, VOCAB, (2, 3)), past_key_values=other, use_cache=True)
        assert (prefix.get_seq_length(), other.get_seq_length()) == (5, 8)
        assert all(torch.equal(a, b) for a, b in zip(held(prefix), copies))
        after = model(x[:, 5:], past_key_values=prefix, use_cache=True).logits
        torch.testing.assert_close(after, model(x).logits[:, 5:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_step_of_a_layer_that_writes_to_its_state():
    """FLA's convolutions over one token."""
    config = GatedDeltaNetConfig(hidden_size=32, num_hidden_layers=2, num_heads=2, head_dim=8, vocab_size=VOCAB)
    model = lively(GatedDeltaNetForCausalLM(config)).eval()
    x = torch.randint(0, VOCAB, (2, 6))
    prefix = model(x[:, :5], use_cache=True).past_key_values
    for _ in range(2):
        step = model(x[:, 5:], past_key_values=rewind_cache(prefix, 0), use_cache=True)
        torch.testing.assert_close(step.logits, model(x).logits[:, 5:], rtol=1e-4, atol=1e-4)


@each_model
def test_keeping_step_states_changes_nothing_else(name):
    model, x = build(name), torch.randint(0, VOCAB, (2, 9))
    with torch.no_grad():
        plain = model(x, use_cache=True)
        for step_states in (1, 4, 9):
            kept = model(x, use_cache=True, step_states=step_states)
            torch.testing.assert_close(kept.logits, plain.logits, rtol=1e-4, atol=1e-4)
            for a, b in zip(kept.past_key_values, plain.past_key_values):
                for key in ("recurrent_state", "conv_state"):
                    if b[key] is not None:
                        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-4)


@each_model
@pytest.mark.parametrize("prefill", [0, 4])
def test_rewound_caches_go_on_as_if_the_tokens_had_not_been(name, prefill):
    model, x = build(name), torch.randint(0, VOCAB, (2, 12))
    with torch.no_grad():
        expected = model(x).logits
        cache = model(x[:, :prefill], use_cache=True).past_key_values if prefill else None
        # as a caller may pass it along; FLA's attention takes several new tokens without a mask only
        mask = None if name == "hybrid" else torch.ones(2, 9)
        cache = model(
            x[:, prefill:9], past_key_values=cache, use_cache=True, step_states=5, attention_mask=mask
        ).past_key_values
        for back in range(6 if prefill else 5):
            rewound = rewind_cache(cache, back)
            assert (rewound.get_seq_length(), cache.get_seq_length()) == (9 - back, 9)
            twice = rewind_cache(rewind_cache(cache, back // 2), back - back // 2)
            for again in (rewound, twice):
                logits = model(x[:, 9 - back :], past_key_values=again, use_cache=True).logits
                torch.testing.assert_close(logits, expected[:, 9 - back :], rtol=1e-4, atol=1e-4)


@each_model
def test_speculative_decoding_equals_greedy(name):
    """A draft that is right now and then: three tokens verified in one call, the wrong ones taken back."""
    model, prompt = build(name), torch.randint(0, VOCAB, (1, 4))
    with torch.no_grad():
        expected = greedy(model, prompt, 20)
        cache = model(prompt[:, :-1], use_cache=True).past_key_values
        done, accepted = prompt, []
        while done.shape[1] < 24:
            right = expected[:, done.shape[1] : done.shape[1] + 3]
            draft = torch.where(torch.rand(right.shape) < 0.7, right, torch.randint(0, VOCAB, right.shape))
            n = draft.shape[1]
            out = model(torch.cat([done[:, -1:], draft], 1), past_key_values=cache, use_cache=True, step_states=n)
            chosen = out.logits.argmax(-1)
            agree = int((chosen[0, :n] == draft[0]).long().cumprod(0).sum())
            done = torch.cat([done, chosen[:, : agree + 1]], 1)
            cache = rewind_cache(out.past_key_values, n - agree)
            accepted.append(agree)
        assert torch.equal(done[:, :24], expected)
        assert min(accepted) < max(accepted)


def test_beams_reorder_kept_states():
    model, x = build("conv-gate"), torch.randint(0, VOCAB, (2, 8))
    with torch.no_grad():
        cache = model(x[:, :6], use_cache=True, step_states=3).past_key_values
        cache.reorder_cache(torch.tensor([1, 0]))
        logits = model(x.flip(0)[:, 4:], past_key_values=rewind_cache(cache, 2), use_cache=True).logits
        torch.testing.assert_close(logits, model(x).logits.flip(0)[:, 4:], rtol=1e-4, atol=1e-4)


def test_errors():
    layer, x, cache = BDLRU(16, layer_idx=0), torch.randn(2, 4, 16), Cache()
    keep = {"past_key_values": cache, "use_cache": True}
    for step_states in ("2", 1.5):
        with pytest.raises(ValueError, match=f"step_states must be an integer; got {step_states!r}"):
            layer(x, step_states=step_states, **keep)
    with pytest.raises(ValueError, match=r"attention_mask must have shape \[2, S\] with S >= 4, .* got \[2, 3\]"):
        layer(x, step_states=2, attention_mask=torch.ones(2, 3), **keep)
    with pytest.raises(ValueError, match="step_states must lie between 1 and the number of tokens, 4; got 5"):
        layer(x, step_states=5, **keep)
    with pytest.raises(
        ValueError, match="step_states=2 needs past_key_values and use_cache=True, no cu_seqlens or cp_context"
    ):
        layer(x, step_states=2)
    with pytest.raises(
        ValueError, match="step_states=2 needs past_key_values and use_cache=True, no cu_seqlens or cp_context"
    ):
        layer(x[:1], step_states=2, cu_seqlens=torch.tensor([0, 2, 4]), **keep)
    with pytest.raises(ValueError, match="cp_context takes whole sequences, without a cache"):
        layer(x, step_states=2, cp_context=object(), **keep)
    with pytest.raises(ValueError, match="step_states=2 needs tokens without padding"):
        layer(x, step_states=2, attention_mask=torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]]), **keep)
    with pytest.raises(NotImplementedError, match="LSTM does not keep the states between single steps"):
        LSTM(16, layer_idx=0)(x, step_states=2, past_key_values=Cache(), use_cache=True)
    layer(x, step_states=2, **keep)
    with pytest.raises(ValueError, match="num_tokens=3: layer 0 kept 2 earlier states; call the model with step_states"):
        rewind_cache(cache, 3)
    for other, name in ((None, "NoneType, which a model returns"), ((), "tuple"), (DynamicCache(), "DynamicCache")):
        with pytest.raises(ValueError, match=f"past_key_values must be a fla.models.utils.Cache; got {name}"):
            rewind_cache(other, 0)
    with pytest.raises(ValueError, match="num_tokens must not be negative; got -1"):
        rewind_cache(cache, -1)
    with pytest.raises(ValueError, match="num_tokens=5 is more than the cache holds, 4"):
        rewind_cache(cache, 5)
    for num_tokens in (1.0, "1", None, True):
        with pytest.raises(ValueError, match=f"num_tokens must be an integer; got {num_tokens!r}"):
            rewind_cache(cache, num_tokens)
    layer(x, **keep)
    with pytest.raises(ValueError, match="num_tokens=1: layer 0 kept 0 earlier states"):
        rewind_cache(cache, 1)  # what was kept in the call before is out of date


def test_attentions_cache_is_not_rewound_past_its_start():
    x = torch.randint(0, VOCAB, (1, 5))
    plain = TransformerForCausalLM(
        TransformerConfig(hidden_size=32, num_hidden_layers=1, num_heads=2, vocab_size=VOCAB)
    ).eval()
    with torch.no_grad():
        cache = plain(x, use_cache=True).past_key_values
    assert rewind_cache(cache, 5).get_seq_length() == 0
    with pytest.raises(ValueError, match="num_tokens=7 is more than the cache holds, 5"):
        rewind_cache(cache, 7)


def test_a_cache_is_rewound_to_its_start_and_after_a_reset():
    layer, x, cache = BDLRU(16, layer_idx=0, use_short_conv=True).eval(), torch.randn(1, 4, 16), Cache()
    with torch.no_grad():
        layer(x, past_key_values=cache, use_cache=True, step_states=4)
        expected = layer(x)[0]
        empty = rewind_cache(cache, 4)
        assert (empty.get_seq_length(), cache.get_seq_length()) == (0, 4)
        cache.reset()
        for start in (empty, rewind_cache(cache, 0)):
            torch.testing.assert_close(layer(x, past_key_values=start, use_cache=True)[0], expected)


@torch.no_grad()
def test_attention_with_a_window_is_rewound_while_it_has_dropped_nothing():
    fields = {"layers": [1], "num_heads": 2, "window_size": 8}
    model = lively(BDLRUForCausalLM(BDLRUConfig(hidden_size=32, num_hidden_layers=2, vocab_size=VOCAB, attn=fields))).eval()
    x = torch.randint(0, VOCAB, (2, 9))
    cache = model(x[:, :7], use_cache=True, step_states=3).past_key_values
    logits = model(x[:, 5:], past_key_values=rewind_cache(cache, 2), use_cache=True).logits
    torch.testing.assert_close(logits, model(x, use_cache=False).logits[:, 5:], rtol=1e-4, atol=1e-5)
    cache = model(x, use_cache=True, step_states=3).past_key_values
    with pytest.raises(ValueError, match="layer 1 is attention with a window of 8, which has dropped"):
        rewind_cache(cache, 2)


def test_several_tokens_after_a_cache_before_attention_with_a_window():
    """FLA keeps the keys that they look at where there is no mask, and has dropped them where there is one."""
    fields = {"layers": [1], "num_heads": 2, "window_size": 3}
    model = lively(BDLRUForCausalLM(BDLRUConfig(hidden_size=32, num_hidden_layers=2, vocab_size=VOCAB, attn=fields))).eval()
    x = torch.randint(0, VOCAB, (2, 9))
    mask = torch.ones_like(x)
    cache = model(x[:, :5], use_cache=True).past_key_values
    logits = model(x[:, 5:], attention_mask=mask, past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(logits, model(x, use_cache=False).logits[:, 5:], rtol=1e-4, atol=1e-5)
    mask[0, :2] = 0
    cache = model(x[:, :5], attention_mask=mask[:, :5], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="several new tokens after a cache, and padding in attention_mask"):
        model(x[:, 5:], attention_mask=mask, past_key_values=cache, use_cache=True)
    for t in range(5, 9):
        step = model(x[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(step[0], model(x[:1, 2:], use_cache=False).logits[0, -1:], rtol=1e-4, atol=1e-5)
