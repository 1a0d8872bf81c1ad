"""Grid files and flags: what they lay out, and errors that name the file, the field, the value and what is accepted."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import benchmarks.compare.settings
from benchmarks.compare.__main__ import app
from benchmarks.compare.models import ALL_VARIANTS, DEFAULT_VARIANTS
from benchmarks.compare.plan import merge, narrow, plan
from benchmarks.compare.presets import get_preset
from benchmarks.compare.settings import lay_out, parse_field, read_sweep
from benchmarks.records.fields import FieldError

GRID = """
task = ["s3", "recall"]
mixers = ["bdlru-m1", "bdlru-m4", "lstm"]
match = ["params", "state"]
width = [32, 64]
seeds = 2
lr = [3e-3, 1e-2]
steps = 40

[settings.recall]
steps = 400
lr = 1e-3
match = "params"
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="grid.toml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_all_mixers_and_the_nearest_name():
    assert parse_field("mixers", "all", "--mixers") == ALL_VARIANTS
    assert len(ALL_VARIANTS) == 14
    for name, value, near in (
        ("mixers", "bdlr-m4", "bdlru-m4"),
        ("task", "noisy_recal", "noisy_recall"),
        ("preset", "quik", "quick"),
    ):
        with pytest.raises(FieldError, match=f"{value!r}.* Did you mean {near}[?]"):
            parse_field(name, value, name)


def test_a_model_by_another_name_is_the_same_mixer():
    assert parse_field("mixers", "bdlru-m4-softmax,hlru-m2-conv-silu,lstm", "") == ("bdlru-m4", "hlru-m2-silu-conv", "lstm")
    with pytest.raises(FieldError, match="expected different names of mixers"):
        parse_field("mixers", "bdlru-m4,bdlru-m4-softmax", "--mixers")


def test_every_combination_is_a_part(write):
    parts = read_sweep(write(GRID))
    found = [(p.task, p.match, p.settings.width, p.settings.mlp_width, p.settings.steps, p.settings.lrs) for p in parts]
    assert found == [
        ("s3", "params", 32, 64, 40, (3e-3, 1e-2)),
        ("s3", "params", 64, 128, 40, (3e-3, 1e-2)),
        ("s3", "state", 32, 64, 40, (3e-3, 1e-2)),
        ("s3", "state", 64, 128, 40, (3e-3, 1e-2)),
        ("recall", "params", 32, 64, 400, (1e-3,)),
        ("recall", "params", 64, 128, 400, (1e-3,)),
    ]
    assert {p.mixers for p in parts} == {("bdlru-m1", "bdlru-m4", "lstm")}
    assert {p.settings.seeds for p in parts} == {(0, 1)}
    assert {(p.task, p.settings.layers) for p in parts} == {("s3", 1), ("recall", 2)}  # the preset's
    (part,) = read_sweep(write('task = "recall"\nweight_decay = 0.5'), {"weight_decay": (0.0, 0.1)})
    assert part.settings.decays == (0.0, 0.1)  # of one comparison, as rates are


def test_the_examples_in_the_docstring_are_read(write):
    shown = re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", benchmarks.compare.settings.__doc__, re.MULTILINE)
    first, second = ("\n".join(line.strip() for line in example.splitlines()) for example in shown)
    parts = read_sweep(write(second))
    assert [(p.task, p.mixers, p.settings.lrs) for p in parts] == [
        ("s3", ("lstm", "slice-m5"), (0.02,)), ("z5", ("lstm", "slice-m5"), (0.01,)), ("s3", ("mamba2",), (0.005,))
    ]  # fmt: skip
    assert {p.settings.seeds for p in parts} == {(0, 1, 2, 3, 4)}
    parts = read_sweep(write(first))
    assert [(p.task, p.match, p.settings.steps) for p in parts] == [
        ("s3", "params", 1200), ("s3", "state", 1200), ("recall", "params", 4000), ("recall", "state", 4000)
    ]  # fmt: skip


