"""The pictures of a comparison."""

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from benchmarks.records.plots import draw, draw_curves
from benchmarks.records.summary import summarise


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_picture_is_drawn_for_any_names_and_seeds(make_row, tmp_path, seeds):
    names = ["bdlru-m4", "my_own", "attn", *(f"bdlru-m{i}" for i in range(10, 22))]
    rows = [make_row(name, 0.1 + 0.05 * i, seed) for i, name in enumerate(names) for seed in range(seeds)]
    draw(summarise(rows), "s3", "title", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_one_test_length_makes_no_lines_and_guessing_stands_clear_of_the_axis(make_row, monkeypatch, tmp_path):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **more: (figures.append(figure), save(figure, *args, **more)))
    for eval_lengths, task in (("32", "s3"), ("32 64", "s5")):
        draw(summarise([make_row("lstm", 0.5, eval_lengths=eval_lengths)]), task, "title", tmp_path / "picture.png")
        lengths = [axes for axes in figures[-1].axes if axes.get_xlabel().startswith("test length")]
        assert len(lengths) == len(figures[-1].axes) - 1 == eval_lengths.count(" ")
    (word,) = (text for text in lengths[0].texts if text.get_text() == "guessing 0.0083")
    assert Text.get_window_extent(word).y0 > lengths[0].bbox.y0


def test_curves_of_several_seeds_are_drawn(tmp_path):
    curve = pd.DataFrame({"step": range(1, 101), "token_accuracy": [step / 100 for step in range(1, 101)]})
    curves = {"bdlru-m4": [curve, curve], "lstm": [curve[:50], curve[:40]]}  # two of them ended early
    draw_curves(curves, [4, 8], "title", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
