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
from fla_bdlru.drafts import Assistant, Lookup, draw, stretched
from fla_bdlru.mixers.cache_name import CACHE, cache_of, check_prefix, given_cache
from fla_bdlru.ops.common.checks import check_count

if TYPE_CHECKING:
    from collections.abc import Iterator

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
            beams, a mask with other than left padding or of more tokens than the prompt, a cache that holds all of the prompt,
            options of `generate` that a draft does not go together with, and layers that cannot be rewound.

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
        given, mask = given_cache(model_kwargs), left_padding(input_ids, model_kwargs)
        text = Text(model, input_ids, mask, logits_processor, stopping_criteria, config)
        if self.assistant_model is None:
            drafter = Lookup(self.max_ngram, None if mask is None else (mask == 0).sum(1))
        else:
            drafter = Assistant(self.assistant_model, mask, lambda *x: text.probabilities(*x)[1], text.do_sample)
        self.stream(input_ids)
        text.read_prompt(None if given is None else rewind_cache(given, 0))
        while not text.finished:
            most = text.make_room(self.num_tokens)
            for token in text.verify(*drafter(text.ids, text.lengths, most)):
                self.stream(token)
        if self.streamer is not None:
            self.streamer.end()
        if given is not None:
            given.layers[:] = text.cache.layers  # as every way of generating leaves it
        self.report = Report(int((text.ends - text.start).sum()), *text.counts, perf_counter() - begin)
        return text.output(input_ids.device)

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
        mask, length = model_kwargs.get("attention_mask"), input_ids.shape[1]
        masked = getattr(config, "_mask_length", length) if mask is None else mask.shape[-1]  # one of ones is left out
        if masked > length:
            raise ValueError(
                f"attention_mask is of {masked} tokens, input_ids of {length}; speculative decoding looks at the whole text: "
                "pass the tokens that the cache holds, too."
            )
        refused = [(name, True) for name in ("output_attentions", "output_hidden_states") if getattr(config, name)]
        refused += [] if config.use_cache else [("use_cache", config.use_cache)]
        refused += [("num_beams", config.num_beams)] if (config.num_beams or 1) > 1 else []
        refused += [("logits_processor", p) for p in logits_processor if isinstance(p, STATEFUL)]
        if len(input_ids) > 1:
            refused += [("a batch with streamer", self.streamer)] if self.streamer is not None else []
            refused += [("a batch with logits_processor", p) for p in logits_processor if isinstance(p, OF_WHOLE_TEXTS)]
        for name, value in refused:
            raise ValueError(f"{name}={value!r} does not go together with speculative decoding; leave it out.")


