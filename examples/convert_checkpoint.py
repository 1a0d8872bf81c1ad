"""Converts a sharded checkpoint (torch.distributed.checkpoint) of a model to the Hugging Face format, and back.

python examples/convert_checkpoint.py dcp-to-hf checkpoint/step-100 config.json model
python examples/convert_checkpoint.py hf-to-dcp model checkpoint/step-0
"""

from pathlib import Path

import torch.distributed.checkpoint as dcp
from transformers import AutoConfig, AutoModelForCausalLM
from typer import Typer

import fla_bdlru  # noqa: F401  makes `mixer` known

app = Typer(add_completion=False)


@app.command()
def dcp_to_hf(checkpoint: Path, config: Path, folder: Path, key: str = "") -> None:
    """Writes `folder` for `from_pretrained`; `key` is where the checkpoint holds the model's weights, if not on top."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config))
    state = model.state_dict()
    dcp.load({key: state} if key else state, checkpoint_id=checkpoint, no_dist=True)
    model.load_state_dict(state)
    model.save_pretrained(folder)


@app.command()
def hf_to_dcp(folder: Path, checkpoint: Path, key: str = "") -> None:
    """Writes a checkpoint that any number of processes can load."""
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    dcp.save({key: state} if key else state, checkpoint_id=checkpoint, no_dist=True)


if __name__ == "__main__":
    app()
