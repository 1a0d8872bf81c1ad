"""H-LRU on a CPU: numba kernels over lanes of channels, gates normalised on the fly in both directions."""

from __future__ import annotations

from functools import cache

import torch

from fla_bdlru.ops.cpu_gates import NORM_CODES, denominator, flush, gate_grad, gate_row, pull
from fla_bdlru.ops.cpu_lanes import LANES, get, lanes_below, load, put, stack, store
from fla_bdlru.ops.cpu_runtime import MAX_TILES, bounds_of, empty_like, flat, kernel, launch


@cache
def _forward_kernel(M: int, NORM: int):
    K = M + 1

    @kernel
    def hlru_forward(v, g, h0, h, o, ht, bounds, N, first, last, width, lanes, lo, hi):
        f, df = stack(K), stack(K)
        mask = lanes_below(lanes)
        groups = (last - first + width - 1) // width
        for task in range(lo, hi):
            seq, x0 = task // groups, first + task % groups * width
            x1 = min(x0 + width, last)
            begin, end = bounds[seq], bounds[seq + 1]
            for t in range(begin, end):
                for x in range(x0, x1, LANES):
                    total = gate_row(g, t * K * N + x, N, mask, K, NORM, f, df)
                    y = get(f, M) * load(v, t * N + x, mask)
                    for i in range(M - 1, -1, -1):
                        past, row = (h, t - 1 - i) if i < t - begin else (h0, seq * M + i - (t - begin))
                        y = get(f, i) * load(past, row * N + x, mask) + y
                    y = flush(y / denominator(total, K, NORM))
                    store(h, t * N + x, y, mask)
                    store(o, t * N + x, y, mask)
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
                    total = gate_row(g, gates, N, mask, K, NORM, f, df)
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


def cpu_hlru_fwd(v, g, h0, cu_seqlens, gate_norm):
    M, N = g.shape[-2] - 1, g.shape[-1]
    bounds = bounds_of(v, cu_seqlens)
    if h0 is None:
        h0 = torch.zeros(len(bounds) - 1, M, N)
    ht = torch.empty(h0.shape, dtype=torch.float32)
    h = empty_like(v, torch.float32)
    o = h if v.dtype == torch.float32 else empty_like(v)
    arrays = (flat(v), flat(g), flat(h0), flat(h), None if o is h else flat(o), flat(ht))
    launch(_forward_kernel(M, NORM_CODES[gate_norm]), arrays, N, bounds, M + 1)
    return o, ht, torch.empty(0) if o is h else h


def cpu_hlru_bwd(v, g, h, h0, do, dht, cu_seqlens, gate_norm):
    M, N = g.shape[-2] - 1, g.shape[-1]
    bounds = bounds_of(v, cu_seqlens)
    num_seqs = len(bounds) - 1
    h0, dht = (torch.zeros(num_seqs, M, N) if x is None else x for x in (h0, dht))
    do = torch.zeros_like(v) if do is None else do
    dv, dg, dh0 = empty_like(v), empty_like(g), torch.empty(num_seqs, M, N)
    arrays = tuple(flat(x) for x in (v, g, h0, h, do, dht, dv, dg, dh0))
    launch(_backward_kernel(M, NORM_CODES[gate_norm]), arrays, N, bounds, M + 1)
    return dv, dg, dh0