def test_a_grid_of_several_wins_over_what_stands_above(write):
    """Field by field, in a task's table too; a flag wins over all, and may name another task."""
    above = "task = ['s3', 'z5']\nsteps = 40\nlr = 1e-2\n[settings.z5]\nsteps = 50\nlr = 2e-2\n"
    path = write(above + "[[grids]]\nmixers = 'lstm'\nsettings.z5.lr = 3e-2\n[[grids]]\ntask = 's4'\nlr = 4e-2")
    found = [(p.task, p.settings.steps, p.settings.lrs) for p in read_sweep(path)]
    assert found == [("s3", 40, (1e-2,)), ("z5", 50, (3e-2,)), ("s4", 40, (4e-2,))]
    flags = {"task": ("z5",), "lr": (5e-2,)}
    assert [(p.task, p.settings.steps, p.settings.lrs) for p in read_sweep(path, flags)] == [("z5", 50, (5e-2,))] * 2
    yaml = "seeds: 1\ngrids:\n- {task: s3, lr: 1e-2}\n- {task: z5, lr: 2e-2}"
    assert [(p.task, p.settings.lrs) for p in read_sweep(write(yaml, "grid.yaml"))] == [("s3", (1e-2,)), ("z5", (2e-2,))]


YAML_GRID = """
task: [s3, recall]
mixers: [bdlru-m1, bdlru-m4, lstm]
match: [params, state]
seeds: 2
lr: [3e-3, 1e-2]
width: [32, 64]
steps: 40
settings:
  recall: {steps: 400, lr: 1e-3, match: params}
"""


@pytest.mark.parametrize("name", ["grid.yaml", "grid.YML"])
def test_yaml_says_the_same(write, name):
    assert read_sweep(write(YAML_GRID, name)) == read_sweep(write(GRID))


@pytest.mark.parametrize("name, text", [("grid.yaml", YAML_GRID), ("grid.toml", GRID)])
def test_a_file_from_windows_is_read(tmp_path, write, name, text):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_sweep(tmp_path / name) == read_sweep(write(GRID, "plain.toml"))


@pytest.mark.parametrize("field, module", [("mixers", "benchmarks.compare.models"), ("task", "benchmarks.tasks")])
def test_what_breaks_an_import_is_not_called_a_wrong_name(monkeypatch, field, module):
    class Broken:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == module:
                raise ValueError("numpy.dtype size changed")  # as of a numpy that others were not built for

    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken, *sys.meta_path])
    with pytest.raises(ValueError, match=r"^numpy\.dtype size changed$"):
        parse_field(field, "s3", f"--{field}")


@pytest.mark.parametrize(
    "text, where, words",
    [
        ("task: [s3", "grid.yaml", "is not YAML: "),
        ("task: s3\n\twidth: 8", "grid.yaml", "is not YAML: "),
        ("", "grid.yaml", "None is not accepted; expected fields"),
        ("- s3", "grid.yaml", r"\['s3'\] is not accepted; expected fields"),
        ("3: s3", "grid.yaml", "{3: 's3'} is not accepted; expected fields"),
        ("task: !!python/object:os.system x", "grid.yaml", "is not YAML: could not determine a constructor"),
        ("task: s3\nmixers: [lstm, nope]", "grid.yaml: mixers", "'nope' is not known"),
        ("task: s3\nsteps: 8\ntask: s4", "grid.yaml", "is not YAML: 'task' stands there twice"),
        ("task: s3\nsteps:", "grid.yaml: steps", "None is not accepted; expected a whole number"),
        ("task: s3\nsettings: {s4: {steps: 9}}", "grid.yaml: settings", "'s4' is not known"),
    ],
)
def test_errors_in_yaml(write, text, where, words):
    path = write(text, "grid.yaml")
    with pytest.raises(FieldError, match=words) as caught:
        read_sweep(path)
    assert caught.value.where == f"{path.parent}/{where}"


@pytest.mark.parametrize("task", ["s3", "memorization", "compression"])
def test_presets_grow(task):
    quick, cpu, paper = (get_preset(name, task) for name in ("quick", "cpu", "paper"))

    def runs(preset):
        return len(preset.lrs) * len(preset.seeds)

    assert quick.steps < cpu.steps
    assert runs(quick) < runs(cpu)
    assert (quick.width, quick.layers) == (cpu.width, cpu.layers)
    assert cpu.width < paper.width


