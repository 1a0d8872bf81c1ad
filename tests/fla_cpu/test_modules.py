"""FLA's modules on a CPU against the textbook formulas in float64: values, gradients, types, every option."""

import pytest
import torch
import torch.nn.functional as F
from fla.modules import (
    BitLinear,
    FusedBitLinear,
    FusedLayerNormGated,
    FusedRMSNormGated,
    GroupNorm,
    L2Norm,
    LayerNorm,
    RMSNorm,
    activations,
)
from fla.modules.feature_map import RebasedFeatureMap
from fla.modules.fused_norm_gate import layer_norm_swish_gate_linear, rms_norm_swish_gate_linear
from fla.modules.layernorm import group_norm, group_norm_linear, layer_norm, layer_norm_linear, rms_norm, rms_norm_linear
from fla.modules.layernorm_gated import LayerNormGated, RMSNormGated, layernorm_fn, rmsnorm_fn
from fla.modules.rotary import RotaryEmbedding, rotary_embedding
from float64 import rand

DTYPES = (torch.float32, torch.bfloat16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EPS = 1e-5


def normalize(x, is_rms_norm, eps=EPS):
    x = x if is_rms_norm else x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def affine(y, weight, bias):
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


@each_dtype
@pytest.mark.parametrize("shape", [(2, 5, 12), (3, 97), (1, 1, 3), (0, 8)], ids=str)
@pytest.mark.parametrize(
    "is_rms_norm, weight, bias, residual, prenorm",
    [
        (True, True, False, False, False),
        (True, True, True, True, True),
        (False, True, True, False, True),
        (False, False, False, True, False),
        (False, True, False, True, True),
        (True, False, False, False, True),
    ],
)
def test_layer_norm(check, dtype, shape, is_rms_norm, weight, bias, residual, prenorm):
    D = shape[-1]
    inputs = [rand(*shape), rand(D) if weight else None, rand(D) if bias else None, rand(*shape) if residual else None]

    def reference(x, w, b, r):
        s = x if r is None else x + r
        y = affine(normalize(s, is_rms_norm), w, b)
        return (y, s) if prenorm else y

    check(lambda x, w, b, r: layer_norm(x, w, b, r, EPS, prenorm, False, is_rms_norm), reference, inputs, dtype)
    if is_rms_norm:
        check(lambda x, w, b, r: rms_norm(x, w, b, r, EPS, prenorm), reference, inputs, dtype)


@pytest.mark.parametrize("residual", [False, True])
def test_residual_in_fp32(check, residual):
    inputs = [rand(3, 7, 20), rand(20), *([rand(3, 7, 20)] if residual else [])]

    def reference(x, w, *r):
        s = x + r[0] if r else x
        return normalize(s, True) * w, s

    # given a residual, its own type is kept: fp32 here
    def fn(x, w, *r):
        return rms_norm(x, w, None, r[0].float() if r else None, EPS, prenorm=True, residual_in_fp32=True)

    check(fn, reference, inputs, torch.bfloat16, out_dtypes=[torch.bfloat16, torch.float32])


@each_dtype
@pytest.mark.parametrize(
    "num_groups, is_rms_norm, bias", [(1, True, True), (3, True, True), (3, False, False), (7, False, True)]
)
def test_group_norm(check, dtype, num_groups, is_rms_norm, bias):
    inputs = [rand(2, 5, 21), rand(21), rand(21) if bias else None]

    def reference(x, w, b):
        return affine(normalize(x.unflatten(-1, (num_groups, -1)), is_rms_norm).flatten(-2), w, b)

    check(lambda x, w, b: group_norm(x, w, b, None, EPS, False, False, is_rms_norm, num_groups), reference, inputs, dtype)


@each_dtype
@pytest.mark.parametrize("is_rms_norm, num_groups, prenorm, bias", [(False, 1, True, True), (True, 3, False, False)])
def test_norm_then_linear(check, dtype, is_rms_norm, num_groups, prenorm, bias):
    inputs = [rand(2, 5, 12), rand(12), rand(12) if bias else None, rand(7, 12), rand(7) if bias else None, rand(2, 5, 12)]

    def reference(x, w, b, lw, lb, r):
        s = x + r
        y = affine(normalize(s.unflatten(-1, (num_groups, -1)), is_rms_norm).flatten(-2), w, b)
        return (F.linear(y, lw, lb), s) if prenorm else F.linear(y, lw, lb)

    fn = group_norm_linear if num_groups > 1 else layer_norm_linear
    groups = {"num_groups": num_groups} if num_groups > 1 else {}
    check(lambda *args: fn(*args, eps=EPS, prenorm=prenorm, is_rms_norm=is_rms_norm, **groups), reference, inputs, dtype)
    if is_rms_norm and num_groups == 1:
        check(lambda *args: rms_norm_linear(*args, eps=EPS, prenorm=prenorm), reference, inputs, dtype)


@each_dtype
@pytest.mark.parametrize("activation", ["swish", "sigmoid"])
@pytest.mark.parametrize("is_rms_norm", [True, False])
def test_gated_norm(check, dtype, activation, is_rms_norm):
    cls = FusedRMSNormGated if is_rms_norm else FusedLayerNormGated
    module = cls(33, eps=EPS, activation=activation).to(dtype)
    gate = F.silu if activation == "swish" else torch.sigmoid
    inputs = [rand(2, 3, 5, 33), rand(2, 3, 5, 33), rand(33)]

    def fn(x, g, w):
        return torch.func.functional_call(module, {"weight": w}, (x, g))

    check(fn, lambda x, g, w: normalize(x, is_rms_norm) * w * gate(g), inputs, dtype)


@each_dtype
@pytest.mark.parametrize("is_rms_norm", [True, False])
def test_gated_norm_with_residual_then_linear(check, dtype, is_rms_norm):
    inputs = [rand(2, 5, 12), rand(2, 5, 12), rand(12), None, rand(7, 12), rand(7), rand(2, 5, 12)]

    def reference(x, g, w, b, lw, lb, r):
        return F.linear(normalize(x + r, is_rms_norm) * w * F.silu(g), lw, lb), x + r

    fn = rms_norm_swish_gate_linear if is_rms_norm else layer_norm_swish_gate_linear
    check(lambda *args: fn(*args, prenorm=True, eps=EPS), reference, inputs, dtype)


@each_dtype
@pytest.mark.parametrize(
    "is_rms_norm, group_size, norm_before_gate, gate, bias",
    [
        (True, None, False, True, False),
        (True, 6, False, True, False),
        (True, 6, True, True, False),
        (False, 4, True, True, True),
        (False, None, False, True, True),
        (False, 3, False, False, True),
    ],
)
def test_mamba_gated_norm(check, dtype, is_rms_norm, group_size, norm_before_gate, gate, bias):
    inputs = [rand(2, 5, 12), rand(12), rand(12) if bias else None, rand(2, 5, 12) if gate else None]

    def reference(x, w, b, z):
        if gate and not norm_before_gate:
            x = x * F.silu(z)
        y = affine(normalize(x.unflatten(-1, (-1, group_size or 12)), is_rms_norm).flatten(-2), w, b)
        return y * F.silu(z) if gate and norm_before_gate else y

    options = {"eps": EPS, "group_size": group_size, "norm_before_gate": norm_before_gate}
    fn = rmsnorm_fn if is_rms_norm else layernorm_fn
    check(lambda x, w, b, z: fn(x, w, b, z, **options), reference, inputs, dtype)


def test_norm_modules_run():
    x = torch.randn(2, 5, 12)
    for module in (LayerNorm(12, bias=True), RMSNorm(12), GroupNorm(3, 12), L2Norm(), LayerNormGated(12), RMSNormGated(12)):
        assert module(x).shape == x.shape


@each_dtype
@pytest.mark.parametrize("shape", [(2, 5, 3, 16), (7, 2), (0, 4)], ids=str)
def test_l2norm(check, dtype, shape):
    def reference(x):
        return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()

    check(L2Norm(eps=1e-6), reference, [rand(*shape)], dtype)
    fp32 = L2Norm(eps=1e-6, output_dtype=torch.float32)
    check(fp32, reference, [rand(*shape)], dtype, out_dtypes=[torch.float32])


UNARY = {
    "sigmoid": (activations.sigmoid, torch.sigmoid),
    "swish": (activations.swish, F.silu),
    "logsigmoid": (activations.logsigmoid, F.logsigmoid),
    "logsigmoid / 16": (lambda x: activations.logsigmoid(x, 16.0), lambda x: F.logsigmoid(x) / 16),
    "elu_p1": (activations.elu_p1, lambda x: F.elu(x) + 1),
    "ELUPlusOneFunction": (activations.ops.ELUPlusOneFunction.apply, lambda x: F.elu(x) + 1),
    "sqrelu": (activations.sqrelu, lambda x: F.relu(x).square()),
    "gelu": (activations.fast_gelu_impl, lambda x: F.gelu(x, approximate="tanh")),
}


@each_dtype
@pytest.mark.parametrize("name", UNARY)
def test_activations(check, dtype, name):
    fn, reference = UNARY[name]
    for shape in ((2, 5, 13), (1,), (0, 3)):
        check(fn, reference, [3 * rand(*shape)], dtype)
    extreme = torch.tensor([-80.0, -20.0, 20.0, 80.0], dtype=torch.float64)
    check(fn, reference, [extreme], dtype)


def test_bias_gelu(check):
    def reference(x, b):
        return F.gelu(x + b, approximate="tanh")

    check(activations.ops.bias_gelu_impl, reference, [rand(6, 5), rand(5)])


def test_activations_accept_any_layout_and_return_it_contiguous(check):
    x = rand(4, 6, 10)
    halves = x.float().chunk(2, -1)
    for y in (activations.swish(halves[0]), activations.swiglu(*halves), activations.swish(x.float().transpose(0, 1))):
        assert y.is_contiguous()
    check(lambda x: activations.swiglu(*x.chunk(2, -1)), lambda x: F.silu(x[..., :5]) * x[..., 5:], [x])


def powglu(x, y, power=3.0):
    u = torch.where(x > 0, x, 1.0)
    return torch.where(x > 0, u ** (power / (u.sqrt() + 1)) * torch.sigmoid(x), F.silu(x)) * y


GATED = {
    "swiglu": (activations.swiglu, lambda x, y: F.silu(x) * y),
    "sigmoidglu": (activations.sigmoidglu, lambda x, y: torch.sigmoid(x) * y),
    "powglu": (activations.powglu, powglu),
    "powglu 2": (lambda x, y: activations.powglu(x, y, 2.0), lambda x, y: powglu(x, y, 2.0)),
}


@each_dtype
@pytest.mark.parametrize("name", GATED)
def test_gated_activations(check, dtype, name):
    fn, reference = GATED[name]
    # the exponent's derivative has a pole at 0, where half types resolve little
    x = 2 * rand(2, 5, 13)
    x = torch.where(x.abs() < 0.1, 0.1, x)
    check(fn, reference, [x, rand(2, 5, 13)], dtype)


@each_dtype
@pytest.mark.parametrize("name", ["swiglu", "sigmoidglu", "powglu"])
def test_gated_activations_then_linear(check, dtype, name):
    fn, reference = getattr(activations, f"{name}_linear"), GATED[name][1]
    x = rand(2, 5, 13).abs() + 0.1
    for bias in (None, rand(3)):
        inputs = [x, rand(2, 5, 13), rand(3, 13), bias]
        check(fn, lambda x, y, w, b: F.linear(reference(x, y), w, b), inputs, dtype)


@pytest.mark.parametrize("name", ["swiglu", "sigmoidglu", "powglu"])
def test_gated_activations_in_one_graph(name):
    torch._dynamo.reset()  # other tests have left it sizes that vary
    x, y, w = (torch.randn(*shape, requires_grad=True) for shape in ((2, 5), (2, 5), (3, 5)))
    for fn, inputs in ((getattr(activations, name), (x, y)), (getattr(activations, f"{name}_linear"), (x, y, w, None))):
        compiled, eager = torch.compile(fn, backend="aot_eager", fullgraph=True)(*inputs), fn(*inputs)
        torch.testing.assert_close(compiled, eager)
        torch.testing.assert_close(*(torch.autograd.grad(o.square().sum(), x)[0] for o in (compiled, eager)))


def rotate(x, cos, sin, positions, interleaved):
    """x: [T, H, D] of one sequence; positions below zero give zero."""
    R = cos.shape[-1]
    inside = (positions >= 0).to(x.dtype)[:, None, None]
    c, s = (t[positions.clamp_min(0)][:, None] * inside for t in (cos, sin))
    a, b = (x[..., : 2 * R : 2], x[..., 1 : 2 * R : 2]) if interleaved else (x[..., :R], x[..., R : 2 * R])
    y = (a * c - b * s, a * s + b * c)
    y = torch.stack(y, -1).flatten(-2) if interleaved else torch.cat(y, -1)
    return torch.cat([y, x[..., 2 * R :]], -1)


@each_dtype
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("offsets", [0, 3, torch.tensor([2, -4])], ids=str)
def test_rotary(check, dtype, interleaved, offsets):
    cos, sin, x = rand(16, 3).to(dtype), rand(16, 3).to(dtype), rand(2, 9, 2, 8)

    def reference(x):
        starts = offsets if torch.is_tensor(offsets) else torch.tensor([offsets] * 2)
        c, s = cos.double(), sin.double()
        return torch.stack([rotate(x[i], c, s, starts[i] + torch.arange(9), interleaved) for i in range(2)])

    check(lambda x: rotary_embedding(x, cos, sin, interleaved, seqlen_offsets=offsets), reference, [x], dtype)


@pytest.mark.parametrize("offsets", [0, torch.tensor([1, 0, 5])], ids=str)
def test_rotary_packed(check, offsets):
    cos, sin, x, cu_seqlens = rand(16, 4), rand(16, 4), rand(1, 9, 2, 8), torch.tensor([0, 4, 4, 9])

    def reference(x):
        starts = offsets if torch.is_tensor(offsets) else torch.zeros(3, dtype=torch.long)
        parts = zip(x[0].split(cu_seqlens.diff().tolist()), starts)
        return torch.cat([rotate(part, cos, sin, start + torch.arange(len(part)), False) for part, start in parts])[None]

    options = {"seqlen_offsets": offsets, "cu_seqlens": cu_seqlens}
    check(lambda x: rotary_embedding(x, cos.float(), sin.float(), **options), reference, [x])


def test_rotary_inplace_and_errors():
    x, cos, sin = torch.randn(1, 4, 1, 8), torch.randn(6, 2), torch.randn(6, 2)
    expected = rotary_embedding(x, cos, sin)
    y = x.clone()
    assert rotary_embedding(y, cos, sin, inplace=True).data_ptr() == y.data_ptr()
    assert torch.equal(y, expected)
    with pytest.raises(ValueError, match="Position 8 is outside the rotary cache of 6 positions"):
        rotary_embedding(x, cos, sin, seqlen_offsets=5)
    with pytest.raises(ValueError, match="expected one type"):
        rotary_embedding(x.bfloat16(), cos, sin)


def test_rotary_scores_depend_on_distance_only():
    rotary = RotaryEmbedding(8)
    q, k = torch.randn(1, 1, 1, 8).expand(1, 12, 1, 8), torch.randn(1, 1, 1, 8).expand(1, 12, 1, 8)
    q, k = rotary(q, k)
    scores = q[0, :, 0] @ k[0, :, 0].t()
    assert torch.allclose(scores[1:, 1:], scores[:-1, :-1], atol=1e-5)


@each_dtype
def test_bitlinear(dtype):
    """The fused layer is the layer that FLA writes in plain PyTorch, which rounds after a norm of its own."""
    fused, plain = FusedBitLinear(12, 7).to(dtype), BitLinear(12, 7).to(dtype)
    fused.norm.weight.data.uniform_(0.5, 2)
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(2, 5, 12, dtype=dtype)
    results = []
    for module in (fused, plain):
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        y.float().square().sum().backward()
        results.append([y, leaf.grad, module.weight.grad, module.norm.weight.grad])
    for a, b in zip(*results):
        # in half types a value near the edge between two levels may round either way
        assert (a.float() - b.float()).norm() / b.float().norm() < (1e-5 if dtype == torch.float32 else 3e-2)


def test_bitlinear_with_bias():
    layer = FusedBitLinear(12, 7, bias=True)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 5, 12)
    y = layer(x)
    y.sum().backward()
    assert torch.allclose(layer.bias.grad, torch.full((7,), 10.0))
    layer.bias.data.zero_()
    assert not torch.allclose(layer(x), y)


def test_quantised_rows_have_at_most_256_levels():
    from fla_bdlru.fla_cpu.norm import activation_quant

    x = torch.randn(4, 300)
    y = activation_quant(x)
    scaled = y * 127 / x.abs().amax(-1, keepdim=True)
    assert torch.allclose(scaled, scaled.round(), atol=1e-4)
    assert ((y - x).abs() <= x.abs().amax(-1, keepdim=True) / 254 + 1e-6).all()
    # halves go away from zero
    assert torch.equal(activation_quant(torch.tensor([[127.0, 2.5, -2.5]])), torch.tensor([[127.0, 3.0, -3.0]]))


def test_rebased_feature_map_runs():
    feature_map = RebasedFeatureMap(8)
    x = torch.randn(2, 5, 3, 8, requires_grad=True)
    feature_map(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert feature_map.gamma.grad.abs().sum() > 0
