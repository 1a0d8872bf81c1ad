"""MAD's tasks: targets are recomputed from the tokens alone, with dictionaries and lists."""

import pytest
import torch

from benchmarks.tasks import (
    IGNORE,
    Compression,
    FuzzyInContextRecall,
    InContextRecall,
    Memorization,
    NoisyInContextRecall,
    SelectiveCopying,
    get_task,
    make_generator,
)


@pytest.mark.parametrize("task", [InContextRecall(), NoisyInContextRecall()], ids=lambda task: task.name)
def test_recall_scores_exactly_the_values_of_keys_seen_before(task):
    inputs, targets = task.sample(make_generator("recall"), 32, 128)
    assert inputs.shape == targets.shape == (32, 127)
    for x, y in zip(inputs.tolist(), targets.tolist()):
        known = {}
        for t, (token, target) in enumerate(zip(x, y)):
            if token >= 16:  # noise fills whole pairs
                assert target == IGNORE
                assert x[t + 1 if t % 2 == 0 else t - 1] >= 16
            elif t % 2 == 0:  # a key is read: its value is asked if it is known
                assert token < 8
                assert target == known.get(token, IGNORE)
            else:
                assert token >= 8
                assert known.setdefault(x[t - 1], token) == token
                assert target == IGNORE
        assert y[-1] != IGNORE


@pytest.mark.parametrize("task", [InContextRecall(), NoisyInContextRecall()], ids=lambda task: task.name)
def test_recall_trains_on_every_next_token_of_the_same_sequences(task):
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


def test_noise_has_its_share_and_leaves_a_pair():
    inputs, _ = NoisyInContextRecall().sample(make_generator("noise"), 1000, 128)
    noise = inputs[:, :-1:2] >= 16
    assert noise.float().mean() == pytest.approx(0.2 * 62 / 63, abs=0.01)
    assert (torch.bincount(inputs[inputs >= 16])[16:] / (inputs >= 16).sum() - 1 / 16).abs().max() < 0.005
    inputs, _ = NoisyInContextRecall(frac_noise=0.99).sample(make_generator("noise"), 500, 32)
    kept = inputs[:, :-1:2] < 16
    assert kept.any(1).all()
    assert kept.float().mean(0).min() > 0.03  # the pair that stays is anywhere
    inputs, _ = NoisyInContextRecall(frac_noise=0).sample(make_generator("noise"), 50, 32)
    assert inputs.max() < 16


def split_fuzzy(tokens):
    """Cuts a fuzzy sequence into its padding and its pairs: keys are below 7, values are 7 to 14."""
    padding = 0
    while tokens[padding] == 15:
        padding += 1
    pairs = []
    for previous, token in zip([15, *tokens[padding:]], tokens[padding:]):
        if token < 7 and (previous >= 7):
            pairs.append(([], []))
        pairs[-1][token >= 7].append(token)
    return padding, [(tuple(key), tuple(value)) for key, value in pairs]


@pytest.mark.parametrize("length", [18, 32, 128])
def test_fuzzy_recall_scores_exactly_the_values_of_keys_seen_before(length):
    inputs, targets = FuzzyInContextRecall().sample(make_generator("fuzzy"), 200, length)
    assert inputs.shape == targets.shape == (200, length)
    for x, y in zip(inputs.tolist(), targets.tolist()):
        tokens = [*x, y[-1]]
        padding, pairs = split_fuzzy(tokens)
        assert 2 <= padding <= 7 + (length == 18) * 7
        known, expected = {}, [IGNORE] * padding
        for key, value in pairs:
            assert len(key) == 3
            assert 1 <= len(value) <= 3
            assert len(set(key)) == 3
            assert len(set(value)) == len(value)
            expected += [IGNORE] * 3 + (list(value) if key in known else [IGNORE] * len(value))
            assert known.setdefault(key, value) == value
        assert y == expected[1:]
        assert pairs[-1] in pairs[:-1]


