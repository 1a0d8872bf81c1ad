"""Transitions of trained models against the layers' own outputs; spectra, memory and pictures of stored runs."""

import errno
import math
import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import benchmarks.analysis.__main__ as command
from benchmarks.compare.plan import make_row, merge, plan
from benchmarks.compare.presets import Preset
from benchmarks.compare.run import run_cell
from benchmarks.compare.train import evaluate
from benchmarks.lm.report import COLUMNS, read
from benchmarks.records.naming import parse_name
from benchmarks.records.store import ResultStore
from benchmarks.records.summary import compare
from benchmarks.report import blocks
from benchmarks.report.accuracy import block_size_lines, draw_block_sizes, draw_costs, draw_gate_norms
from benchmarks.report.gates import are_permutations, letter_matrices, read_panels
from benchmarks.report.lengths import app as lengths_app
from benchmarks.report.overview import above_chance, draw_overview, overview
from benchmarks.report.spectra import eigenvalues, memory, summarise_eigenvalues
from benchmarks.report.transitions import (
    classify,
    load_model,
    run_transitions,
    stored_transitions,
    time_constants,
    transitions,
)
from benchmarks.tasks import get_task
from fla_bdlru.layers import BDLRU, HLRU
from fla_bdlru.ops import GATE_NORMS

SMALL = Preset(width=64, mlp_width=32, lengths=(4, 8), multiples=(1, 2), batch_size=16, steps=30, eval_examples=32, seeds=(0,))
NAMES = ("bdlru-m1", "bdlru-m2", "bdlru-m3", "bdlru-m2-tanh", "hlru-m2", "lstm")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of really trained, small runs."""
    folder = tmp_path_factory.mktemp("trained")
    grids = [plan("s3", NAMES, match, budget, SMALL, "cpu")[0] for match, budget in (("params", None), ("state", 24))]
    with ResultStore(folder) as store:
        for planned in merge(grids).values():
            result = run_cell(planned.cell, "cpu", lambda *message: None)
            assert "error" not in result, result
            store.add(make_row(planned, result), result["curve"], result["weights"])
    return folder, store.rows


def rows_of(trained, variant):
    return [row for row in trained[1].values() if row["variant"] == variant]


@pytest.mark.parametrize("gate_norm", GATE_NORMS)
@pytest.mark.parametrize("build", [lambda n: BDLRU(12, block_size=3, gate_norm=n), lambda n: HLRU(12, order=3, gate_norm=n)])
def test_transitions_are_what_the_layer_applies(build, gate_norm):
    """Without input h_t = A_t h_{t-1}: the layer's op from a random state, against the matrices."""
    layer = build(gate_norm).double()
    torch.nn.init.normal_(layer.a_proj.bias)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    logits = layer.a_proj(x)
    A = transitions(layer, logits)
    blocks = A.shape[2]
    state = torch.randn(2, blocks, 3)
    v = torch.zeros(2, 5, layer.width, dtype=torch.float64)
    options = {"output_final_state": True, "gate_norm": gate_norm, "cu_seqlens": None, "cp_context": None}
    _, final = layer.recur(v, logits.unflatten(-1, layer.gate_shape), initial_state=state, **options)
    h = state.double()
    for t in range(5):
        h = (A[:, t] @ h[..., None]).squeeze(-1)
    torch.testing.assert_close(final.double(), h, rtol=1e-5, atol=1e-5)


def test_stored_weights_are_those_that_were_scored(trained):
    folder, stored = trained
    for row in stored.values():
        scores = evaluate(load_model(folder, row), get_task("s3"), 8, 32, "cpu")
        assert scores["token_accuracy"] == pytest.approx(float(row["token_accuracy_1x"]), abs=1e-6)
        assert scores["loss"] == pytest.approx(float(row["loss_1x"]), rel=1e-4)


def test_transitions_are_collected_from_every_layer_of_ours(trained):
    folder, _ = trained
    row = rows_of(trained, "bdlru-m3")[0]
    (found,) = stored_transitions(folder, row, examples=4)
    assert found.shape[:2] == (4, 8)
    assert found.shape[3:] == (3, 3)
    assert (found.sum(-1) < 1).all()  # softmax rows, less the input's share
    assert run_transitions(load_model(folder, rows_of(trained, "lstm")[0]), torch.zeros(1, 4, dtype=torch.long)) == []


