"""PyTorch versions of the delta rule's relatives: `fla.ops.kda`, `gdn2`, `comba`, `generalized_delta_rule` and `rwkv7`."""

import torch

from fla_bdlru.fla_cpu.common import check_options, no_context_parallelism, upcast
from fla_bdlru.fla_cpu.delta_rule import gate_and_beta, rename_state_layout
from fla_bdlru.fla_cpu.scan import l2norm, linear_attention


def chunk_kda(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    safe_gate: bool = False,
    lower_bound: float | None = None,
    disable_recompute: bool = False,
    return_intermediate_states: bool = False,
    state_v_first: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
    cu_seqlens_cpu: torch.LongTensor | None = None,
    cp_context=None,
    use_graph: bool = False,
    max_num_seqs: int | None = None,
    **kwargs,
):
    no_context_parallelism(cp_context)
    if return_intermediate_states:
        raise ValueError("return_intermediate_states=True needs tensors on a GPU; on a CPU pass False.")
    state_v_first = rename_state_layout(kwargs, state_v_first)
    A_log, dt_bias = kwargs.pop("A_log", None), kwargs.pop("dt_bias", None)
    check_options("chunk_kda", kwargs, ignored=("chunk_size",))
    return fused_recurrent_kda(
        q, k, v, g, beta, A_log, dt_bias, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel,
        use_gate_in_kernel, use_beta_sigmoid_in_kernel, allow_neg_eigval, lower_bound, state_v_first, cu_seqlens,
    )  # fmt: skip


