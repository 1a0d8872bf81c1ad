"""The relatives of the delta rule, slot memories, RWKV and FLA's attention on a CPU, against loops in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from fla.ops.abc import chunk_abc
from fla.ops.attn.decoding import attn_decoding_one_step
from fla.ops.attn.parallel import parallel_attn
from fla.ops.comba import chunk_comba, fused_recurrent_comba
from fla.ops.gated_delta_product import chunk_gated_delta_product
from fla.ops.gdn2 import chunk_gdn2, fused_recurrent_gdn2
from fla.ops.generalized_delta_rule import chunk_dplr_delta_rule, fused_recurrent_dplr_delta_rule
from fla.ops.gsa import chunk_gsa, fused_recurrent_gsa
from fla.ops.gsa.gate import fused_additive_gate
from fla.ops.lightnet import chunk_lightnet, fused_recurrent_lightnet
from fla.ops.rwkv6 import chunk_rwkv6, fused_recurrent_rwkv6
from fla.ops.rwkv7 import chunk_rwkv7, fused_mul_recurrent_rwkv7, fused_recurrent_rwkv7
from fla.ops.rwkv7.fused_addcmul import fused_addcmul_rwkv7
from fla.ops.rwkv7.fused_k_update import fused_k_rwkv7
from fla.ops.rwkv7.gate_output_correction import gate_output_correction
from fla.ops.simple_gla import parallel_simple_gla
from float64 import log_decay, loop, outer, rand, read, sizes, spans, unit

B, T, H, K, V, M = 2, 9, 2, 5, 4, 3
PACKINGS = [None, [0, 4, 4, 9]]
each_packing = pytest.mark.parametrize("cu_seqlens", PACKINGS, ids=str)


@each_packing
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_comba(check, cu_seqlens, recurrent, groups):
    """p reads the state before its decay, in FLA's kernels (FLA's naive_recurrent_comba reads it after)."""
    batch, N, packing = sizes(B, cu_seqlens)
    HV = groups * H
    inputs = [rand(batch, T, H, K), rand(batch, T, H, K), rand(batch, T, HV, V), rand(batch, T, H, K)]
    inputs += [log_decay(batch, T, HV), 2 * torch.sigmoid(rand(batch, T, HV)), rand(N, HV, K, V)]

    def reference(q, k, v, p, g, beta, state):
        q, k, p = (unit(x).repeat_interleave(groups, 2) for x in (q, k, p))

        def step(S, q, k, v, p, g, beta):
            u = beta[:, None] * (v - read(S, p))
            S = g.exp()[:, None, None] * S + outer(k, u)
            return read(S, q) * K**-0.5, S

        return loop(step, (q, k, v, p, g, beta), state, cu_seqlens)

    def fn(q, k, v, p, g, beta, state):
        options = {"output_final_state": True, "use_qk_l2norm_in_kernel": True, "cu_seqlens": packing}
        if recurrent:
            return fused_recurrent_comba(q, k, p, v, g, beta, None, state, **options)
        return chunk_comba(q, k, v, p, g, beta, None, state, **options)

    check(fn, reference, inputs)


@each_packing
@pytest.mark.parametrize("op", [chunk_gdn2, fused_recurrent_gdn2])
def test_gdn2(check, cu_seqlens, op):
    batch, N, packing = sizes(B, cu_seqlens)
    inputs = [rand(batch, T, H, K), rand(batch, T, H, K), rand(batch, T, H, V), rand(batch, T, H, K)]
    inputs += [torch.sigmoid(rand(batch, T, H, K)), torch.sigmoid(rand(batch, T, H, V)), rand(H), rand(H * K)]
    inputs += [rand(N, H, V, K)]

    def reference(q, k, v, g, b, w, A_log, dt_bias, state):
        g = -A_log[:, None].exp() * F.softplus(g + dt_bias.view(H, K))

        def step(S, q, k, v, g, b, w):
            S = g.exp()[..., None] * S
            S = S + outer(k, w * v - read(S, b * k))
            return read(S, q) * K**-0.5, S

        o, state = loop(step, (unit(q), unit(k), v, g, b, w), state.transpose(-1, -2), cu_seqlens)
        return o, state.transpose(-1, -2)

    def fn(q, k, v, g, b, w, A_log, dt_bias, state):
        return op(
            q, k, v, g, b, w, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True,
            use_gate_in_kernel=True, A_log=A_log, dt_bias=dt_bias, state_v_first=True, cu_seqlens=packing,
        )  # fmt: skip

    check(fn, reference, inputs)


def test_grouped_gdn2(check):
    inputs = [rand(B, T, H, K), rand(B, T, H, K), rand(B, T, 2 * H, V), log_decay(B, T, 2 * H, K)]
    inputs += [torch.sigmoid(rand(B, T, 2 * H, K)), torch.sigmoid(rand(B, T, 2 * H, V))]

    def reference(q, k, v, g, b, w):
        q, k = (x.repeat_interleave(2, 2) for x in (q, k))
        return chunk_gdn2(q, k, v, g, b, w)[0]

    check(lambda *xs: fused_recurrent_gdn2(*xs)[0], reference, inputs)


DPLRS = {
    "chunk_dplr_delta_rule": lambda q, k, v, a, b, g, s, c: chunk_dplr_delta_rule(q, k, v, a, b, g, 0.5, s, True, c),
    "fused_recurrent_dplr_delta_rule": lambda q, k, v, a, b, g, s, c: fused_recurrent_dplr_delta_rule(
        q, k, v, a, b, g, 0.5, s, True, False, c
    ),
    "chunk_rwkv7": lambda q, k, v, a, b, g, s, c: chunk_rwkv7(q, g, k, v, a, b, 0.5, s, True, c),
    "fused_recurrent_rwkv7": lambda q, k, v, a, b, g, s, c: fused_recurrent_rwkv7(q, g, k, v, a, b, 0.5, s, True, c),
    "fused_mul_recurrent_rwkv7": lambda q, k, v, a, b, g, s, c: fused_mul_recurrent_rwkv7(
        q, g, k, v, -a, -b / a, 0.5, s, True, False, c
    ),
}


@each_packing
@pytest.mark.parametrize("name", DPLRS)
def test_diagonal_plus_low_rank(check, cu_seqlens, name):
    batch, N, packing = sizes(B, cu_seqlens)
    shape = batch, T, H, K
    a = -unit(rand(*shape).abs() + 0.5)
    inputs = [rand(*shape), rand(*shape), rand(batch, T, H, V), a, unit(rand(*shape)), log_decay(*shape), rand(N, H, K, V)]

    def reference(q, k, v, a, b, g, state):
        def step(S, q, k, v, a, b, g):
            S = g.exp()[..., None] * S + outer(b, read(S, a)) + outer(k, v)
            return 0.5 * read(S, q), S

        return loop(step, (q, k, v, a, b, g), state, cu_seqlens)

    check(lambda *xs: DPLRS[name](*xs, packing), reference, inputs)


def test_products_of_half_types_are_not_rounded():
    """RWKV-7's kernel multiplies kk and a in float32."""
    r, w, k, v, kk, a = (x.bfloat16() for x in (*(torch.randn(1, 6, 2, 8) for _ in range(5)), torch.rand(1, 6, 2, 8)))
    w, kk = -w.abs(), F.normalize(kk, dim=-1)
    o, state = fused_mul_recurrent_rwkv7(r, w, k, v, kk, a, output_final_state=True)
    wide, wide_state = fused_mul_recurrent_rwkv7(*(x.float() for x in (r, w, k, v, kk, a)), output_final_state=True)
    assert torch.equal(state, wide_state)
    assert torch.equal(o, wide.bfloat16())


