"""Triton kernels of BD-LRU: one lane owns one block, and nothing crosses lanes.

Gate-major memory (H has stride 1): g, dg [B, T, M, M+1, H]; v, o, do, dv [B, T, M, H]; states [S, M, H] fp32; per chunk
h_in, u_in, end [B, NC, M, H] and P [B, NC, M, M, H] fp32. A row of gates is a tile [MP, BN], BN = WARP VEC lanes of one warp:
j, padded to a power of two, is an axis inside a lane.

Documents (`starts`): per step, the number of the document that starts there, or -1. A start resets the state to that
document's, so chunks need not know about documents, and P is zero over a chunk that holds a start.
"""

import triton
import triton.language as tl

from fla_bdlru.ops.gpu.gates import gate_grad, gate_row, rows_sum
from fla_bdlru.ops.gpu.lanes import pick, place
from fla_bdlru.ops.gpu.runtime import MAX_UNROLLED, Kernels


@triton.jit
def _load_row(p_g, rj, o_n, is_gate, in_n, M: tl.constexpr, H: tl.constexpr):
    """Logits of one row: [MP, BN] and [1, BN]."""
    x = tl.load(p_g + rj * H + o_n, mask=is_gate & in_n, other=0.0).to(tl.float32)
    return x, tl.load(p_g + M * H + o_n, mask=in_n, other=0.0).to(tl.float32)


@triton.jit
def _column_row(i, p_g, p_v, X, Y, has_input, rj, o_n, is_gate, in_n, CC: tl.constexpr, M: tl.constexpr, H: tl.constexpr,
                NORM: tl.constexpr):  # fmt: skip
    """Row i of the next columns Y from the columns X."""
    x, x_in = _load_row(p_g + i * ((M + 1) * H), rj, o_n, is_gate, in_n, M, H)
    b_v = tl.load(p_v + i * H + o_n, mask=in_n, other=0.0).to(tl.float32)
    f, f_in, _, _, r, _ = gate_row(x, x_in, is_gate, M, NORM)
    Z = ()
    for c in tl.static_range(CC):
        a = rows_sum(f * X[c], is_gate)
        if c == M % CC:
            a += tl.where(has_input, f_in * b_v, 0.0)
        Z = Z + (tl.where(rj == i, a * r, Y[c]),)
    return Z


@triton.jit
def _state_row(i, p_g, p_v, h, y, rj, o_n, is_gate, in_n, M: tl.constexpr, H: tl.constexpr, NORM: tl.constexpr):
    """Row i of the next state y from the state h."""
    x, x_in = _load_row(p_g + i * ((M + 1) * H), rj, o_n, is_gate, in_n, M, H)
    b_v = tl.load(p_v + i * H + o_n, mask=in_n, other=0.0).to(tl.float32)
    f, f_in, _, _, r, _ = gate_row(x, x_in, is_gate, M, NORM)
    return tl.where(rj == i, (rows_sum(f * h, is_gate) + f_in * b_v) * r, y)


@triton.jit
def _adjoint_row(i, p_g, s, u, rj, o_n, is_gate, in_n, M: tl.constexpr, H: tl.constexpr, NORM: tl.constexpr):
    """Adds what row i of the transition hands back: u + p_i s_i."""
    x, x_in = _load_row(p_g + i * ((M + 1) * H), rj, o_n, is_gate, in_n, M, H)
    f, _, _, _, r, _ = gate_row(x, x_in, is_gate, M, NORM)
    return u + f * (pick(s, rj, i) * r)


