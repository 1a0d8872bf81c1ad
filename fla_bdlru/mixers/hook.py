"""The hook that swaps the mixers of any FLA model, as its config's `mixer` says."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import fla.models
import torch
from fla.models.configuration_utils import get_attention_spec
from fla.models.modeling_utils import FLAPreTrainedModel
from fla.models.utils import Cache
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.initialization import guard_torch_init_functions
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fla_bdlru.decoding import rewind_cache
from fla_bdlru.layers.base import of_this_call
from fla_bdlru.layers.gated import GatedRecurrence, placed_as
from fla_bdlru.mixers.arguments import heed_arguments
from fla_bdlru.mixers.cache_name import NEW, OLD, RENAMED, given_cache, heed_cache, knows
from fla_bdlru.mixers.packing import heed_documents
from fla_bdlru.mixers.registry import NATIVE, build_mixer, find_mixer, mixer_arguments, names_mixers, resolve_mixers
from fla_bdlru.mixers.saved_configs import MARK
from fla_bdlru.patches import record, wrap

MODEL = "fla.models.modeling_utils:FLAPreTrainedModel"

# Parts that FLA's own model of a mixer leaves as the layer's constructor made them; another model would draw them anew.
_KEEPS_INIT = {"mamba": ("conv1d", "dt_proj")}

# Models whose `_init_weights` refuses a layer with an `o_proj`.
_REFUSES_O_PROJ = ("mamba2", "mamba3", "log_linear_mamba2")

# Models whose blocks ask more of a mixer than FLA's layer signature, and so keep their own.
_REFUSED = {
    "CATModel": "its attention works on chunk summaries through a FlexAttention mask, not on a sequence",
    "MomModel": "its loss reads router logits, which only its own mixer has",
}

# The variable that asks for checks that cost time on a GPU.
DEBUG_VAR = "FLA_BDLRU_DEBUG"

# Models whose blocks hand no keyword arguments on to their mixers.
_KEEPS_CONTEXT = {"LinearAttentionModel"}


class Swap(NamedTuple):
    """A layer and the place that it is for."""

    block: nn.Module
    slot: str
    layer: nn.Module

    def apply(self) -> None:
        """Puts the layer there."""
        setattr(self.block, self.slot, self.layer)


def plan_swaps(model: FLAPreTrainedModel, anew: bool = True) -> list[Swap]:
    """The new mixers of the blocks that `model` itself holds, as its config's `mixer` says; changes nothing.

    Without `anew`, blocks that hold just that mixer by an earlier swap keep it.
    Layers that `config.attn` gives to attention stay attention, and so do the cross-decoder layers of YOCO.

    Raises:
        ValueError: for wrong fields, or a model whose blocks cannot take another mixer.
    """
    config, blocks = model.config, _blocks(model)
    known = inspect.signature(type(config).__init__).parameters
    for field, value in vars(config).items():
        if field.startswith("mixer") and field not in ("mixer", "mixer_config", *known):
            raise ValueError(f"{field}={value!r} is not a field of {type(config).__name__}; it takes mixer and mixer_config.")
    if getattr(config, "mixer", None) is None:
        if getattr(config, "mixer_config", None):
            raise ValueError(f"mixer_config={config.mixer_config!r} is not accepted without mixer, which says whose it is.")
        return []
    if blocks is None:
        if any(isinstance(child, FLAPreTrainedModel) for child in model.children()):
            return []  # a head on top of a model that has been through here
        raise ValueError(f"mixer={config.mixer!r}: {type(model).__name__} has no blocks that this package knows how to swap.")
    reason = _REFUSED.get(type(model).__name__)
    if reason is None and getattr(config, "block_type", None) == "rodimus_plus":
        reason = "its shared-key attention reads the keys of its own mixer (block_type='rodimus' works)"
    if reason is not None:
        raise ValueError(f"mixer={config.mixer!r}: {type(model).__name__} keeps its own mixer, as {reason}.")
    if getattr(config, "bidirectional", False):
        raise ValueError(f"mixer={config.mixer!r} is not accepted with bidirectional=True: its layers only look back.")
    mixers, swaps = resolve_mixers(config, len(blocks)), []
    check_stray(config, {name for name, _ in mixers if name != NATIVE})
    for layer_idx, (block, (name, arguments)) in enumerate(zip(blocks, mixers)):
        if get_attention_spec(getattr(config, "attn", None), layer_idx=layer_idx) is not None:
            continue
        block = _unwrapped(block)
        slot = _slot(block)
        held = getattr(block, slot or "", None)
        if name == NATIVE:
            if hasattr(held, "_is_swapped"):
                raise ValueError(
                    f"mixer={config.mixer!r}: layer {layer_idx} holds {type(held).__name__} by an earlier swap, and its own "
                    f"mixer is gone; name a mixer instead of {NATIVE!r}, or build the model anew."
                )
            continue
        if slot is None:
            raise ValueError(f"mixer={name!r}: {type(block).__name__} of {type(model).__name__} has no mixer to swap.")
        if not anew and getattr(held, "_is_swapped", None) == (name, arguments):
            continue
        layer = build_mixer(name, config.hidden_size, layer_idx=layer_idx, **arguments)
        layer._is_swapped = (name, arguments)
        if any(tensor.is_meta for tensor in (*layer.parameters(), *layer.buffers())):
            layer._built_as = (name, config.hidden_size, layer_idx, arguments)
        else:
            keep_init(layer, name)
        if type(block).__name__ == "RWKV7Block":
            layer.register_forward_hook(_pass_v_first, with_kwargs=True)
        swaps.append(Swap(block, slot, layer))
    _check_first_values(config, blocks, mixers)
    return swaps


def _check_first_values(config: PreTrainedConfig, blocks: Sequence[nn.Module], mixers: Sequence[tuple[str, dict]]) -> None:
    # ValueError, where RWKV-7's own mixers would mix in the values of a first layer that another mixer took
    own = [i for i, (name, _) in enumerate(mixers) if name == NATIVE and type(_unwrapped(blocks[i])).__name__ == "RWKV7Block"]
    if own and mixers[0][0] != NATIVE:
        raise ValueError(
            f"mixer={config.mixer!r}: layer {own[0]} keeps RWKV-7's own mixer, which mixes in the first layer's values; name "
            f"{NATIVE!r} for layer 0 too, or a mixer for every layer."
        )


def keep_init(layer: nn.Module, name: str) -> None:
    """Has transformers leave what a model's `_init_weights` must not draw anew."""
    for part in _KEEPS_INIT.get(name, ()):
        for parameter in getattr(layer, part).parameters():
            parameter._is_hf_initialized = True