@each_packing
@pytest.mark.parametrize("op, reverse", [(chunk_rwkv6, False), (fused_recurrent_rwkv6, False), (fused_recurrent_rwkv6, True)])
def test_rwkv6(check, cu_seqlens, op, reverse):
    batch, N, packing = sizes(B, cu_seqlens)
    inputs = [rand(batch, T, H, K), rand(batch, T, H, K), rand(batch, T, H, V), log_decay(batch, T, H, K)]
    inputs += [rand(H, K), rand(N, H, K, V)]

    def reference(r, k, v, w, u, state):
        def step(S, r, k, v, w):
            return K**-0.5 * read(S + outer(u * k, v), r), w.exp()[..., None] * S + outer(k, v)

        return loop(step, (r, k, v, w), state, cu_seqlens, reverse)

    options = {"reverse": True} if reverse else {}

    def fn(r, k, v, w, u, state):
        return op(r, k, v, w, u, initial_state=state, output_final_state=True, cu_seqlens=packing, **options)

    check(fn, reference, inputs)


def test_rwkv7_pointwise(check):
    x, delta, mixes = rand(B, T, 8), rand(B, T, 8), [rand(1, 1, 8) for _ in range(6)]
    check(fused_addcmul_rwkv7, lambda x, d, *m: tuple(x + d * i for i in m), [x, delta, *mixes])
    assert fused_addcmul_rwkv7(x, delta, *mixes[:5])[5] is None
    check(fused_k_rwkv7, lambda k, a, ka: k * (1 + (a - 1) * ka), [rand(B, T, 8), rand(B, T, 8), rand(8)])

    def corrected(o, r, k, r_k, v, g):
        return (o + ((r * k * r_k).sum(-1, keepdim=True) * v).flatten(-2)) * g

    inputs = [rand(B, T, 8), rand(B, T, 2, 4), rand(B, T, 2, 4), rand(2, 4), rand(B, T, 2, 4), rand(B, T, 8)]
    check(gate_output_correction, corrected, inputs)
    inputs[4] = inputs[4].transpose(1, 2).contiguous().transpose(1, 2)
    check(lambda o, r, k, r_k, v, g: gate_output_correction(o, r, k, r_k, v.mT.contiguous().mT, g), corrected, inputs)


