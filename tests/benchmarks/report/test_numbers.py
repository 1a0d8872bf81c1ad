"""What analyses count and draw, on numbers made up for it: nothing is trained."""

import math
from functools import reduce

import pandas as pd
import pytest
import torch
from matplotlib.patches import Rectangle
from safetensors.torch import save_file

from benchmarks.compare.models import build_model
from benchmarks.records.summary import compare
from benchmarks.report import gates, spectra
from benchmarks.report.accuracy import draw_costs, draw_gate_norms
from benchmarks.report.overview import overview
from benchmarks.report.transitions import classify, stored_transitions, time_constants
from benchmarks.tasks import get_task

EXACT, LEAKY = torch.eye(2)[[1, 0]], torch.full((2, 2), 0.4)


def test_products_take_later_steps_after_earlier_ones():
    A = 0.2 * torch.rand(1, 6, 1, 3, 3, dtype=torch.float64)
    product = reduce(lambda earlier, later: later @ earlier, A[0, :, 0])
    assert time_constants(A).item() == pytest.approx(-6 / math.log(product.abs().sum(-1).max()))


def test_what_is_next_to_zero_has_no_sign():
    kinds = classify(torch.tensor([-1e-4, -0.5, 0.5 + 1e-4j, 0.5 + 0.1j]))
    assert {kind: mask.nonzero().flatten().tolist() for kind, mask in kinds.items()} == {
        "positive": [0, 2],
        "negative": [1],
        "complex": [3],
    }


def test_a_block_remembers_as_long_as_in_the_median_sequence(monkeypatch):
    decays = torch.tensor([0.5, 0.9, 0.6], dtype=torch.float64)
    A = decays.view(3, 1, 1, 1, 1).expand(3, 4, 1, 1, 1)
    monkeypatch.setattr(spectra, "stored_transitions", lambda folder, row: [A])
    table = spectra.memory("", [{"variant": "bdlru-m1", "seed": 0}, {"variant": "lstm", "seed": 0}])
    assert table.drop(columns="steps").values.tolist() == [["bdlru-m1", 0, 0, 0]]
    assert table["steps"].item() == pytest.approx(-1 / math.log(0.6))


def test_spectra_are_summarised_by_how_often_an_eigenvalue_occurs():
    rows = [(0, "positive", 1.0, 0.0, 1.5), (1, "complex", 0.0, -0.5, 0.25), (1, "negative", -0.5, 0.0, 0.25)]
    table = pd.DataFrame(rows, columns=["seed", "kind", "real", "imag", "share"]).assign(variant="bdlru-m4")
    (summary,) = spectra.summarise_eigenvalues(table).to_dict("records")
    assert summary == {
        "variant": "bdlru-m4",
        "runs": 2,
        "positive": 0.75,
        "negative": 0.125,
        "complex": 0.125,
        "most_negative": -0.5,
        "angle": pytest.approx(90),
        "mean_modulus": 0.875,
        "largest_modulus": 1.0,
    }


def test_gates_are_of_the_run_that_holds_longest_and_of_the_worst(make_row, monkeypatch):
    scores = {0: (1.0, 0.2), 1: (0.9, 0.8), 2: (0.1, 0.3)}
    rows = [
        make_row("bdlru-m2", short, seed, f"0.0{seed}", mixer="bdlru", token_accuracy_2x=str(long))
        for seed, (short, long) in scores.items()
    ]
    monkeypatch.setattr(gates, "letter_matrices", lambda folder, row: torch.stack([EXACT, LEAKY]))
    panels = gates.read_panels(gates.best_and_worst("", [*rows, make_row("lstm", 1.0, mixer="lstm")]))
    assert [words for words, _ in panels] == [
        "bdlru-m2, seed 1, lr 0.01: 0.90 at 32, 0.80 at 64",
        "bdlru-m2, seed 2, lr 0.02: 0.10 at 32, 0.30 at 64",
    ]
    assert panels[0][1].tolist() == torch.stack([EXACT, LEAKY]).double().mul(1000).round().div(1000).tolist()
    assert gates.best_and_worst("", rows[:1]).empty
    alike = [make_row("bdlru-m2", 1.0, seed, mixer="bdlru", token_accuracy_2x=kept) for seed, kept in enumerate("1011")]
    told = [words.partition(":")[0] for words, _ in gates.read_panels(gates.best_and_worst("", alike))]
    assert told == ["bdlru-m2, seed 0, lr 0.003", "bdlru-m2, seed 1, lr 0.003"]  # all learn it, and one loses it
    ((_, matrices),) = gates.read_panels(gates.best_and_worst("", alike[2:]))
    assert len(matrices) == 2  # no letter twice


