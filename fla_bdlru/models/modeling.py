"""BD-LRU and H-LRU as Hugging Face models: one block, one model, one language model; a config's type names the mixer."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

import torch
from fla.models.configuration_utils import AttentionConfig, AttentionConfigBase, validate_loss_config
from fla.models.generation_utils import FLAGenerationMixin
from fla.models.modeling_utils import FLAForCausalLM, FLAModel, FLAPreTrainedModel, get_attention
from fla.modules import GatedMLP, RMSNorm
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fla_bdlru.layers import BDLRU, HLRU, Bidirectional
from fla_bdlru.layers.base import check_choice, check_number, check_switch
from fla_bdlru.mixers.cache_name import RENAMED, heed_cache, prepare_inputs
from fla_bdlru.mixers.hook import prepare, reset_gates
from fla_bdlru.mixers.registry import mixer_arguments, plain
from fla_bdlru.ops.common.checks import check_count, check_integer

T = TypeVar("T", bound=FLAPreTrainedModel)

# written beside a saved config, and named by its `auto_map`: transformers checks what it imports, and says what is missing
REMOTE = "fla_bdlru_models"
REMOTE_HEADS = ("ForCausalLM", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
REMOTE_PARTS = {"AutoConfig": "Config", "AutoModel": "Model", **{f"AutoModel{head}": head for head in REMOTE_HEADS}}
REMOTE_CODE = """from fla_bdlru.models import {names}

__all__ = [{quoted}]
"""
CARD = """---
library_name: fla_bdlru
---