def is_initialized(layer: nn.Module, name: str, parameter: nn.Parameter, by_module: bool = True) -> bool:
    """Whether transformers takes a layer's parameter for initialised, by itself or with its module.

    A copy of a model loses the flags of its parameters and keeps those of its modules.
    """
    owners = [parameter, layer.get_submodule(name.rpartition(".")[0])][: 1 + by_module]
    return any(getattr(owner, "_is_hf_initialized", False) for owner in owners)


def keep_from(model: FLAPreTrainedModel, layer: nn.Module) -> None:
    """Has a model's `_init_weights` see the parts of a swapped layer and not the layer, where it would refuse that."""
    if model.config.model_type in _REFUSES_O_PROJ and hasattr(layer, "o_proj"):
        layer._is_hf_initialized = True


def _tensors(layer: nn.Module) -> list[tuple[str, torch.Tensor]]:
    # buffers that are not saved are in no checkpoint; the parameters of our own layers are drawn by them and `_init_weights`
    own = [] if isinstance(layer, GatedRecurrence) else layer.named_parameters()
    return [*own, *layer.named_buffers()]


def fill_missing(layer: nn.Module) -> None:
    """Gives a layer that was made on the meta device what its constructor draws, where a checkpoint has none of it.

    transformers leaves memory as it was allocated there, and a model's `_init_weights` knows the parts of its own mixer only.
    """
    # before that the flags of modules say nothing: RWKV-6 sets them on the meta device, too
    by_module = getattr(layer, "_is_filled", False)
    blank = {name: tensor for name, tensor in _tensors(layer) if not tensor.is_meta}
    missing = {name: p for name, p in blank.items() if not is_initialized(layer, name, p, by_module)}
    layer._is_filled = bool(blank)
    if not missing:
        return
    name, hidden_size, layer_idx, arguments = layer._built_as
    with torch.device("cpu"):
        drawn = build_mixer(name, hidden_size, layer_idx, **arguments)
    keep_init(drawn, name)
    for key, value in _tensors(drawn):
        if key in missing:
            with torch.no_grad():
                missing[key].copy_(placed_as(value, missing[key]))
            if hasattr(value, "_is_hf_initialized"):
                missing[key]._is_hf_initialized = True


