"""PyTorch versions of `fla.ops.gla`, `simple_gla`, `hgrn`, `attnres` and of the cumulative sums they share.

`fla.ops.linear_attn`, `fla.ops.retention` and `fla.ops.lightnet` are written in terms of these and need no own version.
"""

from collections.abc import Sequence

import torch

from fla_bdlru.fla_cpu.common import check_options, upcast
from fla_bdlru.fla_cpu.packing import check_cu_seqlens, run_documents
from fla_bdlru.fla_cpu.scan import attention_matrix, linear_attention, linear_scan


def chunk_gla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    scale: int | None = None,
    initial_state: torch.Tensor = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
    cu_seqlens_cpu: torch.LongTensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return linear_attention(
        q, k, v, gk=g,
        scale=scale, initial_state=initial_state, output_final_state=output_final_state,
        state_v_first=state_v_first, cu_seqlens=cu_seqlens,
    )  # fmt: skip


def fused_recurrent(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor | None = None,
    g_gamma: torch.Tensor | None = None,
    gk: torch.Tensor | None = None,
    gv: torch.Tensor | None = None,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
):
    """`fla.ops.common.fused_recurrent`: behind `fused_recurrent_gla`, `_simple_gla`, `_linear_attn`, `_retention`."""
    if g_gamma is not None:
        # g_gamma: [H], the same decay at every step
        gamma = upcast(g_gamma).expand(*v.shape[:3])
        g = gamma if g is None else upcast(g) + gamma
    return linear_attention(
        q, k, v, g=g, gk=gk, gv=gv,
        scale=scale, initial_state=initial_state, output_final_state=output_final_state,
        reverse=reverse, state_v_first=state_v_first, cu_seqlens=cu_seqlens,
    )  # fmt: skip


def fused_chunk(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor | None = None,
    g_gamma: torch.Tensor | None = None,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`fla.ops.common.fused_chunk`: behind `fused_chunk_simple_gla`, `_linear_attn` and `_retention`."""
    return fused_recurrent(
        q, k, v, g=g, g_gamma=g_gamma,
        scale=scale, initial_state=initial_state, output_final_state=output_final_state, cu_seqlens=cu_seqlens,
    )  # fmt: skip


def chunk_simple_gla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor | None = None,
    g_gamma: torch.Tensor | None = None,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
    cu_seqlens_cpu: torch.LongTensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    check_options("chunk_simple_gla", kwargs, ignored=("chunk_size",))
    return fused_recurrent(
        q, k, v, g=g, g_gamma=g_gamma,
        scale=scale, initial_state=initial_state, output_final_state=output_final_state,
        state_v_first=state_v_first, cu_seqlens=cu_seqlens,
    )  # fmt: skip


def parallel_simple_gla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor | None = None,
    scale: float | None = None,
    output_attentions: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
    cu_seqlens_cpu: torch.LongTensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    if not output_attentions:
        return linear_attention(q, k, v, g=g, scale=scale, cu_seqlens=cu_seqlens)
    if cu_seqlens is not None:
        raise ValueError("output_attentions=True is not supported with cu_seqlens.")
    attention = attention_matrix(q, k, g, scale)
    o = attention @ upcast(v).transpose(1, 2)
    return o.transpose(1, 2).to(v.dtype), attention.to(q.dtype)


def fused_recurrent_hgrn(
    x: torch.Tensor,
    g: torch.Tensor,
    initial_state: torch.Tensor = None,
    output_final_state: bool = False,
    cu_seqlens: torch.LongTensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    # h_t = exp(g_t) h_{t-1} + x_t; x, g: [B, T, D], state: [N, D]
    check_cu_seqlens(x.shape[0], cu_seqlens, initial_state)
    s, g = upcast(x), upcast(g)
    N = x.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    state = s.new_zeros(N, x.shape[-1]) if initial_state is None else upcast(initial_state)

    def run(s, g, state):
        h = linear_scan(g.exp(), s, state)
        return h, torch.cat([state[:, None], h], 1)[:, -1]

    o, state = run_documents(run, (s, g), state, cu_seqlens)
    return o.to(x.dtype), state if output_final_state else None


def chunk_hgrn(
    x: torch.Tensor,
    g: torch.Tensor,
    initial_state: torch.Tensor = None,
    output_final_state: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    return fused_recurrent_hgrn(x, g, initial_state, output_final_state)


def _cumsum(x, reverse):
    return x.flip(1).cumsum(1).flip(1) if reverse else x.cumsum(1)


def chunk_global_cumsum(
    s: torch.Tensor,
    reverse: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    scale: float | None = None,
    output_dtype: torch.dtype | None = torch.float,
    **kwargs,
) -> torch.Tensor:
    # s: [B, T, H] or [B, T, H, D], summed over time within each sequence
    check_cu_seqlens(s.shape[0], cu_seqlens, None)
    x = upcast(s)
    parts = [x] if cu_seqlens is None else x.split(cu_seqlens.diff().tolist(), 1)
    y = torch.cat([_cumsum(part, reverse) for part in parts], 1)
    y = y if scale is None else y * scale
    return y.to(output_dtype or s.dtype)


def chunk_local_cumsum(
    g: torch.Tensor,
    chunk_size: int,
    reverse: bool = False,
    scale: float | None = None,
    cu_seqlens: torch.Tensor | None = None,
    output_dtype: torch.dtype | None = torch.float,
    chunk_indices: torch.LongTensor | None = None,
    use_graph: bool = False,
    **kwargs,
) -> torch.Tensor:
    check_cu_seqlens(g.shape[0], cu_seqlens, None)
    x = upcast(g)
    parts = [x] if cu_seqlens is None else x.split(cu_seqlens.diff().tolist(), 1)
    y = torch.cat([_cumsum(chunk, reverse) for part in parts for chunk in part.split(chunk_size, 1)], 1)
    y = y if scale is None else y * scale
    return y.to(output_dtype or g.dtype)


def fused_attnres(
    query: torch.Tensor,
    residuals: Sequence[torch.Tensor],
    rms_weight: torch.Tensor,
    output_rms_weight: torch.Tensor | None = None,
    rms_eps: float = 1e-6,
    scale: float = 1.0,
    return_weights: bool = False,
    checkpoint_level: int = 1,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    from fla.ops.attnres.naive import naive_attnres

    residuals = [residual.contiguous() for residual in residuals]
    return naive_attnres(query, residuals, rms_weight, output_rms_weight, rms_eps, scale, return_weights)
