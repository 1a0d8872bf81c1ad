"""PyTorch versions of `fla.modules.norm`: layer, RMS, group and l2 norms, alone or with a gate, a linear layer, BitNet."""

import functools

import torch
import torch.nn.functional as F

from fla_bdlru.fla_cpu.activation import gated, gated_backward, sigmoid, swish
from fla_bdlru.fla_cpu.common import are_for_kernels, check_shape, upcast
from fla_bdlru.ops.common.autograd import refused_further


def _kernels(dtypes, *tensors):
    """The module of numba kernels, if they may run on the tensors and make what is asked for."""
    if any(dtype not in (None, torch.float32) for dtype in dtypes) or not are_for_kernels(*tensors):
        return None
    from fla_bdlru.fla_cpu import native_norm

    return native_norm


def _check(x, weight, bias, num_groups=1, **rows):
    """Raises `ValueError` where FLA asserts: weights have shape [num_groups * D], `rows` that of `x`, [T, D]."""
    shape = x.shape
    channels = (num_groups * shape[-1],)
    check_shape("weight", weight, channels)
    check_shape("bias", bias, channels)
    for name, t in rows.items():
        check_shape(name, t, shape)


def layer_norm_fwd(
    x, weight, bias, eps=1e-05, residual=None, out_dtype=None, residual_dtype=None, is_rms_norm=False, num_groups=1
):
    # x: [T, D], row t belongs to group t % num_groups; weight, bias: [num_groups * D]
    _check(x, weight, bias, num_groups, residual=residual)
    if native := _kernels((out_dtype, residual_dtype), x, weight, bias, residual):
        return native.forward(x, weight, bias, eps, residual, is_rms_norm=is_rms_norm, num_groups=num_groups)
    s = upcast(x) if residual is None else upcast(x) + upcast(residual)
    # handed on as the residual: the sum in the residual's own type, or `x` itself
    residual_dtype = (residual_dtype or x.dtype) if residual is None else residual.dtype
    residual_out = x if residual is None and residual_dtype == x.dtype else s.to(residual_dtype)
    s, mean, rstd = _statistics(s, eps, is_rms_norm)
    y = (s * rstd).view(-1, num_groups, x.shape[-1])
    if weight is not None:
        y *= upcast(weight).view(num_groups, -1)
    if bias is not None:
        y += upcast(bias).view(num_groups, -1)
    y = y.view_as(x).to(x.dtype if out_dtype is None else out_dtype)
    return y, None if mean is None else mean.flatten(), rstd.flatten(), residual_out


def _statistics(s, eps, is_rms_norm):
    """`s` around its mean, the mean and the reciprocal of the root of the squares' mean; [T, D], [T, 1] and [T, 1]."""
    mean = None if is_rms_norm else s.mean(-1, keepdim=True)
    s = s if is_rms_norm else s - mean
    return s, mean, (s.square().mean(-1, keepdim=True) + eps).rsqrt()


def layer_norm_again(ctx, x, weight, bias, *_):
    """What `LayerNormFunction` saves, its statistics as functions of `x`; the others below likewise."""
    return x, weight, bias, *_flat_statistics(x, ctx.eps, ctx.is_rms_norm)


def _flat_statistics(x, eps, is_rms_norm):
    _, mean, rstd = _statistics(upcast(x), eps, is_rms_norm)
    return None if mean is None else mean.flatten(), rstd.flatten()


def _once(backward):
    """Has the derivative of a backward pass refused: FLA keeps views of its input, which have no graph."""

    @functools.wraps(backward)
    def run(*args, **kwargs):
        with torch.no_grad():
            grads = backward(*args, **kwargs)
        return refused_further(grads, tuple(t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)))

    return run


def layer_norm_bwd(dy, x, weight, bias, mean, rstd, dres, has_residual, is_rms_norm, x_dtype, recompute_output, num_groups=1):
    _check(x, weight, bias, num_groups, dy=dy, dres=dres)
    if native := _kernels((x_dtype,), dy, x, weight, bias, dres):
        dx, _, dw, db, y = native.backward(
            dy, x, weight, bias, mean, rstd, dres, recompute=recompute_output, num_groups=num_groups
        )
        grads = dx, dw, db, dx if has_residual else None
        return (*grads, y) if recompute_output else grads
    D = x.shape[-1]
    rstd = rstd[:, None]
    x_hat = (upcast(x) if is_rms_norm else upcast(x) - mean[:, None]) * rstd
    grouped_x_hat, grouped_dy = (t.view(-1, num_groups, D) for t in (x_hat, upcast(dy)))
    w = None if weight is None else upcast(weight).view(num_groups, D)

    dx_hat = grouped_dy if w is None else grouped_dy * w
    dx_hat = dx_hat.view_as(x_hat)
    dx = torch.addcmul(dx_hat, x_hat, (x_hat * dx_hat).mean(-1, keepdim=True), value=-1)
    dx = (dx if is_rms_norm else dx.sub_(dx_hat.mean(-1, keepdim=True))).mul_(rstd)
    if dres is not None:
        dx = dx + upcast(dres)
    dw = None if weight is None else (grouped_dy * grouped_x_hat).sum(0).to(weight).view_as(weight)
    db = None if bias is None else grouped_dy.sum(0).to(bias).view_as(bias)

    dx_out = dx.to(x.dtype if x_dtype is None else x_dtype)
    dres_in = (dx_out if dx_out.dtype == x.dtype else dx.to(x.dtype)) if has_residual else None
    if not recompute_output:
        return dx_out, dw, db, dres_in
    y = grouped_x_hat if w is None else grouped_x_hat * w
    if bias is not None:
        y = y + upcast(bias).view(num_groups, D)
    return dx_out, dw, db, dres_in, y.view_as(x_hat).to(dy.dtype)


