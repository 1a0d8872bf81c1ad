"""Rows of language models: the best first, how fast they trained, their curves."""

from pathlib import Path

import pytest

from benchmarks.lm.report import CURVE_COLUMNS, OCTAVES, draw_models, group, rank_models, read, read_curves, speed, titles

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


def test_models_of_another_size_rule_or_recipe_are_other_groups():
    (like,) = rows(lstm=((2.0, 9),))
    like["backbone"] = like["model"]
    larger = {"backbone": {**like["model"], "hidden_size": 256}}
    changes = [larger, {"match": "state"}, {"budget": 99}, {"warmup_steps": 9}, {"precision": "bf16"}, {"weight_decay": 0.0}]
    changes += [{"beta1": 0.5}, {"beta2": 0.5}, {"clip": 2.0}, {"min_lr_ratio": 0.5}, {"torch_compile": True}]
    found = group([like, *({**like, **change} for change in changes)])
    assert [len(of) for of in found] == [1] * (1 + len(changes))
    assert len(set(titles(found))) == len(found)
    assert titles([found[0], found[1]])[1].endswith("learning rate 0.003, model.hidden_size 256")
    # what a mixer has of its own, and what older rows do not say
    wider = {**like, "name": "attn", "model": {**like["model"], "intermediate_size": 500}}
    older = {**like, "backbone": None, "match": "", "clip": None}
    said = {**like, "match": "params", "clip": 1.0}
    assert group([like, wider, older, said]) == [[like, wider, older, said]]
    assert titles([[like]])[0].endswith("learning rate 0.003")


@pytest.mark.parametrize(
    "change, title",
    [
        ({}, "Language models, equal parameters"),
        ({"params": 700_000}, "Language models"),  # models as they were given
        ({"match": "state"}, "Language models"),
        ({"match": "state", "state_size": 256, "params": 700_000}, "Language models, equal state"),
        ({"match": "state", "state_size": None}, "Language models, equal state"),  # it grows
    ],
)
def test_the_picture_says_what_is_equal(figures, tmp_path, change, title):
    first, second = rows(lstm=((2.0, 9),), gla=((2.0, 9),))
    second |= {"state_size": 999, "eval_lengths": (256, 512), **change}
    curves = read_curves(Path("nowhere"), [])
    first |= {"state_size": 256, "eval_lengths": (256, 512), "match": second["match"]}
    draw_models(rank_models([first, second]), curves, "", tmp_path / "lm.png")
    assert figures[0].get_suptitle() == title


def test_losses_by_position_are_told_from_the_models_median(figures, tmp_path):
    """Of one model as they are."""
    models = rows(lstm=((2.0, 9),), gla=((2.5, 9),))
    for row, losses in zip(models, ((2.0, 1.0), (3.0, 1.5))):
        row |= {"loss_by_position": tuple(zip((1, 2), losses)), "eval_lengths": (256, 512)}
    for shown in (models, models[:1]):
        draw_models(rank_models(shown), read_curves(Path("nowhere"), []), "", tmp_path / "lm.png")
    told = [[lines[0].get_ydata().tolist() for lines in figure.axes[1].containers] for figure in figures]
    assert told == [[[-0.5, -0.25], [0.5, 0.25]], [[2.0, 1.0]]]
    assert [figure.axes[1].get_ylabel() for figure in figures] == ["loss less the models' median", "loss, nats a token"]


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
