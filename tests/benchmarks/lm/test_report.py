"""Rows of language models: the best first, how fast they trained, their curves."""

from pathlib import Path

import pytest

from benchmarks.lm.report import CURVE_COLUMNS, OCTAVES, group, rank_models, read, read_curves, speed

STORED = Path("benchmarks/results/lm-quick.csv")


def rows(**seeds):
    """A stored row with other names, bits per byte and seconds: a tuple of (bits, seconds) for each name."""
    like = read([STORED])[0]
    return [
        {**like, "key": f"{name}{seed}", "name": name, "seed": seed, "bits_per_byte": (bits, 1.0), "seconds": seconds}
        for name, runs in seeds.items()
        for seed, (bits, seconds) in enumerate(runs)
    ]


def test_models_are_ranked_by_the_median_at_the_first_length():
    ranked = rank_models(rows(lstm=((2.0, 9), (1.0, 9), (3.0, 9)), gla=((1.9, 99), (1.8, 99), (9.0, 99))))
    assert [(line.variant, line.seeds) for line in ranked] == [("gla", 3), ("lstm", 3)]


def test_speed_is_the_mean_of_the_runs():
    (line,) = rank_models(rows(lstm=((2.0, 10.0), (2.0, 40.0))))
    tokens = line["steps"] * line["batch_size"] * line["length"]
    assert speed(line) == pytest.approx(tokens * (1 / 10 + 1 / 40) / 2)


def test_runs_of_another_training_are_another_group():
    first, seed, second, third = rows(lstm=((2.0, 9), (2.0, 9)), gla=((2.0, 9),), attn=((2.0, 9),))
    assert group([first, seed, {**second, "lr": 1.0}, third]) == [[first, seed, third], [{**second, "lr": 1.0}]]


def test_losses_by_octave_are_pairs():
    pairs = ((1, 2.5), (8, 0.25))
    assert OCTAVES.write(pairs) == "1:2.500000 8:0.250000"
    assert OCTAVES.read(OCTAVES.write(pairs)) == pairs


def test_curves_are_read_by_key_where_they_are():
    stored = read([STORED])
    curves = read_curves(STORED.with_name("lm-quick-curves"), stored)
    assert set(curves["key"]) == {row["key"] for row in stored} & set(curves["key"]) != set()
    assert curves["validation_loss"].notna().any()
    nothing = read_curves(Path("nowhere"), stored)
    assert nothing.empty
    assert list(nothing) == ["key", *CURVE_COLUMNS]
