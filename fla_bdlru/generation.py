"""Speculative decoding: a draft of several tokens is verified in one call, and what was wrong is taken back."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from fla.models.modeling_utils import FLAPreTrainedModel
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.logits_process import (
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from fla_bdlru.decoding import rewind_cache
from fla_bdlru.ops.common.checks import check_count

if TYPE_CHECKING:
    from collections.abc import Callable

    from fla.models.utils import Cache
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
    from transformers.generation.streamers import BaseStreamer

# processors with a state of their own, which goes from token to token and cannot be taken back
STATEFUL = (UnbatchedClassifierFreeGuidanceLogitsProcessor, SynthIDTextWatermarkLogitsProcessor)


class Report(NamedTuple):
    """What one call of `generate` did; `seconds` has the prompt's in it."""

    tokens: int
    calls: int
    drafted: int
    accepted: int
    seconds: float

    @property
    def acceptance_rate(self) -> float:
        """Accepted over drafted tokens."""
        return self.accepted / max(self.drafted, 1)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens in {self.calls} calls, {self.accepted} of {self.drafted} drafted tokens accepted "
            f"({self.acceptance_rate:.0%}), {self.tokens_per_second:.1f} tokens/s"
        )


class SpeculativeDecoding:
    r"""A `custom_generate` for transformers: an assistant model, or the text so far, drafts; the model verifies.

    `model.generate(..., custom_generate=SpeculativeDecoding(small))` gives what `model.generate(...)` gives: greedy output
    token by token, samples of the same distribution; every token passes the logits processors and the stopping criteria. It
    takes one sequence, and a model of layers that `rewind_cache` can take tokens back from: BD-LRU, H-LRU, attention.

    Args:
        assistant_model (FLAPreTrainedModel, Optional):
            A smaller language model of FLA's or this package's with the same vocabulary and any layers. Default: `None`,
            prompt lookup: the draft is what followed the last tokens where they stood in the text before.
        num_tokens (int, Optional):
            Tokens of a draft, at most. Default: 4.
        max_ngram (int, Optional):
            How many of the last tokens prompt lookup searches for, at most. Default: 3.
        streamer (BaseStreamer, Optional):
            Gets the prompt and each token; `generate(streamer=...)` does not reach a custom function. Default: `None`.

    Attributes:
        report (Report | None):
            Of the last call: `tokens`, `calls` of the model, `drafted` and `accepted` tokens, `seconds`, `acceptance_rate` and
            `tokens_per_second`.

    Raises:
        ValueError: on numbers that are not positive or an assistant that is not FLA's; while generating on another vocabulary,
            several sequences, a mask with other than left padding, options of `generate` that a draft does not go together
            with, and layers that cannot be rewound.

    Source: Leviathan, Kalman, Matias, "Fast inference from transformers via speculative decoding", arXiv 2211.17192.

    Example:
        >>> import torch
        >>> from fla_bdlru import BDLRUConfig, BDLRUForCausalLM, SpeculativeDecoding
        >>> model = BDLRUForCausalLM(BDLRUConfig(hidden_size=32, num_hidden_layers=2, vocab_size=50)).eval()
        >>> prompt, lookup = torch.randint(3, 50, (1, 8)), SpeculativeDecoding()
        >>> out = model.generate(prompt, custom_generate=lookup, max_new_tokens=8)
        >>> assert torch.equal(out, model.generate(prompt, max_new_tokens=8))
        >>> assert lookup.report.tokens == out.shape[1] - 8
    """

    report: Report | None = None

    def __init__(
        self,
        assistant_model: FLAPreTrainedModel | None = None,
        num_tokens: int = 4,
        max_ngram: int = 3,
        streamer: BaseStreamer | None = None,
    ) -> None:
        check_count("num_tokens", num_tokens)
        check_count("max_ngram", max_ngram)
        if assistant_model is not None:
            check_model("assistant_model", assistant_model)
        self.assistant_model, self.streamer = assistant_model, streamer
        self.num_tokens, self.max_ngram = num_tokens, max_ngram

    def __call__(
        self,
        model: FLAPreTrainedModel,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs,
    ) -> torch.LongTensor | GenerateDecoderOnlyOutput:
        """The decoding loop, which `generate` calls when inputs, processors and criteria are prepared."""
        begin, config = perf_counter(), generation_config
        self.check_call(model, input_ids, logits_processor, config, model_kwargs)
        given, padding = model_kwargs.get("past_key_values"), left_padding(input_ids, model_kwargs)
        ids, do_sample = input_ids.to(model.device), bool(config.do_sample)

        def probabilities(ids: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Processed scores `[1, V]` and the distribution `[V]` that the next token is drawn from."""
            scores = logits_processor(ids, logits.to(ids.device, torch.float32, copy=True))
            p = scores.softmax(-1) if do_sample else F.one_hot(scores.argmax(-1), scores.shape[-1]).float()
            return scores, p[0]

        if self.assistant_model is None:
            drafter = Lookup(self.max_ngram, padding)
        else:
            drafter = Assistant(self.assistant_model, padding, lambda *x: probabilities(*x)[1], do_sample)
        self.stream(input_ids)
        # all but the last token, which goes in with the first draft
        cache = None if given is None else rewind_cache(given, 0)
        rest = ids[:, padding + (0 if cache is None else cache.get_seq_length()) : -1]
        for piece in rest.split(config.prefill_chunk_size or max(rest.shape[1], 1), 1) if rest.numel() else ():
            cache = model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values

        scores, logits, calls, drafted, accepted, finished = (), (), 0, 0, 0, False
        while not finished:
            length = ids.shape[1]
            draft, q = drafter(ids, max(min(self.num_tokens, config.max_length - length - 1), 0))
            n = len(draft)
            tokens = torch.cat([ids[0, -1:], draft])[None]
            out = model(tokens, past_key_values=cache, use_cache=True, step_states=n, logits_to_keep=n + 1)
            q = F.one_hot(draft, out.logits.shape[-1]) if q is None else q
            for i in range(n + 1):
                score, p = probabilities(ids, out.logits[:, i])
                # with probability min(1, p/q), of the drafted token
                agrees = i < n and bool((torch.rand(()) if do_sample else 0.5) * q[i, draft[i]] < p[draft[i]])
                token = draft[i : i + 1] if agrees else draw(left_over(p, q[i]) if i < n else p, do_sample)
                ids = torch.cat([ids, token[None]], 1)
                accepted += agrees
                scores += (score,) if config.output_scores else ()
                logits += (out.logits[:, i].float(),) if config.output_logits else ()
                self.stream(token)
                finished = bool(stopping_criteria(ids, scores or None).all())
                if finished or not agrees:
                    break
            cache = rewind_cache(out.past_key_values, length + n + 1 - ids.shape[1])  # all but the last token again
            calls, drafted = calls + 1, drafted + n
        if self.streamer is not None:
            self.streamer.end()
        if given is not None:
            given.layers[:] = cache.layers  # as every way of generating leaves it
        self.report = Report(ids.shape[1] - input_ids.shape[1], calls, drafted, accepted, perf_counter() - begin)
        ids = ids.to(input_ids.device)
        if not config.return_dict_in_generate:
            return ids
        return GenerateDecoderOnlyOutput(sequences=ids, scores=scores or None, logits=logits or None, past_key_values=cache)

    def stream(self, tokens: torch.Tensor) -> None:
        if self.streamer is not None:
            self.streamer.put(tokens.cpu())

    def check_call(
        self,
        model: FLAPreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        config: GenerationConfig,
        model_kwargs: dict[str, Any],
    ) -> None:
        """Raises `ValueError` for what speculative decoding does not do, or transformers' own neither."""
        check_model("model", model)
        if self.assistant_model is not None and self.assistant_model.config.vocab_size != model.config.vocab_size:
            raise ValueError(
                f"assistant_model has vocab_size={self.assistant_model.config.vocab_size}, the model "
                f"{model.config.vocab_size}; both must read the same tokens."
            )
        if input_ids.shape[0] != 1:
            raise ValueError(
                f"Speculative decoding takes one sequence at a time, as transformers' own does; got {input_ids.shape[0]} "
                "(the batch times num_beams or num_return_sequences)."
            )
        if input_ids.shape[1] == 0 or model_kwargs.get("inputs_embeds") is not None:
            raise ValueError("Speculative decoding needs a prompt of tokens: pass input_ids, not inputs_embeds.")
        refused = [(name, True) for name in ("output_attentions", "output_hidden_states") if getattr(config, name)]
        refused += [] if config.use_cache else [("use_cache", config.use_cache)]
        refused += [("logits_processor", p) for p in logits_processor if isinstance(p, STATEFUL)]
        for name, value in refused:
            raise ValueError(f"{name}={value!r} does not go together with speculative decoding; leave it out.")


def check_model(field: str, model: object) -> None:
    """Raises `ValueError` unless `model` is a language model whose cache `rewind_cache` knows."""
    if not isinstance(model, FLAPreTrainedModel) or not model.can_generate():
        raise ValueError(
            f"{field} must be a language model of flash-linear-attention or of this package; got {type(model).__name__}."
        )


def left_padding(input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> int:
    """How many of the prompt's first tokens are padding, which the model need not see."""
    mask = model_kwargs.get("attention_mask")
    if mask is None or mask.all():
        return 0
    padding = int((mask == 0).sum())
    if mask.shape != input_ids.shape or mask[0, :padding].any() or padding == mask.shape[1]:
        raise ValueError("attention_mask must have the prompt's shape and, in speculative decoding, zeros only on the left.")
    if model_kwargs.get("past_key_values") is not None:
        raise ValueError("attention_mask must be all ones where past_key_values are given; leave padding out of the prompt.")
    return padding


def draw(p: torch.Tensor, do_sample: bool) -> torch.Tensor:
    """A token `[1]` from a distribution `[V]`."""
    return torch.multinomial(p, 1) if do_sample else p.argmax(-1, keepdim=True)


def left_over(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """What the draft's distribution q leaves of p, not normalised: a refused token is drawn anew from it."""
    rest = (p - q).clamp(min=0)
    return rest if rest.any() else p  # equal but for rounding


class Lookup:
    """Drafts what followed the last tokens where they stood before."""

    def __init__(self, max_ngram: int, padding: int) -> None:
        self.max_ngram, self.padding = max_ngram, padding

    def __call__(self, ids: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """At most `most` tokens `[n]` to follow `ids`, and the distributions `[n, V]` they were drawn from, if from any."""
        text = ids[0, self.padding :]
        draft = text[:0]
        for size in range(min(self.max_ngram, len(text) - 1), 0, -1):
            ends = (text.unfold(0, size, 1)[:-1] == text[-size:]).all(1).nonzero()[:, 0] + size
            if len(ends):
                whole = ends[ends + most <= len(text)]  # the last one with enough behind it, or the one with most
                end = whole[-1] if len(whole) else ends[0]
                draft = text[end : end + most]
                break
        return draft, None


class Assistant:
    """Drafts what a smaller model says, which starts again from the cache of the last token that was accepted."""

    def __init__(
        self,
        model: FLAPreTrainedModel,
        padding: int,
        probabilities: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        do_sample: bool,
    ) -> None:
        self.model, self.padding, self.probabilities, self.do_sample = model, padding, probabilities, do_sample
        self.caches: list[Cache] = []

    def __call__(self, ids: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `Lookup`'s."""
        length, q = ids.shape[1], []
        known = [cache for cache in self.caches if cache.get_seq_length() < length - self.padding]
        self.caches = known[-1:]
        for _ in range(most):
            cache = rewind_cache(self.caches[-1], 0) if self.caches else None  # another one, which the next token changes
            new = ids[:, self.padding + (0 if cache is None else cache.get_seq_length()) :].to(self.model.device)
            out = self.model(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
            self.caches.append(out.past_key_values)
            q.append(self.probabilities(ids, out.logits[:, -1]))
            ids = torch.cat([ids, draw(q[-1], self.do_sample)[None]], 1)
        return ids[0, length:], torch.stack(q) if q else None
