"""The block, the model and the language model that the native models share; the mixer is what a config's type names."""

from __future__ import annotations

import warnings
from difflib import get_close_matches
from typing import TYPE_CHECKING, ClassVar

import torch
from fla.models.configuration_utils import AttentionConfig, AttentionConfigBase, validate_loss_config
from fla.models.generation_utils import FLAGenerationMixin
from fla.models.modeling_utils import FLAForCausalLM, FLAModel, FLAPreTrainedModel, get_attention
from fla.modules import GatedMLP, RMSNorm
from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from fla_bdlru.mixers.registry import build_mixer, mixer_arguments

if TYPE_CHECKING:
    from fla.models.utils import Cache


class RecurrentConfig(AttentionConfigBase, PreTrainedConfig):
    """Fields that every native model has, and those of the mixer: all arguments of the layer that `model_type` names."""

    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  transformers reads a list
    layer_class: ClassVar[type[nn.Module]]

    def __init__(
        self,
        hidden_size: int = 2048,
        num_hidden_layers: int = 24,
        hidden_ratio: int | None = 4,
        intermediate_size: int | None = None,
        hidden_act: str = "swish",
        norm_eps: float = 1e-6,
        attn: AttentionConfig = None,
        max_position_embeddings: int = 2048,
        use_cache: bool = True,
        pad_token_id: int | None = None,
        bos_token_id: int = 1,
        eos_token_id: int = 2,
        tie_word_embeddings: bool = False,
        initializer_range: float = 0.02,
        fuse_norm: bool = True,
        fuse_swiglu: bool = True,
        fuse_cross_entropy: bool = True,
        fuse_linear_cross_entropy: bool = False,
        use_l2warp: bool = False,
        vocab_size: int = 32000,
        **kwargs,
    ) -> None:
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.hidden_ratio = hidden_ratio
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.norm_eps = norm_eps
        self.attn = attn
        self.max_position_embeddings = max_position_embeddings
        self.use_cache = use_cache
        self.initializer_range = initializer_range
        self.fuse_norm = fuse_norm
        self.fuse_swiglu = fuse_swiglu
        self.fuse_cross_entropy = fuse_cross_entropy
        self.fuse_linear_cross_entropy = fuse_linear_cross_entropy
        self.use_l2warp = use_l2warp
        self.vocab_size = vocab_size
        for field, parameter in mixer_arguments(self.layer_class).items():
            if not hasattr(self, field) and field != "layer_idx":
                value = kwargs.pop(field, parameter.default)
                setattr(self, field, list(value) if isinstance(value, tuple) else value)
        for field, value in kwargs.items():  # transformers takes any; saved configs have fields of other versions
            near = get_close_matches(field, mixer_arguments(self.layer_class), n=1, cutoff=0.8)
            if near:
                warnings.warn(
                    f"{field}={value!r} is not a field of {type(self).__name__}, and has no effect; did you mean {near[0]!r}?",
                    stacklevel=3,
                )
        validate_loss_config(fuse_cross_entropy=fuse_cross_entropy, fuse_linear_cross_entropy=fuse_linear_cross_entropy)
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )


class RecurrentBlock(GradientCheckpointingLayer):
    """Norm, mixer, norm, gated MLP, with residuals around the two."""

    def __init__(self, config: RecurrentConfig, layer_idx: int) -> None:
        super().__init__()
        norm = RMSNorm if config.fuse_norm else nn.RMSNorm
        self.attn_norm = norm(config.hidden_size, eps=config.norm_eps)
        self.attn = get_attention(config=config, layer_idx=layer_idx)
        if self.attn is None:
            fields = [field for field in mixer_arguments(config.layer_class) if field != "layer_idx"]
            arguments = {field: getattr(config, field) for field in fields}
            self.attn = build_mixer(config.model_type, layer_idx=layer_idx, **arguments)
        self.mlp_norm = norm(config.hidden_size, eps=config.norm_eps)
        self.mlp = GatedMLP(
            hidden_size=config.hidden_size,
            hidden_ratio=config.hidden_ratio,
            intermediate_size=config.intermediate_size,
            hidden_act=config.hidden_act,
            fuse_swiglu=config.fuse_swiglu,
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        output_attentions: bool | None = False,
        attnres_states: list[torch.Tensor] | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None, Cache | None, list[torch.Tensor] | None]:
        mixed, attentions, past_key_values = self.attn(
            hidden_states=self.attn_norm(hidden_states),
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            **kwargs,
        )
        hidden_states = hidden_states + mixed
        hidden_states = hidden_states + self.mlp(self.mlp_norm(hidden_states), **kwargs)
        return hidden_states, attentions, past_key_values, attnres_states


class RecurrentPreTrainedModel(FLAPreTrainedModel):
    config_class = RecurrentConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["RecurrentBlock"]  # noqa: RUF012
    _supports_cache_class = True


class RecurrentModel(RecurrentPreTrainedModel, FLAModel):
    """Embeddings, blocks and a last norm; `forward` is FLA's."""

    use_attnres = False

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([RecurrentBlock(config, layer_idx) for layer_idx in range(config.num_hidden_layers)])
        self.norm = (RMSNorm if config.fuse_norm else nn.RMSNorm)(config.hidden_size, eps=config.norm_eps)
        self.gradient_checkpointing = False
        self.post_init()


class RecurrentForCausalLM(RecurrentPreTrainedModel, FLAForCausalLM, FLAGenerationMixin):
    """A `RecurrentModel` with a language-modelling head; `forward` and generation are FLA's."""

    _tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}  # noqa: RUF012
    model_class: type[RecurrentModel] = RecurrentModel

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        self.model = self.model_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.criterion = None
        self.post_init()
