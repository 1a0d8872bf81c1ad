"""The linear RNNs of the package `lrnnx` as mixers, where it can be imported: `mixer="lrnnx_lru"` and its kin.

lrnnx asks for CUDA extensions when it is imported. Its layers see whole sequences here: a cache, packed documents and padding
are refused by name.
"""

from __future__ import annotations

import inspect
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import nn

from fla_bdlru.layers.base import Mixer
from fla_bdlru.mixers.registry import SOURCES, Source

# mixer name: module, class, and what it is built with unless told otherwise
LAYERS = {
    "lrnnx_lru": ("lrnnx.models.lti", "LRU", {"d_state": 64}),
    "lrnnx_s4d": ("lrnnx.models.lti", "S4D", {"d_state": 64, "transposed": False, "verbose": False}),
    "lrnnx_s5": ("lrnnx.models.lti", "S5", {"d_state": 64, "discretization": "zoh"}),
    "lrnnx_centaurus": ("lrnnx.models.lti", "CentaurusNeck", {"d_state": 64, "sub_state_dim": 8}),
    "lrnnx_s7": ("lrnnx.models.ltv", "S7", {"d_state": 64}),
    "lrnnx_rglru": ("lrnnx.models.ltv", "RGLRU", {}),
    "lrnnx_mamba": ("lrnnx.models.ltv", "Mamba", {}),
}
_OURS = ("self", "d_model", "layer_idx", "device", "dtype")


class LrnnxMixer(Mixer):
    """A layer of lrnnx behind FLA's layer signature; `lrnnx_mixer` makes its subclasses, which take the arguments of the
    lrnnx class but for `d_model`. A call that asks for a cache, packed documents or padding raises `ValueError`.

    Source: the package lrnnx (`pip install lrnnx`), and the papers its classes name.
    """

    wrapped: type[nn.Module]
    defaults: dict

    def __init__(self, hidden_size: int, layer_idx: int | None = None, **kwargs) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.layer_idx = layer_idx
        self.layer = self.wrapped(d_model=hidden_size, **{**self.defaults, **kwargs})

    def forward(self, hidden_states, attention_mask=None, past_key_values=None, use_cache=False, *args, **kwargs):
        name = f"{type(self).__name__} of lrnnx"
        if past_key_values is not None and use_cache:
            raise ValueError(f"{name} has no cache here: pass use_cache=False (generate() too).")
        if attention_mask is not None and not attention_mask.all():
            raise ValueError(f"{name} cannot skip padding: pass sequences of one length, or one at a time.")
        return super().forward(hidden_states, None, None, False, *args, **kwargs)

    def mix(self, hidden_states, last_state, use_cache, cu_seqlens, cp_context):
        for field, value in (("cu_seqlens", cu_seqlens), ("cp_context", cp_context)):
            if value is not None:
                raise ValueError(f"{field}={value!r}: {type(self).__name__} of lrnnx takes whole sequences only; pass None.")
        o = self.layer(hidden_states)
        return o[0] if isinstance(o, tuple) else o, None, None

    def state_size(self) -> int:
        state = self.layer.allocate_inference_cache(1, 1)
        tensors = [x for key, x in state.items() if key.endswith("_state") and torch.is_tensor(x)]
        return sum(x.numel() * (2 if x.is_complex() else 1) for x in tensors)


@cache
def lrnnx_mixer(name: str) -> type[LrnnxMixer]:
    """The mixer class called `name`, one of `LAYERS`; imports lrnnx.

    Raises:
        ValueError: if lrnnx cannot be imported, with its reason.
    """
    module, class_name, defaults = LAYERS[name]
    try:
        wrapped = getattr(import_module(module), class_name)
    except ImportError as error:
        raise ValueError(
            f"mixer={name!r} needs the package lrnnx with its CUDA extensions, which cannot be imported here: {error}."
        ) from error

    def __init__(self, hidden_size, layer_idx=None, **kwargs):
        LrnnxMixer.__init__(self, hidden_size, layer_idx, **kwargs)

    keyword = inspect.Parameter.KEYWORD_ONLY
    theirs = [
        p.replace(kind=keyword, default=defaults.get(p.name, p.default))
        for p in inspect.signature(wrapped.__init__).parameters.values()
        if p.name not in _OURS and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    ours = inspect.signature(__init__).parameters
    __init__.__signature__ = inspect.Signature([ours["self"], ours["hidden_size"], ours["layer_idx"], *theirs])
    return type(class_name, (LrnnxMixer,), {"wrapped": wrapped, "defaults": defaults, "__init__": __init__})


SOURCES.append(Source(tuple(LAYERS), lambda: find_spec("lrnnx") is not None, lrnnx_mixer))
