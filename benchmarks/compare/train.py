"""One cell of a comparison: a model trained from scratch on one task and scored at several lengths."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from safetensors.torch import save

from benchmarks.compare.models import build_model
from benchmarks.compare.recipe import CHECK, EXAMPLES, LEFT, LOUD, Curriculum, Noise, noisy
from benchmarks.records.cell import RESTARTING, SCHEDULES, Cell
from benchmarks.tasks import IGNORE, Task, get_task, make_generator
from fla_bdlru.layers.measure import count_parameters, linear_flops_per_token
from fla_bdlru.layers.weight_decay import weight_decay_groups

EVAL_BATCH = 256
FEWEST = 8  # sequences of a step, however long they are
CURVE_POINTS = 100
MIN_LR = 1e-6  # where a cosine ends
WARM_UP, LAST = 100, 0.2  # of a trapezoid: steps of warm-up, and the share of the steps in which it falls to zero
EVAL_TOKENS = 1 << 16  # of a batch of long sequences


def _batch_size(cell: Cell, length: int) -> int:
    return max(FEWEST, cell.tokens // length) if cell.tokens else cell.batch_size


def batches(task: Task, cell: Cell, curriculum: Curriculum | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields a cell's training batches: inputs and targets `[B, T]` on the CPU for each step, the same for every mixer.

    A curriculum says which length the next batch has, new sequences every time; else each length has its share of the steps.
    """
    if curriculum is not None:
        generator = make_generator(cell.task, "train", cell.seed)
        for _ in range(cell.steps):
            yield task.sample_train(generator, _batch_size(cell, curriculum.length), curriculum.length)
        return
    stages = [cell.steps * i // len(cell.lengths) for i in range(len(cell.lengths) + 1)]
    for length, start, stop in zip(cell.lengths, stages, stages[1:]):
        generator = make_generator(cell.task, "train", cell.seed, length)
        if not cell.train_examples:
            for _ in range(start, stop):
                yield task.sample_train(generator, _batch_size(cell, length), length)
            continue
        inputs, targets = task.sample_train(generator, cell.train_examples, length)
        order = torch.empty(0, dtype=torch.long)
        for _ in range(start, stop):
            if len(order) < cell.batch_size:
                order = torch.randperm(cell.train_examples, generator=generator)
            index, order = order[: cell.batch_size], order[cell.batch_size :]
            yield inputs[index], targets[index]


def score(logits: torch.Tensor, targets: torch.Tensor) -> tuple[int, int, int, float]:
    """Right tokens, scored tokens, sequences whose every scored token is right, and the summed cross entropy of a batch."""
    asked = targets != IGNORE
    right = (logits.argmax(-1) == targets) & asked
    loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    return int(right.sum()), int(asked.sum()), int((right == asked).all(1).sum()), float(loss)


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, task: Task, length: int, examples: int, device: str, split: str = "test"
) -> dict[str, float]:
    """Scores a causal LM at one length, on so many examples of a split that are the same for every mixer and seed.

    Returns `token_accuracy` over scored positions, `sequence_accuracy` over sequences with all of them right, and `loss` in
    nats per scored position. `"test"` and `"validation"` are unrelated streams.
    """
    model.eval()
    inputs, targets = task.sample(make_generator(task.name, split, length), examples, length)
    totals = [0, 0, 0, 0.0]
    batch = min(EVAL_BATCH, max(1, EVAL_TOKENS // length)) if length > EVAL_BATCH else EVAL_BATCH
    for x, y in zip(inputs.split(batch), targets.split(batch)):
        counts = score(model(input_ids=x.to(device)).logits, y.to(device))
        totals = [a + b for a, b in zip(totals, counts)]
    right, asked, sequences, loss = totals
    return {
        "token_accuracy": right / asked,
        "sequence_accuracy": sequences / examples,
        "loss": loss / asked,
    }


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE)


def _optimizer(model: torch.nn.Module, cell: Cell) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weight_decay_groups(model, cell.weight_decay), lr=cell.lr, fused=True)


@dataclass
class Span:
    # the first and last step of the present weights; a curriculum that restarts moves both, and has a trapezoid
    start: int
    end: int


