"""The public ops, on every backend that runs on a CPU: values, states, all gradients, packing, splits, bounds, errors."""

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import OPS, REFERENCES, make_inputs, run

from fla_bdlru.ops import GATE_NORMS, chunk_bdlru, chunk_hlru, hlru_window, naive_recurrent_bdlru, normalize_gates

BACKENDS = ("cpu", "torch")
each_op = pytest.mark.parametrize("name", OPS)


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    monkeypatch.setenv("FLA_BDLRU_BACKEND", request.param)
    return request.param


def assert_same(got, expected, tolerance=2e-6, factor=1.0):
    for key, x in expected.items():
        x = x.double()
        error = (got[key].double() - x).abs().max() if x.numel() else torch.zeros(())
        assert error <= factor * tolerance * max(1.0, x.abs().max().item() if x.numel() else 0), (key, error.item())


def compare(name, v, g, h0, tolerance=2e-6, **kwargs):
    op, naive = OPS[name]
    do, dht = torch.randn(v.shape, dtype=torch.float64), torch.randn(h0.shape, dtype=torch.float64)
    got = run(op, v, g, h0, do, dht, **kwargs)
    assert_same(got, run(naive, v.double(), g.double(), h0.double(), do, dht, **kwargs), tolerance)
    return got


@each_op
@pytest.mark.parametrize("gate_norm", GATE_NORMS)
def test_op_equals_naive(name, gate_norm, backend, poisoned_empty):
    v, g, h0 = make_inputs(name)
    if gate_norm == "none":
        g = g / 4
    # a row of signed gates may nearly cancel, so its gradients are as large as 1 / sum|f|
    compare(name, v, g, h0, gate_norm=gate_norm)


@each_op
@pytest.mark.parametrize("M", [1, 2, 4, 5, 8, 16])
@pytest.mark.parametrize("T", [1, 2, 3, 4, 33])
def test_op_sizes(name, T, M, backend):
    compare(name, *make_inputs(name, B=1, T=T, width=17, M=M))


@each_op
def test_op_without_states(name, backend):
    v, g, h0 = make_inputs(name)
    op, _ = OPS[name]
    o, state = op(v, g)
    assert state is None
    torch.testing.assert_close(o, op(v, g, torch.zeros_like(h0))[0])


@each_op
@pytest.mark.parametrize("T", [0, 6])
def test_the_final_state_has_memory_of_its_own(name, T, backend):
    """A cache that holds it does not hold all outputs, and neither those nor the initial state are bound to it."""
    v, g, h0 = make_inputs(name, B=1, T=T)
    o, state = OPS[name][0](v, g, h0, True)
    kept = state.clone()
    for x in (o, h0):
        x.zero_()
    assert torch.equal(state, kept)
    assert state.untyped_storage().nbytes() == state.nbytes


@each_op
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_meta_tensors_have_the_dtypes_of_others(name, dtype):
    v, g, h0 = (x.to(dtype) for x in make_inputs(name))
    real, meta = (OPS[name][0](*(x.to(device) for x in (v, g, h0)), True) for device in ("cpu", "meta"))
    assert [(x.dtype, x.shape) for x in meta] == [(x.dtype, x.shape) for x in real]


