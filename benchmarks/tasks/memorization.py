"""Memorization as MAD defines it.

Source: Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv 2403.17844, and its published
settings: vocabulary 256, length 32, 256 training examples (the other MAD tasks have 12,800).
"""

from __future__ import annotations

import torch

from benchmarks.tasks.base import IGNORE, Batch, Task, make_generator


class Memorization(Task):
    r"""A fixed dictionary, learned in the weights: it is the same in every sequence, in training and in test.

    The last token is a placeholder; of the others, the first half (rounded down, 127) are keys and the rest values. The
    dictionary gives each key a value of its own. A sequence is `length / 2` times an independent, uniform key and the
    placeholder, k_1 p k_2 p ...; values are never read. The target at each placeholder is the value of the key before it;
    those positions are scored and trained on.

    Example:
        >>> from benchmarks.tasks import Memorization, make_generator
        >>> inputs, targets = Memorization().sample(make_generator("demo"), 2, 32)
        >>> assert (inputs[:, 1::2] == 255).all() and (targets[:, 1::2] >= 127).all()
    """

    name = "memorization"
    title = "Learning a dictionary by heart (memorization)"
    min_length = 2
    length_step = 2

    def __init__(self, vocab_size: int = 256):
        if vocab_size < 3:
            raise ValueError(f"vocab_size={vocab_size} is not accepted; expected 3 or more: a key, a value, the placeholder.")
        self.vocab_size = vocab_size
        self.keys = (vocab_size - 1) // 2
        self.chance = 1 / self.keys
        values = torch.randperm(vocab_size - 1 - self.keys, generator=make_generator(self.name, "dictionary", vocab_size))
        self.dictionary = values[: self.keys] + self.keys

    def sample(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        self.check_length(length)
        keys = torch.randint(self.keys, (batch_size, length // 2), generator=generator)
        inputs = torch.stack([keys, torch.full_like(keys, self.vocab_size - 1)], 2)
        targets = torch.stack([torch.full_like(keys, IGNORE), self.dictionary[keys]], 2)
        return inputs.flatten(1), targets.flatten(1)