def test_eigenvalues_are_told_apart():
    turn = torch.tensor([[0.0, -0.9], [0.9, 0.0]])
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    values = torch.linalg.eigvals(torch.stack([turn, swap, torch.zeros(2, 2)]).double())
    kinds = classify(values)
    assert kinds["complex"].sum(-1).tolist() == [2, 0, 0]
    assert kinds["negative"].sum(-1).tolist() == [0, 1, 0]
    assert kinds["positive"].sum(-1).tolist() == [0, 1, 2]


def test_what_block_sizes_can_have_is_what_is_found(trained):
    """m = 1 with softmax gates: positive only; m = 2: real; tanh gates may turn."""
    folder, stored = trained
    table = eigenvalues(folder, list(stored.values()))
    assert set(table["variant"]) == set(NAMES) - {"lstm"}
    shares = table.groupby(["variant", "seed", "layer"])["share"].sum()
    runs = {name: len(rows_of(trained, name)) for name in NAMES}
    for (variant, _, _), share in shares.items():
        assert share == pytest.approx(runs[variant])  # each run's eigenvalues are all of them
    summary = summarise_eigenvalues(table).set_index("variant")
    assert summary.loc["bdlru-m1", "positive"] == 1
    assert summary.loc["bdlru-m2", "complex"] == 0
    assert summary.loc["hlru-m2", "negative"] == pytest.approx(0.5)  # a companion matrix of two positive gates: one of each
    assert (summary[["positive", "negative", "complex"]].sum(axis=1) - 1).abs().max() < 1e-9
    assert summary["largest_modulus"].max() < 1


def test_time_constants_of_constant_transitions_are_those_of_their_eigenvalues():
    A = torch.tensor([[0.6, 0.3], [0.2, 0.7]], dtype=torch.float64)
    radius = torch.linalg.eigvals(A).abs().max().item()
    found = time_constants(A.expand(1, 400, 1, 2, 2))
    assert found.item() == pytest.approx(-1 / math.log(radius), rel=0.01)


def test_time_constants_see_what_eigenvalues_of_single_steps_do_not():
    permutations = torch.stack([torch.eye(3)[[1, 0, 2]], torch.eye(3)[[1, 2, 0]]]).double()
    assert time_constants(permutations.repeat(5, 1, 1)[None, :, None]).item() == math.inf
    # each has radius 0.9, but their product forgets at once
    first, second = torch.diag(torch.tensor([0.9, 0.01])), torch.diag(torch.tensor([0.01, 0.9]))
    alternating = torch.stack([first, second]).double().repeat(50, 1, 1)[None, :, None]
    assert time_constants(alternating).item() == pytest.approx(-2 / math.log(0.009), rel=0.02)


