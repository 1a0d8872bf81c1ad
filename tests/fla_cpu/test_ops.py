"""The baseline ops on a CPU against their recurrences written as loops in float64: outputs, states, all gradients."""

import pytest
import torch
import torch.nn.functional as F
from fla.layers import delta_net
from fla.ops.delta_rule import chunk_delta_rule, fused_recurrent_delta_rule
from fla.ops.gated_delta_product import chunk_gated_delta_product
from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from fla.ops.gdn2 import chunk_gdn2
from fla.ops.gla import chunk_gla, fused_recurrent_gla
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.hgrn import chunk_hgrn
from fla.ops.hgrn.naive import naive_recurrent_hgrn
from fla.ops.kda import chunk_kda, fused_recurrent_kda
from fla.ops.kda.naive import naive_recurrent_kda
from fla.ops.linear_attn import chunk_linear_attn, fused_chunk_linear_attn, fused_recurrent_linear_attn
from fla.ops.simple_gla import chunk_simple_gla, fused_chunk_simple_gla, fused_recurrent_simple_gla
from float64 import log_decay, rand, recurrence, sizes, unit

B, H, K, V = 2, 3, 5, 4


def op(fn, extra="", names="", beta=None, **options):
    """(op of q, k, v, the extra inputs and a state; its recurrence; kinds of the extra inputs, see `inputs_of`).

    `names` are the op's names of the extra inputs, where they are not those of `recurrence`; `options` are for both.
    """
    ours = [LETTERS[kind] for kind in extra]

    def call(q, k, v, *inputs, cu_seqlens=None):
        *inputs, state = inputs
        named = dict(zip(names.split() or ours, inputs))
        return fn(q, k, v, **named, initial_state=state, output_final_state=True, cu_seqlens=cu_seqlens, **options)

    def reference(q, k, v, *inputs, cu_seqlens=None):
        *inputs, state = inputs
        named = {"beta": None if beta is None else beta * torch.ones_like(v[..., 0]), **dict(zip(ours, inputs))}
        own = {name: value for name, value in options.items() if name != "normalize"}
        return recurrence(q, k, v, state, **named, cu_seqlens=cu_seqlens, **own)

    return call, reference, extra


LETTERS = {"b": "beta", "B": "beta", "g": "g", "k": "gk", "l": "gv"}
OPS = {
    "chunk_delta_rule": op(chunk_delta_rule, "b"),
    "fused_recurrent_delta_rule": op(fused_recurrent_delta_rule, "b", scale=0.7),
    "fused_recurrent_delta_rule with beta per value": op(fused_recurrent_delta_rule, "B"),
    "fused_recurrent_delta_rule without beta": op(fused_recurrent_delta_rule, beta=1),
    "chunk_gated_delta_rule": op(chunk_gated_delta_rule, "gb"),
    "fused_recurrent_gated_delta_rule": op(fused_recurrent_gated_delta_rule, "gb"),
    "fused_recurrent_gated_delta_rule with every gate": op(fused_recurrent_gated_delta_rule, "gklb"),
    "chunk_kda": op(chunk_kda, "kb", "g beta"),
    "fused_recurrent_kda": op(fused_recurrent_kda, "kb", "g beta", scale=0.3),
    "chunk_gla": op(chunk_gla, "k", "g"),
    "fused_recurrent_gla": op(fused_recurrent_gla, "kl"),
    "fused_recurrent_gla backwards in time": op(fused_recurrent_gla, "k", reverse=True),
    "chunk_simple_gla": op(chunk_simple_gla, "g", scale=2.0),
    "fused_chunk_simple_gla": op(fused_chunk_simple_gla, "g"),
    "fused_recurrent_simple_gla": op(fused_recurrent_simple_gla, "g"),
    "chunk_linear_attn": op(chunk_linear_attn, normalize=False),
    "fused_chunk_linear_attn": op(fused_chunk_linear_attn, normalize=False),
    "fused_recurrent_linear_attn": op(fused_recurrent_linear_attn, reverse=True),
}
each_op = pytest.mark.parametrize("name", OPS)


