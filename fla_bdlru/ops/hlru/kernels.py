"""Triton kernels of H-LRU: one lane owns one channel, and nothing crosses lanes.

Gate-major memory (N has stride 1): g, dg [B, T, M+1, N]; v, o, do, dv [B, T, N]; states [S, M, N] fp32, newest first; per
chunk h_in, u_in, end [B, NC, M, N] and P [B, NC, M, M, N] fp32. Pass 2 is BD-LRU's.

The window of M values is a tile [MP, BN], BN = WARP VEC lanes of one warp, that does not move: a step overwrites the row of
the oldest value. Before step k of a chunk, row r is lag (k - 1 - r) mod M (0 is the newest), and logits are read in that
order. TURN steps are unrolled, M of them where M is small, so that the order is known when compiling.

Documents: `starts` and `ends` as in BD-LRU; `seq` is the document of each step, `cu_seqlens` where it begins.
"""

import triton
import triton.language as tl

from fla_bdlru.ops.gpu.gates import gate_grad, gate_row, rows_sum
from fla_bdlru.ops.gpu.lanes import pick, place
from fla_bdlru.ops.gpu.runtime import MAX_UNROLLED, Kernels


@triton.jit
def _turn(i_t, k: tl.constexpr, M: tl.constexpr, TURN: tl.constexpr):
    """Step i_t + k of a chunk modulo M; a constant where M steps are unrolled."""
    return k if TURN == M else tl.cast(i_t % M, tl.int32)


@triton.jit
def _lag(turn, rj, M: tl.constexpr):
    """Lag that row r holds before a step that is `turn` >= 0 modulo M."""
    return (turn % M + 2 * M - 1 - rj) % M


@triton.jit
def _load_gates(p_g, lag, o_n, is_row, in_n, M: tl.constexpr, N: tl.constexpr):
    """Logits of one step in window order: [MP, BN] and [1, BN]."""
    x = tl.load(p_g + lag * N + o_n, mask=is_row & in_n, other=0.0).to(tl.float32)
    return x, tl.load(p_g + M * N + o_n, mask=in_n, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["T", "C", "NC", "zero"])
def chunk_hlru_fwd_kernel_h(
    g, v, h0, starts, end, P_out, T, C, NC, zero,
    N: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, VEC: tl.constexpr, WARP: tl.constexpr,
    CC: tl.constexpr, TURN: tl.constexpr, NORM: tl.constexpr, HAS_H0: tl.constexpr, VARLEN: tl.constexpr,
):  # fmt: skip
    """Pass 1: a chunk's transition P and its end state from zero; CC of these M + 1 columns a program."""
    SPLITS: tl.constexpr = (M + CC) // CC
    pid, c0 = tl.program_id(0) // SPLITS, tl.program_id(0) % SPLITS * CC
    i_c, i_b, i_bc, n_t, o_n, in_n, rj, is_row = place(pid, T, C, NC, zero, N, M, MP, VEC, WARP)
    t0 = i_c * C
    lag = _lag(0, rj, M)
    has_input = c0 + M % CC == M  # in column c = M % CC
    X = ()
    for c in tl.static_range(CC):
        X = X + (tl.where((lag == c0 + c) & is_row & in_n, 1.0, 0.0),)
    last_start = tl.full([], -1, tl.int64)
    for i_t in tl.range(0, n_t, TURN):
        for k in tl.static_range(TURN):
            if i_t + k < n_t:
                t = t0 + i_t + k
                turn = _turn(i_t, k, M, TURN)
                lag = _lag(turn, rj, M)
                if VARLEN:
                    doc = tl.load(starts + t).to(tl.int64)
                    last_start = tl.maximum(last_start, doc)
                    if doc >= 0:
                        x = tl.zeros([MP, WARP * VEC], tl.float32)
                        if HAS_H0:
                            x = tl.load(h0 + doc * (M * N) + lag * N + o_n, mask=is_row & in_n, other=0.0)
                        Z = ()
                        for c in tl.static_range(CC):
                            Z = Z + (tl.where(has_input & (c == M % CC), x, 0.0),)
                        X = Z
                x, x_in = _load_gates(g + (i_b * T + t) * ((M + 1) * N), lag, o_n, is_row, in_n, M, N)
                b_v = tl.load(v + (i_b * T + t) * N + o_n, mask=in_n, other=0.0).to(tl.float32)
                f, f_in, _, _, r, _ = gate_row(x, x_in, is_row, M, NORM)
                Z = ()
                for c in tl.static_range(CC):
                    a = rows_sum(f * X[c], is_row)
                    if c == M % CC:
                        a += tl.where(has_input, f_in * b_v, 0.0)
                    Z = Z + (tl.where(lag == M - 1, a * r, X[c]),)
                X = Z
    lag = _lag((n_t % M).to(tl.int32), rj, M)
    p_end = end + i_bc * (M * N) + lag * N + o_n
    p_P = P_out + i_bc * (M * M * N) + lag * (M * N) + o_n
    for c in tl.static_range(CC):
        # no NaN of the document that goes on may reach those before it
        X_c = tl.where(last_start >= 0, 0.0, X[c]) if VARLEN else X[c]
        tl.store(p_P + (c0 + c) * N, X_c, mask=is_row & in_n & (o_n < N * (c0 + c < M).to(tl.int32)))
        if c == M % CC:
            tl.store(p_end, X[c], mask=is_row & in_n & (o_n < N * has_input.to(tl.int32)))