def _schedule(optimizer: torch.optim.Optimizer, cell: Cell, span: Span) -> torch.optim.lr_scheduler.LRScheduler:
    if cell.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, cell.steps, MIN_LR)
    if cell.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=cell.lr, total_steps=cell.steps)
    if cell.schedule == "trapezoid":
        fall = LAST * cell.steps
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1, (step + 1) / WARM_UP, max(0.0, (span.end - span.start - step) / fall))
        )
    raise ValueError(f"schedule={cell.schedule!r} is not known; expected one of {', '.join(SCHEDULES)}.")


def take_step(model, optimizer, schedule, inputs, targets, mark: Callable[[str], None] = lambda part: None) -> tuple:
    """One step of training; `mark` is told when each part is over. Returns logits and loss."""
    logits = model(input_ids=inputs).logits
    loss = _loss(logits, targets)
    mark("forward")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    mark("backward")
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    mark("optimiser")
    return logits, loss


def _is_solved(model: torch.nn.Module, task: Task, cell: Cell, accuracy: float, device: str) -> bool:
    # after a batch of the longest length; validation is spared where the batch's accuracy says enough
    if task.trains_on_answers and accuracy < cell.stop_at:
        return False
    validation = evaluate(model, task, max(cell.lengths), cell.eval_examples, device, "validation")
    model.train()
    return validation["token_accuracy"] >= cell.stop_at


@torch.no_grad()
def _last_accuracy(model: torch.nn.Module, task: Task, generator: torch.Generator, length: int, device: str) -> float:
    """Accuracy at the last position of fresh sequences; in eval mode, so without noise."""
    model.eval()
    inputs, targets = task.sample_train(generator, EXAMPLES, length)
    right = model(input_ids=inputs.to(device)).logits[:, -1].argmax(-1) == targets[:, -1].to(device)
    model.train()
    return right.float().mean().item()


def _told_in(level: float, noise: Noise, model: torch.nn.Module, task: Task, *look) -> float:
    """That accuracy under noise relative to the loudest token, from 0 (guessing) to 1."""
    noise.loud = level
    accuracy = _last_accuracy(model, task, *look)
    noise.loud = 0.0
    return (accuracy - task.chance) / (1 - task.chance)


def begin(cell: Cell, task: Task, restarts: int = 0, span: Span | None = None, device: str = "cpu") -> tuple:
    """New weights, different for each restart, and their optimiser and schedule."""
    torch.manual_seed(make_generator("weights", cell.seed, *[restarts] * bool(restarts)).initial_seed())
    sizes = (task.vocab_size, cell.width, cell.layers, cell.mlp_width)
    model = build_model(
        cell.mixer, cell.mixer_args, *sizes, readout=task.readout, initializer_range=cell.initializer_range
    ).to(device)
    optimizer = _optimizer(model, cell)
    return model.train(), optimizer, _schedule(optimizer, cell, span or Span(0, cell.steps))


