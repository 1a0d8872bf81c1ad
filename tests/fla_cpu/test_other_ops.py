"""The remaining ops on a CPU: retention, HGRN, cumulative sums, gates and AttnRes, against their formulas in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from fla.ops.attnres import fused_attnres
from fla.ops.common.gate import fused_beta_sigmoid
from fla.ops.gated_delta_rule.gate import fused_gdn_gate
from fla.ops.hgrn import chunk_hgrn, fused_recurrent_hgrn
from fla.ops.kda.gate import fused_kda_gate
from fla.ops.retention import chunk_retention, fused_chunk_retention, fused_recurrent_retention, parallel_retention
from fla.ops.retention.naive import naive_retention
from fla.ops.simple_gla import parallel_simple_gla
from fla.ops.simple_gla.naive import naive_parallel_simple_gla
from fla.ops.utils.cumsum import chunk_global_cumsum, chunk_local_cumsum
from float64 import log_decay, rand

from fla_bdlru.fla_cpu.scan import linear_scan

B, H, K, V = 2, 3, 5, 4


RETENTIONS = {
    "chunk": chunk_retention,
    "fused_chunk": fused_chunk_retention,
    "fused_recurrent": fused_recurrent_retention,
    "parallel": parallel_retention,
}


@pytest.mark.parametrize("name", RETENTIONS)
def test_retention(check, name):
    inputs = [rand(B, 19, H, K), rand(B, 19, H, K), rand(B, 19, H, V)]

    def reference(q, k, v):
        return naive_retention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    check(lambda q, k, v: RETENTIONS[name](q, k, v)[0], reference, inputs)


@pytest.mark.parametrize("gated", [True, False])
def test_parallel_simple_gla(check, gated):
    inputs = [rand(B, 9, H, K), rand(B, 9, H, K), rand(B, 9, H, V), log_decay(B, 9, H) if gated else None]

    def reference(q, k, v, g):
        g = torch.zeros_like(q[..., 0]) if g is None else g
        return naive_parallel_simple_gla(q, k, v, g)

    check(lambda *args: parallel_simple_gla(*args, output_attentions=True), reference, inputs)
    o, attention = parallel_simple_gla(*(None if x is None else x.float() for x in inputs))
    assert attention is None
    assert torch.allclose(o, reference(*inputs)[0], atol=1e-5)
    half = [None if x is None else x.bfloat16() for x in inputs]
    assert [t.dtype for t in parallel_simple_gla(*half, output_attentions=True)] == [torch.bfloat16] * 2
    with pytest.raises(ValueError, match="output_attentions=True is not supported with cu_seqlens"):
        parallel_simple_gla(*half, output_attentions=True, cu_seqlens=torch.tensor([0, 9]))


HGRNS = {"chunk_hgrn": chunk_hgrn, "fused_recurrent_hgrn": fused_recurrent_hgrn}


@pytest.mark.parametrize("name", HGRNS)
@pytest.mark.parametrize("T", [1, 5, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hgrn(check, name, T, dtype):
    def reference(x, g, state):
        outputs = []
        for t in range(T):
            state = g[:, t].exp() * state + x[:, t]
            outputs.append(state)
        return torch.stack(outputs, 1), state

    inputs = [rand(B, T, 7), log_decay(B, T, 7), rand(B, 7).float()]
    check(
        lambda *args: HGRNS[name](*args, output_final_state=True), reference, inputs, dtype, out_dtypes=[dtype, torch.float32]
    )


def test_hgrn_packed(check):
    cu_seqlens = torch.tensor([0, 2, 2, 3, 9])
    inputs = [rand(1, 9, 7), log_decay(1, 9, 7), rand(4, 7)]

    def reference(x, g, state):
        parts = zip(x.split([2, 0, 1, 6], 1), g.split([2, 0, 1, 6], 1), state.unbind())
        results = [loop(xs, gs, s[None]) for xs, gs, s in parts]
        return torch.cat([o for o, _ in results], 1), torch.cat([s for _, s in results])

    check(lambda *args: fused_recurrent_hgrn(*args, True, cu_seqlens), reference, inputs)


def loop(x, g, state):
    outputs = []
    for t in range(x.shape[1]):
        state = g[:, t].exp() * state + x[:, t]
        outputs.append(state)
    return torch.stack(outputs, 1) if outputs else x, state


def test_linear_scan_gradcheck():
    a, b, h0 = (rand(*s).requires_grad_() for s in ((2, 4, 3), (2, 4, 3), (2, 3)))
    assert torch.autograd.gradcheck(linear_scan, (a, b, h0))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cu_seqlens", [None, [0, 3, 3, 10]], ids=str)
@pytest.mark.parametrize("shape", [(1, 10, 2), (1, 10, 2, 3)], ids=str)
def test_cumulative_sums(reverse, cu_seqlens, shape):
    x = torch.randn(shape)
    packing = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    bounds = cu_seqlens or [0, 10]
    for chunk, fn in ((100, chunk_global_cumsum), (4, lambda *a, **k: chunk_local_cumsum(a[0], 4, *a[1:], **k))):
        expected = torch.zeros_like(x)
        for start, stop in itertools.pairwise(bounds):
            for t in range(start, stop):
                first = start + (t - start) // chunk * chunk
                span = slice(t, min(first + chunk, stop)) if reverse else slice(first, t + 1)
                expected[:, t] = 0.5 * x[:, span].sum(1)
        got = fn(x, reverse=reverse, cu_seqlens=packing, scale=0.5)
        assert torch.allclose(got, expected, atol=1e-6)
        assert fn(x, output_dtype=torch.bfloat16).dtype == torch.bfloat16


def test_gates(check):
    inputs = [rand(B, 5, H), rand(H), rand(H)]
    check(fused_gdn_gate, lambda g, A, b: -A.exp() * F.softplus(g + b), inputs)
    inputs = [rand(B, 5, H, K), rand(H), rand(H * K)]
    check(fused_kda_gate, lambda g, A, b: -A[:, None].exp() * F.softplus(g + b.view(H, K)), inputs)
    check(lambda x: fused_beta_sigmoid(x, 2.0), lambda x: 2 * torch.sigmoid(x), [rand(B, 5, H)])


@pytest.mark.parametrize("count, output_norm", [(1, True), (4, False), (3, True)])
def test_attnres(check, count, output_norm):
    def rms(x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def reference(query, w, ow, *residuals):
        stacked = torch.stack(residuals)
        weights = ((rms(stacked) * w) @ query * 0.5).softmax(0)
        o = (weights[..., None] * stacked).sum(0)
        return (o if ow is None else rms(o) * ow), weights

    def fn(query, w, ow, *residuals):
        return fused_attnres(query, residuals, w, ow, scale=0.5, return_weights=True)

    inputs = [rand(16), rand(16), rand(16) if output_norm else None, *(rand(2, 3, 16) for _ in range(count))]
    check(fn, reference, inputs)
    assert fused_attnres(torch.randn(8), [torch.randn(3, 2, 8).transpose(0, 1)], torch.ones(8)).shape == (2, 3, 8)


AUTOCAST = {
    "attention matrix": lambda x: parallel_simple_gla(x, x, x, output_attentions=True),
    "AttnRes": lambda x: fused_attnres(x[0, 0, 0], [x, 2 * x], x[0, 0, 1], return_weights=True),
}


@pytest.mark.parametrize("fn", AUTOCAST.values(), ids=AUTOCAST)
def test_autocast_does_not_reach_into_the_ops(fn):
    x = torch.randn(B, 9, H, K)
    expected = fn(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = fn(x)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


@pytest.mark.parametrize("with_state", [False, True])
def test_hgrn_goes_through_torch_func(with_state, close):
    def loss(x, state=None):
        o, last = chunk_hgrn(x[None], -x[None].exp(), state, output_final_state=True)
        return o.square().sum() + last.sin().sum()

    calls = [rand(3, 7, 4), *([rand(3, 1, 4)] if with_state else [])]
    of = tuple(range(len(calls)))
    per_call = torch.func.vmap(torch.func.grad(loss, of))(*calls)
    twice = torch.func.hessian(loss, of)(*(t[0] for t in calls))
    for i in range(3):
        leaves = [t[i].clone().requires_grad_() for t in calls]
        for got, expected in zip(per_call, torch.autograd.grad(loss(*leaves), leaves)):
            close(got[i], expected, 1e-10, "gradient")
    for row, expected in zip(twice, torch.autograd.functional.hessian(loss, tuple(t[0] for t in calls))):
        for pair in zip(row, expected):
            close(*pair, 1e-10, "second")