def reset_gates(model: FLAPreTrainedModel) -> None:
    """Starts the gates of a model's layers, and learned states, where no checkpoint has them; done again, it is idle."""
    for layer in (module for module in model.modules() if isinstance(module, GatedRecurrence)):
        starts = {id(parameter) for parameter in layer.mark_parameters()}
        if not all(is_initialized(layer, name, p) for name, p in layer.named_parameters() if id(p) in starts):
            layer.reset_parameters()


def check_stray(config: PreTrainedConfig, names: set[str]) -> None:
    """Raises `ValueError` for an argument of a mixer beside `mixer_config`, where FLA's configs take what they do not know."""
    if getattr(config, "transformers_version", None) is not None:  # saved, and trained without it
        return
    known = {field for cls in type(config).__mro__ for field in inspect.signature(cls.__init__).parameters}
    stray = vars(config).keys() - known - vars(PreTrainedConfig()).keys()
    for name in sorted(names):
        for field in sorted(stray & mixer_arguments(find_mixer(name)).keys()):
            if field not in vars(type(config)()):  # which some configs work out of others
                value = getattr(config, field)
                raise ValueError(
                    f"{field}={value!r} is not a field of {type(config).__name__}, but an argument of {name!r}: "
                    f"pass mixer_config={{{field!r}: {value!r}}}."
                )


def swap_blocks(model: FLAPreTrainedModel) -> None:
    """Replaces the mixers of the blocks that `model` itself holds, as its config's `mixer` says; raises as `plan_swaps`."""
    for field in {"mixer", "mixer_config"} & vars(model.config).keys():  # whoever gave them may change his later
        setattr(model.config, field, deepcopy(getattr(model.config, field)))
    for swap in plan_swaps(model, anew=False):
        swap.apply()
    _freeze_idle(model)


def _freeze_idle(model: FLAPreTrainedModel) -> None:
    # HGRN's lower bounds are for mixers that take them, its own or swapped in; a parameter without a gradient stops DDP
    bounds = getattr(model, "lower_bounds", None)
    if bounds is None:
        return
    mixers = [getattr(block, _slot(block)) for block in _blocks(model)]
    idle = not any("lower_bound" in inspect.signature(mixer.forward).parameters for mixer in mixers)
    if idle != hasattr(bounds, "_is_idle"):
        bounds.requires_grad_(not idle)
        if idle:
            bounds._is_idle = True
        else:
            del bounds._is_idle


