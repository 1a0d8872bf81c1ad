"""The numba kernels of linear attention, selective scan, convolution, norms and gates, against formulas in float64."""

import pytest
import torch
from float64 import outer, rand, read

pytest.importorskip("numba")

import torch.nn.functional as F
from fla.modules.activations import ops as activations
from fla.modules.causal_conv1d import causal_conv1d
from fla.modules.norm import fused_norm_gate, layernorm, layernorm_gated

from fla_bdlru.fla_cpu import mamba, native_activation, native_convolution, native_norm, native_scan, native_selective_scan
from fla_bdlru.fla_cpu.common import are_for_numba
from fla_bdlru.fla_cpu.scan import chunk_linear_attention, linear_scan
from fla_bdlru.ops import chunk_bdlru


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


@pytest.mark.parametrize("decays", [1, 4])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_small_decays_after_large_ones(check, backend, decays, monkeypatch):
    """Their sums from a chunk's start are large, and cancel between two later steps."""
    monkeypatch.setenv("FLA_BDLRU_BACKEND", backend)
    inputs = attention_inputs(1, 2, 40, 4, 3, True, decays, True)
    inputs[4] *= 0.03
    inputs[4][:, :, ::8] = -900
    check(chunk_linear_attention, loop, inputs)


@pytest.mark.parametrize("decay", [-torch.inf, -1e30])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_what_is_forgotten_passes_no_gradient(backend, decay, monkeypatch):
    """A log decay of -inf, and one that would leave nothing of those after it in a sum."""
    monkeypatch.setenv("FLA_BDLRU_BACKEND", backend)
    q, k, v, _, g, state = (
        None if t is None else t.float().requires_grad_() for t in attention_inputs(1, 1, 4, 2, 3, False, 1, True)
    )
    with torch.no_grad():
        g[:, :, 2] = decay
    o, _ = chunk_linear_attention(q, k, v, None, g, state)
    later = torch.cat([torch.zeros_like(g[:, :, 2:3]), g[:, :, 3:]], 2)
    after, _ = chunk_linear_attention(*(x[:, :, 2:] for x in (q, k, v)), None, later, None)
    assert torch.allclose(o[:, :, 2:], after, atol=1e-6)
    o[:, :, 2:].sum().backward()
    assert not state.grad.any()
    assert not v.grad[:, :, :2].any()
    assert v.grad[:, :, 2:].all()
    assert g.grad.isfinite().all()


def selective_loop(x, dt, A, B, C, state):
    """h_t = exp(dt A) h_{t-1} + dt x B, y_t = h_t C."""
    h, outputs = x.new_zeros(x.shape[0], *A.shape) if state is None else state, []
    for t in range(x.shape[1]):
        h = (dt[:, t, :, None] * A).exp() * h + outer(dt[:, t] * x[:, t], B[:, t])
        outputs.append(read(h.mT, C[:, t]))
    return torch.stack(outputs, 1), h


def selective_inputs(B, T, D, N, state):
    shapes = (B, T, D), (B, T, D), (D, N), (B, T, N), (B, T, N), (B, D, N)
    x, dt, A, B, C, h0 = (rand(*shape) for shape in shapes)
    return [x, dt.abs(), -A.abs(), B, C, h0 if state else None]


def selective_scan(x, dt, A, B, C, state):
    return mamba._selective_scan(x, dt, A, B, C, None if state is None else {"recurrent_state": state})


SELECTIVE = {
    "three tiles, the last in part, three cells": (2, 70, 37, 5, True),
    "whole tiles, one step more than a cell": (3, 33, 32, 16, False),
    "one of each": (1, 1, 1, 1, True),
}


@pytest.mark.parametrize("case", SELECTIVE.values(), ids=SELECTIVE)
def test_selective_scan(check, case, poisoned_empty, monkeypatch):
    """Outputs, the last state and every gradient, also of what has no numba."""
    calls, run = [], native_selective_scan.SelectiveScan.apply
    monkeypatch.setattr(native_selective_scan.SelectiveScan, "apply", lambda *args: calls.append(0) or run(*args))
    inputs = selective_inputs(*case)
    check(selective_scan, selective_loop, inputs)
    assert calls
    monkeypatch.setenv("FLA_BDLRU_BACKEND", "torch")
    check(selective_scan, selective_loop, inputs)
    assert len(calls) == 1