@each_op
def test_op_gradient_of_final_state_alone(name, backend):
    v, g, h0 = (x.requires_grad_() for x in make_inputs(name))
    op, naive = OPS[name]
    grads = torch.autograd.grad(op(v, g, h0, True)[1].square().sum(), (v, g, h0))
    expected = torch.autograd.grad(naive(v, g, h0, True)[1].square().sum(), (v, g, h0))
    for a, b in zip(grads, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@each_op
def test_op_gradient_of_one_input_alone(name, backend):
    """As where gates are constants, or the initial state is all that is learned."""
    inputs, op = make_inputs(name), OPS[name][0]
    grads = torch.randn_like(inputs[0]), torch.randn_like(inputs[2])
    expected = run(op, *inputs, *(x.double() for x in grads))
    for i, key in enumerate(("dv", "dg", "dh0")):
        leaves = [x.clone().requires_grad_(i == j) for j, x in enumerate(inputs)]
        (dx,) = torch.autograd.grad(op(*leaves, True), leaves[i], grads)
        assert torch.equal(dx, expected[key]), key


@each_op
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_op_half_types(name, dtype, backend):
    """At most twice the error of plain PyTorch on the same rounded inputs; the state is float32."""
    op, naive = OPS[name]
    v, g, h0 = make_inputs(name, T=33, dtype=dtype)
    do, dht = torch.randn(v.shape, dtype=torch.float64), torch.randn(h0.shape, dtype=torch.float64)
    exact = run(naive, v.double(), g.double(), h0.double(), do, dht)
    got, plain = run(op, v, g, h0, do, dht), run(naive, v, g, h0, do, dht)
    assert got["o"].dtype == got["dv"].dtype == got["dg"].dtype == dtype
    assert got["ht"].dtype == got["dh0"].dtype == torch.float32
    for key, x in exact.items():
        error, allowed = ((y[key].double() - x).abs().max() for y in (got, plain))
        assert error <= 2 * allowed + 1e-6, key


@each_op
def test_op_mixed_dtypes_and_autocast(name, backend):
    v, g, h0 = make_inputs(name)
    op, _ = OPS[name]
    o, _ = op(v.bfloat16(), g, h0)
    assert o.dtype == torch.bfloat16
    torch.testing.assert_close(o.float(), op(v.bfloat16().float(), g, h0)[0], rtol=8e-3, atol=8e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert op(v, g, h0)[0].dtype == torch.float32


@each_op
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64, "meta"], ids=str)
def test_defaults_of_pytorch_change_nothing(name, default, backend):
    """The default dtype and device are for tensors that a user makes."""
    v, g, h0 = make_inputs(name)
    do, dht = torch.randn(v.shape, dtype=torch.float64), torch.randn(h0.shape, dtype=torch.float64)
    cu_seqlens = torch.tensor([0, 3, 7])
    halves, packed = (v.bfloat16(), g.bfloat16(), h0), (v[:1], g[:1], h0)

    def everything():
        plain = OPS[name][0](v.clone().requires_grad_(), g)[0]
        results = [run(OPS[name][0], *x, do, dht).values() for x in ((v, g, h0), halves)]
        results += [run(OPS[name][0], *packed, do[:1], dht, cu_seqlens=cu_seqlens).values()]
        return [plain, *torch.autograd.grad(plain.sum(), plain), *(x for values in results for x in values)]

    expected, before = everything(), torch.get_default_dtype()
    try:
        if default == "meta":
            with torch.device("meta"):
                got = everything()
        else:
            torch.set_default_dtype(default)
            got = everything()
    finally:
        torch.set_default_dtype(before)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(got, expected))


@each_op
@pytest.mark.parametrize("T", [1, 2, 3, 4])
def test_op_float64_gradcheck(name, T):
    v, g, h0 = (x.double().requires_grad_() for x in make_inputs(name, B=1, T=T, width=1, M=2))
    assert torch.autograd.gradcheck(lambda *x: OPS[name][0](*x, True), (v, g, h0))


@each_op
def test_packed_equals_documents(name, backend, poisoned_empty):
    """Outputs, states and every gradient, documents of length 0 and 1 included."""
    bounds = [0, 0, 1, 8, 8, 19, 20, 20]
    v, g, h0 = make_inputs(name, B=1, T=20, num_seqs=7)
    packed = compare(name, v, g, h0, cu_seqlens=torch.tensor(bounds))
    op, _ = OPS[name]
    for i, (bos, eos) in enumerate(itertools.pairwise(bounds)):
        o, ht = op(v[:, bos:eos], g[:, bos:eos], h0[i : i + 1], True)
        torch.testing.assert_close(packed["o"][:, bos:eos], o, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(packed["ht"][i], ht[0], rtol=1e-6, atol=1e-6)
    # int32 offsets, as FLA's helpers make them
    assert torch.equal(op(v, g, h0, cu_seqlens=torch.tensor(bounds, dtype=torch.int32))[0], packed["o"])


@each_op
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["v", "g", "h0"])
def test_nan_and_inf_stay_in_their_document(name, where, value, backend):
    """Outputs, states and gradients of the other documents, in chunks that it shares or reaches into, keep every bit."""
    v, g, h0 = make_inputs(name, B=1, T=130, num_seqs=5)
    do, dht, bounds = torch.randn(v.shape).double(), torch.randn(h0.shape).double(), torch.tensor([0, 11, 40, 70, 71, 130])
    clean = run(OPS[name][0], v, g, h0, do, dht, cu_seqlens=bounds)
    {"v": v[0, 40:47], "g": g[0, 40:47], "h0": h0[2]}[where].fill_(value)
    got = run(OPS[name][0], v, g, h0, do, dht, cu_seqlens=bounds)
    assert not got["o"][0, 40:70].isfinite().all()
    for key, x in clean.items():
        kept = [0, 1, 3, 4] if key in ("ht", "dh0") else [*range(40), *range(70, 130)]
        a, b = (y if key in ("ht", "dh0") else y[0] for y in (got[key], x))
        assert torch.equal(a[kept], b[kept]), key