def swap_mixers(
    model: FLAPreTrainedModel, mixer: str | list[str] | None = None, mixer_config: dict | list | None = None
) -> FLAPreTrainedModel:
    r"""Swaps the mixers of a model that is built already, by hand.

    What the hook does while an FLA model is built from a config with `mixer`, for models that were built without, and for
    `FLA_BDLRU_PATCHES=0`. The new layers are initialised as the model initialises its own, on its device and in its dtype;
    everything else keeps its weights.

    Args:
        model (FLAPreTrainedModel):
            A model of FLA, with or without a head.
        mixer (str or list[str], Optional):
            A registered name, or a list with one a layer; it becomes the config's. Default: what the config says.
        mixer_config (dict or list, Optional):
            Arguments of the layers, as in a config. Default: what the config says, if it says `mixer` too.

    Returns:
        FLAPreTrainedModel:
            The same model, with a config of its own.

    Raises:
        ValueError: if `model` is not one of FLA's, neither the argument nor the config names a mixer, a field is wrong, the
            model's blocks cannot take another mixer, or `"native"` is asked for where an earlier swap took the model's own.
            The model is then as it was.

    Example:
        >>> import fla_bdlru
        >>> from fla.models import GLAConfig, GLAForCausalLM
        >>> model = GLAForCausalLM(GLAConfig(hidden_size=32, num_hidden_layers=2, num_heads=2, vocab_size=50))
        >>> model = fla_bdlru.swap_mixers(model, "bdlru", {"block_size": 2})
        >>> assert [type(block.attn).__name__ for block in model.model.layers] == ["BDLRU", "BDLRU"]
    """
    if not isinstance(model, FLAPreTrainedModel):
        raise ValueError(f"model must be a model of flash-linear-attention; got {type(model).__name__}.")
    if mixer is None and getattr(model.config, "mixer", None) is None:
        raise ValueError("mixer=None: the config of the model names none either; pass a name or a list of names.")
    parts = [module for module in model.modules() if isinstance(module, FLAPreTrainedModel)]
    with _own_configs(model):
        for each in {id(part.config): part.config for part in parts}.values():  # a head may hold a copy
            if mixer is not None:
                each.mixer, each.mixer_config = deepcopy(mixer), deepcopy(mixer_config)
            vars(each).pop("attn_implementation", None)
            if names_mixers(each):
                each.attn_implementation = MARK  # by the hand of `to_dict`, too, but for `FLA_BDLRU_PATCHES=0`
        resolve_mixers(model.config, model.config.num_hidden_layers)
        swaps = [(part, swap) for part in parts if _blocks(part) is not None for swap in plan_swaps(part)]
        for part, swap in swaps:
            swap.layer.to(device=device_of(swap.block, part), dtype=next(part.parameters()).dtype).train(part.training)
            _initialize(part, swap.layer)
    for _, swap in swaps:
        swap.apply()
    for part in parts:
        _freeze_idle(part)
        prepare(part)
    return model


def device_of(block: nn.Module, model: FLAPreTrainedModel) -> torch.device:
    """Where a block of a model that may be spread over devices runs: its weights' device, unless they are offloaded."""
    devices = (parameter.device for module in (block, model) for parameter in module.parameters())
    return next((device for device in devices if device.type != "meta"), torch.device("meta"))


@contextmanager
def _own_configs(model: FLAPreTrainedModel) -> Iterator[None]:
    """Puts copies in the place of a model's configs, which another model may share; takes them back on an error."""
    held = [module for module in model.modules() if isinstance(vars(module).get("config"), PreTrainedConfig)]
    configs = [module.config for module in held]
    copies = {id(config): deepcopy(config) for config in configs}
    for module, config in zip(held, configs):
        module.config = copies[id(config)]
    try:
        yield
    except BaseException:
        for module, config in zip(held, configs):
            module.config = config
        raise


def _initialize(model: FLAPreTrainedModel, layer: nn.Module) -> None:
    # as transformers does for a whole model, whose other weights stay
    for part in layer.modules():
        if isinstance(part, GatedRecurrence):
            part.reset_parameters()
    keep_from(model, layer)
    with guard_torch_init_functions(), torch.no_grad():
        layer.apply(model._initialize_weights)


def prepare(model: FLAPreTrainedModel) -> None:
    """Has a model with our layers or with `mixer` look at what it is called with: masks, slices, packed documents."""
    ours = names_mixers(model.config) or any(isinstance(module, GatedRecurrence) for module in model.modules())
    if ours or RENAMED:
        heed_cache(model)
    if ours and not hasattr(model, "_is_prepared"):
        heed_arguments(model)
        model.register_forward_pre_hook(check_call, with_kwargs=True)
        model.register_forward_hook(return_given_cache, with_kwargs=True)
        taken = inspect.signature(model.forward).parameters.values()
        model._takes_use_cache = any(p.name == "use_cache" or p.kind is p.VAR_KEYWORD for p in taken)
        model.init_continuous_batching = refuse_continuous_batching
        model._is_prepared = True
    heed_documents(model)


def _blocks(model: FLAPreTrainedModel) -> nn.ModuleList | None:
    """The blocks that `model` itself holds."""
    return next((b for b in (getattr(model, n, None) for n in ("self_layers", "layers")) if b is not None), None)


def _unwrapped(block: nn.Module) -> nn.Module:
    """What holds the mixer, where a block is wrapped (checkpointed, compiled): what is set on a wrapper stays there."""
    return next((part for part in block.modules() if {"mixer", "attn"} & part._modules.keys()), block)


