"""What all pictures share: names beside lines, equal lines beside each other, ranges, titles."""

import io
import itertools
import sys

import matplotlib.image
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from benchmarks.records.style import (
    keep_picture,
    label_points,
    percent,
    picture,
    plot_ranges,
    plot_seeds,
    scale_lengths,
    spread_apart,
    variant_styles,
)


@pytest.mark.parametrize("package, name", [("matplotlib", "matplotlib"), ("PIL", "pillow")])
def test_a_picture_is_kept_or_says_what_it_wants(package, name, tmp_path, monkeypatch):
    def plain(file):
        with picture(file, 1, "a title"):
            pass

    said = []
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, package, None)
        keep_picture(tmp_path / "a.png", plain, said.append)
    assert not list(tmp_path.iterdir())
    keep_picture(tmp_path / "a.png", plain, said.append)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert said == [f"no picture, as {package} is not installed: pip install {name}", f"picture: {tmp_path / 'a.png'}"]


@pytest.mark.parametrize("values", [[0.5] * 14, [0.0, 1.0, 1.0, 0.99], [0.2, 0.9, 0.3, 0.31], [1.0]])
def test_names_are_kept_apart_in_order_and_inside(values):
    places = spread_apart(values, 0.05, 0.0, 1.0)
    ordered = [place for _, place in sorted(zip(values, places))]
    assert all(b - a >= 0.05 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert min(places) >= 0
    assert max(places) <= 1
    if values == [0.2, 0.9, 0.3, 0.31]:
        assert places[:2] == [0.2, 0.9]  # nothing near: not moved


def draw(series):
    file = io.BytesIO()
    with picture(file, 4, "a title", "a note") as figure:
        axes = figure.subplots()
        scale_lengths(axes, [32, 64])
        plot_ranges(axes, series)
    return file, figure, axes


def test_equal_lines_stand_beside_each_other_and_every_one_is_named():
    same = ([32, 64], [[1.0, 0.8], [0.9, 0.7]])
    series = {"lstm": same, "bdlru-m4": same, "my_own": same}
    file, figure, axes = draw(series)
    lines = [container.lines[0].get_xdata().tolist() for container in axes.containers]
    assert len({tuple(xs) for xs in lines}) == 3
    assert all(abs(xs[0] - 32) < 3 for xs in lines)
    assert sorted(text.get_text() for text in axes.texts) == sorted(series)
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the line that leads there
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert max(box.x1 for box in boxes) <= figure.bbox.width  # nothing is cut off
    file.seek(0)
    assert matplotlib.image.imread(file).shape[1] == 1660  # 830 pixels wide, twice as fine
    assert Image.open(file).mode == "P"  # few bytes


def test_lines_whose_x_is_read_off_stand_at_it():
    figure = Figure()
    axes = figure.subplots()
    series = {name: ([0, 1000], [[1.0], [0.9]]) for name in ("lstm", "gla")}
    plot_ranges(axes, series, apart=False)
    assert [container.lines[0].get_xdata().tolist() for container in axes.containers] == [[0, 1000]] * 2


def test_names_beside_points_stand_on_no_other_name_point_or_range():
    points = {
        "lstm": (57, [0.5, 1.0, 1.0], "k"),
        "bdlru-m4": (58, [1.0], "b"),
        "hlru-m4": (57.2, [0.97], "c"),
        "gla": (99, [0.2], "g"),
    }
    with picture(io.BytesIO(), 4, "a title") as figure:
        axes = figure.subplots()
        axes.set(xlim=(40, 100), ylim=(0, 1.04))
        label_points(axes, points)
    assert [text.get_text() for text in axes.texts] == list(points)
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    dots = axes.transData.transform([(x, y) for x, values, _ in points.values() for y in values])
    assert not any(box.contains(*dot) for box in boxes for dot in dots)
    assert boxes[-1].x1 <= axes.bbox.x1  # a point at the right edge has its name on its left


def test_lines_are_medians_and_bars_reach_from_seed_to_seed():
    _, _, axes = draw({"lstm": ([32, 64], [[0.2, 1.0, 0.9], [0.1, 0.3, 0.2]])})
    (container,) = axes.containers
    assert container.lines[0].get_ydata().tolist() == [0.9, 0.2]
    (bars,) = container.lines[2]
    assert [sorted(segment[:, 1]) for segment in bars.get_segments()] == [pytest.approx([0.2, 1.0]), pytest.approx([0.1, 0.3])]


def test_a_family_has_one_colour_and_its_largest_member_the_solid_line():
    styles = variant_styles(["bdlru-m1", "lstm", "bdlru-m4", "gated_deltanet", "delta_net", "my_own"])
    assert styles["bdlru-m4"]["color"] == styles["bdlru-m1"]["color"] != styles["lstm"]["color"]
    assert styles["gated_deltanet"]["color"] == styles["delta_net"]["color"]
    assert [styles[name]["linestyle"] for name in ("bdlru-m4", "bdlru-m1", "lstm")] == ["-", "--", "-"]
    assert styles["bdlru-m4"]["linewidth"] > styles["lstm"]["linewidth"]
    assert len({(style["color"], style["marker"]) for style in styles.values()}) == len(styles)


def test_seeds_are_dots_beside_each_other_and_the_first_name_is_on_top():
    axes, words = Figure().subplots(), ["1 of 3", "0 of 1"]
    plot_seeds(axes, [("bdlru-m4", "b", [0.2, 0.9, 0.5]), ("lstm", "k", [0.1])], {"solved": (12, words)})
    dots, bar, lone = axes.lines
    assert list(dots.get_xdata()) == [0.2, 0.9, 0.5]
    assert len(set(dots.get_ydata())) == 3
    assert list(bar.get_xdata()) == [0.5, 0.5]
    assert bar.get_ydata()[0] < min(dots.get_ydata()) < max(dots.get_ydata()) < bar.get_ydata()[1]
    assert (*lone.get_xdata(), *lone.get_ydata()) == (0.1, 1)
    assert axes.get_ylim() == (1.5, -0.5)
    assert [text.get_text() for text in axes.texts] == ["solved", *words]
    assert [label.get_weight() for label in axes.get_yticklabels()] == ["bold", "normal"]
    percent(axes.xaxis)
    assert axes.xaxis.get_major_formatter()(0.5) == "50%"
