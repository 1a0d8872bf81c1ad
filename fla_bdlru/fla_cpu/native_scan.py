"""Linear attention with decay and the delta rule as numba kernels, a step after the other: value channels are lanes.

What `scan.chunk_linear_attention` computes by chunks. A task is a head of a sequence, and steps through up to `TILES` tiles of
its state's columns together, which do not meet but in the gradients of keys, queries, decays and beta. The forward keeps the
state every `CELL` steps, and the backward makes those between again.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numba import njit
from numba.extending import overload

from fla_bdlru.fla_cpu.common import check_sizes, derive, is_batched
from fla_bdlru.fla_cpu.scan import by_chunks
from fla_bdlru.ops.common.autograd import as_input, once_differentiable
from fla_bdlru.ops.cpu.lanes import LANES, across, get, lanes_below, load, put, splat, stack, store
from fla_bdlru.ops.cpu.runtime import as_array, empty, kernel, run_tasks

CELL = 32
TILES = 4


def advance(q, k, v, beta, decay, o, states, old, new, miss, at, row, c, K, V, A, u, y, TILES, DELTA, OUT):
    """A step from the state at `old` of `states` to that at `new`; `miss` gets what the delta rule's prediction missed."""
    raise NotImplementedError("for kernels only")


@overload(advance, prefer_literal=True, jit_options={"forceinline": True})
def _advance(q, k, v, beta, decay, o, states, old, new, miss, at, row, c, K, V, A, u, y, TILES, DELTA, OUT):
    TILES, DELTA, OUT = (x.literal_value for x in (TILES, DELTA, OUT))

    def step(q, k, v, beta, decay, o, states, old, new, miss, at, row, c, K, V, A, u, y, TILES, DELTA, OUT):
        for j in range(TILES):
            put(y, j, splat(0.0))
        for i in range(K):
            key, d = k[row * K + i], decay[row * A + (i if A > 1 else 0)]
            for j in range(TILES):
                s = load(states, old + (i * TILES + j) * LANES, None) * d
                store(states, new + (i * TILES + j) * LANES, s, None)
                if DELTA:
                    put(y, j, s * key + get(y, j))
        for j in range(TILES):
            x = c + j * LANES
            value = load(v, row * V + x, lanes_below(V - x))
            if DELTA:
                value = value - get(y, j)
                store(miss, at + j * LANES, value, None)
                value = value * beta[row]
                put(y, j, splat(0.0))
            put(u, j, value)
        for i in range(K):
            key = k[row * K + i]
            for j in range(TILES):
                s = get(u, j) * key + load(states, new + (i * TILES + j) * LANES, None)
                store(states, new + (i * TILES + j) * LANES, s, None)
                if OUT:
                    put(y, j, s * q[row * K + i] + get(y, j))
        if OUT:
            for j in range(TILES):
                x = c + j * LANES
                store(o, row * V + x, get(y, j), lanes_below(V - x))

    return step


@njit(forceinline=True)
def _copy_in(outer, first, states, into, c, K, V, tiles):
    for i in range(K):
        for j in range(tiles):
            x = c + j * LANES
            store(states, into + (i * tiles + j) * LANES, load(outer, first + i * V + x, lanes_below(V - x)), None)


@njit(forceinline=True)
def _copy_out(states, outer, first, c, K, V, tiles):
    for i in range(K):
        for j in range(tiles):
            x = c + j * LANES
            store(outer, first + i * V + x, load(states, (i * tiles + j) * LANES, None), lanes_below(V - x))


