"""Speculative decoding gives what `generate` gives: greedy token by token, samples of the same distribution."""

import pytest
import torch
from fla.models import TransformerConfig, TransformerForCausalLM
from fla.models.modeling_utils import FLAPreTrainedModel
from fla.models.utils import Cache
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    SynthIDTextWatermarkingConfig,
)
from transformers.generation import EosTokenCriteria, MaxLengthCriteria, TemperatureLogitsWarper, TopKLogitsWarper
from transformers.modeling_outputs import CausalLMOutputWithPast

from fla_bdlru import BDLRUConfig, BDLRUForCausalLM, HLRUConfig, HLRUForCausalLM, SpeculativeDecoding
from fla_bdlru.drafts import Assistant, Lookup
from fla_bdlru.mixers.cache_name import RENAMED

VOCAB, EOS, PAD = 24, 2, 0
SIZES = {"hidden_size": 16, "vocab_size": VOCAB, "intermediate_size": 16, "eos_token_id": EOS, "pad_token_id": PAD}
MODELS = {
    "bdlru": (BDLRUForCausalLM, BDLRUConfig, {"num_hidden_layers": 2, "use_short_conv": True}),
    "hlru": (HLRUForCausalLM, HLRUConfig, {"num_hidden_layers": 1, "order": 3}),
    "hybrid": (
        TransformerForCausalLM,
        TransformerConfig,
        {"num_hidden_layers": 2, "num_heads": 2, "mixer": ["bdlru", "native"], "mixer_config": {"use_short_conv": True}},
    ),
    "small": (HLRUForCausalLM, HLRUConfig, {"num_hidden_layers": 1}),
}


def build(name, **fields):
    make, config, options = MODELS[name]
    model = make(config(**{**SIZES, **options, **fields})).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def prompts(count, longest=9):
    """Rows of their own lengths, padded on the left, and their mask."""
    ids, mask = torch.randint(3, VOCAB, (count, longest)), torch.zeros(count, longest, dtype=torch.long)
    for row, length in zip(mask, torch.randint(1, longest + 1, (count,))):
        row[longest - length :] = 1
    return ids * mask, mask


@pytest.mark.parametrize("name", ["bdlru", "hlru", "hybrid"])
def test_greedy_output_is_plain_greedys(name):
    """200 prompts, alone and in batches, with padding and without; drafts of a model, of the same, of the text."""
    model = build(name)
    ids, mask = prompts(200)
    plain = model.generate(ids, attention_mask=mask, max_new_tokens=6)
    ways = {"other": SpeculativeDecoding(build("small")), "same": SpeculativeDecoding(model), "text": SpeculativeDecoding()}
    rates = {way: [] for way in ways}
    for i, (row, seen, expected) in enumerate(zip(ids[:60], mask, plain)):
        way = list(ways)[i % 3]
        first = 0 if i % 2 else int((seen == 0).sum())
        out = model.generate(row[None, first:], attention_mask=seen[None, first:], max_new_tokens=6, custom_generate=ways[way])
        assert torch.equal(out[0], expected[first : first + out.shape[1]])
        assert (expected[first + out.shape[1] :] == PAD).all()  # other rows went on
        assert out.shape[1] == len(expected) - first or out[0, -1] == EOS
        rates[way].append(ways[way].report.acceptance_rate)
    means = {way: sum(found) / len(found) for way, found in rates.items()}
    assert means["same"] > 0.8  # all but what lies behind EOS
    assert 0 < means["text"] < 0.5
    assert 0 < means["other"] < 0.5
    for i, (rows, seen, expected) in enumerate(zip(ids.split(8), mask.split(8), plain.split(8))):
        way = list(ways)[i % 3]
        out = model.generate(rows, attention_mask=seen, max_new_tokens=6, custom_generate=ways[way])
        assert torch.equal(out, expected[:, : out.shape[1]])
        assert (expected[:, out.shape[1] :] == PAD).all()
        new = expected[:, ids.shape[1] :]
        assert ways[way].report.tokens == ((new == EOS).cumsum(1) - (new == EOS).long() == 0).sum()


def test_drafts_save_calls():
    """A model that repeats itself: the text drafts what comes next."""
    model, lookup = build("bdlru", vocab_size=4, eos_token_id=None, pad_token_id=None), SpeculativeDecoding(num_tokens=7)
    prompt = torch.randint(4, (1, 4))
    plain = model.generate(prompt, max_new_tokens=60, eos_token_id=None)
    assert torch.equal(model.generate(prompt, max_new_tokens=60, eos_token_id=None, custom_generate=lookup), plain)
    report = lookup.report
    assert report.tokens == 60 == report.calls + report.accepted
    assert report.calls < 30
    assert report.tokens_per_second == report.tokens / report.seconds
    assert str(report).startswith(f"60 tokens in {report.calls} calls, {report.accepted} of {report.drafted} drafted")