@triton.jit
def _gradient_row(i, row0, g, v, dg, dv, h_prev, s, u, rj, o_n, is_gate, in_n, M: tl.constexpr, H: tl.constexpr,
                  NORM: tl.constexpr):  # fmt: skip
    """Stores the gradients of row i; returns u + p_i s_i."""
    p = (row0 + i) * ((M + 1) * H)
    x, x_in = _load_row(g + p, rj, o_n, is_gate, in_n, M, H)
    b_v = tl.load(v + (row0 + i) * H + o_n, mask=in_n, other=0.0).to(tl.float32)
    f, f_in, df, df_in, r, pull = gate_row(x, x_in, is_gate, M, NORM)
    # h_t again in fp32: the stored output is rounded
    h = (rows_sum(f * h_prev, is_gate) + f_in * b_v) * r * pull
    q = pick(s, rj, i) * r
    dx = gate_grad(f, df, h_prev, h, q, NORM)
    dx_in = gate_grad(f_in, df_in, b_v, h, q, NORM)
    tl.store(dg + p + rj * H + o_n, dx.to(dg.dtype.element_ty), mask=is_gate & in_n)
    tl.store(dg + p + M * H + o_n, dx_in.to(dg.dtype.element_ty), mask=in_n)
    tl.store(dv + (row0 + i) * H + o_n, (q * f_in).to(dv.dtype.element_ty), mask=in_n)
    return u + f * q


