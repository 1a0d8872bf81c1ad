"""Linear recurrences `h_t = A_t h_{t-1} + b_t` in plain PyTorch, which both ops' naive forms end in.

In chunks everything is gate-major, and lanes (B, chunks, H) are one contiguous row: a call works on all of them. Products are
written out: as matrix products, autocast and TF32 would round the state. What a document must not see is left out, not
multiplied by zero, so that NaN and inf stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from fla_bdlru.ops.common.autograd import is_traced
from fla_bdlru.ops.common.checks import check_cu_seqlens
from fla_bdlru.ops.common.gate_norm import normalize_gates


def apply(A: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`A x` for A [..., M, M] and x [..., M]."""
    return (A * x.unsqueeze(-2)).sum(-1)


def transitions(v: torch.Tensor, g: torch.Tensor, gate_norm: str, dim: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
    """Recurrence gates, as `g` without the last along `dim`, and gated inputs, of the shape of `v`; float32 or wider."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    p = normalize_gates(g.to(dtype), gate_norm, dim)
    return p.narrow(dim, 0, p.shape[dim] - 1), p.select(dim, -1) * v.to(dtype)


def companion(A: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """H-LRU's A [B, T, M, N] and b [B, T, N] for blocks of windows `[h_t, .., h_{t-M+1}]`: gates above, a shift below."""
    M = A.shape[2]
    shift = torch.eye(M, dtype=A.dtype, device=A.device)[:-1, :, None].expand(*A.shape[:2], M - 1, M, A.shape[3])
    return torch.cat([A.unsqueeze(2), shift], 2), torch.cat([b.unsqueeze(2), b.new_zeros(shift[..., 0, :].shape)], 2)


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
    blocks = v.ndim == 4
    v, g = (v.transpose(2, 3), g.permute(0, 1, 3, 4, 2)) if blocks else (v, g.transpose(2, 3))
    A, b = transitions(v, g.contiguous(), gate_norm, dim=-2)
    A, b = (A, b) if blocks else companion(A, b)
    num_seqs = v.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    h0 = b.new_zeros(num_seqs, *b.shape[2:]) if initial_state is None else initial_state.to(b.dtype).transpose(1, 2)
    o, ht = scan(A, b, h0, None if cu_seqlens is None else cu_seqlens.long(), chunk_size)
    return (o.transpose(2, 3) if blocks else o[:, :, 0]).to(v.dtype), ht.transpose(1, 2) if output_final_state else None


def scan(
    A: torch.Tensor, b: torch.Tensor, h0: torch.Tensor, cu_seqlens: torch.LongTensor | None, C: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """All states of `h_t = A_t h_{t-1} + b_t` and each sequence's last: A [B, T, M, M, H], b [B, T, M, H], h0 [S, M, H]."""
    if b.shape[1] == 0:
        return b, h0.clone()
    traced = is_traced()
    C = C if traced else min(C, b.shape[1])
    watched = traced or forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    return (scan_chunks if watched or not torch.is_grad_enabled() else Scan.apply)(A, b, h0, cu_seqlens, C)


class Scan(torch.autograd.Function):
    """`scan_chunks`, with a scan from behind for its backward, which can be differentiated again."""

    @staticmethod
    def forward(ctx, A, b, h0, cu_seqlens, C):
        o, ht = scan_chunks(A, b, h0, cu_seqlens, C)
        ctx.save_for_backward(A, o, h0, cu_seqlens)
        ctx.C = C
        return o, ht

    @staticmethod
    def backward(ctx, do, dht):
        A, o, h0, cu_seqlens = ctx.saved_tensors
        if cu_seqlens is None:
            past = torch.cat([h0.unsqueeze(1), o[:, :-1]], 1)
            do = torch.cat([do[:, :-1], (do[:, -1] + dht).unsqueeze(1)], 1)
            turned = None
        else:
            starts, states = start_documents(h0, cu_seqlens, o.shape[1])
            past = torch.where(starts[:, None, None], states, o.roll(1, 1))
            filled, turned = cu_seqlens.diff() > 0, o.shape[1] - cu_seqlens.flip(0)
            do = do.index_add(1, cu_seqlens[1:][filled] - 1, dht[filled].unsqueeze(0))
        # s_t = do_t + A_{t+1}^T s_{t+1}; a sequence's last step has nothing behind it
        back = A.transpose(2, 3)
        after = torch.cat([back[:, 1:], torch.zeros_like(back[:, :1])], 1)
        if cu_seqlens is not None:
            after = after.index_fill(1, cu_seqlens[1:][filled] - 1, 0.0)
        s = scan(after.flip(1), do.flip(1), torch.zeros_like(h0), turned, ctx.C)[0].flip(1)
        if cu_seqlens is None:
            dh0 = product(back[:, 0].movedim(0, -2), s[:, 0].movedim(0, -2)).movedim(-2, 0)
        else:
            bos = cu_seqlens[:-1].clamp_max(o.shape[1] - 1)
            dh0 = product(back[0, bos].movedim(0, -2), s[0, bos].movedim(0, -2)).movedim(-2, 0)
            dh0 = torch.where(filled.view(-1, 1, 1), dh0, dht)
        return s.unsqueeze(3) * past.unsqueeze(2), s, dh0, None, None


def product(A: torch.Tensor, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    """`A x + y` for A [M, M, ..., H] and vectors x [M, ..., H] or matrices [M, M, ..., H]."""
    if is_traced():  # few nodes
        x = ((A.unsqueeze(2) if x.ndim == A.ndim else A) * x).sum(1)
        return x if y is None else x + y
    for j in range(A.shape[1]):
        a = A[:, j].unsqueeze(1) if x.ndim == A.ndim else A[:, j]
        y = a * x[j] if y is None else torch.addcmul(y, a, x[j])
    return y


def scan_chunks(
    A: torch.Tensor, b: torch.Tensor, h0: torch.Tensor, cu_seqlens: torch.LongTensor | None, C: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`scan` in chunks of C steps."""
    B, T, M = b.shape[:3]
    NC = -(-T // C)

    def chunks(x):
        """[B, T, ..., H] as [C, ..., B, NC, H]; the steps added at the end are not looked at."""
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, NC * C - T)).reshape(B, NC, C, *x.shape[2:])
        return x.movedim(2, 0).movedim((1, 2), (-3, -2)).contiguous()

    A, b, starts, states = chunks(A), chunks(b), None, None
    if cu_seqlens is not None:
        starts, states = start_documents(h0, cu_seqlens, T)
        starts, states = chunks(starts.view(1, T, 1))[:, 0], chunks(states.unsqueeze(0))

    def restart(x, t, to_state=True):
        """x before step t of every chunk: a document's state (or 0) where one starts there."""
        return x if starts is None else torch.where(starts[t], states[t] if to_state else 0.0, x)

    # 1. pass 1, all chunks at once: the chunk's transition P = A_last ... A_first and its end state from h = 0
    eye = torch.eye(M, dtype=b.dtype, device=b.device)
    P, end = eye.view(M, M, 1, 1, 1).expand_as(A[0]), torch.zeros_like(b[0])
    for t in range(C if NC > 1 else 0):
        P, end = product(A[t], restart(P, t, False)), product(A[t], restart(end, t), b[t])
    # 2. pass 2, serial over chunks: the state that enters each; nothing enters where a document starts within
    h = [h0.movedim(0, 1) if starts is None else torch.zeros_like(end[..., 0, :])]
    for c in range(NC - 1):
        x = h[-1] if starts is None else torch.where(starts[:, c].any(), 0.0, h[-1])
        h.append(product(P[..., c, :], x, end[..., c, :]))
    # 3. pass 3, all chunks at once: the recurrence again, from the right state
    o, x = [], torch.stack(h, -2)
    for t in range(C):
        x = product(A[t], restart(x, t), b[t])
        o.append(x)
    o = torch.stack(o).movedim((-3, -2), (0, 1)).reshape(B, NC * C, M, b.shape[-1]).narrow(1, 0, T)
    if starts is None:
        return o, o[:, -1].clone()  # memory of its own: a cache may keep it
    # 4. last states of the documents; an empty one keeps its initial state
    return o, torch.where((cu_seqlens.diff() == 0).view(-1, 1, 1), h0, o[0, (cu_seqlens[1:] - 1).clamp_min(0)])


def start_documents(h0: torch.Tensor, cu_seqlens: torch.LongTensor, T: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Per step: whether a document starts there [T], and the state that it starts from [T, M, H]."""
    filled = cu_seqlens.diff() > 0
    bos = cu_seqlens[:-1][filled]
    starts = torch.zeros(T, dtype=torch.bool, device=h0.device).index_fill(0, bos, True)
    return starts, h0.new_zeros(T, *h0.shape[1:]).index_copy(0, bos, h0[filled])