@triton.jit(do_not_specialize=["T", "C", "NC", "zero"])
def chunk_hlru_fwd_kernel_o(
    g, v, h0, starts, ends, h_in, o, ht, T, C, NC, zero,
    N: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, VEC: tl.constexpr, WARP: tl.constexpr, TURN: tl.constexpr,
    NORM: tl.constexpr, HAS_H0: tl.constexpr, VARLEN: tl.constexpr, HAS_H_IN: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Pass 3 (or the only one, C >= T): the recurrence from the state that enters the chunk; writes o."""
    i_c, i_b, i_bc, n_t, o_n, in_n, rj, is_row = place(tl.program_id(0), T, C, NC, zero, N, M, MP, VEC, WARP)
    t0 = i_c * C
    h = tl.zeros([MP, WARP * VEC], tl.float32)
    if HAS_H_IN:
        h = tl.load(h_in + i_bc * (M * N) + _lag(0, rj, M) * N + o_n, mask=is_row & in_n, other=0.0)
    for i_t in tl.range(0, n_t, TURN):
        for k in tl.static_range(TURN):
            if i_t + k < n_t:
                t = t0 + i_t + k
                turn = _turn(i_t, k, M, TURN)
                lag = _lag(turn, rj, M)
                if VARLEN:
                    doc = tl.load(starts + t).to(tl.int64)
                    if doc >= 0:
                        h = tl.zeros([MP, WARP * VEC], tl.float32)
                        if HAS_H0:
                            h = tl.load(h0 + doc * (M * N) + lag * N + o_n, mask=is_row & in_n, other=0.0)
                x, x_in = _load_gates(g + (i_b * T + t) * ((M + 1) * N), lag, o_n, is_row, in_n, M, N)
                b_v = tl.load(v + (i_b * T + t) * N + o_n, mask=in_n, other=0.0).to(tl.float32)
                f, f_in, _, _, r, _ = gate_row(x, x_in, is_row, M, NORM)
                a = (rows_sum(f * h, is_row) + f_in * b_v) * r
                tl.store(o + (i_b * T + t) * N + o_n, a.to(o.dtype.element_ty), mask=in_n)
                h = tl.where(lag == M - 1, a, h)
                if VARLEN:
                    doc = tl.load(ends + t).to(tl.int64)
                    if doc >= 0:
                        tl.store(ht + doc * (M * N) + _lag(turn + 1, rj, M) * N + o_n, h, mask=is_row & in_n)
    if LAST:
        tl.store(ht + i_b * (M * N) + _lag((n_t % M).to(tl.int32), rj, M) * N + o_n, h, mask=is_row & in_n)


@triton.jit(do_not_specialize=["T", "C", "NC", "zero"])
def chunk_hlru_bwd_kernel_dh(
    g, do, dht, starts, ends, end, T, C, NC, zero,
    N: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, VEC: tl.constexpr, WARP: tl.constexpr, TURN: tl.constexpr,
    NORM: tl.constexpr, HAS_DO: tl.constexpr, HAS_DHT: tl.constexpr, VARLEN: tl.constexpr,
):  # fmt: skip
    """Backward pass 1: the adjoint that leaves a chunk at its front, from zero behind it."""
    i_c, i_b, i_bc, n_t, o_n, in_n, rj, is_row = place(tl.program_id(0), T, C, NC, zero, N, M, MP, VEC, WARP)
    t0 = i_c * C
    u = tl.zeros([MP, WARP * VEC], tl.float32)
    for i_t in tl.range(0, n_t, TURN):
        for k in tl.static_range(TURN):
            if i_t + k < n_t:
                t = t0 + n_t - 1 - i_t - k
                turn = M - _turn(i_t, k, M, TURN)
                lag = _lag(turn, rj, M)
                if VARLEN and HAS_DHT:
                    doc = tl.load(ends + t).to(tl.int64)
                    if doc >= 0:
                        u = tl.load(dht + doc * (M * N) + _lag(turn + 1, rj, M) * N + o_n, mask=is_row & in_n, other=0.0)
                s = pick(u, lag, M - 1)
                if HAS_DO:
                    s += tl.load(do + (i_b * T + t) * N + o_n, mask=in_n, other=0.0).to(tl.float32)
                x, x_in = _load_gates(g + (i_b * T + t) * ((M + 1) * N), lag, o_n, is_row, in_n, M, N)
                f, _, _, _, r, _ = gate_row(x, x_in, is_row, M, NORM)
                u = tl.where(lag == M - 1, 0.0, u) + f * (s * r)
                if VARLEN:
                    u = tl.where(tl.load(starts + t) >= 0, 0.0, u)
    tl.store(end + i_bc * (M * N) + _lag(M + 1 - (n_t % M).to(tl.int32), rj, M) * N + o_n, u, mask=is_row & in_n)


@triton.jit
def _before(o, h0, row, doc, lag, since, o_n, mask, M: tl.constexpr, N: tl.constexpr, HAS_H0: tl.constexpr):
    """Values `lag` before a step, row `row` of o and `since` steps into its sequence; before that, the initial state."""
    inside = tl.minimum(since, M).to(tl.int32)
    x = tl.load(o + (row - 1 - lag) * N + o_n, mask=mask & (lag < inside), other=0.0).to(tl.float32)
    if HAS_H0:
        if since < M:
            x += tl.load(h0 + doc * (M * N) + (lag - inside) * N + o_n, mask=mask & (lag >= inside), other=0.0)
    return x


@triton.jit(do_not_specialize=["T", "C", "NC", "zero"])
def chunk_hlru_bwd_kernel_dvg(
    g, v, o, h0, do, dht, u_in, starts, ends, seq, cu_seqlens, dg, dv, dh0, T, C, NC, zero,
    N: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, VEC: tl.constexpr, WARP: tl.constexpr, TURN: tl.constexpr,
    NORM: tl.constexpr, HAS_H0: tl.constexpr, HAS_DO: tl.constexpr, HAS_DHT: tl.constexpr, HAS_U_IN: tl.constexpr,
    VARLEN: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Backward pass 3 (or the only one): all gradients of a chunk from the adjoint that enters it from behind."""
    i_c, i_b, i_bc, n_t, o_n, in_n, rj, is_row = place(tl.program_id(0), T, C, NC, zero, N, M, MP, VEC, WARP)
    t0 = i_c * C
    u = tl.zeros([MP, WARP * VEC], tl.float32)
    if HAS_U_IN:
        u = tl.load(u_in + i_bc * (M * N) + _lag(M + 1, rj, M) * N + o_n, mask=is_row & in_n, other=0.0)
    # of the M values before a step the next one, backward in time, needs all but the newest, and one more
    doc = i_b
    since = t0 + n_t - 1
    if VARLEN:
        doc = tl.load(seq + t0 + n_t - 1).to(tl.int64)
        since -= tl.load(cu_seqlens + doc)
    row = i_b * T + t0 + n_t - 1
    window = _before(o, h0, row, doc, _lag(M, rj, M), since, o_n, is_row & in_n, M, N, HAS_H0)
    for i_t in tl.range(0, n_t, TURN):
        for k in tl.static_range(TURN):
            if i_t + k < n_t:
                t = t0 + n_t - 1 - i_t - k
                turn = M - _turn(i_t, k, M, TURN)
                lag = _lag(turn, rj, M)
                first = since == 0
                since = tl.maximum(since - 1, 0)
                oldest = _before(o, h0, i_b * T + t - 1, doc, M - 1, since, o_n, in_n, M, N, HAS_H0)
                if VARLEN and HAS_DHT:
                    if tl.load(ends + t) >= 0:
                        u = tl.load(dht + doc * (M * N) + _lag(turn + 1, rj, M) * N + o_n, mask=is_row & in_n, other=0.0)
                s = pick(u, lag, M - 1)
                if HAS_DO:
                    s += tl.load(do + (i_b * T + t) * N + o_n, mask=in_n, other=0.0).to(tl.float32)
                p = (i_b * T + t) * ((M + 1) * N)
                x, x_in = _load_gates(g + p, lag, o_n, is_row, in_n, M, N)
                b_v = tl.load(v + (i_b * T + t) * N + o_n, mask=in_n, other=0.0).to(tl.float32)
                f, f_in, df, df_in, r, pull = gate_row(x, x_in, is_row, M, NORM)
                # h_t again in fp32: the stored output is rounded
                h = (rows_sum(f * window, is_row) + f_in * b_v) * r * pull
                q = s * r
                dx = gate_grad(f, df, window, h, q, NORM)
                dx_in = gate_grad(f_in, df_in, b_v, h, q, NORM)
                tl.store(dg + p + lag * N + o_n, dx.to(dg.dtype.element_ty), mask=is_row & in_n)
                tl.store(dg + p + M * N + o_n, dx_in.to(dg.dtype.element_ty), mask=in_n)
                tl.store(dv + (i_b * T + t) * N + o_n, (q * f_in).to(dv.dtype.element_ty), mask=in_n)
                u = tl.where(lag == M - 1, 0.0, u) + f * q
                window = tl.where(lag == 0, oldest, window)
                if VARLEN:
                    if first:
                        tl.store(dh0 + doc * (M * N) + lag * N + o_n, u, mask=is_row & in_n)
                        u = tl.zeros([MP, WARP * VEC], tl.float32)
                        doc = tl.load(seq + tl.maximum(t - 1, 0)).to(tl.int64)
                        since = tl.maximum(t - 1 - tl.load(cu_seqlens + doc), 0)
                        lag = _lag(turn - 1, rj, M)
                        window = _before(o, h0, i_b * T + t - 1, doc, lag, since, o_n, is_row & in_n, M, N, HAS_H0)
    if LAST:
        tl.store(dh0 + i_b * (M * N) + _lag(M + 1 - (n_t % M).to(tl.int32), rj, M) * N + o_n, u, mask=is_row & in_n)


KERNELS = Kernels(
    chunk_hlru_fwd_kernel_h, chunk_hlru_fwd_kernel_o, chunk_hlru_bwd_kernel_dh, chunk_hlru_bwd_kernel_dvg,
    lane_axis="N", unrolled=lambda M: {"TURN": M if M <= MAX_UNROLLED else 1},
    warps=lambda M: 28 if M <= 2 else 20 if M <= 6 else 16 if M <= 8 else 8,
)  # fmt: skip