def test_a_flag_wins_over_the_file(write):
    flags = {"steps": (8,), "task": ("recall",), "width": (16,)}
    (part,) = read_sweep(write(GRID), flags)
    assert (part.task, part.settings.steps, part.settings.width, part.settings.lrs) == ("recall", 8, 16, (1e-3,))


def test_a_table_may_be_of_a_task_that_is_given_beside_the_file(write):
    path = write("[settings.parity]\nsteps = 9\n")
    (part,) = read_sweep(path, {"task": ("parity",)})
    assert part.settings.steps == 9
    with pytest.raises(FieldError, match="'parity' is not known; expected one of its tasks: s3"):
        read_sweep(path, {"task": ("s3",)})


def test_nothing_said_is_the_quick_comparison():
    (part,) = lay_out({}, {}, {})
    assert (part.task, part.match, part.budget, part.mixers) == ("s3", "params", None, DEFAULT_VARIANTS)
    assert (part.settings.steps, part.settings.seeds, part.settings.stop_at) == (1200, (0, 1, 2), 0)


@pytest.mark.parametrize(
    "text, where, words",
    [
        ("task = [", "grid.toml", "is not TOML"),
        ("tasks = ['s3']", "grid.toml", "field 'tasks' is not known; expected some of task, mixers"),
        ("task = ['s3', 's9']", "grid.toml: task", "'s9' is not known; expected one of s2"),
        ("task = 3", "grid.toml: task", "3 is not accepted; expected different names of tasks"),
        ("mixers = ['lstm', 'nope']", "grid.toml: mixers", "'nope' is not known; expected some of bdlru-m1"),
        ("mixers = ['lstm', 'lstm']", "grid.toml: mixers", "expected different names"),
        ("mixers = []", "grid.toml: mixers", "[] is not accepted"),
        ("match = 'flops'", "grid.toml: match", "'flops' is not known; expected one of params, state"),
        ("steps = 0", "grid.toml: steps", "0 is not accepted; expected a whole number greater than 0"),
        ("steps = [8, 9]", "grid.toml: steps", "[8, 9] is not accepted"),
        ("steps = 12.5", "grid.toml: steps", "12.5 is not accepted"),
        ("steps = 2", "steps", "2 is not accepted; expected at least one per length"),
        ("width = [64, 20]", "grid.toml: width", "[64, 20] is not accepted; expected a positive multiple of 8"),
        ("layers = true", "grid.toml: layers", "True is not accepted"),
        ("budget = 'large'", "grid.toml: budget", "'large' is not accepted"),
        ("lr = [1e-3, -1]", "grid.toml: lr", "expected numbers greater than 0"),
        ("lr = nan", "grid.toml: lr", "nan is not accepted"),
        ("seeds = 0", "grid.toml: seeds", "0 is not accepted; expected a count"),
        ("seeds = [0, -1]", "grid.toml: seeds", "a list of numbers from 0 on"),
        ("seeds = 20261127", "grid.toml: seeds", "20261127 is not accepted; expected a count up to 1,000"),
        ("threshold = 2", "grid.toml: threshold", "2 is not accepted; expected an accuracy between 0 and 1"),
        ("stop_at = 1.5", "grid.toml: stop_at", "1.5 is not accepted; expected a token accuracy"),
        ("preset = 'long'", "grid.toml: preset", "'long' is not known; expected one of quick, cpu, paper"),
        ("task = 'z1'", "grid.toml: task", "'z1': n=1 is not supported; expected 2 or more"),
        ("width = 100000000", "grid.toml: width", "expected a positive multiple of 8 up to 16,384"),
        ("budget = 100000000000", "grid.toml: budget", "expected a whole number from 1 to 1,000,000,000"),
        ("schedule = 'step'", "grid.toml: schedule", "'step' is not known; expected one of one-cycle, cosine"),
        (
            "match = ['params', 'state']\nbudget = 99",
            "budget",
            "99 is not accepted with match params,state; expected one rule",
        ),
        (
            "curriculum = 'restarting'",
            "schedule",
            "'one-cycle' is not accepted with curriculum restarting; expected trapezoid",
        ),
        (
            "curriculum = 'louder'\nschedule = 'trapezoid'",
            "readout_noise",
            "0.0 is not accepted with curriculum louder, whose unit it is; expected a level above 0",
        ),
        (
            "preset = 'paper'\ntask = 'recall'\ntokens = 1024",
            "tokens",
            "1024 is not accepted with a set of 12,800 training examples, of which a step takes 128 sequences; expected 0",
        ),
        (
            "preset = 'paper'\ntask = 'recall'\ncurriculum = 'adaptive'",
            "curriculum",
            "'adaptive' is not accepted with a set of 12,800 training examples, as it draws new ones; expected stages",
        ),
        (
            "task = ['s3', 'compression']\ncurriculum = 'adaptive'",
            "curriculum",
            "'adaptive' is not accepted with compression, whose last token is always the same; expected stages",
        ),
        (
            "threshold = 0.5",
            "threshold",
            "0.5 is not accepted with curriculum stages, which has none; expected none, or curriculum adaptive or restarting",
        ),
        ("settings = 3", "grid.toml: settings", "3 is not accepted; expected tables"),
        ("task = 's3'\n[settings.s4]\nsteps = 9", "grid.toml: settings", "'s4' is not known; expected one of its tasks: s3"),
        ("task = 's3'\n[settings.s3]\nsteps = 'x'", "grid.toml: settings.s3: steps", "'x' is not accepted"),
        ("task = 's3'\n[settings.s3]\ntask = 's4'", "grid.toml: settings.s3", "field 'task' is not known"),
        ("grids = 3", "grid.toml: grids", "3 is not accepted; expected tables, each below a line [[grids]]"),
        ("grids = []", "grid.toml: grids", "[] is not accepted; expected tables"),
        ("[[grids]]\nlr = 1\n[[grids]]\nlr = -1", "grid.toml: grids 2: lr", "-1 is not accepted"),
        ("[[grids]]\nrate = 1", "grid.toml: grids 1", "field 'rate' is not known"),
        ("[[grids]]\ntask = 's3'\n[settings.s4]", "grid.toml: settings", "'s4' is not known; expected one of its tasks: s3"),
        ("task = 's4'\n[[grids]]\ntask = 's3'\nsettings.s4.lr = 1", "grid.toml: grids 1: settings", "'s4' is not known"),
    ],
)
def test_errors_name_file_field_value_and_what_is_accepted(write, text, where, words):
    with pytest.raises(FieldError) as caught:
        read_sweep(write(text))
    assert caught.value.where.endswith(where)
    assert words in caught.value.message