@pytest.mark.parametrize("name", ["chunk_bdlru", "chunk_hlru"])
def test_more_documents_than_a_launch_grid(name):
    bounds = torch.arange(70_001)
    v, g, h0 = make_inputs(name, B=1, T=70_000, width=1, M=2, num_seqs=70_000)
    o, ht = OPS[name][0](v, g, h0, True, cu_seqlens=bounds)
    # every document is one step, so it is a batch of 70,000
    expected, last = OPS[name][1](v.transpose(0, 1), g.transpose(0, 1), h0, True)
    torch.testing.assert_close(o, expected.transpose(0, 1))
    torch.testing.assert_close(ht, last)


@each_op
@pytest.mark.parametrize("split", [1, 2, 5, 6])
def test_split_equals_full(name, split, backend):
    v, g, h0 = make_inputs(name)
    op, _ = OPS[name]
    o, ht = op(v, g, h0, True)
    first, state = op(v[:, :split], g[:, :split], h0, True)
    second, last = op(v[:, split:], g[:, split:], state, True)
    torch.testing.assert_close(torch.cat([first, second], 1), o, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last, ht, rtol=1e-5, atol=1e-6)


@each_op
def test_token_by_token_equals_full(name, backend):
    v, g, h0 = make_inputs(name)
    op, _ = OPS[name]
    state, outputs, before = h0, [], h0.clone()
    for t in range(v.shape[1]):
        o, state = op(v[:, t : t + 1], g[:, t : t + 1], state, True)
        outputs.append(o)
    torch.testing.assert_close(torch.cat(outputs, 1), op(v, g, h0)[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(h0, before)  # states are never updated in place


def test_bdlru_of_block_size_1_is_a_diagonal_lru(backend):
    v, g, _ = make_inputs("bdlru", M=1)
    p, h, outputs = torch.softmax(g, -1), torch.zeros(2, 5, 1), []
    for t in range(v.shape[1]):
        h = p[:, t, :, :, 0] * h + p[:, t, :, :, 1] * v[:, t]
        outputs.append(h)
    torch.testing.assert_close(chunk_bdlru(v, g)[0], torch.stack(outputs, 1))


def test_hlru_of_order_1_is_bdlru_of_block_size_1(backend):
    v, g, h0 = make_inputs("bdlru", M=1)
    o, ht = chunk_hlru(v.squeeze(-1), g.squeeze(-2), h0, True)
    expected, last = chunk_bdlru(v, g, h0, True)
    torch.testing.assert_close(o, expected.squeeze(-1))
    torch.testing.assert_close(ht, last)


def test_hlru_is_bdlru_of_companion_blocks(backend):
    """Order M as a block: the gates in the first row, the others shift; the other orientation is another model."""
    M, T = 3, 6
    v, g, h0 = make_inputs("hlru", T=T, M=M)
    rows = torch.zeros(2, T, 5, M, M + 1)
    rows[..., 0, :] = normalize_gates(g)
    rows[..., 1:, :-1] = torch.eye(M)[:-1]
    inputs = torch.zeros(2, T, 5, M)
    inputs[..., 0] = v
    o, ht = chunk_bdlru(inputs, rows, h0, True, gate_norm="none")
    expected, last = chunk_hlru(v, g, h0, True)
    torch.testing.assert_close(o[..., 0], expected)
    torch.testing.assert_close(ht, last)


@pytest.mark.parametrize("gate_norm", GATE_NORMS[:-1])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_states_never_outgrow_the_inputs(gate_norm, data):
    """The L1 bound: max|h_t| <= max(max|h_0|, max|v_s|), for any logits."""
    seed, scale = data.draw(st.integers(0, 1000)), data.draw(st.sampled_from([0.01, 1.0, 30.0]))
    torch.manual_seed(seed)
    for name in ("chunk_bdlru", "chunk_hlru"):
        v, g, h0 = make_inputs(name, T=40, M=4, scale=scale)
        o, ht = OPS[name][0](v, g, h0, True, gate_norm)
        bound = max(v.abs().max(), h0.abs().max()) * (1 + 1e-5)
        assert o.abs().max() <= bound
        assert ht.abs().max() <= bound


@each_op
def test_no_decay(name, backend):
    """Rows of signed gates with norm 1 and no input: nothing is forgotten over 200 steps, gradients neither grow nor fade."""
    T, M, width = 200, 4, 3
    v, g, h0 = make_inputs(name, B=1, T=T, width=width, M=M)
    if "bdlru" in name:
        g = torch.zeros_like(g)
        perm = torch.stack([torch.randperm(M) for _ in range(T * width)]).view(T, width, M)
        sign = torch.randint(0, 2, (T, width, M)) * 2.0 - 1
        g[0].scatter_(-1, perm.unsqueeze(-1), sign.unsqueeze(-1))
    else:
        g = torch.zeros_like(g)
        lag = torch.randint(0, M, (T, width))
        g[0].scatter_(-1, lag.unsqueeze(-1), (torch.randint(0, 2, (T, width)) * 2.0 - 1).unsqueeze(-1))
    got = compare(name, v, g, h0, gate_norm="linear")
    if "bdlru" in name:
        torch.testing.assert_close(got["ht"].abs().sort(-1)[0], h0.abs().sort(-1)[0])


@each_op
@pytest.mark.parametrize("gate_norm", GATE_NORMS[:-1])
def test_large_logits(name, gate_norm, backend):
    v, g, h0 = make_inputs(name, T=50, scale=30.0)
    got = compare(name, v, g, h0, tolerance=1e-5, gate_norm=gate_norm)
    assert all(torch.isfinite(x).all() for x in got.values())


@pytest.mark.parametrize("name", ["chunk_bdlru", "chunk_hlru"])
def test_long_memory_over_a_long_sequence(name):
    """T = 65,537 with rows near the identity, where errors add up."""
    v, g, h0 = make_inputs(name, B=1, T=65_537, width=1, M=2)
    if "bdlru" in name:
        g = 0.1 * g + torch.tensor([[9.0, 0.0, -3.0], [0.0, 9.0, -3.0]])
    else:
        g = 0.1 * g + torch.tensor([9.0, 0.0, -3.0])
    o, ht = OPS[name][0](v, g, h0, True)
    exact, last = OPS[name][1](v.double(), g.double(), h0.double(), True)
    assert (o - exact).abs().max() < 2e-5
    assert (ht - last).abs().max() < 2e-5


def test_more_than_2_to_the_31_gates():
    """Offsets are 64-bit: the end of a very large input equals the same steps run from the state before them."""
    M, H, tail = 16, 32, 7
    T = 2**31 // (M * (M + 1) * H) + tail + 1
    v, g = torch.zeros(1, T, M, H, dtype=torch.bfloat16), torch.zeros(1, T, M, M + 1, H, dtype=torch.bfloat16)
    assert g.numel() > 2**31
    g[:, -tail:], v[:, -tail:] = torch.randn_like(g[:, -tail:]), torch.randn_like(v[:, -tail:])
    v, g = v.transpose(2, 3), g.permute(0, 1, 4, 2, 3)
    o, ht = chunk_bdlru(v, g, torch.ones(1, H, M), True)
    _, state = chunk_bdlru(v[:, :-tail], g[:, :-tail], torch.ones(1, H, M), True)
    expected, last = naive_recurrent_bdlru(v[:, -tail:], g[:, -tail:], state, True)
    torch.testing.assert_close(o[:, -tail:], expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(ht, last)
    assert ht.abs().max() > 0.1


@each_op
def test_two_runs_are_bit_equal(name, backend):
    inputs = make_inputs(name, T=40, width=33)
    do, dht = torch.randn(inputs[0].shape).double(), torch.randn(inputs[2].shape).double()
    first, second = (run(OPS[name][0], *inputs, do, dht) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


@each_op
def test_nothing_is_cached_by_identity(name, backend):
    """The same tensors with other values: boundaries written in place move the documents."""
    v, g, _ = make_inputs(name, B=1)
    op, cu_seqlens = OPS[name][0], torch.tensor([0, 3, 7])
    before = op(v, g, cu_seqlens=cu_seqlens)[0]
    cu_seqlens[1] = 5
    v.mul_(2)
    after = op(v, g, cu_seqlens=cu_seqlens)[0]
    assert torch.equal(after, op(v.clone(), g.clone(), cu_seqlens=cu_seqlens.clone())[0])
    assert not torch.equal(after, 2 * before)


@each_op
def test_gate_major_inputs_are_not_copied(name, monkeypatch):
    """Views of gate-major memory reach the native code as they are."""
    monkeypatch.setenv("FLA_BDLRU_BACKEND", "cpu")
    if "bdlru" in name:
        v, g = torch.randn(2, 7, 3, 5), torch.randn(2, 7, 3, 4, 5)
        views = v.transpose(2, 3), g.permute(0, 1, 4, 2, 3)
    else:
        v, g = torch.randn(2, 7, 5), torch.randn(2, 7, 4, 5)
        views = v, g.transpose(2, 3)
    from fla_bdlru.ops.cpu import scan

    original, seen = scan.cpu_fwd, []

    def spy(v, g, *rest):
        seen.append((v.data_ptr(), g.data_ptr()))
        return original(v, g, *rest)

    monkeypatch.setattr(scan, "cpu_fwd", spy)
    o, _ = OPS[name][0](*views)
    assert seen == [(v.data_ptr(), g.data_ptr())]
    assert o.shape == views[0].shape


@each_op
def test_hooks_may_lay_out_anew_what_is_saved(name):
    v, g, h0 = (x.requires_grad_() for x in make_inputs(name))

    def grads():
        return torch.autograd.grad(OPS[name][0](v, g, h0)[0].square().sum(), (v, g, h0))

    def turned(x):
        return x.transpose(0, -1)

    with torch.autograd.graph.saved_tensors_hooks(lambda x: turned(x).contiguous(), turned):
        got = grads()
    assert all(map(torch.equal, got, grads()))


@each_op
def test_compile_equals_eager(name, backend):
    op = OPS[name][0]
    compiled = torch.compile(lambda v, g, h0: op(v, g, h0, True), fullgraph=True)
    for T in (5, 6):
        v, g, h0 = make_inputs(name, T=T)
        do, dht = torch.randn(v.shape).double(), torch.randn(h0.shape).double()
        assert_same(run(lambda v, g, h0, _: compiled(v, g, h0), v, g, h0, do, dht), run(op, v, g, h0, do, dht), tolerance=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_custom_ops_pass_opcheck(dtype):
    v, g = torch.randn(1, 35, 2, 4).to(dtype).requires_grad_(), torch.randn(1, 35, 2, 3, 4).to(dtype).requires_grad_()
    cu_seqlens, h0 = torch.tensor([0, 2, 35]), torch.randn(2, 2, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.fla_bdlru.bdlru, (v, g, h0, cu_seqlens, "tanh", True))
    torch.library.opcheck(torch.ops.fla_bdlru.bdlru, (v, g, None, None, "softmax", False))
    v, g = torch.randn(1, 5, 4).to(dtype).requires_grad_(), torch.randn(1, 5, 4, 4).to(dtype).requires_grad_()
    cu_seqlens = torch.tensor([0, 2, 5])
    torch.library.opcheck(torch.ops.fla_bdlru.hlru, (v, g, torch.randn(2, 3, 4, requires_grad=True), cu_seqlens, "silu", True))


@each_op
def test_fake_tensors_and_dispatch_modes_see_the_custom_op(name):
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    v, g, h0 = make_inputs(name)
    with FakeTensorMode() as mode:
        o, state = OPS[name][0](*(mode.from_tensor(x) for x in (v, g, h0)), True)
    assert (o.shape, state.shape, state.dtype) == (v.shape, h0.shape, torch.float32)
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        watched, _ = OPS[name][0](v, g, h0)
    kind = name.split("_")[-1]
    assert f"fla_bdlru.{kind}.default" in seen
    assert torch.equal(watched, OPS[name][0](v, g, h0)[0])
    o, _ = OPS[name][0](v.requires_grad_(), g, h0)
    with Watch():
        o.sum().backward()
    assert f"fla_bdlru.{kind}_bwd.default" in seen


@each_op
@pytest.mark.parametrize("which", [0, 1, 2, "do"])
def test_a_subclass_without_memory_goes_by_the_custom_op(name, which):
    """Any of the inputs, or a gradient alone; kernels would read from nowhere."""
    from torch.testing._internal.two_tensor import TwoTensor

    def calls(wrap):
        inputs = [wrap(x) if i == which else x for i, x in enumerate(leaves)]
        o, ht = OPS[name][0](*inputs, True)
        dv, *grads = torch.autograd.grad((o, ht), inputs, (wrap(do) if which == "do" else do, dht))
        return o, ht, dv, *grads

    leaves = [x.requires_grad_() for x in make_inputs(name)]
    do, dht = torch.randn(leaves[0].shape), torch.randn(leaves[2].shape)
    expected, got = calls(lambda x: x), calls(lambda x: TwoTensor(x.detach(), x.detach()).requires_grad_())
    assert any(isinstance(x, TwoTensor) for x in got)
    assert all(torch.equal(x.a if isinstance(x, TwoTensor) else x, y) for x, y in zip(got, expected))


@each_op
@pytest.mark.parametrize("traced", [False, True], ids=["eager", "custom-op"])
def test_second_derivatives_are_refused(name, traced, monkeypatch):
    """Also where the gradient of `o` is a constant: the gradient still depends on the inputs."""
    monkeypatch.setenv("FLA_BDLRU_BACKEND", "cpu")
    v, g, h0 = (x.requires_grad_() for x in make_inputs(name))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: traced)
    for loss in (lambda o: o.square().sum(), lambda o: o.sum()):
        for x in (v, g, h0):
            (dx,) = torch.autograd.grad(loss(OPS[name][0](v, g, h0)[0]), x, create_graph=True)
            assert dx.requires_grad
            message = "no autograd formula" if traced else "set FLA_BDLRU_BACKEND=torch"
            with pytest.raises(RuntimeError, match=message):
                torch.autograd.grad(dx.sum(), g, allow_unused=True, retain_graph=True)
            with pytest.raises(RuntimeError, match=message):
                dx.sum().backward()
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.functional.hessian(lambda g: OPS[name][0](v, g)[0].sum(), g)
    do = torch.ones_like(v, requires_grad=True)
    (dx,) = torch.autograd.grad(OPS[name][0](v, g, h0)[0], v, do, create_graph=True)
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(dx.sum(), do)
    expected = torch.autograd.grad(OPS[name][0](v, g, h0)[0].sum(), (v, g, h0))
    got = torch.autograd.grad(OPS[name][0](v, g, h0)[0].sum(), (v, g, h0), create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


@each_op
def test_where_no_gradient_arrives_none_is_made(name, monkeypatch):
    monkeypatch.setenv("FLA_BDLRU_BACKEND", "cpu")

    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dx):
            return None

    v, g, h0 = (x.requires_grad_() for x in make_inputs(name))
    Stop.apply(OPS[name][0](v, g, h0)[0]).sum().backward()
    assert v.grad is g.grad is h0.grad is None


@each_op
def test_second_derivatives_in_plain_pytorch(name, monkeypatch):
    monkeypatch.setenv("FLA_BDLRU_BACKEND", "torch")
    v, g, _ = (x.double() for x in make_inputs(name, B=1, T=3, width=1, M=2))
    hessian, expected = (torch.autograd.functional.hessian(lambda g: op(v, g)[0].sum(), g) for op in OPS[name])  # noqa: B023
    torch.testing.assert_close(hessian, expected)
    assert expected.abs().max() > 0


@each_op
def test_gates_of_a_type_that_kernels_do_not_read(name, monkeypatch):
    v, g, h0 = make_inputs(name)
    op, naive = OPS[name]
    for wide in (g.double(), g.to(torch.float8_e4m3fn) if hasattr(torch, "float8_e4m3fn") else g):
        if wide.dtype not in (torch.float64, torch.float32):
            with pytest.raises(ValueError, match=r"g must be of a floating-point dtype; got torch.float8_e4m3fn"):
                op(v, wide)
            continue
        do, dht = torch.randn(v.shape).double(), torch.randn(h0.shape).double()
        assert_same(run(op, v, wide, h0, do, dht), run(naive, v, wide, h0, do, dht))
        assert op(v, wide)[0].dtype == torch.float32
    monkeypatch.setenv("FLA_BDLRU_BACKEND", "cpu")
    with pytest.raises(ValueError, match=r"FLA_BDLRU_BACKEND='cpu' takes float32, bfloat16 and float16; got torch.float64"):
        op(v, g.double())


@each_op
def test_lazy_minus(name, backend):
    """PyTorch may hold -x as x and a flag, as `.imag` of a conjugate does."""
    v, g, h0 = make_inputs(name)
    do, dht = torch.randn(v.shape).double(), torch.randn(h0.shape).double()
    op = OPS[name][0]

    def minus(*args, **kwargs):
        o, ht = op(*(torch._neg_view(x) for x in args[:3]), *args[3:], **kwargs)
        return torch._neg_view(o), torch._neg_view(ht)

    got, expected = run(minus, v, g, h0, do, dht), run(op, -v, -g, -h0, do, dht)
    assert all(torch.equal(got[key], -x if key in ("o", "ht") else x) for key, x in expected.items())


@pytest.mark.parametrize("cu_seqlens", [None, [0, 2, 2, 9, 10, 17]], ids=["dense", "packed"])
@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("order", [1, 2, 5])
def test_hlru_window(order, with_state, cu_seqlens):
    """Lag i at step t is the output of step t - i, or of the state before the document's first step."""
    T, N = 17, 3
    bounds = cu_seqlens or [0, T]
    num_seqs = len(bounds) - 1
    o, h0 = torch.randn(1, T, N), torch.randn(num_seqs, N, order) if with_state else None
    window = hlru_window(o, order, h0, None if cu_seqlens is None else torch.tensor(cu_seqlens))
    assert window.shape == (1, T, order, N)
    for seq, (bos, eos) in enumerate(itertools.pairwise(bounds)):
        for t in range(bos, eos):
            for i in range(order):
                before = torch.zeros(N) if h0 is None or t - i >= bos else h0[seq, :, i - (t - bos) - 1]
                assert torch.equal(window[0, t, i], o[0, t - i] if t - i >= bos else before)


@pytest.mark.parametrize("cu_seqlens", [None, [0, 2, 2, 9, 10, 17]], ids=["dense", "packed"])
def test_a_window_has_the_type_of_the_outputs_and_hands_gradients_to_the_state(cu_seqlens):
    """The value j before a document of L steps is read by min(L, order - 1 - j) of its windows."""
    order, lengths = 4, torch.tensor(cu_seqlens or [0, 17]).diff()
    o, h0 = torch.randn(1, 17, 3).bfloat16(), torch.randn(len(lengths), 3, order, requires_grad=True)
    window = hlru_window(o, order, h0, None if cu_seqlens is None else torch.tensor(cu_seqlens))
    assert window.dtype == torch.bfloat16
    (times,) = torch.autograd.grad(window.sum(), h0)
    read = torch.minimum(lengths[:, None], order - 1 - torch.arange(order))
    assert torch.equal(times, read[:, None].expand(-1, 3, -1).float())


def test_hlru_window_of_no_steps():
    for cu_seqlens, B in ((None, 2), (torch.tensor([0, 0]), 1)):
        assert hlru_window(torch.randn(B, 0, 3), 4, cu_seqlens=cu_seqlens).shape == (B, 0, 4, 3)


def test_hlru_window_of_shapes_alone():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        window = hlru_window(torch.randn(1, 5, 3), 2, cu_seqlens=torch.tensor([0, 2, 5]))
    assert window.shape == (1, 5, 2, 3)


def test_the_gradient_of_a_window_reaches_each_output_as_often_as_it_is_read():
    o = torch.randn(2, 5, 3, requires_grad=True)
    (times,) = torch.autograd.grad(hlru_window(o, 3).sum(), o)
    assert torch.equal(times[0, :, 0], torch.tensor([3.0, 3, 3, 2, 1]))


BAD_CALLS = {
    "v must have shape": lambda v, g, h0: ((v[0], g), {}),
    "g must have shape": lambda v, g, h0: ((v, g[..., :-1]), {}),
    "initial_state must have shape": lambda v, g, h0: ((v, g, h0[:1]), {}),
    "gate_norm='l2' is not known": lambda v, g, h0: ((v, g), {"gate_norm": "l2"}),
    "needs a batch of 1 .* got B=2": lambda v, g, h0: ((v, g), {"cu_seqlens": torch.tensor([0, 7])}),
    r"must rise from 0 to T=7; got \[0, 5, 3, 7\]": lambda v, g, h0: (
        (v[:1], g[:1]), {"cu_seqlens": torch.tensor([0, 5, 3, 7])}),
    r"must rise from 0 to T=7; got \[0, 6\]": lambda v, g, h0: ((v[:1], g[:1]), {"cu_seqlens": torch.tensor([0, 6])}),
    "cu_seqlens must be integers": lambda v, g, h0: ((v[:1], g[:1]), {"cu_seqlens": torch.tensor([0.0, 7.0])}),
    "floating-point dtype; got torch.int64": lambda v, g, h0: ((v.long(), g), {}),
    "g must be on the device of v": lambda v, g, h0: ((v, g.to("meta")), {}),
    "initial_state must be on the device of v, 'cpu'; got 'meta'": lambda v, g, h0: ((v, g, h0.to("meta")), {}),
    r"cu_seqlens must be a tensor; got \[0, 7\]": lambda v, g, h0: ((v[:1], g[:1]), {"cu_seqlens": [0, 7]}),
    "initial_state must be a tensor; got 0.0": lambda v, g, h0: ((v, g, 0.0), {}),
    "initial_state must be a dense tensor, .*; got torch.sparse_coo": lambda v, g, h0: ((v, g, h0.to_sparse()), {}),
    "v must be a dense tensor, of layout torch.strided; got torch.jagged": lambda v, g, h0: (
        (torch.nested.nested_tensor([*v], layout=torch.jagged), g), {}),
    "initial_state must be of a floating-point dtype; got torch.complex64": lambda v, g, h0: ((v, g, h0 + 0j), {}),
    "with (order )?M >= 1; got": lambda v, g, h0: ((v, g[..., :1]) if v.ndim == 3 else (v[..., :0], g[..., :0, :1]), {}),
    "g must be a tensor; got None": lambda v, g, h0: ((v, None), {}),
    "v must be a tensor; got None": lambda v, g, h0: ((None, g), {}),
    "cu_seqlens must be on the device of v, 'cpu'; got 'meta'": lambda v, g, h0: (
        (v[:1], g[:1]), {"cu_seqlens": torch.tensor([0, 7], device="meta")}),
    r"integers of shape \[num_seqs\+1\]; got torch.int64 \[1\]": lambda v, g, h0: (
        (v[:1], g[:1]), {"cu_seqlens": torch.tensor([7])}),
    r"integers of shape \[num_seqs\+1\]; got torch.int64 \[2, 2\]": lambda v, g, h0: (
        (v[:1], g[:1]), {"cu_seqlens": torch.tensor([[0, 7], [0, 7]])}),
}  # fmt: skip


ALL = {name: op for name, (op, _) in OPS.items()} | REFERENCES


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("message", BAD_CALLS)
def test_errors(name, message, backend):
    v, g, h0 = make_inputs(name)
    if message == "g must have shape" and "hlru" in name:
        g = g[:, 1:]
    args, kwargs = BAD_CALLS[message](v, g, h0)
    with pytest.raises(ValueError, match=message):
        ALL[name](*args, **kwargs)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bounds", [[1, 6], [0, 4, 2, 6], [0, 3], [0, 3, 9]], ids=str)
def test_boundaries_are_checked(name, bounds, backend):
    v, g, _ = make_inputs(name, B=1, T=6)
    with pytest.raises(ValueError, match=f"cu_seqlens must rise from 0 to T=6; got {re.escape(str(bounds))}"):
        ALL[name](v, g, cu_seqlens=torch.tensor(bounds))
    with pytest.raises(ValueError, match="g must have shape"):
        ALL[name](v, g[:, :, :1])


WINDOW_ERRORS = {
    "o must have shape": (lambda o: (o[0], 2), {}),
    "order must be positive; got 0": (lambda o: (o, 0), {}),
    "order must be an integer; got 2.0": (lambda o: (o, 2.0), {}),
    "order must be an integer; got True": (lambda o: (o, True), {}),
    "o must be a tensor; got None": (lambda o: (None, 2), {}),
    "needs a batch of 1 .* got B=2": (lambda o: (o, 2), {"cu_seqlens": torch.tensor([0, 7])}),
    r"must rise from 0 to T=7; got \[0, 9\]": (lambda o: (o[:1], 2), {"cu_seqlens": torch.tensor([0, 9])}),
    r"initial_state must have shape \[2, 5, 2\]; got \[2, 5, 3\]": (lambda o: (o, 2, torch.zeros(2, 5, 3)), {}),
    "initial_state must be on the device of o": (lambda o: (o, 2, torch.zeros(2, 5, 2, device="meta")), {}),
}


@pytest.mark.parametrize("message", WINDOW_ERRORS)
def test_errors_of_hlru_window(message):
    args, kwargs = WINDOW_ERRORS[message]
    with pytest.raises(ValueError, match=message):
        hlru_window(*args(torch.randn(2, 7, 5)), **kwargs)
