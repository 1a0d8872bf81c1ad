"""PyTorch versions of FLA's delta rules: `delta_rule`, `gated_delta_rule`, `gated_delta_product`, `kda`, `gdn2`, `comba`,
`generalized_delta_rule` and `rwkv7`. They take FLA's arguments by name, as `linear_attn.py`'s do.
"""

import torch
import torch.nn.functional as F

from fla_bdlru.fla_cpu.common import check_shape, check_sizes, upcast
from fla_bdlru.fla_cpu.documents import check_documents
from fla_bdlru.fla_cpu.scan import l2norm, linear_attention


def delta_rule(q, k, v, beta, **options):
    return linear_attention(q, k, v, torch.ones_like(v[..., 0]) if beta is None else beta, **options)


def softplus_gate(g, A_log, dt_bias):
    """-exp(A_log) * softplus(g + dt_bias), per head."""
    check_sizes(A_log=(A_log, g.shape[-1]), dt_bias=(dt_bias, g.shape[-1]))
    g = upcast(g) if dt_bias is None else upcast(g) + upcast(dt_bias)
    return -upcast(A_log).exp() * F.softplus(g)


def _beta(beta, use_beta_sigmoid, allow_neg_eigval):
    """`beta`, from its logits where the kernel would take those."""
    if allow_neg_eigval and not use_beta_sigmoid:
        raise ValueError("allow_neg_eigval=True needs use_beta_sigmoid_in_kernel=True.")
    return torch.sigmoid(upcast(beta)) * (2 if allow_neg_eigval else 1) if use_beta_sigmoid else beta


def gated_delta_rule(
    q, k, v, g, beta, use_beta_sigmoid_in_kernel, allow_neg_eigval,
    gk=None, gv=None, use_gate_in_kernel=False, A_log=None, dt_bias=None, **options,
):  # fmt: skip
    if use_gate_in_kernel:
        if A_log is None or g is None:
            raise ValueError("use_gate_in_kernel=True needs g (the raw gate) and A_log.")
        check_shape("g", g, v.shape[:3])
        g = softplus_gate(g, A_log, dt_bias)
    beta = _beta(torch.ones_like(v[..., 0]) if beta is None else beta, use_beta_sigmoid_in_kernel, allow_neg_eigval)
    return linear_attention(q, k, v, beta, g=g, gk=gk, gv=gv, **options)


def gated_delta_product(q, k, v, g, beta, num_householder, initial_state, cu_seqlens, **options):
    # A step is num_householder delta steps: the first one decays, the last one is read.
    n, T = num_householder, q.shape[1]
    if k.shape[1] != n * T:
        raise ValueError(f"k has {k.shape[1]} steps; expected num_householder * T = {n} * {T}.")
    check_documents(q, cu_seqlens, initial_state)
    zeros = q.new_zeros(*q.shape[:2], n - 1, *q.shape[2:])
    q = torch.cat([zeros, q[:, :, None]], 2).flatten(1, 2)
    if g is not None:
        g = torch.cat([g[:, :, None], torch.zeros_like(zeros[..., 0], dtype=g.dtype)], 2).flatten(1, 2)
    bounds = None if cu_seqlens is None else cu_seqlens * n
    o, state = linear_attention(q, k, v, beta, g=g, initial_state=initial_state, cu_seqlens=bounds, **options)
    return o.unflatten(1, (T, n))[:, :, -1], state


def _kda_gate(g, A_log, dt_bias, lower_bound, safe_gate):
    """`fused_kda_gate` where the kernel would see to it; what it needs for that is there, as FLA has it."""
    if safe_gate and (lower_bound is None or not -5 <= lower_bound < 0):
        raise ValueError(
            f"lower_bound={lower_bound}: with use_gate_in_kernel=True and safe_gate=True it has to be in [-5, 0)."
        )
    if A_log is None and lower_bound is None:
        raise ValueError("use_gate_in_kernel=True needs A_log or lower_bound; got None for both.")
    return fused_kda_gate(g, A_log, dt_bias, lower_bound)


def kda(
    q, k, v, g, beta, use_gate_in_kernel, use_beta_sigmoid_in_kernel, allow_neg_eigval, lower_bound,
    safe_gate=False, A_log=None, dt_bias=None, **options,
):  # fmt: skip
    check_shape("g", g, (*v.shape[:3], q.shape[-1]))
    g = _kda_gate(g, A_log, dt_bias, lower_bound, safe_gate) if use_gate_in_kernel else g
    return linear_attention(q, k, v, _beta(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval), gk=g, **options)


