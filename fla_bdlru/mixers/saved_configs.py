"""Saved models with `mixer=` that are refused, not silently built with other layers, where fla_bdlru was not imported.

Without this package FLA takes `mixer` for a field that it does not know, builds its own layers, and loads what weights it can.
So a config with `mixer` is written with `attn_implementation: "fla_bdlru"`. transformers checks that field whenever it
builds a model, by an Auto class or not, from a folder or from a config, and refuses a name that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fla.models.modeling_utils import FLAPreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from fla_bdlru.mixers.registry import names_mixers, plain
from fla_bdlru.patches import wrap

MARK = "fla_bdlru"


def _to_dict(original: Callable, self: PreTrainedConfig) -> dict[str, Any]:
    output = original(self)
    if names_mixers(self) and any(cls.__module__.split(".")[0] == "fla" for cls in type(self).__mro__):
        output["attn_implementation"] = MARK
        if output.get("mixer_config"):
            output["mixer_config"] = plain(output["mixer_config"])  # a sweep's numbers are numpy's
    return output


def _init(original: Callable, self: FLAPreTrainedModel, config: PreTrainedConfig, *args, **kwargs) -> None:
    if getattr(config, "_attn_implementation", None) == MARK:
        config._attn_implementation = None
    original(self, config, *args, **kwargs)


def install_hook() -> None:
    """Has configs written with the mark, and FLA's models built from configs that bear it; `import fla_bdlru` calls it."""
    why = "an FLA config with `mixer` is saved with a mark, so that it is refused where this package is not imported"
    wrap("transformers.configuration_utils:PreTrainedConfig.to_dict", _to_dict, why)
    wrap("fla.models.modeling_utils:FLAPreTrainedModel.__init__", _init, "a config that bears that mark is built again")
