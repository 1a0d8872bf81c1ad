"""What a model is called with, by name: FLA's models take the cache in the third place or in the fourth."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn


def argument_names(cls: type[nn.Module]) -> tuple[str, ...]:
    r"""What a model's `forward` calls the arguments that it takes by position; one that takes any passes them to its base.

    Example:
        >>> from fla_bdlru import BDLRUModel
        >>> from fla_bdlru.mixers.arguments import argument_names
        >>> assert argument_names(BDLRUModel)[:4] == ("input_ids", "attention_mask", "inputs_embeds", "past_key_values")
    """
    for base in (base for base in cls.__mro__ if "forward" in vars(base)):
        _, *own = inspect.signature(base.forward).parameters.values()
        if not any(parameter.kind is parameter.VAR_POSITIONAL for parameter in own):
            return tuple(parameter.name for parameter in own if parameter.kind is parameter.POSITIONAL_OR_KEYWORD)
    return ()


def heed_arguments(model: nn.Module) -> None:
    """Has the hooks that are registered after this see every argument but the first, the tokens, by its name."""
    if not hasattr(model, "_argument_names"):
        model._argument_names = argument_names(type(model))
        model.register_forward_pre_hook(_by_name, with_kwargs=True)


def _by_name(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    names = model._argument_names[1 : len(args)]
    if len(names) != len(args) - 1 or any(name in kwargs for name in names):  # `forward` says what is wrong
        return None
    return args[:1], {**dict(zip(names, args[1:])), **kwargs}