def _gate(g, x):
    # FLA reads a gate as rows of x, whatever axes it came with
    return g.reshape(x.shape) if g.shape != x.shape and g.numel() == x.numel() else g


def layer_norm_gated_fwd(
    x, g, weight, bias, activation, eps, residual, out_dtype, residual_dtype, is_rms_norm, num_groups=1
):  # fmt: skip
    gate, g = sigmoid if activation == "sigmoid" else swish, _gate(g, x)
    _check(x, weight, bias, num_groups, g=g, residual=residual)
    if native := _kernels((out_dtype, residual_dtype), x, g, weight, bias, residual):
        return native.forward(x, weight, bias, eps, residual, g, gate.__name__, is_rms_norm, num_groups)
    wide = torch.promote_types(x.dtype, torch.float32)
    y, mean, rstd, residual_out = layer_norm_fwd(
        x, weight, bias, eps, residual, wide, residual_dtype, is_rms_norm, num_groups
    )  # fmt: skip
    y = y * gate(upcast(g))[0]
    return y.to(x.dtype if out_dtype is None else out_dtype), mean, rstd, residual_out


def layer_norm_gated_bwd(
    dy, x, g, weight, bias, activation, eps, mean, rstd, dresidual, has_residual, is_rms_norm, x_dtype, recompute_output,
    num_groups=1,
):  # fmt: skip
    # eps is in rstd
    gate, g = sigmoid if activation == "sigmoid" else swish, _gate(g, x)
    _check(x, weight, bias, num_groups, dy=dy, g=g, dresidual=dresidual)
    if native := _kernels((x_dtype,), dy, x, g, weight, bias, dresidual):
        dx, dg, dw, db, y = native.backward(
            dy, x, weight, bias, mean, rstd, dresidual, g, gate.__name__, recompute_output, num_groups
        )
        grads = dx, dg, dw, db, dx if has_residual else None
        return (*grads, y) if recompute_output else grads
    value, pull = gate(upcast(g))
    dx, dw, db, dres_in, y = layer_norm_bwd(
        upcast(dy) * value, x, weight, bias, mean, rstd, dresidual, has_residual, is_rms_norm, x_dtype, True, num_groups
    )
    dg = pull(upcast(dy) * y).to(g.dtype if x_dtype is None else x_dtype)
    grads = dx, dg, dw, db, dres_in
    return (*grads, (y * value).to(dy.dtype)) if recompute_output else grads


def layer_norm_gated_again(ctx, x, g, weight, bias, *_):
    return x, g, weight, bias, *_flat_statistics(x, ctx.eps, ctx.is_rms_norm)


def _groups(x, group_size):
    """Channels of a group, and how many groups there are."""
    D = group_size or x.shape[-1]
    if x.shape[-1] % D != 0:
        raise ValueError(f"group_size must divide the {x.shape[-1]} channels; got {group_size}.")
    return D, x.shape[-1] // D


def layernorm_gated_fwd(x, weight, bias, eps, z, out, group_size, norm_before_gate, is_rms_norm):
    """`fla.modules.norm.layernorm_gated.layer_norm_fwd`: norm in groups of channels, SiLU gate before or after."""
    D, groups = _groups(x, group_size)
    _check(x, weight, bias, z=z, out=out)
    if z is None or not norm_before_gate:
        s = x if z is None else gated(swish, z, x)
        y, mean, rstd, _ = layer_norm_fwd(s.reshape(-1, D), weight, bias, eps, is_rms_norm=is_rms_norm, num_groups=groups)
    else:
        y, mean, rstd, _ = layer_norm_gated_fwd(
            x.reshape(-1, D), z.reshape(-1, D), weight, bias, "swish", eps, None, None, None, is_rms_norm, groups
        )
    y = y.view(x.shape).to(x.dtype)
    mean, rstd = _by_group(groups, mean, rstd)
    return y if out is None else out.copy_(y), mean, rstd


def _by_group(groups, *statistics):
    """[T * groups] to [groups * T]."""
    return (None if t is None else t.view(-1, groups).t().flatten() for t in statistics)


def layernorm_gated_again(ctx, x, weight, bias, mean, rstd, z):
    D, groups = _groups(x, ctx.group_size)
    s = x if z is None or ctx.norm_before_gate else gated(swish, z, x)
    return x, weight, bias, *_by_group(groups, *_flat_statistics(s.reshape(-1, D), ctx.eps, ctx.is_rms_norm)), z


