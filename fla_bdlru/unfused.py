"""FLA's modules read a weight past the module that owns it only where calling the module would be the same.

FLA hands `down_proj.weight` to a fused function and never calls `down_proj`, and does the like before cross entropy, after
norms and in convolutions. A LoRA, quantised weights, a forward hook or weights that are offloaded would be passed by, in
silence. So the modules listed here fuse only what `is_plain`; else they call it, or refuse by name. On every device.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import partial

from fla.modules import FusedLinearCrossEntropyLoss
from fla.modules.activations import powglu, swiglu
from torch import nn

from fla_bdlru.patches import resolve, wrap

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# Layers that end in a norm and a linear layer, fused, and the function that fuses them.
_NORM_LINEAR = {
    "fla.layers.gsa:GatedSlotAttention": "rms_norm_linear",
    "fla.layers.hgrn2:HGRN2Attention": "rms_norm_linear",
    "fla.layers.raven:Raven": "rms_norm_linear",
    "fla.layers.lightnet:LightNetAttention": "rms_norm_swish_gate_linear",
}

# Layers that compute something else from a part's weight than the part does.
_READ_ONLY = {
    "fla.layers.mamba:Mamba": ("conv1d",),
    "fla.layers.mamba2:Mamba2": ("conv1d",),
    "fla.layers.log_linear_mamba2:LogLinearMamba2": ("conv1d",),
    "fla.layers.rodimus:RodimusAttention": ("g_gate_proj", "tau_gate_proj"),
    "fla.layers.rwkv6:RWKV6Attention": ("x_proj.2",),
}

# What FLA's Mamba reads more on a GPU: always, and in training.
_READ_ON_GPU = {
    "fla.layers.mamba:Mamba": (("dt_proj",), ("x_proj", "out_proj")),
    "fla.layers.mamba2:Mamba2": ((), ("norm", "out_proj")),
    "fla.layers.log_linear_mamba2:LogLinearMamba2": ((), ("norm", "out_proj")),
}

# The layer whose norm and linear layer have to be called at this moment.
_layer: ContextVar[nn.Module | None] = ContextVar("layer", default=None)


def is_plain(module: nn.Module) -> bool:
    """Whether calling `module` does what its class in torch or FLA does with its weights, and nothing else.

    Example:
        >>> from torch import nn
        >>> from fla_bdlru.unfused import is_plain
        >>> linear = nn.Linear(2, 2)
        >>> assert is_plain(linear)
        >>> handle = linear.register_forward_hook(print)
        >>> assert not is_plain(linear)
    """
    if not type(module).__module__.startswith(("torch.nn.modules.", "fla.modules.")):
        return False  # an adapter, quantised, parametrised
    return "forward" not in module.__dict__ and not any(getattr(module, hooks) for hooks in _HOOKS)


# Each stands in front of a function or method of FLA's, `original`, and is called with that and its arguments.


def _gated_mlp(original: Callable, self, x, **kwargs):
    if not self.fuse_swiglu or is_plain(self.down_proj):
        return original(self, x, **kwargs)
    gate, y = self.gate_proj(x), self.up_proj(x)
    return self.down_proj(powglu(gate, y, self.powglu_power) if self.hidden_act == "powlu" else swiglu(gate, y))


def _loss(original: Callable, self, *args, fuse_linear_cross_entropy=None, **kwargs):
    if fuse_linear_cross_entropy is None:
        fuse_linear_cross_entropy = getattr(self.config, "fuse_linear_cross_entropy", False)
    if fuse_linear_cross_entropy and not is_plain(self.lm_head):
        if isinstance(getattr(self, "criterion", None), FusedLinearCrossEntropyLoss):
            raise ValueError(
                "criterion is FusedLinearCrossEntropyLoss, which reads lm_head's weight past its hooks, adapter or "
                "offloading; leave criterion at None and the loss calls lm_head."
            )
        fuse_linear_cross_entropy = False
    return original(self, *args, fuse_linear_cross_entropy=fuse_linear_cross_entropy, **kwargs)


def _call_at_the_end(original: Callable, self, *args, **kwargs):
    """The forward of a layer that fuses `g_norm` and `o_proj`."""
    if not hasattr(self, "g_norm") or (is_plain(self.g_norm) and is_plain(self.o_proj)):
        return original(self, *args, **kwargs)
    token = _layer.set(self)
    try:
        return original(self, *args, **kwargs)
    finally:
        _layer.reset(token)


def _norm_linear(default: float, original: Callable, x, *args, eps=None):
    """FLA's fused function, or the calls of the norm and the linear layer that it stands for."""
    layer, eps = _layer.get(), default if eps is None else eps
    if layer is None:
        return original(x, *args, eps=eps)
    *gate, _, _, _, _ = args  # the weights and biases of both
    kept, layer.g_norm.eps = layer.g_norm.eps, eps  # FLA's layers leave the function's own eps
    try:
        y = layer.g_norm(x, *gate)
    finally:
        layer.g_norm.eps = kept
    return layer.o_proj(y)


