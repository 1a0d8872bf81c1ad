"""The registry behind `mixer="..."`, and the hook that swaps the mixers of any FLA model."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from functools import wraps
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import fla.layers
import torch
from fla.layers.simple_gla import SimpleGatedLinearAttention
from fla.models.configuration_utils import get_attention_spec
from fla.models.modeling_utils import FLAPreTrainedModel
from torch import nn

from fla_bdlru.integrations.lrnnx import LAYERS as LRNNX_LAYERS
from fla_bdlru.integrations.lrnnx import lrnnx_mixer
from fla_bdlru.layers import BDLRU, HLRU, LSTM
from fla_bdlru.layers.gated import GatedRecurrence
from fla_bdlru.packing import heed_documents

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

NATIVE = "native"

_MIXERS: dict[str, type[nn.Module]] = {
    "bdlru": BDLRU,
    "hlru": HLRU,
    "lstm": LSTM,
    # FLA's own layers, under the names of its models where there is one
    "abc": fla.layers.ABCAttention,
    "attn": fla.layers.Attention,
    "comba": fla.layers.Comba,
    "delta_net": fla.layers.DeltaNet,
    "forgetting_attn": fla.layers.ForgettingAttention,
    "gated_deltanet": fla.layers.GatedDeltaNet,
    "gated_deltaproduct": fla.layers.GatedDeltaProduct,
    "gdn2": fla.layers.GatedDeltaNet2,
    "gla": fla.layers.GatedLinearAttention,
    "gsa": fla.layers.GatedSlotAttention,
    "hgrn": fla.layers.HGRNAttention,
    "hgrn2": fla.layers.HGRN2Attention,
    "kda": fla.layers.KimiDeltaAttention,
    "lightnet": fla.layers.LightNetAttention,
    "linear_attn": fla.layers.LinearAttention,
    "log_linear_mamba2": fla.layers.LogLinearMamba2,
    "mamba": fla.layers.Mamba,
    "mamba2": fla.layers.Mamba2,
    "mamba3": fla.layers.Mamba3,
    "mesa_net": fla.layers.MesaNet,
    "momentum_deltanet": fla.layers.MomentumDeltaNet,
    "path_attn": fla.layers.PaTHAttention,
    "retnet": fla.layers.MultiScaleRetention,
    "rwkv6": fla.layers.RWKV6Attention,
    "simple_gla": SimpleGatedLinearAttention,
}

# Parts that FLA's own model of a mixer leaves as the layer's constructor made them; another model would draw them anew.
_KEEPS_INIT = {"mamba": ("conv1d", "dt_proj")}

# Models whose blocks ask more of a mixer than FLA's layer signature, and so keep their own.
_REFUSED = {
    "CATModel": "its attention works on chunk summaries through a FlexAttention mask, not on a sequence",
    "MomModel": "its loss reads router logits, which only its own mixer has",
}

# Models whose blocks hand no keyword arguments on to their mixers.
_KEEPS_CONTEXT = {"LinearAttentionModel"}


def find_mixer(name: str) -> type[nn.Module] | None:
    """The layer class of a mixer, or `None` if there is no such mixer; imports lrnnx for one of its layers."""
    if not isinstance(name, str):
        return None
    return lrnnx_mixer(name) if name in LRNNX_LAYERS and name not in _MIXERS else _MIXERS.get(name)


def register_mixer(name: str, cls: type[nn.Module]) -> None:
    r"""Adds a layer class to what `mixer="..."` accepts.

    Args:
        name (str):
            The name; must be new.
        cls (type[nn.Module]):
            A class with FLA's layer signature: the constructor takes `hidden_size` and `layer_idx`, `forward` takes
            `(hidden_states, attention_mask, past_key_values, use_cache, output_attentions, **kwargs)` and returns
            `(o, None, past_key_values)`.

    Raises:
        ValueError: if the name is taken or no name, `cls` is no class of modules, or its constructor lacks one of the two
            arguments.

    Example:
        >>> from fla_bdlru.layers import BDLRU
        >>> from fla_bdlru.mixers import available_mixers, register_mixer
        >>> class MyMixer(BDLRU):
        ...     pass
        >>> register_mixer("my_mixer", MyMixer)
        >>> assert "my_mixer" in available_mixers()
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"name={name!r} is not accepted; expected a string that is not empty.")
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ValueError(f"cls={cls!r} is not accepted; expected a subclass of torch.nn.Module (the class, not a layer).")
    if name == NATIVE or name in available_mixers():
        raise ValueError(
            f"mixer name {name!r} is taken; registered are {', '.join(map(repr, [NATIVE, *available_mixers()]))}."
        )
    missing = {"hidden_size", "layer_idx"} - set(mixer_arguments(cls))
    if missing:
        raise ValueError(
            f"{cls.__name__}.__init__ must take hidden_size and layer_idx; it lacks {', '.join(sorted(missing))}."
        )
    _MIXERS[name] = cls


