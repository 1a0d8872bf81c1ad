"""The references themselves: against the recurrences written out in scalars, and by gradcheck."""

import math

import pytest
import torch
from references import NAIVE, REFERENCES

from fla_bdlru.ops import GATE_NORMS, naive_recurrent_bdlru, naive_recurrent_hlru, normalize_gates

each_reference = pytest.mark.parametrize("naive", REFERENCES.values(), ids=REFERENCES)
CU_SEQLENS = (None, [0, 0, 3, 4, 9, 9])


def scalar_gates(logits: list[float], gate_norm: str) -> list[float]:
    """DESIGN's formulas, one row, in Python floats."""
    if gate_norm == "none":
        return logits
    f = {
        "softmax": math.exp,
        "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
        "relu": lambda x: max(x, 0.0),
        "tanh": math.tanh,
        "silu": lambda x: x / (1 + math.exp(-x)),
        "linear": lambda x: x,
        "square": lambda x: x * abs(x),
        "sinh": lambda x: math.sinh(x) * math.exp(-max(map(abs, logits))),
    }[gate_norm]
    f = [f(x) for x in logits]
    if gate_norm == "relu":
        return [x / sum(y + 1e-3 for y in f) for x in f]
    return [x / max(sum(abs(y) for y in f), 1e-6) for x in f]


