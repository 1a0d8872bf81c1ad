"""BD-LRU and H-LRU (arXiv 2602.12021) as mixers for flash-linear-attention and mamba_ssm.

Importing this package is all the set-up: from then on every FLA config takes `mixer=` and `mixer_config=`, mamba_ssm's
`MambaConfig` takes `ssm_cfg={"layer": "BDLRU"}`, and FLA's modules run on a CPU. `fla_bdlru.patches` holds what that changes
in other libraries, and how to do without. Where FLA's layers cannot be imported (no Triton), the ops and the plain layers
still work.
"""

import importlib
import sys
import warnings
from importlib.abc import MetaPathFinder

from fla_bdlru import layers, ops, patches
from fla_bdlru.layers import BDLRU, HLRU

__version__ = "0.2.0"

_NEED_FLA = ("fla_cpu", "mixers", "models", "integrations", "decoding", "generation")
_PARTS = ("Config", "ForCausalLM", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "Model")
_NAMES = {
    **{f"{family}{part}": "models" for family in ("BDLRU", "HLRU") for part in _PARTS},
    **dict.fromkeys(("available_mixers", "build_mixer", "register_mixer", "swap_mixers"), "mixers"),
    "rewind_cache": "decoding",
    "SpeculativeDecoding": "generation",
}

__all__ = ["BDLRU", "HLRU", *_NAMES, "fla_cpu", "integrations", "layers", "mixers", "models", "ops", "patches"]


def _set_up() -> str | None:
    """Installs the hooks and the CPU backend; returns the name of the missing module where FLA's layers need one."""
    try:
        with warnings.catch_warnings():  # FLA warns where there is no GPU; here its modules run on a CPU
            warnings.filterwarnings("ignore", "Triton is not supported on current platform")
            importlib.import_module("fla.layers")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] in ("fla", "fla_bdlru"):
            raise
        return error.name
    for name in _NEED_FLA:
        globals()[name] = importlib.import_module(f"fla_bdlru.{name}")
    for name in ("lrnnx", "mamba_ssm"):
        importlib.import_module(f"fla_bdlru.integrations.{name}")
    hook = importlib.import_module("fla_bdlru.mixers.hook")
    if not patches.is_enabled():
        hook.install_refusal()
        return None
    hook.install_hook()
    globals()["fla_cpu"].register()
    parts = ("mixers.cache_name", "mixers.packing", "mixers.saved_configs")
    for name in ("unfused", "decoding", *parts, "integrations.mamba_ssm"):
        importlib.import_module(f"fla_bdlru.{name}").install_hook()
    return None


def _why(name: str) -> str:
    return f"fla_bdlru.{name} needs the layers of flash-linear-attention, which need {_missing!r}: `pip install {_missing}`."


class _Explain(MetaPathFinder):
    """Gives `from fla_bdlru import BDLRUConfig` the reason; Python would hide that of an `AttributeError`."""

    def find_spec(self, fullname, path=None, target=None):
        package, _, name = fullname.rpartition(".")
        if package == __name__ and name in _NAMES:
            raise ModuleNotFoundError(_why(name), name=_missing)


_missing = _set_up()
if _missing is not None:
    __all__ = [name for name in __all__ if name not in (*_NAMES, *_NEED_FLA)]
    sys.meta_path.append(_Explain())


def __getattr__(name: str):
    if name in _NAMES and _missing is None:
        return getattr(globals()[_NAMES[name]], name)
    if name in _NAMES or name in _NEED_FLA:
        raise AttributeError(_why(name))
    raise AttributeError(f"module 'fla_bdlru' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
