"""The recipe for state tracking: a curriculum that moves when a length is learned, and noise on what mixers say.

Short sequences come first, and the next length when the present one is told without noise. Noise makes a state that shrinks
costly, so that gates become exact; it starts low, and grows once the longest length is learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

CHECK = 10  # steps between looks at the accuracy
EXAMPLES = 64  # fresh sequences a look
MEMORY = 0.7  # of the running accuracy, a look
START = 0.3  # of the noise's final level, until the longest length is learned
RISE = 0.02  # of the final level, a look at which the longest length is still told


class Curriculum:
    r"""Which length is trained, and how much noise there is.

    Args:
        lengths (tuple[int, ...]):
            Training lengths, rising.
        threshold (float):
            Running accuracy at the last position, without noise, above which a length counts as learned.
        noise (float):
            Final level of the noise, relative to the root mean square of what it is added to.

    Example:
        >>> from benchmarks.compare.recipe import Curriculum
        >>> curriculum = Curriculum((2, 4), threshold=0.9, noise=1.0)
        >>> for _ in range(8):
        ...     curriculum.look(1.0)
        >>> assert curriculum.length == 4 and curriculum.noise == 0.3
    """

    def __init__(self, lengths: tuple[int, ...], threshold: float, noise: float):
        self.lengths, self.threshold, self.level = lengths, threshold, noise
        self.stage, self.running, self.share = 0, 0.0, START

    @property
    def length(self) -> int:
        return self.lengths[self.stage]

    @property
    def noise(self) -> float:
        return self.level * self.share

    def look(self, accuracy: float) -> None:
        """Takes the accuracy of the present length without noise; moves to the next length, or raises the noise."""
        self.running = MEMORY * self.running + (1 - MEMORY) * accuracy
        if self.running <= self.threshold:
            return
        if self.stage + 1 < len(self.lengths):
            self.stage, self.running = self.stage + 1, 0.0
        else:
            self.share = min(1.0, self.share + RISE)


@contextmanager
def noisy(mixers: list[nn.Module]) -> Iterator[list[float]]:
    r"""Adds noise to what mixers return while they train: `o + level * rms(o) * eps`, rms over a token's channels.

    Args:
        mixers (list[nn.Module]):
            Layers with FLA's signature.

    Returns:
        Iterator[list[float]]:
            A list whose one element is the level; 0 at first. In eval mode, and at level 0, nothing is added.

    Example:
        >>> import torch
        >>> from benchmarks.compare.recipe import noisy
        >>> from fla_bdlru import BDLRU
        >>> layer, x = BDLRU(16), torch.randn(1, 4, 16)
        >>> with noisy([layer]) as level:
        ...     clean = layer(x)[0]
        ...     level[0] = 0.5
        ...     assert not torch.equal(layer(x)[0], clean)
        >>> assert torch.equal(layer(x)[0], clean)
    """
    level = [0.0]

    def add(module: nn.Module, args: tuple, output: tuple) -> tuple:
        if not (module.training and level[0]):
            return output
        o, *rest = output
        rms = o.detach().float().square().mean(-1, keepdim=True).sqrt().to(o.dtype)
        return o + level[0] * rms * torch.randn_like(o), *rest

    hooks = [mixer.register_forward_hook(add) for mixer in mixers]
    try:
        yield level
    finally:
        for hook in hooks:
            hook.remove()