def _slot(block: nn.Module) -> str | None:
    """Under which name a block holds its mixer."""
    return next((slot for slot in ("mixer", "attn") if isinstance(getattr(block, slot, None), nn.Module)), None)


def check_call(model: FLAPreTrainedModel, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """What is looked at before every call of a model: token ids (under `FLA_BDLRU_DEBUG=1`), the cache, labels, `cp_context`.

    With a cache FLA's attention takes every mask for left padding. So a mask that pads elsewhere turns the cache off, as do
    labels, which need none, unless it is asked for. Without `use_cache` the layers get a copy of a cache, as FLA's attention
    writes to it all the same.

    Raises:
        ValueError: for a cache that is not FLA's, token ids outside the vocabulary, which on a GPU are a device assert, a
            cache together with attention and a mask that pads elsewhere than on the left or leaves out what the cache holds,
            several new tokens after a cache and padding before attention with a window, or as `check_checkpointing`,
            `check_labels` and `check_context_parallel`.
    """
    cache = given_cache(kwargs)
    if cache is not None and not isinstance(cache, (Cache, list, tuple)):  # which FLA puts an empty one in the place of
        raise ValueError(f"past_key_values must be a fla.models.utils.Cache; got {type(cache).__name__}.")
    ids = kwargs.get("input_ids", args[0] if args else None)
    vocabulary = getattr(model.config, "vocab_size", None)
    if os.environ.get(DEBUG_VAR) == "1" and torch.is_tensor(ids) and ids.numel() and vocabulary:
        low, high = (int(value) for value in ids.aminmax())
        if low < 0 or high >= vocabulary:
            raise ValueError(f"input_ids must lie between 0 and {vocabulary - 1} (vocab_size - 1); got {low} to {high}.")
    asked = kwargs.get("use_cache") or cache is not None
    misread = kwargs.get("cu_seqlens") is None and misreads_mask(model, kwargs.get("attention_mask"))
    if misread and asked and kwargs.get("use_cache") is not False:
        raise ValueError(
            "attention_mask has padding after tokens, which FLA's attention takes for left padding when there is a cache: pad "
            "on the left, or pass use_cache=False."
        )
    if isinstance(cache, Cache) and kwargs.get("cu_seqlens") is None:
        check_cached_mask(model, args, kwargs, cache)
    if model.training and asked and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        check_checkpointing(cache)
        # blocks that are run again in the backward would find what they left there
        kwargs = {name: value for name, value in kwargs.items() if name not in (OLD, NEW)}
        if model._takes_use_cache:
            kwargs["use_cache"] = False
    labelled = any(kwargs.get(name) is not None for name in ("labels", "shift_labels"))
    unneeded = (misread or labelled) and not asked and kwargs.get("use_cache") is None
    if unneeded and model._takes_use_cache:  # a head of one's own may not, and the model in it turns it off
        kwargs["use_cache"] = False
    check_labels(model, kwargs)
    check_context_parallel(model, args, kwargs)
    if cache is not None and isinstance(cache, Cache) and continues_in_window(model, args, kwargs, cache):
        if not kwargs["attention_mask"].all():
            raise ValueError(
                "several new tokens after a cache, and padding in attention_mask: FLA's attention with a window has dropped "
                "keys that the first of them look at; call the model token by token, or from the start without a cache."
            )
        kwargs["attention_mask"] = None  # with which FLA's attention keeps those keys
    if torch.is_tensor(kwargs.get("attention_mask")):
        kwargs["attention_mask"] = of_this_call(kwargs["attention_mask"])
    use_cache = kwargs.get("use_cache")
    if not (model.config.use_cache and not model.training if use_cache is None else use_cache):
        kwargs.update({name: copied(kwargs[name]) for name in (OLD, NEW) if isinstance(kwargs.get(name), Cache)})
    return args, kwargs


@torch.compiler.disable
def copied(cache: Cache) -> Cache:
    """Another cache with the same states, for a call that is to leave `cache` as it is."""
    copy = rewind_cache(cache, 0)
    copy._copy_of = cache
    return copy


def return_given_cache(model: FLAPreTrainedModel, args: tuple, kwargs: dict, output: Any) -> tuple | None:
    """Puts the cache that a model was called with in the place of the copy that its layers got."""
    cache = given_cache(kwargs)
    if not hasattr(cache, "_copy_of"):
        return None
    if isinstance(output, tuple):
        return tuple(cache._copy_of if part is cache else part for part in output)
    if isinstance(output, dict):
        for name in [name for name, part in output.items() if part is cache]:
            output[name] = cache._copy_of
    return None


def has_attention(model: FLAPreTrainedModel) -> bool:
    """Whether `model` has FLA's attention, or another layer that counts positions."""
    return any(hasattr(module, "rotary") for module in model.modules())


def check_cached_mask(model: FLAPreTrainedModel, args: tuple, kwargs: dict, cache: Cache) -> None:
    """Raises `ValueError` for a mask without the tokens that a cache holds, before FLA's attention, which needs them."""
    tokens = kwargs.get("input_ids", args[0] if args else None)
    tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
    mask = kwargs.get("attention_mask")
    if not (torch.is_tensor(tokens) and torch.is_tensor(mask) and tokens.ndim > 1 and mask.ndim == 2):
        return
    held, new = cache.get_seq_length(), tokens.shape[1]
    if new <= mask.shape[1] < held + new and has_attention(model):
        raise ValueError(
            f"attention_mask must have shape {[len(tokens), held + new]}, of the {held} tokens in the cache and the {new} new "
            f"ones, for FLA's attention; got {list(mask.shape)}."
        )


def continues_in_window(model: FLAPreTrainedModel, args: tuple, kwargs: dict, cache: Cache) -> bool:
    """Whether several tokens and a mask come after a cache, and `model` has FLA's attention with a window."""
    tokens = kwargs.get("input_ids", args[0] if args else None)
    tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
    if tokens is None or tokens.ndim < 2 or tokens.shape[1] == 1 or not cache.get_seq_length():
        return False
    if not torch.is_tensor(kwargs.get("attention_mask")) or torch.compiler.is_compiling():
        return False
    return any(hasattr(module, "rotary") and getattr(module, "window_size", None) for module in model.modules())


def check_checkpointing(past_key_values: Cache | None) -> None:
    """Raises `ValueError` where blocks that are checkpointed, and drop a cache, are called for its sake."""
    if (past_key_values is not None and past_key_values.get_seq_length()) or not torch.is_grad_enabled():
        raise ValueError(
            "gradient_checkpointing in training drops the cache, so that what follows would not know what came before: call "
            "model.eval() or model.gradient_checkpointing_disable() before generate(), or pass use_cache=False."
        )


def refuse_continuous_batching(*args, **kwargs) -> None:
    """In the place of what transformers' `generate_batch` and `cache_implementation="paged"` begin with."""
    raise ValueError(
        "transformers' continuous batching (generate_batch, cache_implementation='paged') keeps pages of keys and values, and "
        "has no place for a recurrent state: use generate with a batch padded on the left."
    )


def misreads_mask(model: FLAPreTrainedModel, attention_mask: torch.Tensor | None) -> bool:
    """Whether a mask pads elsewhere than on the left and `model` has FLA's attention, which counts positions from its sum."""
    if not torch.is_tensor(attention_mask) or attention_mask.ndim != 2 or attention_mask.is_meta:
        return False
    if torch.compiler.is_compiling() or not has_attention(model):
        return False
    mask = attention_mask.bool()
    return bool((mask[:, :-1] & ~mask[:, 1:]).any())


def check_labels(model: FLAPreTrainedModel, kwargs: dict) -> None:
    """Raises `ValueError` for `shift_labels` that come as far as the blocks: a loss that knows them hands them no further."""
    if kwargs.get("shift_labels") is None or knows(model.forward, "shift_labels"):
        return
    base = getattr(model, model.base_model_prefix, model)
    if _blocks(model) is not None or type(base).__name__ in _KEEPS_CONTEXT:
        raise ValueError(
            f"shift_labels would have no effect: neither {type(base).__name__} nor the head on top of it takes any. Pass "
            "labels, which language models shift themselves."
        )


def check_context_parallel(model: FLAPreTrainedModel, args: tuple, kwargs: dict) -> None:
    """Refuses `cp_context` where a part of `model` would ignore it and take a rank's slice for the whole sequence.

    Raises:
        ValueError: naming a layer that looks at other tokens than its own, and is not made for slices.
    """
    if kwargs.get("cp_context") is None or not any(isinstance(module, GatedRecurrence) for module in model.modules()):
        return
    holders = [m for m in model.modules() if isinstance(m, FLAPreTrainedModel) and _blocks(m) is not None]
    mixers = {getattr(block, _slot(block)) for m in holders for block in _blocks(m) if _slot(block) is not None}
    for holder in holders:
        if type(holder).__name__ in _KEEPS_CONTEXT:
            raise ValueError(f"cp_context: {type(holder).__name__} does not hand it on to its mixers; pass None.")
    for name, module in model.named_modules():
        # FLA's layers take no context, and RWKV's feed-forward layers shift along time
        across = module in mixers or type(module).__module__.startswith("fla.layers") or isinstance(module, nn.ZeroPad2d)
        if across and not getattr(module, "supports_context_parallel", False):
            raise ValueError(
                f"cp_context: {name} of {type(model).__name__}, {type(module).__name__}, cannot be split along time; "
                "use mixer='bdlru' or 'hlru' in every layer, or pass None."
            )


def _pass_v_first(module: nn.Module, args: tuple, kwargs: dict, output: tuple) -> tuple:
    """RWKV-7's blocks hand the first layer's values on through the mixer."""
    return *output, kwargs["v_first"]


def _swap_before(post_init: Callable, self: FLAPreTrainedModel) -> None:
    swap_blocks(self)
    prepare(self)
    post_init(self)


def _refuse_before(post_init: Callable, self: FLAPreTrainedModel) -> None:
    if names_mixers(self.config):
        raise ValueError(
            f"mixer={self.config.mixer!r} is refused, as FLA_BDLRU_PATCHES=0 leaves FLA as it is: build the model "
            "without mixer and call fla_bdlru.swap_mixers(model, mixer=...), or unset the variable."
        )
    post_init(self)


def _reset_before(initialize_weights: Callable, self: FLAPreTrainedModel) -> None:
    # what a checkpoint lacks comes here blank, and `_init_weights` would zero the gates' bias as any other
    for layer in (module for module in self.modules() if hasattr(module, "_built_as")):
        fill_missing(layer)
    reset_gates(self)
    for layer in (module for module in self.modules() if hasattr(module, "_is_swapped")):
        keep_from(self, layer)
    initialize_weights(self)


def install_hook() -> None:
    """Makes every FLA model heed `mixer` and `mixer_config`; `import fla_bdlru` calls it."""
    why = "blocks get the mixers that `config.mixer` names; packed inputs become `cu_seqlens`"
    wrap(f"{MODEL}.post_init", _swap_before, why)
    wrap(f"{MODEL}.initialize_weights", _reset_before, "the bias of gates keeps its start (`gate_bias`) and its marks")
    for config, model in AutoModelForCausalLM._model_mapping._extra_content.items():
        if config.__module__.startswith("fla."):
            MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(config.model_type, model.__name__)
    why = "`Trainer` with label smoothing shifts the labels of models that this table names; FLA's were not in it"
    record("transformers.models.auto.modeling_auto:MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", why)
    for name, cls in vars(fla.models).items():
        if isinstance(cls, type) and issubclass(cls, PreTrainedConfig):
            cls.mixer = cls.mixer_config = None
            why = "`from_pretrained(folder, mixer=...)` takes fields that a config has, and drops others in silence"
            record(f"fla.models:{name}.mixer", why)
            if RENAMED:
                cls.keys_to_ignore_at_inference = [*getattr(cls, "keys_to_ignore_at_inference", []), NEW]
                why = "`Trainer.predict` gathers all outputs but these, and transformers 5.24 calls the cache `cache`"
                record(f"fla.models:{name}.keys_to_ignore_at_inference", why)


def install_refusal() -> None:
    """Makes FLA refuse a config with `mixer`, for `FLA_BDLRU_PATCHES=0`: alone it would build its own layers in silence."""
    why = "a config with `mixer` is refused, not silently built with FLA's own layers"
    wrap(f"{MODEL}.post_init", _refuse_before, why)