def test_fuzzy_recall_trains_on_every_next_token_with_keys_of_all_sizes():
    inputs, targets = FuzzyInContextRecall().sample_train(make_generator("fuzzy"), 2000, 128)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    sizes, places = {1: 0, 2: 0, 3: 0}, []
    for x, last in zip(inputs.tolist(), targets[:, -1].tolist()):
        _, pairs = split_fuzzy([*x, last])
        known = {}
        for key, value in pairs[:-1]:
            assert known.setdefault(key, value) == value
            sizes[len(key)] += 1
        assert known[pairs[-1][0]] == pairs[-1][1]
        places.append(pairs.index(pairs[-1]) / len(pairs))
    total = sum(sizes.values())
    assert all(abs(count / total - 1 / 3) < 0.02 for count in sizes.values()), sizes
    assert max(places) > 0.9  # the probe may be anywhere


def test_memorization_has_one_dictionary_for_all_sequences():
    task = get_task("memorization")
    known = {}
    for sample, purpose in ((task.sample_train, "train"), (get_task("memorization").sample, "test")):
        inputs, targets = sample(make_generator("memorization", purpose), 256, 32)
        for x, y in zip(inputs.tolist(), targets.tolist()):
            for key, placeholder, nothing, value in zip(x[::2], x[1::2], y[::2], y[1::2]):
                assert (placeholder, nothing) == (255, IGNORE)
                assert 0 <= key < 127 <= value < 255
                assert known.setdefault(key, value) == value
    assert len(known) == len(set(known.values())) == 127
    assert list(known.values()) != sorted(known.values())


@pytest.mark.parametrize("length", [34, 64, 256])
def test_selective_copying_asks_for_the_tokens_in_order(length):
    inputs, targets = SelectiveCopying().sample(make_generator("copying", length), 64, length)
    for x, y in zip(inputs.tolist(), targets.tolist()):
        sign = x.index(15)
        assert sign == length - 17
        assert x[sign + 1 :] == [14] * 16
        assert y[: sign + 1] == [IGNORE] * (sign + 1)
        assert y[sign + 1 :] == [token for token in x[:sign] if token != 14]
        assert x[sign - 1] != 14


def test_selective_copying_strews_blanks_evenly():
    inputs, _ = SelectiveCopying().sample(make_generator("blanks"), 2000, 256)
    place = (inputs < 14).nonzero()[:, 1].view(2000, 16)
    gaps = torch.diff(place, dim=1, prepend=torch.full((2000, 1), -1)) - 1
    assert (gaps.float().mean(0) - 223 / 16).abs().max() < 0.5
    assert gaps.float().var(0).mean() == pytest.approx(223 / 16 * 15 / 16, rel=0.05)  # multinomial


def test_compression_asks_for_its_input_at_one_length():
    task = Compression()
    inputs, targets = task.sample(make_generator("compression"), 500, 32)
    assert torch.equal(inputs, targets)
    assert (inputs[:, -1] == 15).all()
    counts = torch.bincount(inputs[:, :-1].flatten(), minlength=16) / inputs[:, :-1].numel()
    assert counts[15] == 0
    assert (counts[:15] - 1 / 15).abs().max() < 0.01
    assert (task.readout, task.extrapolates) == ("autoencoder", False)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: InContextRecall(15), "vocab_size=15"),
        (lambda: NoisyInContextRecall(noise_vocab_size=0), "noise_vocab_size=0"),
        (lambda: NoisyInContextRecall(frac_noise=1.0), r"frac_noise=1.0.*\[0, 1\)"),
        (lambda: FuzzyInContextRecall(6), "vocab_size=6 with motif_size=3"),
        (lambda: FuzzyInContextRecall(motif_size=0), "motif_size=0"),
        (lambda: Memorization(2), "vocab_size=2"),
        (lambda: SelectiveCopying(2), "vocab_size=2"),
        (lambda: SelectiveCopying(num_tokens_to_copy=0), "num_tokens_to_copy=0"),
        (lambda: Compression(1), "vocab_size=1"),
        (lambda: get_task("recall").check_length(33), "length=33.*4 or more, a multiple of 2"),
        (lambda: get_task("recall").sample(make_generator(), 1, 2), "length=2"),
        (lambda: get_task("fuzzy_recall").sample(make_generator(), 1, 17), "length=17.*18 or more"),
        (lambda: get_task("memorization").sample(make_generator(), 1, 5), "length=5.*multiple of 2"),
        (lambda: get_task("selective_copying").sample(make_generator(), 1, 33), "length=33.*34 or more"),
        (lambda: get_task("compression").sample(make_generator(), 1, 1), "length=1.*2 or more"),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
