"""BD-LRU in plain PyTorch: the recurrence as it is written, and the chunkwise form that the kernels follow."""

from __future__ import annotations

import torch

from fla_bdlru.ops.gate_norm import normalize_gates


def naive_recurrent_bdlru(
    v: torch.Tensor,
    g: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    gate_norm: str = "softmax",
    cu_seqlens: torch.LongTensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    r"""BD-LRU as a loop over time; the reference of every test.

    With p = norm(g) along the last axis, `h_t[i] = sum_j p_t[i, j] h_{t-1}[j] + p_t[i, M] v_t[i]`, and `o_t = h_t`.
    Half types are computed in float32, float32 and float64 in their own precision. Gradients are autograd's.

    Args:
        v (torch.Tensor):
            Inputs of shape `[B, T, H, M]`: H blocks of M channels.
        g (torch.Tensor):
            Gate logits of shape `[B, T, H, M, M+1]`; `g[..., i, j]` weighs channel j for row i, `g[..., i, M]` the input.
        initial_state (torch.Tensor, Optional):
            State of shape `[B, H, M]` (`[num_seqs, H, M]` with `cu_seqlens`). Default: zeros.
        output_final_state (bool):
            Whether to return the last state. Default: `False`.
        gate_norm (str):
            One of `fla_bdlru.ops.GATE_NORMS`. Default: `"softmax"`.
        cu_seqlens (torch.LongTensor, Optional):
            Document boundaries of shape `[num_seqs+1]`; needs B = 1. Default: `None`.

    Returns:
        (torch.Tensor, torch.Tensor | None):
            Outputs `[B, T, H, M]` in the dtype of `v` and the final state in the precision of the computation.

    Source: arXiv 2602.12021, block-diagonal LRU.

    Example:
        >>> import torch
        >>> from fla_bdlru.ops.bdlru import naive_recurrent_bdlru
        >>> v, g = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4, 5)
        >>> o, state = naive_recurrent_bdlru(v, g, output_final_state=True)
        >>> assert o.shape == (2, 5, 3, 4) and torch.equal(o[:, -1], state)
    """
    M = v.shape[-1]
    dtype = torch.promote_types(v.dtype, torch.float32)
    p = normalize_gates(g.to(dtype), gate_norm)
    A, b = p[..., :M], p[..., M] * v.to(dtype)

    def scan(A, b, h):
        o = []
        for A_t, b_t in zip(A.unbind(1), b.unbind(1)):
            h = (A_t @ h.unsqueeze(-1)).squeeze(-1) + b_t
            o.append(h)
        return torch.stack(o, 1) if o else b, h

    if cu_seqlens is None:
        h0 = b.new_zeros(b.shape[0], *b.shape[2:]) if initial_state is None else initial_state.to(dtype)
        o, ht = scan(A, b, h0)
    else:
        bounds = cu_seqlens.tolist()
        h0 = b.new_zeros(len(bounds) - 1, *b.shape[2:]) if initial_state is None else initial_state.to(dtype)
        docs = [
            scan(A[:, s:e], b[:, s:e], h0[i : i + 1]) for i, (s, e) in enumerate(zip(bounds[:-1], bounds[1:], strict=True))
        ]
        o, ht = torch.cat([d[0] for d in docs], 1), torch.cat([d[1] for d in docs])
    return o.to(v.dtype), ht if output_final_state else None
