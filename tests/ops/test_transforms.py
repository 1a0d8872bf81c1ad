"""torch.func over the ops and layers, batched gradients, torch.jit.trace and ONNX."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from references import OPS, REFERENCES
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vjp, vmap

from fla_bdlru.layers import BDLRU, HLRU
from fla_bdlru.ops import hlru_window

each_op = pytest.mark.parametrize("name", OPS)
CU_SEQLENS = torch.tensor([[0, 2, 2, 7], [0, 3, 5, 7], [0, 0, 7, 7]])


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    monkeypatch.setenv("FLA_BDLRU_BACKEND", "cpu")


def make_inputs(name, *lead, B=2, T=7, num_seqs=None):
    shape = (*lead, B, T, 5, 3) if "bdlru" in name else (*lead, B, T, 5)
    return torch.randn(shape), torch.randn(*shape, 4), torch.randn(*lead, num_seqs or B, 5, 3)


def loss_of(op):
    def loss(v, g, h0, cu_seqlens=None):
        o, ht = op(v, g, h0, True, cu_seqlens=cu_seqlens)
        return o.square().sum() + ht.sum()

    return loss


def assert_close(got, expected, tolerance=1e-5):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def stacked(function, *inputs):
    """A vmap as the loop that it stands for."""
    results = [function(*(x[i] for x in inputs)) for i in range(len(inputs[0]))]
    return [torch.stack(x) for x in zip(*results)]


@each_op
def test_vmap_equals_a_loop(name):
    """Values, and gradients inside and outside, along any axis; nested; where an input is shared."""
    op, naive = OPS[name]
    v, g, h0 = make_inputs(name, 3)
    loss, expected = grad(loss_of(op), (0, 1, 2)), stacked(grad(loss_of(naive), (0, 1, 2)), v, g, h0)
    assert_close(vmap(loss)(v, g, h0), expected)
    assert_close(grad(lambda *x: vmap(loss_of(op))(*x).sum(), (0, 1, 2))(v, g, h0), expected)
    same = torch.randn_like(v[0]), torch.randn_like(h0[0])  # one gradient of outputs and states for all calls
    pull = [lambda *x, f=f: vjp(lambda *x: f(*x, True), *x)[1](same) for f in (op, naive)]
    assert_close(vmap(pull[0])(v, g, h0), stacked(pull[1], v, g, h0))
    nested = vmap(vmap(loss))(*(torch.stack([x, x], 1) for x in (v, g, h0)))
    assert_close([x[:, 1] for x in nested], expected)
    got = vmap(lambda v, g, h0: op(v, g, h0, True), (1, None, 2), (1, 0))(v.movedim(0, 1), g[0], h0.movedim(0, 2))
    o, ht = stacked(lambda v, h0: naive(v, g[0], h0, True), v, h0)
    assert_close(got, (o.movedim(0, 1), ht))


@each_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vmap_over_packed_documents(name, dtype):
    """Each with boundaries of its own, or all with the same."""
    op, naive = OPS[name]
    v, g, h0 = make_inputs(name, 3, B=1, num_seqs=3)
    v, g = v.to(dtype), g.to(dtype)
    for cu_seqlens, dim in ((CU_SEQLENS, 0), (CU_SEQLENS[1], None)):
        got = vmap(grad(loss_of(op), (0, 1, 2)), (0, 0, 0, dim))(v, g, h0, cu_seqlens)
        expected = stacked(grad(loss_of(naive), (0, 1, 2)), v, g, h0, CU_SEQLENS if dim == 0 else cu_seqlens.expand(3, -1))
        assert_close(got, expected, 1e-5 if dtype == torch.float32 else 0.05)
    with pytest.raises(ValueError, match=r"cu_seqlens must rise from 0 to T=7; got \[0, 5\]"):
        vmap(lambda v, g, x: op(v, g, cu_seqlens=x)[0])(v, g, torch.tensor([[0, 5], [0, 7], [0, 7]]))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_over_windows_of_packed_documents():
    o = torch.randn(3, 1, 7, 5)
    got = vmap(lambda o, cu_seqlens: hlru_window(o, 2, cu_seqlens=cu_seqlens))(o, CU_SEQLENS)
    assert torch.equal(got, torch.stack([hlru_window(x, 2, cu_seqlens=y) for x, y in zip(o, CU_SEQLENS)]))


@each_op
def test_derivatives_of_many_directions(name):
    """`jacrev`, batched gradients of one forward pass, dense and packed, and forward-mode ones, which are plain PyTorch's."""
    (op, naive), plain = OPS[name], REFERENCES[f"naive_chunk_{name.rpartition('_')[2]}"]
    v, g, h0 = make_inputs(name, B=1, num_seqs=3)
    expected = jacrev(lambda v: naive(v, g)[0][0, -1])(v)
    assert_close([jacrev(lambda v: op(v, g)[0][0, -1])(v)], [expected])
    for cu_seqlens, state in ((None, h0[:1]), (CU_SEQLENS[0], h0)):
        results, directions = [], [torch.randn(4, *x.shape) for x in (v, state)]
        for f in (op, plain, naive):
            leaves = [x.clone().requires_grad_() for x in (v, g, state)]
            outputs = f(*leaves, True, cu_seqlens=cu_seqlens)
            results.append(torch.autograd.grad(outputs, leaves, directions, is_grads_batched=True))
        assert_close(results[0], results[2])
        assert_close(results[1], results[2])
    tangents = tuple(torch.randn_like(x) for x in (v, g, h0[:1]))
    for a, b in zip(*(jvp(partial(f, output_final_state=True), (v, g, h0[:1]), tangents) for f in (op, naive))):
        assert_close(a, b)
    _, expected = jvp(lambda v: naive(v, g)[0], (v,), tangents[:1])
    with forward_ad.dual_level():  # without torch.func
        assert_close([forward_ad.unpack_dual(op(forward_ad.make_dual(v, tangents[0]), g)[0]).tangent], [expected])
    assert_close(*([hessian(partial(cubed, f))(v[:, :2], g[:, :2])] for f in (op, naive)))


