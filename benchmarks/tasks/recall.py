"""In-context recall as MAD defines it.

Source: Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv 2403.17844 (vocabulary 16, length
128, multi-query).
"""

from __future__ import annotations

import torch

from benchmarks.tasks.base import IGNORE, Batch, Task


class InContextRecall(Task):
    r"""Key-value pairs, each key keeping its value for the whole sequence.

    The first half of the vocabulary are keys, the second half values. A sequence of `length` tokens is `length / 2`
    pairs (key, value) with keys drawn uniformly; a value is drawn when its key first appears and repeated afterwards.
    The last key is always one that has been seen. As it is next-token prediction, the model reads all but the last
    token: T = length - 1. Scored positions are those that read a key seen before; their target is that key's value.
    Training, as in MAD, is on every next token.

    Args:
        vocab_size (int):
            Number of tokens, even. Default: 16.

    Raises:
        ValueError: if `vocab_size` is odd or smaller than 2.

    Example:
        >>> from benchmarks.tasks import IGNORE, InContextRecall, make_generator
        >>> inputs, targets = InContextRecall().sample(make_generator("demo"), 2, 128)
        >>> assert inputs.shape == (2, 127) and (targets[:, -1] >= 8).all() and (targets[:, 0] == IGNORE).all()
    """

    name = "recall"
    length_step = 2

    def __init__(self, vocab_size: int = 16):
        if vocab_size < 2 or vocab_size % 2:
            raise ValueError(f"vocab_size={vocab_size} cannot be split into keys and values; expected an even number.")
        self.vocab_size = vocab_size
        self.chance = 2 / vocab_size

    def check_length(self, length: int) -> None:
        super().check_length(length)
        if length < 4:
            raise ValueError(f"length={length} does not fit task {self.name!r}; expected two pairs (4) or more.")

    def _draw(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        self.check_length(length)
        half, pairs = self.vocab_size // 2, length // 2
        keys = torch.randint(half, (batch_size, pairs), generator=generator)
        values = torch.randint(half, (batch_size, half), generator=generator) + half
        seen = torch.zeros(batch_size, half, dtype=torch.bool)
        repeated = torch.zeros(batch_size, pairs, dtype=torch.bool)
        # one uniform score per (sequence, key): the last key is the best-scored one among those seen
        scores = torch.rand(batch_size, half, generator=generator)
        for i in range(pairs):
            if i == pairs - 1:
                keys[:, i] = scores.masked_fill(~seen, -1).argmax(1)
            k = keys[:, i : i + 1]
            repeated[:, i] = seen.gather(1, k).squeeze(1)
            seen.scatter_(1, k, True)
        tokens = torch.stack([keys, values.gather(1, keys)], 2).flatten(1)
        return tokens, repeated

    def sample(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        tokens, repeated = self._draw(generator, batch_size, length)
        targets = torch.full_like(tokens[:, 1:], IGNORE)
        targets[:, ::2] = torch.where(repeated, tokens[:, 1::2], IGNORE)
        return tokens[:, :-1], targets

    def sample_train(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        tokens, _ = self._draw(generator, batch_size, length)
        return tokens[:, :-1], tokens[:, 1:]
