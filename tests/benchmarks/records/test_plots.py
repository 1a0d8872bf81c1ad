"""The pictures of a comparison."""

import pandas as pd
import pytest

from benchmarks.records.plots import draw, draw_curves
from benchmarks.records.summary import summarise


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_picture_is_drawn_for_any_names_and_seeds(make_row, tmp_path, seeds):
    names = ["bdlru-m4", "my_own", "attn", *(f"bdlru-m{i}" for i in range(10, 22))]
    rows = [make_row(name, 0.1 + 0.05 * i, seed) for i, name in enumerate(names) for seed in range(seeds)]
    draw(summarise(rows), "s3", "title", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_curves_of_several_seeds_are_drawn(tmp_path):
    curve = pd.DataFrame({"step": range(1, 101), "token_accuracy": [step / 100 for step in range(1, 101)]})
    curves = {"bdlru-m4": [curve, curve], "lstm": [curve[:50], curve[:40]]}  # two of them ended early
    draw_curves(curves, [4, 8], "title", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
