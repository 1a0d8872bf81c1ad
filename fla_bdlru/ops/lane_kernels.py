"""What the kernels of both ops share: the order of programs and lanes, and the serial pass over chunks."""

import triton
import triton.language as tl


@triton.jit
def program(pid, NC, H: tl.constexpr, BN: tl.constexpr):
    """Tile of lanes, chunk and batch of a program: all on grid axis x, which alone may be large."""
    TILES: tl.constexpr = (H + BN - 1) // BN
    return pid % TILES, (pid // TILES % NC).to(tl.int64), (pid // TILES // NC).to(tl.int64)


@triton.jit
def lanes(i_n, zero, BN: tl.constexpr, VEC: tl.constexpr):
    """Numbers of a tile's blocks, [1, BN].

    `zero` is 0, which the compiler does not know: it may assume VEC blocks to be aligned and no more, else it would give a
    lane more than VEC of them and spread a tile's rows over lanes.
    """
    return (i_n * BN + zero * VEC + tl.arange(0, BN))[None, :]


@triton.jit
def pick(x, rj, i):
    """Row i of a tile [MP, BN], as [1, BN]."""
    return tl.sum(tl.where(rj == i, x, 0.0), axis=0, keep_dims=True)


@triton.jit(do_not_specialize=["NC", "zero"])
def carry_kernel(
    end, P, x0, x_in, x_last, NC, zero,
    H: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, BN: tl.constexpr, VEC: tl.constexpr,
    HAS_X0: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Pass 2, serial over chunks: x_in[c] = x, x = P_c x + end_c; in reverse x = P_c^T x + end_c."""
    i_n, _, i_b = program(tl.program_id(0), 1, H, BN)
    o_n, rj = lanes(i_n, zero, BN, VEC), tl.arange(0, MP)[:, None]
    is_row = (rj < M) & (o_n < H)
    x = tl.zeros([MP, BN], tl.float32)
    if HAS_X0:
        x = tl.load(x0 + i_b * (M * H) + rj * H + o_n, mask=is_row, other=0.0)
    for i in tl.range(0, NC):
        c = i_b * NC + (NC - 1 - i if REVERSE else i)
        tl.store(x_in + c * (M * H) + rj * H + o_n, x, mask=is_row)
        y = tl.load(end + c * (M * H) + rj * H + o_n, mask=is_row, other=0.0)
        for j in tl.static_range(M):
            if REVERSE:
                p = tl.load(P + c * (M * M * H) + (j * M + rj) * H + o_n, mask=is_row, other=0.0)
            else:
                p = tl.load(P + c * (M * M * H) + (rj * M + j) * H + o_n, mask=is_row, other=0.0)
            y += p * pick(x, rj, j)
        x = y
    tl.store(x_last + i_b * (M * H) + rj * H + o_n, x, mask=is_row)
