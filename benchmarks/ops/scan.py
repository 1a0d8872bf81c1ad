"""The contender: both recurrences as an associative scan over matrices, the formulation published with the models."""

from __future__ import annotations

import torch
from torch._higher_order_ops import associative_scan


def _combine(left, right):
    """The step `right` after the step `left`: (A2 A1, A2 b1 + b2), in one product, which is the quickest of several forms."""
    (A1, b1), (A2, b2) = left, right
    product = A2 @ torch.cat([A1, b1.unsqueeze(-1)], -1)
    return product[..., :-1], product[..., -1] + b2


def _scan(A: torch.Tensor, b: torch.Tensor, reverse: bool = False) -> torch.Tensor:
    return associative_scan(_combine, (A, b), dim=1, reverse=reverse, combine_mode="generic")[1]


class LinearRecurrence(torch.autograd.Function):
    """h_t = A_t h_{t-1} + b_t for A [B, T, H, M, M] and b [B, T, H, M]; the backward is the reverse scan on A^T."""

    @staticmethod
    def forward(ctx, A, b):
        h = _scan(A, b)
        ctx.save_for_backward(A, h)
        return h

    @staticmethod
    def backward(ctx, do):
        A, h = ctx.saved_tensors
        following = torch.cat([A[:, 1:], torch.zeros_like(A[:, :1])], 1).mT
        s = _scan(following, do, reverse=True)
        before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
        return s.unsqueeze(-1) * before.unsqueeze(-2), s


def scan_bdlru(v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """BD-LRU with softmax gates from v [B, T, H, M] and g [B, T, H, M, M+1]."""
    p = g.softmax(-1)
    return LinearRecurrence.apply(p[..., :-1], p[..., -1] * v)


def scan_hlru(v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """H-LRU with softmax gates from v [B, T, N] and g [B, T, N, M+1], in companion form."""
    p = g.softmax(-1)
    M = g.shape[-1] - 1
    shift = torch.eye(M, dtype=p.dtype, device=p.device)[:-1].expand(*v.shape, M - 1, M)
    A = torch.cat([p[..., None, :-1], shift], -2)
    b = torch.nn.functional.pad((p[..., -1] * v).unsqueeze(-1), (0, M - 1))
    return LinearRecurrence.apply(A, b)[..., 0]