def test_rwkv7_pointwise_in_half_precision():
    x, heads = torch.randn(B, T, 8).bfloat16(), torch.randn(B, T, 2, 4).bfloat16()
    mixed = fused_addcmul_rwkv7(x, x, *torch.randn(6, 1, 1, 8))
    others = fused_k_rwkv7(x, x, torch.randn(8)), gate_output_correction(x, heads, heads, torch.randn(2, 4), heads, x)
    assert {t.dtype for t in (*mixed, *others)} == {torch.bfloat16}


@each_packing
@pytest.mark.parametrize("state", [False, True])
def test_additive_gate(check, cu_seqlens, state):
    batch, N, packing = sizes(B, cu_seqlens)
    inputs = [3 * rand(batch, T, H, K), rand(N, 1, H, K) if state else None]

    def reference(x, z):
        lengths = [T] * B if cu_seqlens is None else [stop - start for start, stop in itertools.pairwise(cu_seqlens)]
        ks, gs, zs = [], [], []
        for n, document in enumerate(x.flatten(0, 1).split(lengths)):
            log_sum = None if z is None else z[n, 0]
            for token in document:
                previous, log_sum = log_sum, token if log_sum is None else torch.logaddexp(log_sum, token)
                ks.append((token - log_sum).exp())
                gs.append(torch.zeros_like(token) if previous is None else previous - log_sum)
            zs.append(log_sum)
        finals = torch.stack([zs[n][None] for n in range(N) if zs[n] is not None])
        return torch.stack(ks).view_as(x), torch.stack(gs).view_as(x), finals

    def fn(x, z):
        k, g, last = fused_additive_gate(x, z, packing)
        empty = [] if cu_seqlens is None or state else [n for n in range(N) if cu_seqlens[n] == cu_seqlens[n + 1]]
        assert all((last[n] == -torch.inf).all() for n in empty)
        return k, g, last[[n for n in range(N) if n not in empty]]

    check(fn, reference, inputs)
    _, g, last = fused_additive_gate(inputs[0].bfloat16(), None, packing, torch.float32, torch.float16)
    assert (g.dtype, last.dtype) == (torch.float16, torch.float32)


