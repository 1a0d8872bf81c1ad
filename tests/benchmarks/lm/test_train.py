"""One run: the optimiser's schedule and groups, accumulation, learning, checkpoints."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.compare.models import quiet
from benchmarks.lm import train as module
from benchmarks.lm.models import settle
from benchmarks.lm.plan import make_runs, prepare_corpus
from benchmarks.lm.report import CURVE_COLUMNS
from benchmarks.lm.settings import load_settings
from benchmarks.lm.train import COMPLETE, curve, last_checkpoint, micro_batch, train, wants_bf16

quiet()
SMALL = (
    'mixers=["bdlru-m4"]', "model.hidden_size=32", "model.intermediate_size=64", "data.dataset=pydoc", "data.length=32",
    "data.validation_tokens=3000", "evaluation.tokens=512", "training.steps=12", "training.warmup_steps=4",
    "training.batch_size=8", "training.log_every=1", "training.eval_every=6", "training.save_every=6",
)  # fmt: skip


def run(out, *changes):
    settings = settle(load_settings("quick", SMALL + changes))
    corpus = prepare_corpus(settings, Path(out), lambda line: None)
    (chosen,) = make_runs(settings, corpus, 1)
    return chosen, corpus


def trained(out, *changes):
    chosen, corpus = run(out, *changes)
    return train(chosen, corpus, Path(out), "cpu", say=lambda line: None)


def column(result, name):
    i = CURVE_COLUMNS.index(name)
    return [point[i] for point in result["curve"] if point[i] != ""]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("plain"))


def test_it_learns_and_reports(plain):
    losses = column(plain, "loss")
    assert len(losses) == 12
    assert losses[0] == pytest.approx(math.log(256), abs=0.1)
    assert losses[-1] < losses[0] - 0.3
    assert column(plain, "validation_loss")[-1] == plain["validation_loss"] == pytest.approx(plain["losses"][0])
    assert len(plain["losses"]) == 4
    assert plain["scored"] == 512
    assert [last for last, _ in plain["positions"]] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert column(plain, "tokens")[-1] == 12 * 8 * 32
    seconds = column(plain, "seconds")
    assert seconds == sorted(seconds)
    assert not plain["diverged"]


def test_the_schedule_is_warm_up_and_cosine(plain, tmp_path):
    def expected(step, floor):  # step counts from 0
        if step < 4:
            return 3e-3 * step / 4
        return 3e-3 * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - 4) / 8)))

    assert column(plain, "lr") == pytest.approx([expected(step, 0.0) for step in range(12)])
    lower = trained(tmp_path, "training.min_lr_ratio=0.1", "training.eval_every=12", "evaluation.multiples=[1]")
    assert column(lower, "lr") == pytest.approx([expected(step, 0.1) for step in range(12)])


def test_accumulation_gives_the_losses_of_the_whole_batch(plain, tmp_path):
    split = trained(tmp_path, "training.micro_batch_size=2")
    torch.testing.assert_close(column(split, "loss"), column(plain, "loss"), rtol=1e-5, atol=0)
    torch.testing.assert_close(column(split, "grad_norm"), column(plain, "grad_norm"), rtol=1e-4, atol=0)
    assert split["losses"] == pytest.approx(plain["losses"], rel=1e-5)


def test_a_model_is_not_asked_to_count_tokens(tmp_path, monkeypatch):
    """The Trainer would leave the mean over micro-batches to the model, and not every model's loss takes the count."""
    seen = set()

    def build(config, original=module.build_model):
        model = original(config)
        model.register_forward_pre_hook(lambda m, args, kwargs: seen.update(kwargs), with_kwargs=True)
        return model

    monkeypatch.setattr(module, "build_model", build)
    trained(tmp_path, "training.micro_batch_size=2", "training.steps=2", "training.warmup_steps=1")
    assert {"input_ids", "labels"} <= seen
    assert "num_items_in_batch" not in seen


def test_bf16_autocast_trains(plain, tmp_path):
    half = trained(tmp_path, "training.precision=bf16")
    assert half["precision"] == "bf16"
    assert column(half, "loss") != column(plain, "loss")
    assert half["losses"] == pytest.approx(plain["losses"], rel=0.01)


def test_a_seed_sets_weights_and_order(plain, tmp_path):
    other = trained(tmp_path, "training.seeds=[1]", "training.steps=4")
    assert column(other, "loss")[0] != column(plain, "loss")[0]


