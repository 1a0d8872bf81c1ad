"""State tracking by composing permutations: the word problem of the symmetric group S_n.

Source: Barrington's word problems as used for sequence models by Merrill, Petty and Sabharwal, "The Illusion of State
in State-Space Models", arXiv 2404.08819; S2 to S5 are the groups that arXiv 2602.12021 reports.
"""

from __future__ import annotations

from itertools import permutations

import torch

from benchmarks.tasks.base import Batch, Task


class PermutationComposition(Task):
    r"""Running products in S_n.

    A token names a permutation: token k is the k-th one of `itertools.permutations(range(n))` (lexicographic order), a
    map p with p[i] the image of i. Inputs x_1, x_2, ... are independent and uniform over all n! tokens. The target at
    every position is the product of everything so far, later permutations being applied after earlier ones:

        y_1 = x_1,    y_t = x_t o y_{t-1},    that is  y_t[i] = x_t[y_{t-1}[i]]

    Args:
        n (int):
            Number of objects that are permuted, 2 to 5; the vocabulary has n! tokens.

    Raises:
        ValueError: if `n` is out of range.

    Example:
        >>> from benchmarks.tasks import PermutationComposition, make_generator
        >>> inputs, targets = PermutationComposition(3).sample(make_generator("demo"), 2, 5)
        >>> assert inputs.shape == targets.shape == (2, 5) and (inputs[:, 0] == targets[:, 0]).all()
    """

    def __init__(self, n: int):
        if n not in range(2, 6):
            raise ValueError(f"n={n} is not supported; expected 2, 3, 4 or 5.")
        self.name = f"s{n}"
        elements = list(permutations(range(n)))
        index = {p: k for k, p in enumerate(elements)}
        self.vocab_size = len(elements)
        self.chance = 1 / len(elements)
        # table[x, y] is the token of x o y
        self.table = torch.tensor([[index[tuple(x[i] for i in y)] for y in elements] for x in elements])

    def sample(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        inputs = torch.randint(self.vocab_size, (batch_size, length), generator=generator)
        products = [inputs[:, 0]]
        for x in inputs.unbind(1)[1:]:
            products.append(self.table[x, products[-1]])
        return inputs, torch.stack(products, 1)
