"""Generated tasks; `get_task` finds one by its command-line name."""

import re
from collections.abc import Callable

from benchmarks.tasks.base import IGNORE, Batch, Begun, Task, make_generator
from benchmarks.tasks.brackets import ModularArithmeticBrackets
from benchmarks.tasks.compression import Compression
from benchmarks.tasks.copying import SelectiveCopying
from benchmarks.tasks.cyclic import CyclicComposition, Parity
from benchmarks.tasks.fuzzy_recall import FuzzyInContextRecall
from benchmarks.tasks.groups import GroupComposition
from benchmarks.tasks.memorization import Memorization
from benchmarks.tasks.recall import InContextRecall, NoisyInContextRecall
from benchmarks.tasks.regular import CycleNavigation, EvenPairs, ModularArithmetic

TASKS: dict[str, Callable[[], Task]] = {
    **{name: (lambda name=name: GroupComposition(name)) for name in ("s2", "s3", "s4", "s5", "a3", "a4", "a5", "d4", "q8")},
    **{f"z{n}": (lambda n=n: CyclicComposition(n)) for n in (2, 3, 5, 60)},  # `get_task` knows any n
    "parity": Parity,
    "even_pairs": EvenPairs,
    "cycle_navigation": CycleNavigation,
    "modular_arithmetic": ModularArithmetic,
    "modular_arithmetic_brackets": ModularArithmeticBrackets,
    "recall": InContextRecall,
    "noisy_recall": NoisyInContextRecall,
    "fuzzy_recall": FuzzyInContextRecall,
    "memorization": Memorization,
    "selective_copying": SelectiveCopying,
    "compression": Compression,
}


def get_task(name: str, bos: bool = False) -> Task:
    r"""The task called `name`: one of `TASKS`, `z<n>` for the cyclic group of any n, or a product of two groups.

    With `bos` its sequences begin with a token of their own. ValueError, if there is none.

    Example:
        >>> from benchmarks.tasks import get_task
        >>> assert get_task("s3").vocab_size == 6 and get_task("z7").vocab_size == 7 and get_task("s3xz2").vocab_size == 12
    """
    if bos:
        return Begun(get_task(name))
    if name in TASKS:
        return TASKS[name]()
    if re.fullmatch("z[1-9][0-9]*", name):
        return CyclicComposition(int(name[1:]))
    if re.fullmatch("[zsadq][1-9][0-9]*x[zsadq][1-9][0-9]*", name):
        return GroupComposition(name)
    known = ", ".join(TASKS)
    raise ValueError(
        f"task={name!r} is not known; expected one of {known}, z<n> for any cyclic group (z7), or a product of two (z2xz4)."
    )


def rank_task(name: str) -> int:
    """A task's place in the order of `TASKS`; the others stand behind."""
    return [*TASKS, name].index(name)


__all__ = [
    "IGNORE",
    "TASKS",
    "Batch",
    "Compression",
    "CycleNavigation",
    "CyclicComposition",
    "EvenPairs",
    "FuzzyInContextRecall",
    "GroupComposition",
    "InContextRecall",
    "Memorization",
    "ModularArithmetic",
    "ModularArithmeticBrackets",
    "NoisyInContextRecall",
    "Parity",
    "SelectiveCopying",
    "Task",
    "get_task",
    "make_generator",
    "rank_task",
]
