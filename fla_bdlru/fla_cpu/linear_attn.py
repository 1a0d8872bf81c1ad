"""PyTorch versions of FLA's linear-attention ops without a delta rule, and of the sums and gates beside them.

Each takes FLA's arguments by name (`binding.by_name`), so the chunked and the fused form of an op share one function.
`fla.ops.linear_attn`, `retention` and `lightnet` are written in terms of these and need no own version.
"""

from itertools import repeat

import torch

from fla_bdlru.fla_cpu.common import check_shape, check_sizes, full_precision, upcast
from fla_bdlru.fla_cpu.documents import check_documents, run_documents, split_documents
from fla_bdlru.fla_cpu.scan import attention_matrix, check_heads, linear_attention, linear_scan


def gla(q, k, v, g, **options):
    check_shape("g", g, (*v.shape[:3], q.shape[-1]))
    return linear_attention(q, k, v, gk=g, **options)


def simple_gla(q, k, v, g, g_gamma, gk=None, gv=None, **options):
    """`fla.ops.simple_gla`, and what is behind `linear_attn`, `retention` and the fused forms of `gla`."""
    if g_gamma is not None:
        # g_gamma: [H], the same decay at every step
        check_shape("g_gamma", g_gamma, v.shape[2:3])
        check_shape("g", g, v.shape[:3])
        gamma = upcast(g_gamma).expand(*v.shape[:3])
        g = gamma if g is None else upcast(g) + gamma
    return linear_attention(q, k, v, g=g, gk=gk, gv=gv, **options)


@full_precision
def parallel_simple_gla(q, k, v, g, scale, output_attentions, cu_seqlens):
    if not output_attentions:
        return linear_attention(q, k, v, g=g, scale=scale, cu_seqlens=cu_seqlens)
    if cu_seqlens is not None:
        raise ValueError("output_attentions=True is not supported with cu_seqlens.")
    check_heads(q, k, v, g=g)
    attention = attention_matrix(q, k, g, scale)
    o = attention @ upcast(v).transpose(1, 2)
    return o.transpose(1, 2).to(v.dtype), attention.to(q.dtype)


def hgrn(x, g, initial_state, output_final_state, cu_seqlens=None):
    # h_t = exp(g_t) h_{t-1} + x_t; x, g: [B, T, D], state: [N, D]
    check_documents(x, cu_seqlens, initial_state)
    N = x.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    check_shape("g", g, x.shape, (*x.shape[:2], 1))
    check_shape("initial_state", initial_state, (N, x.shape[-1]))
    s, g = upcast(x), upcast(g)
    state = s.new_zeros(N, x.shape[-1]) if initial_state is None else upcast(initial_state)

    def run(s, g, state):
        h = linear_scan(g.exp(), s, state)
        return h, torch.cat([state[:, None], h], 1)[:, -1]

    o, state = run_documents(run, (s, g), state, cu_seqlens)
    return o.to(x.dtype), state if output_final_state else None


def gsa(q, k, v, s, g, initial_state, cu_seqlens, scale=None, output_final_state=False, reverse=False):
    # Two memories with M slots: hk [K, M] says how much q looks at each slot, hv [M, V] holds their values.
    if g is None:
        s, g, _ = fused_additive_gate(s, None, cu_seqlens, k.dtype, torch.float32)
    groups, dtype = q.shape[2] // k.shape[2], v.dtype
    k, v, s, g = (upcast(t).repeat_interleave(groups, 2) for t in (k, v, s, g))
    hk, hv = (None if h is None else h.repeat_interleave(groups, 1) for h in initial_state or (None, None))
    options = {"output_final_state": output_final_state, "reverse": reverse, "cu_seqlens": cu_seqlens}
    scores, hk = linear_attention(q, k, s, gv=g, scale=scale, initial_state=hk, **options)
    o, hv = linear_attention(scores.softmax(-1), s, v, gk=g, scale=1.0, initial_state=hv, **options)
    return o.to(dtype), [None if h is None else h[:, ::groups].contiguous() for h in (hk, hv)]


def abc(q, k, v, s, initial_state, output_final_state):
    o, state = gsa(q, k, v, s, None, initial_state, None, output_final_state=output_final_state)
    return o, tuple(state) if output_final_state else None


