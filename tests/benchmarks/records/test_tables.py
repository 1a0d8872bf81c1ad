"""The table in the terminal: sorted, averaged over seeds, and no choice made on test data."""

import io
import re

import pytest
from rich.console import Console

from benchmarks.records.summary import summarise
from benchmarks.records.tables import make_table, say_what_diverged, say_what_was_seen, short


def render(rows):
    console = Console(width=200, file=io.StringIO())
    console.print(make_table(summarise(rows), "title"))
    return console.file.getvalue()


def test_best_first_and_losers_stay(make_row):
    lines = summarise([make_row("bdlru-m4", 0.2), make_row("lstm", 0.9), make_row("attn", 0.5, state_size="")])
    assert [line.variant for line in lines] == ["lstm", "attn", "bdlru-m4"]
    text = render([make_row("bdlru-m4", 0.2), make_row("lstm", 0.9), make_row("attn", 0.5, state_size="")])
    assert text.index("lstm") < text.index("attn") < text.index("bdlru-m4")
    assert "grows" in text
    assert "1.2k" in text


def test_seeds_are_averaged_and_their_range_is_shown(make_row):
    rows = [make_row("lstm", 0.4, 0), make_row("lstm", 0.8, 1)]
    (line,) = summarise(rows)
    assert line.seeds == 2
    assert line.tokens == [[0.4, 0.8], [0.2, 0.4]]
    text = render(rows)
    assert "0.600" in text
    assert "0.40-0.80" in text


def test_the_learning_rate_is_chosen_on_validation_data(make_row):
    rows = [
        make_row("lstm", 0.9, lr="0.001", validation=0.5),
        make_row("lstm", 0.8, lr="0.01", validation=0.6),
        make_row("gla", 0.1),
    ]
    lines = summarise(rows)
    assert [(line.variant, line["lr"]) for line in lines] == [("lstm", 0.01), ("gla", 0.003)]
    assert "0.01" in render(rows)


def test_a_learning_rate_with_all_seeds_comes_before_a_better_one_with_fewer(make_row):
    rows = [
        make_row("lstm", 0.6, 0, lr="0.001"),
        make_row("lstm", 0.6, 1, lr="0.001"),
        make_row("lstm", 0.9, 0, lr="0.01"),
        make_row("gla", 0.5, 0),
    ]
    assert [(line.variant, line["lr"], line.seeds, line.missing) for line in summarise(rows)] == [
        ("lstm", 0.001, 2, 0),
        ("gla", 0.003, 1, 1),
    ]


@pytest.mark.parametrize("best", ["lstm", "gla"])
def test_the_seeds_of_every_line_are_shown(make_row, best):
    """Whichever of them is the first line."""
    rows = [make_row("lstm", 0.9 if best == "lstm" else 0.1), make_row("gla", 0.5, 0), make_row("gla", 0.4, 1)]
    text = render(rows)
    assert "median and range of 1 to 2 seeds" in text
    assert "0.40-0.50" in text
    assert "0 of 1" in text
    assert "0 of 2" in text


def test_another_rule_of_matching_is_named(make_row):
    assert "attn: matched by params 99" in render([make_row("attn", 0.7, matched="state 64 (by params 99)")])


@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("seeds", [1, 2])
def test_the_table_fits_80_columns(make_row, seeds, decays):
    third = {"eval_lengths": "32 64 128", "token_accuracy_4x": "0.3", "sequence_accuracy_4x": "0", "state_size": "4134"}
    third["weight_decay"] = "0.625"
    names = ("gated_deltaproduct-neg", "hlru-m4", "lstm")
    lines = summarise([make_row(name, 0.4, seed, **third) for name in names for seed in range(seeds)])
    console = Console(width=80, file=io.StringIO(), force_terminal=True)
    console.print(make_table(lines, "title", 80, 0.125, decays))
    text = re.sub("\x1b[^m]*m", "", console.file.getvalue())
    assert max(map(len, text.splitlines())) <= 80
    for part in (
        "gated_deltaproduct-neg",
        "0.400",
        "0.200",
        "0.300",
        "0.003",
        f"0 of {seeds}",
        "guessing",
        "0.125",
        "parameters",
    ):
        assert part in text
    assert "…" not in text
    assert ("decay" in text) == ("0.625" in text) == decays
    bold = [line for line in console.file.getvalue().splitlines() if "\x1b[1m" in line]
    assert any("hlru-m4" in line for line in bold)
    assert not any("lstm" in line for line in bold)


def test_what_was_seen_counts_seeds(make_row):
    rows = [make_row("lstm", accuracy, seed) for seed, accuracy in enumerate((1.0, 0.99, 0.5))]
    rows += [make_row("bdlru-m4", 1.0, seed) for seed in range(3)]
    rows += [make_row(name, 0.2, seed) for name in ("gla", "attn") for seed in range(3)]
    seen = "S3: solved by bdlru-m4 with 3 of 3 seeds, lstm with 2 of 3 seeds, by none of the other 2 mixers."
    assert say_what_was_seen(summarise(rows), "S3") == seen
    none = say_what_was_seen(summarise([make_row("gla", 0.5)]), "S3")
    assert none == "S3: solved by none; gla is first with 0.500 at length 32."


def test_who_solved_with_most_seeds_is_named_first(make_row):
    rows = [make_row("lstm", 1.0, seed) for seed in range(2)] + [
        make_row("bdlru-m4", value, i) for i, value in enumerate((1, 0.2))
    ]
    assert say_what_was_seen(summarise(rows), "S3") == "S3: solved by lstm with 2 of 2 seeds, bdlru-m4 with 1 of 2 seeds."


def test_one_other_mixer_is_the_other_mixer(make_row):
    rows = [make_row("lstm", 1.0), make_row("gla", 0.2)]
    assert say_what_was_seen(summarise(rows), "S3") == "S3: solved by lstm with 1 of 1 seed, not by the other mixer."
    assert say_what_was_seen([], "S3") == "S3: nothing ran."


def test_losses_that_were_not_finite_are_counted(make_row):
    rows = [make_row("lstm", 0.5, seed, diverged=str(seed == 1)) for seed in range(3)] + [make_row("gla", 0.4)]
    assert say_what_diverged(summarise(rows)) == ["lstm: 1 of 3 runs had a loss that was not finite."]


@pytest.mark.parametrize("number, text", [(0, "0"), (999, "999"), (28_992, "29.0k"), (4.2e6, "4.2M"), (3.1e12, "3100.0G")])
def test_large_numbers_are_short(number, text):
    assert short(number) == text
