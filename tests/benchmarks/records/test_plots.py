"""The pictures of a comparison."""

import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from benchmarks.records.plots import BLANK, Panel, draw, draw_curves
from benchmarks.records.plots import Figure as Panels
from benchmarks.records.style import read_told
from benchmarks.records.summary import summarise


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_picture_is_drawn_for_any_names_and_seeds(make_row, tmp_path, seeds):
    names = ["bdlru-m4", "my_own", "attn", *(f"bdlru-m{i}" for i in range(10, 22))]
    rows = [make_row(name, 0.1 + 0.05 * i, seed) for i, name in enumerate(names) for seed in range(seeds)]
    draw(summarise(rows), "s3", "title", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_one_test_length_makes_no_lines_and_guessing_stands_clear_of_the_axis(make_row, figures, tmp_path):
    for eval_lengths, task in (("32", "s3"), ("32 64", "s5")):
        draw(summarise([make_row("lstm", 0.5, eval_lengths=eval_lengths)]), task, "title", tmp_path / "picture.png")
        lengths = [axes for axes in figures[-1].axes if axes.get_xlabel().startswith("test length")]
        assert len(lengths) == len(figures[-1].axes) - 1 == eval_lengths.count(" ")
    assert figures[0].get_figheight() + 3 < figures[1].get_figheight()
    (word,) = (text for text in lengths[0].texts if text.get_text() == "guessing 0.0083")
    box, height = Text.get_window_extent(word), lengths[0].transData.transform((0, 1 / 120))[1]
    assert lengths[0].bbox.y0 < box.y0 < box.y1 < height  # below all lines, which end at guessing, and inside the axes


@pytest.mark.parametrize("heading, name", [("lr", "lr"), ("decay", "weight_decay")])
@pytest.mark.parametrize("other, shown", [("0.003", False), ("0.01", True)])
def test_rates_stand_beside_the_seeds_where_they_differ(make_row, figures, tmp_path, other, shown, heading, name):
    of = [("lstm", 0.5, seed, {"sequence_accuracy_1x": x}) for seed, x in enumerate(("0.1", "0.7", "0.2"))]
    of.append(("gla", 0.4, 0, {name: other}))
    rows = [make_row(variant, x, seed, **{"weight_decay": "0.003", **more}) for variant, x, seed, more in of]
    draw(summarise(rows), "s3", "title", tmp_path / "picture.png")
    words = [text.get_text() for text in figures[0].axes[-1].texts]
    assert "0.20" in words
    assert (heading in words) == ("0.01" in words) == shown


def test_curves_of_several_seeds_are_drawn(tmp_path):
    curve = pd.DataFrame({"step": range(1, 101), "token_accuracy": [step / 100 for step in range(1, 101)]})
    curves = {"bdlru-m4": [curve, curve], "lstm": [curve[:50], curve[:40]]}  # two of them ended early
    draw_curves(curves, [4, 8], "title", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_curves_are_smoothed_and_the_range_of_seeds_is_shaded(figures, tmp_path):
    steps = range(1, 21)
    seeds = [pd.DataFrame({"step": steps, "token_accuracy": [(step + shift) % 2 for step in steps]}) for shift in (0, 1, 1)]
    draw_curves({"lstm": seeds}, [4, 8], "title", tmp_path / "curves.png")
    (axes,) = figures[0].axes
    line, border = axes.lines
    assert all(0.3 < y < 0.7 for y in line.get_ydata())
    assert border.get_xdata() == [10, 10]
    (shade,) = axes.collections
    assert shade.get_paths()[0].get_extents().intervaly.tolist() == [0, 1]
    assert figures[0].get_supxlabel().endswith("lengths 4, 8 in turn. Line: median of 3 seeds; shade: their range.")


@pytest.mark.parametrize("curriculum, lines", [("stages", [10]), ("adaptive", []), ("restarting", [])])
def test_lines_between_lengths_are_drawn_where_they_are_known(figures, tmp_path, curriculum, lines):
    seeds = [pd.DataFrame({"step": range(1, 21), "token_accuracy": 0.5})]
    draw_curves({"lstm": seeds}, [4, 8], "title", tmp_path / "curves.png", curriculum)
    _, *borders = figures[0].axes[0].lines
    assert [border.get_xdata()[0] for border in borders] == lines
    note = figures[0].get_supxlabel().replace("\n", " ")
    assert ("lengths 4, 8 in turn." in note) == bool(lines)
    assert (f"as each run's own accuracy moves it ({curriculum} curriculum), so no lines between them" in note) != bool(lines)


def test_a_panel_shows_shares_as_colours_with_words_that_can_be_read():
    cells = {("lstm", "parity"): (1.0, "1.00"), ("bdlru-m4", "parity"): (0.1, "0.10"), ("lstm", "s3"): (0.5, "0.50")}
    panel, axes = Panel("", ["lstm", "bdlru-m4"], ["s3", "parity"], cells, bold=[("lstm", "s3")]), Figure().subplots()
    panel.draw(axes)
    words = {text.get_text(): text for text in axes.texts if text.get_text()}
    assert {word: text.get_color() for word, text in words.items()} == {"1.00": "white", "0.50": "black", "0.10": "black"}
    assert [word for word, text in words.items() if text.get_weight() == "bold"] == ["0.50"]
    assert [label.get_weight() for label in axes.get_yticklabels()] == ["normal", "bold"]
    assert [to_hex(tile.get_facecolor()) for tile in axes.patches].count(BLANK) == 1
    assert panel.slanted
    assert axes.xaxis.get_tick_params()["labeltop"]
    assert not Panel("", ["lstm"], ["s3", "z60"], {}).slanted
    assert panel.table().splitlines()[2:] == [
        "|  | s3 | parity |",
        "| --- | :-: | :-: |",
        "| lstm | 0.50 | 1.00 |",
        "| bdlru-m4 |  | 0.10 |",
    ]


def test_panels_beside_each_other_share_their_rows_names(figures, tmp_path):
    """The file bears all that they say, for who does not see it, and to be known by."""
    panels = [Panel(title, ["lstm"], ["s3"], {("lstm", "s3"): (1.0, word)}) for title, word in (("32", "5/5"), ("256", "4/5"))]
    for beside in (True, False):
        figure = Panels("title", "note", panels, beside)
        figure.draw(tmp_path / "a.png")
        first, second = figures[-1].axes
        named = [axes.yaxis.get_tick_params()["labelleft"] for axes in (first, second)]
        assert named == [True, not beside]
        assert (first.get_position().y0 == second.get_position().y0) == beside
        assert read_told(tmp_path / "a.png") == figure.text
    assert "| lstm | 5/5 |" in figure.text
    assert "| lstm | 4/5 |" in figure.text
    assert read_told(tmp_path / "none.png") == ""
