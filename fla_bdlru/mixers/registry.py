"""The registry behind `mixer="..."`: names, arguments, building."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import fla.layers
from fla.layers.simple_gla import SimpleGatedLinearAttention
from torch import nn
from torch.utils._pytree import tree_map

from fla_bdlru.layers import BDLRU, HLRU, LSTM

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

NATIVE = "native"

# FLA's own layers are under the names of its models where there is one
_MIXERS: dict[str, type[nn.Module]] = {"bdlru": BDLRU, "hlru": HLRU, "lstm": LSTM, "simple_gla": SimpleGatedLinearAttention}
_MIXERS |= {name: getattr(fla.layers, cls) for name, cls in {
    "abc": "ABCAttention", "attn": "Attention", "bitnet": "BitAttention", "comba": "Comba", "cyfa": "CyclicFlowAttention",
    "delta_net": "DeltaNet", "deltaformer": "DeltaFormerAttention", "forgetting_attn": "ForgettingAttention",
    "gated_deltanet": "GatedDeltaNet", "gated_deltaproduct": "GatedDeltaProduct", "gated_retention": "YOCOGatedRetention",
    "gdn2": "GatedDeltaNet2",
    "gla": "GatedLinearAttention", "gsa": "GatedSlotAttention", "hgrn": "HGRNAttention", "hgrn2": "HGRN2Attention",
    "kda": "KimiDeltaAttention", "lightnet": "LightNetAttention", "linear_attn": "LinearAttention",
    "log_linear_mamba2": "LogLinearMamba2", "mamba": "Mamba", "mamba2": "Mamba2", "mamba3": "Mamba3", "mesa_net": "MesaNet",
    "mla": "MultiheadLatentAttention", "moba": "MoBA", "momentum_deltanet": "MomentumDeltaNet",
    "nsa": "NativeSparseAttention", "parallax": "Parallax", "path_attn": "PaTHAttention",
    "precond_gated_deltanet": "PrecondGatedDeltaNet", "precond_kda": "PrecondKDA", "raven": "Raven",
    "retnet": "MultiScaleRetention", "rodimus": "RodimusAttention", "rwkv6": "RWKV6Attention",
    "stickbreaking_attn": "StickBreakingAttention", "wall_attn": "WallAttention",
}.items()}  # fmt: skip

# FLA's layers that have no form for CPU tensors
GPU_ONLY = frozenset({
    "cyfa", "deltaformer", "log_linear_mamba2", "mesa_net", "moba", "nsa", "parallax", "path_attn",
    "precond_gated_deltanet", "precond_kda", "stickbreaking_attn", "wall_attn",
})  # fmt: skip

# FLA's layers that are no mixers: what they ask of a block beside FLA's layer signature, and what to do
NO_MIXERS = {
    "based": "it takes neither padding nor documents nor a cache, and FLA has no model of it: take 'linear_attn'",
    "mom": "its loss reads router logits, which only MomModel has: use FLA's own model of it",
    "rebased": "it takes neither padding nor documents nor a cache, and FLA has no model of it: take 'linear_attn'",
    "rwkv7": "layers after the first mix in its values, which only RWKV-7's blocks hand on: use FLA's own model of it",
    "yoco": "its cross-decoder shares keys and values, which only YOCO's decoder holds: use FLA's own model of it, or "
    "'gated_retention', its self-decoder's layer",
}


class Source(NamedTuple):
    """Mixers of another package: their names, whether it is installed, and what imports it and makes a class."""

    names: tuple[str, ...]
    is_installed: Callable[[], bool]
    find: Callable[[str], type[nn.Module]]


# integrations add themselves
SOURCES: list[Source] = []


def find_mixer(name: str) -> type[nn.Module] | None:
    """The layer class of a mixer, or `None` if there is no such mixer; imports the package of one that comes from another."""
    if not isinstance(name, str):
        return None
    source = next((source for source in SOURCES if name in source.names and name not in _MIXERS), None)
    return source.find(name) if source else _MIXERS.get(name)


def plain(value: Any) -> Any:
    """The same with Python's numbers in the place of numpy's and torch's, which JSON does not take."""
    return tree_map(lambda leaf: leaf.item() if getattr(leaf, "ndim", None) == 0 else leaf, value)


