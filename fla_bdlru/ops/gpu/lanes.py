"""What the kernels of both ops share: the order of programs and lanes, and the serial pass over chunks."""

import triton
import triton.language as tl


@triton.jit
def program(pid, NC, H: tl.constexpr, VEC: tl.constexpr, WARP: tl.constexpr):
    """Tile of lanes, chunk, batch and b * NC + c of a program: all on grid axis x, which alone may be large."""
    TILES: tl.constexpr = (H + WARP * VEC - 1) // (WARP * VEC)
    i_bc = pid // TILES
    return pid % TILES, (i_bc % NC).to(tl.int64), (i_bc // NC).to(tl.int64), i_bc.to(tl.int64)


@triton.jit
def lanes(i_n, zero, H: tl.constexpr, VEC: tl.constexpr, WARP: tl.constexpr):
    """Numbers of a tile's blocks, VEC for each of a warp's threads, and whether they exist; both [1, BN].

    `zero` is 0, which the compiler does not know: it may assume VEC blocks to be aligned and no more, else it would give a
    lane more than VEC of them and spread a tile's rows over lanes.
    """
    BN: tl.constexpr = WARP * VEC
    o_n = (i_n * BN + zero * VEC + tl.arange(0, BN))[None, :]
    if H % BN == 0:
        in_n = tl.full(o_n.shape, 1, tl.int1)
    else:
        in_n = o_n < H
    return o_n, in_n


@triton.jit
def place(
    pid, T, C, NC, zero, H: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, VEC: tl.constexpr, WARP: tl.constexpr
):  # fmt: skip
    """Where a program works: chunk, batch, b * NC + c, steps of the chunk; its lanes and rows, and whether they exist."""
    i_n, i_c, i_b, i_bc = program(pid, NC, H, VEC, WARP)
    o_n, in_n = lanes(i_n, zero, H, VEC, WARP)
    rj = tl.arange(0, MP)[:, None]
    return i_c, i_b, i_bc, tl.minimum(C, T - i_c * C), o_n, in_n, rj, rj < M


@triton.jit
def pick(x, rj, i):
    """Row i of a tile [MP, BN], as [1, BN]."""
    return tl.sum(tl.where(rj == i, x, -0.0), axis=0, keep_dims=True)  # -0.0 is no summand at all, 0.0 is


@triton.jit
def _load_column(P, c, j, rj, o_n, is_row, M: tl.constexpr, H: tl.constexpr, REVERSE: tl.constexpr):
    """Column j of chunk c's transition, or of its transpose: [MP, BN]."""
    return tl.load(P + c * (M * M * H) + (j * M + rj if REVERSE else rj * M + j) * H + o_n, mask=is_row, other=0.0)


@triton.jit
def _carried(column, x, VARLEN: tl.constexpr):
    """column * x; over a chunk in which a document starts (its P is zero) NaN does not pass either."""
    return tl.where(column == 0, 0.0, column * x) if VARLEN else column * x


@triton.jit(do_not_specialize=["NC", "zero"])
def chunk_lru_kernel_carry(
    end, P, x0, x_in, x_last, NC, zero,
    H: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, WARP: tl.constexpr, AHEAD: tl.constexpr, HAS_X0: tl.constexpr,
    REVERSE: tl.constexpr, VARLEN: tl.constexpr,
):  # fmt: skip
    """Pass 2, serial over chunks: x_in[c] = x, x = P_c x + end_c; in reverse x = P_c^T x + end_c.

    It waits for memory, not for arithmetic: one block a lane, and AHEAD chunks are read before the first is used. Where not
    even one fits (AHEAD = 0), its columns are read one by one.
    """
    i_n, _, i_b, _ = program(tl.program_id(0), 1, H, 1, WARP)
    o_n, in_n = lanes(i_n, zero, H, 1, WARP)
    rj = tl.arange(0, MP)[:, None]
    is_row = (rj < M) & in_n
    o_x = rj * H + o_n
    x = tl.zeros([MP, WARP], tl.float32)
    if HAS_X0:
        x = tl.load(x0 + i_b * (M * H) + o_x, mask=is_row, other=0.0)
    for i in tl.range(0, NC, AHEAD if AHEAD > 0 else 1):
        ends = ()
        columns = ()
        for k in tl.static_range(AHEAD):
            step = tl.minimum(i + k, NC - 1)
            c = i_b * NC + (NC - 1 - step if REVERSE else step)
            ends = ends + (tl.load(end + c * (M * H) + o_x, mask=is_row, other=0.0),)
            for j in tl.static_range(M):
                columns = columns + (_load_column(P, c, j, rj, o_n, is_row, M, H, REVERSE),)
        for k in tl.static_range(AHEAD):
            if i + k < NC:
                c = i_b * NC + (NC - 1 - i - k if REVERSE else i + k)
                tl.store(x_in + c * (M * H) + o_x, x, mask=is_row)
                y = ends[k]
                for j in tl.static_range(M):
                    y += _carried(columns[k * M + j], pick(x, rj, j), VARLEN)
                x = y
        if AHEAD == 0:
            c = i_b * NC + (NC - 1 - i if REVERSE else i)
            tl.store(x_in + c * (M * H) + o_x, x, mask=is_row)
            y = tl.load(end + c * (M * H) + o_x, mask=is_row, other=0.0)
            for j in tl.range(0, M):
                y += _carried(_load_column(P, c, j, rj, o_n, is_row, M, H, REVERSE), pick(x, rj, j), VARLEN)
            x = y
    tl.store(x_last + i_b * (M * H) + o_x, x, mask=is_row)