class Table(FLAPreTrainedModel):
    """The next token's logits by the last token, in no time; the cache holds the tokens."""

    def __init__(self):
        super().__init__(BDLRUConfig(**SIZES))
        self.table = torch.nn.Parameter(torch.randn(4, 4))

    @classmethod
    def can_generate(cls):
        return True

    def forward(self, input_ids, past_key_values=None, **kwargs):
        cache = Cache() if past_key_values is None else past_key_values
        cache.update(attn_state=(input_ids[..., None],), layer_idx=0)
        return CausalLMOutputWithPast(logits=self.table[input_ids], past_key_values=cache)


@pytest.mark.parametrize("assistant", [True, False], ids=["assistant", "text"])
def test_samples_are_of_the_models_distribution(assistant):
    """Frequencies of three tokens in 2,000 samples, with top-k and a temperature, against their probabilities.

    Half of them are drawn in batches of 4, whose rows wait for each other.
    """
    model, prompt, counts, rates = Table(), torch.tensor([[1, 3, 0, 2, 1, 3]]), torch.zeros(4, 4, 4), []
    decoding = SpeculativeDecoding(Table() if assistant else None, num_tokens=2)
    processors = LogitsProcessorList([TemperatureLogitsWarper(1.5), TopKLogitsWarper(3)])
    criteria = StoppingCriteriaList([MaxLengthCriteria(9)])
    config = GenerationConfig(do_sample=True, max_length=9, use_cache=True)
    with torch.no_grad():
        for rows in [1] * 1000 + [4] * 250:
            for sample in decoding(model, prompt.expand(rows, -1), processors, criteria, config)[:, 6:]:
                counts[tuple(sample)] += 1
            rates.append(decoding.report.acceptance_rate)
        p = processors(None, model.table.clone()).softmax(-1)
    expected = 2000 * p[3][:, None, None] * p[:, :, None] * p
    assert counts[expected == 0].sum() == 0
    assert 0.02 < sum(rates) / len(rates) < 0.9
    often = expected > 5
    chi_squared = ((counts - expected) ** 2 / expected)[often].sum()
    assert often.sum() > 12
    assert chi_squared < 2.5 * often.sum()  # more has a probability under 1e-3; a wrong distribution has ten times as much


class Seen(StoppingCriteria):
    """Stops behind a pair of tokens that add up to more than a limit; another criterion than length and EOS."""

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -2:].sum(-1) > 1.6 * VOCAB


class Streamer(list):
    def put(self, tokens):
        self.append(tokens.tolist())

    def end(self):
        self.append("end")


def test_options_of_generate():
    """Criteria, processors, scores, streams, a prefix's cache, chunks of the prompt: as without a draft."""
    model, streamer = build("hybrid"), Streamer()
    decoding = SpeculativeDecoding(model, streamer=streamer)
    prompt = torch.randint(3, VOCAB, (1, 7))
    processors = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 4}
    options = {
        **processors,
        "max_new_tokens": 14,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
    }
    for extra in ({}, {"stopping_criteria": [Seen()]}, {"prefill_chunk_size": 2}):
        plain = model.generate(prompt, **options, stopping_criteria=extra.get("stopping_criteria"))
        ours = model.generate(prompt, custom_generate=decoding, **options, **extra)
        assert torch.equal(ours.sequences, plain.sequences)
        torch.testing.assert_close(ours.scores, plain.scores, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.logits, plain.logits, rtol=1e-4, atol=1e-4)
        assert ours.past_key_values.get_seq_length() == plain.past_key_values.get_seq_length()
        new = plain.sequences[0, 7:].tolist()
        assert streamer == [prompt.tolist(), *([token] for token in new), "end"]
        streamer.clear()
    # a dialogue: the cache goes on, and holds what `generate` would leave in it
    for custom in (None, decoding):
        cache = model(prompt[:, :4], use_cache=True).past_key_values
        first = model.generate(prompt, past_key_values=cache, max_new_tokens=5, min_new_tokens=5, custom_generate=custom)
        assert cache.get_seq_length() == 11
        more = torch.cat([first, prompt], 1)
        out = model.generate(more, past_key_values=cache, max_new_tokens=5, custom_generate=custom)
        assert torch.equal(out, model.generate(more, max_new_tokens=5))


