"""Both recurrences on a CPU: numba kernels over lanes of blocks (channels), gates normalised on the fly in both directions.

A step reads ROWS rows of gates. BD-LRU has a row per channel of a block (ROWS = M), and they replace the state; H-LRU
(COMPANION) has one, which makes the newest value, and the others move back by one. All that differs is what entry j of the
state before step t is: channel j of step t - 1, or the value of step t - 1 - j; before the sequence, the initial state.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numba import njit
from numba.extending import overload

from fla_bdlru.ops.cpu.gates import NORM_CODES, denominator, flush, gate_grad, gate_row, pull, rows_ahead
from fla_bdlru.ops.cpu.lanes import LANES, get, lanes_below, load, prefetch_write, put, splat, stack, store
from fla_bdlru.ops.cpu.runtime import MAX_TILES, as_array, boundaries, empty, kernel, launch, widened

CELL = 32  # steps between kept states, where the backward makes those between again


def cell_of(M: int, dtype: torch.dtype) -> int:
    """`CELL` for bfloat16 of small blocks, whose float32 states would be a third of what is moved; 0: all are kept."""
    return CELL if dtype == torch.bfloat16 and M <= 2 else 0


def shape_of_kept(v: torch.Tensor, M: int) -> tuple[int, ...]:
    """The shape of the float32 states that the forward of half types keeps: all, or one every `CELL` steps of [B * T]."""
    return (-(-v.shape[0] * v.shape[1] // CELL), M, v.shape[-1]) if cell_of(M, v.dtype) else v.shape


def forward_steps(v, g, h0, seq, o, h, ht, origin, begin, end, N, x0, x1, width, mask, M, NORM, COMPANION, CELL):
    """Steps [begin, end) of lanes [x0, x1) from state `seq` of `h0`; row 0 of `o` is that of step `origin`."""
    raise NotImplementedError("for kernels only")


@overload(forward_steps, prefer_literal=True, jit_options={"forceinline": True})
def _forward_steps(v, g, h0, seq, o, h, ht, origin, begin, end, N, x0, x1, width, mask, M, NORM, COMPANION, CELL):
    M, NORM, COMPANION, CELL = (x.literal_value for x in (M, NORM, COMPANION, CELL))
    K, ROWS, HALF = M + 1, 1 if COMPANION else M, MAX_TILES * M
    BOTH = 2 * HALF

    @njit(forceinline=True)
    def keep(states, number, state, first, newest, N, x0, x1, mask):
        for j in range(M):
            lag = newest + j if newest + j < M else newest + j - M
            for x in range(x0, x1, LANES):
                store(states, (number * M + j) * N + x, get(state, first + (x - x0) // LANES * M + lag), mask)

    def steps(v, g, h0, seq, o, h, ht, origin, begin, end, N, x0, x1, width, mask, M, NORM, COMPANION, CELL):
        f, df = stack(K), stack(K)
        state = stack(BOTH)  # before this step and, in the other half, after it; H-LRU: rings, newest first from `newest`
        ahead = rows_ahead(K, width) * K * N
        half = newest = 0
        for x in range(x0, x1, LANES):
            for j in range(M):
                put(state, (x - x0) // LANES * M + j, load(h0, (seq * M + j) * N + x, mask))
        for t in range(begin, end):
            if CELL > 0 and t % CELL == 0:
                keep(h, t // CELL, state, half, newest, N, x0, x1, mask)
            oldest = newest - 1 if newest > 0 else M - 1
            for i in range(ROWS):
                row = t * ROWS + i
                for x in range(x0, x1, LANES):
                    c = (x - x0) // LANES * M
                    total = gate_row(g, row * K * N + x, ahead, N, mask, K, NORM, f, df)
                    y = get(f, M) * load(v, row * N + x, mask)
                    for j in range(M):
                        lag = newest + j if newest + j < M else newest + j - M
                        y = get(f, j) * get(state, c + lag if COMPANION else half + c + j) + y
                    y = flush(y / denominator(total, K, NORM))
                    put(state, c + oldest if COMPANION else HALF - half + c + i, y)
                    store(o, (row - origin * ROWS) * N + x, y, mask)
                    if CELL == 0:
                        store(h, row * N + x, y, mask)
            half, newest = 0 if COMPANION else HALF - half, oldest if COMPANION else 0
        keep(ht, seq, state, half, newest, N, x0, x1, mask)

    return steps


@cache
def forward_kernel(M: int, NORM: int, COMPANION: bool, CELL: int):
    @kernel
    def recurrence_forward(v, g, h0, o, h, ht, bounds, N, first, last, width, lanes, lo, hi):
        mask = lanes_below(lanes)
        groups = (last - first + width - 1) // width
        for task in range(lo, hi):
            seq, x0 = task // groups, first + task % groups * width
            x1, begin, end = min(x0 + width, last), bounds[seq], bounds[seq + 1]
            forward_steps(v, g, h0, seq, o, h, ht, 0, begin, end, N, x0, x1, width, mask, M, NORM, COMPANION, CELL)

    return recurrence_forward


@cache
def backward_kernel(M: int, NORM: int, COMPANION: bool, CELL: int):
    K, (ROWS, STEP, LAG), HALF = M + 1, (1, -1, 1) if COMPANION else (M, 1, 0), MAX_TILES * M
    BOTH = 2 * HALF

    @kernel
    def recurrence_backward(v, g, h0, h, do, dht, dv, dg, dh0, bounds, N, first, last, width, lanes, lo, hi):
        f, df = stack(K), stack(K)
        carry = stack(BOTH)  # A^T s of the step after and, in the other half, of this one
        mask = lanes_below(lanes)
        ahead = -rows_ahead(K, width) * K * N
        groups = (last - first + width - 1) // width
        made = np.empty(CELL * ROWS * N, np.float32)
        for task in range(lo, hi):
            seq, x0 = task // groups, first + task % groups * width
            x1 = min(x0 + width, last)
            begin, end = bounds[seq], bounds[seq + 1]
            half = 0
            for x in range(x0, x1, LANES):
                for j in range(M):
                    put(carry, (x - x0) // LANES * M + j, load(dht, (seq * M + j) * N + x, mask))
            while end > begin:  # a cell after the other, from behind; one cell where all states are kept
                start, origin = begin, 0
                h_in, number, states = h0, seq, h  # the state before step `start`, and those after it, from step `origin` on
                if CELL > 0:
                    origin = start = max(begin, (end - 1) // CELL * CELL)
                    if start > begin:
                        h_in, number = h, start // CELL
                    states = made
                    forward_steps(
                        v, g, h_in, number, made, None, None, start, start, end, N, x0, x1, width, mask, M, NORM, COMPANION, 0
                    )
                for t in range(end - 1, start - 1, -1):
                    since = t - start
                    for i in range(ROWS - 1, -1, -1):  # descending, as t is: memory is read in one direction
                        row = t * ROWS + i
                        for x in range(x0, x1, LANES):
                            c = (x - x0) // LANES * M
                            gates = row * K * N + x
                            total = gate_row(g, gates, ahead, N, mask, K, NORM, f, df)
                            for k in range(K):
                                prefetch_write(dg, gates + ahead + k * N)
                            s = flush(load(do, row * N + x, mask) + get(carry, half + c + i))
                            q = s / denominator(total, K, NORM)
                            pulled = pull(total, load(states, (row - origin * ROWS) * N + x, mask), NORM)
                            store(dv, row * N + x, q * get(f, M), mask)
                            u = load(v, row * N + x, mask)
                            store(dg, gates + M * N, q * gate_grad(get(df, M), get(f, M), u, pulled, NORM), mask)
                            for j in range(M):
                                inside = since > LAG * j
                                past = states if inside else h_in
                                at = (t - 1 - origin) * ROWS + STEP * j if inside else number * M + j - LAG * since
                                u = load(past, at * N + x, mask)
                                store(dg, gates + j * N, q * gate_grad(get(df, j), get(f, j), u, pulled, NORM), mask)
                                if COMPANION:  # the value at lag j is at lag j + 1 after the step
                                    sent = get(carry, half + c + j + 1) if j < M - 1 else splat(0.0)
                                else:
                                    sent = get(carry, HALF - half + c + j) if i < M - 1 else splat(0.0)
                                put(carry, HALF - half + c + j, q * get(f, j) + sent)
                    half = HALF - half
                end = start
            for x in range(x0, x1, LANES):
                for j in range(M):
                    store(dh0, (seq * M + j) * N + x, get(carry, half + (x - x0) // LANES * M + j), mask)

    return recurrence_backward


def cpu_fwd(
    v: torch.Tensor,
    g: torch.Tensor,
    h0: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    gate_norm: str,
    keep: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Forward pass on contiguous gate-major tensors: v [B, T, M, H] or [B, T, N], g, and h0 [S, M, H or N].

    Returns `o` (as v), `ht` (as h0, float32) and, to `keep` for the backward, float32 states `h` (`shape_of_kept`); `h` is
    empty where `o` holds them exactly.
    """
    M, num_lanes = g.shape[-2] - 1, g.shape[-1]
    bounds = boundaries(v, cu_seqlens)
    state = (len(bounds) - 1, M, num_lanes)
    h0 = v.new_zeros(state, dtype=torch.float32) if h0 is None else h0
    ht, inputs = h0.new_empty(state), [widened(x) for x in (v, g, h0)]
    o = empty(v.shape, inputs[0].dtype)
    h = empty(shape_of_kept(v, M), torch.float32) if keep and o.dtype != torch.float32 else None
    arrays = tuple(as_array(x) for x in (*inputs, o, h, ht))
    function = forward_kernel(M, NORM_CODES[gate_norm], v.ndim == 3, cell_of(M, v.dtype) if keep else 0)
    launch(function, arrays, num_lanes, bounds, g.shape[2:-1].numel())
    if o.dtype != v.dtype:  # float16
        h = o
    return o.to(v.dtype), ht, h0.new_empty(0) if h is None else h


def cpu_bwd(
    v: torch.Tensor,
    g: torch.Tensor,
    h: torch.Tensor,
    h0: torch.Tensor | None,
    do: torch.Tensor | None,
    dht: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    gate_norm: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Backward pass: `dv` (as v), `dg` (as g) and `dh0` (float32) from the float32 states `h`, as the forward keeps them."""
    M, num_lanes = g.shape[-2] - 1, g.shape[-1]
    bounds = boundaries(v, cu_seqlens)
    state = (len(bounds) - 1, M, num_lanes)
    h0, dht = (v.new_zeros(state, dtype=torch.float32) if x is None else x.float() for x in (h0, dht))
    do = torch.zeros_like(v) if do is None else do
    inputs = [widened(x) for x in (v, g, h0, h, do, dht)]
    dv, dg, dh0 = (empty(x.shape, x.dtype) for x in (*inputs[:2], h0))
    arrays = tuple(as_array(x) for x in (*inputs, dv, dg, dh0))
    function = backward_kernel(M, NORM_CODES[gate_norm], v.ndim == 3, cell_of(M, v.dtype))
    launch(function, arrays, num_lanes, bounds, g.shape[2:-1].numel())
    return dv.to(v.dtype), dg.to(g.dtype), dh0
