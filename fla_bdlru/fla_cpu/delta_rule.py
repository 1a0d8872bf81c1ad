"""PyTorch versions of `fla.ops.delta_rule`, `gated_delta_rule` and `gated_delta_product`."""

import torch
import torch.nn.functional as F

from fla_bdlru.fla_cpu.common import check_options, no_context_parallelism, upcast
from fla_bdlru.fla_cpu.packing import check_cu_seqlens
from fla_bdlru.fla_cpu.scan import linear_attention


def _softplus_gate(g, A_log, dt_bias):
    """-exp(A_log) * softplus(g + dt_bias), per head."""
    g = upcast(g) if dt_bias is None else upcast(g) + upcast(dt_bias)
    return -upcast(A_log).exp() * F.softplus(g)


def rename_state_layout(options: dict, state_v_first: bool) -> bool:
    """FLA's old name of `state_v_first`."""
    return options.pop("transpose_state_layout", state_v_first)


def chunk_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
    cu_seqlens_cpu: torch.LongTensor | None = None,
    **kwargs,
):
    check_options("chunk_delta_rule", kwargs, ignored=("chunk_size",))
    return linear_attention(
        q, k, v, beta,
        scale=scale, initial_state=initial_state, output_final_state=output_final_state,
        normalize=use_qk_l2norm_in_kernel, cu_seqlens=cu_seqlens,
    )  # fmt: skip


def fused_recurrent_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor = None,
    scale: float | None = None,
    initial_state: torch.Tensor = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return linear_attention(
        q, k, v, torch.ones_like(v[..., 0]) if beta is None else beta,
        scale=scale, initial_state=initial_state, output_final_state=output_final_state,
        normalize=use_qk_l2norm_in_kernel, cu_seqlens=cu_seqlens,
    )  # fmt: skip


def gate_and_beta(g, beta, A_log, dt_bias, use_gate, use_beta_sigmoid, allow_neg_eigval):
    """What the gated delta rules compute in their kernels: the gate from its logits, beta from its logits."""
    if use_gate:
        if A_log is None or g is None:
            raise ValueError("use_gate_in_kernel=True needs g (the raw gate) and A_log.")
        g = _softplus_gate(g, A_log, dt_bias)
    if allow_neg_eigval and not use_beta_sigmoid:
        raise ValueError("allow_neg_eigval=True needs use_beta_sigmoid_in_kernel=True.")
    if use_beta_sigmoid:
        beta = torch.sigmoid(upcast(beta)) * (2 if allow_neg_eigval else 1)
    return g, beta


def chunk_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
    cu_seqlens_cpu: torch.LongTensor | None = None,
    chunk_indices: torch.LongTensor | None = None,
    cp_context=None,
    **kwargs,
):
    no_context_parallelism(cp_context)
    state_v_first = rename_state_layout(kwargs, state_v_first)
    gate = {name: kwargs.pop(name, None) for name in ("use_gate_in_kernel", "A_log", "dt_bias")}
    check_options("chunk_gated_delta_rule", kwargs, ignored=("chunk_size",))
    g, beta = gate_and_beta(
        g, beta, gate["A_log"], gate["dt_bias"],
        gate["use_gate_in_kernel"], use_beta_sigmoid_in_kernel, allow_neg_eigval,
    )  # fmt: skip
    return linear_attention(
        q, k, v, beta, g=g,
        scale=scale, initial_state=initial_state, output_final_state=output_final_state,
        normalize=use_qk_l2norm_in_kernel, state_v_first=state_v_first, cu_seqlens=cu_seqlens,
    )  # fmt: skip


def fused_recurrent_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor | None = None,
    gk: torch.Tensor | None = None,
    gv: torch.Tensor | None = None,
    beta: torch.Tensor | None = None,
    scale: float | None = None,
    initial_state: torch.Tensor = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    state_v_first = rename_state_layout(kwargs, state_v_first)
    check_options("fused_recurrent_gated_delta_rule", kwargs)
    beta = torch.ones_like(v[..., 0]) if beta is None else beta
    g, beta = gate_and_beta(g, beta, A_log, dt_bias, use_gate_in_kernel, use_beta_sigmoid_in_kernel, allow_neg_eigval)
    return linear_attention(
        q, k, v, beta, g=g, gk=gk, gv=gv,
        scale=scale, initial_state=initial_state, output_final_state=output_final_state,
        normalize=use_qk_l2norm_in_kernel, state_v_first=state_v_first, cu_seqlens=cu_seqlens,
    )  # fmt: skip


def chunk_gated_delta_product(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    num_householder: int,
    scale: float | None = None,
    initial_state: torch.Tensor = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
    cu_seqlens_cpu: torch.LongTensor | None = None,
    cp_context=None,
):
    # A step is num_householder delta steps: the first one decays, the last one is read.
    no_context_parallelism(cp_context)
    n, T = num_householder, q.shape[1]
    if k.shape[1] != n * T:
        raise ValueError(f"k has {k.shape[1]} steps; expected num_householder * T = {n} * {T}.")
    check_cu_seqlens(q.shape[0], cu_seqlens, initial_state)
    zeros = q.new_zeros(*q.shape[:2], n - 1, *q.shape[2:])
    o, state = linear_attention(
        torch.cat([zeros, q[:, :, None]], 2).flatten(1, 2), k, v, beta,
        g=None if g is None else torch.cat([g[:, :, None], torch.zeros_like(zeros[..., 0], dtype=g.dtype)], 2).flatten(1, 2),
        scale=scale, initial_state=initial_state, output_final_state=output_final_state,
        normalize=use_qk_l2norm_in_kernel, cu_seqlens=None if cu_seqlens is None else cu_seqlens * n,
    )  # fmt: skip
    return o.unflatten(1, (T, n))[:, :, -1], state


def fused_gdn_gate(
    g: torch.Tensor,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor | None = None,
    output_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    return _softplus_gate(g, A_log, dt_bias).to(output_dtype)


def fused_beta_sigmoid_fwd(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.sigmoid(x.float())


def fused_beta_sigmoid_bwd(x: torch.Tensor, dy: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    s = torch.sigmoid(x.float())
    return (dy.float() * scale * s * (1 - s)).to(x.dtype)
