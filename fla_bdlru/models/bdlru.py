"""BD-LRU as a Hugging Face model."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from fla_bdlru.layers import BDLRU
from fla_bdlru.models.modeling import RecurrentConfig, RecurrentForCausalLM, RecurrentModel


class BDLRUConfig(RecurrentConfig):
    r"""Configuration of a BD-LRU model.

    Args:
        hidden_size (int, Optional):
            Width of the model. Default: 2048.
        num_hidden_layers (int, Optional):
            Number of blocks. Default: 24.
        block_size, num_blocks, expand, gate_norm, ...:
            Every other argument of `fla_bdlru.layers.BDLRU`, with its default.
        attn (dict or list[dict], Optional):
            Layers that are given to softmax attention, as in FLA's configs. Default: `None`.
        **kwargs:
            As in FLA's configs: `hidden_ratio` (4), `intermediate_size`, `hidden_act`, `norm_eps` (1e-6), `vocab_size`
            (32000), `tie_word_embeddings`, `initializer_range` (0.02), `use_cache`, the `fuse_*` flags, token ids.

    Source: arXiv 2602.12021.

    Example:
        >>> from fla_bdlru.models import BDLRUConfig, BDLRUForCausalLM
        >>> model = BDLRUForCausalLM(BDLRUConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64, block_size=2))
        >>> assert model.model.layers[1].attn.block_size == 2
    """

    model_type = "bdlru"
    layer_class = BDLRU

    def __init__(self, **kwargs) -> None:
        # transformers would write a dataclass constructor of its own for a class without one
        super().__init__(**kwargs)


class BDLRUModel(RecurrentModel):
    config_class = BDLRUConfig


class BDLRUForCausalLM(RecurrentForCausalLM):
    config_class = BDLRUConfig
    model_class = BDLRUModel


AutoConfig.register(BDLRUConfig.model_type, BDLRUConfig, exist_ok=True)
AutoModel.register(BDLRUConfig, BDLRUModel, exist_ok=True)
AutoModelForCausalLM.register(BDLRUConfig, BDLRUForCausalLM, exist_ok=True)
