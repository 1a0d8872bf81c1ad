"""What a task is: tokens in, one target per position, at any length."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod

import torch

IGNORE = -100

Batch = tuple[torch.Tensor, torch.Tensor]


class Task(ABC):
    """A generated sequence task. The harness chooses lengths; a task only knows how to draw sequences of a given one."""

    name: str  # on the command line and in results
    title: str  # what it asks, in words for people: the title of its pictures
    vocab_size: int  # inputs and targets are in [0, vocab_size)
    chance: float  # token accuracy of the best answer that does not look at the input
    min_length: int = 1
    length_step: int = 1  # lengths must be a multiple of this
    # whether sequences longer than the training ones are a fair test; where not, the longest training length alone is scored
    extrapolates: bool = True
    # whether the answer at the last position has to be found: a curriculum goes by it
    asks_last: bool = True
    # whether each target of training is an answer that can be found; where not, a batch's accuracy does not say what is solved
    trains_on_answers: bool = True
    # what turns the last block's output into logits: `tokens`, the language-model head at every position, or `autoencoder`,
    # which decodes the whole sequence from the last position (`benchmarks.compare.readout`)
    readout: str = "tokens"

    @abstractmethod
    def sample(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        """Draws sequences for evaluation from `generator`, on the CPU, and nothing else.

        Returns:
            (torch.Tensor, torch.Tensor):
                Inputs and targets, int64 of shape `[B, T]`; positions that are not scored hold `IGNORE`.
        """

    def sample_train(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        """Draws sequences for training; the same as `sample` unless a task trains on more positions than it scores."""
        return self.sample(generator, batch_size, length)

    def check_length(self, length: int) -> None:
        """Raises `ValueError` unless sequences of `length` tokens exist."""
        if length < self.min_length or length % self.length_step:
            accepted = f"{self.min_length} or more" + f", a multiple of {self.length_step}" * (self.length_step > 1)
            raise ValueError(f"length={length} does not fit task {self.name!r}; expected {accepted}.")


class Begun(Task):
    r"""A task whose sequences begin with a token of their own, which is not scored: BOS.

    A linear recurrence that starts from zero has nothing to permute until something has been let in.

    Example:
        >>> from benchmarks.tasks import get_task, make_generator
        >>> inputs, targets = get_task("s3", bos=True).sample(make_generator("demo"), 2, 5)
        >>> assert inputs.shape == (2, 6) and (inputs[:, 0] == 6).all() and (targets[:, 0] == IGNORE).all()
    """

    def __init__(self, task: Task):
        self.task = task
        self.name, self.title, self.chance, self.readout = task.name, task.title, task.chance, task.readout
        self.min_length, self.length_step, self.extrapolates = task.min_length, task.length_step, task.extrapolates
        self.asks_last, self.trains_on_answers = task.asks_last, task.trains_on_answers
        self.vocab_size = task.vocab_size + 1

    def sample(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        return self._begin(*self.task.sample(generator, batch_size, length))

    def sample_train(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        return self._begin(*self.task.sample_train(generator, batch_size, length))

    def _begin(self, inputs: torch.Tensor, targets: torch.Tensor) -> Batch:
        first = inputs.new_full((len(inputs), 1), self.task.vocab_size)
        return torch.cat([first, inputs], 1), torch.cat([torch.full_like(first, IGNORE), targets], 1)


def make_generator(*purpose: object) -> torch.Generator:
    r"""A CPU generator whose stream depends on `purpose` alone, as `("s3", "train", seed)`: every mixer sees the same data.

    Example:
        >>> import torch
        >>> from benchmarks.tasks import make_generator
        >>> a, b = make_generator("s3", "train", 0), make_generator("s3", "test", 0)
        >>> assert a.initial_seed() != b.initial_seed()
    """
    digest = hashlib.sha256("/".join(map(str, purpose)).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