def test_memory_has_a_line_per_block(trained):
    folder, stored = trained
    table = memory(folder, list(stored.values()))
    ours = [(parse_name(row["variant"]), int(row["state_size"])) for row in stored.values()]
    count = sum(state // variant.size for variant, state in ours if variant)
    assert len(table) == count
    assert (table["steps"] > 0).all()


def test_block_sizes_are_compared_among_plain_variants(make_row, tmp_path):
    names = {"bdlru-m4": 0.9, "bdlru-m1": 0.2, "bdlru-m2": 0.5, "hlru-m2": 0.4, "lstm": 1.0}
    names |= {"bdlru-m2-tanh": 0.8, "bdlru-m2-conv": 0.7, "bdlru-m3-memory": 0.6}
    rows = [make_row(name, value, seed) for name, value in names.items() for seed in range(2)]
    (comparison,) = compare(rows)
    found = {family: [line.variant for line in lines] for family, lines in block_size_lines(comparison).items()}
    assert found == {"bdlru": ["bdlru-m1", "bdlru-m2", "bdlru-m4"], "hlru": ["hlru-m2"]}
    draw_block_sizes([comparison], tmp_path / "sizes.png")
    draw_gate_norms(comparison, tmp_path / "norms.png")
    for name in ("sizes.png", "norms.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no row records mixer_flops"):
        draw_costs(comparison, tmp_path / "costs.png")
    (lone,) = compare([make_row("lstm", 1.0)])
    with pytest.raises(ValueError, match="several block sizes"):
        draw_block_sizes([lone], tmp_path / "none.png")
    with pytest.raises(ValueError, match="two gate norms"):
        draw_gate_norms(lone, tmp_path / "none.png")


def run(*arguments):
    return CliRunner().invoke(command.app, [str(a) for a in arguments], env={"COLUMNS": "300"})


def test_the_command_writes_pictures_and_numbers(trained, tmp_path):
    result = run(trained[0], "--out", tmp_path)
    assert result.exit_code == 0, result.output
    expected = {"block-size-s3.png"}
    for match in ("params", "state"):
        expected |= {f"spectra-s3-{match}{end}" for end in (".png", ".csv", "-values.csv")}
        expected |= {f"memory-s3-{match}{end}" for end in (".png", ".csv")}
        expected |= {f"{kind}-s3-{match}{end}" for kind in ("gates", "blocks") for end in (".png", ".csv")}
        expected |= {f"flops-s3-{match}.png", f"gate-norms-s3-{match}.png", f"compare-s3-{match}.png"}
    assert {path.name for path in tmp_path.iterdir()} == expected
    for path in tmp_path.glob("*.png"):
        assert path.stat().st_size > 10_000
    header, *lines = (tmp_path / "spectra-s3-params.csv").read_text().splitlines()
    assert header.startswith("variant,runs,positive,negative,complex")
    assert len(lines) == 5


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--what", "spectrum"], "'spectrum' is not accepted; expected some of overview, accuracy, spectra"),
        (["--task", "s4"], "'s4' is not accepted; the folder has runs of s3"),
    ],
)
def test_wrong_input_is_named(trained, arguments, words):
    result = run(trained[0], *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.replace("│", " ").split())


def test_what_cannot_be_drawn_is_said(make_row, tmp_path):
    with ResultStore(tmp_path) as store:
        store.add(make_row("bdlru-m2", 0.5, width="16", mlp_width="32", mixer="bdlru", mixer_args="{}"))
    result = run(tmp_path, "--what", "spectra,block-size,gates")
    assert result.exit_code == 1
    assert "gates, s3: left out: too few runs" in result.output
    assert "kept no weights" in result.output
    assert "several block sizes" in result.output


