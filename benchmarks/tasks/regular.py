"""Regular languages: even pairs, cycle navigation, and modular arithmetic without brackets.

Source: Deletang et al., "Neural Networks and the Chomsky Hierarchy", arXiv 2207.02098 (with parity, which is `Parity`).
There a network reads a string of 1 to 40 tokens, the length being drawn anew for each batch, and gives one answer at its
end; tests are on lengths up to 500.
"""

from __future__ import annotations

from abc import abstractmethod

import torch

from benchmarks.tasks.base import IGNORE, Batch, Task

PLUS, MINUS, TIMES = range(3)


class RegularLanguage(Task):
    r"""A question about a whole string: scored, as in the source, at the last position only.

    Every prefix that is a string of the language has an answer, too. Training is on all of them: one pass over a sequence
    of length L trains on strings of all lengths up to L, which is what the source's random lengths are for. Token and
    sequence accuracy are the same number here.
    """

    @abstractmethod
    def sample_train(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        """Draws sequences with the answer at the end of every prefix that has one."""

    def sample(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        inputs, targets = self.sample_train(generator, batch_size, length)
        targets[:, :-1] = IGNORE
        return inputs, targets


class EvenPairs(RegularLanguage):
    r"""Fair, independent bits; is the number of unequal neighbours (01 or 10) even (0) or odd (1)?

    Counting is not needed: it is even exactly if the first bit equals the last one.

    Example:
        >>> from benchmarks.tasks import EvenPairs, make_generator
        >>> inputs, targets = EvenPairs().sample(make_generator("demo"), 2, 5)
        >>> assert ((inputs[:, 0] == inputs[:, -1]) == (targets[:, -1] == 0)).all()
    """

    name = "even_pairs"
    title = "Is the number of unequal neighbours even? (even pairs)"
    vocab_size = 2
    chance = 0.5

    def sample_train(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        inputs = torch.randint(2, (batch_size, length), generator=generator)
        return inputs, inputs ^ inputs[:, :1]


class CycleNavigation(RegularLanguage):
    r"""A walk on a circle of five places that starts at place 0; where does it end?

    Tokens 0, 1 and 2, independent and uniform, are a step back, no step and a step forward; targets are places 0 to 4.

    Example:
        >>> from benchmarks.tasks import CycleNavigation, make_generator
        >>> inputs, targets = CycleNavigation().sample(make_generator("demo"), 2, 5)
        >>> assert (targets[:, -1] == (inputs - 1).sum(1) % 5).all()
    """

    name = "cycle_navigation"
    title = "Walking on a circle of five places (cycle navigation)"
    vocab_size = 5
    chance = 1 / 5

    def sample_train(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        inputs = torch.randint(3, (batch_size, length), generator=generator)
        return inputs, (inputs - 1).cumsum(1) % self.vocab_size


class ModularArithmetic(RegularLanguage):
    r"""The value mod 5 of digits joined by +, - and *, with the usual precedence, such as 4 - 2 * 3 + 0.

    Tokens are the digits 0 to 4, then +, -, * and =. A sequence of `length` tokens is an expression of `length - 1`
    (digits and operators in turn, independent and uniform) and an = that asks for its value. Training has the value so
    far at every digit as well.

    Example:
        >>> from benchmarks.tasks import ModularArithmetic, make_generator
        >>> inputs, targets = ModularArithmetic().sample(make_generator("demo"), 2, 8)
        >>> text = "".join("01234+-*="[token] for token in inputs[0])
        >>> assert targets[0, -1] == eval(text[:-1]) % 5
    """

    name = "modular_arithmetic"
    title = "Arithmetic modulo 5 without brackets"
    modulus = 5
    vocab_size = 9
    chance = 1 / 5
    min_length = 2
    length_step = 2

    def sample_train(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        self.check_length(length)
        digits = torch.randint(self.modulus, (batch_size, length // 2), generator=generator)
        operators = torch.randint(3, (batch_size, length // 2), generator=generator)
        inputs = torch.stack([digits, operators + self.modulus], 2).flatten(1)
        inputs[:, -1] = self.vocab_size - 1
        # the value is total + term, where term is the signed product that a * would go on with
        total, term = torch.zeros_like(digits[:, 0]), digits[:, 0]
        values = [term]
        for digit, operator in zip(digits.unbind(1)[1:], operators.unbind(1)):
            multiplies = operator == TIMES
            total = torch.where(multiplies, total, total + term) % self.modulus
            term = torch.where(multiplies, term * digit, torch.where(operator == MINUS, -digit, digit)) % self.modulus
            values.append((total + term) % self.modulus)
        targets = torch.full_like(inputs, IGNORE)
        targets[:, ::2] = torch.stack(values, 1)
        targets[:, -1] = values[-1]
        return inputs, targets
