"""The models of a comparison: FLA configs with a mixer, and their sizes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import fla.models
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

import fla_bdlru.models
from benchmarks.compare.models import get_variant, match_variant
from benchmarks.compare.settings import parse_field
from benchmarks.lm.settings import Entry, Settings
from fla_bdlru.layers.measure import count_parameters, measure_state_size
from fla_bdlru.mixers.registry import NATIVE

if TYPE_CHECKING:
    from torch import nn

# what a config of ours may say differently from FLA's default, where the model has the field
DEFAULTS = {"bos_token_id": None, "eos_token_id": None, "use_cache": False}
# a model's fields that are counts
SIZES = ("hidden_size", "num_hidden_layers", "num_heads", "num_kv_heads", "intermediate_size", "vocab_size")


def model_types() -> dict[str, type[PreTrainedConfig]]:
    """FLA's config classes and this package's by model type."""
    found = (thing for package in (fla.models, fla_bdlru.models) for thing in vars(package).values())
    classes = (thing for thing in found if isinstance(thing, type) and issubclass(thing, PreTrainedConfig))
    return {cls.model_type: cls for cls in classes if cls.model_type}


def settle(settings: Settings) -> Settings:
    """Settles the size of every entry that is only a name, `"native"` aside, so that each says its mixer and arguments.

    ValueError, if a name is not known or cannot be matched.
    """
    return replace(settings, mixers=tuple(_settle(entry, settings) for entry in settings.mixers))


def _settle(entry: Entry, settings: Settings) -> Entry:
    if entry.mixer is not None:
        return replace(entry, mixer_config=entry.mixer_config or {})
    if entry.mixer_config:
        raise ValueError(f"mixers: {entry.name!r} has a mixer_config but no mixer.")
    if entry.name == NATIVE:
        return entry
    parse_field("mixers", [entry.name], "mixers")
    fields = {**settings.model, **entry.model}
    width = make_config(settings, Entry(NATIVE, model=entry.model), vocab_size=1).hidden_size
    matched = match_variant(entry.name, settings.match, width, settings.budget)
    if matched.extra_mlp and not fields.get("intermediate_size"):
        raise ValueError(f"mixers: {entry.name!r} is matched through the MLP; give model.intermediate_size.")
    extra = {"intermediate_size": fields["intermediate_size"] + matched.extra_mlp} if matched.extra_mlp else {}
    return replace(entry, mixer=get_variant(entry.name).mixer, mixer_config=matched.args, model={**entry.model, **extra})


def make_config(settings: Settings, entry: Entry, vocab_size: int | None) -> PreTrainedConfig:
    """The config of one model, from `settings.model` and a settled entry, with `mixer` unless the model keeps its own.

    `vocab_size` is that of the text; `model.vocab_size` may be larger, and alone decides where that is `None`. ValueError, if
    the model type or a field is not known, or the vocabulary is too small.
    """
    wanted = {**settings.model, **entry.model}
    name = wanted.pop("type")
    types = model_types()
    if name not in types:
        raise ValueError(f"model.type={name!r} is not known; expected one of {', '.join(sorted(types))}.")
    accepted = types[name]().to_dict()
    for option in wanted:
        if option not in accepted:
            raise ValueError(f"model.{option}={wanted[option]!r} is not a field of {name!r}; it has {', '.join(accepted)}.")
        value = wanted[option]
        missing = value is None and accepted[option] is None
        if option in SIZES and not missing and (type(value) is not int or value < 1):
            raise ValueError(f"model.{option}={value!r} is not accepted; expected a whole number greater than 0.")
        if isinstance(accepted[option], bool) and not isinstance(value, bool):  # "False" would be true
            raise ValueError(f"model.{option}={value!r} is not accepted; expected true or false.")
    size = wanted.setdefault("vocab_size", vocab_size)
    if size is None or (vocab_size is not None and size < vocab_size):
        raise ValueError(
            f"model.vocab_size={size} is too small; the tokenizer has {vocab_size or 'an unknown number of'} tokens."
        )
    mixer = {} if entry.mixer in (None, NATIVE) else {"mixer": _plain(entry.mixer), "mixer_config": _plain(entry.mixer_config)}
    return types[name](**{k: v for k, v in DEFAULTS.items() if k in accepted}, **wanted, **mixer)


def _plain(value):
    # configs are saved as JSON, which has no tuples
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else deepcopy(value)


def build_model(config: PreTrainedConfig) -> nn.Module:
    """The language model of a config, its weights drawn from torch's global generator.

    ValueError, if its fields do not go together.
    """
    try:
        return AutoModelForCausalLM.from_config(config)
    except (AssertionError, ArithmeticError, TypeError) as error:  # what FLA says of fields that do not fit
        raise ValueError(f"model: {config.model_type!r} with hidden_size={config.hidden_size}: {error}.") from error


def mixer_layers(model: nn.Module) -> list[nn.Module]:
    """The mixer of each block."""
    base = model.base_model
    blocks = [*getattr(base, "self_layers", ()), *getattr(base, "cross_layers", ()), *getattr(base, "layers", ())]
    slots = [next((getattr(block, slot) for slot in ("mixer", "attn") if hasattr(block, slot)), None) for block in blocks]
    return [layer for layer in slots if layer is not None]


@dataclass(frozen=True)
class Sizes:
    """How large a model is."""

    params: int  # all, a tied embedding counted once
    embedding_params: int  # of the embedding and the head
    mixer_params: int
    state_size: int | None  # values that mixers carry from token to token, per sequence; `None` if it grows or is not known


def measure(config: PreTrainedConfig, device: str = "cpu") -> Sizes:
    """Sizes of a config's model, which is not allocated; `device` is where a layer takes one step to show its state."""
    with torch.device("meta"):
        model = build_model(config)
    layers = mixer_layers(model)
    embeddings = {
        id(e.weight): e.weight for e in (model.get_input_embeddings(), model.get_output_embeddings()) if e is not None
    }
    states = [_state_size(layer, device) for layer in layers]
    return Sizes(
        params=count_parameters(model),
        embedding_params=sum(weight.numel() for weight in embeddings.values()),
        mixer_params=sum(map(count_parameters, layers)),
        state_size=None if None in states else sum(states),
    )


def _state_size(layer: nn.Module, device: str) -> int | None:
    if isinstance(layer, fla.layers.Attention):
        return None
    if callable(getattr(layer, "state_size", None)):
        return layer.state_size()
    return measure_state_size(deepcopy(layer).to_empty(device=device))
