"""Gate norms on vectors of lanes: exp, the activations with their derivatives, and the sums of one row of gates."""

from __future__ import annotations

from numba import njit
from numba.extending import overload

from fla_bdlru.ops.common.gate_norm import EPS, GATE_NORMS, RELU_EPS
from fla_bdlru.ops.cpu.lanes import absolute, larger, load, power_of_two, prefetch_read, put, splat, where

SOFTMAX, SIGMOID, RELU, TANH, SILU, LINEAR, SQUARE, SINH, NONE = range(len(GATE_NORMS))
NORM_CODES = {name: code for code, name in enumerate(GATE_NORMS)}

LOG2E = 1.4426950408889634
LN2_HIGH = 0.693145751953125  # 17 bits, so that k * LN2_HIGH is exact
LN2_LOW = 1.428606765330187e-06
ROUND = 12582912.0  # 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
EXP_MIN = -88.0  # below, exp gives exactly 0
AHEAD = 8192  # bytes of logits between what is worked on and what is fetched
TINY = 1.1754943508222875e-38  # the smallest normal float32


@njit(forceinline=True)
def exp_parts(x):
    """(s, q) with exp(x) = s + s * q for x <= 88: s is a power of two (or 0), q in [-0.3, 0.42] is accurate near 0."""
    x = where(x < EXP_MIN, EXP_MIN, x)
    shifted = x * LOG2E + ROUND
    k = shifted - ROUND
    r = x - k * LN2_HIGH - k * LN2_LOW
    # minimax for (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2; error 3e-9 of exp(r)
    p = r * 1.38144670593e-3 + 8.36878041118e-3
    p = p * r + 4.16683942109e-2
    p = p * r + 1.66665201078e-1
    p = p * r + 4.99999934125e-1
    return power_of_two(shifted), p * (r * r) + r


@njit(forceinline=True)
def exp(x):
    """exp(x) to about 1 ulp for x <= 88; 0 below -88."""
    s, q = exp_parts(x)
    return s * q + s


@njit(forceinline=True)
def expm1(x):
    """exp(x) - 1, accurate near 0."""
    s, q = exp_parts(x)
    return s * q + (s - 1.0)


@njit(forceinline=True)
def sigmoid(x):
    """Logistic function and its derivative, neither of which cancels at large |x|."""
    e = exp(0.0 - absolute(x))
    d = 1.0 / (e + 1.0)
    return where(x < 0.0, e, 1.0) * d, e * d * d


@njit(forceinline=True)
def relu(x):
    """max(x, 0), NaN kept, and its derivative (0 at 0)."""
    return where(x < 0.0, 0.0, x), where(x > 0.0, splat(1.0), 0.0)


@njit(forceinline=True)
def tanh(x):
    """tanh and its derivative from expm1(-2|x|), so that small x keep their digits."""
    m = expm1(absolute(x) * -2.0)
    d = 1.0 / (m + 2.0)
    y = (0.0 - m) * d
    return where(x < 0.0, 0.0 - y, y), (m + 1.0) * d * d * 4.0


@njit(forceinline=True)
def silu(x):
    """x * sigmoid(x) and its derivative."""
    y, dy = sigmoid(x)
    return x * y, x * dy + y


@njit(forceinline=True)
def identity(x):
    """x and its derivative."""
    return x, splat(1.0)


@njit(forceinline=True)
def square(x):
    """x |x|, and 2x: its derivative with the sign of x, as `gate_grad` takes it."""
    return x * absolute(x), x * 2.0


_ACTIVATIONS = {SIGMOID: sigmoid, RELU: relu, TANH: tanh, SILU: silu, LINEAR: identity, SQUARE: square, NONE: identity}


@njit(forceinline=True)
def _softmax_row(g, offset, stride, mask, K, f):
    top, other = load(g, offset, mask), load(g, offset + stride, mask)  # two chains, as each is a wait for the one before
    for k in range(2, K, 2):
        top = larger(load(g, offset + k * stride, mask), top)
    for k in range(3, K, 2):
        other = larger(load(g, offset + k * stride, mask), other)
    top = larger(other, top)
    total = other = splat(0.0)
    for k in range(0, K, 2):
        e = exp(load(g, offset + k * stride, mask) - top)
        put(f, k, e)
        total = total + e
    for k in range(1, K, 2):
        e = exp(load(g, offset + k * stride, mask) - top)
        put(f, k, e)
        other = other + e
    return total + other


@njit(forceinline=True)
def _softmax_pair(g, offset, stride, mask, K, f):
    """`_softmax_row` of two, of which one is exp(0), to the same bits."""
    x, y = load(g, offset, mask), load(g, offset + stride, mask)
    top = larger(y, x)
    e = exp((x - top) + (y - top))
    put(f, 0, where(x < y, e, 1.0))
    put(f, 1, where(x < y, 1.0, e))
    return e + 1.0


