"""What a cache is called: from 5.24 on transformers hands on as `cache` what FLA 0.6's models take as `past_key_values`.

Those models take any keyword and drop what they do not know. So `generate` would go on from the last token alone, in silence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import fla.models
from fla.models.generation_utils import FLAGenerationMixin
from transformers import GenerationMixin

from fla_bdlru.patches import patch

if TYPE_CHECKING:
    import torch
    from fla.models.modeling_utils import FLAPreTrainedModel
    from fla.models.utils import Cache
    from transformers.utils import ModelOutput

OLD, NEW = "past_key_values", "cache"


def knows(function: Callable, name: str) -> bool:
    """Whether a function has a parameter of that name."""
    return name in inspect.signature(function).parameters


RENAMED = knows(GenerationMixin.prepare_inputs_for_generation, NEW)  # by the transformers that is installed
CACHE = NEW if RENAMED else OLD


def given_cache(fields: dict[str, Any]) -> Cache | None:
    r"""The cache among keyword arguments, under either name.

    Raises:
        ValueError: if there is one under each, and not the same.

    Example:
        >>> from fla_bdlru.mixers.cache_name import given_cache
        >>> assert given_cache({"cache": None, "use_cache": True}) is None
    """
    found = [fields[name] for name in (OLD, NEW) if fields.get(name) is not None]
    if len(found) > 1 and found[0] is not found[1]:
        raise ValueError("past_key_values and cache are two names of one argument; pass one of them.")
    return found[0] if found else None


def cache_of(outputs: ModelOutput) -> Cache | None:
    """The cache that a model returns."""
    return getattr(outputs, CACHE)


def check_prefix(cache: Cache, length: int) -> None:
    """Raises `ValueError` unless a text of so many tokens goes on behind what `cache` holds."""
    held = cache.get_seq_length()
    if held >= length:
        raise ValueError(
            f"The cache holds {held} tokens, the prompt has {length}; pass a cache of fewer tokens than the prompt, which "
            "starts with them (rewind_cache takes tokens back), or no cache."
        )


def heed_cache(model: FLAPreTrainedModel) -> None:
    """Makes a model whose `forward` knows `past_key_values` alone take `cache` too."""
    if not (hasattr(model, "_heeds_cache") or knows(model.forward, NEW)):
        model._heeds_cache = True
        model.register_forward_pre_hook(_rename, with_kwargs=True)


def _rename(model: FLAPreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    if NEW not in kwargs:
        return None
    cache = given_cache(kwargs)
    kwargs = {name: value for name, value in kwargs.items() if name not in (OLD, NEW)}
    return args, kwargs if cache is None else {**kwargs, OLD: cache}


def prepare_inputs(
    model: FLAPreTrainedModel,
    input_ids: torch.LongTensor | None = None,
    *,
    cache: Cache | None = None,
    inputs_embeds: torch.Tensor | None = None,
    **kwargs,
) -> dict[str, Any]:
    """transformers' `prepare_inputs_for_generation`, in FLA's place: the cache is called as each of the two calls it.

    `generate` takes the arguments that stand in the signature. ValueError, if a prompt is not longer than what a cache holds.
    """
    cache, new = given_cache({**kwargs, NEW: cache}), kwargs.get("next_sequence_length")
    if kwargs.get("is_first_iteration") and cache is not None and new is not None:
        check_prefix(cache, cache.get_seq_length() + new)
    kwargs = {"use_cache": True} | {name: value for name, value in kwargs.items() if name != OLD}
    if (positions := kwargs.pop("cache_position", None)) is not None:
        kwargs.setdefault("next_sequence_length", len(positions))
    if kwargs.get("logits_to_keep") is None:  # which `forward` takes for a number
        kwargs.pop("logits_to_keep", None)
    kwargs |= {CACHE: cache, "inputs_embeds": inputs_embeds}
    inputs = super(FLAGenerationMixin, model).prepare_inputs_for_generation(input_ids, **kwargs)
    return {OLD if name == NEW else name: value for name, value in inputs.items()}


def _under_old_name(prepare: Callable) -> Callable:
    # without its signature, where `generate` would not find `cache`
    def renamed(self, input_ids=None, *, cache=None, inputs_embeds=None, **kwargs) -> dict[str, Any]:
        kwargs[OLD] = given_cache({**kwargs, NEW: cache})
        return prepare(self, input_ids, inputs_embeds=inputs_embeds, **kwargs)

    return renamed


def install_hook() -> None:
    """Makes FLA's models generate with the transformers that is installed, where that calls the cache anew."""
    if not RENAMED:
        return
    why = "transformers 5.24 hands on a cache as `cache`, which FLA's models drop: generation forgot all but the last token"
    name = "prepare_inputs_for_generation"  # whose parameters `generate` takes
    if not knows(FLAGenerationMixin.prepare_inputs_for_generation, NEW):
        patch(f"fla.models.generation_utils:FLAGenerationMixin.{name}", prepare_inputs, why)
    for model, cls in vars(fla.models).items():
        if isinstance(cls, type) and name in vars(cls) and not knows(vars(cls)[name], NEW):
            patch(f"fla.models:{model}.{name}", _under_old_name(vars(cls)[name]), why)
