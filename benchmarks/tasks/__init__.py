"""Generated tasks; `get_task` finds one by its command-line name."""

from collections.abc import Callable

from benchmarks.tasks.base import IGNORE, Batch, Task, make_generator
from benchmarks.tasks.parity import Parity
from benchmarks.tasks.permutations import PermutationComposition
from benchmarks.tasks.recall import InContextRecall

TASKS: dict[str, Callable[[], Task]] = {
    **{f"s{n}": (lambda n=n: PermutationComposition(n)) for n in range(2, 6)},
    "parity": Parity,
    "recall": InContextRecall,
}


def get_task(name: str) -> Task:
    r"""The task called `name`.

    Raises:
        ValueError: if there is none.

    Example:
        >>> from benchmarks.tasks import get_task
        >>> assert get_task("s3").vocab_size == 6
    """
    if name not in TASKS:
        raise ValueError(f"task={name!r} is not known; expected one of {', '.join(TASKS)}.")
    return TASKS[name]()


__all__ = [
    "IGNORE",
    "TASKS",
    "Batch",
    "InContextRecall",
    "Parity",
    "PermutationComposition",
    "Task",
    "get_task",
    "make_generator",
]