def gsa_reference(q, k, v, s, g, hk, hv, cu_seqlens, reverse=False):
    groups = q.shape[2] // k.shape[2]
    k, v, s, g = (x.repeat_interleave(groups, 2) for x in (k, v, s, g))
    hk, hv = (x.repeat_interleave(groups, 1) for x in (hk, hv))

    def step(S, q, k, v, s, g):
        hk, hv = S
        hk = hk * g.exp()[..., None, :] + outer(k, s)
        hv = hv * g.exp()[..., None] + outer(s, v)
        return read(hv, (read(hk, q) * K**-0.5).softmax(-1)), (hk, hv)

    o, hk, hv = loop(step, (q, k, v, s, g), (hk, hv), cu_seqlens, reverse)
    return o, hk[:, ::groups], hv[:, ::groups]


@each_packing
@pytest.mark.parametrize("op, groups", [(chunk_gsa, 1), (chunk_gsa, 2), (fused_recurrent_gsa, 1)])
def test_gsa(check, cu_seqlens, op, groups):
    batch, N, packing = sizes(B, cu_seqlens)
    inputs = [rand(batch, T, groups * H, K), rand(batch, T, H, K), rand(batch, T, H, V), rand(batch, T, H, M)]
    inputs += [log_decay(batch, T, H, M), rand(N, H, K, M), rand(N, H, M, V)]

    def fn(q, k, v, s, g, hk, hv):
        o, states = op(q, k, v, s, g, None, (hk, hv), True, cu_seqlens=packing)
        return o, *states

    check(fn, lambda *xs: gsa_reference(*xs, cu_seqlens), inputs)


@pytest.mark.parametrize("op", [chunk_abc, chunk_gsa])
def test_abc_is_gsa_with_an_additive_gate(check, op):
    inputs = [rand(B, T, H, K), rand(B, T, H, K), rand(B, T, H, V), rand(B, T, H, M)]

    def reference(q, k, v, s):
        # each slot holds an average of k, and one of v, with weights exp(s)
        weights = s.exp()
        keys, values = ((weights[..., None] * x[..., None, :]).cumsum(1) / weights.cumsum(1)[..., None] for x in (k, v))
        looks = (torch.einsum("bthk,bthmk->bthm", q, keys) * K**-0.5).softmax(-1)
        return torch.einsum("bthm,bthmv->bthv", looks, values)

    check(lambda *xs: op(*xs)[0], reference, inputs)


def test_abc_from_a_state(check):
    """As FLA's `naive_recurrent_abc`, whose gradients FLA's kernels do not have: they leave out those by way of the state."""
    inputs = [rand(B, T, H, K), rand(B, T, H, K), rand(B, T, H, V), rand(B, T, H, M), rand(B, H, K, M), rand(B, H, M, V)]

    def reference(q, k, v, s, hk, hv):
        z, outputs = s.logcumsumexp(1), []
        gates, weights = (torch.cat([z[:, :1], z[:, :-1]], 1) - z).exp(), (s - z).exp()
        for t in range(T):
            hk = hk * gates[:, t, :, None] + k[:, t, ..., None] * weights[:, t, :, None]
            hv = hv * gates[:, t, ..., None] + weights[:, t, ..., None] * v[:, t, :, None]
            looks = (torch.einsum("bhk,bhkm->bhm", q[:, t], hk) * K**-0.5).softmax(-1)
            outputs.append(torch.einsum("bhm,bhmv->bhv", looks, hv))
        return torch.stack(outputs, 1), hk, hv

    def ours(q, k, v, s, hk, hv):
        o, states = chunk_abc(q, k, v, s, (hk, hv), True)
        return o, *states

    check(ours, reference, inputs)


