"""Training cells: the same data for every mixer, reproducible numbers, scores that count what they say."""

import hashlib
import json
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
import small_cell
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from benchmarks.compare import recipe, train
from benchmarks.compare.recipe import BORNE, CHECK, FADED, FALL, GROWTH, HELD, LOUDEST, PATIENCE, Curriculum, noisy
from benchmarks.compare.train import LAST, batches, score, train_cell
from benchmarks.records.cell import LATER
from benchmarks.tasks import IGNORE, get_task
from benchmarks.tasks.base import Begun
from fla_bdlru import BDLRU

CELL = replace(
    small_cell.CELL,
    variant="bdlru-m2",
    mixer_args={"block_size": 2, "num_blocks": 8},
    lengths=(4, 8),
    eval_lengths=(8, 16),
    steps=12,
    eval_examples=32,
)


def data(cell):
    return list(batches(get_task(cell.task), cell))


def same(a, b):
    return all(torch.equal(x, y) for first, second in zip(a, b) for x, y in zip(first, second))


def test_data_depend_on_task_and_seed_alone():
    other_mixer = replace(CELL, mixer="lstm", mixer_args={}, variant="lstm", width=32, lr=1e-3)
    assert same(data(CELL), data(other_mixer))
    assert not same(data(CELL), data(replace(CELL, seed=1)))


def test_lengths_come_in_turn():
    assert [x.shape for x, _ in data(CELL)] == [(8, 4)] * 6 + [(8, 8)] * 6


def test_a_finite_training_set_is_visited_once_an_epoch():
    cell = replace(CELL, lengths=(16,), train_examples=40, steps=10)
    seen = [tuple(row) for x, _ in data(cell) for row in x.tolist()]
    first, second = seen[:40], seen[40:]
    assert len(set(first)) == 40
    assert set(first) == set(second)
    assert first != second


def test_key_covers_every_field_but_the_label():
    changes = {
        "task": "s4",
        "mixer": "hlru",
        "mixer_args": {"block_size": 2, "num_blocks": 9},
        "lengths": (4, 9),
        "eval_lengths": (8,),
        "schedule": "cosine",
        "curriculum": "adaptive",
        "bos": True,
    }
    for name in CELL.__dataclass_fields__:
        value = changes.get(name, "x" if name == "variant" else None)
        other = replace(CELL, **{name: value if value is not None else getattr(CELL, name) + 1})
        assert (other.key == CELL.key) == (name == "variant"), name


def test_score_counts_tokens_and_whole_sequences():
    targets = torch.tensor([[0, 1, IGNORE], [1, 1, 0], [IGNORE, 2, IGNORE]])
    guesses = torch.tensor([[0, 1, 2], [1, 0, 0], [0, 2, 0]])
    logits = torch.nn.functional.one_hot(guesses, 3).float() * 50
    right, asked, sequences, loss = score(logits, targets)
    assert (right, asked, sequences) == (5, 6, 2)
    assert loss == pytest.approx(50, rel=1e-4)


def test_training_is_reproducible_and_reports():
    reports = []
    first = train_cell(CELL, report=lambda *numbers: reports.append(numbers))
    second = train_cell(CELL)
    for name in ("params", "scores", "validation", "train_loss", "curve"):
        assert first[name] == second[name], name
    assert [step for step, _, _ in reports] == list(range(1, 13))
    assert [point[1] for point in first["curve"]] == [4] * 6 + [8] * 6
    assert train_cell(replace(CELL, seed=1))["train_loss"] != first["train_loss"]


def test_later_fields_leave_older_keys_alone():
    spec = {name: value for name, value in vars(CELL).items() if name not in ("variant", *LATER)}
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
    assert CELL.key == digest


