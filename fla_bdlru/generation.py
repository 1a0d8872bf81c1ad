"""Speculative decoding: a draft of several tokens is verified in one call, and what was wrong is taken back."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from fla.models.modeling_utils import FLAPreTrainedModel
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.logits_process import (
    PrefixConstrainedLogitsProcessor,
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
# what may raise on tokens that were drafted and refused, as rows have behind them that wait for others
OF_WHOLE_TEXTS = (PrefixConstrainedLogitsProcessor,)


class Report(NamedTuple):
    """What one call of `generate` did; `tokens` are those of all rows, to their ends, `seconds` has the prompt's in it."""

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
    takes a model of layers that `rewind_cache` can take tokens back from: BD-LRU, H-LRU, attention. The rows of a batch accept
    drafts each for itself; the state goes on with the slowest, and no token is verified twice.

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
            beams, a mask with other than left padding, options of `generate` that a draft does not go together with, and
            layers that cannot be rewound.

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
        given, mask = model_kwargs.get("past_key_values"), left_padding(input_ids, model_kwargs)
        ids, do_sample = input_ids.to(model.device), bool(config.do_sample)
        start, pad_token = ids.shape[1], None
        if any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria):
            pad_token = config._pad_token_tensor.to(ids.device)  # follows a row's end

        def probabilities(ids: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Processed scores `[B, V]` and the distributions `[B, V]` that the next tokens are drawn from."""
            scores = logits_processor(ids, logits.to(ids.device, torch.float32, copy=True))
            return scores, scores.softmax(-1) if do_sample else F.one_hot(scores.argmax(-1), scores.shape[-1]).float()

        if self.assistant_model is None:
            drafter = Lookup(self.max_ngram, None if mask is None else (mask == 0).sum(1))
        else:
            drafter = Assistant(self.assistant_model, mask, lambda *x: probabilities(*x)[1], do_sample)
        self.stream(input_ids)
        # all but the last token, which goes in with the first draft
        cache = None if given is None else rewind_cache(given, 0)
        done = 0 if cache is None else cache.get_seq_length()
        for piece in ids[:, done:-1].split(config.prefill_chunk_size or start, 1) if done < start - 1 else ():
            done += piece.shape[1]
            seen = {"attention_mask": stretched(mask, done), "past_key_values": cache}
            cache = model(piece, **seen, use_cache=True, logits_to_keep=1).past_key_values

        # how many of its tokens a row knows, and with how many it ended, if it has; `ids` has drafts behind what is known
        lengths, ends = ids.new_full((len(ids),), start), ids.new_zeros(len(ids))
        scores, logits, calls, drafted, accepted, finished = [], [], 0, 0, 0, False
        while not finished:
            length = int(lengths.min())
            most = max(min(self.num_tokens, config.max_length - length - 1), 0)
            ids = F.pad(ids, (0, max(length + most + 1 - ids.shape[1], 0)))
            draft, q = drafter(ids, lengths, most)
            n = draft.shape[1]
            known = torch.arange(length, length + n, device=ids.device) < lengths[:, None]
            drafted += int((~known & (ends == 0)[:, None]).sum())
            draft = draft if pad_token is None else torch.where((ends > 0)[:, None], pad_token, draft)
            ids[:, length : length + n] = draft = torch.where(known, ids[:, length : length + n], draft)
            seen = {"attention_mask": stretched(mask, length + n), "past_key_values": cache}
            out = model(ids[:, length - 1 : length + n], **seen, use_cache=True, step_states=n, logits_to_keep=n + 1)
            q = F.one_hot(draft, out.logits.shape[-1]) if q is None else q
            right = lengths > 0  # rows whose drafts were accepted so far: all
            for i in range(n + 1):
                at = length + i
                score, p = probabilities(ids[:, :at], out.logits[:, i])
                keep(scores if config.output_scores else None, at - start, score, right)
                keep(logits if config.output_logits else None, at - start, out.logits[:, i].float(), right)
                token, new = ids[:, at], right & (lengths <= at)
                agrees = torch.zeros_like(right)
                if i < n:  # with probability min(1, p/q), of the drafted token
                    chance = torch.rand(len(ids), device=ids.device) if do_sample else 0.5
                    agrees = chance * chosen(q[:, i], token) < chosen(p, token)
                    p = left_over(p, q[:, i])
                drawn = torch.where(agrees, token, draw(torch.where(new[:, None], p, 1.0), do_sample))
                if pad_token is not None:
                    drawn = torch.where(ends > 0, pad_token, drawn)
                    agrees = torch.where(ends > 0, (token == pad_token) & (i < n), agrees)
                ids[:, at] = torch.where(new, drawn, token)
                accepted += int((new & agrees & (ends == 0)).sum())
                lengths = torch.where(new, at + 1, lengths)
                stops = stopping_criteria(ids[:, : at + 1], tuple(scores[: at + 1 - start]) or None).to(ids.device)
                ends = torch.where(new & stops & (ends == 0), at + 1, ends)
                self.stream(ids[:, at])
                right = right & (agrees | ~new)
                finished = bool(ends.all() and lengths.min() >= ends.max())
                if finished or not right.any():
                    break
            cache = rewind_cache(out.past_key_values, length + n + 1 - int(lengths.min()))  # all but the last token again
            calls += 1
        if self.streamer is not None:
            self.streamer.end()
        if given is not None:
            given.layers[:] = cache.layers  # as every way of generating leaves it
        self.report = Report(int((ends - start).sum()), calls, drafted, accepted, perf_counter() - begin)
        ids, most = ids[:, : ends.max()].to(input_ids.device), int(ends.max()) - start
        if not config.return_dict_in_generate:
            return ids
        kept = {"scores": tuple(scores[:most]) or None, "logits": tuple(logits[:most]) or None}
        return GenerateDecoderOnlyOutput(sequences=ids, past_key_values=cache, **kept)

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
        if input_ids.shape[1] == 0 or model_kwargs.get("inputs_embeds") is not None:
            raise ValueError("Speculative decoding needs a prompt of tokens: pass input_ids, not inputs_embeds.")
        refused = [(name, True) for name in ("output_attentions", "output_hidden_states") if getattr(config, name)]
        refused += [] if config.use_cache else [("use_cache", config.use_cache)]
        refused += [("num_beams", config.num_beams)] if (config.num_beams or 1) > 1 else []
        refused += [("logits_processor", p) for p in logits_processor if isinstance(p, STATEFUL)]
        if len(input_ids) > 1:
            refused += [("a batch with streamer", self.streamer)] if self.streamer is not None else []
            refused += [("a batch with logits_processor", p) for p in logits_processor if isinstance(p, OF_WHOLE_TEXTS)]
        for name, value in refused:
            raise ValueError(f"{name}={value!r} does not go together with speculative decoding; leave it out.")


def check_model(field: str, model: object) -> None:
    """Raises `ValueError` unless `model` is a language model whose cache `rewind_cache` knows."""
    if not isinstance(model, FLAPreTrainedModel) or not model.can_generate():
        raise ValueError(
            f"{field} must be a language model of flash-linear-attention or of this package; got {type(model).__name__}."
        )


def left_padding(input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The prompts' mask, if it hides anything: zeros on the left only, with tokens behind them."""
    mask = model_kwargs.get("attention_mask")
    if mask is None or mask.all():
        return None
    if mask.shape != input_ids.shape or (mask.diff(dim=1) < 0).any() or not mask[:, -1].all():
        raise ValueError("attention_mask must have the prompt's shape and, in speculative decoding, zeros only on the left.")
    return mask


def stretched(mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """The mask of the first `length` tokens, of which all behind the prompt are seen."""
    return None if mask is None else F.pad(mask, (0, length - mask.shape[1]), value=1)


def keep(rows: list[torch.Tensor] | None, at: int, values: torch.Tensor, right: torch.Tensor) -> None:
    """Puts `values` `[B, V]` of the rows that are `right` into `rows[at]`."""
    if rows is not None:
        rows[at:] = [torch.where(right[:, None], values, rows[at]) if at < len(rows) else values, *rows[at + 1 :]]


def chosen(p: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The values `[B]` of tokens `[B]` in p `[B, V]`."""
    return p.gather(-1, tokens[:, None])[:, 0]


def draw(p: torch.Tensor, do_sample: bool) -> torch.Tensor:
    """Tokens `[B]` from distributions `[B, V]`."""
    return torch.multinomial(p, 1)[:, 0] if do_sample else p.argmax(-1)


def left_over(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """What the draft's distributions q leave of p, not normalised: a refused token is drawn anew from it."""
    rest = (p - q).clamp(min=0)
    return torch.where(rest.any(-1, keepdim=True), rest, p)  # equal but for rounding


class Lookup:
    """Drafts what followed the last tokens where they stood before."""

    def __init__(self, max_ngram: int, padding: torch.Tensor | None = None) -> None:
        self.max_ngram, self.padding = max_ngram, padding

    def __call__(self, ids: torch.Tensor, lengths: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """At most `most` tokens `[B, n]` behind the first `min(lengths)` of `ids`, and what they were drawn from, `[B, n, V]`.

        Where a row knows its token already it is that; `None` where nothing is drawn.
        """
        length, padding = int(lengths.min()), [0] * len(ids) if self.padding is None else self.padding.tolist()
        drafts = [
            torch.cat([row[length:known], self.follow(row[first:known], length + most - known)])[:most]
            for row, first, known in zip(ids, padding, lengths.tolist())
        ]
        n = max(map(len, drafts))
        return torch.stack([F.pad(draft, (0, n - len(draft))) for draft in drafts]), None

    def follow(self, text: torch.Tensor, most: int) -> torch.Tensor:
        """At most `most` tokens to follow `text`."""
        for size in range(min(self.max_ngram, len(text) - 1) if most > 0 else 0, 0, -1):
            ends = (text.unfold(0, size, 1)[:-1] == text[-size:]).all(1).nonzero()[:, 0] + size
            if len(ends):
                whole = ends[ends + most <= len(text)]  # the last one with enough behind it, or the one with most
                end = whole[-1] if len(whole) else ends[0]
                return text[end : end + most]
        return text[:0]


class Assistant:
    """Drafts what a smaller model says, which starts again from the cache of the last token that all rows accepted."""

    def __init__(
        self,
        model: FLAPreTrainedModel,
        mask: torch.Tensor | None,
        probabilities: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        do_sample: bool,
    ) -> None:
        self.model, self.probabilities, self.do_sample = model, probabilities, do_sample
        self.mask = None if mask is None else mask.to(model.device)
        self.caches: list[Cache] = []

    def __call__(self, ids: torch.Tensor, lengths: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `Lookup`'s."""
        length, ids, q = int(lengths.min()), ids.clone(), []
        self.caches = [cache for cache in self.caches if cache.get_seq_length() < length][-1:]
        for at in range(length, length + most):
            cache = rewind_cache(self.caches[-1], 0) if self.caches else None  # another one, which the next token changes
            new = ids[:, 0 if cache is None else cache.get_seq_length() : at].to(self.model.device)
            seen = {"attention_mask": stretched(self.mask, at), "past_key_values": cache}
            out = self.model(new, **seen, use_cache=True, logits_to_keep=1)
            self.caches.append(out.past_key_values)
            q.append(self.probabilities(ids[:, :at], out.logits[:, -1]))
            ids[:, at] = torch.where(lengths > at, ids[:, at], draw(q[-1], self.do_sample))
        return ids[:, length : length + most], torch.stack(q, 1) if q else None
