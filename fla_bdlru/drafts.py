"""What may come next, for `SpeculativeDecoding`: what the text had before, or what a smaller model says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from fla.layers import ForgettingAttention

from fla_bdlru.decoding import rewind_cache
from fla_bdlru.mixers.cache_name import cache_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from fla.models.modeling_utils import FLAPreTrainedModel
    from fla.models.utils import Cache


def stretched(mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """The mask of the first `length` tokens, of which all behind the prompt are seen."""
    return None if mask is None else F.pad(mask, (0, length - mask.shape[1]), value=1)


def draw(p: torch.Tensor, do_sample: bool) -> torch.Tensor:
    """Tokens `[B]` from distributions `[B, V]`."""
    return torch.multinomial(p, 1)[:, 0] if do_sample else p.argmax(-1)


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
        self.asks_for_mask = any(isinstance(module, ForgettingAttention) for module in model.modules())  # behind a cache
        self.caches: list[Cache] = []

    def __call__(self, ids: torch.Tensor, lengths: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `Lookup`'s."""
        length, ids, q = int(lengths.min()), ids.clone(), []
        if self.mask is None and self.asks_for_mask:
            self.mask = ids.new_ones(len(ids), 1, device=self.model.device)
        self.caches = [cache for cache in self.caches if cache.get_seq_length() < length][-1:]
        first = self.caches[-1].get_seq_length() + 1 if self.caches else length  # below it where a whole draft was accepted
        for at in range(first, length + most) if most else ():
            cache = rewind_cache(self.caches[-1], 0) if self.caches else None  # another one, which the next token changes
            new = ids[:, 0 if cache is None else at - 1 : at].to(self.model.device)  # one by one, as some layers ask for
            seen = {"attention_mask": stretched(self.mask, at), "past_key_values": cache}
            out = self.model(new, **seen, use_cache=True, logits_to_keep=1)
            self.caches.append(cache_of(out))
            if at >= length:
                q.append(self.probabilities(ids[:, :at], out.logits[:, -1]))
                ids[:, at] = torch.where(lengths > at, ids[:, at], draw(q[-1], self.do_sample))
        return ids[:, length : length + most], torch.stack(q, 1) if q else None
