"""What a layer keeps for the backward, in bytes a token: ours with and without `recompute_gates`, beside FLA's.

    python -m benchmarks.ops.memory                      # rows go to results/memory.csv
    python -m benchmarks.ops.memory --out benchmarks/results/memory/memory.csv    # those that docs/start.md shows

Layers of 4.2M parameters at width 1,024, in bfloat16, run what they run on a GPU, on CPU tensors, with every kernel left out:
the code around kernels allocates and saves what it does there, and is not asked for values. Hooks on saved tensors count each
storage once, the layer's input included, parameters aside. The price is timed on this CPU, where our kernels do run: forward
and backward of a layer that computes its gates again, over those of one that keeps them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import pandas as pd
import torch
import typer
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from triton.runtime.autotuner import Autotuner, Heuristics
from triton.runtime.jit import JITFunction

from benchmarks.ops import check_file
from benchmarks.ops.layers import make_layer
from benchmarks.records.machine import provenance
from fla_bdlru.fla_cpu import cpu_backend
from fla_bdlru.layers.measure import measure_state_size
from fla_bdlru.ops.bdlru import kernels as _bdlru  # noqa: F401  before Triton is told that it interprets
from fla_bdlru.ops.hlru import kernels as _hlru  # noqa: F401

WIDTH, BUDGET, TOKENS = 1024, 2**22, 2048
OURS = ("bdlru-m1", "bdlru-m2", "bdlru-m4", "bdlru-m8", "hlru-m2", "hlru-m4")
PEERS = ("delta_net", "gated_deltanet", "mamba2", "gla")


@contextmanager
def without_kernels() -> Iterator[None]:
    """GPU code on CPU tensors: ours, FLA's and mamba_ssm's, every kernel left out, so values mean nothing."""
    with ExitStack() as stack:
        for launcher in (JITFunction, Autotuner, Heuristics):
            stack.enter_context(patch.object(launcher, "run", lambda *args, **kwargs: None))
        stack.enter_context(patch.dict(os.environ, {"FLA_BDLRU_BACKEND": "triton", "TRITON_INTERPRET": "1"}))
        stack.enter_context(cpu_backend(False))
        yield


def saved_bytes(layer: nn.Module, x: torch.Tensor) -> int:
    r"""Bytes of the storages that a layer's forward of x `[B, T, hidden_size]` keeps for its backward, its parameters aside.

    Example:
        >>> import torch
        >>> from benchmarks.ops.memory import saved_bytes
        >>> from fla_bdlru.layers import BDLRU
        >>> x = torch.randn(1, 10, 32, requires_grad=True)
        >>> kept, again = (saved_bytes(BDLRU(32, block_size=4, recompute_gates=r), x) for r in (False, True))
        >>> assert kept == 10 * 4 * 32 * (1 + 1 + 5 + 1) and again == 10 * 4 * 32 * 3  # input, v, gates, o
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        o = layer(x)[0]
    del o
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)


def kept_on_a_gpu(layer: nn.Module, recompute: bool | None = None) -> float:
    """Bytes a token of one sequence of `TOKENS`, in bfloat16."""
    if recompute is not None:
        layer.recompute_gates = recompute
    x = torch.zeros(1, TOKENS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    with without_kernels(), ExitStack() as stack:
        if hasattr(layer, "cuda_kernels_forward"):  # Mamba2 asks for the device, and its convolution comes compiled
            from mamba_ssm.ops.triton import ssd_combined

            for target, name, value in (
                (layer, "torch_forward", layer.cuda_kernels_forward),
                (torch.cuda, "device", lambda index: nullcontext()),
                (ssd_combined, "causal_conv1d_fwd_function", lambda x, *_: torch.empty_like(x)),
            ):
                stack.enter_context(patch.object(target, name, value))
        return saved_bytes(layer, x) / TOKENS


def price(layer: nn.Module, turns: int) -> float:
    """Least processor time of forward and backward with `recompute_gates` over that without, by turns, on one thread."""
    torch.set_num_threads(1)  # one thread's time does not count what else the machine does
    x = torch.randn(2, 512, WIDTH, requires_grad=True)
    times: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(2 * turns + 2):
        layer.recompute_gates = bool(turn % 2)
        start = time.process_time()
        layer(x)[0].sum().backward()
        if turn > 1:
            times[layer.recompute_gates].append(time.process_time() - start)
    return min(times[True]) / min(times[False])


def measure(name: str, turns: int) -> dict:
    """A row: the layer `name` of `benchmarks.ops.layers`, what it keeps, and for ours what it costs to keep less."""
    layer = make_layer(name, WIDTH, BUDGET, "cpu")
    row = {"layer": name, "params": sum(p.numel() for p in layer.parameters()), "state": measure_state_size(layer)}
    if name in OURS:
        row["price"] = round(price(layer, turns), 3)
    layer.bfloat16().train()
    if name not in OURS:
        return {**row, "kept": kept_on_a_gpu(layer)}
    return {**row, "kept": kept_on_a_gpu(layer, False), "recomputed": kept_on_a_gpu(layer, True)}


def main(
    out: Annotated[Path, typer.Option(help="The CSV file, which is replaced.")] = Path("results/memory.csv"),
    turns: Annotated[int, typer.Option(min=1, help="Times that each of ours is timed, with and without.")] = 15,
) -> None:
    """Measures every layer, prints a line each and writes the rows."""
    check_file(out, "--out")
    rows = []
    for name in (*OURS, *PEERS):
        rows.append(measure(name, turns))
        print(*(f"{key}={value}" for key, value in rows[-1].items()))
    pd.DataFrame(rows).assign(tokens=TOKENS, **provenance("cpu")).to_csv(out, index=False)


if __name__ == "__main__":
    typer.run(main)