@pytest.mark.parametrize(
    "name, taken, refused",
    [
        ("width", (8, 16384), (0, 12, 16392)),
        ("layers", (1,), (0, 1.0)),
        ("weight_decay", (0, 1), (-0.1, 1.1)),
        ("stop_at", (0, 1), (-0.1, 1.1)),
        ("threshold", (0.5,), (0, 1)),
        ("tokens", (0, 64), (-1, 64.0, True)),
        ("readout_noise", (0, 10), (-0.1, 10.1)),
        ("bos", (True, False), ("yes", 1)),
    ],
)
def test_limits(name, taken, refused):
    """The last values that are taken, also as text, and the first that are not."""
    for value in taken:
        assert parse_field(name, str(value), name) == parse_field(name, value, name) == (value,)
    for value in refused:
        with pytest.raises(FieldError, match=f"^{name}: {value!r} is not accepted"):
            parse_field(name, value, name)


def test_a_field_without_effect_is_named_as_it_was_given():
    flags = {"task": ("recall",), "preset": ("paper",)}
    for name, value in (("tokens", 1024), ("curriculum", "adaptive"), ("threshold", 0.5)):
        with pytest.raises(FieldError, match=f"^--{name}: {value!r} is not accepted with"):
            lay_out({**flags, name: (value,)}, {}, {})
    (part,) = lay_out({**flags, "tokens": (0,), "steps": (9,), "curriculum": ("stages",)}, {}, {})
    assert (part.settings.train_examples, part.settings.steps) == (12_800, 9)
    # a preset's curriculum takes a threshold; without that curriculum its tokens hold
    (part,) = lay_out({"preset": ("tracking",), "threshold": (0.9,)}, {}, {})
    assert (part.settings.threshold, part.settings.curriculum) == (0.9, "restarting")
    (part,) = lay_out({"preset": ("tracking",), "curriculum": ("stages",)}, {}, {})
    assert part.settings.tokens == 2048


