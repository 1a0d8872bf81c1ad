"""The table: sorted, averaged over seeds, and no choice made on test data."""

import io

import pytest
from rich.console import Console

from benchmarks.report import draw, make_table, summarise


def row(variant, accuracy, seed=0, lr="0.003", validation=None, **more):
    return {
        "variant": variant,
        "seed": str(seed),
        "lr": lr,
        "params": "5000",
        "mixer_params": "1234",
        "state_size": "64",
        "eval_lengths": "32 64",
        "token_accuracy_1x": str(accuracy),
        "token_accuracy_2x": str(accuracy / 2),
        "token_accuracy_4x": "",
        "token_accuracy_8x": "",
        "sequence_accuracy_1x": str(accuracy / 4),
        "sequence_accuracy_2x": "0.0",
        "validation_token_accuracy": str(accuracy if validation is None else validation),
        "seconds": "10",
        "diverged": "False",
        **more,
    }


def render(rows):
    console = Console(width=200, file=io.StringIO())
    console.print(make_table(summarise(rows), "title"))
    return console.file.getvalue()


def test_best_first_and_losers_stay():
    lines = summarise([row("bdlru-m4", 0.2), row("lstm", 0.9), row("attn", 0.5, state_size="")])
    assert [line.variant for line in lines] == ["lstm", "attn", "bdlru-m4"]
    text = render([row("bdlru-m4", 0.2), row("lstm", 0.9), row("attn", 0.5, state_size="")])
    assert text.index("lstm") < text.index("attn") < text.index("bdlru-m4")
    assert "grows" in text
    assert "1.2k" in text


def test_seeds_are_averaged_and_their_range_is_shown():
    rows = [row("lstm", 0.4, 0), row("lstm", 0.8, 1)]
    (line,) = summarise(rows)
    assert line.seeds == 2
    assert line.tokens == [[0.4, 0.8], [0.2, 0.4]]
    text = render(rows)
    assert "0.600" in text
    assert "0.40-0.80" in text


def test_the_learning_rate_is_chosen_on_validation_data():
    rows = [row("lstm", 0.9, lr="0.001", validation=0.5), row("lstm", 0.8, lr="0.01", validation=0.6), row("gla", 0.1)]
    lines = summarise(rows)
    assert [(line.variant, line.lr) for line in lines] == [("lstm", 0.01), ("gla", 0.003)]
    assert "0.01" in render(rows)


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_table_fits_a_narrow_terminal(seeds):
    lines = summarise([row("gated_deltaproduct-neg", 0.4, seed) for seed in range(seeds)])
    console = Console(width=80, file=io.StringIO())
    console.print(make_table(lines, "title", 80))
    text = console.file.getvalue()
    assert "gated_deltaproduct-neg" in text
    assert "0.400" in text
    assert "…" not in text


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_picture_is_drawn_for_any_names_and_seeds(tmp_path, seeds):
    names = ["bdlru-m4", "my_own", "attn", *(f"bdlru-m{i}" for i in range(10, 22))]
    rows = [row(name, 0.1 + 0.05 * i, seed) for i, name in enumerate(names) for seed in range(seeds)]
    draw(summarise(rows), "s3", "title", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
