"""Gate norms inside a Triton kernel: one row of logits as a tile whose first axis stays within a lane."""

import triton
import triton.language as tl

from fla_bdlru.ops.gate_norm import EPS, GATE_NORMS, RELU_EPS

NORM_CODES = {name: code for code, name in enumerate(GATE_NORMS)}
SOFTMAX = tl.constexpr(NORM_CODES["softmax"])
SIGMOID = tl.constexpr(NORM_CODES["sigmoid"])
RELU = tl.constexpr(NORM_CODES["relu"])
TANH = tl.constexpr(NORM_CODES["tanh"])
SILU = tl.constexpr(NORM_CODES["silu"])
NONE = tl.constexpr(NORM_CODES["none"])
LOG2E = tl.constexpr(1.4426950408889634)
FLOOR = tl.constexpr(EPS)
RELU_FLOOR = tl.constexpr(RELU_EPS)


@triton.jit
def activation(x, NORM: tl.constexpr):
    """f(x) and f'(x); both signs of a large x are safe."""
    if NORM == RELU:
        f = tl.maximum(x, 0.0)
        df = tl.where(x > 0, 1.0, 0.0)
    elif NORM == SIGMOID:
        e = tl.exp2(-tl.abs(x) * LOG2E)
        d = 1.0 / (1.0 + e)
        f = tl.where(x < 0, e, 1.0) * d
        df = e * d * d
    elif NORM == SILU:
        e = tl.exp2(-tl.abs(x) * LOG2E)
        d = 1.0 / (1.0 + e)
        s = tl.where(x < 0, e, 1.0) * d
        f = x * s
        df = s + x * (e * d * d)
    elif NORM == TANH:
        a = tl.abs(x)
        e = tl.exp2(a * (-2.0 * LOG2E))
        d = 1.0 / (1.0 + e)
        # near 0, 1 - e cancels: the series there
        y = tl.where(a < 0.1, a * (1.0 + x * x * (-0.33333334 + x * x * (0.13333334 - 0.05396825 * x * x))), (1.0 - e) * d)
        f = tl.where(x < 0, -y, y)
        df = 4.0 * e * d * d
    else:
        f = x
        df = x * 0.0 + 1.0
    return f, df


@triton.jit
def gate_row(x, x_in, is_gate, M: tl.constexpr, NORM: tl.constexpr):
    """Unnormalised gates of a row from logits x [MP, BN] and x_in [1, BN], their derivatives, 1/denominator, pull.

    `is_gate` [MP, 1] is false in the rows that pad M to a power of two. `pull` is 1 where the denominator moves with the
    gates and 0 where it is a constant.
    """
    if NORM == SOFTMAX:
        x = tl.where(is_gate, x, float("-inf"))
        top = tl.maximum(tl.max(x, axis=0, keep_dims=True), x_in)
        f = tl.exp2((x - top) * LOG2E)
        f_in = tl.exp2((x_in - top) * LOG2E)
        df = f
        df_in = f_in
        total = tl.sum(f, axis=0, keep_dims=True) + f_in
        r = 1.0 / total
        pull = f_in * 0.0 + 1.0
    else:
        f, df = activation(x, NORM)
        f_in, df_in = activation(x_in, NORM)
        f = tl.where(is_gate, f, 0.0)
        total = tl.sum(tl.abs(f), axis=0, keep_dims=True) + tl.abs(f_in)
        if NORM == NONE:
            r = total * 0.0 + 1.0
            pull = total * 0.0
        elif NORM == RELU:
            r = 1.0 / (total + (M + 1) * RELU_FLOOR)
            pull = total * 0.0 + 1.0
        else:
            r = 1.0 / tl.maximum(total, FLOOR)
            pull = tl.where(total < FLOOR, 0.0, 1.0)
    return f, f_in, df, df_in, r, pull


@triton.jit
def gate_grad(f, df, u, pulled, NORM: tl.constexpr):
    """f' (u - sign(f) h): the gradient of a logit up to s / denominator."""
    if (NORM == SOFTMAX) or (NORM == SIGMOID) or (NORM == RELU):
        return df * (u - pulled)
    elif NORM == NONE:
        return df * u
    else:
        return df * (u - tl.where(f > 0, pulled, tl.where(f < 0, -pulled, 0.0)))
