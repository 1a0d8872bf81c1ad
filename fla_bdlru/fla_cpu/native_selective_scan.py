"""Mamba's selective scan as numba kernels: channels are lanes, as in `ops.cpu.scan`.

The forward keeps the state every `CELL` steps, and the backward makes those between again.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from fla_bdlru.fla_cpu.common import check_sizes, derive, is_batched
from fla_bdlru.fla_cpu.scan import linear_scan
from fla_bdlru.ops.common.autograd import as_input, once_differentiable
from fla_bdlru.ops.cpu.gates import exp
from fla_bdlru.ops.cpu.lanes import LANES, across, lanes_below, load, splat, store
from fla_bdlru.ops.cpu.runtime import as_array, empty, kernel, run_tasks

CELL = 32
WORK = 4  # of a channel's state value, in gates


@njit(forceinline=True)
def _copy(source, at, stride, target, to, onto, N, mask):
    # N rows of lanes, `stride` apart, to rows that are `onto` apart
    for n in range(N):
        store(target, to + n * onto, load(source, at + n * stride, mask), mask)


@kernel
def forward_kernel(x, dt, A, B, C, h0, y, cells, ht, T, D, N, keep, lo, hi):
    state = np.zeros(N * LANES, np.float32)
    tiles, count = (D + LANES - 1) // LANES, (T + CELL - 1) // CELL
    for task in range(lo, hi):
        seq, c = task // tiles, task % tiles * LANES
        mask = lanes_below(D - c)
        _copy(h0, seq * N * D + c, D, state, 0, LANES, N, mask)
        for t in range(T):
            row = seq * T + t
            if keep and t % CELL == 0:
                _copy(state, 0, LANES, cells, (seq * count + t // CELL) * N * D + c, D, N, mask)
            step = load(dt, row * D + c, mask)
            u, total = step * load(x, row * D + c, mask), splat(0.0)
            for n in range(N):
                h = load(state, n * LANES, mask) * exp(step * load(A, n * D + c, mask)) + u * B[row * N + n]
                store(state, n * LANES, h, mask)
                total = h * C[row * N + n] + total
            store(y, row * D + c, total, mask)
        _copy(state, 0, LANES, ht, seq * N * D + c, D, N, mask)


@kernel
def backward_kernel(x, dt, A, B, C, cells, dy, dht, dx, ddt, dA, dB, dC, dh0, T, D, N, lo, hi):
    size = N * LANES
    states, decays = np.zeros((CELL + 1) * size, np.float32), np.zeros(CELL * size, np.float32)
    dstate, count = np.zeros(size, np.float32), (T + CELL - 1) // CELL
    for seq in range(lo, hi):
        for c in range(0, D, LANES):
            mask = lanes_below(D - c)
            _copy(dht, seq * N * D + c, D, dstate, 0, LANES, N, mask)
            for cell in range(count - 1, -1, -1):
                begin, end = cell * CELL, min(T, cell * CELL + CELL)
                _copy(cells, (seq * count + cell) * N * D + c, D, states, 0, LANES, N, mask)
                for t in range(begin, end):
                    row, old = seq * T + t, (t - begin) * size
                    step = load(dt, row * D + c, mask)
                    u = step * load(x, row * D + c, mask)
                    for n in range(N):
                        decay = exp(step * load(A, n * D + c, mask))
                        store(decays, old + n * LANES, decay, mask)
                        h = load(states, old + n * LANES, mask) * decay + u * B[row * N + n]
                        store(states, old + size + n * LANES, h, mask)
                for t in range(end - 1, begin - 1, -1):
                    row, old = seq * T + t, (t - begin) * size
                    step, value, grad = load(dt, row * D + c, mask), load(x, row * D + c, mask), load(dy, row * D + c, mask)
                    u, du, dstep = step * value, splat(0.0), splat(0.0)
                    for n in range(N):  # h' = exp(dt A_n) h + dt x B_n, y = sum_n C_n h'
                        at = old + n * LANES
                        dh = grad * C[row * N + n] + load(dstate, n * LANES, mask)
                        dC[row * N + n] += across(load(states, at + size, mask) * grad)
                        dB[row * N + n] += across(dh * u)
                        du = dh * B[row * N + n] + du
                        dh = dh * load(decays, at, mask)
                        store(dstate, n * LANES, dh, mask)
                        rate = dh * load(states, at, mask)  # the gradient of dt A_n
                        dstep = rate * load(A, n * D + c, mask) + dstep
                        of_A = (seq * N + n) * D + c
                        store(dA, of_A, rate * step + load(dA, of_A, mask), mask)
                    store(dx, row * D + c, du * step, mask)
                    store(ddt, row * D + c, du * value + dstep, mask)
            _copy(dstate, 0, LANES, dh0, seq * N * D + c, D, N, mask)


def _by_steps(x, dt, A, B, C, initial_state):
    """What `SelectiveScan` computes, in PyTorch's operators."""
    decay = (dt[:, :, None] * A).exp()
    update = (dt * x)[:, :, None] * B[..., None]
    h = linear_scan(decay, update, x.new_zeros(len(x), *A.shape) if initial_state is None else initial_state)
    return (C[:, :, None] @ h)[:, :, 0], h[:, -1]


class SelectiveScan(torch.autograd.Function):
    """h_t = exp(dt A) h_{t-1} + dt x B and y_t = h_t C; float32 x, dt, y: [B, T, D], A: [N, D], B, C: [B, T, N].

    Returns y and the last state, [B, N, D] as the initial one, which may be `None`. All are as `as_input` returns them.
    """

    @staticmethod
    def forward(ctx, x, dt, A, B, C, initial_state):
        (batch, T, D), N = x.shape, A.shape[0]
        rows, state = batch * T, batch * D * N
        check_sizes(dt=(dt, rows * D), A=(A, D * N), B=(B, rows * N), C=(C, rows * N), initial_state=(initial_state, state))
        given = x, dt, A, B, C
        h0 = x.new_zeros(batch, N, D) if initial_state is None else initial_state
        keep = any(ctx.needs_input_grad)
        cells = empty((batch, -(-T // CELL), N, D) if keep else (0,), x.dtype)
        y, ht = empty(x.shape, x.dtype), torch.empty_like(h0)
        arrays = map(as_array, (*given, h0, y, cells, ht))
        run_tasks(forward_kernel, (*arrays, T, D, N, keep), batch * -(-D // LANES), WORK * x.numel() * N)
        ctx.save_for_backward(*given, cells, initial_state)  # the last for the graph alone: `cells` has none
        ctx.from_zero = initial_state is None
        ctx.set_materialize_grads(False)
        return y, ht

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, dy, dht):
        *given, cells, initial_state = saved
        if is_batched(dy, dht):
            return derive(_by_steps, (*given, initial_state), (dy, dht))
        x, A = given[0], given[2]
        (batch, T, D), N = x.shape, A.shape[0]
        dy = torch.zeros_like(x) if dy is None else as_input(dy)
        dht = x.new_zeros(batch, N, D) if dht is None else as_input(dht)
        dx, ddt, dh0 = empty(x.shape, x.dtype), empty(x.shape, x.dtype), torch.empty_like(dht)
        dA, dB, dC = x.new_zeros(batch, N, D), torch.zeros_like(given[3]), torch.zeros_like(given[4])
        arrays = map(as_array, (*given, cells, dy, dht, dx, ddt, dA, dB, dC, dh0))
        run_tasks(backward_kernel, (*arrays, T, D, N), batch, 4 * WORK * x.numel() * N)
        return dx, ddt, dA.sum(0), dB, dC, None if ctx.from_zero else dh0
