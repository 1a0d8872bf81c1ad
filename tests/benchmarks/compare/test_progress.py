"""The time left over a whole sweep, on a clock of the test's own."""

from dataclasses import replace

import pytest
from small_cell import CELL

from benchmarks.compare.progress import TimeLeft

CHEAP = replace(CELL, mixer="lstm", variant="lstm", steps=100)
DEAR = replace(CHEAP, variant="mamba", mixer="mamba")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_what_is_left_is_counted_by_what_each_mixer_costs():
    cells = [CHEAP, DEAR, replace(CHEAP, seed=1), replace(DEAR, seed=1)]
    clock = Clock()
    left = TimeLeft(cells, workers=1, clock=clock)
    assert left.seconds() is None
    assert str(left) == "time left not known yet"
    left.update(CHEAP.key, 0)
    clock.now = 100  # kernels are compiled
    left.update(CHEAP.key, 10)
    assert left.seconds() is None
    clock.now = 110
    left.update(CHEAP.key, 60)  # 0.2 s a step: 8 s for this one, 20 s for each of the others as far as is known
    assert left.seconds() == pytest.approx(8 + 3 * 20)
    clock.now = 118
    left.finish(CHEAP)
    assert left.seconds() == pytest.approx(3 * 20)
    left.update(DEAR.key, 0)
    clock.now = 218
    left.finish(DEAR)  # 1 s a step
    assert left.seconds() == pytest.approx(20 + 100)
    assert str(left) == "about 2 min left"


def test_a_failure_says_nothing_about_the_time_of_others():
    cells = [replace(CHEAP, seed=seed) for seed in range(3)]
    clock = Clock()
    left = TimeLeft(cells, workers=1, clock=clock)
    left.update(cells[0].key, 0)
    left.finish(cells[0], failed=True)
    assert str(left) == "time left not known yet"
    left.update(cells[1].key, 0)
    clock.now = 10
    left.finish(cells[1])
    assert left.seconds() == pytest.approx(10)


def test_workers_share_the_work():
    cells = [replace(CHEAP, seed=seed) for seed in range(5)]
    clock = Clock()
    left = TimeLeft(cells, workers=2, clock=clock)
    left.update(cells[0].key, 0)
    clock.now = 4000
    left.finish(cells[0])
    assert left.seconds() == pytest.approx(4 * 4000 / 2)
    assert str(left) == "about 2 h 13 min left"
    for cell in cells[1:4]:
        left.finish(cell)  # resumed elsewhere: cost unknown
    assert left.seconds() == pytest.approx(4000)
