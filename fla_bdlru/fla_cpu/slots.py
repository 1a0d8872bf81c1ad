"""PyTorch versions of `fla.ops.gsa`, `abc` and `rwkv6`."""

import torch

from fla_bdlru.fla_cpu.common import check_options, upcast
from fla_bdlru.fla_cpu.packing import check_cu_seqlens
from fla_bdlru.fla_cpu.scan import linear_attention


def fused_additive_gate(
    x: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    output_dtype: torch.dtype | None = None,
    gate_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # z_t = log(exp(z_{t-1}) + exp(x_t)); k = exp(x - z), g = z_{t-1} - z_t; x: [B, T, H, K], state: [N, 1, H, K]
    check_cu_seqlens(x.shape[0], cu_seqlens, initial_state)
    s = upcast(x)
    if cu_seqlens is not None:
        documents = s.split(cu_seqlens.diff().tolist(), 1)
        states = [None] * len(documents) if initial_state is None else initial_state.split(1)
    else:
        documents, states = [s], [initial_state]
    results = [_normalizers(*pair) for pair in zip(documents, states)]
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


def fused_recurrent_gsa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    s: torch.Tensor,
    g: torch.Tensor | None = None,
    scale: float | None = None,
    initial_state: tuple[torch.Tensor, torch.Tensor] | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    # Two memories with M slots: hk [K, M] says how much q looks at each slot, hv [M, V] holds their values.
    if g is None:
        s, g, _ = fused_additive_gate(s, cu_seqlens=cu_seqlens, output_dtype=k.dtype, gate_dtype=torch.float32)
    groups, dtype = q.shape[2] // k.shape[2], v.dtype
    k, v, s, g = (upcast(t).repeat_interleave(groups, 2) for t in (k, v, s, g))
    hk, hv = (None if h is None else h.repeat_interleave(groups, 1) for h in initial_state or (None, None))
    options = {"output_final_state": output_final_state, "reverse": reverse, "cu_seqlens": cu_seqlens}
    scores, hk = linear_attention(q, k, s, gv=g, scale=scale, initial_state=hk, **options)
    o, hv = linear_attention(scores.softmax(-1), s, v, gk=g, scale=1.0, initial_state=hv, **options)
    return o.to(dtype), [None if h is None else h[:, ::groups].contiguous() for h in (hk, hv)]


def chunk_gsa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    s: torch.Tensor,
    g: torch.Tensor | None = None,
    scale: float | None = None,
    initial_state: tuple[torch.Tensor, torch.Tensor] | None = None,
    output_final_state: bool = False,
    checkpoint_level: int = 2,
    cu_seqlens: torch.LongTensor | None = None,
    cu_seqlens_cpu: torch.LongTensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    check_options("chunk_gsa", kwargs, ignored=("chunk_size",))
    return fused_recurrent_gsa(q, k, v, s, g, scale, initial_state, output_final_state, False, cu_seqlens)


def chunk_abc(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    s: torch.Tensor,
    initial_state: tuple[torch.Tensor] | None = None,
    output_final_state: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    o, state = fused_recurrent_gsa(q, k, v, s, initial_state=initial_state, output_final_state=output_final_state)
    return o, tuple(state) if output_final_state else None


def fused_recurrent_rwkv6(
    r: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    w: torch.Tensor,
    u: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    # o_t = r_t (S_{t-1} + u k_t v_t^T), S_t = exp(w_t) S_{t-1} + k_t v_t^T; u: [H, K]
    # A step is two: the first one only reads, the second one only decays and writes.
    check_cu_seqlens(r.shape[0], cu_seqlens, initial_state)
    dtype, scale = v.dtype, r.shape[-1] ** -0.5 if scale is None else scale
    r, k, v, w = (upcast(t) for t in (r, k, v, w))

    def two_steps(x, reads):
        pair = [x, torch.zeros_like(x)] if reads != reverse else [torch.zeros_like(x), x]
        return torch.stack(pair, 2).flatten(1, 2)

    o, state = linear_attention(
        two_steps(r, True), two_steps(k, False), two_steps(v, False), gk=two_steps(w, False),
        scale=scale, initial_state=initial_state, output_final_state=output_final_state,
        reverse=reverse, cu_seqlens=None if cu_seqlens is None else 2 * cu_seqlens,
    )  # fmt: skip
    o = o[:, int(reverse) :: 2] + (scale * r * upcast(u) * k).sum(-1, keepdim=True) * v
    return o.to(dtype), state


def chunk_rwkv6(
    r: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    w: torch.Tensor,
    u: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
    cu_seqlens_cpu: torch.LongTensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    check_options("chunk_rwkv6", kwargs, ignored=("chunk_size",))
    return fused_recurrent_rwkv6(r, k, v, w, u, scale, initial_state, output_final_state, False, cu_seqlens)