def fused_recurrent_kda(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    scale: float | None = None,
    initial_state: torch.Tensor = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    state_v_first = rename_state_layout(kwargs, state_v_first)
    check_options("fused_recurrent_kda", kwargs)
    if use_gate_in_kernel:
        g = fused_kda_gate(g, A_log, dt_bias, lower_bound)
    _, beta = gate_and_beta(None, beta, None, None, False, use_beta_sigmoid_in_kernel, allow_neg_eigval)
    return linear_attention(
        q, k, v, beta, gk=g,
        scale=scale, initial_state=initial_state, output_final_state=output_final_state,
        normalize=use_qk_l2norm_in_kernel, state_v_first=state_v_first, cu_seqlens=cu_seqlens,
    )  # fmt: skip


def fused_kda_gate(
    g: torch.Tensor,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    lower_bound: float | None = None,
    output_dtype: torch.dtype = torch.float32,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    from fla.ops.kda.gate import naive_kda_gate, naive_kda_lowerbound_gate

    if lower_bound is None:
        return naive_kda_gate(g, A_log, dt_bias, output_dtype)
    return naive_kda_lowerbound_gate(g, A_log, dt_bias, lower_bound, output_dtype)


def chunk_gdn2(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    b: torch.Tensor,
    w: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
    cu_seqlens_cpu: torch.LongTensor | None = None,
    safe_gate: bool = False,
    lower_bound: float | None = None,
    disable_recompute: bool = False,
    return_intermediate_states: bool = False,
    state_v_first: bool = False,
    cp_context=None,
    **kwargs,
):
    no_context_parallelism(cp_context)
    if return_intermediate_states:
        raise ValueError("return_intermediate_states=True needs tensors on a GPU; on a CPU pass False.")
    state_v_first = rename_state_layout(kwargs, state_v_first)
    A_log, dt_bias = kwargs.pop("A_log", None), kwargs.pop("dt_bias", None)
    check_options("chunk_gdn2", kwargs, ignored=("chunk_size",))
    return fused_recurrent_gdn2(
        q, k, v, g, b, w, A_log, dt_bias, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel,
        use_gate_in_kernel, lower_bound, state_v_first, cu_seqlens,
    )  # fmt: skip


def fused_recurrent_gdn2(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    b: torch.Tensor,
    w: torch.Tensor,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    # S' = exp(g) S;  S = S' + k (w v - S'^T (b k))^T
    state_v_first = rename_state_layout(kwargs, state_v_first)
    check_options("fused_recurrent_gdn2", kwargs)
    if use_gate_in_kernel:
        g = fused_kda_gate(g, A_log, dt_bias, lower_bound)
    q, key, g = upcast(q), upcast(k), upcast(g)
    if use_qk_l2norm_in_kernel:
        q, key = l2norm(q), l2norm(key)
    key = key.repeat_interleave(v.shape[2] // k.shape[2], 2)
    q = q.repeat_interleave(v.shape[2] // k.shape[2], 2)
    o, state = linear_attention(
        q, key, upcast(w) * upcast(v), gk=g, low_rank=(-upcast(b) * key * g.exp(), key),
        scale=scale, initial_state=initial_state, output_final_state=output_final_state,
        state_v_first=state_v_first, cu_seqlens=cu_seqlens,
    )  # fmt: skip
    return o.to(v.dtype), state


def chunk_comba(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    p: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor = None,
    scale: float | None = None,
    initial_state: torch.Tensor = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
    cu_seqlens_cpu: torch.LongTensor | None = None,
):
    # S_t = exp(g) S_{t-1} + k beta (v - S_{t-1}^T p)^T: unlike the gated delta rule, p reads the state before its decay.
    q, key, p = upcast(q), upcast(k), upcast(k if p is None else p)
    if use_qk_l2norm_in_kernel:
        q, key, p = l2norm(q), l2norm(key), l2norm(p)
    q, key, p = (t.repeat_interleave(v.shape[2] // k.shape[2], 2) for t in (q, key, p))
    beta = torch.ones_like(v[..., 0]) if beta is None else beta
    beta = upcast(beta)[..., None]
    o, state = linear_attention(
        q, key, beta * upcast(v), g=g, low_rank=(-p, beta * key),
        scale=scale, initial_state=initial_state, output_final_state=output_final_state, cu_seqlens=cu_seqlens,
    )  # fmt: skip
    return o.to(v.dtype), state


def fused_recurrent_comba(
    q: torch.Tensor,
    k: torch.Tensor,
    p: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor = None,
    scale: float | None = None,
    initial_state: torch.Tensor = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    if beta is not None and beta.dim() == 4:
        raise ValueError("beta has 4 axes; on a CPU Comba takes one value a head, [B, T, HV].")
    return chunk_comba(q, k, v, p, g, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel, cu_seqlens)


def chunk_dplr_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    gk: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
    cu_seqlens_cpu: torch.LongTensor | None = None,
    safe_gate: bool = False,
    chunk_size: int | None = None,
    disable_recompute: bool = False,
    cp_context=None,
    lower_bound: float | None = None,
    **kwargs,
):
    no_context_parallelism(cp_context)
    check_options("chunk_dplr_delta_rule", kwargs)
    return fused_recurrent_dplr_delta_rule(q, k, v, a, b, gk, scale, initial_state, output_final_state, False, cu_seqlens)


def fused_recurrent_dplr_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    gk: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return linear_attention(
        q, k, v, gk=gk, low_rank=(a, b),
        scale=scale, initial_state=initial_state, output_final_state=output_final_state,
        reverse=reverse, cu_seqlens=cu_seqlens,
    )  # fmt: skip


def fused_mul_recurrent_rwkv7(
    r: torch.Tensor,
    w: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kk: torch.Tensor,
    a: torch.Tensor,
    scale: float = 1.0,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return fused_recurrent_dplr_delta_rule(
        r, k, v, -kk, kk * a, w, scale, initial_state, output_final_state, reverse, cu_seqlens
    )


def fused_addcmul_rwkv7(
    hidden_states: torch.Tensor,
    delta: torch.Tensor,
    xr: torch.Tensor,
    xw: torch.Tensor,
    xk: torch.Tensor,
    xv: torch.Tensor,
    xa: torch.Tensor,
    xg: torch.Tensor | None = None,
):
    x, d = upcast(hidden_states), upcast(delta)
    mixes = (xr, xw, xk, xv, xa, xg)
    return tuple(None if m is None else torch.addcmul(x, d, upcast(m)).to(hidden_states.dtype) for m in mixes)


def fused_k_rwkv7(k, a, ka, cu_seqlens=None, cu_seqlens_cpu=None):
    s = upcast(k)
    return (s + s * (upcast(a) - 1) * upcast(ka)).to(k.dtype)


def gate_output_correction(
    o: torch.Tensor,
    r: torch.Tensor,
    k: torch.Tensor,
    r_k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
) -> torch.Tensor:
    weight = (upcast(r) * upcast(k) * upcast(r_k)).sum(-1, keepdim=True)
    return ((upcast(o) + (weight * upcast(v)).view(o.shape)) * upcast(g)).to(o.dtype)