def test_an_adaptive_curriculum_trains_the_longest_length_last_and_reproduces():
    cell = replace(CELL, task="s2", lengths=(2, 3, 4), curriculum="adaptive", tokens=64, bos=True, schedule="trapezoid")
    cell = replace(cell, mixer_args={"block_size": 2, "num_blocks": 8}, steps=300, lr=1e-2, readout_noise=0.5)
    first, second = train_cell(cell), train_cell(cell)
    assert first["curve"] == second["curve"]
    lengths = [point[1] - 1 for point in first["curve"]]
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (2, 4)
    assert first["scores"][0]["token_accuracy"] > 0.95
    quiet = train_cell(replace(cell, readout_noise=0.0))
    assert quiet["train_loss"] != first["train_loss"]
    lrs = [point[2] for point in first["curve"]]
    assert max(lrs) == 1e-2
    assert lrs[-1] < 1e-3
    never = train_cell(replace(cell, threshold=2.0, steps=40))
    assert {point[1] for point in never["curve"]} == {3}


def test_tokens_of_a_step_are_constant_and_bos_comes_first():
    cell = replace(CELL, lengths=(4, 16), tokens=128, steps=2)
    task = Begun(get_task("s3"))
    assert [tuple(x.shape) for x, _ in batches(task, cell)] == [(32, 5), (8, 17)]
    for x, y in batches(task, cell):
        assert (x[:, 0] == 6).all()
        assert (y[:, 0] == IGNORE).all()


def test_noise_is_relative_and_only_while_training():
    layer, x = BDLRU(16), torch.randn(2, 200, 16)
    clean = layer(x)[0]
    with noisy([layer]) as noise:
        assert torch.equal(layer(x)[0], clean)
        noise.level = 0.5
        rms = clean.square().mean(-1, keepdim=True).sqrt()
        assert ((layer(x)[0] - clean) / rms).std().item() == pytest.approx(0.5, rel=0.05)
        assert torch.equal(layer.eval()(x)[0], clean)
    assert torch.equal(layer.train()(x)[0], clean)


