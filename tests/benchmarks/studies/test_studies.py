"""Studies: a command that resumes, from stored rows too, and figures that say what the rows say."""

import errno
import os
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from benchmarks.compare.models import quiet
from benchmarks.compare.plan import make_row, plan
from benchmarks.compare.settings import read_sweep
from benchmarks.lm.report import COLUMNS, CURVE_COLUMNS, read
from benchmarks.lm.settings import load_settings
from benchmarks.records.store import ResultStore, read_folder
from benchmarks.studies import __main__ as studies
from benchmarks.studies import figures
from benchmarks.studies.figures import FIGURES, smallest_block
from benchmarks.tasks import get_task
from benchmarks.tasks.groups import find_group

ROW = {"task": "s3", "variant": "bdlru-m3-sinh", "lr": 0.01, "weight_decay": 0.01, "finished": "1"}


def row(seed, first=1.0, kept=1.0, **more):
    scores = {"token_accuracy_1x": first, "token_accuracy_8x": kept, "validation_token_accuracy": first}
    return {**ROW, "seed": seed, **scores, **more}


def command(*arguments):
    result = CliRunner().invoke(studies.app, [*map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def small(tmp_path, monkeypatch):
    # a study of two short runs, without stored rows
    folder = tmp_path / "studies"
    folder.mkdir()
    fields = 'preset = "tracking"\ntask = ["z2", "s3"]\nmixers = "bdlru-m1-sinh"\nsteps = 10\nlr = 1e-2\nseeds = 1\nwidth = 16'
    (folder / "law.toml").write_text(fields)
    monkeypatch.setattr(studies, "FOLDER", folder)
    return tmp_path


def test_a_study_runs_what_is_left_and_says_so(small, monkeypatch):
    out = small / "out"
    assert "Nothing has run yet" in command("law", "--status", "--out", out)[1]
    code, said = command("law", "--out", out, "--workers", 1)
    assert code == 0
    assert "2 runs, 0 of them" in said
    table = (out / "law.md").read_text().splitlines()
    assert table[2] == "|  | z2 | s3 |"
    assert table[4].startswith("| BD-LRU, m = 1 | ")
    assert (out / "law.png").stat().st_size > 10_000

    # half of them by others: stored rows count, and the rest is run
    stored = small / "results" / "tracking"
    stored.mkdir(parents=True)
    head, first, _ = (out / "compare.csv").read_text().splitlines()
    (stored / "compare.csv").write_text(f"{head}\n{first}\n")
    said = command("law", "--status", "--out", small / "new")[1]
    assert "1 done, 1 left: about 0.0 h" in said
    with ResultStore(stored) as store:  # a run that took two hours, and one of another study
        (done,) = store.rows.values()
        store.add({**done, "seconds": 7200, "steps_done": 5})
        store.add({**done, "key": "other", "task": "s5"})
    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.compare.__main__._fit_workers", lambda *_: 4)
        said = command("law", "--status", "--out", small / "new")[1]
    assert "s3 1 0 1 4.0" in said
    assert "1 done, 1 left: about 1.0 h with 4 worker(s)" in said
    shutil.copy(out / "compare.csv", stored)
    assert "All of it is done" in command("law", "--status", "--out", small / "new")[1]
    code, said = command("law", "--out", small / "new", "--workers", 1)
    assert "2 runs, 2 of them" in said
    assert (small / "new" / "law.md").read_text() == (out / "law.md").read_text()

    # what is wanting costs the picture alone, and a full disk is a line
    (out / "law.png").unlink()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        code, said = command("law", "--out", out, "--workers", 1)
    assert (code, said.count("no picture, as matplotlib is not installed")) == (0, 3)
    assert not (out / "law.png").exists()
    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", full)
        code, said = command("law", "--out", out, "--workers", 1)
    assert (code, "law.png cannot be written: No space left on device" in said) == (2, True)


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "law.png")


def test_wrong_names_are_refused():
    assert "'laws' is not known; expected one of state_tracking, law, mad, lm" in command("laws")[1].replace("│ ", "")
    for study, expected in (("law", "one of quick, depth"), ("lm", "quick")):
        assert f"'all' is not known; expected {expected}." in command(study, "--only", "all")[1].replace("│ ", "")


@pytest.mark.parametrize("name", [path.stem for path in sorted(studies.FOLDER.glob("*.toml"))])
def test_every_grid_can_be_read(name):
    path = studies.FOLDER / f"{name}.toml"
    assert load_settings(str(path), ()).mixers if name.startswith("lm") else read_sweep(path)
    assert name in {studies.Study(of, part).title for of in studies.STORED for part in (None, *studies._parts(of))}


def test_stored_rows_are_those_of_the_studies():
    """Of a study and its parts; of the groups' two studies, which lie together, ten seeds."""
    quiet()
    asked = {}
    of = [studies.Study(name, part) for name in ("state_tracking", "law", "mad") for part in (None, *studies._parts(name))]
    for study in of:
        if study.stored is None:
            continue
        for part in read_sweep(study.grid):
            settings = part.settings if study.part else replace(part.settings, seeds=tuple(range(10)))
            grid, _ = plan(part.task, part.mixers, part.match, part.budget, settings, "cpu")
            asked.setdefault(study.stored.name, set()).update(p.cell.key for p in grid)
    parts = ["a5-2500", "depth", "louder", "lower-rates", "noise", "noise-2", "start", "state"]
    assert sorted(asked) == ["mad", "tracking", *(f"tracking-{part}" for part in parts)]
    for name, keys in asked.items():
        stored = read_folder(studies.FOLDER.parent / "results" / name)
        assert stored.keys() <= keys, name
        assert stored, name


def test_the_law_counts_seeds_that_keep_a_group_and_draws_its_border():
    rows = [row(0), row(1, finished="2"), row(1, kept=0.5), row(0, task="z5"), row(0, kept=0.2, variant="bdlru-m2-sinh")]
    learned, panel = FIGURES["law"]([*rows, row(0, variant="hlru-m2-sinh", kept=0.0)]).panels
    assert learned.cells["BD-LRU, m = 2", "s3"] == (1.0, "1/1")
    assert panel.columns == ["s3", "z5"]
    # of equal block and order by name, not by chance
    assert figures.in_order_of_law(("z6", "q8", "s3", "d4")) == ["d4", "q8", "s3", "z6"]
    assert panel.rows == ["BD-LRU, m = 2", "BD-LRU, m = 3", "H-LRU, m = 2"]
    assert panel.cells["BD-LRU, m = 3", "s3"] == (1.0, "2/2")  # the later row of seed 1
    assert panel.cells["BD-LRU, m = 2", "s3"] == (0.0, "0/1")
    assert panel.borders == {"s3": "BD-LRU, m = 3", "z5": "BD-LRU, m = 5"}
    assert FIGURES["law"](rows).note.endswith(" Grey: not run.")  # m = 2 on Z5
    assert "Grey" not in FIGURES["law"](rows[:3]).note


def test_a_border_is_drawn_where_every_column_has_one():
    cells = {("m = 2", "s3"): (0.5, "1/2")}
    for borders, steps in (({"s3": "m = 3", "z5": "m = 2"}, [0.5, 0.5, -0.5, -0.5]), ({"s3": "m = 3"}, None)):
        axes = Figure().subplots()
        figures.Panel("title", ["m = 2", "m = 3"], ["s3", "z5"], cells, borders).draw(axes)
        assert [list(line.get_ydata()) for line in axes.lines] == ([steps] if steps else [])


def test_each_mixer_is_shown_at_its_best_rate_and_decay():
    """Of those with most seeds; decays of one rate are choices of their own."""
    recall = partial(row, task="recall")
    rows = [recall(s, first=0.5, lr=0.1) for s in range(3)] + [recall(0, first=0.95, lr=0.02), row(0, task="compression")]
    rows += [recall(s, first=first, weight_decay=0.1) for s, first in enumerate((0.9, 0.9, 0.6))]
    mad = FIGURES["mad"]([*reversed(rows), *(recall(s, first=0.2, finished="2") for s in range(3))])
    assert mad.panels[0].cells["bdlru-m3-sinh", "recall"] == (0.9, "0.90*")
    assert mad.panels[0].columns == ["recall", "compression"]  # in MAD's order
    chance = get_task("compression").chance
    assert "that it ran with (4 on recall, else one). Medians of 1 to 3 seed(s); a star: fewer than five." in mad.note
    assert f"Guessing: recall {get_task('recall').chance:.2f}, compression {chance:.2f}." in mad.note
    full = FIGURES["mad"]([recall(s) for s in range(5)])
    assert full.panels[0].cells["bdlru-m3-sinh", "recall"] == (1.0, "1.00")
    assert "that it ran with (one). Medians of 5 seed(s). Guessing" in full.note
    first, kept = FIGURES["law-depth"]([row(0, kept=0.1), row(1, first=figures.SOLVED)]).panels
    assert first.cells["bdlru-m3-sinh", "s3"] == (1.0, "2/2")
    assert kept.cells["bdlru-m3-sinh", "s3"] == (0.5, "1/2")
    assert "| bdlru-m3-sinh | 1/2 |" in kept.table()


def test_state_tracking_is_every_sequence_right_at_the_lengths_that_all_have():
    """Mixers that keep more come first, each recipe beside the other, at the rate that was its best by it."""

    def run(variant, recipe, *exact, task="s3", **more):
        scores = dict(zip(("sequence_accuracy_1x", "sequence_accuracy_8x", "sequence_accuracy_256x"), exact))
        return row(0, variant=variant, curriculum=recipe, task=task, lengths=(4, 32), **scores, **more)

    rows = [run("lstm", "restarting", 1, 1, 1), run("pd_ssm", "restarting", 1, 0, 0), run("pd_ssm", "louder", 1, 1, 0.999)]
    rows += [run("gla", "louder", 1, 1, 1), run("gla", "restarting", 0, 0, 0), run("gla", "louder", 1, 1, 1, task="z5")]
    rows += [run("gla", "louder", 0.5, 0, 0, lr=0.5, first=0.9)]
    panels = FIGURES["state_tracking"](rows).panels
    assert [panel.title for panel in panels] == ["length 32", "length 256", "length 8,192"]
    for panel in panels:
        assert panel.rows == ["gla, louder", "gla", "lstm", "pd_ssm, louder", "pd_ssm"]
        assert panel.columns == ["s3", "z5"]
        assert panel.cells["gla, louder", "s3"] == (1.0, "1/1")
        assert ("gla", "z5") not in panel.cells
    assert [panel.cells["pd_ssm, louder", "s3"][1] for panel in panels] == ["1/1", "1/1", "0/1"]
    assert FIGURES["state_tracking"](rows).note.endswith(" Grey: not run.")
    five = [{**of, "seed": seed} for of in rows for seed in range(5)]
    why = "not run, by fewer than five seeds, or not tested at all lengths"
    assert FIGURES["state_tracking"](five).note.endswith(f" Grey: {why}.")
    assert "Grey" not in FIGURES["state_tracking"](rows[:1]).note
    del rows[0]["sequence_accuracy_256x"]
    assert [panel.title for panel in FIGURES["state_tracking"](rows).panels] == ["length 32", "length 256"]


def test_one_layer_never_needs_more_than_one_block():
    for name in ("z2", "z3", "z4", "z6", "z8", "s3", "d4", "q8", "a4", "s4", "z2xz4", "a5"):
        assert smallest_block(name) <= find_group(name).signed_degree


@pytest.fixture
def models(tmp_path, monkeypatch):
    # a study of language models whose runs are all stored, as far as the study knows: (its runs, the folder with the rows)
    folder, stored = tmp_path / "studies", tmp_path / "results" / "lm"
    folder.mkdir()
    text = tmp_path / "text.txt"
    text.write_text("one line of text\n" * 2000)
    preset = (studies.FOLDER / "lm-quick.toml").read_text().replace('dataset = "stdlib"', f'text = "{text}"')
    (folder / "lm.toml").write_text(preset.replace("tokens = 65_536", "").replace("3e-3", "3e-3\nseeds = [0, 1]"))
    monkeypatch.setattr(studies, "FOLDER", folder)
    like, *_ = read([Path("benchmarks/results/lm/lm.csv")])
    runs = studies._model_runs(folder / "lm.toml")
    with ResultStore(stored, "lm", COLUMNS, CURVE_COLUMNS) as store:
        for run in runs:
            row = {**like, "key": run.key, "name": run.entry.name, "seed": run.seed, "seconds": 7200.0}
            store.add(row, [(100, 400_000, 1e-3, 2.5, 1.0, 2.4, 60.0)])
    return runs, stored


def test_language_models_have_a_status_by_what_their_results_depend_on(models, tmp_path):
    runs, stored = models
    assert [(run.entry.name, run.seed) for run in runs] == [(n, s) for s in (0, 1) for n in ("bdlru-m4", "mamba2")]
    assert "lm: 4 of 4 runs done, 0 left: about 0.0 h" in command("lm", "--status", "--out", tmp_path / "out")[1]
    with ResultStore(stored, "lm", COLUMNS) as store:  # another text or training, the same name and seed
        rows = [store.rows[run.key] for run in runs]
        store._write_rows({row["key"]: row for row in (rows[0], {**rows[1], "key": "other", "seconds": 3600.0})})
    said = command("lm", "--status", "--out", tmp_path / "out")[1]
    assert f"lm: 1 of 4 runs done, 3 left: about {1 + 2 + 1:.1f} h, one at a time" in said
    (stored / "lm.csv").unlink()
    said = command("lm", "--status", "--out", tmp_path / "out")[1]
    assert "lm: 0 of 4 runs done, 4 left; how long it takes is not known yet" in said


def test_language_models_leave_a_figure_with_stored_curves_and_a_table(models, tmp_path, figures):
    out = tmp_path / "out"
    code, said = command("lm", "--out", out)
    assert code == 0, said
    assert "4 runs, 4 of them" in said
    assert sorted(path.name for path in out.glob("lm*")) == ["lm.csv", "lm.md", "lm.png"]
    assert (out / "lm.md").read_text().startswith("| mixer | mixer parameters | state | bits per byte @256 |")
    assert [axes.get_ylabel() for axes in figures[-1].axes][2:] == ["validation loss"]


def test_workers_of_language_models_are_refused():
    code, said = command("lm", "--status", "--workers", 7)
    assert code == 2
    assert "7 is not accepted with lm: one runs at a time; expected 1" in said.replace("│ ", "")


def test_a_folder_of_another_run_is_named_in_a_line(small, monkeypatch):
    with ResultStore(small / "out"):
        code, said = command("law", "--out", small / "out", "--workers", 1)
    assert code == 2
    assert said == f"Error: out='{small / 'out'}' is in use by another run; wait for it or name another."


def test_a_part_goes_on_from_its_own_stored_rows(small, monkeypatch):
    """In a line of the study's status, and by itself; the quick one counts no stored rows."""
    monkeypatch.chdir(small)
    text = (studies.FOLDER / "law.toml").read_text()
    for part in ("deep", "quick"):
        (studies.FOLDER / f"law-{part}.toml").write_text(
            text.replace('["z2", "s3"]', '"z2"').replace("seeds = 1", "seeds = 2")
        )
    code, said = command("law", "--only", "deep", "--workers", 1)
    assert code == 0
    assert "2 runs, 0 of them in results/law-deep" in said
    made = small / "results" / "law-deep"
    assert sorted(path.name for path in made.glob("law*")) == ["law.md", "law.png"]
    head, first, _ = (made / "compare.csv").read_text().splitlines()
    stored = small / "results" / "tracking-deep"
    stored.mkdir()
    (stored / "compare.csv").write_text(f"{head}\n{first}\n")
    shutil.rmtree(made)
    said = command("law", "--status")[1]
    assert "parts, each by --only PART part runs done left hours left" in said
    assert "deep 2 1 1 0.0" in said
    assert "quick" not in said
    said = command("law", "--only", "deep", "--status")[1]
    assert "law-deep: 2 runs" in said
    assert "1 done, 1 left" in said
    assert "parts" not in said
    assert "Nothing has run yet" in command("law", "--only", "quick", "--status")[1]
    assert "2 runs, 1 of them in results/law-deep" in command("law", "--only", "deep", "--workers", 1)[1]


def test_the_status_counts_what_follows_from_rates_yet_unknown(small):
    path = studies.FOLDER / "law.toml"
    text = path.read_text().replace("seeds = 1", "seeds = 4").replace("lr = 1e-2", "lr = [1e-2, 2e-2]")
    path.write_text(text + "\nweight_decay = [0, 0.1]\ntune = 1\n")
    said = command("law", "--status", "--out", small / "out")[1]
    assert "law: 14 runs" in said
    assert "z2 7 0 7" in said

    # stored rows count at the rates that are best so far
    (cells,) = [studies._lay_out(studies.Study("law"), small / "out", "cpu")[0].values()]
    cells = {(p.cell.lr, p.cell.weight_decay, p.cell.seed): p for p in cells if p.cell.task == "z2"}

    def keep(*of, score):
        scores = [{"token_accuracy": score, "sequence_accuracy": 0.0, "loss": 1.0}] * 3
        result = {"params": 1, "linear_flops": 1, "scores": scores, "validation": score, "train_loss": 1.0, "seconds": 1.0}
        result |= {"diverged": False, "steps_done": 10, "restarts": 0}
        with ResultStore(small / "out") as store:
            for run in of:
                store.add(make_row(cells[run], result))

    keep((1e-2, 0, 0), (1e-2, 0, 1), (1e-2, 0, 2), (2e-2, 0.1, 1), score=0.5)
    said = command("law", "--status", "--out", small / "out", "--workers", 1)[1]
    assert "z2 7 3 4" in said
    assert "3 done, 11 left" in said
    assert "Of those done 2 count as long as the rates that are best so far stay the best." in said
    assert "Stored besides, at rates that are not the best: 1." in said
    keep((1e-2, 0.1, 0), (2e-2, 0, 0), score=0.1)
    keep((2e-2, 0.1, 0), score=0.9)
    said = command("law", "--status", "--out", small / "out", "--workers", 1)[1]
    assert "z2 7 5 2" in said
    assert "as long as" not in said
    assert "not the best: 2." in said