def cubed(op, v, g):
    return op(v, g)[0].pow(3).sum()


@each_op
def test_one_forward_pass_and_many_gradients(name):
    """Of half types, whose float32 states the forward pass keeps, without an axis for the gradients."""
    v, g, _ = (x.bfloat16() for x in make_inputs(name))
    o, pull = vjp(lambda *x: OPS[name][0](*x)[0], v, g)
    directions = torch.randn(3, *o.shape).bfloat16()
    assert_close(vmap(pull)(directions), [torch.stack(x) for x in zip(*map(pull, directions))])


@each_op
def test_what_cannot_be_transformed_says_so(name, monkeypatch):
    op, (v, g, _) = OPS[name][0], make_inputs(name, B=1)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        grad(lambda v: grad(partial(cubed, op))(v, g).sum())(v)
    context = SimpleNamespace(group=object(), cu_seqlens=torch.tensor([0, 7]), is_first_rank=True, layout="contiguous")
    context.pre_num_ranks_dev = None
    for transform in (grad, lambda f: lambda v: jvp(f, (v,), (v,))):
        with pytest.raises(RuntimeError, match="cp_context cannot go through"):
            transform(lambda v: op(v, g, cp_context=context)[0].sum())(v)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with FakeTensorMode() as mode, pytest.raises(ValueError, match="cu_seqlens cannot be exported"):
        op(*map(mode.from_tensor, (v, g)), cu_seqlens=torch.empty(2, dtype=torch.long))