def test_the_model_is_saved_and_gives_the_losses(tmp_path):
    chosen, corpus = run(tmp_path, "training.steps=4")
    result = train(chosen, corpus, tmp_path, "cpu", say=lambda line: None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / chosen.key)
    assert model.config.mixer == "bdlru"
    tokens = torch.from_numpy(corpus.validation[:513].astype("int64"))
    losses = []
    for start in range(0, 512, 32):
        window = tokens[start : start + 33]
        with torch.no_grad():
            logits = model(input_ids=window[None, :-1]).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:]).item())
    assert sum(losses) / len(losses) == pytest.approx(result["losses"][0], rel=1e-5)


def test_matrices_alone_are_decayed(tmp_path):
    seen = {}

    class Look(module.TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
            names = {id(p): name for name, p in model.named_parameters()}
            for group in optimizer.param_groups:
                seen[group["weight_decay"]] = {names[id(p)] for p in group["params"]}

    original = module.PrintProgress
    module.PrintProgress = lambda *_: Look()
    try:
        trained(tmp_path, "training.steps=1", "training.warmup_steps=0", 'mixers=["mamba2"]', "training.weight_decay=0.2")
    finally:
        module.PrintProgress = original
    decayed, spared = seen[0.2], seen[0.0]
    assert {"model.embeddings.weight", "model.layers.0.attn.in_proj.weight", "lm_head.weight"} <= decayed
    assert {f"model.layers.1.attn.{name}" for name in ("A_log", "D", "dt_bias")} <= spared
    assert "model.norm.weight" in spared


def test_a_loss_that_is_not_finite_shows(tmp_path):
    result = trained(tmp_path, "training.lr=1e30", "training.clip=1e30", "training.warmup_steps=0")
    assert result["diverged"]


def test_an_incomplete_checkpoint_is_not_used(tmp_path):
    chosen, corpus = run(tmp_path)
    said = []
    train(chosen, corpus, tmp_path, "cpu", say=said.append)
    folder = tmp_path / "checkpoints" / chosen.key
    assert last_checkpoint(folder).name == "checkpoint-12"
    assert (folder / "checkpoint-6" / COMPLETE).exists()
    weights = load_file(tmp_path / "models" / chosen.key / "model.safetensors")
    (folder / "checkpoint-12" / COMPLETE).unlink()
    (folder / "checkpoint-12" / "model.safetensors").write_bytes(b"cut")
    train(chosen, corpus, tmp_path, "cpu", say=said.append)
    assert [line for line in said if "goes on from" in line] == [f"{chosen.title}: goes on from {folder / 'checkpoint-6'}"]
    again = load_file(tmp_path / "models" / chosen.key / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_curve_joins_what_was_logged_at_a_step():
    history = [
        {"step": 1, "loss": 2.0, "learning_rate": 0.1, "grad_norm": 1.0, "seconds": 1.0},
        {"step": 2, "loss": 1.5, "learning_rate": 0.2, "grad_norm": 0.5, "seconds": 2.0},
        {"step": 2, "eval_loss": 1.7, "seconds": 3.0},
        {"step": 2, "train_runtime": 3.0, "seconds": 3.1},
    ]
    assert curve(history, 10) == [(1, 10, 0.1, 2.0, 1.0, "", 1.0), (2, 20, 0.2, 1.5, 0.5, 1.7, 3.1)]


@pytest.mark.parametrize(
    "batch, wanted, processes, split", [(16, None, 1, (16, 1)), (16, None, 4, (4, 1)), (16, 2, 4, (2, 2)), (4, 16, 2, (2, 1))]
)
def test_a_batch_is_split(batch, wanted, processes, split):
    assert micro_batch(batch, wanted, processes) == split


@pytest.mark.parametrize("batch, wanted, processes", [(16, None, 3), (16, 3, 1), (2, None, 4)])
def test_a_batch_that_does_not_divide_is_refused(batch, wanted, processes):
    with pytest.raises(ValueError, match=f"training.batch_size={batch} is not a multiple of"):
        micro_batch(batch, wanted, processes)


def test_precision(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert wants_bf16("auto", "cuda")
    assert wants_bf16("bf16", "cpu")
    assert not wants_bf16("auto", "cpu")
    assert not wants_bf16("fp32", "cuda")


def test_keys_change_with_what_matters(tmp_path):
    key = run(tmp_path)[0].key
    same = ("training.micro_batch_size=2", "training.save_every=3", "training.keep=5")
    other = ("training.lr=1e-2", "data.validation_tokens=4000", "model.num_heads=2", "training.seeds=[1]", 'mixers=["lstm"]')
    assert run(tmp_path, *same)[0].key == key
    keys = {run(tmp_path, change)[0].key for change in other}
    assert len(keys) == len(other)
    assert key not in keys