def test_padding_is_no_text_to_draft_from():
    """A prompt that repeats itself drafts as much behind padding as without."""
    model, reports = build("bdlru", vocab_size=4, eos_token_id=None, pad_token_id=None), []
    prompt = torch.tensor([[1, 2, 3, 0] * 3])
    for padding in (0, 1):
        ids, mask = (torch.nn.functional.pad(x, (padding, 0)) for x in (prompt, torch.ones_like(prompt)))
        lookup = SpeculativeDecoding()
        model.generate(ids, attention_mask=mask, custom_generate=lookup, max_new_tokens=12, eos_token_id=None, pad_token_id=0)
        reports.append(lookup.report[:4])
    assert reports[0] == reports[1]
    assert reports[0][2] > 8


def test_an_assistant_that_says_the_same_and_rows_that_end():
    """Every draft is accepted, drawn or not; nothing is drafted for a row that has ended."""
    model, prompt = Table(), torch.tensor([[1, 1], [3, 3]])
    decoding = SpeculativeDecoding(model, num_tokens=4)
    criteria, config = StoppingCriteriaList([MaxLengthCriteria(32)]), GenerationConfig(max_length=32, use_cache=True)
    with torch.no_grad():
        config.do_sample = True
        decoding(model, prompt, LogitsProcessorList(), criteria, config)
        assert decoding.report.acceptance_rate == 1
        # 1 is followed by the end, 2; 3 and 0 by each other
        model.table.copy_(torch.eye(4)[torch.tensor([3, 2, 2, 0])])
        config.do_sample, config._pad_token_tensor = False, torch.tensor(1)
        criteria.append(EosTokenCriteria(torch.tensor(2)))
        out = decoding(model, prompt, LogitsProcessorList(), criteria, config)
    assert out[:, 2:].tolist() == [[2] + [1] * 29, [0, 3] * 15]
    report = decoding.report
    assert (report.tokens, report.drafted - report.accepted) == (31, 3)  # three behind the end, in one draft


def test_an_assistant_goes_on_from_what_was_accepted():
    """It does not begin anew behind a draft that was refused."""
    model, small, lengths = build("bdlru", eos_token_id=None), build("small", eos_token_id=None), []
    small.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    decoding = SpeculativeDecoding(small)
    model.generate(torch.arange(3, 12)[None], custom_generate=decoding, max_new_tokens=12)
    assert decoding.report.acceptance_rate < 1
    assert lengths[0] == 9
    assert set(lengths[1:]) == {1}  # the token behind the last draft alone, too, where all of it was accepted


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("mixer", ["mamba", "mamba2", "forgetting_attn", "mla", "bitnet", "gdn2", "momentum_deltanet"])
def test_an_assistant_of_any_layers_says_what_it_says_without_a_cache(mixer, padding):
    """Whole drafts are accepted and a token follows, so that two are new to it; some layers take one at a time."""
    arguments = {"mamba2": {"expand": 1, "head_dim": 16}, "mamba": {}}.get(mixer, {"num_heads": 2})
    fields = {"num_heads": 2, "mixer": [mixer, "native"], "mixer_config": {mixer: arguments}}
    small, text = build("hybrid", **fields, hidden_size=32), torch.randint(3, VOCAB, (2, 6))
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[0, :padding] = 0
    assistant = Assistant(small, mask[:, :6] if padding else None, lambda ids, logits: logits, False)
    if mixer == "momentum_deltanet" and padding:
        with pytest.raises(NotImplementedError, match="attention_mask is not yet supported by MomentumDeltaNet"):
            assistant(text, torch.tensor([6, 6]), 3)
        return
    for length in (6, 10):
        draft, _ = assistant(torch.nn.functional.pad(text, (0, 4)), torch.tensor([length, length]), 3)
        for at in range(length, length + 4):
            logits = small(text, attention_mask=mask[:, :at] if padding else None).logits[:, -1:]
            text = torch.cat([text, logits.argmax(-1)], 1)
        assert torch.equal(draft, text[:, length : length + 3])


def test_a_prompt_is_read_in_chunks():
    """All but its last token, which goes in with the first draft."""
    model, lengths = build("bdlru"), []
    model.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    for chunk in ({}, {"prefill_chunk_size": 3}):
        model.generate(torch.arange(3, 12)[None], custom_generate=SpeculativeDecoding(), max_new_tokens=1, **chunk)
    assert lengths == [8, 1, 3, 3, 2, 1]


@pytest.mark.parametrize("assistant", [True, False], ids=["assistant", "text"])
def test_prompts_of_int32(assistant):
    """They give what `generate` gives, and of its type."""
    model, prompt = build("bdlru"), torch.tensor([[1, 3, 4, 3]], dtype=torch.int32)
    decoding = SpeculativeDecoding(model if assistant else None)
    out, plain = (model.generate(prompt, max_new_tokens=4, custom_generate=custom) for custom in (decoding, None))
    assert torch.equal(out, plain)
    assert out.dtype == plain.dtype


