"""BD-LRU in plain PyTorch: the recurrence as it is written, and the chunkwise form that the kernels follow."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fla_bdlru.ops.common.checks import check_bdlru, check_count, check_cu_seqlens
from fla_bdlru.ops.common.gate_norm import normalize_gates


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
            Outputs `[B, T, H, M]` in the dtype of `v` and the final state, `[B, H, M]` in float32 or wider.

    Raises:
        ValueError: on shapes, dtypes or devices that do not fit, an unknown `gate_norm`, or `cu_seqlens` that do not run from
            0 to T or come with B > 1.

    Source: arXiv 2602.12021, block-diagonal LRU.

    Example:
        >>> import torch
        >>> from fla_bdlru.ops.bdlru import naive_recurrent_bdlru
        >>> v, g = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4, 5)
        >>> o, state = naive_recurrent_bdlru(v, g, output_final_state=True)
        >>> assert o.shape == (2, 5, 3, 4) and torch.equal(o[:, -1], state)
    """
    check_bdlru(v, g, initial_state, gate_norm, cu_seqlens)
    check_cu_seqlens(cu_seqlens, v.shape[1])
    A, b = bdlru_transitions(v, g, gate_norm)

    def scan(A, b, h):
        o = []
        for A_t, b_t in zip(A.unbind(1), b.unbind(1)):
            h = (A_t @ h.unsqueeze(-1)).squeeze(-1) + b_t
            o.append(h)
        return torch.stack(o, 1) if o else b, h

    num_seqs = v.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    o, ht = scan_documents(scan, (A, b), initial_states(b, num_seqs, initial_state), cu_seqlens)
    return o.to(v.dtype), ht if output_final_state else None


