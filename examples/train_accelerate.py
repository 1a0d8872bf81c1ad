"""Hugging Face's Trainer on any number of processes.

accelerate launch --num_processes 2 examples/train_accelerate.py --output out
"""

from pathlib import Path

import torch
from fla.models import GatedDeltaNetConfig, GatedDeltaNetForCausalLM
from text import VOCAB_SIZE, load_tokens
from transformers import Trainer, TrainingArguments
from typer import run

import fla_bdlru  # noqa: F401  makes `mixer` known


def main(steps: int = 20, seq_len: int = 256, hidden_size: int = 64, batch_size: int = 2, output: Path = Path("out")) -> None:
    config = GatedDeltaNetConfig(hidden_size=hidden_size, num_hidden_layers=2, vocab_size=VOCAB_SIZE, mixer="hlru")
    text = load_tokens()
    examples = [{"input_ids": x, "labels": x} for x in text[: len(text) // seq_len * seq_len].view(-1, seq_len)]
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(GatedDeltaNetForCausalLM(config), arguments, train_dataset=examples)
    trainer.train()
    trainer.save_model()
    trainer.accelerator.print(f"trained by {trainer.accelerator.num_processes} processes")


if __name__ == "__main__":
    run(main)