def inputs_of(name, T, batch=B, num_seqs=None):
    shapes = {"b": (), "B": (V,), "g": (), "k": (K,), "l": (V,)}
    extra = []
    for kind in OPS[name][2]:
        shape = batch, T, H, *shapes[kind]
        extra.append(log_decay(*shape) if kind in "gkl" else 2 * torch.sigmoid(rand(*shape)))
    q, k, v = rand(batch, T, H, K), unit(rand(batch, T, H, K)), rand(batch, T, H, V)
    return [q, k, v, *extra, rand(num_seqs or batch, H, K, V)]


@each_op
@pytest.mark.parametrize("T", [1, 2, 17])
def test_ops(check, name, T):
    fn, reference, _ = OPS[name]
    check(fn, reference, inputs_of(name, T))


@each_op
def test_no_tokens(name):
    """The state stays; every input has a gradient, which distributed training waits for."""
    inputs = [x.float().requires_grad_() for x in inputs_of(name, 0)]
    o, state = OPS[name][0](*inputs)
    assert o.shape == inputs[2].shape
    assert torch.equal(state, inputs[-1])
    *grads, of_state = torch.autograd.grad(o.sum() + state.sum(), inputs)
    assert [grad.shape for grad in grads] == [x.shape for x in inputs[:-1]]
    assert (of_state == 1).all()


@each_op
def test_results_are_contiguous(name):
    """As FLA's kernels write them; who calls may take views of them."""
    o, state = OPS[name][0](*(x.float() for x in inputs_of(name, 5)))
    assert o.is_contiguous()
    assert state.is_contiguous()


def test_gated_delta_rule_without_beta():
    """It is 1."""
    q, k, v, g, _, state = (x.float() for x in inputs_of("chunk_gated_delta_rule", 6))
    o = fused_recurrent_gated_delta_rule(q, k, v, g, initial_state=state)[0]
    assert torch.equal(o, fused_recurrent_gated_delta_rule(q, k, v, g, beta=torch.ones_like(g), initial_state=state)[0])


@pytest.mark.parametrize("fn", [chunk_simple_gla, fused_recurrent_simple_gla])
def test_a_decay_of_the_head_beside_one_of_the_step(check, fn):
    gamma = torch.tensor([-0.5, -0.25, -1.0])

    def op(q, k, v, g, state):
        return fn(q, k, v, g, g_gamma=gamma, initial_state=state, output_final_state=True)

    check(op, lambda q, k, v, g, state: recurrence(q, k, v, state, g=g + gamma), inputs_of("chunk_simple_gla", 6))


@each_op
def test_ops_in_half_precision(check, name):
    fn, reference, _ = OPS[name]
    *inputs, state = inputs_of(name, 9)
    state = state.float()
    check(fn, reference, [*inputs, state], torch.bfloat16, out_dtypes=[torch.bfloat16, torch.float32])


@pytest.mark.parametrize("name", ["chunk_gated_delta_rule", "chunk_delta_rule", "chunk_simple_gla", "chunk_gla", "chunk_kda"])
@pytest.mark.parametrize("T", [64, 65, 130])
def test_ops_over_several_chunks(check, name, T):
    fn, reference, _ = OPS[name]
    check(fn, reference, inputs_of(name, T, batch=1))