def naive_chunk_bdlru(
    v: torch.Tensor,
    g: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    gate_norm: str = "softmax",
    cu_seqlens: torch.LongTensor | None = None,
    chunk_size: int = 32,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    r"""BD-LRU in chunks of `chunk_size` steps, the three passes of the kernels in plain PyTorch.

    About `2 chunk_size + T / chunk_size` dependent steps instead of T. Arguments and results are those of
    `naive_recurrent_bdlru`.

    Raises:
        ValueError: as `naive_recurrent_bdlru` does, and if `chunk_size` is not a positive integer.

    Source: arXiv 2602.12021, block-diagonal LRU; composition of affine maps as in any parallel scan.

    Example:
        >>> import torch
        >>> from fla_bdlru.ops.bdlru import naive_chunk_bdlru, naive_recurrent_bdlru
        >>> v, g = torch.randn(2, 13, 3, 4), torch.randn(2, 13, 3, 4, 5)
        >>> o, _ = naive_chunk_bdlru(v, g, chunk_size=4)
        >>> assert torch.allclose(o, naive_recurrent_bdlru(v, g)[0], atol=1e-6)
    """
    check_bdlru(v, g, initial_state, gate_norm, cu_seqlens)
    check_cu_seqlens(cu_seqlens, v.shape[1])
    check_count("chunk_size", chunk_size)
    A, b = bdlru_transitions(v, g, gate_norm)
    o, ht = chunk_scan(A, b, initial_state, cu_seqlens, chunk_size)
    return o.to(v.dtype), ht if output_final_state else None


def bdlru_transitions(v: torch.Tensor, g: torch.Tensor, gate_norm: str) -> tuple[torch.Tensor, torch.Tensor]:
    """`A_t` [B, T, H, M, M] and `b_t` [B, T, H, M] of `h_t = A_t h_{t-1} + b_t`, in float32 or wider."""
    M = v.shape[-1]
    dtype = torch.promote_types(v.dtype, torch.float32)
    p = normalize_gates(g.to(dtype), gate_norm)
    return p[..., :M], p[..., M] * v.to(dtype)


def scan_documents(
    scan: Callable, inputs: tuple[torch.Tensor, ...], h0: torch.Tensor, cu_seqlens: torch.LongTensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`scan(*inputs, h0)` on a batch, or on each packed document by itself."""
    if cu_seqlens is None:
        return scan(*inputs, h0)
    spans = zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist())
    docs = [scan(*(x[:, bos:eos] for x in inputs), h0[i : i + 1]) for i, (bos, eos) in enumerate(spans)]
    return torch.cat([o for o, _ in docs], 1), torch.cat([h for _, h in docs])


def initial_states(b: torch.Tensor, num_seqs: int, initial_state: torch.Tensor | None) -> torch.Tensor:
    """The initial state, or zeros of shape `[num_seqs, *b.shape[2:]]`."""
    return b.new_zeros(num_seqs, *b.shape[2:]) if initial_state is None else initial_state.to(b.dtype)


def chunk_scan(
    A: torch.Tensor,
    b: torch.Tensor,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.LongTensor | None,
    chunk_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """All states of `h_t = A_t h_{t-1} + b_t` and the last one of each sequence; A [B, T, ..., M, M], b [B, T, ..., M]."""
    B, T = b.shape[:2]
    h0 = initial_states(b, B if cu_seqlens is None else len(cu_seqlens) - 1, initial_state)
    if T == 0:
        return b, h0
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens.long()
        # 1. a document starts afresh: its first step forgets what came before and takes the document's own state
        h_in = b.new_zeros(B, *b.shape[2:])
        A, b = start_documents(A, b, h0, cu_seqlens)
    else:
        h_in = h0
    # 2. chunks: pad time to [B, NC, C] with steps that change nothing (A = 1, b = 0)
    C, NC = chunk_size, -(-T // chunk_size)
    M = b.shape[-1]
    eye = torch.eye(M, dtype=b.dtype, device=b.device).expand(B, NC * C - T, *A.shape[2:])
    A = torch.cat([A, eye], 1).unflatten(1, (NC, C))
    b = torch.cat([b, b.new_zeros(B, NC * C - T, *b.shape[2:])], 1).unflatten(1, (NC, C))
    # 3. pass 1, all chunks at once: the chunk's transition P = A_last ... A_first and its end state from h = 0
    P, end = A[:, :, 0], b[:, :, 0]
    for t in range(1, C):
        P = A[:, :, t] @ P
        end = (A[:, :, t] @ end.unsqueeze(-1)).squeeze(-1) + b[:, :, t]
    # 4. pass 2, serial over chunks: the state that enters each
    h = [h_in]
    for c in range(NC):
        h.append((P[:, c] @ h[-1].unsqueeze(-1)).squeeze(-1) + end[:, c])
    # 5. pass 3, all chunks at once: the recurrence again, from the right state
    o, x = [], torch.stack(h[:-1], 1)
    for t in range(C):
        x = (A[:, :, t] @ x.unsqueeze(-1)).squeeze(-1) + b[:, :, t]
        o.append(x)
    o = torch.stack(o, 2).flatten(1, 2)[:, :T]
    if cu_seqlens is None:
        return o, h[-1]
    # 6. last states of the documents; an empty one keeps its initial state
    empty = (cu_seqlens.diff() == 0).view(-1, *[1] * (h0.ndim - 1))
    return o, torch.where(empty, h0, o[0, (cu_seqlens[1:] - 1).clamp_min(0)])


def start_documents(
    A: torch.Tensor, b: torch.Tensor, h0: torch.Tensor, cu_seqlens: torch.LongTensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Folds the documents' initial states into their first steps: there b becomes `A h0 + b`, and A zero."""
    filled = cu_seqlens.diff() > 0
    bos, h0 = cu_seqlens[:-1][filled], h0[filled]
    b = b.index_add(1, bos, (A[0, bos] @ h0.unsqueeze(-1)).squeeze(-1).unsqueeze(0))
    return A.index_fill(1, bos, 0.0), b
