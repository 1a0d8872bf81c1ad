"""BD-LRU and H-LRU models in vLLM: an entry point of `vllm.general_plugins`, and what it takes, without importing vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fla_bdlru.models.modeling import RecurrentBlock, RecurrentConfig

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from fla_bdlru.layers.gated import GatedRecurrence

MODELS = ("BDLRUForCausalLM", "HLRUForCausalLM")


def register() -> None:
    """Makes vLLM know the native language models, by name; vLLM calls it in each of its processes."""
    from vllm import ModelRegistry

    for name in MODELS:
        ModelRegistry.register_model(name, f"fla_bdlru.integrations.vllm_models:{name}")


def state_shapes(layer: GatedRecurrence) -> tuple[tuple[int, int], ...]:
    r"""Shapes of what one sequence keeps in a layer: the recurrence's `[H, M]` or `[N, M]`, a convolution's `[width, size]`.

    Example:
        >>> from fla_bdlru.integrations.vllm import state_shapes
        >>> from fla_bdlru.layers import BDLRU, HLRU
        >>> assert state_shapes(BDLRU(32, block_size=4)) == ((8, 4),)
        >>> assert state_shapes(HLRU(32, order=3, use_short_conv=True)) == ((32, 3), (32, 4))
    """
    *_, columns, num = layer.gate_shape  # H-LRU [M+1, N], BD-LRU [M, M+1, H]
    return ((num, columns - 1), (layer.width, layer.conv_size))[: 1 + layer.use_short_conv]


def state_dtypes(layer: GatedRecurrence, dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Types of the states: float32 for the recurrence, the model's `dtype` for a convolution."""
    return (torch.float32, dtype)[: len(state_shapes(layer))]


def layer_of(config: RecurrentConfig) -> GatedRecurrence:
    """A layer as a config's model has it, without values."""
    with torch.device("meta"):
        return RecurrentBlock(config, 0).attn


def check_config(vllm_config: VllmConfig) -> None:
    """Raises `ValueError` for what these models do not do in vLLM."""
    model, parallel, config = vllm_config.model_config, vllm_config.parallel_config, vllm_config.model_config.hf_config
    refused = [(name, getattr(config, name, None), "None") for name in ("attn", "mixer")]
    refused += [("bidirectional", getattr(config, "bidirectional", False), "False")]
    refused = [field for field in refused if field[1]]
    sizes = ("tensor_parallel_size", "pipeline_parallel_size")
    refused += [(name, getattr(parallel, name), "1") for name in sizes if getattr(parallel, name) != 1]
    refused += [] if model.enforce_eager else [("enforce_eager", model.enforce_eager, "True")]
    if vllm_config.cache_config.enable_prefix_caching:
        refused += [("enable_prefix_caching", True, "False")]
    for name, value, accepted in refused:
        raise ValueError(f"{name}={value!r} is not accepted by {model.architecture} in vLLM; expected {accepted}.")