def fused_additive_gate(x, initial_state, cu_seqlens, output_dtype, gate_dtype):
    # z_t = log(exp(z_{t-1}) + exp(x_t)); k = exp(x - z), g = z_{t-1} - z_t; x: [B, T, H, K], state: [N, 1, H, K]
    check_documents(x, cu_seqlens, initial_state)
    s = upcast(x)
    states = repeat(None) if initial_state is None else [initial_state] if cu_seqlens is None else initial_state.split(1)
    results = [_normalizers(*part, state) for part, state in zip(split_documents(cu_seqlens, s), states)]
    before, z, last = (torch.cat(parts, dim) for parts, dim in zip(zip(*results), (1, 1, 0)))
    k, g = (s - z).exp(), before - z
    return k.to(output_dtype or x.dtype), g.to(gate_dtype or x.dtype), last


def _normalizers(x, initial_state):
    """z_{t-1}, z_t and the last z of one batch; without a state the first z_{t-1} is z_t, so that the first gate is 0."""
    if x.shape[1] == 0:
        last = torch.full_like(x.new_empty(x.shape[0], 1, *x.shape[2:]), -torch.inf)
        return x, x, last if initial_state is None else initial_state.to(x.dtype)
    if initial_state is None:
        z = x.logcumsumexp(1)
        return torch.cat([z[:, :1], z[:, :-1]], 1), z, z[:, -1:]
    z = torch.cat([initial_state.to(x.dtype), x], 1).logcumsumexp(1)
    return z[:, :-1], z[:, 1:], z[:, -1:]


def rwkv6(r, k, v, w, u, scale, initial_state, cu_seqlens, reverse=False, **options):
    # o_t = r_t (S_{t-1} + u k_t v_t^T), S_t = exp(w_t) S_{t-1} + k_t v_t^T; u: [H, K]
    # A step is two: the first one only reads, the second one only decays and writes.
    check_documents(r, cu_seqlens, initial_state)
    check_sizes(u=(u, r.shape[2] * r.shape[3]))
    dtype, scale = v.dtype, r.shape[-1] ** -0.5 if scale is None else scale
    r, k, v, w = (upcast(t) for t in (r, k, v, w))

    def two_steps(x, reads):
        pair = [x, torch.zeros_like(x)] if reads != reverse else [torch.zeros_like(x), x]
        return torch.stack(pair, 2).flatten(1, 2)

    o, state = linear_attention(
        two_steps(r, True), two_steps(k, False), two_steps(v, False), gk=two_steps(w, False), scale=scale, reverse=reverse,
        initial_state=initial_state, cu_seqlens=None if cu_seqlens is None else 2 * cu_seqlens, **options,
    )  # fmt: skip
    o = o[:, int(reverse) :: 2] + (scale * r * upcast(u) * k).sum(-1, keepdim=True) * v
    return o.to(dtype), state


def chunk_global_cumsum(s, reverse, cu_seqlens, scale, output_dtype, chunk_size=None):
    """Sums over time within each sequence and chunk; s: [B, T, H] or [B, T, H, D]."""
    check_documents(s, cu_seqlens, None)
    x = upcast(s)
    chunks = [c for (part,) in split_documents(cu_seqlens, x) for c in part.split(chunk_size or max(1, x.shape[1]), 1)]
    y = torch.cat([c.flip(1).cumsum(1).flip(1) if reverse else c.cumsum(1) for c in chunks], 1)
    return (y if scale is None else y * scale).to(output_dtype or s.dtype)


def chunk_local_cumsum(g, chunk_size, reverse, scale, cu_seqlens, output_dtype):
    return chunk_global_cumsum(g, reverse, cu_seqlens, scale, output_dtype, chunk_size)


@full_precision
def fused_attnres(query, residuals, rms_weight, output_rms_weight, rms_eps, scale, return_weights):
    from fla.ops.attnres.naive import naive_attnres

    residuals = [residual.contiguous() for residual in residuals]
    return naive_attnres(query, residuals, rms_weight, output_rms_weight, rms_eps, scale, return_weights)