def layernorm_gated_bwd(
    dy, x, weight, bias, mean, rstd, z, group_size, norm_before_gate, is_rms_norm, recompute_output, dz, out
):
    """`fla.modules.norm.layernorm_gated.layer_norm_bwd`."""
    D, groups = _groups(x, group_size)
    _check(x, weight, bias, dy=dy, z=z, dz=dz, out=out)
    mean, rstd = (None if t is None else t.view(groups, -1).t().flatten() for t in (mean, rstd))
    grad = upcast(dy).reshape(-1, D)
    if z is None or not norm_before_gate:
        s = x if z is None else gated(swish, z, x)
        dx, dw, db, _, y = layer_norm_bwd(
            grad, s.reshape(-1, D), weight, bias, mean, rstd, None, False, is_rms_norm, None, True, groups
        )
        grad_z, dx, _ = (None, dx, None) if z is None else gated_backward(swish, z, x, dx.view(x.shape))
    else:
        dx, grad_z, dw, db, _, y = layer_norm_gated_bwd(
            grad, x.reshape(-1, D), z.reshape(-1, D), weight, bias, "swish", None, mean, rstd, None, False, is_rms_norm, None,
            True, groups,
        )  # fmt: skip
    if z is not None:
        grad_z = grad_z.view(z.shape)
        dz = grad_z.to(z.dtype) if dz is None else dz.copy_(grad_z)
    grads = dx.view(x.shape).to(x.dtype), dw, db, dz
    if not recompute_output:
        return grads
    y = y.view(x.shape).to(x.dtype)
    return *grads, y if out is None else out.copy_(y)


def l2norm_fwd(x, eps, output_dtype):
    s = upcast(x)
    rstd = (s.square().sum(-1, keepdim=True) + eps).rsqrt()
    return (s * rstd).to(x.dtype if output_dtype is None else output_dtype), rstd[..., 0]


def l2norm_again(ctx, y, rstd):
    # `y` has the graph of x, and is to have its value
    x = y + (upcast(y) / rstd[..., None] - y).detach()
    return l2norm_fwd(x, ctx.eps, y.dtype)


def l2norm_bwd(y, rstd, dy, eps):  # eps is in rstd
    s, grad = upcast(y), upcast(dy)
    return ((grad - s * (grad * s).sum(-1, keepdim=True)) * rstd[..., None]).to(y.dtype)


def activation_quant(y: torch.Tensor) -> torch.Tensor:
    """Rounds each row to 8 bits and back; halves are rounded away from zero."""
    scale = 127.0 / y.abs().amax(-1, keepdim=True).clamp_min(1e-5)
    scaled = y * scale
    return ((scaled.abs() + 0.5).floor() * scaled.sign()).clamp(-128, 127) / scale


def layer_norm_quant_fwd(x, weight, bias, eps, residual, out_dtype, residual_dtype, is_rms_norm):
    wide = torch.promote_types(x.dtype, torch.float32)
    y, mean, rstd, residual_out = layer_norm_fwd(x, weight, bias, eps, residual, wide, residual_dtype, is_rms_norm)
    return activation_quant(y).to(x.dtype if out_dtype is None else out_dtype), mean, rstd, residual_out


@_once
def layer_norm_quant_bwd(dy, x, weight, bias, mean, rstd, dres, has_residual, is_rms_norm, x_dtype, recompute_output):
    # Straight-through: the rounding has the gradient of the identity.
    *grads, y = layer_norm_bwd(upcast(dy), x, weight, bias, mean, rstd, dres, has_residual, is_rms_norm, x_dtype, True)
    return (*grads, activation_quant(y).to(dy.dtype)) if recompute_output else tuple(grads)


# The fused "norm, then linear" functions keep autocast's cast for their own backward on a GPU only, so on a CPU they
# are written as two differentiable steps.


def _then_linear(normed, weight, bias, prenorm, quantize=lambda y: y):
    """Applies the linear layer to the output of a norm, which comes with the residual if `prenorm`."""
    y, *residual = normed if prenorm else (normed,)
    y = quantize(y)
    if not torch.is_autocast_enabled("cpu"):
        weight, bias = weight.to(y.dtype), None if bias is None else bias.to(y.dtype)
    return (F.linear(y, weight, bias), *residual) if prenorm else F.linear(y, weight, bias)


def layer_norm_linear(
    x, norm_weight, norm_bias, linear_weight, linear_bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm, num_groups
):
    from fla.modules.norm.layernorm import group_norm

    normed = group_norm(
        x, norm_weight, norm_bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm, num_groups=num_groups
    )
    return _then_linear(normed, linear_weight, linear_bias, prenorm)


def layer_norm_swish_gate_linear(
    x, g, norm_weight, norm_bias, linear_weight, linear_bias, residual, prenorm, residual_in_fp32, eps, is_rms_norm=False
):
    from fla.modules.norm import fused_norm_gate

    norm = fused_norm_gate.rms_norm_gated if is_rms_norm else fused_norm_gate.layer_norm_gated
    normed = norm(x, g, norm_weight, norm_bias, "swish", residual, prenorm, residual_in_fp32, eps)
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