@pytest.mark.parametrize("name", ["chunk_bdlru", "chunk_hlru"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_exporters_see_has_the_types_of_the_op(name, dtype, monkeypatch):
    v, g, h0 = (x.to(t) for x, t in zip(make_inputs(name), (dtype, dtype, torch.float32)))
    expected = OPS[name][0](v, g, h0, True)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    with FakeTensorMode() as mode:
        got = OPS[name][0](*(mode.from_tensor(x) for x in (v, g, h0)), True)
    assert [(x.shape, x.dtype) for x in got] == [(x.shape, x.dtype) for x in expected]


@each_op
def test_jit_trace(name):
    """The graph holds the custom op, and takes other sizes."""
    op = OPS[name][0]
    traced = torch.jit.trace(lambda *x: op(*x, True), make_inputs(name))
    assert f"fla_bdlru::{name.split('_')[-1]}" in str(traced.graph)
    other = make_inputs(name, B=3, T=9)
    assert_close(traced(*other), op(*other, True))


@pytest.mark.parametrize("layer", [BDLRU, HLRU])
@pytest.mark.parametrize("options", [{}, {"selective": False}, {"use_short_conv": True}], ids=str)
def test_layers_in_ensembles_and_gradients_per_sample(layer, options):
    layers = [layer(hidden_size=16, **options) for _ in range(3)]
    x = torch.randn(2, 9, 16)
    parameters = {name: x.detach() for name, x in stack_module_state(layers)[0].items()}

    def loss(parameters, x):
        return functional_call(layers[0], parameters, (x,))[0].square().sum()

    ensemble = vmap(grad(loss), (0, None))(parameters, x)
    for i, one in enumerate(layers):
        expected = torch.autograd.grad(one(x)[0].square().sum(), list(one.parameters()))
        assert_close([ensemble[name][i] for name, _ in one.named_parameters()], expected)
    first = {name: x[0] for name, x in parameters.items()}
    per_sample = vmap(grad(loss), (None, 0))(first, x[:, None])
    together = grad(loss)(first, x)
    assert_close([per_sample[name].sum(0) for name in first], [together[name] for name in first])
    direction, out = torch.randn_like(x), lambda x: functional_call(layers[0], first, (x,))[0]
    o, slope = jvp(out, (x,), (direction,))
    weights = torch.randn_like(o)
    assert_close([(slope * weights).sum()], [(vjp(out, x)[1](weights)[0] * direction).sum()])


@pytest.mark.parametrize("layer", [BDLRU, HLRU])
@pytest.mark.parametrize("options", [{}, {"use_short_conv": True}], ids=str)
def test_layers_on_padded_batches(layer, options):
    layer, x, mask = layer(hidden_size=16, **options), torch.randn(3, 2, 7, 16), torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters, x):
        return functional_call(layer, parameters, (x, mask))[0].square().sum()

    found = vmap(grad(loss), (None, 0))(parameters, x)
    for i, one in enumerate(x):
        expected = torch.autograd.grad(layer(one, mask)[0].square().sum(), list(layer.parameters()))
        assert_close([found[name][i] for name in parameters], expected)
    with pytest.raises(ValueError, match=r"attention_mask is mapped over by vmap, .*; pass None, or cu_seqlens"):
        vmap(lambda x, mask: layer(x[None], mask[None])[0])(x[0], mask)


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        output = self.model(x, use_cache=False)
        return output[0] if isinstance(output, tuple) else output.logits


@pytest.mark.parametrize("name", ["BDLRU", "HLRU", "model"])
def test_onnx(name, tmp_path):
    """Exported once, run by onnxruntime at other sizes."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    from fla_bdlru.models import BDLRUConfig, BDLRUForCausalLM

    if name == "model":
        model = BDLRUForCausalLM(BDLRUConfig(hidden_size=16, num_hidden_layers=2, vocab_size=32))
        inputs = [torch.randint(0, 32, shape) for shape in ((2, 9), (3, 17))]
    else:
        model = {"BDLRU": BDLRU, "HLRU": HLRU}[name](hidden_size=16)
        inputs = [torch.randn(*shape, 16) for shape in ((2, 9), (3, 17))]
    model = Logits(model).eval()
    sizes = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}}
    torch.onnx.export(model, (inputs[0],), dynamo=True, dynamic_shapes=sizes).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for x in inputs:
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), model(x).detach(), rtol=1e-4, atol=1e-5)