@cache
def forward_kernel(TILES: int, DELTA: bool):
    @kernel
    def attention_forward(q, k, v, beta, decay, h0, o, cells, ht, T, H, K, V, A, keep, lo, hi):
        u, y = stack(TILES), stack(TILES)
        state, miss = np.empty(K * TILES * LANES, np.float32), np.empty(TILES * LANES, np.float32)
        for task in range(lo, hi):
            for c in range(0, V, TILES * LANES):
                _copy_in(h0, task * K * V, state, 0, c, K, V, TILES)
                for t in range(T):
                    if keep and t % CELL == 0:
                        _copy_out(state, cells, (task * ((T + CELL - 1) // CELL) + t // CELL) * K * V, c, K, V, TILES)
                    row = (task // H * T + t) * H + task % H
                    advance(q, k, v, beta, decay, o, state, 0, 0, miss, 0, row, c, K, V, A, u, y, TILES, DELTA, True)
                _copy_out(state, ht, task * K * V, c, K, V, TILES)

    return attention_forward


@cache
def backward_kernel(TILES: int, DELTA: bool):
    @kernel
    def attention_backward(
        q, k, v, beta, decay, cells, do, dht, dq, dk, dv, dbeta, ddecay, dh0, T, H, K, V, A, lo, hi
    ):  # fmt: skip
        u, y, du, late = stack(TILES), stack(TILES), stack(TILES), stack(TILES)
        size = K * TILES * LANES
        states, dstate = np.empty((CELL + 1) * size, np.float32), np.empty(size, np.float32)
        miss = np.empty(CELL * TILES * LANES, np.float32)
        for task in range(lo, hi):
            for c in range(0, V, TILES * LANES):
                _copy_in(dht, task * K * V, dstate, 0, c, K, V, TILES)
                for cell in range((T + CELL - 1) // CELL - 1, -1, -1):
                    begin, end = cell * CELL, min(T, cell * CELL + CELL)
                    _copy_in(cells, (task * ((T + CELL - 1) // CELL) + cell) * K * V, states, 0, c, K, V, TILES)
                    for t in range(begin, end):
                        n, row = t - begin, (task // H * T + t) * H + task % H
                        at, old = n * TILES * LANES, n * size
                        advance(
                            q, k, v, beta, decay, None, states, old, old + size, miss, at, row, c, K, V, A, u, y,
                            TILES, DELTA, False,
                        )  # fmt: skip
                    for t in range(end - 1, begin - 1, -1):
                        n, row = t - begin, (task // H * T + t) * H + task % H
                        old, new = n * size, n * size + size
                        for j in range(TILES):
                            x = c + j * LANES
                            put(y, j, load(do, row * V + x, lanes_below(V - x)))
                            if DELTA:
                                put(u, j, load(miss, (n * TILES + j) * LANES, None) * beta[row])
                            else:
                                put(u, j, load(v, row * V + x, lanes_below(V - x)))
                            put(du, j, splat(0.0))
                        for i in range(K):  # o_t = S_t^T q_t, S_t = S' + k_t u_t^T
                            query, key = q[row * K + i], k[row * K + i]
                            to_query, to_key = splat(0.0), splat(0.0)
                            for j in range(TILES):
                                ds = get(y, j) * query + load(dstate, (i * TILES + j) * LANES, None)
                                store(dstate, (i * TILES + j) * LANES, ds, None)
                                to_query = load(states, new + (i * TILES + j) * LANES, None) * get(y, j) + to_query
                                to_key = ds * get(u, j) + to_key
                                put(du, j, ds * key + get(du, j))
                            dq[row * K + i] += across(to_query)
                            dk[row * K + i] += across(to_key)
                        to_beta = splat(0.0)
                        for j in range(TILES):  # u_t = beta_t (v_t - S'^T k_t), or v_t
                            x, grad = c + j * LANES, get(du, j)
                            if DELTA:
                                to_beta = grad * load(miss, (n * TILES + j) * LANES, None) + to_beta
                                grad = grad * beta[row]
                            store(dv, row * V + x, grad, lanes_below(V - x))
                            put(late, j, splat(0.0) - grad)
                        if DELTA:
                            dbeta[row] += across(to_beta)
                        if DELTA or A > 0:
                            for i in range(K):  # S' = exp(g_t) S_{t-1}
                                key, which = k[row * K + i], row * A + (i if A > 1 else 0)
                                d = decay[which]
                                to_key, to_decay = splat(0.0), splat(0.0)
                                for j in range(TILES):
                                    before = load(states, old + (i * TILES + j) * LANES, None)
                                    ds = load(dstate, (i * TILES + j) * LANES, None)
                                    if DELTA:
                                        to_key = before * get(late, j) + to_key
                                        ds = get(late, j) * key + ds
                                    to_decay = ds * before + to_decay
                                    store(dstate, (i * TILES + j) * LANES, ds * d, None)
                                if DELTA:
                                    dk[row * K + i] += across(to_key) * d
                                if A > 0:
                                    ddecay[which] += across(to_decay)
                _copy_out(dstate, dh0, task * K * V, c, K, V, TILES)

    return attention_backward


def _tiles(V: int) -> int:
    tiles = -(-V // LANES)
    return -(-tiles // -(-tiles // TILES))


def _by_chunks(q, k, v, beta, decay, initial_state):
    """What `LinearAttention` computes, in PyTorch's operators."""
    # of a decay of 0 the logarithm is that of next to nothing, which has a gradient
    g = None if decay is None else decay.clamp_min(torch.finfo(decay.dtype).tiny).log()
    beta = None if beta is None else beta[..., None]
    o, state = by_chunks(*(None if t is None else t.transpose(1, 2) for t in (q, k, v, beta, g)), initial_state)
    return o.transpose(1, 2), state


class LinearAttention(torch.autograd.Function):
    """`scan.chunk_linear_attention` of float32 tensors in FLA's layout: q, k [B, T, H, K], v [B, T, H, V], beta [B, T, H].

    `decay`, exp(g), is [B, T, H, 1 or K], the initial state [B, H, K, V]; all of them as `as_input` returns them.
    """

    @staticmethod
    def forward(ctx, q, k, v, beta, decay, initial_state):
        (B, T, H, K), V, A = q.shape, v.shape[-1], 0 if decay is None else decay.shape[-1]
        rows = B * T * H
        check_sizes(
            k=(k, rows * K), v=(v, rows * V), beta=(beta, rows), decay=(decay, rows * A),
            initial_state=(initial_state, B * H * K * V),
        )  # fmt: skip
        ctx.given = beta is not None, decay is not None, initial_state is not None
        given = q, k, v, v.new_ones(1) if beta is None else beta, v.new_ones(1) if decay is None else decay
        h0 = v.new_zeros(B, H, K, V) if initial_state is None else initial_state
        keep = any(ctx.needs_input_grad)
        cells = empty((B, H, -(-T // CELL), K, V) if keep else (0,), v.dtype)
        o, ht = empty(v.shape, v.dtype), torch.empty_like(h0)
        arrays = tuple(map(as_array, (*given, h0, o, cells, ht)))
        run_tasks(forward_kernel(_tiles(V), ctx.given[0]), (*arrays, T, H, K, V, A, keep), B * H, B * H * T * K * V)
        ctx.save_for_backward(*given, cells, initial_state)  # the last for the graph alone: `cells` has none
        ctx.set_materialize_grads(False)
        return o, ht

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, do, dht):
        *given, cells, initial_state = saved
        if is_batched(do, dht):
            inputs = (t if there else None for t, there in zip((*given, initial_state), (True, True, True, *ctx.given)))
            return derive(_by_chunks, tuple(inputs), (do, dht))
        q, v, decay = given[0], given[2], given[4]
        (B, T, H, K), V, A = q.shape, v.shape[-1], decay.shape[-1] if ctx.given[1] else 0
        do = torch.zeros_like(v) if do is None else as_input(do)
        dht = v.new_zeros(B, H, K, V) if dht is None else as_input(dht)
        grads = [*map(torch.zeros_like, given), torch.empty_like(dht)]
        arrays = tuple(map(as_array, (*given, cells, do, dht, *grads)))
        run_tasks(backward_kernel(_tiles(V), ctx.given[0]), (*arrays, T, H, K, V, A), B * H, 4 * B * H * T * K * V)
        return (*grads[:3], *(grad if there else None for grad, there in zip(grads[3:], ctx.given)))