def check_parts(layer: nn.Module, parts: Iterable[str]) -> None:
    """Raises `ValueError` where a part that `layer` reads and never calls is not plain."""
    for part in parts:
        module = layer.get_submodule(part)
        # ZeRO-3 gathers a weight wherever it is read
        if not is_plain(module) and not hasattr(getattr(module, "weight", None), "ds_id"):
            raise ValueError(
                f"{type(layer).__name__} reads {part}.weight and never calls {part}, so that hooks, an adapter, quantised or "
                f"offloaded weights there would have no effect. Leave {part} out of them (accelerate: "
                f"preload_module_classes=[{type(layer).__name__!r}])."
            )


def _refuse(always: tuple[str, ...], in_training: tuple[str, ...], original: Callable, self, *args, **kwargs):
    parts = (*always, *in_training) if self.training else always
    check_parts(self, (part for part in parts if hasattr(self, part.partition(".")[0])))
    return original(self, *args, **kwargs)


def _check_residuals(module: nn.Module, args: tuple) -> None:
    check_parts(module, (name for name, _ in module.named_children() if name.endswith(("res_proj", "norm", "norm_f"))))


def _guard_residuals(original: Callable, self):
    """FLA's attention residuals (`attnres`) read the weights of projections and norms, a block's and the model's."""
    original(self)
    for module in self.modules():
        reads = any(name.endswith("res_proj") for name, _ in module.named_children())
        if reads and _check_residuals not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_check_residuals)


def _fused_convolutions(original: Callable, self, *args, **kwargs):
    parts = (getattr(self, f"{name}_conv1d", None) for name in "qkv")
    return all(part is None or is_plain(part) for part in parts) and original(self, *args, **kwargs)


def _project_each(original: Callable, self, x):
    parts = (self.q_proj, self.k_proj, self.v_proj)
    return original(self, x) if all(map(is_plain, parts)) else tuple(part(x) for part in parts)


def install_hook() -> None:
    """Puts the checks in front of FLA's modules; `import fla_bdlru` calls it."""
    checks = {
        "fla.modules.mlp:GatedMLP.forward": _gated_mlp,
        "fla.models.modeling_utils:FLAPreTrainedModel._compute_logits_and_loss": _loss,
        "fla.models.modeling_utils:FLAPreTrainedModel.post_init": _guard_residuals,
        "fla.layers.gated_deltanet:GatedDeltaNet._use_fused_qkv_conv": _fused_convolutions,
        "fla.layers.cyfa:CyclicFlowAttention._project_qkv": _project_each,
    }
    for layer, function in _NORM_LINEAR.items():
        fused = f"{layer.partition(':')[0]}:{function}"
        eps = inspect.signature(resolve(fused)[2]).parameters["eps"].default
        checks |= {f"{layer}.forward": _call_at_the_end, fused: partial(_norm_linear, eps)}
    for layer, parts in _READ_ONLY.items():
        checks[f"{layer}.forward"] = partial(_refuse, parts, ())
    for layer, parts in _READ_ON_GPU.items():
        checks[f"{layer}.cuda_kernels_forward"] = partial(_refuse, *parts)
    for target, check in checks.items():
        wrap(target, check, "a part with hooks, an adapter, quantised or offloaded weights is called, not read past")
