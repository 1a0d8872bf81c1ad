"""H-LRU as a Hugging Face model."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from fla_bdlru.layers import HLRU
from fla_bdlru.models.modeling import RecurrentConfig, RecurrentForCausalLM, RecurrentModel


class HLRUConfig(RecurrentConfig):
    r"""Configuration of a H-LRU model.

    Args:
        hidden_size (int, Optional):
            Width of the model. Default: 2048.
        num_hidden_layers (int, Optional):
            Number of blocks. Default: 24.
        order, num_channels, expand, readout, gate_norm, ...:
            Every other argument of `fla_bdlru.layers.HLRU`, with its default.
        attn (dict or list[dict], Optional):
            Layers that are given to softmax attention, as in FLA's configs. Default: `None`.
        **kwargs:
            As in FLA's configs: `hidden_ratio` (4), `intermediate_size`, `hidden_act`, `norm_eps` (1e-6), `vocab_size`
            (32000), `tie_word_embeddings`, `initializer_range` (0.02), `use_cache`, the `fuse_*` flags, token ids.

    Source: arXiv 2602.12021.

    Example:
        >>> from fla_bdlru.models import HLRUConfig, HLRUForCausalLM
        >>> model = HLRUForCausalLM(HLRUConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64, order=3))
        >>> assert model.model.layers[1].attn.order == 3
    """

    model_type = "hlru"
    layer_class = HLRU

    def __init__(self, **kwargs) -> None:
        # transformers would write a dataclass constructor of its own for a class without one
        super().__init__(**kwargs)


class HLRUModel(RecurrentModel):
    config_class = HLRUConfig


class HLRUForCausalLM(RecurrentForCausalLM):
    config_class = HLRUConfig
    model_class = HLRUModel


AutoConfig.register(HLRUConfig.model_type, HLRUConfig, exist_ok=True)
AutoModel.register(HLRUConfig, HLRUModel, exist_ok=True)
AutoModelForCausalLM.register(HLRUConfig, HLRUForCausalLM, exist_ok=True)