def test_noise_has_no_gradient_of_its_own():
    """Its size is what it is: a layer is not pushed to say less."""
    layer, x, weight = BDLRU(8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    with noisy([layer]) as noise:
        grads = []
        for noise.level in (0.0, 0.7):
            grads.append(torch.autograd.grad((layer(x)[0] * weight).sum(), list(layer.parameters())))
    torch.testing.assert_close(*grads)


def test_noise_is_drawn_again_by_checkpointing():
    layer, x = BDLRU(16), torch.randn(2, 5, 16, requires_grad=True)
    grads = []
    with noisy([layer]) as noise:
        noise.level = 1.0
        for run in (lambda x: layer(x)[0], lambda x: checkpoint(lambda x: layer(x)[0], x, use_reentrant=False)):
            torch.manual_seed(7)
            grads.append(torch.autograd.grad(run(x).square().sum(), x)[0])
    assert torch.equal(*grads)


def test_noise_is_compiled_with_the_layer_and_follows_its_level():
    torch._dynamo.reset()
    layer, x = BDLRU(16), torch.randn(2, 5, 16, requires_grad=True)
    graphs = CompileCounterWithBackend("aot_eager")
    with noisy([layer]) as noise:
        compiled = torch.compile(lambda x: layer(x)[0], backend=graphs, fullgraph=True)
        for noise.level, noise.is_loud in ((0.0, False), (0.3, False), (0.5, False), (0.7, False), (0.9, False), (0.9, True)):
            runs = []
            for run in (lambda x: layer(x)[0], compiled):
                torch.manual_seed(7)
                o = run(x)
                runs.append((o, *torch.autograd.grad(o.square().sum(), x)))
            torch.testing.assert_close(*runs)
        layer.eval()
        torch.testing.assert_close(compiled(x), layer(x)[0])
    assert graphs.frame_count <= 5  # silent, a level, any level, loud, eval


def test_curriculum_moves_when_a_length_is_learned_and_noise_grows_at_the_last():
    curriculum, seen = Curriculum((2, 4, 8), threshold=0.9, noise=2.0), []
    for accuracy in [0.8] * 20 + [1.0] * 60:
        seen.append((curriculum.length, curriculum.noise))
        curriculum.look(accuracy)
    assert seen[:21] == [(2, 0.6)] * 21  # 2 * START
    assert [length for length, _ in seen] == sorted(length for length, _ in seen)
    rising = [noise for length, noise in seen if length == 8]
    assert rising == sorted(rising)
    assert rising[0] == 0.6
    assert rising[-1] == 2.0
    curriculum.look(0.0)
    assert curriculum.noise == 2.0


def test_loud_noise_is_as_loud_as_the_first_token_where_a_state_fades():
    class Fades(torch.nn.Module):
        def forward(self, x):
            return x * 0.5 ** torch.arange(x.shape[1])[:, None], None

    layer, x = Fades().eval(), torch.ones(1, 5, 4096)
    with noisy([layer]) as noise:
        noise.loud = 0.3
        added = layer(x)[0] - 0.5 ** torch.arange(5)[:, None]
    torch.testing.assert_close(added.std(-1)[0], torch.full((5,), 0.3), rtol=0.1, atol=0)


def test_a_state_fades_if_it_is_drowned_at_a_longer_length_many_looks_in_a_row():
    curriculum = Curriculum((2, 3, 12), threshold=0.9, noise=1.0, restarts=True)
    assert not any(curriculum.fades(0.0) for _ in range(50))  # short
    while curriculum.length < 3:
        curriculum.look(1.0)
    looks = [0.0] * (PATIENCE - 1) + [FADED] + [0.0] * PATIENCE
    assert [curriculum.fades(accuracy) for accuracy in looks] == [False] * (len(looks) - 1) + [True]
    curriculum.start()
    assert (curriculum.length, curriculum.running, curriculum.faded) == (2, 0.0, 0)


def test_a_state_holds_if_it_is_told_in_full_noise_many_looks_in_a_row():
    curriculum = Curriculum((2, 3), threshold=0.9, noise=1.0, restarts=True)
    assert not any(curriculum.holds(1.0) for _ in range(50))  # noise has not grown
    while curriculum.share < 1.0:
        curriculum.look(1.0)
    looks = [1.0] * (PATIENCE - 1) + [HELD] + [1.0] * PATIENCE
    assert [curriculum.holds(accuracy) for accuracy in looks] == [False] * (len(looks) - 1) + [True]
    curriculum.start()
    assert curriculum.held == 0


def test_louder_noise_grows_while_it_is_borne_and_falls_where_it_drowns():
    curriculum = Curriculum((2, 3), threshold=0.9, noise=2.0, restarts=True, louder=True)
    while not curriculum.learned:
        assert not curriculum.is_loud
        curriculum.look(1.0)
    for _ in range(50):
        curriculum.look(1.0)
    assert (curriculum.noise, curriculum.is_loud) == (0.6, True)  # it waits for what is told in it
    curriculum.bear(1.0, 1.0)
    assert curriculum.noise == pytest.approx(0.6 * GROWTH)
    for in_noise, in_loud, factor in ((BORNE, 1.0, 1.0), (0.0, HELD, 1.0), (0.0, 1.0, FALL)):  # HELD: a state that may fade
        before = curriculum.noise
        curriculum.bear(in_noise, in_loud)
        assert curriculum.noise == pytest.approx(factor * before)
    assert curriculum.held == 2
    curriculum.bear(1.0, 1.0)
    assert curriculum.held == 1
    assert not curriculum.holds(1.0)
    for _ in range(PATIENCE - 1):
        assert not curriculum.holds(1.0)
        curriculum.bear(BORNE, 1.0)
    assert curriculum.holds(0.0)
    curriculum.start()
    assert (curriculum.learned, curriculum.held, curriculum.noise, curriculum.is_loud) == (False, 0, 0.6, False)
    for level in (2.0, 0.09):  # 8 / 0.09 * 0.09 is not 8
        curriculum = Curriculum((2, 3), threshold=0.9, noise=level, restarts=True, louder=True)
        for _ in range(100):
            curriculum.bear(1.0, 1.0)
        assert curriculum.noise == pytest.approx(LOUDEST)
        assert curriculum.holds(1.0)  # louder it will not get


def test_louder_noise_is_that_of_the_loudest_token_for_all():
    class Fades(torch.nn.Module):
        def forward(self, x):
            return x * 0.5 ** torch.arange(x.shape[1])[:, None], None

    layer, x = Fades(), torch.ones(1, 5, 4096)
    clean = layer(x)[0]
    with noisy([layer]) as noise:
        noise.level = 0.3
        torch.testing.assert_close((layer(x)[0] - clean).std(-1)[0], 0.3 * 0.5 ** torch.arange(5), rtol=0.1, atol=0)
        noise.is_loud = True
        torch.testing.assert_close((layer(x)[0] - clean).std(-1)[0], torch.full((5,), 0.3), rtol=0.1, atol=0)
        assert torch.equal(layer.eval()(x)[0], clean)


@pytest.mark.parametrize("is_loud", [False, True])
def test_gradients_know_that_loud_noise_comes_from_the_loudest_token(is_loud):
    """Else nothing speaks against a copy of the state that is said early and leaks: it costs those that keep it nothing."""
    x = torch.randn(1, 4, 8) * torch.tensor([1.0, 9.0, 1.0, 1.0])[:, None]
    x.requires_grad_()
    mixer = torch.nn.Identity()
    mixer.forward = lambda x: (x, None)
    with noisy([mixer]) as noise:
        noise.level, noise.is_loud = 0.5, is_loud
        (gradient,) = torch.autograd.grad(mixer(x)[0][:, -1].sum(), x)
    loudest, last = gradient[0, 1], gradient[0, -1]
    assert not gradient[0, [0, 2]].any()
    torch.testing.assert_close(last, torch.ones(8))
    if is_loud:
        torch.testing.assert_close(loudest / x[0, 1], (loudest / x[0, 1])[:1].expand(8))  # along what it says
    assert bool(loudest.any()) == is_loud


def test_loud_noise_of_silence_has_gradients():
    x = torch.zeros(1, 4, 8, requires_grad=True)
    mixer = torch.nn.Identity()
    mixer.forward = lambda x: (x, None)
    with noisy([mixer]) as noise:
        noise.level, noise.is_loud = 0.5, True
        (gradient,) = torch.autograd.grad(mixer(x)[0].sum(), x)
    torch.testing.assert_close(gradient, torch.ones(1, 4, 8))


def test_a_run_trains_in_noise_as_loud_as_it_bears(monkeypatch):
    """It ends where noise is no longer borne and no state fades; with noise of its own unit alone."""
    levels = []

    def accuracy(*_):
        levels.append((noises[-1].level, noises[-1].is_loud))
        return 0.9 if noises[-1].loud > 1.0 else 1.0

    @contextmanager
    def remember(mixers):
        with noisy(mixers) as noise:
            noises.append(noise)
            yield noise

    noises = []
    monkeypatch.setattr(train, "_last_accuracy", accuracy)
    monkeypatch.setattr(train, "noisy", remember)
    cell = replace(CELL, task="z3", lengths=(2, 3), schedule="trapezoid", curriculum="louder", tokens=32, steps=1200)
    cell = replace(cell, readout_noise=1.0)
    result = train_cell(cell)
    assert result["restarts"] == 0
    assert result["steps_done"] < 1200
    assert levels[0] == (0.3, False)
    assert max(levels) == (pytest.approx(1.0, rel=GROWTH - 1), True)
    for name, value in (("readout_noise", 0), ("schedule", "cosine")):
        with pytest.raises(ValueError, match=f"{name}={value!r} is not accepted with curriculum='louder'"):
            train_cell(replace(cell, **{name: value}))


def test_a_restarting_curriculum_moves_faster():
    def looks(restarts: bool) -> int:
        curriculum, count = Curriculum((2, 4), 0.95, 1.0, restarts), 0
        while curriculum.length == 2:
            curriculum.look(1.0)
            count += 1
        return count

    assert looks(True) < looks(False)


def test_a_run_whose_state_fades_draws_its_weights_anew(monkeypatch):
    # an accuracy of 1 under noise, which is full at once, after one as by chance, twice
    monkeypatch.setattr(recipe, "START", 1.0)
    told = iter([0.0] * 2 * PATIENCE)
    monkeypatch.setattr(train, "_last_accuracy", lambda *_: next(told, 1.0) if noises[-1].loud else 1.0)
    noises, drawn = [], []

    @contextmanager
    def remember(mixers):
        with noisy(mixers) as noise:
            noises.append(noise)
            drawn.append(mixers[0].v_proj.weight.detach().clone())
            yield noise

    monkeypatch.setattr(train, "noisy", remember)
    cell = replace(CELL, task="z3", lengths=(2, 3), schedule="trapezoid", curriculum="restarting", tokens=32, steps=600)
    result = train_cell(replace(cell, initializer_range=0.5))
    assert result["restarts"] == len(drawn) - 1 == 2
    assert result["steps_done"] == CHECK * 3 * PATIENCE + 600 * LAST
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])
    assert drawn[2].std().item() == pytest.approx(0.5, rel=0.2)
    lengths, lrs = ([point[i] for point in result["curve"]] for i in (1, 2))
    falls = [i for i, (a, b) in enumerate(pairwise(lengths), 1) if b < a]
    assert len(falls) == 2
    assert all(lrs[i] < cell.lr for i in falls)  # it warms up again
    assert lrs[-1] < cell.lr / 10
    assert max(lrs) == cell.lr
    assert train_cell(replace(cell, steps=200))["restarts"] == 0  # what was told before has been used up
    with pytest.raises(ValueError, match="schedule='cosine' is not accepted with curriculum='restarting'; expected trapezoid"):
        train_cell(replace(cell, schedule="cosine"))