def fused_kda_gate(g, A_log, dt_bias, lower_bound, output_dtype=torch.float32):
    from fla.ops.kda.gate import naive_kda_gate, naive_kda_lowerbound_gate

    check_sizes(A_log=(A_log, g.shape[-2]), dt_bias=(dt_bias, g.shape[-2] * g.shape[-1]))
    if lower_bound is None:
        return naive_kda_gate(g, A_log, dt_bias, output_dtype)
    return naive_kda_lowerbound_gate(g, A_log, dt_bias, lower_bound, output_dtype)


def _keys(normalize, groups, *tensors):
    """`tensors` in fp32, of unit length where the kernel would see to it, with as many heads as the values."""
    tensors = (upcast(t) for t in tensors)
    return ((l2norm(t) if normalize else t).repeat_interleave(groups, 2) for t in tensors)


def gdn2(
    q, k, v, g, b, w, use_qk_l2norm_in_kernel, use_gate_in_kernel, lower_bound,
    safe_gate=False, A_log=None, dt_bias=None, **options,
):  # fmt: skip
    # S' = exp(g) S;  S = S' + k (w v - S'^T (b k))^T
    for name, t in {"g": g, "b": b}.items():
        check_shape(name, t, (*v.shape[:3], k.shape[-1]))
    check_shape("w", w, v.shape)
    g = upcast(_kda_gate(g, A_log, dt_bias, lower_bound, safe_gate) if use_gate_in_kernel else g)
    q, k = _keys(use_qk_l2norm_in_kernel, v.shape[2] // k.shape[2], q, k)
    low_rank = (-upcast(b) * k * g.exp(), k)
    o, state = linear_attention(q, k, upcast(w) * upcast(v), gk=g, low_rank=low_rank, **options)
    return o.to(v.dtype), state


def comba(q, k, v, p, g, beta, use_qk_l2norm_in_kernel, **options):
    # S_t = exp(g) S_{t-1} + k beta (v - S_{t-1}^T p)^T: unlike the gated delta rule, p reads the state before its decay.
    if beta is not None and beta.dim() == 4:
        raise ValueError("beta has 4 axes; on a CPU Comba takes one value a head, [B, T, HV].")
    check_shape("beta", beta, v.shape[:3])
    check_shape("p", p, k.shape)
    q, k, p = _keys(use_qk_l2norm_in_kernel, v.shape[2] // k.shape[2], q, k, k if p is None else p)
    beta = upcast(torch.ones_like(v[..., :1]) if beta is None else beta[..., None])
    o, state = linear_attention(q, k, beta * upcast(v), g=g, low_rank=(-p, beta * k), **options)
    return o.to(v.dtype), state


def dplr(q, k, v, a, b, gk, lower_bound=None, **options):
    # lower_bound says how small gk can be, which nothing here needs
    return linear_attention(q, k, v, gk=gk, low_rank=(a, b), **options)


def rwkv7(r, w, k, v, kk, a, **options):
    check_shape("kk", kk, r.shape)
    check_shape("a", a, r.shape)
    return linear_attention(r, k, v, gk=w, low_rank=(-kk, upcast(kk) * a), **options)


def fused_gdn_gate(g, A_log, dt_bias, output_dtype):
    return softplus_gate(g, A_log, dt_bias).to(output_dtype)


def fused_beta_sigmoid_fwd(x, scale):
    return scale * torch.sigmoid(x.float())


def fused_beta_sigmoid_bwd(x, dy, scale):
    s = torch.sigmoid(x.float())
    return (dy.float() * scale * s * (1 - s)).to(x.dtype)


def fused_addcmul_rwkv7(hidden_states, delta, xr, xw, xk, xv, xa, xg):
    x, d = upcast(hidden_states), upcast(delta)
    mixes = (xr, xw, xk, xv, xa, xg)
    return tuple(None if m is None else torch.addcmul(x, d, upcast(m)).to(hidden_states.dtype) for m in mixes)


def fused_k_rwkv7(k, a, ka, cu_seqlens):
    # token by token, so that documents make no difference
    s = upcast(k)
    return (s + s * (upcast(a) - 1) * upcast(ka)).to(k.dtype)


def gate_output_correction(o, r, k, r_k, v, g):
    weight = (upcast(r) * upcast(k) * upcast(r_k)).sum(-1, keepdim=True)
    return ((upcast(o) + (weight * upcast(v)).reshape(o.shape)) * upcast(g)).to(o.dtype)