@each_packing
@pytest.mark.parametrize("op", [chunk_lightnet, fused_recurrent_lightnet])
def test_lightnet(check, cu_seqlens, op):
    batch, _, packing = sizes(B, cu_seqlens)
    inputs = [rand(batch, T, H, K), rand(batch, T, H, K), rand(batch, T, H, V)]

    def reference(q, k, v):
        # softmax of k over time, as a running average of v
        bounds = cu_seqlens or [0, T]
        parts = [x.split([stop - start for start, stop in itertools.pairwise(bounds)], 1) for x in (q, k, v)]
        outputs = []
        for q, k, v in zip(*parts):
            weights = k.exp()
            values = (weights[..., None] * v[..., None, :]).cumsum(1) / weights.cumsum(1)[..., None]
            outputs.append(torch.einsum("bthk,bthkv->bthv", q, values) * K**-0.5)
        return torch.cat(outputs, 1)

    check(lambda *xs: op(*xs, cu_seqlens=packing)[0], reference, inputs)


def attention_loop(q, k, v, g, window, sink, cu_seqlens, scale=K**-0.5):
    groups, rows = q.shape[2] // k.shape[2], {}
    for b, start, stop in spans(q, cu_seqlens):
        for t, h in itertools.product(range(start, stop), range(q.shape[2])):
            seen = list(range(start if window is None else max(start, t - window + 1), t + 1))
            scores = k[b, seen, h // groups] @ q[b, t, h] * scale
            if g is not None:
                scores = scores + torch.stack([g[b, j + 1 : t + 1, h].sum() for j in seen])
            if sink is not None:
                scores = torch.cat([scores, sink[h : h + 1]])
            rows[b, t, h] = scores.softmax(0)[: len(seen)] @ v[b, seen, h // groups]
    flat = torch.stack([rows[index] for index in itertools.product(*map(range, q.shape[:3]))])
    return flat.view(*q.shape[:3], -1)


@each_packing
@pytest.mark.parametrize("gate, window, sink", [(True, None, False), (False, 3, True), (True, 1, True), (False, None, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parallel_attn(check, cu_seqlens, gate, window, sink, dtype):
    batch, _, packing = sizes(B, cu_seqlens)
    inputs = [rand(batch, T, 2 * H, K), rand(batch, T, H, K), rand(batch, T, H, V)]
    inputs += [log_decay(batch, T, 2 * H) if gate else None, rand(2 * H) if sink else None]

    def fn(q, k, v, g, s):
        return parallel_attn(q, k, v, g, window_size=window, cu_seqlens=packing, sink_bias=s)

    check(fn, lambda q, k, v, g, s: attention_loop(q, k, v, g, window, s, cu_seqlens), inputs, dtype)


def test_small_decays_after_large_ones(check):
    """Sums of log decays from the start are large, and cancel between two later tokens."""
    inputs = [rand(1, 20, H, K), rand(1, 20, H, K), rand(1, 20, H, V), 0.03 * log_decay(1, 20, H)]
    inputs[3][:, ::5] = -900
    check(parallel_attn, lambda q, k, v, g: attention_loop(q, k, v, g, None, None, None), inputs)


@pytest.mark.parametrize("gate, window, sink", [(True, None, False), (False, 3, True), (True, 2, True)])
def test_decoding_is_the_last_row_of_the_attention(gate, window, sink):
    lengths = [4, 1, 6]
    bounds = [0, 4, 5, 11]
    q, k, v = rand(1, 11, 2 * H, K), rand(1, 11, H, K), rand(1, 11, H, V)
    g, s = log_decay(1, 11, 2 * H) if gate else None, rand(2 * H) if sink else None
    expected = attention_loop(q, k, v, g, window, s, bounds)
    last = torch.tensor(bounds[1:]) - 1
    options = {"window_size": window, "sink_bias": s}
    got = attn_decoding_one_step(q[:, last], k, v, g, cu_seqlens=torch.tensor(bounds), **options)
    assert torch.allclose(got, expected[:, last], atol=1e-12)
    assert len(lengths) == got.shape[1]
    if gate:
        scaled = attn_decoding_one_step(
            q[:, last], k, v, g / K**-0.5, cu_seqlens=torch.tensor(bounds), do_gate_scale=True, **options
        )
        assert torch.allclose(scaled, got, atol=1e-12)
    empty = attn_decoding_one_step(q[:, :1], k[:, :0], v[:, :0], cu_seqlens=torch.tensor([0, 0]))
    assert empty.abs().sum() == 0


x = torch.randn(1, 6, 2, 4)
row, decay, bounds = x[..., 0], -x.abs(), torch.tensor([0, 2, 6])
SCALED = {
    "rwkv6": lambda q, scale: chunk_rwkv6(q, x, x, decay, x[0, 0], scale)[0],
    "gsa": lambda q, scale: chunk_gsa(q, x, x, x, decay, scale)[0],
    "comba": lambda q, scale: chunk_comba(q, x, x, x, decay[..., 0], row, scale)[0],
    "gdn2": lambda q, scale: chunk_gdn2(q, x, x, decay, x, x, scale)[0],
    "gated delta product": lambda q, scale: chunk_gated_delta_product(q, x, x, decay[..., 0], row, 1, scale)[0],
    "parallel simple gla": lambda q, scale: parallel_simple_gla(q, x, x, decay[..., 0], scale)[0],
    "attention": lambda q, scale: parallel_attn(q, x, x, scale=scale),
    "decoding": lambda q, scale: attn_decoding_one_step(q[:, :2], x, x, scale=scale, cu_seqlens=bounds),
}


@pytest.mark.parametrize("call", SCALED.values(), ids=SCALED)
def test_a_scale_is_that_of_the_queries(call):
    """By default it is K ** -0.5."""
    assert torch.allclose(call(x, 1.5), call(3 * x, None), atol=1e-5)


@pytest.mark.parametrize("op", [chunk_comba, fused_recurrent_comba])
def test_comba_without_p_and_beta(op):
    """p is k, and beta 1."""
    q, k, v = (torch.randn(1, 6, 2, 4) for _ in range(3))
    g = -torch.rand(1, 6, 2)
    o = op(q=q, k=k, v=v, p=None, g=g)[0]
    assert torch.equal(o, op(q=q, k=k, v=v, p=k, g=g, beta=torch.ones(1, 6, 2))[0])


def test_a_window_of_no_keys():
    o = attn_decoding_one_step(x[:, :2], x, x, cu_seqlens=bounds, window_size=0)
    assert not o.any()
    with pytest.raises(ValueError, match="window_size=-1: expected boundaries and a size of 0 or more"):
        attn_decoding_one_step(x[:, :2], x, x, cu_seqlens=bounds, window_size=-1)
    assert attn_decoding_one_step(*(t.bfloat16() for t in (x[:, :2], x, x)), cu_seqlens=bounds).dtype == torch.bfloat16


def test_errors():
    q = torch.randn(1, 4, 3, 8)
    with pytest.raises(ValueError, match="3 query heads are not a multiple of 2 key heads"):
        parallel_attn(q, q[:, :, :2], q[:, :, :2])
    with pytest.raises(ValueError, match="cu_seqlens=None"):
        attn_decoding_one_step(q[:, :1], q, q)
    with pytest.raises(ValueError, match=r"k has 4 steps; expected num_householder \* T = 2 \* 4"):
        chunk_gated_delta_product(q, q, q, q[..., 0], q[..., 0], 2)
    with pytest.raises(ValueError, match="beta has 4 axes"):
        fused_recurrent_comba(q, q, q, q, q[..., 0], q)
    with pytest.raises(ValueError, match="return_intermediate_states is set"):
        chunk_gdn2(q, q, q, q, q, q, return_intermediate_states=True)
    with pytest.raises(ValueError, match="cp_context is set"):
        chunk_dplr_delta_rule(q, q, q, q, q, q, cp_context=object())
