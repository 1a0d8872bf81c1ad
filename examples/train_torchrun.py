"""FSDP2, context parallelism and sharded checkpoints in a plain training loop.

    torchrun --nproc-per-node 4 examples/train_torchrun.py --context-parallel 2 --checkpoint out

Groups of `--context-parallel` ranks share a sequence, each with a slice of it; every other rank has data of its own.
`examples/convert_checkpoint.py` turns the checkpoint into a folder for `from_pretrained`.
"""

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from fla.models import GatedDeltaNetConfig, GatedDeltaNetForCausalLM
from fla.ops.cp import build_cp_context
from text import VOCAB_SIZE, load_tokens
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from typer import run

import fla_bdlru  # noqa: F401  makes `mixer` known


def main(
    steps: int = 20,
    seq_len: int = 512,
    hidden_size: int = 64,
    context_parallel: int = 1,
    lr: float = 1e-2,
    checkpoint: Path | None = None,
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    world_size = dist.get_world_size()
    mesh = init_device_mesh(device, (world_size // context_parallel, context_parallel), mesh_dim_names=("dp", "cp"))

    torch.manual_seed(0)
    config = GatedDeltaNetConfig(hidden_size=hidden_size, num_hidden_layers=2, vocab_size=VOCAB_SIZE, mixer="bdlru")
    model = GatedDeltaNetForCausalLM(config).to(device)
    for block in model.model.layers:
        fully_shard(block)
    fully_shard(model)  # over all ranks: those of a sequence, too, have gradients to sum
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)

    text, length = load_tokens(), seq_len // context_parallel
    cp_context = build_cp_context(torch.tensor([0, seq_len], device=device), mesh["cp"].get_group())
    for step in range(steps):
        start = (step * mesh["dp"].size() + mesh["dp"].get_local_rank()) * seq_len % (len(text) - seq_len - 1)
        start += mesh["cp"].get_local_rank() * length
        tokens, labels = (text[start + shift :][:length][None].to(device) for shift in (0, 1))
        logits = model(tokens, cp_context=cp_context).logits
        # slices are of one length, so the mean that FSDP takes over ranks is that over tokens
        loss = F.cross_entropy(logits[0].float(), labels[0])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        if dist.get_rank() == 0:
            print(f"step {step} loss {mean.item() / world_size:.5f}", flush=True)
    if checkpoint is not None:
        dcp.save(get_model_state_dict(model), checkpoint_id=checkpoint)
        if dist.get_rank() == 0:
            config.save_pretrained(checkpoint)
    dist.destroy_process_group()


if __name__ == "__main__":
    run(main)
