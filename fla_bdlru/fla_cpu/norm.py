"""PyTorch versions of `fla.modules.norm`: layer, RMS, group and l2 norms, with a gate or without."""

import torch
import torch.nn.functional as F

from fla_bdlru.fla_cpu.common import upcast


def _statistics(x: torch.Tensor, eps: float, is_rms_norm: bool) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Mean (None for RMS norm) and reciprocal standard deviation of the last axis, which is kept."""
    if is_rms_norm:
        return None, (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    mean = x.mean(-1, keepdim=True)
    return mean, ((x - mean).square().mean(-1, keepdim=True) + eps).rsqrt()


def _normalize_bwd(x_hat, dx_hat, rstd, is_rms_norm):
    """Gradient through x_hat = (x - mean) * rstd over the last axis."""
    dx = torch.addcmul(dx_hat, x_hat, (x_hat * dx_hat).mean(-1, keepdim=True), value=-1)
    if not is_rms_norm:
        dx -= dx_hat.mean(-1, keepdim=True)
    return dx.mul_(rstd)


def _gate(g: torch.Tensor, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The gate's value and derivative at `g`."""
    sigmoid = torch.sigmoid(g)
    if activation == "sigmoid":
        return sigmoid, sigmoid * (1 - sigmoid)
    return g * sigmoid, sigmoid * (1 + g * (1 - sigmoid))


def add_residual(x, residual, residual_dtype):
    """x + residual in fp32, and what the layer hands on as the residual: `x` itself, or the sum in its own type."""
    s = upcast(x) if residual is None else upcast(x) + upcast(residual)
    residual_dtype = residual_dtype if residual is None else residual.dtype
    keep = residual is None and (residual_dtype is None or residual_dtype == x.dtype)
    return s, x if keep else s.to(residual_dtype)


def layer_norm_fwd(
    x, weight, bias, eps=1e-05, residual=None, out_dtype=None, residual_dtype=None, is_rms_norm=False, num_groups=1
):
    # x: [T, D], row t belongs to group t % num_groups; weight, bias: [num_groups * D]
    s, residual_out = add_residual(x, residual, residual_dtype)
    mean, rstd = _statistics(s, eps, is_rms_norm)
    y = (s if mean is None else s - mean) * rstd
    y = y.view(-1, num_groups, x.shape[-1])
    if weight is not None:
        y *= upcast(weight).view(num_groups, -1)
    if bias is not None:
        y += upcast(bias).view(num_groups, -1)
    y = y.view_as(x).to(x.dtype if out_dtype is None else out_dtype)
    return y, None if mean is None else mean.flatten(), rstd.flatten(), residual_out


def layer_norm_bwd(dy, x, weight, bias, mean, rstd, dres, has_residual, is_rms_norm, x_dtype, recompute_output, num_groups=1):
    D = x.shape[-1]
    rstd = rstd[:, None]
    x_hat = (upcast(x) if is_rms_norm else upcast(x) - mean[:, None]) * rstd
    grouped_x_hat, grouped_dy = (t.view(-1, num_groups, D) for t in (x_hat, upcast(dy)))
    w = None if weight is None else upcast(weight).view(num_groups, D)

    dx_hat = grouped_dy if w is None else grouped_dy * w
    dx = _normalize_bwd(x_hat, dx_hat.view_as(x_hat), rstd, is_rms_norm)
    if dres is not None:
        dx = dx + upcast(dres)
    dw = None if weight is None else (grouped_dy * grouped_x_hat).sum(0).to(weight).view_as(weight)
    db = None if bias is None else grouped_dy.sum(0).to(bias).view_as(bias)

    dx_out = dx.to(x.dtype if x_dtype is None else x_dtype)
    dres_in = None
    if has_residual:
        dres_in = dx_out if dx_out.dtype == x.dtype else dx.to(x.dtype)
    if not recompute_output:
        return dx_out, dw, db, dres_in
    y = grouped_x_hat if w is None else grouped_x_hat * w
    if bias is not None:
        y = y + upcast(bias).view(num_groups, D)
    return dx_out, dw, db, dres_in, y.view_as(x_hat).to(dy.dtype)


