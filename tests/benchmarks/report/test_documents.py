"""Tables of the documents, of made-up rows; that pages hold the stored ones is tested beside the pages."""

import pytest

from benchmarks.lm.report import read
from benchmarks.records.plots import Figure, Panel
from benchmarks.records.store import ResultStore
from benchmarks.report import documents


@pytest.fixture
def table(make_row, tmp_path, monkeypatch):
    """Lines of a table of some rows, cells apart: (variant, task, accuracies by seed) each."""
    monkeypatch.setattr(documents, "RESULTS", tmp_path)

    def make(kind, *lines):
        with ResultStore(tmp_path / kind) as store:
            for variant, task, values in lines:
                for seed, value in enumerate(values):
                    store.add(make_row(variant, value, seed, task=task, state_size="" if variant == "attn" else "64"))
        text = documents.stored_table(kind, kind)
        lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
        return [[cell.strip() for cell in line] for line in lines], text

    return make


def test_mad_says_what_is_a_claim(table):
    """The best first among those with most tasks; fewer than five seeds in italics; no run, no cell."""
    rows, text = table(
        "mad",
        ("attn", "recall", (1.0,)),
        ("lstm", "compression", (0.5,)),
        ("lstm", "recall", (0.7,)),
        ("bdlru-m4", "recall", (0.9, 0.8, 1.0, 1.0, 1.0)),
        ("bdlru-m4", "compression", (0.75, 0.25, 0.5, 0.5, 0.5)),
    )
    assert rows[0] == ["mixer", "recall", "compression", "state"]
    assert rows[2:] == [
        ["`bdlru-m4`", "1.000 (0.80-1.00)", "0.500 (0.25-0.75)", "64"],
        ["`lstm`", "*0.700*", "*0.500*", "64"],
        ["`attn`", "*1.000*", "", "grows"],
    ]
    assert "fewer than five seeds" in text


def test_the_law_is_of_one_rate(make_row, tmp_path, monkeypatch):
    """A group that was run at another rate too, and was kept there, is shown at the study's."""
    monkeypatch.setattr(documents, "RESULTS", tmp_path)
    with ResultStore(tmp_path / "law") as store:
        for lr, value in (("0.02", 0.5), ("0.01", 1.0)):
            store.add({**make_row("bdlru-m5-sinh", value, task="z5", lr=lr), "token_accuracy_8x": value})
    assert documents.stored_table("law", "law").count("0/1") == 2
    text = documents.stored_table("law", "law-counts")
    assert "above the border, 0 of 0 runs" in text
    assert "below it 0 of 1 cells" in text


def test_depth_says_what_one_layer_would_ask_for(table):
    """With softmax gates more than with signed ones; groups in the law's order, then the smaller blocks."""
    rows, text = table(
        "depth",
        ("bdlru-m2", "q8", (1.0, 0.5, 0.995)),
        ("bdlru-m1-sinh", "q8", (0.9,)),
        ("bdlru-m2", "z4", (1.0,)),
    )
    assert rows[0] == ["", "one layer asks for", "learned, 32", "learned, 64", "tokens @64"]
    assert rows[2:] == [
        ["Z4, `bdlru-m2`", "m = 4", "1 of 1", "0 of 1", "0.500"],
        ["Q8, `bdlru-m1-sinh`", "m = 2", "0 of 1", "0 of 1", "0.450"],
        ["Q8, `bdlru-m2`", "m = 4", "2 of 3", "0 of 3", "0.497 (0.25-0.50)"],
    ]
    assert "Layers: 1. Learned: seeds with at least 99% of tokens right" in text


