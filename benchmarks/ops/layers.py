"""Layers of one size on a GPU: the mixers that are compared, and the matrix products that each of them contains."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.compare.models import build_layer, layer_params, nearest_size

BUDGET = 2**25  # parameters of a mixer
HEAD = 128


def _channels(name: str, **args) -> Callable[[int, int], dict]:
    # in steps of 16, as whoever chooses a width for speed would: rows are aligned, and matrix products tile
    return lambda width, n: {name: 16 * n, **args}


def _heads(expand_v: int) -> Callable[[int, int], dict]:
    # whole heads of the usual size: a kernel does not take heads of any width
    return lambda width, n: {"num_heads": n, "expand_k": n * HEAD / width, "expand_v": n * HEAD * expand_v / width}


MIXERS: dict[str, tuple[str, Callable[[int, int], dict]]] = {
    **{f"bdlru-m{m}": ("bdlru", _channels("num_blocks", block_size=m)) for m in (1, 2, 4, 8, 16)},
    **{f"hlru-m{m}": ("hlru", _channels("num_channels", order=m)) for m in (2, 4)},
    "delta_net": ("delta_net", _heads(1)),
    "gated_deltanet": ("gated_deltanet", lambda width, n: {"num_heads": n, "head_dim": HEAD, "expand_v": 2}),
    "mamba2": ("mamba2", lambda width, n: {"num_heads": n, "head_dim": 64, "expand": n * 64 / width, "state_size": 128}),
    "gla": ("gla", _heads(2)),
    "lstm": ("lstm", _channels("num_channels")),
}


def make_layer(name: str, width: int, budget: int, device: str) -> nn.Module:
    """The mixer `name` of `MIXERS` with about `budget` parameters.

    Raises:
        RuntimeError: for Mamba2 on a GPU without mamba_ssm, where FLA would run it in PyTorch, in hundreds of gigabytes.
    """
    mixer, size = MIXERS[name]
    args, _ = nearest_size(lambda n: size(width, n), mixer, layer_params, width, budget)
    layer = build_layer(mixer, width, args).to(device)
    if mixer == "mamba2" and device == "cuda":
        from fla.layers import mamba2

        if not mamba2.is_fast_path_available:
            raise RuntimeError("the kernels of Mamba2 are in mamba_ssm, which is not installed")
        if mamba2.causal_conv1d_fn is None:
            layer.eval()  # in training mode it calls causal_conv1d, which is not installed; otherwise FLA's convolution
    return layer


def matrix_products(layer: nn.Module, B: int, T: int, dtype: torch.dtype) -> tuple[Callable, tuple[torch.Tensor, ...]]:
    """The layer's own matrix products and nothing else: a function of (input, weight) pairs, and those."""
    linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    inputs = tuple(torch.randn(B, T, x.in_features, device=x.weight.device, dtype=dtype) for x in linears)
    weights = tuple(x.weight.detach().to(dtype) for x in linears)
    pairs = tuple(x.requires_grad_() for pair in zip(inputs, weights) for x in pair)
    return lambda *xs: tuple(F.linear(x, w) for x, w in zip(xs[::2], xs[1::2])), pairs
