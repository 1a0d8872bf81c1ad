"""BD-LRU on a CPU: numba kernels over lanes of blocks, gates normalised on the fly in both directions."""

from __future__ import annotations

from functools import cache

import torch

from fla_bdlru.ops.cpu.gates import denominator, flush, gate_grad, gate_row, pull, rows_ahead
from fla_bdlru.ops.cpu.lanes import LANES, get, lanes_below, load, prefetch_write, put, splat, stack, store
from fla_bdlru.ops.cpu.runtime import MAX_TILES, kernel, run_backward, run_forward


@cache
def _forward_kernel(M: int, NORM: int):
    K = M + 1

    @kernel
    def bdlru_forward(v, g, h0, h, ht, bounds, H, first, last, width, lanes, lo, hi):
        f, df = stack(K), stack(K)
        mask = lanes_below(lanes)
        ahead = rows_ahead(K, width) * K * H
        groups = (last - first + width - 1) // width
        for task in range(lo, hi):
            seq, x0 = task // groups, first + task % groups * width
            x1 = min(x0 + width, last)
            begin, end = bounds[seq], bounds[seq + 1]
            for t in range(begin, end):
                past, row0 = (h0, seq * M) if t == begin else (h, (t - 1) * M)
                for i in range(M):
                    row = t * M + i
                    for x in range(x0, x1, LANES):
                        total = gate_row(g, row * K * H + x, ahead, H, mask, K, NORM, f, df)
                        y = get(f, M) * load(v, row * H + x, mask)
                        for j in range(M):
                            y = get(f, j) * load(past, (row0 + j) * H + x, mask) + y
                        y = flush(y / denominator(total, K, NORM))
                        store(h, row * H + x, y, mask)
            past, row0 = (h0, seq * M) if begin == end else (h, (end - 1) * M)
            for i in range(M):
                for x in range(x0, x1, LANES):
                    store(ht, (seq * M + i) * H + x, load(past, (row0 + i) * H + x, mask), mask)

    return bdlru_forward


@cache
def _backward_kernel(M: int, NORM: int):
    K, HALF, BOTH = M + 1, MAX_TILES * M, 2 * MAX_TILES * M

    @kernel
    def bdlru_backward(v, g, h0, h, do, dht, dv, dg, dh0, bounds, H, first, last, width, lanes, lo, hi):
        f, df = stack(K), stack(K)
        carry = stack(BOTH)  # A^T s of the step after and, in the other half, of this one
        mask = lanes_below(lanes)
        ahead = -rows_ahead(K, width) * K * H
        groups = (last - first + width - 1) // width
        for task in range(lo, hi):
            seq, x0 = task // groups, first + task % groups * width
            x1 = min(x0 + width, last)
            begin, end = bounds[seq], bounds[seq + 1]
            half = 0
            for x in range(x0, x1, LANES):
                for i in range(M):
                    put(carry, (x - x0) // LANES * M + i, load(dht, (seq * M + i) * H + x, mask))
            for t in range(end - 1, begin - 1, -1):
                past, row0 = (h0, seq * M) if t == begin else (h, (t - 1) * M)
                for i in range(M - 1, -1, -1):  # descending, as t is: memory is read in one direction
                    row = t * M + i
                    for x in range(x0, x1, LANES):
                        c = (x - x0) // LANES * M
                        gates = row * K * H + x
                        total = gate_row(g, gates, ahead, H, mask, K, NORM, f, df)
                        for k in range(K):
                            prefetch_write(dg, gates + ahead + k * H)
                        s = flush(load(do, row * H + x, mask) + get(carry, half + c + i))
                        q = s / denominator(total, K, NORM)
                        pulled = pull(total, load(h, row * H + x, mask), NORM)
                        store(dv, row * H + x, q * get(f, M), mask)
                        u = load(v, row * H + x, mask)
                        store(dg, gates + M * H, q * gate_grad(get(df, M), get(f, M), u, pulled, NORM), mask)
                        for j in range(M):
                            u = load(past, (row0 + j) * H + x, mask)
                            store(dg, gates + j * H, q * gate_grad(get(df, j), get(f, j), u, pulled, NORM), mask)
                            other = HALF - half + c + j
                            before = splat(0.0) if i == M - 1 else get(carry, other)
                            put(carry, other, q * get(f, j) + before)
                half = HALF - half
            for x in range(x0, x1, LANES):
                for i in range(M):
                    y = get(carry, half + (x - x0) // LANES * M + i)
                    store(dh0, (seq * M + i) * H + x, y, mask)

    return bdlru_backward


def cpu_bdlru_fwd(
    v: torch.Tensor,
    g: torch.Tensor,
    h0: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    gate_norm: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Forward pass on contiguous gate-major tensors: v [B, T, M, H], g [B, T, M, M+1, H], h0 [S, M, H].

    Returns `o` (as v), `ht` (as h0, float32) and the float32 states `h` (as v); `h` is empty where `o` holds them exactly.
    """
    return run_forward(_forward_kernel, v, g, h0, cu_seqlens, gate_norm)


def cpu_bdlru_bwd(
    v: torch.Tensor,
    g: torch.Tensor,
    h: torch.Tensor,
    h0: torch.Tensor | None,
    do: torch.Tensor | None,
    dht: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    gate_norm: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Backward pass: `dv` (as v), `dg` (as g) and `dh0` (float32) from the float32 states `h` (as v)."""
    return run_backward(_backward_kernel, v, g, h, h0, do, dht, cu_seqlens, gate_norm)
