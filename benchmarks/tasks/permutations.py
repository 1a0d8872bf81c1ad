"""State tracking by composing permutations: the word problem of the symmetric group S_n and the alternating group A_n.

Source: Barrington's word problems as used for sequence models by Merrill, Petty and Sabharwal, "The Illusion of State
in State-Space Models", arXiv 2404.08819; S2 to S5 are the groups that arXiv 2602.12021 reports. A5 is the smallest group
that is not solvable.
"""

from __future__ import annotations

from itertools import combinations, permutations

import torch

from benchmarks.tasks.base import Batch, Task


def _is_even(p: tuple[int, ...]) -> bool:
    return sum(a > b for a, b in combinations(p, 2)) % 2 == 0


class PermutationComposition(Task):
    r"""Running products in S_n, or in its subgroup A_n of even permutations.

    A token names a permutation: token k is the k-th one of `itertools.permutations(range(n))` (lexicographic order; for
    A_n, the k-th even one), a map p with p[i] the image of i. Inputs x_1, x_2, ... are independent and uniform over all
    tokens. The target at every position is the product of everything so far, later permutations being applied after
    earlier ones; all positions are scored:

        y_1 = x_1,    y_t = x_t o y_{t-1},    that is  y_t[i] = x_t[y_{t-1}[i]]

    Args:
        n (int):
            Number of objects that are permuted, 2 to 5 (A_n: 3 to 5); the vocabulary has n! tokens (A_n: n!/2).
        even (bool):
            Whether to keep to A_n. Default: False.

    Raises:
        ValueError: if `n` is out of range.

    Example:
        >>> from benchmarks.tasks import PermutationComposition, make_generator
        >>> inputs, targets = PermutationComposition(3).sample(make_generator("demo"), 2, 5)
        >>> assert inputs.shape == targets.shape == (2, 5) and (inputs[:, 0] == targets[:, 0]).all()
        >>> assert PermutationComposition(5, even=True).vocab_size == 60
    """

    def __init__(self, n: int, even: bool = False):
        accepted = range(3 if even else 2, 6)
        if n not in accepted:
            raise ValueError(f"n={n} is not supported with even={even}; expected one of {', '.join(map(str, accepted))}.")
        self.name = f"{'a' if even else 's'}{n}"
        elements = [p for p in permutations(range(n)) if _is_even(p) or not even]
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