def test_comparisons_of_one_task_do_not_write_over_each_other(make_row, tmp_path):
    with ResultStore(tmp_path) as store:
        for width in ("64", "128"):
            for variant in ("bdlru-m1", "bdlru-m2", "bdlru-m2-tanh"):
                more = {"width": width, "matched": f"params {width}00", "key": f"{variant}{width}", "mixer_flops": "99"}
                store.add(make_row(variant, 0.5, **more))
    result = run(tmp_path, "--what", "flops,block-size,gate-norms", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    expected = {
        f"{kind}-w{width}.png" for kind in ("flops-s3-params", "block-size-s3", "gate-norms-s3-params") for width in (64, 128)
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected


def test_a_file_is_no_folder(make_row, tmp_path):
    with ResultStore(tmp_path) as store:
        store.add(make_row("lstm", 0.5))
    result = run(tmp_path, "--out", tmp_path / "compare.csv")
    assert result.exit_code == 2
    assert "compare.csv' cannot be a folder: File exists" in " ".join(result.output.replace("│", " ").split())


def test_overview_is_every_mixer_on_every_task(make_row, tmp_path):
    rows = [
        make_row("lstm", 1.0, task="s3"),
        make_row("bdlru-m1", 0.25, task="s3"),
        make_row("bdlru-m1", 0.75, seed=1, task="s3"),
        make_row("lstm", 0.5, task="parity"),
        make_row("bdlru-m1", 1.0, task="parity"),
        make_row("mamba", 0.1, task="parity"),
        make_row("mamba", 0.9, task="parity", steps="9"),  # another setting with fewer mixers
    ]
    table = overview(compare(rows))
    assert table.to_dict("index") == {
        "bdlru-m1": {"s3": 0.5, "parity": 1.0},  # 0.4 and 1 of the way from guessing, before 1 and 0
        "lstm": {"s3": 1.0, "parity": 0.5},
        "mamba": {"s3": pytest.approx(math.nan, nan_ok=True), "parity": 0.1},
    }
    assert list(table.index) == ["bdlru-m1", "lstm", "mamba"]
    assert above_chance(table).loc["bdlru-m1"].tolist() == pytest.approx([0.4, 1.0])
    assert above_chance(table).loc["mamba", "parity"] == 0  # below guessing
    draw_overview(table, "all", tmp_path / "overview.png")
    assert (tmp_path / "overview.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="there are not two tasks and two mixers"):
        draw_overview(table[["s3"]], "all", tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_what_ran_on_few_tasks_stands_last_in_the_overview(make_row):
    rows = [make_row("lstm", 0.5, task=task) for task in ("s3", "parity", "z5")] + [make_row("bdlru-m4-conv", 1.0, task="s3")]
    assert list(overview(compare(rows)).index) == ["lstm", "bdlru-m4-conv"]


def test_overview_command_keeps_rules_of_matching_apart(make_row, tmp_path):
    with ResultStore(tmp_path) as store:
        for kind in ("params 29", "state 64"):
            for task in ("s3", "parity"):
                for variant in ("lstm", "bdlru-m4"):
                    store.add(make_row(variant, 0.5, task=task, matched=kind, key=f"{kind}{task}{variant}"))
    result = CliRunner().invoke(command.app, [str(tmp_path), "--what", "overview"])
    assert result.exit_code == 0, result.output
    written = sorted(path.name for path in tmp_path.glob("overview*"))
    assert written == ["overview-params.csv", "overview-params.png", "overview-state.csv", "overview-state.png"]
    assert (tmp_path / "overview-params.csv").read_text() == "mixer,s3,parity\nlstm,0.5,0.5\nbdlru-m4,0.5,0.5\n"


def test_only_a_win_that_is_learned_and_alone_is_bold(make_row, tmp_path, texts):
    accuracies = {"s3": (1.0, 1.0), "parity": (0.9, 0.6), "s5": (0.03, 0.01)}  # shared; a win; guessing
    rows = [make_row(name, a, task=task) for task, both in accuracies.items() for name, a in zip(("lstm", "gla"), both)]
    draw_overview(overview(compare(rows)), "all", tmp_path / "overview.png")
    cells = [text for text in texts() if "." in text.get_text() and text.get_text() != "overview"]
    assert [text.get_text() for text in cells if text.get_weight() == "bold"] == ["0.90"]


def test_costs_are_those_of_whole_mixers_and_of_wider_mlps(make_row, tmp_path, figures, texts):
    costs = {"lstm": (50_000, 90_000), "gla": (40_000, 80_000), "attn": (30_000, 95_000), "hgrn": (20_000, "")}
    rows = [
        make_row(name, 0.5, mixer_flops=str(cost), recurrent_flops="7", flops_per_token=str(of))
        for name, (cost, of) in costs.items()
    ]
    (comparison,) = compare(rows)
    draw_costs(comparison, tmp_path / "costs.png")
    found = {text.get_text(): text.xy[0] for text in texts() if text.get_text() in costs}
    assert found == {"lstm": 50_000, "gla": 40_000, "attn": 30_000 + 25_000, "hgrn": 20_000}
    note = figures[0].get_supxlabel().replace("\n", " ")
    assert "linear maps included; of attn with what its wider MLP has more than the others'." in note
    (alone,) = compare(rows[:2])
    draw_costs(alone, tmp_path / "costs.png")
    assert "linear maps included." in figures[1].get_supxlabel().replace("\n", " ")


def test_stored_numbers_are_drawn_anew_without_weights(trained, tmp_path):
    """What a checkout holds: rows and numbers, no weights."""
    first = run(trained[0], "--what", "spectra,memory,gates,blocks", "--out", tmp_path)
    assert first.exit_code == 0, first.output
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "compare.csv").write_bytes((trained[0] / "compare.csv").read_bytes())
    numbers = {path.name: path.read_text() for path in tmp_path.glob("*.csv")}
    for path in tmp_path.glob("*.png"):
        path.unlink()
    file = tmp_path / "rows" / "compare.csv"  # will do in the place of a folder
    again = run(file, "--what", "spectra,memory,gates,blocks", "--out", tmp_path)
    assert again.exit_code == 0, again.output
    assert sorted(path.name for path in tmp_path.glob("*.png")) == sorted(
        f"{kind}-s3-{match}.png" for kind in ("spectra", "memory", "gates", "blocks") for match in ("params", "state")
    )
    assert {path.name: path.read_text() for path in tmp_path.glob("*values.csv")} == {
        name: text for name, text in numbers.items() if name.endswith("values.csv")
    }


def test_a_solved_block_permutes_at_every_letter():
    """The stored gates of S5: the model that holds it, and one that is stuck."""
    held, stuck = read_panels(pd.read_csv("benchmarks/results/tracking-adaptive/gates-s5-params.csv"))
    assert held[1].shape == (120, 5, 5)
    assert are_permutations(held[1]).all()
    assert len({tuple(matrix.abs().round().flatten().tolist()) for matrix in held[1]}) == 120  # one each
    assert not are_permutations(stuck[1]).all()


@pytest.mark.parametrize("change", [{"layers": 2}, {"mixer_args": {"use_short_conv": True}}, {"mixer": "hlru"}])
def test_gates_of_a_letter_need_one_plain_layer(trained, change):
    row = {**rows_of(trained, "bdlru-m3")[0], **change}
    with pytest.raises(ValueError, match=r"bdlru-m3 with . block.*need one plain BD-LRU layer"):
        letter_matrices(trained[0], row)


@pytest.mark.parametrize("speak", [[2], [0, 2]], ids=str)
def test_blocks_that_say_nothing_are_told_from_those_that_say_all(speak, trained, tmp_path, monkeypatch):
    """Output columns are gate-major: feature i * H + k is of block k."""
    monkeypatch.setattr(blocks, "EXAMPLES", 32)
    # no sequence is all right after so few steps
    monkeypatch.setattr(blocks, "evaluate", lambda *given: {"sequence_accuracy": evaluate(*given)["token_accuracy"]})
    (row,) = [row for row in rows_of(trained, "bdlru-m3") if row["matched"].startswith("params")]
    model = load_model(trained[0], row)
    (layer,) = (module for module in model.modules() if isinstance(module, BDLRU))
    with torch.no_grad():
        mute = ~torch.isin(torch.arange(layer.num_blocks), torch.tensor(speak))
        layer.o_proj.weight.unflatten(1, (3, layer.num_blocks))[:, :, mute] = 0
    (tmp_path / "weights").mkdir()
    save_file(model.state_dict(), tmp_path / "weights" / f"{row['key']}.safetensors")
    table = blocks.block_roles(tmp_path, [row, *rows_of(trained, "lstm"), *rows_of(trained, "hlru-m2")])
    assert list(table["seed"]) == [row["seed"]] * layer.num_blocks
    assert set(table["length"]) == {16}
    whole = evaluate(model, get_task("s3"), 16, 32, "cpu")["token_accuracy"]
    kept, others = table[table["block"].isin(speak)], table[~table["block"].isin(speak)]
    assert kept["share"].sum() == pytest.approx(1)
    assert (table["whole"] == whole).all()
    heard = table["block"].isin(speak).cumsum()
    assert (table["together"][heard == len(speak)] == whole).all()
    assert (table["together"][heard == 1] == kept["alone"].iloc[0]).all()
    assert (kept["alone"].min() < whole) == (len(speak) > 1)
    assert (others["without"] == whole).all()
    assert not others["share"].any()
    assert others["alone"].nunique() == 1  # of means alone
    assert others["alone"].iloc[0] < whole


def test_a_block_that_is_silenced_says_its_mean():
    layer, x = BDLRU(12, block_size=3), torch.randn(2, 5, 12)
    model = torch.nn.Module()
    model.forward = lambda input_ids: layer(input_ids)
    said = blocks.what_is_said(model, layer, x)
    torch.testing.assert_close(layer.o_proj(said), layer(x)[0])
    mean, silent = said.mean((0, 1)), torch.tensor([False, True, False, False])
    expected = said.unflatten(-1, (3, 4)).clone()
    expected[..., 1] = mean.unflatten(0, (3, 4))[:, 1]
    with blocks.silenced(layer, silent, mean):
        torch.testing.assert_close(layer(x)[0], layer.o_proj(expected.flatten(-2)))
    torch.testing.assert_close(layer(x)[0], layer.o_proj(said))


def test_runs_whose_blocks_are_drawn_stand_in_rows():
    line = {"variant": "bdlru-m2", "length": 64, "whole": 0.5, "share": 0.5}
    table = pd.DataFrame(
        [{**line, "seed": seed, "block": k, "alone": 0.25, "without": 0.75} for seed in (0, 1) for k in (1, 0)]
    )
    assert len(blocks.blocks_figure(table, "title", "note").panels) == 2  # numbers of before there was the third
    alone, without, together = blocks.blocks_figure(table.assign(together=1.0), "title", "note").panels
    assert together.cells["bdlru-m2, seed 1", "2"] == (1.0, "1.00")
    assert alone.rows == ["bdlru-m2, seed 0", "bdlru-m2, seed 1"]
    assert alone.columns == ["all", "1", "2"]
    assert alone.cells["bdlru-m2, seed 1", "all"] == (0.5, "0.50")
    assert (alone.cells["bdlru-m2, seed 0", "1"], without.cells["bdlru-m2, seed 1", "2"]) == ((0.25, "0.25"), (0.75, "0.75"))


def test_of_many_blocks_the_first_are_drawn():
    line = {"variant": "bdlru-m1", "seed": 0, "length": 64, "whole": 1.0, "share": 0.0, "without": 1.0}
    table = pd.DataFrame([{**line, "block": k, "alone": float(k == 0)} for k in range(40)])
    for panel in blocks.blocks_figure(table, "title", "note").panels:
        assert panel.columns == ["all", *map(str, range(1, blocks.SHOWN + 1))]
        assert len(panel.cells) == len(panel.columns)


def test_stored_language_models_are_drawn(tmp_path):
    result = run("benchmarks/results", "--what", "lm", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"lm-quick.png", "lm-quick-conv.png"}


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "lm.png")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    result = run("benchmarks/results", "--what", "lm", "--out", tmp_path)
    assert (result.exit_code, "Error: lm.png cannot be written: No space left on device." in result.output) == (1, True)


def test_language_models_of_two_sizes_are_drawn_apart(tmp_path, figures):
    with ResultStore(tmp_path, "lm", COLUMNS) as store:
        for row in read([Path("benchmarks/results/lm-quick.csv")]):
            store.add(row)
            larger = {**row["model"], "num_hidden_layers": 9}
            store.add({**row, "key": f"{row['key']}9", "model": larger, "params": 9 * row["params"]})
    result = run(tmp_path, "--what", "lm")
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.glob("*.png")} == {"lm-1.png", "lm-2.png"}
    notes = [figure.get_supxlabel().replace("\n", " ") for figure in figures]
    assert [f"model.num_hidden_layers {n}" in note for n, note in zip((2, 9), notes)] == [True, True]


def test_weights_are_scored_at_other_lengths(trained, tmp_path):
    folder, rows = trained
    out = tmp_path / "lengths.csv"
    result = CliRunner().invoke(lengths_app, [str(folder), "--lengths", "8,64", "--examples", "32", "--out", str(out)])
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out)
    assert len(table) == 2 * len(rows)
    for key, accuracy in table[table["length"] == 8].set_index("key")["token_accuracy"].items():
        assert accuracy == pytest.approx(float(rows[key]["token_accuracy_1x"]), abs=1e-6)
    last = table.iloc[-1]
    scores = evaluate(load_model(folder, rows[last["key"]]), get_task("s3"), 64, 32, "cpu")
    assert (last["length"], last["token_accuracy"]) == (64, pytest.approx(scores["token_accuracy"], abs=1e-6))
    first = out.read_text()
    longer = CliRunner().invoke(lengths_app, [str(folder), "--lengths", "8,16", "--examples", "32", "--out", str(out)])
    assert longer.stdout.count("@") == longer.stdout.count("@16") == len(rows)  # what is there is kept, and not scored again
    assert out.read_text().startswith(first)
    whole = out.read_text()
    out.write_text(whole[:-9])  # cut by a full disk: that run alone is scored again
    again = CliRunner().invoke(lengths_app, [str(folder), "--lengths", "8,16", "--examples", "32", "--out", str(out)])
    assert (again.exit_code, again.stdout.count("@"), out.read_text()) == (0, 1, whole)
    repeated = next(iter(rows.values()))
    out.write_text(whole.replace(f"{repeated['lr']},{repeated['finished']}", f"{repeated['lr']},2020-01-01"))
    again = CliRunner().invoke(lengths_app, [str(folder), "--lengths", "8,16,64", "--examples", "32", "--out", str(out)])
    assert sorted(out.read_text().splitlines()) == sorted(whole.splitlines())  # those scores are replaced