def test_lookup():
    """The longest run of last tokens that stood before, the latest of them with enough behind it."""
    text = torch.tensor([[9, 1, 2, 3, 4, 1, 2, 5, 8, 1, 2]])
    for most, expected in ((4, [5, 8, 1, 2]), (3, [5, 8, 1]), (5, [3, 4, 1, 2, 5])):
        assert Lookup(3).follow(text[0], most).tolist() == expected
    assert Lookup(1).follow(torch.tensor([7, 7]), 3).tolist() == [7]
    assert Lookup(3).follow(torch.tensor([1, 2, 1]), 0).tolist() == []
    # rows that know 4, 4 and 6 tokens; the second one's first is padding, the third goes on behind what it knows
    rows, lengths = torch.tensor([[5, 1, 2, 1, 0, 0], [1, 2, 3, 1, 0, 0], [1, 2, 1, 2, 1, 2]]), torch.tensor([4, 4, 6])
    drafts, q = Lookup(3, torch.tensor([0, 1, 0]))(rows, lengths, 3)
    assert (drafts.tolist(), q) == ([[2, 1, 0], [0, 0, 0], [1, 2, 1]], None)


def test_errors():
    model, prompt = build("bdlru"), torch.randint(3, VOCAB, (2, 5))
    decoding, one = SpeculativeDecoding(), prompt[:1]

    def refused(message, ids=one, custom_generate=decoding, model=model, **options):
        with pytest.raises(ValueError, match=message):
            model.generate(ids, custom_generate=custom_generate, max_new_tokens=9, **options)

    refused("num_beams=2 does not go together with speculative decoding", prompt, num_beams=2)
    refused("a batch with streamer=.* does not go", prompt, SpeculativeDecoding(streamer=Streamer()))
    allowed = {"prefix_allowed_tokens_fn": lambda row, ids: [3, 4]}
    refused("a batch with logits_processor=.*PrefixConstrained.* does not go", prompt, **allowed)
    refused("use_cache=False does not go together with speculative decoding", use_cache=False)
    refused("output_hidden_states=True does not go", output_hidden_states=True)
    refused("output_attentions=True does not go", output_attentions=True)
    refused("logits_processor=.*ClassifierFreeGuidance.* does not go", guidance_scale=2.0)
    watermark = SynthIDTextWatermarkingConfig(keys=[3, 5], ngram_len=2)
    refused("logits_processor=.*SynthID.* does not go", watermarking_config=watermark, do_sample=True)
    refused("zeros only on the left", attention_mask=torch.tensor([[1, 1, 0, 1, 1]]))
    refused("zeros only on the left", attention_mask=torch.tensor([[0, 0, 0, 0, 0]]))
    refused("pass input_ids, not inputs_embeds", None, inputs_embeds=model.model.embeddings(one))
    other = build("small", vocab_size=30)
    refused("assistant_model has vocab_size=30, the model 24", custom_generate=SpeculativeDecoding(other))
    with pytest.raises(ValueError, match=r"assistant_model must be a language model .* got HLRUModel"):
        SpeculativeDecoding(other.model)
    with pytest.raises(ValueError, match=r"num_tokens must be .*; got 0"):
        SpeculativeDecoding(num_tokens=0)
    for held in (one, one.repeat(1, 2)):  # none of the prompt is left to read
        cache, message = model(held, use_cache=True).past_key_values, f"holds {held.shape[1]} tokens, the prompt has 5; pass a"
        refused(message, past_key_values=cache)
        if RENAMED:
            refused(message, past_key_values=cache, custom_generate=None)
    cache, new = model(one[:, :3], use_cache=True).past_key_values, one[:, 3:]
    for masked in (1, 0):  # transformers leaves out a mask of ones
        mask = torch.tensor([[masked, 1, 1, 1, 1]])
        refused(
            "attention_mask is of 5 tokens, input_ids of 2; .* pass the tokens",
            new,
            past_key_values=cache,
            attention_mask=mask,
        )
    # layers that keep no states; FLA's window of attention, which has dropped keys
    drafts = {"custom_generate": SpeculativeDecoding(build("small"))}
    delta_net = {"mixer": ["gated_deltanet", "native"], "mixer_config": {"gated_deltanet": {"num_heads": 2, "head_dim": 8}}}
    refused("layer 0 kept 0 earlier states; .*only BD-LRU and H-LRU layers keep", model=build("hybrid", **delta_net), **drafts)
    refused("layer 1 is attention with a window of 4, .* dropped", model=build("hybrid", window_size=4), **drafts)