def layer_norm_gated_fwd(x, g, weight, bias, activation, eps, residual, out_dtype, residual_dtype, is_rms_norm):
    s, residual_out = add_residual(x, residual, residual_dtype)
    y, mean, rstd, _ = layer_norm_fwd(s, weight, bias, eps=eps, is_rms_norm=is_rms_norm)
    y = y * _gate(upcast(g), activation)[0]
    return y.to(x.dtype if out_dtype is None else out_dtype), mean, rstd, residual_out


def layer_norm_gated_bwd(
    dy, x, g, weight, bias, activation, eps, mean, rstd, dresidual, has_residual, is_rms_norm, x_dtype, recompute_output
):  # eps is in rstd
    gate, dgate = _gate(upcast(g), activation)
    dx, dw, db, dres_in, y = layer_norm_bwd(
        upcast(dy) * gate, x, weight, bias, mean, rstd, dresidual, has_residual, is_rms_norm, x_dtype, True
    )
    dg = (upcast(dy) * y * dgate).to(g.dtype if x_dtype is None else x_dtype)
    grads = dx, dg, dw, db, dres_in
    return (*grads, (y * gate).to(dy.dtype)) if recompute_output else grads


def _grouped(x: torch.Tensor, group_size: int | None) -> torch.Tensor:
    """[T, D] to [T, groups, group_size]."""
    return x.unflatten(-1, (-1, group_size or x.shape[-1]))


def layernorm_gated_fwd(x, weight, bias, eps, z, out, group_size, norm_before_gate, is_rms_norm):
    """`fla.modules.norm.layernorm_gated.layer_norm_fwd`: norm in groups of channels, SiLU gate before or after."""
    s, gate = upcast(x), None if z is None else F.silu(upcast(z))
    if gate is not None and not norm_before_gate:
        s = s * gate
    s = _grouped(s, group_size)
    mean, rstd = _statistics(s, eps, is_rms_norm)
    y = ((s if mean is None else s - mean) * rstd).flatten(-2) * upcast(weight)
    if bias is not None:
        y = y + upcast(bias)
    if gate is not None and norm_before_gate:
        y = y * gate
    out = y.to(x.dtype) if out is None else out.copy_(y)
    # statistics: [groups * T], group first
    return out, None if mean is None else mean[..., 0].t().flatten(), rstd[..., 0].t().flatten()


def layernorm_gated_bwd(
    dy, x, weight, bias, mean, rstd, z, group_size, norm_before_gate, is_rms_norm, recompute_output, dz, out
):
    """`fla.modules.norm.layernorm_gated.layer_norm_bwd`."""
    s, w, grad = upcast(x), upcast(weight), upcast(dy)
    mean, rstd = (None if t is None else t.view(-1, x.shape[0]).t()[..., None] for t in (mean, rstd))
    gate = dgate = None
    if z is not None:
        gate, dgate = _gate(upcast(z), "swish")

    s_in = s if gate is None or norm_before_gate else s * gate
    x_hat = (_grouped(s_in, group_size) if is_rms_norm else _grouped(s_in, group_size) - mean) * rstd
    flat_x_hat = x_hat.flatten(-2)
    y = flat_x_hat * w if bias is None else flat_x_hat * w + upcast(bias)
    grad_z = None
    if gate is not None and norm_before_gate:
        grad_z = grad * y * dgate
        grad = grad * gate
        y = y * gate
    dx = _normalize_bwd(x_hat, _grouped(grad * w, group_size), rstd, is_rms_norm).flatten(-2)
    dw = (grad * flat_x_hat).sum(0).to(weight.dtype)
    db = None if bias is None else grad.sum(0).to(bias.dtype)
    if gate is not None and not norm_before_gate:
        grad_z = dx * s * dgate
        dx = dx * gate
    if z is not None:
        dz = grad_z.to(z.dtype) if dz is None else dz.copy_(grad_z)
    if not recompute_output:
        return dx.to(x.dtype), dw, db, dz
    return dx.to(x.dtype), dw, db, dz, y.to(x.dtype) if out is None else out.copy_(y)


def l2norm_fwd(x, eps, output_dtype):
    s = upcast(x)
    rstd = (s.square().sum(-1, keepdim=True) + eps).rsqrt()
    return (s * rstd).to(x.dtype if output_dtype is None else output_dtype), rstd[..., 0]


def l2norm_bwd(y, rstd, dy, eps):  # eps is in rstd
    s, grad = upcast(y), upcast(dy)
    return ((grad - s * (grad * s).sum(-1, keepdim=True)) * rstd[..., None]).to(y.dtype)