A {0} model of the package [fla_bdlru](https://arxiv.org/abs/2602.12021), which it needs to run:

```python
import fla_bdlru
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("FOLDER_OR_NAME")
```

Without the first line, where the package is installed: `from_pretrained(..., trust_remote_code=True)`.
"""


# what other libraries call our fields, and the other family
OTHER_NAMES = {
    **dict.fromkeys(("d_model", "dim", "hidden_dim", "n_embd"), "hidden_size"),
    **dict.fromkeys(("depth", "n_layer", "n_layers", "num_layer", "num_layers"), "num_hidden_layers"),
    **dict.fromkeys(("conv_kernel", "d_conv"), "conv_size"),
    **dict.fromkeys(("layer_norm_eps", "layer_norm_epsilon"), "norm_eps"),
    "mlp_ratio": "hidden_ratio",
    "use_gate": "use_output_gate",
    "block_size": "order",
    "order": "block_size",
    "num_blocks": "num_channels",
    "num_channels": "num_blocks",
}


def is_own(cls: type) -> bool:
    """Whether a class is one of this package, not derived from one."""
    return cls.__module__.startswith("fla_bdlru.")


SWITCHES = (
    "use_cache", "tie_word_embeddings", "fuse_norm", "fuse_swiglu", "fuse_cross_entropy", "fuse_linear_cross_entropy",
    "use_l2warp", "bidirectional",
)  # fmt: skip


def check_padding(pad_token_id: object, vocab_size: int) -> None:
    """Raises `ValueError` unless `pad_token_id` is `None` or a token: -1 would be the last, whose embedding then stays 0."""
    if pad_token_id is None:
        return
    check_integer("pad_token_id", pad_token_id)
    if not 0 <= pad_token_id < vocab_size:
        last = f"{vocab_size - 1} (vocab_size - 1)"
        raise ValueError(f"pad_token_id must be None or lie between 0 and {last}; got {pad_token_id}.")


def settle_direction(config: RecurrentConfig) -> None:
    """Turns the cache of a bidirectional model off; `ValueError` for fields whose layers would look back only."""
    if not config.bidirectional:
        return
    for field in ("attn", "mixer"):
        if getattr(config, field, None) is not None:
            raise ValueError(f"{field} is not accepted with bidirectional=True: its layers only look back.")
    config.use_cache = False  # there is no state to go on from


class RecurrentConfig(AttentionConfigBase, PreTrainedConfig):
    """Fields that every native model has, and those of the mixer: all arguments of the layer that `model_type` names."""

    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012  transformers reads a list
    layer_class: ClassVar[type[nn.Module]]
    mixer = mixer_config = None  # so that from_pretrained(folder, mixer=...) takes them

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
        bidirectional: bool = False,
        **kwargs,
    ) -> None:
        if kwargs.get("model_type", self.model_type) != self.model_type:  # of a saved config
            raise ValueError(
                f"model_type={kwargs['model_type']!r} is not {self.model_type!r}, what {type(self).__name__} is for: load the "
                "folder with AutoModelForCausalLM, or the class of its type."
            )
        fields = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}
        for field in SWITCHES:
            check_switch(field, plain(fields[field]))
        theirs = ("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings")
        theirs = {name: plain(fields.pop(name)) for name in theirs}
        layer = mixer_arguments(self.layer_class)
        fields |= {name: kwargs.pop(name, layer[name].default) for name in layer if name not in (*fields, "layer_idx")}
        for name, value in fields.items():
            setattr(self, name, plain(list(value) if isinstance(value, tuple) else value))
        for field in ("hidden_size", "num_hidden_layers", "vocab_size"):
            check_count(field, getattr(self, field))
        if self.intermediate_size is not None:
            check_count("intermediate_size", self.intermediate_size)
        if self.hidden_ratio is not None:
            check_number("hidden_ratio", self.hidden_ratio)
        check_number("initializer_range", self.initializer_range)
        check_choice("hidden_act", hidden_act, ("swish", "powlu"))  # of FLA's GatedMLP
        check_padding(theirs["pad_token_id"], self.vocab_size)
        if "transformers_version" not in kwargs:  # which saved configs have, perhaps of a version with other fields
            self.check_fields(kwargs)
        validate_loss_config(fuse_cross_entropy=fuse_cross_entropy, fuse_linear_cross_entropy=fuse_linear_cross_entropy)
        super().__init__(**theirs, **kwargs)
        settle_direction(self)

    def __init_subclass__(cls, *args, **kwargs) -> None:
        """Gives a class without a constructor one whose signature shows the layer's arguments, for editors and `help`."""
        generic = "__init__" not in vars(cls)
        if generic:  # transformers would write a dataclass's, which knows no field
            cls.__init__ = lambda self, **kwargs: super(cls, self).__init__(**kwargs)
        super().__init_subclass__(*args, **kwargs)
        if not generic:
            return
        *own, rest = inspect.signature(RecurrentConfig.__init__).parameters.values()
        names = {parameter.name for parameter in own}
        layer = [p for name, p in mixer_arguments(cls.layer_class).items() if name not in {*names, "layer_idx"}]
        keyword = inspect.Parameter.KEYWORD_ONLY
        cls.__init__.__signature__ = inspect.Signature([*own, *(p.replace(kind=keyword) for p in layer), rest])

    @classmethod
    def check_fields(cls, fields: dict) -> None:
        """Raises `ValueError` for what looks like a misspelt field; transformers' own and unknown ones pass."""
        signatures = (inspect.signature(base.__init__) for base in cls.__mro__ if issubclass(base, RecurrentConfig))
        known = {field for signature in signatures for field in signature.parameters if not field.endswith("_token_id")}
        theirs = vars(PreTrainedConfig())
        for field, value in fields.items():
            if field in known:
                continue
            near = [OTHER_NAMES[field]] if field in OTHER_NAMES else get_close_matches(field, known, n=1, cutoff=0.8)
            if near and field not in theirs:
                raise ValueError(f"{field}={value!r} is not a field of {cls.__name__}; did you mean {near[0]!r}?")

    def save_pretrained(self, save_directory: str, *args, **kwargs) -> None:
        """As transformers does, with what names this package: a line of code for `trust_remote_code`, and a model card."""
        if not is_own(type(self)):
            return super().save_pretrained(save_directory, *args, **kwargs)
        family = type(self).__name__.removesuffix("Config")
        self.auto_map = {auto: f"{REMOTE}.{family}{part}" for auto, part in REMOTE_PARTS.items()}
        names = sorted(family + part for part in REMOTE_PARTS.values())
        folder = Path(save_directory)
        if not folder.is_file():  # which transformers refuses
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{REMOTE}.py").write_text(
                REMOTE_CODE.format(names=", ".join(names), quoted=", ".join(f'"{name}"' for name in names))
            )
            if not (folder / "README.md").exists():
                (folder / "README.md").write_text(CARD.format(family))
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing to do for our own: a saved folder names this package, and needs no copy of its sources."""
        if not is_own(cls):
            super().register_for_auto_class(auto_class)


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
            both = [config.layer_class(layer_idx=layer_idx, **arguments) for _ in range(1 + config.bidirectional)]
            self.attn = Bidirectional(*both) if config.bidirectional else both[0]
        self.mlp_norm = norm(config.hidden_size, eps=config.norm_eps)
        self.mlp = GatedMLP(
            hidden_size=config.hidden_size,
            hidden_ratio=config.hidden_ratio,
            intermediate_size=config.intermediate_size,
            hidden_act=config.hidden_act,
            fuse_swiglu=config.fuse_swiglu,
        )

    def forward(self, hidden_states: torch.Tensor, attnres_states: None = None, **kwargs) -> tuple:
        """Called by `FLAModel.forward`; returns hidden states, attentions, the cache, and no `attnres_states`."""
        mixed, attentions, past_key_values = self.attn(hidden_states=self.attn_norm(hidden_states), **kwargs)
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(self.mlp_norm(hidden_states)), attentions, past_key_values, attnres_states


class RecurrentPreTrainedModel(FLAPreTrainedModel):
    config_class = RecurrentConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["RecurrentBlock"]  # noqa: RUF012

    def post_init(self) -> None:
        """With what the hook does for FLA's models, which is not there under `FLA_BDLRU_PATCHES=0`; done again, it is idle."""
        heed_cache(self)
        super().post_init()
        prepare(self)

    def initialize_weights(self) -> None:
        """As above, for the gates' start."""
        reset_gates(self)
        super().initialize_weights()

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """As for the config."""
        if not is_own(cls):
            super().register_for_auto_class(auto_class)