def names_mixers(config: object) -> bool:
    """Whether a config says that some layer is not the model's own."""
    mixer = getattr(config, "mixer", None)
    names = mixer if isinstance(mixer, (list, tuple)) else [mixer]
    return any(name not in (None, NATIVE) for name in names)


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
    """Names that `mixer="..."` accepts, `"native"` (the model's own) aside; those of other packages where they are installed.

    Example:
        >>> from fla_bdlru.mixers import available_mixers
        >>> assert {"bdlru", "hlru", "lstm", "gated_deltanet", "mamba2"} <= set(available_mixers())
    """
    return sorted([*_MIXERS, *(name for source in SOURCES if source.is_installed() for name in source.names)])


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
    if isinstance(name, str) and name in NO_MIXERS and cls is None:
        raise ValueError(f"mixer={name!r} is refused, as {NO_MIXERS[name]}.")
    if cls is None:
        near = get_close_matches(str(name).lower(), available_mixers(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"mixer={name!r} is not known;{hint} expected one of {', '.join([NATIVE, *available_mixers()])}.")
    check_arguments("mixer_config", name, cls, mixer_config)
    try:
        layer = cls(hidden_size=hidden_size, layer_idx=layer_idx, **mixer_config)
    except (AssertionError, ArithmeticError, TypeError) as error:  # what FLA's layers say of arguments that do not fit
        raise ValueError(f"mixer={name!r} with {mixer_config} at hidden_size={hidden_size}: {error}") from error
    if name in GPU_ONLY:
        layer.register_forward_pre_hook(partial(refuse_cpu, name), with_kwargs=True)
    return layer


def refuse_cpu(name: str, layer: nn.Module, args: tuple, kwargs: dict) -> None:
    """Raises `NotImplementedError` for tensors on a CPU, which FLA would hand to Triton; its interpreter takes them."""
    device = kwargs.get("hidden_states", *args[:1]).device.type
    if device in ("cpu", "meta") and os.environ.get("TRITON_INTERPRET") != "1":
        raise NotImplementedError(
            f"mixer={name!r}: {type(layer).__name__} of flash-linear-attention runs on a GPU only; hidden_states are on "
            f"{device!r}. Move the model to one, or take another mixer."
        )


def resolve_mixers(config: PreTrainedConfig, num_layers: int) -> list[tuple[str, dict[str, Any]]]:
    """A (name, arguments) pair per layer, from a config's `mixer` and `mixer_config`.

    `mixer` is a name or a list of `num_layers` names. `mixer_config` is a dictionary of arguments; where a list names more
    than one mixer, a dictionary of such dictionaries by name, or a list of them by layer; `None` is an empty one.

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
    named = arguments.values() if isinstance(arguments, dict) else ()
    if isinstance(arguments, (list, tuple)):
        if len(arguments) != num_layers:
            raise ValueError(f"mixer_config must have one entry for each of the {num_layers} layers; got {len(arguments)}.")
        per_layer = [{} if entry is None else entry for entry in arguments]
    elif not isinstance(arguments, dict):
        raise ValueError(f"mixer_config must be a dictionary, or a list of them, one a layer; got {arguments!r}.")
    elif arguments and set(arguments) <= set(available_mixers()) and all(v is None or isinstance(v, dict) for v in named):
        idle = sorted(set(arguments) - set(used))
        if idle:
            raise ValueError(
                f"mixer_config has arguments for {', '.join(map(repr, idle))}, which mixer={mixer!r} does not name."
            )
        per_layer = [arguments.get(name) or {} for name in names]
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
