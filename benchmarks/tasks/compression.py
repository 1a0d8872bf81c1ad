"""Compression as MAD defines it.

Source: Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures", arXiv 2403.17844, and its published
settings: vocabulary 16, length 32, 12,800 training examples.
"""

from __future__ import annotations

import torch

from benchmarks.tasks.base import Batch, Task


class Compression(Task):
    r"""A random sequence, to be decoded from the model's output at its last token alone.

    The last token of the vocabulary is the compression token. A sequence is `length - 1` independent, uniform tokens of
    the others, then the compression token. The targets are the inputs. All positions are scored and trained on, as in
    MAD, the last one included, which is always the compression token.

    The decoder adds an encoding of each position to that one output (`benchmarks.compare.readout.AutoEncoder`), and knows no
    positions but those that it was trained on: the task is scored at its training length only.

    Example:
        >>> from benchmarks.tasks import Compression, make_generator
        >>> inputs, targets = Compression().sample(make_generator("demo"), 2, 32)
        >>> assert (inputs == targets).all() and (inputs[:, -1] == 15).all() and (inputs[:, :-1] < 15).all()
    """

    name = "compression"
    title = "Compressing a sequence into one vector (compression)"
    min_length = 2
    extrapolates = False
    asks_last = False  # it is the compression token
    readout = "autoencoder"

    def __init__(self, vocab_size: int = 16):
        if vocab_size < 2:
            raise ValueError(f"vocab_size={vocab_size} is not accepted; expected 2 or more: a token, the compression token.")
        self.vocab_size = vocab_size
        self.chance = (31 / (vocab_size - 1) + 1) / 32  # at length 32: one position of 32 is certain

    def sample(self, generator: torch.Generator, batch_size: int, length: int) -> Batch:
        self.check_length(length)
        inputs = torch.randint(self.vocab_size - 1, (batch_size, length), generator=generator)
        inputs[:, -1] = self.vocab_size - 1
        return inputs, inputs.clone()