class RecurrentModel(RecurrentPreTrainedModel, FLAModel):
    """Embeddings, blocks and a last norm; `forward` is FLA's."""

    use_attnres = False

    def __init__(self, config: RecurrentConfig) -> None:
        for field in SWITCHES:  # which `from_pretrained(folder, fuse_norm=...)` sets behind the config's back
            check_switch(field, plain(getattr(config, field)))
        settle_direction(config)
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([RecurrentBlock(config, layer_idx) for layer_idx in range(config.num_hidden_layers)])
        self.norm = (RMSNorm if config.fuse_norm else nn.RMSNorm)(config.hidden_size, eps=config.norm_eps)
        self.gradient_checkpointing = False
        self.post_init()


def base_model(config: RecurrentConfig) -> RecurrentModel:
    """The model without a head that a config, or one that was derived from it, is for."""
    return (BDLRUModel if isinstance(config, BDLRUConfig) else HLRUModel)(config)


class Shifted(NamedTuple):
    """Labels that are shifted already, in the place of `labels`: of all labels FLA's `forward` hands on those alone."""

    shift_labels: torch.LongTensor


class RecurrentForCausalLM(RecurrentPreTrainedModel, FLAForCausalLM, FLAGenerationMixin):
    """A `RecurrentModel` with a language-modelling head; generation is FLA's."""

    _tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}  # noqa: RUF012
    if RENAMED:
        prepare_inputs_for_generation = prepare_inputs

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        if config.bidirectional:
            raise ValueError(f"bidirectional=True: {type(self).__name__} would see the tokens that it is to predict.")
        self.model = base_model(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.criterion = None
        self.post_init()

    @wraps(FLAForCausalLM.forward, assigned=())  # where Trainer finds the names of the labels that evaluation needs
    def forward(self, *args, shift_labels: torch.LongTensor | None = None, **kwargs) -> tuple | CausalLMOutputWithPast:
        r"""FLA's `forward`, which takes labels that are shifted already, too.

        Args:
            shift_labels (torch.LongTensor, Optional):
                Labels `[B, T]`, each the token after its own, as slices of a sequence need them; -100 is ignored. They come
                before `labels`, which the model shifts itself. Default: `None`.
            *args, **kwargs:
                As in FLA: `input_ids`, `attention_mask`, `inputs_embeds`, `past_key_values`, `labels`, `use_cache`,
                `output_hidden_states`, `return_dict`, `logits_to_keep`, `num_items_in_batch`, `cu_seqlens`, ...

        Returns:
            tuple | CausalLMOutputWithPast:
                `loss` where there are labels, a mean or a sum over `num_items_in_batch`, and 0 without a row; `logits`
                `[B, T, V]`, of which `logits_to_keep` counts without labels only; the cache and `hidden_states`.

        Raises:
            ValueError: if `shift_labels` is of another shape.

        Example:
            >>> import torch
            >>> from fla_bdlru import BDLRUConfig, BDLRUForCausalLM
            >>> model = BDLRUForCausalLM(BDLRUConfig(hidden_size=32, num_hidden_layers=1, vocab_size=50))
            >>> text = torch.randint(0, 50, (2, 9))
            >>> loss = model(text[:, :-1], shift_labels=text[:, 1:]).loss
            >>> assert torch.allclose(loss, model(text, labels=text).loss)
        """
        if shift_labels is not None:
            kwargs["labels"] = Shifted(shift_labels)
        return super().forward(*args, **kwargs)

    def _compute_logits_and_loss(
        self,
        hidden_states: torch.Tensor,
        labels: torch.LongTensor | Shifted | None = None,
        *args,
        shift_labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if isinstance(labels, Shifted):
            labels, shift_labels = None, labels.shift_labels
        if shift_labels is not None and shift_labels.shape != hidden_states.shape[:2]:
            shape = list(hidden_states.shape[:2])
            raise ValueError(f"shift_labels must have shape {shape}, as the tokens; got {list(shift_labels.shape)}.")
        if (labels is None and shift_labels is None) or hidden_states.numel():
            return super()._compute_logits_and_loss(hidden_states, labels, *args, shift_labels=shift_labels, **kwargs)
        # a mean over nothing is not a number: the sum over a token of zeros without a label, which has a gradient
        token = hidden_states.sum((0, 1), keepdim=True)
        unlabelled = torch.full_like(token[..., 0], getattr(self.criterion, "ignore_index", -100), dtype=torch.long)
        kwargs |= {"shift_labels": unlabelled, "num_items_in_batch": 1}
        loss, logits = super()._compute_logits_and_loss(token, None, *args, **kwargs)
        return loss, None if logits is None else self.lm_head(hidden_states)


class BDLRUConfig(RecurrentConfig):
    r"""Configuration of a BD-LRU model.

    Args:
        hidden_size (int, Optional):
            Width of the model. Default: 2048.
        num_hidden_layers (int, Optional):
            Number of blocks. Default: 24.
        block_size, num_blocks, expand, gate_norm, ...:
            Every other argument of `fla_bdlru.layers.BDLRU`, with its default.
        bidirectional (bool, Optional):
            Whether each block has two mixers, `fla_bdlru.layers.Bidirectional`; for classification and masked tokens,
            without a cache, `attn` or `mixer`. Default: `False`.
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


class HLRUConfig(RecurrentConfig):
    r"""Configuration of a H-LRU model.

    Args:
        hidden_size (int, Optional):
            Width of the model. Default: 2048.
        order, num_channels, expand, readout, gate_norm, ...:
            Every other argument of `fla_bdlru.layers.HLRU`, with its default.
        **kwargs:
            As in `BDLRUConfig`.

    Source: arXiv 2602.12021.

    Example:
        >>> from fla_bdlru.models import HLRUConfig, HLRUForCausalLM
        >>> model = HLRUForCausalLM(HLRUConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64, order=3))
        >>> assert model.model.layers[1].attn.order == 3
    """

    model_type = "hlru"
    layer_class = HLRU


def families(base: type[T], auto: type) -> list[type[T]]:
    """`base` for BD-LRU and for H-LRU, under their names, which transformers' class `auto` finds by their configs."""
    classes = []
    for config in (BDLRUConfig, HLRUConfig):
        name = base.__name__.replace("Recurrent", config.layer_class.__name__)
        classes.append(type(name, (base,), {"config_class": config, "__module__": base.__module__}))
        auto.register(config, classes[-1], exist_ok=True)
        if auto is AutoModelForCausalLM:  # Trainer smooths labels that it does not shift for others
            MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type] = name
    return classes


for _config in (BDLRUConfig, HLRUConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
BDLRUModel, HLRUModel = families(RecurrentModel, AutoModel)
BDLRUForCausalLM, HLRUForCausalLM = families(RecurrentForCausalLM, AutoModelForCausalLM)