@triton.jit(do_not_specialize=["T", "C", "NC", "zero"])
def chunk_bdlru_fwd_kernel_h(
    g, v, h0, starts, end, P_out, T, C, NC, zero,
    H: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, VEC: tl.constexpr, WARP: tl.constexpr, CC: tl.constexpr,
    NORM: tl.constexpr, HAS_H0: tl.constexpr, VARLEN: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Pass 1: a chunk's transition P and its end state from zero; CC of these M + 1 columns a program."""
    SPLITS: tl.constexpr = (M + CC) // CC
    # splits of a tile are neighbours, so that all but the first find its gates in the L2 cache
    pid, c0 = tl.program_id(0) // SPLITS, tl.program_id(0) % SPLITS * CC
    i_c, i_b, i_bc, n_t, o_n, in_n, rj, is_gate = place(pid, T, C, NC, zero, H, M, MP, VEC, WARP)
    p_g = g + (i_b * T + i_c * C) * (M * (M + 1) * H)
    p_v = v + (i_b * T + i_c * C) * (M * H)
    # columns c0 .. c0 + CC - 1; column M, which is c = M % CC of the last program, is the end state and alone sees the inputs
    has_input = c0 + M % CC == M
    X = ()
    for c in tl.static_range(CC):
        X = X + (tl.where((rj == c0 + c) & in_n, 1.0, 0.0),)
    last_start = tl.full([], -1, tl.int64)
    for t in tl.range(0, n_t):
        if VARLEN:
            doc = tl.load(starts + i_c * C + t).to(tl.int64)
            last_start = tl.maximum(last_start, doc)
            if doc >= 0:
                x = tl.zeros([MP, WARP * VEC], tl.float32)
                if HAS_H0:
                    x = tl.load(h0 + doc * (M * H) + rj * H + o_n, mask=is_gate & in_n, other=0.0)
                Z = ()
                for c in tl.static_range(CC):
                    Z = Z + (tl.where(has_input & (c == M % CC), x, 0.0),)
                X = Z
        Y = ()
        for c in tl.static_range(CC):
            Y = Y + (tl.zeros([MP, WARP * VEC], tl.float32),)
        if UNROLL:
            for i in tl.static_range(M):
                Y = _column_row(i, p_g, p_v, X, Y, has_input, rj, o_n, is_gate, in_n, CC, M, H, NORM)
        else:
            for i in tl.range(0, M):
                Y = _column_row(i, p_g, p_v, X, Y, has_input, rj, o_n, is_gate, in_n, CC, M, H, NORM)
        X = Y
        p_g += M * (M + 1) * H
        p_v += M * H
    p_end = end + i_bc * (M * H) + rj * H + o_n
    p_P = P_out + i_bc * (M * M * H) + rj * (M * H) + o_n
    for c in tl.static_range(CC):
        # no NaN of the document that goes on may reach those before it
        X_c = tl.where(last_start >= 0, 0.0, X[c]) if VARLEN else X[c]
        tl.store(p_P + (c0 + c) * H, X_c, mask=is_gate & in_n & (o_n < H * (c0 + c < M).to(tl.int32)))
        if c == M % CC:
            tl.store(p_end, X[c], mask=is_gate & in_n & (o_n < H * has_input.to(tl.int32)))


@triton.jit(do_not_specialize=["T", "C", "NC", "zero"])
def chunk_bdlru_fwd_kernel_o(
    g, v, h0, starts, ends, h_in, o, ht, T, C, NC, zero,
    H: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, VEC: tl.constexpr, WARP: tl.constexpr,
    NORM: tl.constexpr, HAS_H0: tl.constexpr, VARLEN: tl.constexpr, HAS_H_IN: tl.constexpr, LAST: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """Pass 3 (or the only one, C >= T): the recurrence from the state that enters the chunk; writes o."""
    i_c, i_b, i_bc, n_t, o_n, in_n, rj, is_gate = place(tl.program_id(0), T, C, NC, zero, H, M, MP, VEC, WARP)
    p_g = g + (i_b * T + i_c * C) * (M * (M + 1) * H)
    p_v = v + (i_b * T + i_c * C) * (M * H)
    p_o = o + (i_b * T + i_c * C) * (M * H)
    h = tl.zeros([MP, WARP * VEC], tl.float32)
    if HAS_H_IN:
        h = tl.load(h_in + i_bc * (M * H) + rj * H + o_n, mask=is_gate & in_n, other=0.0)
    for t in tl.range(0, n_t):
        if VARLEN:
            doc = tl.load(starts + i_c * C + t).to(tl.int64)
            if doc >= 0:
                h = tl.zeros([MP, WARP * VEC], tl.float32)
                if HAS_H0:
                    h = tl.load(h0 + doc * (M * H) + rj * H + o_n, mask=is_gate & in_n, other=0.0)
        y = tl.zeros([MP, WARP * VEC], tl.float32)
        if UNROLL:
            for i in tl.static_range(M):
                y = _state_row(i, p_g, p_v, h, y, rj, o_n, is_gate, in_n, M, H, NORM)
        else:
            for i in tl.range(0, M):
                y = _state_row(i, p_g, p_v, h, y, rj, o_n, is_gate, in_n, M, H, NORM)
        h = y
        tl.store(p_o + rj * H + o_n, h.to(o.dtype.element_ty), mask=is_gate & in_n)
        if VARLEN:
            doc = tl.load(ends + i_c * C + t).to(tl.int64)
            if doc >= 0:
                tl.store(ht + doc * (M * H) + rj * H + o_n, h, mask=is_gate & in_n)
        p_g += M * (M + 1) * H
        p_v += M * H
        p_o += M * H
    if LAST:
        tl.store(ht + i_b * (M * H) + rj * H + o_n, h, mask=is_gate & in_n)


@triton.jit(do_not_specialize=["T", "C", "NC", "zero"])
def chunk_bdlru_bwd_kernel_dh(
    g, do, dht, starts, ends, end, T, C, NC, zero,
    H: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, VEC: tl.constexpr, WARP: tl.constexpr,
    NORM: tl.constexpr, HAS_DO: tl.constexpr, HAS_DHT: tl.constexpr, VARLEN: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Backward pass 1: the adjoint that leaves a chunk at its front, from zero behind it."""
    i_c, i_b, i_bc, n_t, o_n, in_n, rj, is_gate = place(tl.program_id(0), T, C, NC, zero, H, M, MP, VEC, WARP)
    u = tl.zeros([MP, WARP * VEC], tl.float32)
    for it in tl.range(0, n_t):
        t = i_c * C + n_t - 1 - it
        p_g = g + (i_b * T + t) * (M * (M + 1) * H)
        if VARLEN and HAS_DHT:
            doc = tl.load(ends + t).to(tl.int64)
            if doc >= 0:
                u = tl.load(dht + doc * (M * H) + rj * H + o_n, mask=is_gate & in_n, other=0.0)
        s = u
        if HAS_DO:
            s += tl.load(do + (i_b * T + t) * (M * H) + rj * H + o_n, mask=is_gate & in_n, other=0.0).to(tl.float32)
        u = tl.zeros([MP, WARP * VEC], tl.float32)
        if UNROLL:
            for i in tl.static_range(M):
                u = _adjoint_row(i, p_g, s, u, rj, o_n, is_gate, in_n, M, H, NORM)
        else:
            for i in tl.range(0, M):
                u = _adjoint_row(i, p_g, s, u, rj, o_n, is_gate, in_n, M, H, NORM)
        if VARLEN:
            u = tl.where(tl.load(starts + t) >= 0, 0.0, u)
    tl.store(end + i_bc * (M * H) + rj * H + o_n, u, mask=is_gate & in_n)


@triton.jit(do_not_specialize=["T", "C", "NC", "zero"])
def chunk_bdlru_bwd_kernel_dvg(
    g, v, o, h0, h_in, do, dht, u_in, starts, ends, dg, dv, dh0, T, C, NC, zero,
    H: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, VEC: tl.constexpr, WARP: tl.constexpr, NORM: tl.constexpr,
    HAS_H0: tl.constexpr, HAS_H_IN: tl.constexpr, HAS_DO: tl.constexpr, HAS_DHT: tl.constexpr, HAS_U_IN: tl.constexpr,
    VARLEN: tl.constexpr, LAST: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Backward pass 3 (or the only one): all gradients of a chunk from the adjoint that enters it from behind."""
    i_c, i_b, i_bc, n_t, o_n, in_n, rj, is_gate = place(tl.program_id(0), T, C, NC, zero, H, M, MP, VEC, WARP)
    u = tl.zeros([MP, WARP * VEC], tl.float32)
    if HAS_U_IN:
        u = tl.load(u_in + i_bc * (M * H) + rj * H + o_n, mask=is_gate & in_n, other=0.0)
    for it in tl.range(0, n_t):
        t = i_c * C + n_t - 1 - it
        row0 = (i_b * T + t) * M
        # the state before this step: the output before, or what entered the chunk or the document
        first = it == n_t - 1
        prev = tl.load(o + (row0 - M + rj) * H + o_n, mask=is_gate & in_n & (rj < M * (1 - first.to(tl.int32))), other=0.0)
        h_prev = prev.to(tl.float32)
        if HAS_H_IN:
            m_first = is_gate & in_n & (rj < M * first.to(tl.int32))
            h_prev += tl.load(h_in + i_bc * (M * H) + rj * H + o_n, mask=m_first, other=0.0)
        start = -1
        if VARLEN:
            start = tl.load(starts + t)
            if start >= 0:
                h_prev = tl.zeros([MP, WARP * VEC], tl.float32)
                if HAS_H0:
                    h_prev = tl.load(h0 + start.to(tl.int64) * (M * H) + rj * H + o_n, mask=is_gate & in_n, other=0.0)
            if HAS_DHT:
                doc = tl.load(ends + t).to(tl.int64)
                if doc >= 0:
                    u = tl.load(dht + doc * (M * H) + rj * H + o_n, mask=is_gate & in_n, other=0.0)
        s = u
        if HAS_DO:
            s += tl.load(do + (row0 + rj) * H + o_n, mask=is_gate & in_n, other=0.0).to(tl.float32)
        u = tl.zeros([MP, WARP * VEC], tl.float32)
        if UNROLL:
            for i in tl.static_range(M):
                u = _gradient_row(i, row0, g, v, dg, dv, h_prev, s, u, rj, o_n, is_gate, in_n, M, H, NORM)
        else:
            for i in tl.range(0, M):
                u = _gradient_row(i, row0, g, v, dg, dv, h_prev, s, u, rj, o_n, is_gate, in_n, M, H, NORM)
        if VARLEN:
            if start >= 0:
                tl.store(dh0 + start.to(tl.int64) * (M * H) + rj * H + o_n, u, mask=is_gate & in_n)
                u = tl.zeros([MP, WARP * VEC], tl.float32)
    if LAST:
        tl.store(dh0 + i_b * (M * H) + rj * H + o_n, u, mask=is_gate & in_n)


KERNELS = Kernels(
    chunk_bdlru_fwd_kernel_h, chunk_bdlru_fwd_kernel_o, chunk_bdlru_bwd_kernel_dh, chunk_bdlru_bwd_kernel_dvg,
    lane_axis="H", unrolled=lambda M: {"UNROLL": M <= MAX_UNROLLED},
    warps=lambda M: 32 if M == 1 else 28 if M == 2 else 16 if M <= 6 else 12 if M <= 8 else 8,
)  # fmt: skip
