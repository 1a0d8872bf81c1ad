"""Linear recurrences `h_t = A_t h_{t-1} + b_t` in plain PyTorch, which both ops' naive forms end in.

Products are written out: as matrix products, autocast and TF32 would round the state. What a document must not see is left
out, not multiplied by zero, so that NaN and inf stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch

from fla_bdlru.ops.common.checks import check_cu_seqlens
from fla_bdlru.ops.common.gate_norm import normalize_gates


def apply(A: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`A x` for A [..., M, M] and x [..., M]."""
    return (A * x.unsqueeze(-2)).sum(-1)


def transitions(v: torch.Tensor, g: torch.Tensor, gate_norm: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Recurrence gates, of the shape of `g` without the last, and gated inputs, of that of `v`; float32 or wider."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    p = normalize_gates(g.to(dtype), gate_norm)
    return p[..., :-1], p[..., -1] * v.to(dtype)


def companion(A: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """H-LRU's A [..., M] and b [...] for a block that is the window `[h_t, .., h_{t-M+1}]`: gates above, a shift below."""
    M = A.shape[-1]
    shift = torch.eye(M, dtype=A.dtype, device=A.device)[:-1].expand(*b.shape, M - 1, M)
    return torch.cat([A.unsqueeze(-2), shift], -2), torch.cat([b.unsqueeze(-1), b.new_zeros(*b.shape, M - 1)], -1)


def initial_states(A: torch.Tensor, initial_state: torch.Tensor | None, cu_seqlens: torch.LongTensor | None) -> torch.Tensor:
    """The initial state, or zeros of shape `[num_seqs, H, M]`."""
    num_seqs = A.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return A.new_zeros(num_seqs, A.shape[2], A.shape[-1]) if initial_state is None else initial_state.to(A.dtype)


def step_scan(step: Callable, v, g, initial_state, output_final_state, gate_norm, cu_seqlens):
    """What a public op returns, by a loop over time of `step(A_t, b_t, state) -> (o_t, state)`, document by document."""
    check_cu_seqlens(cu_seqlens, v.shape[1])
    A, b = transitions(v, g, gate_norm)
    h0, bounds = initial_states(A, initial_state, cu_seqlens), [0, v.shape[1]]
    docs = [h0]
    if cu_seqlens is not None:
        docs, bounds = list(h0.split(1)), cu_seqlens.tolist()
    steps, o = list(zip(A.unbind(1), b.unbind(1))), []
    for i, (bos, eos) in enumerate(pairwise(bounds)):
        for A_t, b_t in steps[bos:eos]:
            o_t, docs[i] = step(A_t, b_t, docs[i])
            o.append(o_t)
    return (torch.stack(o, 1) if o else b).to(v.dtype), torch.cat(docs) if output_final_state else None


def chunk_scan(v, g, initial_state, output_final_state, gate_norm, cu_seqlens, chunk_size: int = 32):
    """What a public op returns, in chunks of time: the three passes of the kernels, H-LRU on companion matrices."""
    check_cu_seqlens(cu_seqlens, v.shape[1])
    A, b = transitions(v, g, gate_norm)
    if v.ndim == 3:
        A, b = companion(A, b)
    o, ht = scan_chunks(A, b, initial_states(A, initial_state, cu_seqlens), cu_seqlens, chunk_size)
    return (o if v.ndim == 4 else o[..., 0]).to(v.dtype), ht if output_final_state else None


def scan_chunks(
    A: torch.Tensor, b: torch.Tensor, h0: torch.Tensor, cu_seqlens: torch.LongTensor | None, chunk_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """All states of `h_t = A_t h_{t-1} + b_t` and the last one of each sequence; A [B, T, ..., M, M], b [B, T, ..., M]."""
    B, T = b.shape[:2]
    if T == 0:
        return b, h0
    # 1. chunks: pad time to [B, NC, C] with steps that change nothing (A = 1, b = 0)
    C, NC, M = chunk_size, -(-T // chunk_size), b.shape[-1]
    eye = torch.eye(M, dtype=b.dtype, device=b.device)
    A = torch.cat([A, eye.expand(B, NC * C - T, *A.shape[2:])], 1).unflatten(1, (NC, C))
    b = torch.cat([b, b.new_zeros(B, NC * C - T, *b.shape[2:])], 1).unflatten(1, (NC, C))
    starts = states = None
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens.long()
        starts, states = (x.unflatten(1, (NC, C)) for x in start_documents(h0, cu_seqlens, NC * C))

    def restart(x, t, to):
        """x before step t of every chunk: `to` where a document starts there."""
        return x if starts is None else torch.where(starts[:, :, t].view(B, NC, *[1] * (x.ndim - 2)), to, x)

    # 2. pass 1, all chunks at once: the chunk's transition P = A_last ... A_first and its end state from h = 0
    P, end = eye.expand(B, NC, *A.shape[3:]), torch.zeros_like(b[:, :, 0])
    for t in range(C):
        P, end = restart(P, t, 0.0), restart(end, t, states if states is None else states[:, :, t])
        P = (A[:, :, t].unsqueeze(-1) * P.unsqueeze(-3)).sum(-2)
        end = apply(A[:, :, t], end) + b[:, :, t]
    # 3. pass 2, serial over chunks: the state that enters each; nothing enters where a document starts within
    h = [h0 if starts is None else torch.zeros_like(end[:, 0])]
    for c in range(NC):
        x = h[-1] if starts is None else h[-1].masked_fill(starts[:, c].any(1).view(B, *[1] * (h0.ndim - 1)), 0.0)
        h.append(apply(P[:, c], x) + end[:, c])
    # 4. pass 3, all chunks at once: the recurrence again, from the right state
    o, x = [], torch.stack(h[:-1], 1)
    for t in range(C):
        x = apply(A[:, :, t], restart(x, t, states if states is None else states[:, :, t])) + b[:, :, t]
        o.append(x)
    o = torch.stack(o, 2).flatten(1, 2)[:, :T]
    if cu_seqlens is None:
        return o, h[-1]
    # 5. last states of the documents; an empty one keeps its initial state
    empty = (cu_seqlens.diff() == 0).view(-1, *[1] * (h0.ndim - 1))
    return o, torch.where(empty, h0, o[0, (cu_seqlens[1:] - 1).clamp_min(0)])


def start_documents(h0: torch.Tensor, cu_seqlens: torch.LongTensor, T: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Per step: whether a document starts there [1, T], and the state that it starts from [1, T, ..., M]."""
    filled = cu_seqlens.diff() > 0
    bos = cu_seqlens[:-1][filled]
    starts = torch.zeros(T, dtype=torch.bool, device=h0.device).index_fill(0, bos, True)
    return starts[None], h0.new_zeros(T, *h0.shape[1:]).index_copy(0, bos, h0[filled])[None]
