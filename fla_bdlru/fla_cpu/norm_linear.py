"""PyTorch versions of FLA's norms that are fused with quantisation (BitNet) or with a linear layer."""

import torch
import torch.nn.functional as F

from fla_bdlru.fla_cpu.common import upcast
from fla_bdlru.fla_cpu.norm import add_residual, layer_norm_bwd, layer_norm_fwd


def activation_quant(y: torch.Tensor) -> torch.Tensor:
    """Rounds each row to 8 bits and back; halves are rounded away from zero."""
    scale = 127.0 / y.abs().amax(-1, keepdim=True).clamp_min(1e-5)
    scaled = y * scale
    return ((scaled.abs() + 0.5).floor() * scaled.sign()).clamp(-128, 127) / scale


def layer_norm_quant_fwd(x, weight, bias, eps, residual, out_dtype, residual_dtype, is_rms_norm):
    s, residual_out = add_residual(x, residual, residual_dtype)
    y, mean, rstd, _ = layer_norm_fwd(s, weight, bias, eps=eps, is_rms_norm=is_rms_norm)
    return activation_quant(y).to(x.dtype if out_dtype is None else out_dtype), mean, rstd, residual_out


def layer_norm_quant_bwd(dy, x, weight, bias, mean, rstd, dres, has_residual, is_rms_norm, x_dtype, recompute_output):
    # Straight-through: the rounding has the gradient of the identity.
    *grads, y = layer_norm_bwd(upcast(dy), x, weight, bias, mean, rstd, dres, has_residual, is_rms_norm, x_dtype, True)
    return (*grads, activation_quant(y).to(dy.dtype)) if recompute_output else tuple(grads)


# The fused "norm, then linear" functions keep autocast's cast for their own backward on a GPU only, so on a CPU they
# are written as two differentiable steps.


def _linear(y, weight, bias):
    if torch.is_autocast_enabled("cpu"):
        return F.linear(y, weight, bias)
    return F.linear(y, weight.to(y.dtype), None if bias is None else bias.to(y.dtype))


def _then_linear(normed, weight, bias, prenorm, quantize=lambda y: y):
    """Applies the linear layer to the output of a norm, which comes with the residual if `prenorm`."""
    y, *residual = normed if prenorm else (normed,)
    out = _linear(quantize(y), weight, bias)
    return (out, *residual) if prenorm else out


def layer_norm_linear(
    x, norm_weight, norm_bias, linear_weight, linear_bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm, num_groups
):
    from fla.modules.norm.layernorm import group_norm

    normed = group_norm(
        x, norm_weight, norm_bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm, num_groups=num_groups
    )
    return _then_linear(normed, linear_weight, linear_bias, prenorm)


def layer_norm_swish_gate_linear(
    x, g, norm_weight, norm_bias, linear_weight, linear_bias, residual, prenorm, residual_in_fp32, eps
):
    from fla.modules.norm.fused_norm_gate import layer_norm_gated

    normed = layer_norm_gated(x, g, norm_weight, norm_bias, "swish", residual, prenorm, residual_in_fp32, eps)
    return _then_linear(normed, linear_weight, linear_bias, prenorm)


def rms_norm_swish_gate_linear(
    x, g, norm_weight, norm_bias, linear_weight, linear_bias, residual, prenorm, residual_in_fp32, eps
):
    from fla.modules.norm.fused_norm_gate import rms_norm_gated

    normed = rms_norm_gated(x, g, norm_weight, norm_bias, "swish", residual, prenorm, residual_in_fp32, eps)
    return _then_linear(normed, linear_weight, linear_bias, prenorm)


def layer_norm_linear_quant(
    x, norm_weight, norm_bias, linear_weight, linear_bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm
):
    from fla.modules.norm.layernorm import layer_norm
    from fla.modules.norm.layernorm_quant import weight_quant

    def straight_through(t, quantized):
        return t + (quantized - t).detach()

    normed = layer_norm(x, norm_weight, norm_bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm)
    weight = straight_through(linear_weight, weight_quant(linear_weight))
    return _then_linear(
        normed, weight, linear_bias, prenorm, lambda y: straight_through(y, activation_quant(upcast(y)).to(y.dtype))
    )