@njit(forceinline=True)
def _sinh_row(g, offset, stride, mask, K, f, df):
    top = splat(0.0)
    for k in range(K):
        top = larger(absolute(load(g, offset + k * stride, mask)), top)
    total = splat(0.0)
    for k in range(K):
        x = load(g, offset + k * stride, mask)
        a = absolute(x)
        e = exp(a - top) * 0.5
        m = expm1(a * -2.0)
        y = (0.0 - m) * e  # sinh|x| exp(-top)
        put(f, k, where(x < 0.0, 0.0 - y, y))
        put(df, k, (m + 2.0) * e)
        total = total + y
    return total


@njit(forceinline=True)
def rows_ahead(K, width):
    """How many rows of K gates and `width` lanes to fetch ahead."""
    return max(1, AHEAD // (4 * K * width))


def gate_row(g, offset, ahead, stride, mask, K, norm, f, df):
    """f(g_k) and f'(g_k) of K logits, and sum|f|; softmax leaves `df` alone, as there f' = f.

    `ahead` is how far off, in elements, the logits lie that will be wanted some time later: they are fetched into the cache.
    `norm` is a compile-time constant. What a caller does not use (`df` in a forward pass) LLVM drops.
    """
    raise NotImplementedError("for kernels only")


@overload(gate_row, prefer_literal=True, jit_options={"forceinline": True})
def _gate_row(g, offset, ahead, stride, mask, K, norm, f, df):
    if norm.literal_value == SOFTMAX:
        softmax = _softmax_pair if K.literal_value == 2 else _softmax_row

        def row(g, offset, ahead, stride, mask, K, norm, f, df):
            for k in range(K):
                prefetch_read(g, offset + ahead + k * stride)
            return softmax(g, offset, stride, mask, K, f)

        return row

    if norm.literal_value == SINH:

        def row(g, offset, ahead, stride, mask, K, norm, f, df):
            for k in range(K):
                prefetch_read(g, offset + ahead + k * stride)
            return _sinh_row(g, offset, stride, mask, K, f, df)

        return row

    activation = _ACTIVATIONS[norm.literal_value]

    def row(g, offset, ahead, stride, mask, K, norm, f, df):
        total = splat(0.0)
        for k in range(K):
            prefetch_read(g, offset + ahead + k * stride)
            y, dy = activation(load(g, offset + k * stride, mask))
            put(f, k, y)
            put(df, k, dy)
            total = total + absolute(y)
        return total

    return row


def denominator(total, K, norm):
    """What f is divided by, from sum|f|."""
    raise NotImplementedError("for kernels only")


@overload(denominator, prefer_literal=True, jit_options={"forceinline": True})
def _denominator(total, K, norm):
    code = norm.literal_value
    if code == SOFTMAX:
        return lambda total, K, norm: total
    if code == NONE:
        return lambda total, K, norm: splat(1.0)
    if code == RELU:
        return lambda total, K, norm: total + K * RELU_EPS
    return lambda total, K, norm: where(total < EPS, EPS, total)


def pull(total, h, norm):
    """h where the denominator moves with the gates, 0 where it is the constant floor (or there is none)."""
    raise NotImplementedError("for kernels only")


@overload(pull, prefer_literal=True, jit_options={"forceinline": True})
def _pull(total, h, norm):
    code = norm.literal_value
    if code == NONE:
        return lambda total, h, norm: splat(0.0)
    if code in (SOFTMAX, RELU):
        return lambda total, h, norm: h
    return lambda total, h, norm: where(total < EPS, 0.0, h)


def gate_grad(df, f, u, pulled, norm):
    """f' (u - sign(f) h): the gradient of one logit, up to the factor s / denominator of its row."""
    raise NotImplementedError("for kernels only")


@overload(gate_grad, prefer_literal=True, jit_options={"forceinline": True})
def _gate_grad(df, f, u, pulled, norm):
    code = norm.literal_value
    if code == SOFTMAX:
        return lambda df, f, u, pulled, norm: f * (u - pulled)
    if code in (SIGMOID, RELU, NONE):
        return lambda df, f, u, pulled, norm: df * (u - pulled)
    if code == SQUARE:
        return lambda df, f, u, pulled, norm: absolute(df) * u - df * pulled

    def signed(df, f, u, pulled, norm):
        return df * (u - where(f > 0.0, pulled, where(f < 0.0, 0.0 - pulled, 0.0)))

    return signed


@njit(forceinline=True)
def flush(x):
    """0 for values below the normal range, where arithmetic is slow and a decaying state would stay for ever."""
    return where(absolute(x) < TINY, 0.0, x)
