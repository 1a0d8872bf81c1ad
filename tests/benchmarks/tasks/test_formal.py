"""Formal languages: expressions go through Python's own evaluation, walks and pairs are counted."""

import re

import pytest
import torch

from benchmarks.tasks import (
    IGNORE,
    CycleNavigation,
    EvenPairs,
    ModularArithmetic,
    ModularArithmeticBrackets,
    get_task,
    make_generator,
)


@pytest.mark.parametrize("task", [EvenPairs(), CycleNavigation(), ModularArithmetic()], ids=lambda task: task.name)
def test_evaluation_asks_once_what_training_asks_at_every_prefix(task):
    inputs, targets = task.sample(make_generator("prefix"), 8, 20)
    train_inputs, train_targets = task.sample_train(make_generator("prefix"), 8, 20)
    assert torch.equal(inputs, train_inputs)
    assert torch.equal(targets[:, -1], train_targets[:, -1])
    assert (targets[:, :-1] == IGNORE).all()
    assert ((train_targets != IGNORE).sum(1) > 1).all()


def test_even_pairs_counts_unequal_neighbours():
    inputs, targets = EvenPairs().sample_train(make_generator("pairs"), 32, 21)
    for x, y in zip(inputs.tolist(), targets.tolist()):
        text = "".join(map(str, x))
        for t in range(21):
            prefix = text[: t + 1]
            assert y[t] == (len(re.findall("(?=01)", prefix)) + len(re.findall("(?=10)", prefix))) % 2


def test_cycle_navigation_walks():
    inputs, targets = CycleNavigation().sample_train(make_generator("cycle"), 32, 30)
    back, forward = [4, 0, 1, 2, 3], [1, 2, 3, 4, 0]
    for x, y in zip(inputs.tolist(), targets.tolist()):
        place = 0
        for move, target in zip(x, y):
            place = [back, range(5), forward][move][place]
            assert place == target


@pytest.mark.parametrize("length", [2, 4, 32, 100])
def test_modular_arithmetic_is_what_python_makes_of_the_text(length):
    inputs, targets = ModularArithmetic().sample_train(make_generator("arithmetic", length), 64, length)
    for x, y in zip(inputs.tolist(), targets.tolist()):
        text = "".join("01234+-*="[token] for token in x)
        assert re.fullmatch(r"[0-4]([-+*][0-4])*=", text)
        for t in range(0, length, 2):
            assert y[t] == eval(text[: t + 1]) % 5
            assert y[t + 1] == (eval(text[:-1]) % 5 if t + 1 == length - 1 else IGNORE)


@pytest.mark.parametrize("length", [2, 3, 4, 5, 6, 7, 8, 9, 33, 128, 513])
def test_bracketed_expressions_are_what_python_makes_of_the_text(length):
    task = ModularArithmeticBrackets()
    inputs, targets = task.sample(make_generator("brackets", length), 64, length)
    assert inputs.shape == targets.shape == (64, length)
    assert (targets[:, :-1] == IGNORE).all()
    for x, y in zip(inputs.tolist(), targets[:, -1].tolist()):
        text = "".join("01234+-*()="[token] for token in x)
        assert text.endswith("=")
        assert y == eval(text[:-1]) % 5
        while (shorter := re.sub(r"\((D|-D|D[-+*]-?D|-D[-+*]-?D)\)", "D", re.sub("[0-4]", "D", text))) != text:
            text = shorter
        assert text in ("D=", "-D=")


def test_brackets_split_lengths_and_draw_operators_evenly():
    task = ModularArithmeticBrackets()
    inputs, _ = task.sample(make_generator("split"), 6000, 8)  # (A o B) of 7 tokens: |A| is 1, 2 or 3
    texts = ["".join("01234+-*()="[token] for token in row) for row in inputs.tolist()]
    shapes = [re.sub("[0-4]", "d", text) for text in texts]
    for operator in "+-*":
        for shape in ("(d{}(d))=", "(-d{}-d)=", "((d){}d)="):
            assert shapes.count(shape.format(operator)) / 6000 == pytest.approx(1 / 9, abs=0.015), (shape, operator)


def zeros(length, known={1: 0.2, 2: 0.2, 3: 0.2, 4: 0.2}):  # noqa: B006
    """Probability that an expression of `length` tokens is 0; its other values are equally likely."""
    if length not in known:
        total = 0.0
        for size in range(1, length - 3):
            a, b = zeros(size), zeros(length - 3 - size)
            equal = a * b + (1 - a) * (1 - b) / 4  # a sum or difference is 0: both are 0, or the one number that fits
            total += (2 * equal + 1 - (1 - a) * (1 - b)) / 3
        known[length] = total / (length - 4)
    return known[length]


def test_guessing_brackets_right_is_as_likely_as_documented():
    task = get_task("modular_arithmetic_brackets")
    assert zeros(31) == pytest.approx(task.chance, abs=0.005)
    assert (round(zeros(15), 2), round(zeros(255), 2)) == (0.27, 0.31)
    _, targets = task.sample(make_generator("zeros"), 5000, 16)
    assert (targets[:, -1] == 0).float().mean() == pytest.approx(zeros(15), abs=0.02)


@pytest.mark.parametrize(
    "name, length, accepted",
    [("modular_arithmetic", 7, "2 or more, a multiple of 2"), ("modular_arithmetic_brackets", 1, "2 or more")],
)
def test_lengths_that_do_not_fit_are_refused(name, length, accepted):
    with pytest.raises(ValueError, match=f"length={length} does not fit task '{name}'; expected {accepted}"):
        get_task(name).sample(make_generator(), 1, length)