def test_lengths_that_lack_a_run_are_an_error(make_row, tmp_path, monkeypatch):
    """A group with a new seed that was not scored at other lengths would be gone from the table."""
    monkeypatch.setattr(documents, "RESULTS", tmp_path)
    with ResultStore(tmp_path / "kept") as store:
        for variant, task, seed in (("lstm", "s3", 0), ("lstm", "s3", 1), ("gla", "s3", 0)):
            more = {"mixer_flops": "99", "finished": "2026-11-27", "seconds": str((8.6, 12.4)[seed])}
            store.add(make_row(variant, 1.0, seed, task=task, **more))
    run = "lstm-0.003-{}-s3,2026-11-27".format
    lines = [f"{run(seed)},{n},256,{token},{token}" for seed, token in ((0, 1.0), (1, 0.5)) for n in (32, 256)]
    head = "key,finished,length,examples,token_accuracy,sequence_accuracy"
    (tmp_path / "kept" / "lengths.csv").write_text("\n".join([head, *lines]))
    table = documents.stored_table("kept", "lengths").splitlines()
    assert [line[:44] for line in table if "`" in line] == ["| S3, `lstm` | 1 of 2 | 1 of 2 | 0.750 (0.50"]
    assert [line.split(" | ")[-1] for line in table if "`" in line] == ["10 (9-12) |"]
    repeated = [line.replace("2026", "2025") for line in lines]
    for kept, words in ((lines[:-1], "1-s3 @256"), ([*lines[:-1], repeated[-1]], "1-s3 @256"), (repeated, "0-s3 @32, .*")):
        (tmp_path / "kept" / "lengths.csv").write_text("\n".join([head, *kept]))
        with pytest.raises(ValueError, match=rf"kept/lengths\.csv lacks runs of lstm on s3: lstm-0\.003-{words}; score them"):
            documents.stored_table("kept", "lengths")


def test_the_headline_has_a_row_of_louder_noise(make_row, tmp_path, monkeypatch):
    """Of a mixer that has most groups by it; how many seeds there are is said where there are others than usual."""
    monkeypatch.setattr(documents, "RESULTS", tmp_path)
    head = "key,finished,length,examples,token_accuracy,sequence_accuracy"
    stored = {"kept": (("lstm", "s3", 2), ("gla", "s3", 1), ("gla", "s4", 1)), "kept-louder": (("lstm", "s3", 1),)}
    stored["kept"] += (("hgrn", "s3", 1), ("hgrn", "s4", 3))
    stored["kept-louder"] += (("gla", "s3", 1), ("gla", "s4", 1))
    for folder, runs in stored.items():
        with ResultStore(tmp_path / folder) as store:
            for variant, task, seeds in runs:
                for seed in range(seeds):
                    store.add(make_row(variant, 1.0, seed, task=task, mixer_flops="99", finished="2026-11-27"))
            lines = [f"{key},2026-11-27,{n},256,1.0,{int(n < 99)}.0" for key in store.rows for n in (32, 256)]
        (tmp_path / folder / "lengths.csv").write_text("\n".join([head, *lines]))
    table = documents.stored_table("kept", "headline")
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in table.splitlines() if "`" in line]
    expected = [["`gla`", "1/0", "1/0"], ["`gla`, louder", "1/0", "1/0"], ["`hgrn`", "1/0", "3/0 of 3"]]
    assert sorted(rows) == [*expected, ["`lstm`, of 2", "2/0", ""]]
    assert "Seeds (of 1, if not said)" in table


def test_a_learned_start_stands_beside_bos(make_row, tmp_path, monkeypatch):
    """Of the same recipe, from the folder of that; recipes of one folder are told apart."""
    monkeypatch.setattr(documents, "RESULTS", tmp_path)
    head = "key,finished,length,examples,token_accuracy,sequence_accuracy"
    start, older, louder = "bdlru-m3-sinh-start", ("bdlru-m3-sinh", "restarting"), ("bdlru-m3-sinh", "louder")
    stored = {"kept": [older], "kept-louder": [louder], "kept-start": [(start, "restarting"), (start, "louder")]}
    stored["kept"].append(("lstm", "restarting"))
    for folder, runs in stored.items():
        with ResultStore(tmp_path / folder) as store:
            for variant, recipe in runs:
                for seed in range(1 + (recipe == "louder")):
                    more = {"curriculum": recipe, "key": f"{variant}-{recipe}-{seed}", "finished": "2026-11-27"}
                    store.add(make_row(variant, 1.0, seed, task="s4", mixer_flops="99", **more))
            lines = [f"{key},2026-11-27,{n},256,1.0,1.0" for key in store.rows for n in (32, 256)]
        (tmp_path / folder / "lengths.csv").write_text("\n".join([head, *lines]))
    rows = [line.split(" | ")[:2] for line in documents.stored_table("kept-start", "start").splitlines() if "`" in line]
    assert rows == [
        ["| S4, `bdlru-m3-sinh-start`", "1 of 1"],
        ["| S4, `bdlru-m3-sinh`, with BOS", "1 of 1"],
        ["| S4, `bdlru-m3-sinh-start`, louder", "2 of 2"],
        ["| S4, `bdlru-m3-sinh`, louder, with BOS", "2 of 2"],
    ]
    rows = [line.split(" | ")[:2] for line in documents.stored_table("kept-start", "lengths").splitlines() if "`" in line]
    assert rows == [["| S4, `bdlru-m3-sinh-start`", "1 of 1"], ["| S4, `bdlru-m3-sinh-start`, louder", "2 of 2"]]


