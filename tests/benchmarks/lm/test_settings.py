"""Settings: files, changes from the command line, and what wrong input is told."""

import pytest

from benchmarks.lm.settings import Entry, load_settings, presets

PAPER = {"bdlru-m1": (1, 2112), "bdlru-m2": (2, 844), "bdlru-m4": (4, 302), "bdlru-m8": (8, 96), "bdlru-m16": (16, 28)}


def test_the_published_settings():
    settings = load_settings("paper-140m")
    assert {e.name: (e.mixer_config["block_size"], e.mixer_config["num_blocks"]) for e in settings.mixers} == PAPER
    assert all(entry.mixer == "bdlru" for entry in settings.mixers)
    assert (settings.model["hidden_size"], settings.model["num_hidden_layers"]) == (768, 12)
    assert settings.model["intermediate_size"] == 768 * 8 // 3
    assert (settings.data.dataset, settings.data.length) == ("HuggingFaceFW/fineweb-edu", 2048)
    assert settings.training.lr == 6e-3
    assert settings.training.warmup_steps > 0
    assert settings.eval_lengths == (2048, 4096, 8192, 16384)


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads(name):
    assert load_settings(name).mixers


def test_changes_are_toml_values_or_bare_words():
    changes = ("training.lr=1e-2", "data.dataset=pydoc", "training.seeds=[3, 4]", "model.num_heads=2", 'match="state"')
    settings = load_settings("quick", changes)
    assert (settings.training.lr, settings.data.dataset, settings.training.seeds) == (1e-2, "pydoc", (3, 4))
    assert (settings.model["num_heads"], settings.match) == (2, "state")
    assert settings.training.steps == load_settings("quick").training.steps


def test_mixers_are_chosen_from_the_preset_or_by_variant():
    chosen = load_settings("paper-140m").select(("lstm", "bdlru-m8"))
    assert chosen.mixers[0] == Entry("lstm")
    assert chosen.mixers[1].mixer_config == {"block_size": 8, "num_blocks": 96}


def test_a_file_of_the_users(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        mixers = ["lstm", {name = "hybrid", mixer = ["bdlru", "native"], mixer_config = [{block_size = 2}, {}]}]
        [model]
        type = "gla"
        [training]
        weight_decay = 1
        """
    )
    settings = load_settings(str(path))
    assert settings.mixers[1].mixer == ("bdlru", "native")
    assert settings.mixers[1].mixer_config == ({"block_size": 2}, {})
    assert settings.training.weight_decay == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ("training.lrr=1", r"training\.lrr is not known; expected some of steps, .*lr"),
        ("data.length=long", r"data\.length='long' is not accepted; expected int"),
        ("data.length=1", r"data\.length=1 is not accepted.*greater than 1"),
        ("data.validation_tokens=0", r"data\.validation_tokens=0.*greater than 0"),
        ("training.steps=0", r"training\.steps=0.*greater than 0"),
        ("training.steps=true", r"training\.steps=True.*expected int"),
        ("training.lr=-1.0", r"training\.lr=-1.0.*greater than 0"),
        ("training.lr=nan", r"training\.lr=nan.*greater than 0"),
        ("training.lr=inf", r"training\.lr=inf is not accepted; expected a finite number greater than 0"),
        ("training.clip=inf", r"training\.clip=inf is not accepted; expected a finite number"),
        ("training.weight_decay=inf", r"training\.weight_decay=inf is not accepted; expected a finite number from 0 on"),
        ("training.min_lr_ratio=inf", r"training\.min_lr_ratio=inf is not accepted; expected a number from 0 to below 1"),
        ("training.warmup_steps=301", r"training\.warmup_steps=301.*up to training\.steps=300"),
        ("training.precision=fp8", r"training\.precision='fp8'.*auto, fp32, bf16"),
        ("training.keep=1", r"training\.keep=1.*at least 2"),
        ("training.beta2=1.0", r"training\.beta2=1.0.*below 1"),
        ("training.seeds=[]", r"training\.seeds=\[\].*different whole numbers"),
        ("training.seeds=[1, 1]", r"training\.seeds=\[1, 1\].*different whole numbers"),
        ("evaluation.multiples=3", r"=3 is not accepted; expected rising whole numbers from 1 on, such as \[1, 2, 4\]\.$"),
        ("training.seeds=3", r"=3 is not accepted; expected different whole numbers from 0 on, such as \[0, 1\]\.$"),
        (
            'mixers=[{name = "a", mixer = 3}]',
            r"=3 is not accepted; expected str or a list of strings, such as \[.*\]\.$",
        ),
        (
            'mixers=[{name = "a", mixer_config = 3}]',
            r"=3 is not accepted; expected dict or a list of tables, such as \[{.*}\]\.$",
        ),
        ("budget=x", r"budget='x' is not accepted; expected int\.$"),
        ("evaluation.multiples=[2, 1]", r"evaluation\.multiples=\[2, 1\].*rising"),
        ("mixers=[]", r"mixers=\[\].*at least one"),
        ("mixers=5", r"mixers=5 is not accepted; expected a list"),
        ('mixers=["lstm", "lstm"]', r"different names"),
        ('mixers=[{mixer = "lstm"}]', r"mixers\[0\] lacks a name"),
        ('mixers=[{name = "a", size = 3}]', r"mixers\[0\]\.size is not known"),
        ("match=flops", r"match='flops'.*params, state"),
        ("model=5", r"model=5 is not accepted"),
        ("model.type=5", r"model\.type=5.*FLA's model types"),
        ("data=5", r"data=5 is not accepted; expected a table"),
        ("nonsense", r"set='nonsense' is not accepted; expected section\.field=value"),
        ("match.deeper=1", r"match has no fields"),
    ],
)
def test_wrong_values_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        load_settings("quick", (change,))


def test_unknown_presets_and_broken_files(tmp_path):
    with pytest.raises(ValueError, match=r"preset='slow' is not there; expected one of paper-140m, quick, or a \.toml file"):
        load_settings("slow")
    (tmp_path / "broken.toml").write_text("[model")
    with pytest.raises(ValueError, match="is not TOML"):
        load_settings(str(tmp_path / "broken.toml"))