def available_mixers() -> list[str]:
    """Names that `mixer="..."` accepts, `"native"` (the model's own) aside; those of lrnnx where it is installed.

    Example:
        >>> from fla_bdlru.mixers import available_mixers
        >>> assert {"bdlru", "hlru", "lstm", "gated_deltanet", "mamba2"} <= set(available_mixers())
    """
    return sorted([*_MIXERS, *(LRNNX_LAYERS if find_spec("lrnnx") else ())])


def mixer_arguments(cls: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Named constructor arguments of a layer class (FLA's layers swallow unknown ones in `**kwargs`)."""
    parameters = inspect.signature(cls.__init__).parameters.items()
    return {name: p for name, p in parameters if name != "self" and p.kind is not inspect.Parameter.VAR_KEYWORD}


def check_arguments(field: str, name: str, cls: type[nn.Module], arguments: dict[str, Any]) -> None:
    """Raises `ValueError` for what the constructor of the layer `name` does not take; `field` is where it was given."""
    accepted = [argument for argument in mixer_arguments(cls) if argument not in ("hidden_size", "layer_idx")]
    for argument, value in arguments.items():
        if argument not in accepted:
            raise ValueError(f"{field}: {argument}={value!r} is not an argument of {name!r}; it takes {', '.join(accepted)}.")


def build_mixer(name: str, hidden_size: int, layer_idx: int | None = None, **mixer_config: Any) -> nn.Module:
    r"""Builds a registered layer.

    Args:
        name (str):
            One of `available_mixers()`.
        hidden_size (int):
            Width of inputs and outputs.
        layer_idx (int, Optional):
            Index of the layer in its model, which a cache needs. Default: `None`.
        **mixer_config:
            Arguments of the layer's constructor.

    Returns:
        torch.nn.Module:
            The layer.

    Raises:
        ValueError: if the name or an argument is not known, or the layer refuses a value.

    Example:
        >>> from fla_bdlru.mixers import build_mixer
        >>> layer = build_mixer("bdlru", hidden_size=32, block_size=2)
        >>> assert layer.num_blocks == 16
    """
    cls = find_mixer(name)
    if cls is None:
        near = get_close_matches(str(name), available_mixers(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"mixer={name!r} is not known;{hint} expected one of {', '.join([NATIVE, *available_mixers()])}.")
    check_arguments("mixer_config", name, cls, mixer_config)
    try:
        return cls(hidden_size=hidden_size, layer_idx=layer_idx, **mixer_config)
    except (AssertionError, ArithmeticError, TypeError) as error:  # what FLA's layers say of arguments that do not fit
        raise ValueError(f"mixer={name!r} with {mixer_config} at hidden_size={hidden_size}: {error}") from error


def resolve_mixers(config: PreTrainedConfig, num_layers: int) -> list[tuple[str, dict[str, Any]]]:
    """A (name, arguments) pair per layer, from a config's `mixer` and `mixer_config`.

    `mixer` is a name or a list of `num_layers` names. `mixer_config` is a dictionary of arguments; where a list names more
    than one mixer, a dictionary of such dictionaries by name, or a list of them by layer.

    Raises:
        ValueError: if either field is of the wrong type or length, does not say whose arguments it holds, or holds what its
            layer does not take.
    """
    mixer, arguments = config.mixer, getattr(config, "mixer_config", None) or {}
    if isinstance(mixer, str):
        names = [mixer] * num_layers
    elif isinstance(mixer, (list, tuple)):
        names = list(mixer)
    else:
        raise ValueError(f"mixer must be a name or a list of names, one a layer; got {mixer!r}.")
    if len(names) != num_layers:
        raise ValueError(f"mixer must have one entry for each of the {num_layers} layers; got {len(names)}: {names!r}.")
    for name in names:
        if name != NATIVE and find_mixer(name) is None:
            build_mixer(name, config.hidden_size)
    used = sorted({name for name in names if name != NATIVE})
    if isinstance(arguments, (list, tuple)):
        if len(arguments) != num_layers:
            raise ValueError(f"mixer_config must have one entry for each of the {num_layers} layers; got {len(arguments)}.")
        per_layer = [{} if entry is None else entry for entry in arguments]
    elif not isinstance(arguments, dict):
        raise ValueError(f"mixer_config must be a dictionary, or a list of them, one a layer; got {arguments!r}.")
    elif arguments and set(arguments) <= set(available_mixers()) and all(isinstance(v, dict) for v in arguments.values()):
        idle = sorted(set(arguments) - set(used))
        if idle:
            raise ValueError(
                f"mixer_config has arguments for {', '.join(map(repr, idle))}, which mixer={mixer!r} does not name."
            )
        per_layer = [arguments.get(name, {}) for name in names]
    elif arguments and not used:
        raise ValueError(f"mixer_config={arguments!r} is not accepted: mixer={mixer!r} names no layer that would take it.")
    elif arguments and len(used) > 1:
        raise ValueError(
            f"mixer_config={arguments!r} does not say which of {', '.join(map(repr, used))} it is for; "
            "give a dictionary of dictionaries by name, or a list with one entry a layer."
        )
    else:
        per_layer = [{} if name == NATIVE else arguments for name in names]
    for layer_idx, (name, entry) in enumerate(zip(names, per_layer)):
        if not isinstance(entry, dict):
            raise ValueError(f"mixer_config[{layer_idx}]={entry!r} is not accepted; expected a dictionary or None.")
        if name == NATIVE and entry:
            raise ValueError(f"mixer_config[{layer_idx}]={entry!r} is not accepted; layer {layer_idx} is the model's own.")
        if name != NATIVE:
            check_arguments("mixer_config", name, find_mixer(name), entry)
    return list(zip(names, per_layer))


def swap_mixers(model: FLAPreTrainedModel) -> None:
    """Replaces the mixers of the blocks that `model` itself holds, as its config's `mixer` says; the hook calls it.

    Layers that `config.attn` gives to attention stay attention, and so do the cross-decoder layers of YOCO.

    Raises:
        ValueError: for wrong fields, or a model whose blocks cannot take another mixer.
    """
    config, blocks = model.config, _blocks(model)
    if getattr(config, "mixer", None) is None:
        if getattr(config, "mixer_config", None):
            raise ValueError(f"mixer_config={config.mixer_config!r} is not accepted without mixer, which says whose it is.")
        return
    if blocks is None:
        if any(isinstance(child, FLAPreTrainedModel) for child in model.children()):
            return  # a head on top of a model that has been through here
        raise ValueError(f"mixer={config.mixer!r}: {type(model).__name__} has no blocks that this package knows how to swap.")
    reason = _REFUSED.get(type(model).__name__)
    if reason is None and getattr(config, "block_type", None) == "rodimus_plus":
        reason = "its shared-key attention reads the keys of its own mixer (block_type='rodimus' works)"
    if reason is not None:
        raise ValueError(f"mixer={config.mixer!r}: {type(model).__name__} keeps its own mixer, as {reason}.")
    for layer_idx, (block, (name, arguments)) in enumerate(zip(blocks, resolve_mixers(config, len(blocks)))):
        if name == NATIVE or get_attention_spec(getattr(config, "attn", None), layer_idx=layer_idx) is not None:
            continue
        slot = _slot(block)
        if slot is None:
            raise ValueError(f"mixer={name!r}: {type(block).__name__} of {type(model).__name__} has no mixer to swap.")
        layer = build_mixer(name, config.hidden_size, layer_idx=layer_idx, **arguments)
        for part in _KEEPS_INIT.get(name, ()):
            for parameter in getattr(layer, part).parameters():
                parameter._is_hf_initialized = not parameter.is_meta
        if type(block).__name__ == "RWKV7Block":
            layer.register_forward_hook(_pass_v_first, with_kwargs=True)
        setattr(block, slot, layer)


def _blocks(model: FLAPreTrainedModel) -> nn.ModuleList | None:
    """The blocks that `model` itself holds."""
    return next((b for b in (getattr(model, n, None) for n in ("self_layers", "layers")) if b is not None), None)


def _slot(block: nn.Module) -> str | None:
    """Under which name a block holds its mixer."""
    return next((slot for slot in ("mixer", "attn") if isinstance(getattr(block, slot, None), nn.Module)), None)


def check_context_parallel(model: FLAPreTrainedModel, args: tuple, kwargs: dict) -> None:
    """Refuses `cp_context` where a part of `model` would ignore it and take a rank's slice for the whole sequence.

    Raises:
        ValueError: naming a layer that looks at other tokens than its own, and is not made for slices.
    """
    if kwargs.get("cp_context") is None:
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


def install_hook() -> None:
    """Makes every FLA model heed `mixer` and `mixer_config`; `import fla_bdlru` calls it."""
    if getattr(FLAPreTrainedModel.post_init, "_swaps_mixers", False):
        return
    original_post_init, original_initialize = FLAPreTrainedModel.post_init, FLAPreTrainedModel.initialize_weights

    @wraps(original_post_init)
    def post_init(self):
        swap_mixers(self)
        if any(isinstance(module, GatedRecurrence) for module in self.modules()):
            self.register_forward_pre_hook(check_context_parallel, with_kwargs=True)
        heed_documents(self)
        original_post_init(self)

    @wraps(original_initialize)
    def initialize_weights(self):
        # a bias that a checkpoint lacks comes here blank, and `_init_weights` would zero it as any other
        layers = [module for module in self.modules() if isinstance(module, GatedRecurrence)]
        for layer in layers:
            if not getattr(layer.a_proj.bias, "_is_hf_initialized", False):
                layer.reset_parameters()
        original_initialize(self)

    post_init._swaps_mixers = True
    FLAPreTrainedModel.post_init = post_init
    FLAPreTrainedModel.initialize_weights = initialize_weights


def count_parameters(module: nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def measure_state_size(layer: nn.Module, dtype: torch.dtype = torch.float32, tokens: int = 1) -> int:
    r"""Number of values that a layer carries from one step to the next, per sequence.

    A layer's own `state_size()` if it has one; else what it puts into the cache after `tokens` tokens (so for softmax
    attention, whose state grows, that of as many).

    Args:
        layer (nn.Module):
            A layer with FLA's signature, on the device it can run on.
        dtype (torch.dtype, Optional):
            Dtype of the input. Default: `torch.float32`.
        tokens (int, Optional):
            Number of tokens that the layer has seen. Default: 1.

    Example:
        >>> from fla_bdlru.mixers import build_mixer, measure_state_size
        >>> assert measure_state_size(build_mixer("bdlru", hidden_size=32, block_size=4, expand=2)) == 64
    """
    if callable(getattr(layer, "state_size", None)):
        return layer.state_size()
    from fla.models.utils import Cache

    parameter = next(layer.parameters())
    training, layer_idx = layer.training, layer.layer_idx
    layer.eval()
    layer.layer_idx = 0
    try:
        cache = Cache()
        with torch.no_grad():
            layer(
                torch.zeros(1, tokens, layer.hidden_size, device=parameter.device, dtype=dtype),
                past_key_values=cache,
                use_cache=True,
            )
    finally:
        layer.train(training)
        layer.layer_idx = layer_idx
    return _numel(cache[0])


def _numel(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel()
    if isinstance(value, dict):
        return sum(map(_numel, value.values()))
    return sum(map(_numel, value)) if isinstance(value, (tuple, list)) else 0
