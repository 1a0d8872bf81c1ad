"""In-context recall and noisy in-context recall as MAD defines them.

Source: Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv 2403.17844, and its published
settings: both multi-query, length 128, 12,800 training examples; vocabulary 16, to which the noisy task adds 16 noise
tokens in a share of 0.2 of the places.
"""

from __future__ import annotations

import torch

from benchmarks.tasks.base import IGNORE, Batch, Task


class InContextRecall(Task):
    r"""Key-value pairs, each key keeping its value for the whole sequence.

    The first half of `vocab_size` are keys, the second half values. A sequence of `length` tokens is `length / 2` pairs
    (key, value) with keys drawn uniformly; a value is drawn when its key first appears and repeated afterwards. The last
    key is always one that has been seen. As it is next-token prediction, the model reads all but the last token:
    T = length - 1. Scored positions are those that read a key seen before; their target is that key's value. Training,
    as in MAD, is on every next token.

    Example:
        >>> from benchmarks.tasks import IGNORE, InContextRecall, make_generator
        >>> inputs, targets = InContextRecall().sample(make_generator("demo"), 2, 128)
        >>> assert inputs.shape == (2, 127) and (targets[:, -1] >= 8).all() and (targets[:, 0] == IGNORE).all()
    """

    name = "recall"
    title = "Recalling the value of a key seen before (recall)"
    trains_on_answers = False
    min_length = 4
    length_step = 2

    def __init__(self, vocab_size: int = 16):
        if vocab_size < 2 or vocab_size % 2:
            raise ValueError(f"vocab_size={vocab_size} cannot be split into keys and values; expected an even number.")
        self.vocab_size = vocab_size
        self.half = vocab_size // 2
        self.chance = 1 / self.half

    def _draw_noise(self, generator: torch.Generator, batch_size: int, pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
        # which pairs are noise, [B, pairs], and their tokens, [B, pairs, 2]
        return torch.zeros(batch_size, pairs, dtype=torch.bool), torch.zeros(batch_size, pairs, 2, dtype=torch.long)

    def _draw(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        self.check_length(length)
        half, pairs = self.half, length // 2
        keys = torch.randint(half, (batch_size, pairs), generator=generator)
        values = torch.randint(half, (batch_size, half), generator=generator) + half
        seen = torch.zeros(batch_size, half, dtype=torch.bool)
        repeated = torch.zeros(batch_size, pairs, dtype=torch.bool)
        # one uniform score per (sequence, key): the last key is the best-scored one among those seen
        scores = torch.rand(batch_size, half, generator=generator)
        is_noise, noise = self._draw_noise(generator, batch_size, pairs)
        for i in range(pairs):
            if i == pairs - 1:
                keys[:, i] = scores.masked_fill(~seen, -1).argmax(1)
            k, shown = keys[:, i : i + 1], ~is_noise[:, i : i + 1]
            known = seen.gather(1, k)
            repeated[:, i : i + 1] = known & shown
            seen.scatter_(1, k, known | shown)
        tokens = torch.where(is_noise[..., None], noise, torch.stack([keys, values.gather(1, keys)], 2))
        return tokens.flatten(1), repeated

    def sample(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        tokens, repeated = self._draw(generator, batch_size, length)
        targets = torch.full_like(tokens[:, 1:], IGNORE)
        targets[:, ::2] = torch.where(repeated, tokens[:, 1::2], IGNORE)
        return tokens[:, :-1], targets

    def sample_train(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        tokens, _ = self._draw(generator, batch_size, length)
        return tokens[:, :-1], tokens[:, 1:]


class NoisyInContextRecall(InContextRecall):
    r"""In-context recall with noise between the pairs.

    Each pair but the last is replaced, with probability `frac_noise`, by two independent, uniform tokens of a vocabulary
    of `noise_vocab_size` tokens, which stands behind the keys and values; one pair, drawn uniformly among them, is never
    replaced, so that there is something to recall. A key that noise replaced has not been seen. What is scored and trained
    on is as in `InContextRecall`; training therefore includes the noise.

    Example:
        >>> from benchmarks.tasks import NoisyInContextRecall, make_generator
        >>> inputs, targets = NoisyInContextRecall().sample(make_generator("demo"), 2, 128)
        >>> assert inputs.max() >= 16 and targets.max() < 16
    """

    name = "noisy_recall"
    title = "Recalling among noise (noisy recall)"

    def __init__(self, vocab_size: int = 16, noise_vocab_size: int = 16, frac_noise: float = 0.2):
        super().__init__(vocab_size)
        if noise_vocab_size < 1:
            raise ValueError(f"noise_vocab_size={noise_vocab_size} is not accepted; expected 1 or more.")
        if not 0 <= frac_noise < 1:
            raise ValueError(f"frac_noise={frac_noise} is not accepted; expected a number in [0, 1).")
        self.vocab_size = vocab_size + noise_vocab_size
        self.frac_noise = frac_noise

    def _draw_noise(self, generator: torch.Generator, batch_size: int, pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
        is_noise = torch.rand(batch_size, pairs, generator=generator) < self.frac_noise
        kept = torch.randint(pairs - 1, (batch_size, 1), generator=generator)
        is_noise.scatter_(1, kept, False)
        is_noise[:, -1] = False
        noise = torch.randint(2 * self.half, self.vocab_size, (batch_size, pairs, 2), generator=generator)
        return is_noise, noise