@pytest.mark.parametrize("other", [{"tokens": 32}, {"curriculum": "adaptive"}])
def test_a_finite_training_set_goes_with_stages_of_whole_batches(other):
    with pytest.raises(ValueError, match=r"^train_examples=40 is not accepted with tokens=.* and curriculum=.*; expected 0"):
        train_cell(replace(CELL, train_examples=40, **other))


def test_a_curriculum_is_refused_where_the_last_answer_is_always_the_same():
    with pytest.raises(ValueError, match=r"curriculum='adaptive' is not accepted with compression.*; expected 'stages'"):
        train_cell(replace(CELL, task="compression", curriculum="adaptive"))


def test_a_run_that_diverges_stops():
    result = train_cell(replace(CELL, lr=1e38, steps=200))
    assert result["diverged"]
    assert result["steps_done"] == CHECK
    assert result["curve"][-1][0] == CHECK


def test_a_run_that_diverges_begins_anew_while_steps_are_left(monkeypatch):
    lost, steps, loss = {CHECK, 80}, iter(range(-1, 10**6)), train._loss  # two lengths are tried before step 1
    monkeypatch.setattr(train, "_loss", lambda *args: loss(*args) * (float("nan") if next(steps) in lost else 1.0))
    monkeypatch.setattr(train, "_last_accuracy", lambda *_: 0.5)  # neither fades nor holds
    cell = replace(CELL, task="z3", lengths=(2, 3), schedule="trapezoid", curriculum="restarting", tokens=32, steps=100)
    result = train_cell(cell)
    assert result["restarts"] == 1
    assert result["steps_done"] == 80  # too late for another
    assert result["diverged"]
    lost.discard(80)
    steps = iter(range(-1, 10**6))
    result = train_cell(cell)
    assert (result["restarts"], result["steps_done"], result["diverged"]) == (1, 100, False)