@each_op
def test_autocast_does_not_reach_into_the_ops(name):
    fn, _, _ = OPS[name]
    inputs = [x.float() for x in inputs_of(name, 9)]
    expected = fn(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        got = fn(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


@each_op
@pytest.mark.parametrize("cu_seqlens", [[0, 1, 3, 3, 20], [0, 0, 9, 20, 20], [0, 20]], ids=str)
def test_packed_documents(check, name, cu_seqlens):
    """Packed inputs agree with one document at a time, in outputs, final states and every gradient."""
    fn, reference, _ = OPS[name]
    cu_seqlens = torch.tensor(cu_seqlens)
    inputs = inputs_of(name, 20, batch=1, num_seqs=len(cu_seqlens) - 1)
    check(lambda *args: fn(*args, cu_seqlens=cu_seqlens), lambda *args: reference(*args, cu_seqlens=cu_seqlens), inputs)


@each_op
def test_nan_in_one_document_stays_there(name):
    fn, _, _ = OPS[name]
    cu_seqlens, others = torch.tensor([0, 4, 9, 13]), [*range(4), *range(9, 13)]
    inputs = [x.float() for x in inputs_of(name, 13, batch=1, num_seqs=3)]
    expected, expected_state = fn(*inputs, cu_seqlens=cu_seqlens)
    for x in inputs[:-1]:
        x[:, 4:9] = torch.nan
        x.requires_grad_()
    o, state = fn(*inputs, cu_seqlens=cu_seqlens)
    assert torch.equal(o[:, others], expected[:, others])
    assert torch.equal(state[[0, 2]], expected_state[[0, 2]])
    o[:, others].sum().backward()
    assert all(x.grad[:, others].isfinite().all() for x in inputs[:-1])


@each_op
def test_no_state_in_and_none_out(name):
    fn, reference, _ = OPS[name]
    *inputs, _ = inputs_of(name, 6)
    inputs = [x.float() for x in inputs]
    o, state = fn(*inputs, None)
    expected, expected_state = reference(*(x.double() for x in inputs), None)
    assert torch.allclose(o.double(), expected, atol=1e-5)
    assert torch.allclose(state.double(), expected_state, atol=1e-5)
    assert chunk_simple_gla(*inputs[:3])[1] is None


@pytest.mark.parametrize("T", [6, 60, 130])
def test_a_state_that_nobody_asks_for_changes_nothing(T):
    q, k, v, g, beta, _ = (x.float() for x in inputs_of("chunk_gated_delta_rule", T))
    for fn, inputs in ((chunk_simple_gla, (q, k, v, g)), (chunk_gated_delta_rule, (q, k, v, g, beta))):
        o, state = fn(*inputs)
        assert state is None
        assert torch.equal(o, fn(*inputs, output_final_state=True)[0])


@each_op
def test_split_at_any_step_is_the_whole(name):
    fn, _, _ = OPS[name]
    if "backwards" in name or name == "fused_recurrent_linear_attn":
        pytest.skip("runs from the end")
    *inputs, state = (x.float() for x in inputs_of(name, 11))
    expected, expected_state = fn(*inputs, state)
    for cut in (1, 5, 10):
        first, carried = fn(*(x[:, :cut] for x in inputs), state)
        second, last = fn(*(x[:, cut:] for x in inputs), carried)
        assert torch.allclose(torch.cat([first, second], 1), expected, atol=2e-5)
        assert torch.allclose(last, expected_state, atol=2e-5)


@each_op
def test_wrong_inputs_are_refused(name):
    fn, _, _ = OPS[name]
    *inputs, state = (x.float() for x in inputs_of(name, 4))
    with pytest.raises(ValueError, match="batch size is"):
        fn(*inputs, None, cu_seqlens=torch.tensor([0, 2, 4]))
    with pytest.raises(ValueError, match=r"initial_state holds|number of initial states"):
        fn(*(x[:1] for x in inputs), state[:1], cu_seqlens=torch.tensor([0, 2, 4]))


def test_without_decay_long_memory_is_exact(check):
    """Orthogonal keys, beta = 2: reflections of norm 1, whose errors nothing damps."""
    T = 200
    k = F.one_hot(torch.arange(T) % K, K).double().expand(1, H, T, K).transpose(1, 2)
    inputs = [rand(1, T, H, K), k, 0 * rand(1, T, H, V), torch.full((1, T, H), 2.0).double(), rand(1, H, K, V)]
    fn, reference, _ = OPS["chunk_delta_rule"]
    check(fn, reference, inputs)
    _, state = fn(*(x.float() for x in inputs))
    assert torch.allclose(state.abs(), inputs[-1].float().abs(), atol=1e-5)


@pytest.mark.parametrize("name", ["chunk_gla", "chunk_simple_gla", "chunk_gated_delta_rule", "chunk_kda"])
def test_strong_decay_stays_finite(check, name):
    fn, reference, _ = OPS[name]
    inputs = inputs_of(name, 40, batch=1)
    inputs[3] = inputs[3] * 200
    check(fn, reference, inputs)


@pytest.mark.parametrize("name", ["kda", "gdn2"])
def test_gates_lack_what_flas_kernels_ask_for(name):
    x, beta = torch.randn(1, 4, 2, 4), torch.rand(1, 4, 2)

    def call(**options):
        if name == "kda":
            return chunk_kda(x, x, x, x, beta, use_gate_in_kernel=True, **options)
        return chunk_gdn2(x, x, x, x, x, x, use_gate_in_kernel=True, **options)

    with pytest.raises(ValueError, match="needs A_log or lower_bound; got None for both"):
        call()
    for bound in (None, -6.0, 0.0):
        with pytest.raises(ValueError, match=rf"lower_bound={bound}: with .* safe_gate=True it has to be in \[-5, 0\)"):
            call(A_log=torch.zeros(2), safe_gate=True, lower_bound=bound)
    bounded = call(A_log=torch.zeros(2), safe_gate=True, lower_bound=-5.0)[0]
    assert torch.equal(bounded, call(safe_gate=True, lower_bound=-5.0)[0])


OPTIONS = {
    "output_final_state": True, "use_qk_l2norm_in_kernel": True, "use_gate_in_kernel": True,
    "use_beta_sigmoid_in_kernel": True, "state_v_first": True,
}  # fmt: skip


@pytest.mark.parametrize("fn", [chunk_gated_delta_rule, fused_recurrent_gated_delta_rule])
def test_gated_delta_rule_options(check, fn):
    """Grouped values, the kernel's own norm, gate and beta, states with the value axis first."""
    HV, T = 2 * H, 13
    inputs = [rand(B, T, H, K), rand(B, T, H, K), rand(B, T, HV, V), rand(B, T, HV), rand(B, T, HV)]
    inputs += [rand(HV), rand(HV), rand(B, HV, V, K)]

    def reference(q, k, v, g, b, A_log, dt_bias, state):
        q, k = (unit(x).repeat_interleave(2, 2) for x in (q, k))
        g = -A_log.exp() * F.softplus(g + dt_bias)
        o, state = recurrence(q, k, v, state.transpose(-1, -2), beta=2 * torch.sigmoid(b), g=g)
        return o, state.transpose(-1, -2)

    def op(q, k, v, g, b, A, dt, s):
        return fn(q, k, v, g, beta=b, initial_state=s, A_log=A, dt_bias=dt, allow_neg_eigval=True, **OPTIONS)

    check(op, reference, inputs)
    assert op(*(x.float() for x in inputs))[1].is_contiguous()


@pytest.mark.parametrize("fn", [chunk_kda, fused_recurrent_kda])
@pytest.mark.parametrize("bound", [None, -4.0])
def test_kda_options(check, fn, bound):
    HV, T = 2 * H, 9
    inputs = [rand(B, T, H, K), rand(B, T, H, K), rand(B, T, HV, V), rand(B, T, HV, K), rand(B, T, HV)]
    inputs += [rand(HV), rand(HV * K), rand(B, HV, V, K)]

    def reference(q, k, v, g, b, A_log, dt_bias, state):
        q, k = (unit(x).repeat_interleave(2, 2) for x in (q, k))
        g, A = g + dt_bias.view(HV, K), A_log[:, None].exp()
        g = -A * F.softplus(g) if bound is None else bound * torch.sigmoid(A * g)
        o, state = recurrence(q, k, v, state.transpose(-1, -2), beta=torch.sigmoid(b), gk=g)
        return o, state.transpose(-1, -2)

    def op(q, k, v, g, b, A, dt, s):
        return fn(q, k, v, g, b, initial_state=s, A_log=A, dt_bias=dt, lower_bound=bound, **OPTIONS)

    check(op, reference, inputs)


@pytest.mark.parametrize("cu_seqlens", [None, [0, 1, 4, 4, 7]], ids=str)
@pytest.mark.parametrize("n, gated", [(1, True), (2, True), (3, False)])
def test_gated_delta_product(check, cu_seqlens, n, gated):
    T, (batch, N, packing) = 7, sizes(B, cu_seqlens)
    inputs = [rand(batch, T, H, K), rand(batch, n * T, H, K), rand(batch, n * T, H, V)]
    inputs += [log_decay(batch, T, H) if gated else None, 2 * torch.sigmoid(rand(batch, n * T, H)), rand(N, H, K, V)]

    def fn(q, k, v, g, b, state):
        return chunk_gated_delta_product(
            q, k, v, g, b, n, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True, cu_seqlens=packing
        )

    def reference(q, k, v, g, b, state):
        # only the first of n steps decays, only the last one is read
        fine = None if g is None else torch.stack([g] + [0 * g] * (n - 1), 2).flatten(1, 2)
        bounds = None if packing is None else packing * n
        o, state = recurrence(unit(q).repeat_interleave(n, 1), unit(k), v, state, beta=b, g=fine, cu_seqlens=bounds)
        return o[:, n - 1 :: n], state

    check(fn, reference, inputs)


@pytest.mark.parametrize("cu_seqlens", [None, [0, 3, 3, 12]], ids=str)
@pytest.mark.parametrize("fn", [chunk_linear_attn, fused_chunk_linear_attn, fused_recurrent_linear_attn])
def test_normalised_linear_attention(check, cu_seqlens, fn):
    batch, N, packing = sizes(B, cu_seqlens)
    q, k, v = rand(batch, 12, H, K).exp(), rand(batch, 12, H, K).exp(), rand(batch, 12, H, V)
    inputs = [q, k, v, rand(N, H, K, V), rand(N, 1, H, K).exp()]

    def reference(q, k, v, state, z):
        o, state = recurrence(q, k, v, state, cu_seqlens=packing)
        norm, z = recurrence(q, k, torch.ones_like(v[..., :1]), z[:, 0, ..., None], cu_seqlens=packing)
        return o / (norm + 1e-10), state, z[..., 0][:, None]

    def op(q, k, v, state, z):
        o, states = fn(q, k, v, None, (state, z), True, normalize=True, cu_seqlens=packing)
        return o, *states

    check(op, reference, inputs)


def test_fla_naive_functions_agree():
    """FLA's own references, in fp32 and with their own layouts, say the same as the loops above."""
    inputs = [rand(B, 9, H, K), unit(rand(B, 9, H, K)), rand(B, 9, H, V), log_decay(B, 9, H), log_decay(B, 9, H, K)]
    q, k, v, g, gk, b, state = (x.float() for x in (*inputs, torch.sigmoid(rand(B, 9, H)), rand(B, H, K, V)))
    options = {"initial_state": state, "output_final_state": True}
    pairs = [
        (chunk_gated_delta_rule(q, k, v, g, b, **options), naive_recurrent_gated_delta_rule(q, k, v, b, g, **options)),
        (chunk_gla(q, k, v, gk, **options), naive_recurrent_gla(q, k, v, gk, **options)),
        (chunk_kda(q, k, v, gk, b, **options), naive_recurrent_kda(q, k, v, gk, b, **options)),
        (chunk_hgrn(gk[:, :, 0], g[:, :, :1], state[:, 0, :, 0], True),
         naive_recurrent_hgrn(gk[:, :, 0], g[:, :, :1], state[:, 0, :, 0], True)),
    ]  # fmt: skip
    for ours, naive in pairs:
        for a, b in zip(ours, naive):
            assert torch.allclose(a, b, atol=1e-5)


def test_layers_and_users_hold_the_same_replacement():
    assert delta_net.chunk_delta_rule is chunk_delta_rule
    assert chunk_delta_rule.__name__ == "chunk_delta_rule"


def test_what_a_cpu_does_not_have_is_refused():
    q, g = torch.randn(1, 4, 1, 8), torch.randn(1, 4, 1)
    with pytest.raises(ValueError, match="cp_context is set"):
        chunk_gated_delta_rule(q, q, q, g, g, cp_context=object())
    with pytest.raises(ValueError, match="head_first"):
        chunk_gated_delta_rule(q, q, q, g, g, head_first=True)
    with pytest.raises(ValueError, match="allow_neg_eigval=True needs"):
        chunk_gated_delta_rule(q, q, q, g, g, allow_neg_eigval=True)
    with pytest.raises(ValueError, match="return_intermediate_states is set"):
        chunk_kda(q, q, q, q, g, return_intermediate_states=True)
    with pytest.raises(ValueError, match="multiple of the others"):
        chunk_simple_gla(torch.randn(1, 4, 2, 8), torch.randn(1, 4, 2, 8), torch.randn(1, 4, 3, 8))
