"""The tasks against their definitions, with targets recomputed from the inputs by other means."""

from itertools import permutations

import pytest
import torch

from benchmarks.tasks import IGNORE, TASKS, InContextRecall, Parity, PermutationComposition, get_task, make_generator


@pytest.mark.parametrize("name", TASKS)
def test_same_purpose_same_data_and_streams_differ(name):
    task = get_task(name)
    draws = [
        task.sample(make_generator(*purpose), 64, 32) for purpose in (("a", 0), ("a", 0), ("a", 1), ("b", 0), ("a", "0/1"))
    ]
    for x, y in zip(draws[0], draws[1]):
        assert torch.equal(x, y)
    for other in draws[2:]:
        assert not torch.equal(draws[0][0], other[0])


def test_train_and_test_sequences_do_not_meet():
    task = get_task("s3")
    train, _ = task.sample_train(make_generator("s3", "train", 0, 32), 2000, 32)
    test, _ = task.sample(make_generator("s3", "test", 32), 2000, 32)
    assert not set(map(tuple, train.tolist())) & set(map(tuple, test.tolist()))


@pytest.mark.parametrize("name", TASKS)
def test_tokens_are_in_the_vocabulary(name):
    task = get_task(name)
    inputs, targets = task.sample(make_generator(name), 256, 16)
    trained = task.sample_train(make_generator(name), 256, 16)[1]
    assert inputs.dtype == targets.dtype == torch.int64
    assert set(inputs.unique().tolist()) == set(range(task.vocab_size))
    for y in (targets, trained):
        assert y[y != IGNORE].min() >= 0
        assert y.max() < task.vocab_size


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_permutation_targets_move_objects_one_permutation_after_the_other(n):
    elements = list(permutations(range(n)))
    task = PermutationComposition(n)
    inputs, targets = task.sample(make_generator("check", n), 8, 20)
    for x, y in zip(inputs.tolist(), targets.tolist()):
        place = list(range(n))  # place[i]: where object i is now
        for token, target in zip(x, y):
            place = [elements[token][where] for where in place]
            assert elements[target] == tuple(place)


def test_permutation_order_matters_and_is_the_documented_one():
    task = PermutationComposition(3)
    elements = list(permutations(range(3)))
    swap, cycle = elements.index((1, 0, 2)), elements.index((1, 2, 0))
    # first swap, then cycle: 0 -> 1 -> 2, 1 -> 0 -> 1, 2 -> 2 -> 0
    assert elements[task.table[cycle, swap]] == (2, 1, 0)
    assert task.table[cycle, swap] != task.table[swap, cycle]


def test_permutation_inputs_are_uniform():
    inputs, _ = PermutationComposition(3).sample(make_generator("uniform"), 1000, 60)
    counts = torch.bincount(inputs.flatten(), minlength=6) / inputs.numel()
    assert (counts - 1 / 6).abs().max() < 0.01


def test_parity_counts_ones():
    inputs, targets = Parity().sample(make_generator("parity"), 16, 33)
    for x, y in zip(inputs.tolist(), targets.tolist()):
        assert y == [sum(x[: t + 1]) % 2 for t in range(33)]


def test_recall_scores_exactly_the_values_of_keys_seen_before():
    inputs, targets = InContextRecall().sample(make_generator("recall"), 32, 128)
    assert inputs.shape == targets.shape == (32, 127)
    for x, y in zip(inputs.tolist(), targets.tolist()):
        known = {}
        for t, (token, target) in enumerate(zip(x, y)):
            if t % 2 == 0:  # a key is read: its value is asked if it is known
                assert token < 8
                assert target == known.get(token, IGNORE)
            else:
                assert token >= 8
                assert known.setdefault(x[t - 1], token) == token
                assert target == IGNORE
        assert y[-1] != IGNORE


def test_recall_trains_on_every_next_token_of_the_same_sequences():
    task = InContextRecall()
    inputs, targets = task.sample(make_generator("recall"), 4, 32)
    train_inputs, train_targets = task.sample_train(make_generator("recall"), 4, 32)
    assert torch.equal(inputs, train_inputs)
    assert torch.equal(train_targets[:, :-1], train_inputs[:, 1:])
    assert torch.equal(train_targets[targets != IGNORE], targets[targets != IGNORE])


def test_recall_last_key_is_uniform_over_the_keys_seen():
    # with two pairs, the last key is the first one; with many, all eight are equally likely
    inputs, _ = InContextRecall().sample(make_generator("short"), 64, 4)
    assert torch.equal(inputs[:, 0], inputs[:, 2])
    inputs, _ = InContextRecall().sample(make_generator("long"), 4000, 128)
    assert (torch.bincount(inputs[:, -1], minlength=8) / 4000 - 1 / 8).abs().max() < 0.03


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: get_task("s9"), "task='s9'.*s3"),
        (lambda: PermutationComposition(6), "n=6"),
        (lambda: InContextRecall(15), "vocab_size=15"),
        (lambda: get_task("recall").check_length(33), "length=33.*multiple of 2"),
        (lambda: get_task("recall").check_length(2), "length=2"),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