SCANS = {
    "linear attention": (chunk_linear_attention, loop, lambda: attention_inputs(1, 1, 35, 3, 5, True, 1, True)),
    "selective scan": (selective_scan, selective_loop, lambda: selective_inputs(1, 35, 5, 3, True)),
}


@pytest.mark.parametrize("scan", SCANS)
def test_an_output_without_a_gradient(scan):
    """The loss of the last state alone, and of the outputs alone."""
    fn, formula, make = SCANS[scan]
    inputs = [t.float().requires_grad_() for t in make()]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    for which in range(2):
        got = torch.autograd.grad(fn(*inputs)[which].sum(), inputs, allow_unused=True)
        expected = torch.autograd.grad(formula(*exact)[which].sum(), exact, allow_unused=True)
        for x, y in zip(got, expected):
            torch.testing.assert_close(x.double(), torch.zeros_like(x).double() if y is None else y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(threads):
    inputs = [None if t is None else t.float().requires_grad_() for t in attention_inputs(4, 3, 70, 32, 64, True, 32, True)]
    selective = [t.float().requires_grad_() for t in selective_inputs(5, 120, 100, 16, True)]
    x, gate, w, norm = (rand(*shape).float().requires_grad_() for shape in ((8, 700, 70), (8, 700, 70), (70, 4), (70,)))

    def run():
        o, state = chunk_linear_attention(*inputs)
        y = causal_conv1d(x, w, activation="silu")[0]
        z = fused_norm_gate.layer_norm_gated(activations.swiglu(y, x), gate, norm, norm, "swish", prenorm=False)
        scanned, last = selective_scan(*selective)
        loss = o.square().sum() + state.sum() + z.square().sum() + scanned.square().sum() + last.sum()
        leaves = [t for t in (*inputs, *selective, x, gate, w, norm) if t is not None]
        return [o, state, y, z, scanned, last, *torch.autograd.grad(loss, leaves)]

    alone = run()
    torch.set_num_threads(threads)
    try:
        together = run()
    finally:
        torch.set_num_threads(1)
    assert all(map(torch.equal, alone, together))


@pytest.fixture
def counted(monkeypatch):
    """`counted(module)`: a list that grows with each call of a module's forward and backward."""

    def count(module):
        calls = []
        for name in ("forward", "backward"):
            run = getattr(module, name)
            monkeypatch.setattr(
                module, name, lambda *args, run=run, name=name, **rest: calls.append(name) or run(*args, **rest)
            )
        return calls

    return count


def convolve(x, w, bias, active):
    T, W = x.shape[1], w.shape[1]
    earlier = torch.cat([x.new_zeros(x.shape[0], W - 1, x.shape[2]), x], 1)
    y = sum(earlier[:, n : n + T] * w[:, n] for n in range(W)) + (0 if bias is None else bias)
    return F.silu(y) if active else y


@pytest.mark.parametrize("active", [False, True], ids=["linear", "silu"])
@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("B, T, D, W", [(2, 9, 5, 4), (3, 40, 16, 4), (1, 7, 300, 3), (2, 2, 37, 4), (1, 5, 16, 1)])
def test_convolution(check, counted, B, T, D, W, biased, active, poisoned_empty, monkeypatch):
    """All lanes, some, more than a task has tiles; sequences that are shorter than the filter."""
    calls = counted(native_convolution)
    inputs = [rand(B, T, D), rand(D, W), rand(D) if biased else None]

    def run(x, w, bias):
        return causal_conv1d(x, w, bias, activation="silu" if active else None)[0]

    check(run, lambda *args: convolve(*args, active), inputs)
    assert calls == ["forward", "backward"]
    monkeypatch.setenv("FLA_BDLRU_BACKEND", "torch")
    check(run, lambda *args: convolve(*args, active), inputs)
    assert len(calls) == 2


def test_convolution_beside_a_residual_and_a_last_state(check, counted):
    """The residual comes after the activation; a gradient of the last state goes by PyTorch's way."""
    calls = counted(native_convolution)

    def run(x, w, residual):
        return causal_conv1d(x, w, residual=residual, output_final_state=True, activation="silu")

    def reference(x, w, residual):
        return convolve(x, w, None, True) + residual, x[:, -w.shape[1] :].transpose(1, 2)

    check(run, reference, [rand(2, 6, 5), rand(5, 3), rand(2, 6, 5)])
    assert calls == ["forward"]


def normed(x, weight, bias, eps, is_rms_norm, groups=1):
    """Rows of the last axis in so many groups: `[..., groups * D]`."""
    rows = x.unflatten(-1, (groups, -1))
    rows = rows if is_rms_norm else rows - rows.mean(-1, keepdim=True)
    y = (rows * (rows.square().mean(-1, keepdim=True) + eps).rsqrt()).flatten(-2)
    return y * (1 if weight is None else weight) + (0 if bias is None else bias)


WIDTHS = [1, 5, 16, 64, 70]


@pytest.mark.parametrize("is_rms_norm", [True, False], ids=["rms", "layer"])
@pytest.mark.parametrize("biased, groups", [(False, 1), (True, 3)])
@pytest.mark.parametrize("D", WIDTHS)
def test_norm(check, counted, D, is_rms_norm, biased, groups, poisoned_empty):
    """With a residual, which is handed on; more rows than a task has."""
    calls = counted(native_norm)
    norm = layernorm.rms_norm if is_rms_norm else layernorm.layer_norm
    if groups > 1:
        norm = lambda *args, **kwargs: layernorm.group_norm(*args, **kwargs, num_groups=groups, is_rms_norm=is_rms_norm)  # noqa: E731
    width = groups * D
    inputs = [rand(2, 50, width), rand(2, 50, width), rand(width), rand(width) if biased else None]

    def run(x, residual, weight, bias):
        return norm(x, weight, bias, residual=residual, eps=1e-3, prenorm=True)

    def reference(x, residual, weight, bias):
        return normed(x + residual, weight, bias, 1e-3, is_rms_norm, groups), x + residual

    check(run, reference, inputs)
    assert calls == ["forward", "backward"]


def test_norm_without_weights(check, counted):
    calls = counted(native_norm)
    check(
        lambda x: layernorm.layer_norm(x, None, None, eps=1e-3), lambda x: normed(x, None, None, 1e-3, False), [rand(70, 20)]
    )
    assert calls == ["forward", "backward"]


@pytest.mark.parametrize("activation", ["swish", "sigmoid"])
@pytest.mark.parametrize("is_rms_norm", [True, False], ids=["rms", "layer"])
@pytest.mark.parametrize("D", WIDTHS)
def test_gated_norm(check, counted, D, is_rms_norm, activation, poisoned_empty):
    calls = counted(native_norm)
    norm = fused_norm_gate.rms_norm_gated if is_rms_norm else fused_norm_gate.layer_norm_gated
    gate = F.silu if activation == "swish" else torch.sigmoid
    inputs = [rand(70, D), rand(70, D), rand(70, D), rand(D), rand(D)]

    def run(x, g, residual, weight, bias):
        return norm(x, g, weight, bias, activation, residual=residual, prenorm=True, eps=1e-3)

    def reference(x, g, residual, weight, bias):
        return normed(x + residual, weight, bias, 1e-3, is_rms_norm) * gate(g), x + residual

    check(run, reference, inputs)
    assert calls == ["forward", "backward"]


def test_gated_norm_again(counted):
    """The output that a backward pass makes again."""
    calls = counted(native_norm)
    x, g, weight, bias = (rand(*shape).float() for shape in ((70, 9), (70, 9), (9,), (9,)))
    with torch.no_grad():
        y, mean, rstd, _ = fused_norm_gate.layer_norm_gated_fwd(x, g, weight, bias, "swish")
        again = fused_norm_gate.layer_norm_gated_bwd(x, x, g, weight, bias, "swish", 1e-5, mean, rstd, recompute_output=True)[
            -1
        ]
    torch.testing.assert_close(again, y, rtol=1e-6, atol=1e-6)
    assert calls == ["forward", "backward"]


@pytest.mark.parametrize("before", [True, False], ids=["norm, then gate", "gate, then norm"])
@pytest.mark.parametrize("groups", [1, 2])
def test_mamba_norm(check, counted, before, groups):
    calls = counted(native_norm)

    def run(x, z, weight, bias):
        size = None if groups == 1 else x.shape[-1] // groups
        return layernorm_gated.layernorm_fn(x, weight, bias, z, 1e-3, size, before)

    def reference(x, z, weight, bias):
        if before:
            return normed(x, weight, bias, 1e-3, False, groups) * F.silu(z)
        return normed(x * F.silu(z), weight, bias, 1e-3, False, groups)

    check(run, reference, [rand(3, 30, 40), rand(3, 30, 40), rand(40), rand(40)])
    assert calls == ["forward", "backward"]


@pytest.mark.parametrize("shape", [(3,), (5, 16), (1, 5000)], ids=str)
def test_activations(check, counted, shape, poisoned_empty):
    """Alone and as gates; flat memory that ends within a vector, and more than a task has."""
    calls = counted(native_activation)
    inputs = [20 * rand(*shape), rand(*shape)]
    check(lambda x, _: activations.swish(x), lambda x, _: F.silu(x), inputs)
    check(lambda x, _: activations.sigmoid(x), lambda x, _: torch.sigmoid(x), inputs)
    check(activations.swiglu, lambda x, y: F.silu(x) * y, inputs)
    check(activations.sigmoidglu, lambda x, y: torch.sigmoid(x) * y, inputs)
    assert calls == ["forward", "backward"] * 4


def test_gates_of_slices(check, counted):
    """Halves of one tensor, as an MLP may give them."""
    calls = counted(native_activation)
    check(
        lambda both: activations.swiglu(*both.chunk(2, -1)), lambda both: F.silu(both[..., :7]) * both[..., 7:], [rand(5, 14)]
    )
    assert calls == ["forward", "backward"]


def test_gates_again(counted):
    """The product that a backward pass makes again."""
    calls = counted(native_activation)
    x, y, grad = (rand(5, 7).float() for _ in range(3))
    with torch.no_grad():
        again = activations.swiglu_fwdbwd(x, y, grad, True)[-1]
    torch.testing.assert_close(again, F.silu(x) * y, rtol=1e-6, atol=1e-6)
    assert calls == ["backward"]


@pytest.mark.parametrize("loss", [lambda o: o.sum(), lambda o: o.square().sum()], ids=["a constant gradient", "one of o"])
def test_second_derivatives_are_refused(loss, monkeypatch):
    """Also where the incoming gradient asks for none, but the inputs that the backward reads do."""
    leaves = [rand(1, 1, 3, 2).float().requires_grad_() for _ in range(3)]
    selective = [None if t is None else t.float().requires_grad_() for t in selective_inputs(1, 3, 2, 2, False)]

    def second():
        outputs = chunk_linear_attention(*leaves, None, None, None)[0], selective_scan(*selective)[0]
        for o, of in zip(outputs, (leaves[2], selective[0])):
            (grad,) = torch.autograd.grad(loss(o), of, create_graph=True)
            yield grad.sum().backward

    for backward in second():
        with pytest.raises(RuntimeError, match=r"cannot be differentiated again.*FLA_BDLRU_BACKEND=torch"):
            backward()
    monkeypatch.setenv("FLA_BDLRU_BACKEND", "torch")
    for backward in second():
        backward()


def slices_of_keys_and_values(kv):
    k, v = kv.chunk(2, -1)
    return chunk_linear_attention(torch.ones(1, 1, 3, 2), k, v, None, None, None)[0]


def slices_of_B_and_C(bc):
    B, C = bc.split([2, 2], -1)
    return selective_scan(torch.ones(1, 3, 5), torch.ones(1, 3, 5), -torch.ones(5, 2), B, C, None)[0]


STRIDED = {
    "keys and values": (slices_of_keys_and_values, (1, 1, 3, 4)),
    "B and C": (slices_of_B_and_C, (1, 3, 4)),
    "A": (lambda A: selective_scan(*(torch.ones(1, 3, n) for n in (5, 5)), A, *(torch.ones(1, 3, 2),) * 2, None)[0], (5, 2)),
}


@pytest.mark.parametrize("case", STRIDED.values(), ids=STRIDED)
def test_second_derivatives_of_copies_are_refused(case, monkeypatch):
    """Kernels read copies of what has strides, which depend on it as well as on what asks for the derivative."""
    fn, shape = case
    x = rand(*shape).float().requires_grad_()

    def penalty():
        (grad,) = torch.autograd.grad(fn(x).sum(), x, create_graph=True)
        return grad.square().sum() + x.square().sum()

    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        penalty().backward()
    monkeypatch.setenv("FLA_BDLRU_BACKEND", "torch")
    penalty().backward()


def test_second_derivatives_of_an_initial_state_are_refused():
    """The gradients of queries depend on it, and what is kept for them is its copy."""
    inputs = [t.float().requires_grad_() for t in attention_inputs(1, 1, 3, 2, 4, True, 1, True)]
    (grad,) = torch.autograd.grad(chunk_linear_attention(*inputs)[0].sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(grad.sum(), inputs[-1], allow_unused=True)


SECOND = {
    "convolution": (lambda x, w: causal_conv1d(x, w, activation="silu")[0], lambda x, w: convolve(x, w, None, True)),
    "gate": (lambda x, w: activations.swiglu(x, x * w[0]), lambda x, w: F.silu(x) * x * w[0]),
}  # fmt: skip


@pytest.mark.parametrize("case", SECOND)
def test_second_derivatives_of_modules(check, case):
    """What FLA calls inside of its own functions goes by PyTorch where a graph of the gradient is wanted."""
    fn, formula = SECOND[case]

    def penalty(fn):
        def run(x, w):
            grads = torch.autograd.grad(fn(x, w).pow(3).sum(), (x, w), create_graph=True)
            return sum(grad.square().sum() for grad in grads)

        return run

    check(penalty(fn), penalty(formula), [rand(2, 6, 5), rand(5, 5)], tolerance=1e-4)


def test_second_derivatives_of_a_scan():
    """HGRN's, and Mamba's without numba."""
    inputs = [t.requires_grad_() for t in (torch.rand(2, 4, 3).double(), rand(2, 4, 3), rand(2, 3))]
    assert torch.autograd.gradgradcheck(linear_scan, inputs)


def test_other_types_are_asked_of_a_norm():
    """Kernels write float32; PyTorch writes what is asked for."""
    x, weight = torch.randn(3, 5), torch.randn(5)
    with torch.no_grad():
        y, _, _, total = layernorm.layer_norm_fwd(x, weight, None, out_dtype=torch.bfloat16, residual_dtype=torch.float64)
    assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float64)


def test_memory_may_still_be_freed():
    """FSDP gives the storage of parameters no size between their uses, which numpy would forbid for good."""
    x, w = (rand(*shape).float().requires_grad_() for shape in ((2, 9, 16), (16, 4)))
    y = causal_conv1d(x, w, w[:, 0], activation="silu")[0]
    y = fused_norm_gate.rms_norm_gated(y, x, w[:, 1].contiguous(), None, "swish") + layernorm.rms_norm(x, w.sum(1), None)
    q = activations.swiglu(y, x)[:, None]
    chunk_linear_attention(q, q, q, None, None, None)[0].sum().backward()
    chunk_bdlru(x[..., None], x[..., None, None].expand(-1, -1, -1, -1, 2))[0].sum().backward()
    assert all(t.untyped_storage().resizable() for t in (x, w, y, q))


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


# what launches kernels, and the shapes of what it takes
keys, rows = (2, 9, 2, 3), (9, 5)
LAUNCHES = {
    "attention": (native_scan.LinearAttention.apply, keys, keys, (2, 9, 2, 5), (2, 9, 2), keys, (2, 2, 3, 5)),
    "scan": (native_selective_scan.SelectiveScan.apply, (2, 9, 5), (2, 9, 5), (3, 5), (2, 9, 3), (2, 9, 3), (2, 3, 5)),
    "convolution": (lambda *args: native_convolution.forward(*args, True), (2, 9, 5), (5, 4), (5,)),
    "convolution, back": (
        lambda x, w, b, dy: native_convolution.backward(x, w, b, True, dy), (2, 9, 5), (5, 4), (5,), (2, 9, 5)
    ),
    "norm": (lambda x, w, b, *more: native_norm.forward(x, w, b, 1e-5, *more, "swish"), rows, (5,), (5,), rows, rows),
    "norm, back": (
        lambda x, dy, *more: native_norm.backward(dy, x, *more, "swish"), rows, rows, (5,), (5,), (9,), (9,), rows, rows
    ),
    "gate": (lambda *args: native_activation.forward("swish", *args), rows, rows),
    "gate, back": (lambda *args: native_activation.backward("swish", *args), rows, rows, rows),
}  # fmt: skip


@pytest.mark.parametrize("case", LAUNCHES.values(), ids=LAUNCHES)
def test_kernels_get_no_memory_that_is_too_small(case):
    """Sizes come from the first tensor; whichever other one is cut is refused, and all in full are not."""
    launch, *shapes = case
    tensors = [torch.zeros(shape) for shape in shapes]
    launch(*tensors)
    for i in range(1, len(tensors)):
        with pytest.raises(ValueError, match="elements for the other shapes"):
            launch(*tensors[:i], tensors[i][:1], *tensors[i + 1 :])
