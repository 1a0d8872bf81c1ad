"""What holds for every task, and counting: targets are recomputed from the inputs by other means."""

import hashlib

import pytest
import torch

from benchmarks.tasks import IGNORE, TASKS, CyclicComposition, Parity, get_task, make_generator

LENGTH = 64  # fits every task
# SHA-256 of four sequences for evaluation and four for training, as little-endian int64
PINNED = {
    "s2": "0c852a706deee27b",
    "s3": "7e119db90338bd60",
    "s4": "9bbac1a8d947916b",
    "s5": "c6b5e23e1bf1dd0e",
    "a5": "4a3990f1a474df10",
    "a3": "b19867f44e64e713",
    "a4": "6ff7c6329bbfc5ce",
    "d4": "4c1805e2e7c3735c",
    "q8": "58b2de4f13bb8a10",
    "z2": "f97d950a202c1371",
    "z3": "8055a6cf5eeadc83",
    "z5": "0c38fd10817bbcd9",
    "z60": "8603d2f0eb451ac2",
    "parity": "6aa7c6486869ef96",
    "even_pairs": "3e32d8579a18a3de",
    "cycle_navigation": "837e1cebc02d85cb",
    "modular_arithmetic": "2138d375cb2c5bb0",
    "modular_arithmetic_brackets": "9c80fafc0ab9ce91",
    "recall": "3415a014c34c0c34",
    "noisy_recall": "4a3a6e76fcf54770",
    "fuzzy_recall": "3b8d14062d9721dd",
    "memorization": "9e543f8eac013385",
    "selective_copying": "c240b39380e9b38f",
    "compression": "4fb8be4db1c1bdb7",
}


@pytest.mark.parametrize("name", TASKS)
def test_same_purpose_same_data_and_streams_differ(name):
    task = get_task(name)
    draws = [
        task.sample(make_generator(*purpose), 64, LENGTH) for purpose in (("a", 0), ("a", 0), ("a", 1), ("b", 0), ("a", "0/1"))
    ]
    for x, y in zip(draws[0], draws[1]):
        assert torch.equal(x, y)
    for other in draws[2:]:
        assert not torch.equal(draws[0][0], other[0])


@pytest.mark.parametrize("name", TASKS)
def test_a_curriculum_goes_by_last_answers_that_differ(name):
    _, targets = get_task(name).sample_train(make_generator("last", name), 64, LENGTH)
    differ = len(targets[:, -1].unique()) > 1
    assert get_task(name).asks_last == get_task(name, bos=True).asks_last == differ


@pytest.mark.parametrize("name", TASKS)
def test_data_are_the_same_everywhere(name):
    digest = hashlib.sha256()
    task = get_task(name)
    for sample in (task.sample, task.sample_train):
        for x in sample(make_generator("pin", name), 4, LENGTH):
            digest.update(x.contiguous().numpy().astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == PINNED[name]


@pytest.mark.parametrize("name", TASKS)
def test_train_and_test_sequences_do_not_meet(name):
    # at MAD's sizes; its own check warns if more than one test sequence in a thousand is in the training set
    task = get_task(name)
    train, _ = task.sample_train(make_generator(name, "train", 0, LENGTH), 12_800, LENGTH)
    test, _ = task.sample(make_generator(name, "test", LENGTH), 1_280, LENGTH)
    assert not set(map(tuple, train.tolist())) & set(map(tuple, test.tolist()))


@pytest.mark.parametrize("name", [*TASKS, "z7"])
def test_tokens_are_in_the_vocabulary(name):
    task = get_task(name)
    assert task.name == name
    inputs, targets = task.sample(make_generator(name), 256, LENGTH)
    train_inputs, train_targets = task.sample_train(make_generator(name), 256, LENGTH)
    used = set()
    for x, y in ((inputs, targets), (train_inputs, train_targets)):
        assert x.dtype == y.dtype == torch.int64
        assert x.shape == y.shape == (256, x.shape[1])
        assert (y != IGNORE).any(1).all()  # every sequence asks for something
        used |= set(x.unique().tolist()) | set(y[y != IGNORE].unique().tolist())
    unused = set(range(task.vocab_size)) - used
    assert used <= set(range(task.vocab_size))
    assert len(unused) == (name == "memorization"), unused  # it has one value more than keys


@pytest.mark.parametrize("name", TASKS)
def test_chance_is_what_the_best_answer_that_ignores_the_input_gets(name):
    task, length = get_task(name), 32 if name != "selective_copying" else LENGTH
    _, targets = task.sample(make_generator(name, "chance"), 20_000, length)
    asked = targets != IGNORE
    # the best answer may depend on the position where positions are asked in every sequence
    columns = [targets[:, t] for t in range(targets.shape[1])] if asked.any(0).eq(asked.all(0)).all() else [targets.flatten()]
    best = sum(torch.bincount(column[column >= 0]).max().item() for column in columns if (column >= 0).any())
    assert best / asked.sum().item() == pytest.approx(task.chance, rel=0.2, abs=0.005)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("training", [False, True])
def test_the_shortest_length_works_and_a_shorter_one_is_refused(name, training):
    task = get_task(name)
    sample = task.sample_train if training else task.sample
    task.check_length(task.min_length)
    _, targets = sample(make_generator(name), 8, task.min_length)
    assert (targets != IGNORE).any(1).all()
    with pytest.raises(ValueError, match=f"length={task.min_length - 1} does not fit task '{name}'; expected"):
        task.check_length(task.min_length - 1)


@pytest.mark.parametrize("n", [2, 3, 5, 7, 60])
def test_cyclic_targets_are_powers_of_a_rotation(n):
    inputs, targets = CyclicComposition(n).sample(make_generator("cyclic", n), 8, 50)
    for x, y in zip(inputs.tolist(), targets.tolist()):
        ring = list(range(n))
        for steps, target in zip(x, y):
            ring = ring[steps:] + ring[:steps]
            assert ring[0] == target


def test_parity_counts_ones():
    inputs, targets = Parity().sample(make_generator("parity"), 16, 33)
    for x, y in zip(inputs.tolist(), targets.tolist()):
        assert y == [sum(x[: t + 1]) % 2 for t in range(33)]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: get_task("s9"), "task='s9'.*s3.*a5.*compression.*z<n>"),
        (lambda: get_task("z1"), "n=1 .*2 or more"),
        (lambda: get_task("z07"), "task='z07'"),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_task_has_a_title_for_people():
    titles = {name: get_task(name).title for name in [*TASKS, "z7"]}
    assert titles["s3"] == "Composing permutations of three things (S3)"
    assert titles["a5"] == "Composing even permutations of five things (A5)"
    assert len(set(titles.values())) == len(titles)