def _mixers(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [block.attn for block in (model.model if hasattr(model, "model") else model.encoder).layers]


def train_cell(cell: Cell, device: str = "cpu", report: Callable[[int, float, float], None] | None = None) -> dict:
    """Trains and scores one cell; `report` is called now and then with step, training loss, and accuracy on the batch.

    Returns `params`, `linear_flops` (per token, of all linear maps), `scores` (one dict per evaluated length, in order),
    `validation` (token accuracy at the training length, for choices between runs), `train_loss`, `seconds` of training,
    `diverged` (the last loss was not finite; such a run stops, or begins anew where a curriculum has steps left for it),
    `steps_done`, `restarts`, `curve`, a list of (step, length, learning rate, loss, token accuracy), and `weights`, the
    trained state dict in safetensors' format. ValueError, if the curriculum restarts and the schedule is no trapezoid, a
    finite training set goes with a curriculum or tokens a step, or a curriculum with a task whose last answer never differs.
    """
    restarting = cell.curriculum in RESTARTING
    if restarting and cell.schedule != "trapezoid":
        raise ValueError(
            f"schedule={cell.schedule!r} is not accepted with curriculum={cell.curriculum!r}; expected trapezoid."
        )
    if cell.curriculum == "louder" and not cell.readout_noise:
        raise ValueError(
            "readout_noise=0 is not accepted with curriculum='louder', whose unit it is; expected a positive level."
        )
    if cell.train_examples and (cell.tokens or cell.curriculum != "stages"):
        given = f"train_examples={cell.train_examples}"
        raise ValueError(f"{given} is not accepted with tokens={cell.tokens} and curriculum={cell.curriculum!r}; expected 0.")
    task = get_task(cell.task, cell.bos)
    if cell.curriculum != "stages" and not task.asks_last:
        given = f"curriculum={cell.curriculum!r}"
        raise ValueError(f"{given} is not accepted with {cell.task}, whose last token is always the same; expected 'stages'.")
    span, finishing = Span(0, cell.steps), False
    model, optimizer, schedule = begin(cell, task, 0, span, device)
    every = max(1, cell.steps // CURVE_POINTS)
    curve, restarts = [], 0

    first = {x.shape: (x, y) for x, y in batches(task, replace(cell, steps=len(cell.lengths)))}
    longest = max(tokens for _, tokens in first)
    for inputs, targets in first.values():
        # kernels are compiled on first use: not part of the time
        _loss(model(input_ids=inputs.to(device)).logits, targets.to(device)).backward()

    curriculum = None
    if cell.curriculum != "stages":
        curriculum = Curriculum(cell.lengths, cell.threshold, cell.readout_noise, restarting, cell.curriculum == "louder")
    looks = make_generator(cell.task, "curriculum", cell.seed)
    stack = ExitStack()
    noise = stack.enter_context(noisy(_mixers(model)))
    noise.level = cell.readout_noise if curriculum is None else curriculum.noise

    start = time.perf_counter()
    for step, (inputs, targets) in enumerate(batches(task, cell, curriculum), 1):
        inputs, targets = inputs.to(device), targets.to(device)
        lr = schedule.get_last_lr()[0]
        logits, loss = take_step(model, optimizer, schedule, inputs, targets)
        broken = step % CHECK == 0 and not math.isfinite(loss.item())  # for good: no optimiser returns from that
        if curriculum is not None and step % CHECK == 0:
            curriculum.look(_last_accuracy(model, task, looks, curriculum.length, device))
            if restarting and not finishing:
                told = _told_in(LOUD, noise, model, task, looks, curriculum.length, device)
                if curriculum.louder and curriculum.learned:
                    curriculum.bear(_told_in(curriculum.noise, noise, model, task, looks, curriculum.length, device), told)
                if curriculum.holds(told):
                    finishing, span.end = True, min(cell.steps, step + int(LAST * cell.steps))
                elif (broken or curriculum.fades(told)) and step <= (1 - LEFT) * cell.steps:
                    broken, restarts = False, restarts + 1
                    span.start = step
                    curriculum.start()
                    stack.close()
                    model, optimizer, schedule = begin(cell, task, restarts, span, device)
                    noise = stack.enter_context(noisy(_mixers(model)))
            noise.level, noise.is_loud = curriculum.noise, curriculum.is_loud
        over = broken or step == span.end
        if over or step % every == 0:
            right, asked, _, _ = score(logits.detach(), targets)
            curve.append((step, inputs.shape[1], lr, loss.item(), right / asked))
            if report is not None:
                report(step, curve[-1][3], curve[-1][4])
            asks = cell.stop_at and inputs.shape[1] == longest
            if over or (asks and _is_solved(model, task, cell, right / asked, device)):
                break
    seconds = time.perf_counter() - start
    stack.close()
    validation = evaluate(model, task, max(cell.lengths), cell.eval_examples, device, "validation")
    return {
        "params": count_parameters(model),
        "linear_flops": linear_flops_per_token(model),
        "scores": [evaluate(model, task, length, cell.eval_examples, device) for length in cell.eval_lengths],
        "validation": validation["token_accuracy"],
        "train_loss": curve[-1][3],
        "seconds": seconds,
        "diverged": not math.isfinite(curve[-1][3]),
        "steps_done": step,
        "restarts": restarts,
        "curve": curve,
        # copies, as a layer may hold one tensor under two names (S4D)
        "weights": save({name: x.detach().cpu().contiguous().clone() for name, x in model.state_dict().items()}),
    }