@pytest.mark.parametrize("gate_norm", GATE_NORMS)
def test_normalize_gates_equals_scalars(gate_norm):
    g = torch.randn(20, 4, dtype=torch.float64) * 3
    expected = torch.tensor([scalar_gates(row, gate_norm) for row in g.tolist()], dtype=torch.float64)
    torch.testing.assert_close(normalize_gates(g, gate_norm), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gate_norm", ["square", "sinh"])
def test_signed_norms_that_can_become_exact(gate_norm):
    """Logits of 1e4 are gates of one and zero; a small one leaks its square, or exponentially little; signs stay."""
    p = normalize_gates(torch.tensor([[1e4, -1.0, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 0.0], [8.0, -0.8, 0.0]]), gate_norm)
    assert p[0].tolist() == pytest.approx([1, -1e-8 if gate_norm == "square" else 0, 0], abs=1e-9)
    torch.testing.assert_close(p[1], torch.tensor([-1.0, 1.0, 1.0]) / 3)
    assert p[2].tolist() == [0, 0, 0]
    leak = 0.01 / 1.01 if gate_norm == "square" else math.sinh(0.8) / (math.sinh(8) + math.sinh(0.8))
    assert p[3, 1].item() == pytest.approx(-leak, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gate_norm", GATE_NORMS)
def test_normalize_gates_of_half_types(gate_norm, dtype):
    """Sums and squares are float32's; 300 x 300 is more than float16 holds."""
    g = torch.tensor([[300.0, 1.0, -200.0], [0.01, -0.02, 0.03]], dtype=dtype)
    p = normalize_gates(g, gate_norm)
    assert p.dtype == dtype
    assert torch.equal(p, normalize_gates(g.float(), gate_norm).to(dtype))


def test_sinh_has_its_slope_at_zero():
    g = torch.tensor([[0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(normalize_gates(g, "sinh")[0, 0], g)
    assert slope[0, 0].item() == pytest.approx(1 / math.sinh(2))


def test_normalize_gates_below_the_floor():
    """Where sum|f| < 1e-6 the denominator is the floor, a constant."""
    g = torch.full((1, 3), 1e-8, dtype=torch.float64, requires_grad=True)
    p = normalize_gates(g, "linear")
    torch.testing.assert_close(p, torch.full_like(p, 1e-2))
    assert torch.autograd.grad(p[0, 0], g)[0].tolist() == [[1e6, 0.0, 0.0]]
    assert normalize_gates(torch.full((1, 3), -5.0), "relu").tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("gate_norm", GATE_NORMS)
def test_naive_recurrent_bdlru_equals_scalars(gate_norm):
    T, H, M = 5, 2, 3
    v, g = torch.randn(1, T, H, M, dtype=torch.float64), torch.randn(1, T, H, M, M + 1, dtype=torch.float64)
    h0 = torch.randn(1, H, M, dtype=torch.float64)
    o, ht = naive_recurrent_bdlru(v, g, h0, True, gate_norm)
    for k in range(H):
        h = h0[0, k].tolist()
        for t in range(T):
            p = [scalar_gates(g[0, t, k, i].tolist(), gate_norm) for i in range(M)]
            h = [sum(p[i][j] * h[j] for j in range(M)) + p[i][M] * v[0, t, k, i].item() for i in range(M)]
            assert o[0, t, k].tolist() == pytest.approx(h, rel=1e-12)
        assert ht[0, k].tolist() == pytest.approx(h, rel=1e-12)


@pytest.mark.parametrize("gate_norm", GATE_NORMS)
def test_naive_recurrent_hlru_equals_scalars(gate_norm):
    """h_t = sum_i p[i-1] h_{t-i} + p[M] v_t: a transposed companion matrix would be another model."""
    T, N, M = 6, 2, 3
    v, g = torch.randn(1, T, N, dtype=torch.float64), torch.randn(1, T, N, M + 1, dtype=torch.float64)
    h0 = torch.randn(1, N, M, dtype=torch.float64)
    o, ht = naive_recurrent_hlru(v, g, h0, True, gate_norm)
    for n in range(N):
        past = h0[0, n].tolist()  # newest first
        for t in range(T):
            p = scalar_gates(g[0, t, n].tolist(), gate_norm)
            h = sum(p[i - 1] * past[i - 1] for i in range(1, M + 1)) + p[M] * v[0, t, n].item()
            past = [h, *past[:-1]]
            assert o[0, t, n].item() == pytest.approx(h, rel=1e-12)
        assert ht[0, n].tolist() == pytest.approx(past, rel=1e-12)


@pytest.mark.parametrize("cu_seqlens", CU_SEQLENS, ids=["dense", "packed"])
@pytest.mark.parametrize("gate_norm", GATE_NORMS)
@each_reference
def test_naive_gradcheck(naive, gate_norm, cu_seqlens):
    cu_seqlens = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    num_seqs = 1 if cu_seqlens is None else len(cu_seqlens) - 1
    chunk = {"chunk_size": 4} if "chunk" in naive.__name__ else {}
    shape, M = ((1, 9, 1, 2), 2) if "bdlru" in naive.__name__ else ((1, 9, 2), 3)
    v = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    g = torch.randn(*shape, M + 1, dtype=torch.float64, requires_grad=True)
    h0 = torch.randn(num_seqs, shape[2], M, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, g, h: naive(v, g, h, True, gate_norm, cu_seqlens, **chunk), (v, g, h0))


@pytest.mark.parametrize("T", [1, 2, 3, 4])
@each_reference
def test_naive_gradcheck_of_short_sequences(naive, T):
    """Shorter than a chunk of 4, and as long as one."""
    chunk = {"chunk_size": 4} if "chunk" in naive.__name__ else {}
    shape, M = ((1, T, 1, 2), 2) if "bdlru" in naive.__name__ else ((1, T, 2), 3)
    shapes = shape, (*shape, M + 1), (1, shape[2], M)
    leaves = [torch.randn(x, dtype=torch.float64, requires_grad=True) for x in shapes]
    for gate_norm in GATE_NORMS:
        assert torch.autograd.gradcheck(lambda v, g, h: naive(v, g, h, True, gate_norm, **chunk), leaves)  # noqa: B023


@pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 7, 8, 9, 13])
@pytest.mark.parametrize("name, shape, M", [("bdlru", (3, 2), 2), ("hlru", (3,), 4)])
def test_naive_chunk_equals_recurrent(name, shape, M, T):
    recurrent, chunk = NAIVE[name], REFERENCES[f"naive_chunk_{name}"]
    v, g = torch.randn(2, T, *shape, dtype=torch.float64), torch.randn(2, T, *shape, M + 1, dtype=torch.float64)
    h0 = torch.randn(2, 3, M, dtype=torch.float64)
    for a, b in zip(chunk(v, g, h0, True, chunk_size=4), recurrent(v, g, h0, True)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name, shape", [("bdlru", (3, 2)), ("hlru", (3,))])
@pytest.mark.parametrize("chunk_size, message", [(0, "be positive; got 0"), (2.0, "be an integer; got 2.0")])
def test_errors_of_chunk_size(name, shape, chunk_size, message):
    with pytest.raises(ValueError, match=f"chunk_size must {message}"):
        REFERENCES[f"naive_chunk_{name}"](torch.randn(1, 5, *shape), torch.randn(1, 5, *shape, 3), chunk_size=chunk_size)


@each_reference
def test_naive_returns_a_state_where_asked_to(naive):
    shape = (1, 5, 3, 2) if "bdlru" in naive.__name__ else (1, 5, 3)
    v, g = torch.randn(shape), torch.randn(*shape, 3)
    o, state = naive(v, g)
    assert state is None
    assert torch.equal(naive(v, g, torch.zeros(1, 3, 2), True)[0], o)


@pytest.mark.parametrize("cu_seqlens", CU_SEQLENS, ids=["dense", "packed"])
@pytest.mark.parametrize("name, shape, M", [("bdlru", (2, 2), 2), ("hlru", (2,), 3)])
def test_naive_chunk_second_derivatives(name, shape, M, cu_seqlens):
    """Its backward is written by hand, and so is that one's: both equal what autograd makes of the loop."""
    cu_seqlens = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    num_seqs = 1 if cu_seqlens is None else len(cu_seqlens) - 1
    shapes = (1, 9, *shape), (1, 9, *shape, M + 1), (num_seqs, 2, M)
    leaves = [torch.randn(x, dtype=torch.float64, requires_grad=True) for x in shapes]
    results = []
    for naive, chunk in ((NAIVE[name], {}), (REFERENCES[f"naive_chunk_{name}"], {"chunk_size": 4})):
        o, ht = naive(*leaves, True, cu_seqlens=cu_seqlens, **chunk)
        first = torch.autograd.grad(o.sin().sum() + ht.sin().sum(), leaves, create_graph=True)
        results.append((*first, *torch.autograd.grad(sum(x.square().sum() for x in first), leaves)))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@each_reference
def test_naive_keeps_float32_under_autocast(naive):
    """Forward and backward, as if autocast were off: a state kept in bfloat16 forgets."""
    shape, M = ((1, 40, 3, 2), 2) if "bdlru" in naive.__name__ else ((1, 40, 3), 2)
    inputs = [torch.randn(shape), torch.randn(*shape, M + 1), torch.randn(2, 3, M)]
    results = []
    for enabled in (False, True):
        leaves = [x.clone().requires_grad_() for x in inputs]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            o, ht = naive(*leaves, True, cu_seqlens=torch.tensor([0, 33, 40]))
            (o.square().sum() + ht.square().sum()).backward()
        results.append([o, ht, *(x.grad for x in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gate_norm", GATE_NORMS)
@each_reference
def test_naive_half_types_compute_in_float32(naive, gate_norm, dtype):
    """Against float64 on the same rounded inputs: outputs are off by their own rounding, states by float32's."""
    shape, M = ((2, 33, 3, 4), 4) if "bdlru" in naive.__name__ else ((2, 33, 3), 4)
    # positive logits: rows of signed gates may nearly cancel
    v, g, h0 = torch.randn(shape).to(dtype), (torch.rand(*shape, M + 1) / 4 + 0.01).to(dtype), torch.randn(2, 3, M)
    h0.requires_grad_()
    o, ht = naive(v, g, h0, True, gate_norm)
    exact = h0.detach().double().requires_grad_()
    exact_o, exact_ht = naive(v.double(), g.double(), exact, True, gate_norm)
    assert o.dtype == dtype
    assert ((o - exact_o).abs() <= torch.finfo(dtype).eps / 2 * exact_o.abs() + 2e-6).all()
    torch.testing.assert_close(ht.double(), exact_ht, rtol=1e-5, atol=2e-6)
    for state, x in ((ht, h0), (exact_ht, exact)):
        state.square().sum().backward(inputs=[x])
    torch.testing.assert_close(h0.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)
