"""Modular arithmetic with brackets: deterministic and context-free, so no finite state is enough for all lengths.

Source: Deletang et al., "Neural Networks and the Chomsky Hierarchy", arXiv 2207.02098.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.tasks.base import IGNORE, Batch, Task

MODULUS = 5
SYMBOLS = "01234+-*()="
TOKEN = {symbol: token for token, symbol in enumerate(SYMBOLS)}


def _expression(length: int, draws: Iterator[float]) -> tuple[str, int]:
    # its text, and its value mod 5; draws are uniform in [0, 1), and no more than `length` are taken
    def below(n: int) -> int:
        return int(next(draws) * n)

    if length <= 4:
        digit, brackets, sign = below(MODULUS), length > 2, length % 2 == 0
        text = "-" * sign + str(digit)
        return f"({text})" if brackets else text, -digit % MODULUS if sign else digit
    size = 1 + below(length - 4)
    left, x = _expression(size, draws)
    operator = "+-*"[below(3)]
    right, y = _expression(length - 3 - size, draws)
    value = {"+": x + y, "-": x - y, "*": x * y}[operator]
    return f"({left}{operator}{right})", value % MODULUS


class ModularArithmeticBrackets(Task):
    r"""The value mod 5 of an expression with brackets, such as ((4-(-2))*3).

    Tokens are the digits 0 to 4, then +, -, *, (, ) and =. A sequence of `length` tokens is an expression of `length - 1`
    and an = that asks for its value; that position alone is scored and trained on (a prefix is no expression).

    Expressions of 1 to 4 tokens are d, -d, (d) and (-d) with a uniform digit d. Longer ones are (A o B) with a uniform
    operator o and A, B drawn in the same way, the length of A being uniform among all that leave one token or more for B.
    A product is 0 more often than a sum: answering 0 is right in 0.27 of them at length 16, 0.31 at 256.

    Example:
        >>> from benchmarks.tasks import ModularArithmeticBrackets, make_generator
        >>> inputs, targets = ModularArithmeticBrackets().sample(make_generator("demo"), 2, 16)
        >>> text = "".join("01234+-*()="[token] for token in inputs[0])
        >>> assert targets[0, -1] == eval(text[:-1]) % 5
    """

    name = "modular_arithmetic_brackets"
    title = "Arithmetic modulo 5 with brackets"
    vocab_size = len(SYMBOLS)
    chance = 0.29  # at length 32
    min_length = 2

    def sample(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        self.check_length(length)
        draws = torch.rand(batch_size, length, generator=generator, dtype=torch.float64).tolist()
        pairs = [_expression(length - 1, iter(row)) for row in draws]
        inputs = torch.tensor([[TOKEN[symbol] for symbol in text + "="] for text, _ in pairs])
        targets = torch.full_like(inputs, IGNORE)
        targets[:, -1] = torch.tensor([value for _, value in pairs])
        return inputs, targets
