"""One run: a model trained with the Hugging Face Trainer, resumed where it stopped, and scored at several lengths."""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.utils.logging import disable_progress_bar

from benchmarks.compare.run import Interrupted, handled
from benchmarks.lm.evaluate import octaves, position_losses, scored_tokens
from benchmarks.lm.models import build_model
from benchmarks.lm.settings import Entry, Settings
from benchmarks.lm.text import Blocks, Corpus, Windows
from fla_bdlru.layers.weight_decay import decaying_parameters

COMPLETE = "complete"  # a file in a checkpoint that every process has finished writing


# a block is a unit; each process writes its own part of a checkpoint
FSDP2 = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "state_dict_type": "SHARDED_STATE_DICT"}


@dataclass(frozen=True)
class Run:
    """One model and seed of a comparison."""

    key: str  # digest of everything that the result depends on
    entry: Entry  # the model, settled
    seed: int  # of the initial weights and the order of the data
    config: PreTrainedConfig
    settings: Settings

    @property
    def title(self) -> str:
        """A short name for people."""
        return f"{self.entry.name} seed {self.seed}"


def micro_batch(batch_size: int, wanted: int | None, processes: int) -> tuple[int, int]:
    r"""Splits a step's sequences: how many a device holds at a time (`wanted`, or its share), and how often before a step.

    ValueError, if they do not divide.

    Example:
        >>> from benchmarks.lm.train import micro_batch
        >>> assert micro_batch(256, 16, 8) == (16, 2)
    """
    share, left = divmod(batch_size, processes)
    size = min(wanted or share, share)
    if left or not share or share % size:
        raise ValueError(
            f"training.batch_size={batch_size} is not a multiple of micro_batch_size={wanted or 1} x {processes} process(es)."
        )
    return size, share // size


def wants_bf16(precision: str, device: str) -> bool:
    """Whether to train under bfloat16 autocast; `auto` means on a GPU that has it."""
    return precision == "bf16" or (precision == "auto" and device == "cuda" and torch.cuda.is_bf16_supported())


def training_arguments(run: Run, folder: Path, device: str, fsdp: bool, processes: int) -> TrainingArguments:
    """What the Trainer is given: AdamW, warm-up and cosine, the batch split among `processes`, DDP or FSDP2."""
    t = run.settings.training
    size, accumulation = micro_batch(t.batch_size, t.micro_batch_size, processes)
    sharding = {"fsdp": True, "fsdp_config": dict(FSDP2)} if fsdp else {}
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=t.steps,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        optim="adamw_torch",
        learning_rate=t.lr,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": t.min_lr_ratio},
        warmup_steps=t.warmup_steps,
        weight_decay=t.weight_decay,
        adam_beta1=t.beta1,
        adam_beta2=t.beta2,
        max_grad_norm=t.clip,
        bf16=wants_bf16(t.precision, device),
        torch_compile=t.torch_compile,
        logging_steps=t.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=t.eval_every,
        save_steps=t.save_every,
        save_total_limit=t.keep,
        seed=run.seed,
        data_seed=run.seed,
        use_cpu=device == "cpu",
        ddp_backend="gloo" if device == "cpu" and processes > 1 else None,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        **({"gradient_checkpointing": True} if t.gradient_checkpointing else {}),
        **sharding,
    )


