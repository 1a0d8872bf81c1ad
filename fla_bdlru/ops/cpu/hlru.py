"""H-LRU on a CPU: numba kernels over lanes of channels, gates normalised on the fly in both directions."""

from __future__ import annotations

from functools import cache

import torch

from fla_bdlru.ops.cpu.gates import denominator, flush, gate_grad, gate_row, pull, rows_ahead
from fla_bdlru.ops.cpu.lanes import LANES, get, lanes_below, load, prefetch_write, put, stack, store
from fla_bdlru.ops.cpu.runtime import MAX_TILES, kernel, run_backward, run_forward


@cache
def _forward_kernel(M: int, NORM: int):
    K = M + 1

    @kernel
    def hlru_forward(v, g, h0, h, ht, bounds, N, first, last, width, lanes, lo, hi):
        f, df = stack(K), stack(K)
        mask = lanes_below(lanes)
        ahead = rows_ahead(K, width) * K * N
        groups = (last - first + width - 1) // width
        for task in range(lo, hi):
            seq, x0 = task // groups, first + task % groups * width
            x1 = min(x0 + width, last)
            begin, end = bounds[seq], bounds[seq + 1]
            for t in range(begin, end):
                for x in range(x0, x1, LANES):
                    total = gate_row(g, t * K * N + x, ahead, N, mask, K, NORM, f, df)
                    y = get(f, M) * load(v, t * N + x, mask)
                    for i in range(M - 1, -1, -1):
                        past, row = (h, t - 1 - i) if i < t - begin else (h0, seq * M + i - (t - begin))
                        y = get(f, i) * load(past, row * N + x, mask) + y
                    y = flush(y / denominator(total, K, NORM))
                    store(h, t * N + x, y, mask)
            for i in range(M):
                past, row = (h, end - 1 - i) if i < end - begin else (h0, seq * M + i - (end - begin))
                for x in range(x0, x1, LANES):
                    store(ht, (seq * M + i) * N + x, load(past, row * N + x, mask), mask)

    return hlru_forward


@cache
def _backward_kernel(M: int, NORM: int):
    K, ROOM = M + 1, MAX_TILES * M

    @kernel
    def hlru_backward(v, g, h0, h, do, dht, dv, dg, dh0, bounds, N, first, last, width, lanes, lo, hi):
        f, df = stack(K), stack(K)
        window = stack(ROOM)  # what later steps have sent back to h_t, h_{t-1}, ..., h_{t-M+1}
        mask = lanes_below(lanes)
        ahead = -rows_ahead(K, width) * K * N
        groups = (last - first + width - 1) // width
        for task in range(lo, hi):
            seq, x0 = task // groups, first + task % groups * width
            x1 = min(x0 + width, last)
            begin, end = bounds[seq], bounds[seq + 1]
            for x in range(x0, x1, LANES):
                for i in range(M):
                    put(window, (x - x0) // LANES * M + i, load(dht, (seq * M + i) * N + x, mask))
            for t in range(end - 1, begin - 1, -1):
                for x in range(x0, x1, LANES):
                    w = (x - x0) // LANES * M
                    gates = t * K * N + x
                    total = gate_row(g, gates, ahead, N, mask, K, NORM, f, df)
                    for k in range(K):
                        prefetch_write(dg, gates + ahead + k * N)
                    s = flush(load(do, t * N + x, mask) + get(window, w))
                    q = s / denominator(total, K, NORM)
                    pulled = pull(total, load(h, t * N + x, mask), NORM)
                    store(dv, t * N + x, q * get(f, M), mask)
                    u = load(v, t * N + x, mask)
                    store(dg, gates + M * N, q * gate_grad(get(df, M), get(f, M), u, pulled, NORM), mask)
                    for i in range(M):
                        past, row = (h, t - 1 - i) if i < t - begin else (h0, seq * M + i - (t - begin))
                        u = load(past, row * N + x, mask)
                        store(dg, gates + i * N, q * gate_grad(get(df, i), get(f, i), u, pulled, NORM), mask)
                        sent = q * get(f, i)
                        if i < M - 1:
                            sent = sent + get(window, w + i + 1)
                        put(window, w + i, sent)
            for x in range(x0, x1, LANES):
                for i in range(M):
                    store(dh0, (seq * M + i) * N + x, get(window, (x - x0) // LANES * M + i), mask)

    return hlru_backward


def cpu_hlru_fwd(
    v: torch.Tensor,
    g: torch.Tensor,
    h0: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    gate_norm: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Forward pass on contiguous gate-major tensors: v [B, T, N], g [B, T, M+1, N], h0 [S, M, N].

    Returns `o` (as v), `ht` (as h0, float32) and the float32 states `h` (as v); `h` is empty where `o` holds them exactly.
    """
    return run_forward(_forward_kernel, v, g, h0, cu_seqlens, gate_norm)


def cpu_hlru_bwd(
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