class Text:
    """The rows of one call of `generate`: what is known of them, and the steps by which it becomes more.

    Of `ids` `[B, L]` a row knows the first `lengths` `[B]`, and a draft stands behind; `ends` `[B]`: where it ended, 0 before.
    `cache` holds all but the last of the tokens that every row knows. `counts` are those of `Report`.
    """

    def __init__(
        self,
        model: FLAPreTrainedModel,
        input_ids: torch.Tensor,
        mask: torch.Tensor | None,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        config: GenerationConfig,
    ) -> None:
        self.model, self.mask, self.config, self.do_sample = model, mask, config, bool(config.do_sample)
        self.logits_processor, self.stopping_criteria = logits_processor, stopping_criteria
        self.ids, self.start = input_ids.to(model.device, torch.long), input_ids.shape[1]
        self.lengths, self.ends = self.ids.new_full((len(input_ids),), self.start), self.ids.new_zeros(len(input_ids))
        self.pad_token = None
        if any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria):
            self.pad_token = config._pad_token_tensor.to(model.device)  # follows a row's end
        self.scores, self.logits, self.counts, self.finished = [], [], [0, 0, 0], False

    def probabilities(self, ids: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Processed scores `[B, V]` and the distributions `[B, V]` that the next tokens are drawn from."""
        scores = self.logits_processor(ids, logits.to(ids.device, torch.float32, copy=True))
        return scores, scores.softmax(-1) if self.do_sample else F.one_hot(scores.argmax(-1), scores.shape[-1]).float()

    def call(self, ids: torch.Tensor, end: int, **options) -> Any:
        """The model on tokens that end at `end`."""
        seen = {"attention_mask": stretched(self.mask, end), "past_key_values": self.cache}
        return self.model(ids, **seen, use_cache=True, **options)

    def read_prompt(self, cache: Cache | None) -> None:
        """Puts all of the prompt but its last token, which goes in with the first draft, behind what a given cache holds."""
        self.cache, done = cache, 0
        if cache is not None:
            check_prefix(cache, self.start)
            done = cache.get_seq_length()
        pieces = self.ids[:, done:-1].split(self.config.prefill_chunk_size or self.start, 1)
        for piece in pieces if done < self.start - 1 else ():
            done += piece.shape[1]
            self.cache = cache_of(self.call(piece, done, logits_to_keep=1))

    def make_room(self, num_tokens: int) -> int:
        """How long the next draft may be; `ids` has place for it and a token more."""
        length = int(self.lengths.min())
        most = max(min(num_tokens, self.config.max_length - length - 1), 0)
        self.ids = F.pad(self.ids, (0, max(length + most + 1 - self.ids.shape[1], 0)))
        return most

    def place(self, draft: torch.Tensor, length: int) -> torch.Tensor:
        """Puts a draft `[B, n]` behind the first `length` tokens, but where a row knows its own; returns what stands there."""
        at = slice(length, length + draft.shape[1])
        known = torch.arange(at.start, at.stop, device=draft.device) < self.lengths[:, None]
        self.counts[1] += int((~known & (self.ends == 0)[:, None]).sum())
        draft = draft if self.pad_token is None else torch.where((self.ends > 0)[:, None], self.pad_token, draft)
        self.ids[:, at] = draft = torch.where(known, self.ids[:, at], draft)
        return draft

    def verify(self, draft: torch.Tensor, q: torch.Tensor | None) -> Iterator[torch.Tensor]:
        """One call of the model on a draft `[B, n]`, drawn from `q` `[B, n, V]`; the tokens `[B]` that a row gets by it."""
        length, n = int(self.lengths.min()), draft.shape[1]
        draft = self.place(draft, length)
        out = self.call(self.ids[:, length - 1 : length + n], length + n, step_states=n, logits_to_keep=n + 1)
        q = F.one_hot(draft, out.logits.shape[-1]) if q is None else q
        right = self.lengths > 0  # rows whose drafts were accepted so far: all
        for i in range(n + 1):
            right = self.judge(length + i, out.logits[:, i], q[:, i] if i < n else None, right)
            yield self.ids[:, length + i]
            self.finished = bool(self.ends.all() and self.lengths.min() >= self.ends.max())
            if self.finished or not right.any():
                break
        self.cache = rewind_cache(cache_of(out), length + n + 1 - int(self.lengths.min()))  # all but the last again
        self.counts[0] += 1

    def judge(self, at: int, logits: torch.Tensor, q: torch.Tensor | None, right: torch.Tensor) -> torch.Tensor:
        """Settles a token of the rows that are `right`; returns those that still are. Behind a draft `q` is `None`."""
        score, p = self.probabilities(self.ids[:, :at], logits)
        keep(self.scores if self.config.output_scores else None, at - self.start, score, right)
        keep(self.logits if self.config.output_logits else None, at - self.start, logits.float(), right)
        token, new, agrees = self.ids[:, at], right & (self.lengths <= at), torch.zeros_like(right)
        if q is not None:  # with probability min(1, p/q), of the drafted token
            chance = torch.rand(len(token), device=token.device) if self.do_sample else 0.5
            agrees, p = chance * chosen(q, token) < chosen(p, token), left_over(p, q)
        drawn = torch.where(agrees, token, draw(torch.where(new[:, None], p, 1.0), self.do_sample))
        if self.pad_token is not None:
            drawn = torch.where(self.ends > 0, self.pad_token, drawn)
            agrees = torch.where(self.ends > 0, (token == self.pad_token) & (q is not None), agrees)
        self.ids[:, at] = torch.where(new, drawn, token)
        self.counts[2] += int((new & agrees & (self.ends == 0)).sum())
        self.lengths = torch.where(new, at + 1, self.lengths)
        stops = self.stopping_criteria(self.ids[:, : at + 1], tuple(self.scores[: at + 1 - self.start]) or None)
        self.ends = torch.where(new & stops.to(new.device) & (self.ends == 0), at + 1, self.ends)
        return right & (agrees | ~new)

    def output(self, device: torch.device) -> torch.LongTensor | GenerateDecoderOnlyOutput:
        """What `generate` returns."""
        ids, most = self.ids[:, : self.ends.max()].to(device), int(self.ends.max()) - self.start
        if not self.config.return_dict_in_generate:
            return ids
        kept = {"scores": tuple(self.scores[:most]) or None, "logits": tuple(self.logits[:most]) or None}
        return GenerateDecoderOnlyOutput(sequences=ids, **{CACHE: self.cache}, **kept)


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


def keep(rows: list[torch.Tensor] | None, at: int, values: torch.Tensor, right: torch.Tensor) -> None:
    """Puts `values` `[B, V]` of the rows that are `right` into `rows[at]`."""
    if rows is not None:
        rows[at:] = [torch.where(right[:, None], values, rows[at]) if at < len(rows) else values, *rows[at + 1 :]]


def chosen(p: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The values `[B]` of tokens `[B]` in p `[B, V]`."""
    return p.gather(-1, tokens[:, None])[:, 0]


def left_over(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """What the draft's distributions q leave of p, not normalised: a refused token is drawn anew from it."""
    rest = (p - q).clamp(min=0)
    return torch.where(rest.any(-1, keepdim=True), rest, p)  # equal but for rounding