class LMTrainer(Trainer):
    """The Trainer, with this harness's validation and rule for weight decay, exact means, and a clock in its logs."""

    def __init__(self, *args, validate: Callable[[torch.nn.Module, Accelerator], float], **kwargs):
        super().__init__(*args, **kwargs)
        self.validate = validate
        # sequences are equally long, so the mean of means is the mean; not every model's loss takes a count of tokens
        self.model_accepts_loss_kwargs = False
        self.clock = time.perf_counter()
        self.checkpoints = Checkpoints(self)
        self.add_callback(self.checkpoints)

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        return decaying_parameters(model)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        metrics = {"eval_loss": self.validate(self.model_wrapped, self.accelerator)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # the history is part of a checkpoint, so the clock goes on where a resumed run stopped
        before = next((entry["seconds"] for entry in reversed(self.state.log_history) if "seconds" in entry), 0.0)
        self.clock, last = time.perf_counter(), self.clock
        super().log({**logs, "seconds": before + self.clock - last}, start_time)


class Checkpoints(TrainerCallback):
    """Saves one and stops after the same step in every process, if any got a signal; marks those that all have written.

    So a kill leaves none that only looks whole.
    """

    def __init__(self, trainer: Trainer):
        self.trainer, self.stopped = trainer, False

    @contextlib.contextmanager
    def on_signal(self):
        """Handles SIGINT and SIGTERM inside; a second one acts at once."""

        def ask(number, _):
            signal.signal(number, previous[number])
            self.trainer.accelerator.set_trigger()

        with handled(ask, signal.SIGINT, signal.SIGTERM) as previous:
            yield

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.accelerator.check_trigger():
            self.stopped = control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        self.trainer.accelerator.wait_for_everyone()
        if self.trainer.accelerator.is_main_process:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run's folder."""
    whole = [mark.parent for mark in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def _drop_incomplete(folder: Path) -> None:
    for path in folder.glob("checkpoint-*"):
        if not (path / COMPLETE).exists():
            shutil.rmtree(path)


class PrintProgress(TrainerCallback):
    """A line per validation, and about twenty in all."""

    def __init__(self, title: str, say):
        self.title, self.say = title, say

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        words = {"loss": "loss", "eval_loss": "validation loss"}
        shown = ", ".join(f"{word} {logs[name]:.4f}" for name, word in words.items() if name in logs)
        if "eval_loss" in logs or state.global_step % max(args.logging_steps, state.max_steps // 20) < args.logging_steps:
            self.say(f"{self.title}: step {state.global_step:,}/{state.max_steps:,}, {shown}, {logs['seconds']:.0f} s")


def curve(history: list[dict], tokens_per_step: int) -> list[tuple]:
    """Rows of a learning curve (see `benchmarks.lm.report.CURVE_COLUMNS`) from the Trainer's log."""
    rows: dict[int, dict] = {}
    for entry in history:
        rows.setdefault(entry["step"], {}).update(entry)
    names = ("learning_rate", "loss", "grad_norm", "eval_loss", "seconds")
    return [
        (step, step * tokens_per_step, *(row.get(name, "") for name in names))
        for step, row in sorted(rows.items())
        if "loss" in row or "eval_loss" in row
    ]


def train(run: Run, corpus: Corpus, out: Path, device: str, fsdp: bool = False, processes: int = 1, say=print) -> dict:
    """Trains a run, from its last checkpoint if there is one, and scores it; the model goes to `out/models/<key>`.

    Checkpoints go to `out/checkpoints/<key>` and are removed by the caller. With `fsdp`, parameters, gradients and optimiser
    state are sharded (FSDP2) over `processes`, else copied (DDP). Returns `losses` (nats per token, one per evaluated length),
    `positions` (`octaves` of the longest), `scored` (number of targets), `train_loss`, `validation_loss` (last of the curve),
    `seconds` (training, validation included), `processes`, `precision`, `diverged` and `curve`. Interrupted on SIGINT or
    SIGTERM, once a checkpoint is saved; ValueError, if the batch does not divide, or the text is too short.
    """
    settings, folder = run.settings, out / "checkpoints" / run.key
    length, batch = settings.data.length, settings.training.batch_size
    total = scored_tokens(len(corpus.validation), max(settings.eval_lengths), settings.evaluation.tokens)
    blocks = Blocks(corpus.train, length, multiple=batch)
    arguments = training_arguments(run, folder, device, fsdp, processes)

    disable_progress_bar()  # of writing a checkpoint
    set_seed(run.seed)
    model = build_model(run.config)

    def losses(n: int, model: torch.nn.Module, accelerator: Accelerator) -> torch.Tensor:
        return position_losses(model, corpus.validation, n, total, accelerator, settings.evaluation.batch_tokens)

    trainer = LMTrainer(
        model,
        arguments,
        train_dataset=blocks,
        eval_dataset=Windows(corpus.validation, length, total),
        validate=lambda *prepared: losses(length, *prepared).mean().item(),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(PrintProgress(run.title, say))

    accelerator = trainer.accelerator
    if accelerator.is_main_process:
        _drop_incomplete(folder)
    accelerator.wait_for_everyone()
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None:
        say(f"{run.title}: goes on from {checkpoint}")
    with trainer.checkpoints.on_signal():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.checkpoints.stopped:
        raise Interrupted(f"stopped at step {trainer.state.global_step:,}, where a checkpoint was saved")
    if fsdp:
        local = sum(p.to_local().numel() for p in trainer.model_wrapped.parameters())
        say(f"{run.title}: {local:,} parameters on each of {processes} processes")

    model = trainer.model_wrapped
    by_length = [losses(n, model, accelerator) for n in settings.eval_lengths]
    # every process takes part in gathering what is sharded
    weights = {name: w.full_tensor().cpu() if isinstance(w, DTensor) else w for name, w in model.state_dict().items()}
    if accelerator.is_main_process:
        whole = accelerator.unwrap_model(model)
        whole.save_pretrained(out / "models" / run.key, state_dict=weights if fsdp else None)
    points = curve(trainer.state.log_history, batch * length)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    validated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    return {
        "losses": [by_position.mean().item() for by_position in by_length],
        "positions": octaves(by_length[-1]),
        "scored": total,
        "train_loss": logged[-1]["loss"] if logged else None,
        "validation_loss": validated[-1] if validated else None,
        "seconds": points[-1][-1] if points else None,
        "processes": processes,
        "precision": "bf16" if arguments.bf16 else "fp32",
        "diverged": not all(math.isfinite(entry["loss"]) for entry in logged),
        "curve": points,
    }
