"""The hook that swaps the mixers of any FLA model, as its config's `mixer` says."""

from __future__ import annotations

from functools import wraps

from fla.models.configuration_utils import get_attention_spec
from fla.models.modeling_utils import FLAPreTrainedModel
from torch import nn

from fla_bdlru.layers.gated import GatedRecurrence
from fla_bdlru.mixers.packing import heed_documents
from fla_bdlru.mixers.registry import NATIVE, build_mixer, resolve_mixers

# Parts that FLA's own model of a mixer leaves as the layer's constructor made them; another model would draw them anew.
_KEEPS_INIT = {"mamba": ("conv1d", "dt_proj")}

# Models whose blocks ask more of a mixer than FLA's layer signature, and so keep their own.
_REFUSED = {
    "CATModel": "its attention works on chunk summaries through a FlexAttention mask, not on a sequence",
    "MomModel": "its loss reads router logits, which only its own mixer has",
}

# Models whose blocks hand no keyword arguments on to their mixers.
_KEEPS_CONTEXT = {"LinearAttentionModel"}


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