def test_the_block_with_the_most_exact_gates_is_shown(monkeypatch):
    blocks = torch.stack([LEAKY, EXACT, 0.5 * EXACT]).expand(6, 1, 3, 2, 2)  # [letters, T, H, M, M]
    monkeypatch.setattr(gates, "load_model", lambda folder, row: None)
    monkeypatch.setattr(gates, "run_transitions", lambda model, letters: [blocks])
    row = {"mixer": "bdlru", "layers": 1, "mixer_args": {}, "task": "s3", "variant": "bdlru-m2"}
    assert torch.equal(gates.letter_matrices("", row), EXACT.expand(6, 2, 2))


def test_letters_that_forget_are_framed(figures, tmp_path):
    panel = torch.stack([EXACT, LEAKY, EXACT, LEAKY, LEAKY])
    gates.draw_gates([("a model", panel)], "title", "note", tmp_path / "gates.png")
    (axes,) = figures[0].axes
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [round((frame.get_x() + 0.9) / 3) for frame in frames] == [1, 3, 4]
    assert not any(frame.get_clip_on() for frame in frames)  # whole at the edges, too
    assert axes.get_title("left") == "a model\n2 of 5 letters are signed permutations"


def test_a_model_with_bos_is_read_and_run_with_it(tmp_path):
    args = {"block_size": 2, "num_blocks": 4}
    row = {"key": "a", "variant": "bdlru-m2", "seed": 0, "task": "s3", "bos": True, "mixer": "bdlru", "mixer_args": args}
    row |= {"width": 16, "layers": 1, "mlp_width": 32, "lengths": (2, 5)}
    model = build_model("bdlru", args, get_task("s3", bos=True).vocab_size, 16, 1, 32)
    (tmp_path / "weights").mkdir()
    save_file(model.state_dict(), tmp_path / "weights" / "a.safetensors")
    (found,) = stored_transitions(tmp_path, row, examples=3)
    assert found.shape == (3, 1 + 5, 4, 2, 2)


@pytest.mark.parametrize("dearest, scale", [(49_000, "linear"), (51_000, "log")])
def test_costs_far_apart_stand_on_a_logarithmic_scale(make_row, figures, tmp_path, dearest, scale):
    rows = [make_row(n, 0.5, mixer_flops=str(x), flops_per_token=str(x)) for n, x in (("lstm", 10_000), ("gla", dearest))]
    draw_costs(*compare(rows), tmp_path / "costs.png")
    assert figures[0].axes[0].get_xscale() == scale


def test_gate_norms_are_compared_within_a_model(make_row, figures, tmp_path):
    names = ("bdlru-m2", "bdlru-m2-tanh", "bdlru-m4", "hlru-m2-silu", "lstm")
    draw_gate_norms(*compare([make_row(name, 0.5) for name in names]), tmp_path / "norms.png")
    assert [axes.get_title("left") for axes in figures[0].axes] == ["BD-LRU, m = 2"]
    assert [label.get_text() for label in figures[0].axes[0].get_yticklabels()] == ["softmax", "tanh"]


def test_of_comparisons_with_as_many_mixers_the_last_counts(make_row):
    rows = [make_row(name, value, width=width) for width, value in (("64", 0.2), ("128", 0.7)) for name in ("lstm", "gla")]
    assert overview(compare(rows))["s3"].tolist() == [0.7, 0.7]