def test_mixers_at_rates_of_their_own_are_one_table(make_row, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "RESULTS", tmp_path)
    with ResultStore(tmp_path / "own") as store:
        for variant, value, lr in (("gla", 0.5, "0.01"), ("lstm", 1.0, "0.02"), ("hgrn", 0.7, "0.02")):
            store.add(make_row(variant, value, lr=lr))
    assert documents.stored_table("own").count("| mixer |") == 2
    text = documents.stored_table("own", "own-rates")
    rows = [[line.split(" | ")[i] for i in (0, -2)] for line in text.splitlines() if "| 64 |" in line]
    assert rows == [["| lstm", "0.02"], ["| hgrn", "0.02"], ["| gla", "0.01"]]
    assert "Token accuracy at each length, one seed, at each mixer's own rate; solved:" in text


def test_a_figure_is_drawn_anew_if_its_rows_say_something_else(tmp_path, monkeypatch, capsys):
    figures = [
        Figure("title", "note", [Panel("", ["lstm"], ["s3"], {("lstm", "s3"): (1.0, word)})]) for word in ("1/1", "2/2")
    ]
    monkeypatch.setattr(documents, "pages", list)
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    for figure, drawn in ((0, True), (0, False), (1, True)):
        monkeypatch.setattr(documents, "figures", lambda figure=figures[figure]: {tmp_path / "a.png": figure})
        documents.main()
        assert (capsys.readouterr().out == "drew a.png\n") == drawn


def test_rounding_pairs_runs_by_key(make_row, tmp_path, monkeypatch):
    """What not all machines have does not count."""
    monkeypatch.setattr(documents, "RESULTS", tmp_path)
    for name, values in {"a": (1.0, 0.5, 0.2), "b": (0.25, 0.75), "c": (1.0, 1.0, 1.0)}.items():
        with ResultStore(tmp_path / "rounding" / name) as store:
            for seed, value in enumerate(values):
                store.add(make_row("lstm", value, seed))
    rows = [line.split(" | ") for line in documents.stored_table("rounding", "rounding").splitlines()]
    assert rows[2][2:5] == ["1 of 2; 0.375 (0.25-0.50)", "0 of 2; 0.250 (0.12-0.38)", "2 of 2; 0.500"]
    assert rows[2][5:] == ["0.750", "0.375 |"]


def test_language_models_say_all_commits_sizes_and_groups():
    rows = read([documents.RESULTS / "lm-quick.csv"])
    made = [{**row, "params": n * 1000, "commit": c} for row, n, c in zip(rows, (592, 588, 593, 590), "abab")]
    text = documents.language_models(made)
    assert ", 588.0k to 593.0k parameters, 2 thread(s), " in text
    assert text.endswith("commits a, b.\n")
    larger = [{**row, "model": {**row["model"], "num_hidden_layers": 9}, "params": 9, "commit": "a"} for row in rows]
    text = documents.language_models([*made, *larger])
    assert text.count("| mixer |") == 2
    assert "model.num_hidden_layers 9, 9 parameters" in text
    assert text.endswith("commit a.\n")
