"""Parity of a bit string, read off at every position.

Source: the state-tracking task of Grazzi et al., "Unlocking State-Tracking in Linear RNNs Through Negative
Eigenvalues", arXiv 2411.12537; every position is scored here, not only the last one.
"""

from __future__ import annotations

import torch

from benchmarks.tasks.base import Batch, Task


class Parity(Task):
    r"""Inputs are fair, independent bits; the target at position t is the number of ones among the first t, mod 2.

    Example:
        >>> from benchmarks.tasks import Parity, make_generator
        >>> inputs, targets = Parity().sample(make_generator("demo"), 2, 5)
        >>> assert (targets[:, -1] == inputs.sum(1) % 2).all()
    """

    name = "parity"
    vocab_size = 2
    chance = 0.5

    def sample(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        inputs = torch.randint(2, (batch_size, length), generator=generator)
        return inputs, inputs.cumsum(1) % 2