def test_a_task_that_knows_its_training_length_alone_is_not_scored_at_others(make_row, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.report.transitions.load_model", lambda folder, row: None)
    monkeypatch.setattr("benchmarks.compare.train.evaluate", lambda *_: {"token_accuracy": 0.5, "sequence_accuracy": 0.0})
    with ResultStore(tmp_path) as store:
        for task in ("compression", "s3"):
            row = make_row("lstm", 0.5, key=task, task=task, lengths="32")
            store.add(row, weights=b"some")
    result = CliRunner().invoke(lengths_app, [str(tmp_path), "--lengths", "32,64"])
    assert "compression lstm seed 0: knows no lengths but those of its training" in result.output, result.output
    scored = pd.read_csv(tmp_path / "lengths.csv")
    assert list(zip(scored["task"], scored["length"])) == [("compression", 32), ("s3", 32), ("s3", 64)]


def test_two_runs_do_not_score_into_one_file(trained, tmp_path, monkeypatch):
    """The second would take out what was scored of older runs, and the first would write on into what is gone."""
    folder, rows = trained
    call = [str(folder), "--lengths", "8", "--examples", "4", "--out", str(tmp_path / "lengths.csv")]
    others = []

    def score(*arguments):
        others.append(CliRunner().invoke(lengths_app, call, env={"COLUMNS": "400"}))
        return {"token_accuracy": 0.5, "sequence_accuracy": 0.0}

    monkeypatch.setattr("benchmarks.compare.train.evaluate", score)
    assert CliRunner().invoke(lengths_app, call).exit_code == 0
    assert len(pd.read_csv(tmp_path / "lengths.csv")) == len(rows) == len(others)
    assert all(other.exit_code == 2 and "is in use by another run" in other.output for other in others)
    assert CliRunner().invoke(lengths_app, call).stdout == ""  # it is free again, and all is there
    assert [path.name for path in tmp_path.iterdir()] == ["lengths.csv"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere"], "Invalid value for FOLDER: folder='nowhere' holds no results"),
        (["benchmarks/results/cpu/compare.csv"], "Invalid value for FOLDER: 'benchmarks/results/cpu/compare.csv' is a file"),
        (["--lengths", "32,"], "Invalid value for --lengths: '32,' is not accepted; expected whole numbers greater than 0"),
        (["--lengths", "0"], "Invalid value for --lengths: '0' is not accepted"),
        (["--lengths", "9", "benchmarks/results/cpu"], "recall'; expected 4 or more, a multiple of 2."),
        (["--out", "/nowhere/x.csv"], "Invalid value for --out: /nowhere/x.csv cannot be written: No such file"),
        (["--out", "docs"], "Invalid value for --out: docs cannot be written: Is a directory."),
        (["--out", "LICENSE"], "expected a file with the columns key, task, variant, seed, lr, finished, length"),
    ],
)
def test_what_cannot_be_scored_is_named(arguments, words):
    folder = [] if arguments[-1].startswith(("nowhere", "benchmarks/results/cpu")) else ["benchmarks/results/s3-seeds"]
    result = CliRunner().invoke(lengths_app, [*arguments, *folder], env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert words in result.output
