"""Fuzzy in-context recall as MAD defines it.

Source: Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv 2403.17844, and its published
settings: multi-query, vocabulary 16, length 128, keys and values of up to 3 tokens, 12,800 training examples.
"""

from __future__ import annotations

from itertools import permutations

import torch

from benchmarks.tasks.base import IGNORE, Batch, Task


class _Motifs:
    """All arrangements of 1 to `longest` different tokens."""

    def __init__(self, first: int, stop: int, longest: int):
        vocab = range(first, stop)
        motifs = [list(permutations(vocab, size)) for size in range(1, longest + 1)]
        self.counts = torch.tensor([len(m) for m in motifs])
        self.starts = self.counts.cumsum(0) - self.counts
        flat = [motif for same_size in motifs for motif in same_size]
        self.sizes = torch.tensor([len(motif) for motif in flat])
        self.tokens = torch.tensor([motif + (0,) * (longest - len(motif)) for motif in flat])

    def draw(self, generator: torch.Generator, shape: tuple[int, int], shortest: int = 1) -> torch.Tensor:
        # a uniform size, then a uniform motif of that size
        size = torch.randint(shortest - 1, len(self.counts), shape, generator=generator)
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        return self.starts[size] + (uniform * self.counts[size]).long()


class FuzzyInContextRecall(Task):
    r"""In-context recall whose keys and values are made of one to three tokens.

    The last token is padding; of the others, the first half (rounded down) makes keys and the rest values. A key or value
    of size s is s different tokens in some order, uniform among all those of its size; sizes are uniform in 1, 2, 3. In
    evaluation every key has size 3. Equal keys have equal values throughout a sequence.

    A sequence is padding, then pairs (key, value), then one more pair, the probe, whose key and value have been seen:
    pairs are added as long as fewer than `length - |probe| - 6` tokens are there, and the first of them to start at or
    after a uniformly drawn place is the probe. Padding brings it to `length + 1` tokens; as it is next-token prediction,
    the model reads all but the last: T = length. Scored positions are those whose next token belongs to the value of a
    key seen before. Training, as in MAD, is on every next token.

    Two things differ from MAD's code. It draws the probe's place from a slightly larger range: in 2.8% of its evaluation and
    1.65% of its training sequences that is beyond the last pair, and the probe asks for a key that was never shown; here it
    always was. And it puts no probe among the pairs if that key has turned up on its own; here one is always added, so that
    a probe of size 1 has been seen 2.40 times on average, there 1.93 times.

    Example:
        >>> from benchmarks.tasks import FuzzyInContextRecall, make_generator
        >>> inputs, targets = FuzzyInContextRecall().sample(make_generator("demo"), 2, 128)
        >>> assert inputs.shape == (2, 128) and (inputs[:, 0] == 15).all() and (targets[:, -1] >= 7).all()
    """

    name = "fuzzy_recall"
    title = "Recalling by keys of several tokens (fuzzy recall)"
    trains_on_answers = False

    def __init__(self, vocab_size: int = 16, motif_size: int = 3):
        if motif_size < 1 or vocab_size < 2 * motif_size + 1:
            raise ValueError(
                f"vocab_size={vocab_size} with motif_size={motif_size} is not accepted; expected motif_size of 1 or more, "
                "and at least 2 motif_size + 1 tokens."
            )
        self.vocab_size = vocab_size
        self.motif_size = motif_size
        self.min_length = 6 * motif_size  # the two copies of the probe, and a choice of places
        first_value = (vocab_size - 1) // 2
        self.keys = _Motifs(0, first_value, motif_size)
        self.values = _Motifs(first_value, vocab_size - 1, motif_size)
        self.chance = 1 / (vocab_size - 1 - first_value)

    def _draw_pairs(
        self, generator: torch.Generator, batch_size: int, length: int, shortest_key: int
    ) -> tuple[torch.Tensor, ...]:
        # keys and values of all pairs, which of them are in the sequence, and whose key was seen before: all [B, pairs]
        longest = 2 * self.motif_size
        probe = self.keys.draw(generator, (batch_size, 1), shortest_key)
        keys = self.keys.draw(generator, (batch_size, length // 2), shortest_key)
        dictionary = self.values.draw(generator, (batch_size, len(self.keys.sizes)))

        def starts() -> torch.Tensor:
            sizes = self.keys.sizes[keys] + self.values.sizes[dictionary.gather(1, keys)]
            return sizes.cumsum(1) - sizes

        probe_size = self.keys.sizes[probe] + self.values.sizes[dictionary.gather(1, probe)]
        limit = length - probe_size - longest  # pairs start before it
        uniform = torch.rand(batch_size, 1, generator=generator, dtype=torch.float64)
        place = (uniform * (limit - longest + 1)).long()
        keys.scatter_(1, (starts() < place).sum(1, keepdim=True), probe)
        shown = torch.cat([starts() < limit, torch.ones_like(probe, dtype=torch.bool)], 1)
        keys = torch.cat([keys, probe], 1)

        order = torch.arange(keys.shape[1]).expand_as(keys)
        first = torch.full_like(dictionary, keys.shape[1]).scatter_reduce(1, keys, order, "amin")
        return keys, dictionary.gather(1, keys), shown, first.gather(1, keys) < order

    def _draw(self, generator: torch.Generator, batch_size: int, length: int, shortest_key: int) -> Batch:
        # tokens and which of them are scored, [B, length + 1]
        self.check_length(length)
        keys, values, shown, repeated = self._draw_pairs(generator, batch_size, length, shortest_key)
        key_sizes, value_sizes = self.keys.sizes[keys] * shown, self.values.sizes[values] * shown
        sizes = key_sizes + value_sizes
        ends = length + 1 - sizes.sum(1, keepdim=True) + sizes.cumsum(1)
        # one column more takes what is not shown
        tokens = torch.full((batch_size, length + 2), self.vocab_size - 1)
        scored = torch.zeros(batch_size, length + 2, dtype=torch.bool)
        for i in range(self.motif_size):
            place = torch.where(i < key_sizes, ends - sizes + i, length + 1)
            tokens.scatter_(1, place, self.keys.tokens[keys, i])
            place = torch.where(i < value_sizes, ends - value_sizes + i, length + 1)
            tokens.scatter_(1, place, self.values.tokens[values, i])
            scored.scatter_(1, place, repeated)
        return tokens[:, :-1], scored[:, :-1]

    def sample(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        tokens, scored = self._draw(generator, batch_size, length, shortest_key=self.motif_size)
        return tokens[:, :-1], torch.where(scored, tokens, IGNORE)[:, 1:]

    def sample_train(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        tokens, _ = self._draw(generator, batch_size, length, shortest_key=1)
        return tokens[:, :-1], tokens[:, 1:]
