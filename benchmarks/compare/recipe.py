"""The recipe for state tracking: a curriculum that moves when a length is learned, and noise on what mixers say.

Short sequences come first, and the next length when the present one is told without noise. Noise makes a state that shrinks
costly, so that gates become exact; it starts low, and grows once the longest length is learned.

A model can also tell products of a length by a representation of the group that shrinks at each letter, and no noise frees it
from that (docs: state tracking, why runs stick). It shows early: noise as loud as a part of what was said first drowns what is
said last. A restarting curriculum draws such a model's weights anew, while enough of the steps are left. A model that is told
in full noise and not drowned is done: its learning rate falls.

How loud noise has to be hangs on the group: the fewer the answers, the more of it leaves them told. So the `louder` curriculum
has no final level: noise grows as long as the model tells the longest length in it. And it is as loud for every token as for
the loudest once that length is told, so that what shrinks is worth less and less, even where it shrinks slowly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

CHECK = 10  # steps between looks at the accuracy
EXAMPLES = 64  # fresh sequences a look
MEMORY = {False: 0.7, True: 0.5}  # of the running accuracy, a look; by whether it restarts
START = 0.3  # of the noise's final level, until the longest length is learned
RISE = 0.02  # of the final level, a look at which the longest length is still told
LOUD = 0.3  # level of the noise that shows a state that fades, relative to the loudest token
FADED, PATIENCE = 0.15, 12  # share of the way from guessing to 1 under that noise, and looks in a row below it
LEFT = 0.4  # of the steps, for another start
HELD = 0.95  # share under that noise above which a state does not fade
# of `louder`: the share of the way from guessing to 1, told in the present noise, above which that grows, and below which it
# falls; by what factors, a look; and where it ends
BORNE, DROWNED, GROWTH, FALL, LOUDEST = 0.95, 0.8, 1.08, 0.97, 8.0
TINY = 1e-30  # mean square of the loudest token, at the least: the root has no slope at zero


class Curriculum:
    r"""Which of rising `lengths` is trained, and how much noise there is.

    A length is learned when the running accuracy at the last position, without noise, is above `threshold`; `noise` is the
    final level. With `restarts` it moves faster, as a run that goes astray starts anew. With `louder` the noise is what
    `bear` makes of it, in units of `noise`.

    Example:
        >>> from benchmarks.compare.recipe import Curriculum
        >>> curriculum = Curriculum((2, 4), threshold=0.9, noise=1.0)
        >>> for _ in range(8):
        ...     curriculum.look(1.0)
        >>> assert curriculum.length == 4 and curriculum.noise == 0.3
    """

    def __init__(self, lengths: tuple[int, ...], threshold: float, noise: float, restarts: bool = False, louder: bool = False):
        self.lengths, self.threshold, self.level, self.memory = lengths, threshold, noise, MEMORY[restarts]
        self.louder = louder
        self.start()

    def start(self) -> None:
        """Goes back to the first length."""
        self.stage, self.running, self.share = 0, 0.0, START
        self.faded = self.held = 0
        self.learned = False

    @property
    def length(self) -> int:
        return self.lengths[self.stage]

    @property
    def noise(self) -> float:
        return self.level * self.share

    def look(self, accuracy: float) -> None:
        """Takes the accuracy of the present length without noise; moves to the next length, or raises the noise."""
        self.running = self.memory * self.running + (1 - self.memory) * accuracy
        if self.running <= self.threshold:
            return
        if self.stage + 1 < len(self.lengths):
            self.stage, self.running = self.stage + 1, 0.0
        else:
            self.learned = True
            if not self.louder:
                self.share = min(1.0, self.share + RISE)

    @property
    def is_loud(self) -> bool:
        """Whether noise is as loud for every token as for the loudest: of `louder`, once the longest length is learned."""
        return self.louder and self.learned

    def bear(self, in_noise: float, in_loud_noise: float) -> None:
        """Takes the accuracy, from 0 (guessing) to 1, in the present noise and in loud noise, at the longest length.

        Noise that is borne grows; where it no longer does and nothing fades, a look counts for `holds`.
        """
        if in_noise > BORNE:
            most = LOUDEST / self.level
            self.share = min(most, GROWTH * self.share)
            self.held = self.held + 1 if self.share == most else max(0, self.held - 1)
        elif in_loud_noise > HELD:
            self.held += 1
            self.share *= FALL if in_noise < DROWNED else 1.0

    def holds(self, accuracy: float) -> bool:
        """Takes that in loud noise; whether it was high `PATIENCE` looks in a row, in full noise at the longest length.

        Of `louder`: whether noise has not grown at so many looks, on balance.
        """
        if not self.louder:
            self.held = self.held + 1 if accuracy > HELD and self.share == 1.0 else 0
        return self.held >= PATIENCE

    def fades(self, accuracy: float) -> bool:
        """Takes the accuracy under loud noise, from 0 (guessing) to 1; whether it was too low `PATIENCE` looks in a row.

        Lengths below a sixth of the longest do not count: there, gates of good runs are not exact yet.
        """
        self.faded = self.faded + 1 if accuracy < FADED and 6 * self.length > self.lengths[-1] else 0
        return self.faded >= PATIENCE


@dataclass
class Noise:
    """How loud noise is."""

    level: float = 0.0  # relative to the root mean square of a token's channels, while the mixer trains
    is_loud: bool = False  # whether `level` is relative to that of the sequence's loudest token
    loud: float = 0.0  # relative to that of the loudest token, in eval mode too


@contextmanager
def noisy(mixers: list[nn.Module]) -> Iterator[Noise]:
    r"""Adds noise to what mixers return, `o + level * rms(o) * eps`, as loud as the yielded `Noise` says; silent at first.

    Relative to each token's own channels, the level is taken as given. Relative to the loudest token's, gradients know that it
    comes from there: what is said early only, as by a second copy of the state that leaks, makes noise for all that follows.

    Example:
        >>> import torch
        >>> from benchmarks.compare.recipe import noisy
        >>> from fla_bdlru import BDLRU
        >>> layer, x = BDLRU(16), torch.randn(1, 4, 16)
        >>> with noisy([layer]) as noise:
        ...     clean = layer(x)[0]
        ...     noise.level = 0.5
        ...     assert not torch.equal(layer(x)[0], clean)
        >>> assert torch.equal(layer(x)[0], clean)
    """
    noise = Noise()

    def add(module: nn.Module, args: tuple, output: tuple) -> tuple:
        level = noise.loud or noise.level * module.training
        if not level:
            return output
        o, *rest = output
        loud = noise.loud or noise.is_loud
        square = (o if loud else o.detach()).float().square().mean(-1, keepdim=True)  # [B, T, 1]
        rms = (square.amax(1, keepdim=True).clamp_min(TINY) if loud else square).sqrt().to(o.dtype)
        return o + level * rms * torch.randn_like(o), *rest

    with ExitStack() as hooks:
        for mixer in mixers:
            hooks.enter_context(mixer.register_forward_hook(add))
        yield noise