def test_training_learns():
    cell = replace(CELL, task="s2", lengths=(4,), eval_lengths=(4,), steps=150, batch_size=32)
    result = train_cell(cell)
    assert result["scores"][0]["token_accuracy"] > 0.9
    assert result["curve"][-1][3] < result["curve"][0][3]


def test_compression_is_learned_through_the_autoencoder():
    # two tokens of seven fit into a state of 16: the encoder has to carry the first one to the last position
    cell = replace(CELL, task="compression", mixer="lstm", mixer_args={"num_channels": 16}, lengths=(3,), eval_lengths=(3,))
    result = train_cell(replace(cell, steps=300, batch_size=64, lr=1e-2))
    assert result["scores"][0]["token_accuracy"] > 0.8
    guessing = train_cell(replace(cell, steps=1))["scores"][0]["token_accuracy"]
    assert guessing < 0.5


def test_memorization_is_learned_from_a_finite_set_and_holds_for_other_sequences():
    cell = replace(CELL, task="memorization", width=32, mlp_width=64, lengths=(32,), eval_lengths=(32, 64))
    result = train_cell(replace(cell, train_examples=64, batch_size=32, steps=150, lr=1e-2))
    assert all(scores["token_accuracy"] > 0.9 for scores in result["scores"])


def test_a_solved_task_ends_early_and_one_that_is_not_does_not():
    cell = replace(CELL, task="s2", lengths=(2, 4), eval_lengths=(4,), steps=200, batch_size=32, lr=1e-2)
    full, early = train_cell(cell), train_cell(replace(cell, stop_at=0.95))
    assert full["steps_done"] == 200
    assert 100 < early["steps_done"] < 200  # not before the longest length is trained on
    assert early["validation"] >= 0.95
    assert early["curve"] == full["curve"][: len(early["curve"])]
    hopeless = train_cell(replace(cell, stop_at=1.0, steps=40))
    assert hopeless["steps_done"] == 40


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("task, ends", [("recall", 3), ("noisy_recall", 3), ("fuzzy_recall", 3), ("s3", 4)])
def test_recall_ends_early_by_validation_at_the_longest_length(monkeypatch, task, ends, bos):
    """However many tokens its sequences have, and though its batches ask for tokens that nobody can know."""
    monkeypatch.setattr(train, "evaluate", lambda *_: {"token_accuracy": 1.0})
    cell = replace(CELL, task=task, lengths=(22, 24), eval_lengths=(24,), steps=4, stop_at=0.999, bos=bos)
    assert train_cell(cell)["steps_done"] == ends


def test_recall_that_is_solved_ends_early():
    cell = replace(CELL, task="recall", lengths=(4,), eval_lengths=(4,), steps=400, batch_size=64, lr=2e-2, stop_at=0.99)
    cell = replace(cell, mixer="lstm", mixer_args={"num_channels": 16})
    result = train_cell(cell)
    assert result["steps_done"] < 400
    assert result["validation"] >= 0.99
    assert result["curve"][-1][4] < 0.9  # of all next tokens


def test_a_cosine_falls_from_the_first_step_with_constant_betas(monkeypatch):
    betas, adamw = [], torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *a, **k: [betas.append(g["betas"]) for g in self.param_groups] and adamw(self, *a, **k),
    )
    lrs = [lr for _, _, lr, _, _ in train_cell(replace(CELL, steps=8, lr=1e-2, schedule="cosine"))["curve"]]
    assert lrs[0] == 1e-2
    assert lrs == sorted(lrs, reverse=True)
    assert lrs[4] == pytest.approx((1e-2 + 1e-6) / 2)
    assert set(betas) == {(0.9, 0.999)}
    with pytest.raises(ValueError, match="schedule='step' is not known; expected one of one-cycle, cosine, trapezoid"):
        train_cell(replace(CELL, schedule="step"))
