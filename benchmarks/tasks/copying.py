"""Selective copying as MAD defines it.

Source: Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv 2403.17844, and its published
settings: vocabulary 16, length 256, 16 tokens to copy, 12,800 training examples.
"""

from __future__ import annotations

import torch

from benchmarks.tasks.base import IGNORE, Batch, Task


class SelectiveCopying(Task):
    r"""Tokens strewn among blanks, to be written out in order afterwards.

    The last token is the sign to copy, the one before it the blank. A sequence is n = `num_tokens_to_copy` independent,
    uniform tokens to copy with `length - 2 n - 1` blanks among them, then the sign to copy, then n blanks. Each blank
    chooses, uniformly and independently, the token before which it stands, so the last token is followed by the sign.
    The targets at the n last blanks are the tokens in their order; those positions are scored and trained on.

    Example:
        >>> from benchmarks.tasks import SelectiveCopying, make_generator
        >>> inputs, targets = SelectiveCopying().sample(make_generator("demo"), 2, 256)
        >>> assert (inputs[0][inputs[0] < 14] == targets[0, -16:]).all()
    """

    name = "selective_copying"
    title = "Copying tokens strewn among blanks (selective copying)"

    def __init__(self, vocab_size: int = 16, num_tokens_to_copy: int = 16):
        if vocab_size < 3:
            raise ValueError(f"vocab_size={vocab_size} is not accepted; expected 3 or more: a token, the blank, the sign.")
        if num_tokens_to_copy < 1:
            raise ValueError(f"num_tokens_to_copy={num_tokens_to_copy} is not accepted; expected 1 or more.")
        self.vocab_size = vocab_size
        self.n = num_tokens_to_copy
        self.chance = 1 / (vocab_size - 2)
        self.min_length = 2 * self.n + 2

    def sample(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        self.check_length(length)
        sign, blank = self.vocab_size - 1, self.vocab_size - 2
        tokens = torch.randint(blank, (batch_size, self.n), generator=generator)
        gaps = torch.randint(self.n, (batch_size, length - 2 * self.n - 1), generator=generator)
        blanks = torch.zeros_like(tokens).scatter_add_(1, gaps, torch.ones_like(gaps))  # before each token
        inputs = torch.full((batch_size, length), blank)
        inputs.scatter_(1, torch.arange(self.n) + blanks.cumsum(1), tokens)
        inputs[:, -self.n - 1] = sign
        targets = torch.full_like(inputs, IGNORE)
        targets[:, -self.n :] = tokens
        return inputs, targets
