"""The numba kernels of the convolution and of linear attention, against loops in float64, and who takes them."""

import pytest
import torch
from float64 import outer, rand, read

pytest.importorskip("numba")

from fla_bdlru.fla_cpu import convolution, native_convolution, native_scan
from fla_bdlru.fla_cpu.common import are_for_numba
from fla_bdlru.fla_cpu.scan import chunk_linear_attention


def loop(q, k, v, beta, g, state):
    """[B, H, T, ...]: the formula of `chunk_linear_attention`."""
    state, outputs = v.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]) if state is None else state, []
    for t in range(q.shape[2]):
        state = state if g is None else g[:, :, t].exp()[..., None] * state
        u = v[:, :, t] if beta is None else beta[:, :, t] * (v[:, :, t] - read(state, k[:, :, t]))
        state = state + outer(k[:, :, t], u)
        outputs.append(read(state, q[:, :, t]))
    return torch.stack(outputs, 2), state


def attention_inputs(B, H, T, K, V, delta, decays, state):
    beta, g = torch.rand(B, H, T, 1).double() if delta else None, -torch.rand(B, H, T, decays).double() if decays else None
    return [0.4 * rand(B, H, T, K), 0.4 * rand(B, H, T, K), rand(B, H, T, V), beta, g, rand(B, H, K, V) if state else None]


ATTENTION = {
    "a decay a head, delta rule": (2, 2, 33, 27, 54, True, 1, False),
    "no decay, five tiles in two groups": (1, 1, 66, 9, 78, True, 0, True),
    "a decay a key": (2, 2, 40, 13, 16, False, 13, True),
    "a decay a key, delta rule, more than two groups": (1, 2, 34, 5, 130, True, 5, True),
    "neither": (3, 1, 32, 4, 4, False, 0, False),
    "one key, a decay a head": (1, 2, 65, 1, 17, False, 1, True),
    "one step": (1, 1, 1, 3, 4, True, 1, True),
}


@pytest.mark.parametrize("case", ATTENTION.values(), ids=ATTENTION)
def test_linear_attention(check, case, poisoned_empty, monkeypatch):
    """Outputs, the last state and every gradient; by chunks, what they are for who traces, they come out the same."""
    calls, run = [], native_scan.LinearAttention.apply
    monkeypatch.setattr(native_scan.LinearAttention, "apply", lambda *args: calls.append(0) or run(*args))
    inputs = attention_inputs(*case)
    check(chunk_linear_attention, loop, inputs)
    assert calls
    monkeypatch.setenv("FLA_BDLRU_BACKEND", "torch")
    check(chunk_linear_attention, loop, inputs)
    assert len(calls) == 1


def test_an_output_without_a_gradient():
    """The loss of the last state alone, and of the outputs alone."""
    inputs = [None if t is None else t.float().requires_grad_() for t in attention_inputs(1, 2, 35, 3, 5, True, 1, True)]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    for which in range(2):
        got = torch.autograd.grad(chunk_linear_attention(*inputs)[which].sum(), inputs, allow_unused=True)
        expected = torch.autograd.grad(loop(*exact)[which].sum(), exact, allow_unused=True)
        for x, y in zip(got, expected):
            torch.testing.assert_close(x.double(), torch.zeros_like(x).double() if y is None else y, rtol=1e-5, atol=1e-5)


def test_what_is_forgotten_passes_no_gradient():
    """A log decay of -inf."""
    q, k, v, _, g, state = (
        None if t is None else t.float().requires_grad_() for t in attention_inputs(1, 1, 4, 2, 3, False, 1, True)
    )
    with torch.no_grad():
        g[:, :, 2] = -torch.inf
    o, _ = chunk_linear_attention(q, k, v, None, g, state)
    o[:, :, 2:].sum().backward()
    assert not state.grad.any()
    assert not v.grad[:, :, :2].any()
    assert v.grad[:, :, 2:].all()
    assert g.grad.isfinite().all()


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(threads):
    inputs = [None if t is None else t.float().requires_grad_() for t in attention_inputs(4, 3, 70, 32, 64, True, 32, True)]
    x, w = (rand(*shape).float().requires_grad_() for shape in ((8, 700, 70), (70, 4)))

    def run():
        o, state = chunk_linear_attention(*inputs)
        y = native_convolution.CausalDepthwise.apply(x, w)
        loss = o.square().sum() + state.sum() + y.square().sum()
        return [o, state, y, *torch.autograd.grad(loss, [t for t in (*inputs, x, w) if t is not None])]

    alone = run()
    torch.set_num_threads(threads)
    try:
        together = run()
    finally:
        torch.set_num_threads(1)
    assert all(map(torch.equal, alone, together))


@pytest.mark.parametrize("B, T, D, W", [(2, 9, 5, 4), (3, 40, 16, 4), (1, 7, 300, 3), (2, 2, 37, 4), (1, 5, 16, 1)])
def test_convolution(check, B, T, D, W, poisoned_empty, monkeypatch):
    """All lanes, some, more than a task has tiles; sequences that are shorter than the filter."""

    def reference(x, w, bias):
        earlier = torch.cat([x.new_zeros(B, W - 1, D), x], 1)
        return sum(earlier[:, n : n + T] * w[:, n] for n in range(W)) + bias

    calls, run = [], native_convolution.CausalDepthwise.apply
    monkeypatch.setattr(native_convolution.CausalDepthwise, "apply", lambda *args: calls.append(0) or run(*args))
    inputs = [rand(B, T, D), rand(D, W), rand(D)]
    check(lambda *args: convolution._sequences(*args, None), reference, inputs)
    assert len(calls) == 1
    monkeypatch.setenv("FLA_BDLRU_BACKEND", "torch")
    check(lambda *args: convolution._sequences(*args, None), reference, inputs)
    assert len(calls) == 1


@pytest.mark.parametrize("loss", [lambda o: o.sum(), lambda o: o.square().sum()], ids=["a constant gradient", "one of o"])
def test_second_derivatives_are_refused(loss, monkeypatch):
    """Also where the incoming gradient asks for none, but the inputs that the backward reads do."""
    leaves = [rand(1, 1, 3, 2).float().requires_grad_() for _ in range(3)]
    x, w = (rand(*shape).float().requires_grad_() for shape in ((1, 3, 5), (5, 2)))

    def second():
        attended, convolved = chunk_linear_attention(*leaves, None, None, None)[0], convolution._sequences(x, w, None, None)
        for o, of in ((attended, leaves[2]), (convolved, w)):
            (grad,) = torch.autograd.grad(loss(o), of, create_graph=True)
            yield grad.sum().backward

    for backward in second():
        with pytest.raises(RuntimeError, match=r"cannot be differentiated again.*FLA_BDLRU_BACKEND=torch"):
            backward()
    monkeypatch.setenv("FLA_BDLRU_BACKEND", "torch")
    for backward in second():
        backward()


def test_kernels_are_for_plain_float32():
    """float64, tensors that are traced or transformed, and subclasses go by PyTorch's operators."""

    class Mine(torch.Tensor):
        pass

    x = torch.randn(2)
    assert are_for_numba(x, torch.nn.Parameter(x), None)
    assert not any(map(are_for_numba, (x.double(), x.bfloat16(), x.to("meta"), x.as_subclass(Mine))))
    seen = []
    torch.func.vmap(lambda row: seen.append(are_for_numba(row)) or row)(torch.randn(2, 3))
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        seen.append(are_for_numba(x))
    assert seen == [False, False]
