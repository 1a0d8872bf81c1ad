"""The models that vLLM builds: this package's own, whose layers read and write states in vLLM's pool."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.models.interfaces import HasInnerState, IsAttentionFree
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from fla_bdlru import models
from fla_bdlru.integrations.vllm import check_config, layer_of, state_dtypes, state_shapes
from fla_bdlru.layers.gated import GatedRecurrence


class PooledLayer(MambaBase):
    """Stands in the place of a layer's `forward`: the tokens of many requests in a row, their states in vLLM's pool."""

    mamba_type = MambaAttentionBackendEnum.LINEAR

    def __init__(self, layer: GatedRecurrence, dtype: torch.dtype, prefix: str) -> None:
        self.layer, self.dtype, self.prefix = layer, dtype, prefix
        self.kv_cache: tuple[torch.Tensor, ...] = ()

    def get_state_shape(self) -> tuple[tuple[int, int], ...]:
        return state_shapes(self.layer)

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        return state_dtypes(self.layer, self.dtype)

    def __call__(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, None, None]:
        """From hidden states `[1, T, hidden_size]`, the tokens of all requests and padding, to the layer's outputs."""
        metadata = get_forward_context().attn_metadata
        if metadata is None:  # vLLM measures how much memory a call takes
            return self.layer.mix(hidden_states, None, False, None, None)[0], None, None
        metadata, num_tokens = metadata[self.prefix], hidden_states.shape[1]
        used = metadata.num_prefill_tokens + metadata.num_decode_tokens
        cu_seqlens, slots = metadata.query_start_loc.long(), metadata.state_indices_tensor.long()
        is_new = (metadata.seq_lens <= cu_seqlens.diff())[:, None, None]  # whose slots hold what others left there
        recurrent, *conv = [torch.where(is_new, 0, pool[slots]) for pool in self.kv_cache]
        start = self.layer.start(len(slots))
        recurrent = recurrent if start is None else torch.where(is_new, start, recurrent)
        last_state = {"recurrent_state": recurrent, "conv_state": conv[0] if conv else None}
        o, *states = self.layer.mix(hidden_states[:, :used], last_state, True, cu_seqlens, None)
        for pool, state in zip(self.kv_cache, states):
            pool[slots] = state.to(pool.dtype)
        return F.pad(o, (0, 0, 0, num_tokens - used)), None, None


class RecurrentForVLLM(nn.Module, HasInnerState, IsAttentionFree):
    """A native language model in vLLM's form: one GPU, eager."""

    native: ClassVar[type[nn.Module]]

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        check_config(vllm_config)
        model_config = vllm_config.model_config
        self.inner = self.native(model_config.hf_config).eval()
        for i, block in enumerate(self.inner.model.layers):
            layer = PooledLayer(block.attn, model_config.dtype, f"{prefix}.layers.{i}.attn".removeprefix("."))
            block.attn.forward = layer
            vllm_config.compilation_config.static_forward_context[layer.prefix] = layer

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int, int], ...]:
        return state_shapes(layer_of(vllm_config.model_config.hf_config))

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
        return state_dtypes(layer_of(vllm_config.model_config.hf_config), vllm_config.model_config.dtype)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.inner.model.embeddings(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        x = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        return self.inner.model(inputs_embeds=x[None], use_cache=False).last_hidden_state[0]

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.inner.lm_head(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights, mapper=WeightsMapper(orig_to_new_prefix={"": "inner."}))


class BDLRUForCausalLM(RecurrentForVLLM):
    native = models.BDLRUForCausalLM


class HLRUForCausalLM(RecurrentForVLLM):
    native = models.HLRUForCausalLM
