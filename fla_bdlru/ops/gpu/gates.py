"""Gate norms inside a Triton kernel: one row of logits as a tile whose first axis stays within a lane."""

import triton
import triton.language as tl

from fla_bdlru.ops.common.gate_norm import EPS, GATE_NORMS, RELU_EPS

NORM_CODES = {name: code for code, name in enumerate(GATE_NORMS)}
SOFTMAX, SIGMOID, RELU, TANH, SILU, LINEAR, SQUARE, SINH, NONE = map(tl.constexpr, NORM_CODES.values())  # as GATE_NORMS
LOG2E = tl.constexpr(1.4426950408889634)
FLOOR = tl.constexpr(EPS)
RELU_FLOOR = tl.constexpr(RELU_EPS)


@triton.jit
def reciprocal(x):
    """1/x for x > 0 of any normal size: an approximation and a Newton step, for half the instructions of a division."""
    r = tl.rsqrt(x)
    r = r * r
    return r * (2.0 - x * r)


@triton.jit
def rows_sum(x, is_row):
    """Sum over the rows of a tile, as [1, BN]; rows that pad it cost nothing, since only -0.0 is no summand at all."""
    return tl.sum(tl.where(is_row, x, -0.0), axis=0, keep_dims=True)


@triton.jit
def activation(x, NORM: tl.constexpr):
    """f(x) and f'(x), of SQUARE x for 2|x|, as `gate_grad` takes it; both signs of a large x are safe."""
    if NORM == RELU:
        f = tl.where(x < 0, 0.0, x)  # NaN stays NaN; the device's maximum would drop it
        df = tl.where(x > 0, 1.0, 0.0)
    elif NORM == SIGMOID:
        e = tl.exp2(-tl.abs(x) * LOG2E)
        d = reciprocal(1.0 + e)
        f = tl.where(x < 0, e, 1.0) * d
        df = e * d * d
    elif NORM == SILU:
        e = tl.exp2(-tl.abs(x) * LOG2E)
        d = reciprocal(1.0 + e)
        s = tl.where(x < 0, e, 1.0) * d
        f = x * s
        df = s + x * (e * d * d)
    elif NORM == TANH:
        a = tl.abs(x)
        e = tl.exp2(a * (-2.0 * LOG2E))
        d = reciprocal(1.0 + e)
        # near 0, 1 - e cancels: the series there
        y = tl.where(a < 0.1, a * (1.0 + x * x * (-0.33333334 + x * x * (0.13333334 - 0.05396825 * x * x))), (1.0 - e) * d)
        f = tl.where(x < 0, -y, y)
        df = 4.0 * e * d * d
    elif NORM == SQUARE:
        f = x * tl.abs(x)
        df = x
    else:
        f = x
        df = tl.full(x.shape, 1.0, tl.float32)
    return f, df


@triton.jit
def scaled_sinh(x, top):
    """sinh(x) exp(-top) and cosh(x) exp(-top), for |x| <= top."""
    a = tl.abs(x)
    e = 0.5 * tl.exp2((a - top) * LOG2E)
    m = tl.exp2(a * (-2.0 * LOG2E))
    # near 0, 1 - m cancels: the series of sinh there
    small = a * (1.0 + a * a * (0.16666667 + a * a * 0.008333334)) * tl.exp2(-top * LOG2E)
    y = tl.where(a < 0.1, small, (1.0 - m) * e)
    return tl.where(x < 0, -y, y), (1.0 + m) * e


@triton.jit
def gate_row(x, x_in, is_gate, M: tl.constexpr, NORM: tl.constexpr):
    """Unnormalised gates of a row from logits x [MP, BN] and x_in [1, BN], their derivatives, 1/denominator, pull.

    `is_gate` [MP, 1] is false in the rows that pad M to a power of two. `pull` is 1 where the denominator moves with the
    gates and 0 where it is a constant.
    """
    if NORM == SOFTMAX:
        top = tl.maximum(tl.max(tl.where(is_gate, x, float("-inf")), axis=0, keep_dims=True), x_in) * LOG2E
        f = tl.where(is_gate, tl.exp2(x * LOG2E - top), 0.0)
        f_in = tl.exp2(x_in * LOG2E - top)
        df = f
        df_in = f_in
        r = reciprocal(rows_sum(f, is_gate) + f_in)
        pull = tl.full(f_in.shape, 1.0, tl.float32)
    else:
        if NORM == SINH:
            top = tl.maximum(tl.max(tl.where(is_gate, tl.abs(x), 0.0), axis=0, keep_dims=True), tl.abs(x_in))
            f, df = scaled_sinh(x, top)
            f_in, df_in = scaled_sinh(x_in, top)
        else:
            f, df = activation(x, NORM)
            f_in, df_in = activation(x_in, NORM)
        f = tl.where(is_gate, f, 0.0)
        total = rows_sum(tl.abs(f), is_gate) + tl.abs(f_in)
        if NORM == NONE:
            r = tl.full(total.shape, 1.0, tl.float32)
            pull = tl.zeros(total.shape, tl.float32)
        elif NORM == RELU:
            r = reciprocal(total + (M + 1) * RELU_FLOOR)
            pull = tl.full(total.shape, 1.0, tl.float32)
        else:
            r = reciprocal(tl.maximum(total, FLOOR))
            pull = tl.where(total < FLOOR, 0.0, 1.0)
    return f, f_in, df, df_in, r, pull


@triton.jit
def gate_grad(f, df, u, pulled, q, NORM: tl.constexpr):
    """q f' (u - sign(f) h): the gradient of a logit, q being s / denominator."""
    if (NORM == SOFTMAX) or (NORM == SIGMOID) or (NORM == RELU):
        return q * (df * (u - pulled))
    elif NORM == NONE:
        return q * (df * u)
    elif NORM == SQUARE:
        return (2.0 * q) * (tl.abs(df) * u - df * pulled)  # to choose a sign would take as long as an exponential
    else:
        return q * (df * (u - tl.where(f > 0, pulled, tl.where(f < 0, -pulled, 0.0))))