def test_a_schedule_that_does_not_fit_is_named_as_it_was_given(write):
    """It is what is wrong, also where the curriculum alone was typed."""
    words = "'one-cycle' is not accepted with curriculum louder; expected trapezoid"
    typed, louder = {"schedule": ("one-cycle",)}, {"curriculum": ("louder",)}
    for flags, text, where in (
        (louder, "", "--schedule"),
        ({**louder, **typed}, "", "--schedule"),
        (typed, "curriculum = 'louder'", "--schedule"),
        (louder, "schedule = 'one-cycle'", "schedule"),
        ({}, "curriculum = 'louder'", "schedule"),
    ):
        with pytest.raises(FieldError, match=words) as caught:
            read_sweep(write(text), flags)
        assert caught.value.where == where
    with pytest.raises(FieldError, match=r"^--readout-noise: 0 is not accepted with curriculum louder"):
        lay_out({**louder, "schedule": ("trapezoid",), "readout_noise": (0,)}, {}, {})


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FieldError, match=r"none.toml: cannot be read: No such file"):
        read_sweep(tmp_path / "none.toml")


def test_a_single_number_with_a_comma_is_a_list():
    assert parse_field("seeds", "7,", "--seeds") == (7,)
    assert parse_field("budget", "100,200", "--budget") == (100, 200)


def test_the_command_line_shows_where_the_error_is(write):
    result = CliRunner().invoke(app, ["--grid", str(write("lr = 'fast'"))], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    text = " ".join(result.output.replace("│", " ").split())
    assert "grid.toml: lr: 'fast' is not accepted; expected numbers greater than 0" in text


def test_make_compare_runs_six_mixers_over_three_seeds():
    (part,) = read_sweep(Path(benchmarks.compare.settings.__file__).parent / "first.toml")
    assert (part.task, len(part.mixers), part.settings.seeds) == ("s4", 6, (0, 1, 2))
    assert "--grid benchmarks/compare/first.toml" in Path("Makefile").read_text()


def test_what_a_grid_names_by_itself_is_run_and_rates_are_compared_on_the_seeds_of_all(make_row):
    """Beside a grid of which one seed tries the rates, in either order."""
    settings = replace(get_preset("quick", "s3"), lrs=(1e-2, 1e-4), seeds=(0, 1), tune=1)
    grids = [
        plan("s3", ("lstm",), "params", None, one, "cpu")[0] for one in (settings, replace(settings, lrs=(1e-4,), tune=0))
    ]
    for both in (grids, grids[::-1]):
        cells = merge(both)
        assert {(p.cell.lr, p.cell.seed) for p in narrow(cells, {})[0].values()} == {(1e-2, 0), (1e-4, 0), (1e-4, 1)}
        rows = {key: {**make_row("lstm", 0.9 if p.cell.lr == 1e-2 else 0.5), **vars(p.cell)} for key, p in cells.items()}
        rows = {key: row | {"validation_token_accuracy": 0.9 if row["lr"] == 1e-2 else 0.5} for key, row in rows.items()}
        del rows[next(key for key, p in cells.items() if (p.cell.lr, p.cell.seed) == (1e-2, 1))]
        assert {(p.cell.lr, p.cell.seed) for p in narrow(cells, rows)[0].values()} >= {(1e-2, 1)}
