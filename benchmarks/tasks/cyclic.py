"""State tracking by counting around a circle: the word problem of the cyclic group Z_n.

Source: Merrill, Petty and Sabharwal, "The Illusion of State in State-Space Models", arXiv 2404.08819, where Z_60 is the
commutative group beside A_5; parity is n = 2, as in Grazzi et al., "Unlocking State-Tracking in Linear RNNs Through
Negative Eigenvalues", arXiv 2411.12537 (which scores its last position; here every position is).
"""

from __future__ import annotations

import torch

from benchmarks.tasks.base import Batch, Task


class CyclicComposition(Task):
    r"""Running sums in Z_n.

    Inputs x_1, x_2, ... are independent and uniform in 0, ..., n-1. The target at every position t is the sum of the
    first t inputs, mod n; all positions are scored.

    Example:
        >>> from benchmarks.tasks import CyclicComposition, make_generator
        >>> inputs, targets = CyclicComposition(5).sample(make_generator("demo"), 2, 7)
        >>> assert (targets[:, -1] == inputs.sum(1) % 5).all()
    """

    def __init__(self, n: int):
        if n < 2:
            raise ValueError(f"n={n} is not supported; expected 2 or more.")
        self.name = f"z{n}"
        self.title = f"Adding numbers modulo {n} (Z{n})"
        self.vocab_size = n
        self.chance = 1 / n

    def sample(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        inputs = torch.randint(self.vocab_size, (batch_size, length), generator=generator)
        return inputs, inputs.cumsum(1) % self.vocab_size


class Parity(CyclicComposition):
    r"""Z_2 under the name it usually has: fair, independent bits, and at each position the parity of the ones so far.

    Example:
        >>> from benchmarks.tasks import Parity, make_generator
        >>> inputs, targets = Parity().sample(make_generator("demo"), 2, 5)
        >>> assert (targets[:, -1] == inputs.sum(1) % 2).all()
    """

    def __init__(self):
        super().__init__(2)
        self.name, self.title = "parity", "Is the number of ones so far odd? (parity)"
