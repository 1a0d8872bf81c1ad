"""Derivatives of gradients of FLA's modules: right, or refused with an error that says so."""

import pytest
import torch
import torch.nn.functional as F
from fla.modules.fused_cross_entropy import cross_entropy_loss
from fla.modules.fused_kl_div import fused_kl_div_loss
from fla.modules.fused_linear_cross_entropy import fused_linear_cross_entropy_loss
from fla.modules.norm import fused_norm_gate, layernorm, layernorm_gated
from fla.modules.norm.l2norm import l2norm
from fla.modules.token_shift import token_shift
from fla.ops.common.gate import fused_beta_sigmoid
from float64 import rand
from torch.utils.checkpoint import checkpoint


def rms(x):
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def groups_of(x, size):
    return x.unflatten(-1, (-1, size))


X, W = (1, 2, 6), (6,)
TARGETS = torch.tensor([0, 4, 2, -100, 1])

# FLA's, and the formula
NORMS = {
    "rms": (lambda x, w: layernorm.rms_norm(x, w, None), lambda x, w: rms(x) * w, X, W),
    "without a weight": (lambda x: layernorm.rms_norm(x, None, None), rms, X),
    "of a sum": (
        lambda x, w, b, r: layernorm.layer_norm(x, w, b, residual=r, prenorm=True),
        lambda x, w, b, r: (F.layer_norm(x + r, W, w, b), x + r), X, W, W, X,
    ),
    "in groups": (
        lambda x, w, b: layernorm.group_norm(x, w, b, num_groups=2),
        lambda x, w, b: F.layer_norm(groups_of(x, 3), (3,)).flatten(-2) * w + b, X, W, W,
    ),
    "with a linear layer": (
        lambda x, w, v: layernorm.rms_norm_linear(x, w, None, v, None), lambda x, w, v: F.linear(rms(x) * w, v), X, W, (5, 6)
    ),
    "gated": (
        lambda x, g, w, r: fused_norm_gate.rms_norm_gated(x, g, w, None, "swish", residual=r, prenorm=True, eps=1e-5),
        lambda x, g, w, r: (rms(x + r) * w * F.silu(g), x + r), X, X, W, X,
    ),
    "sigmoid gate": (
        lambda x, g, w, b: fused_norm_gate.layer_norm_gated(x, g, w, b, "sigmoid", eps=1e-5),
        lambda x, g, w, b: F.layer_norm(x, W, w, b) * g.sigmoid(), X, X, W, W,
    ),
    "Mamba's": (
        lambda x, w, b, z: layernorm_gated.layernorm_fn(x, w, b, z, 1e-5, 3),
        lambda x, w, b, z: (F.layer_norm(groups_of(x, 3), (3,)).flatten(-2) * w + b) * F.silu(z), X, W, W, X,
    ),
    "Mamba's, the gate first": (
        lambda x, w, z: layernorm_gated.rmsnorm_fn(x, w, None, z, 1e-5, 3, norm_before_gate=False),
        lambda x, w, z: rms(groups_of(x * F.silu(z), 3)).flatten(-2) * w, X, W, X,
    ),
    "Mamba's, no gate": (lambda x, w: layernorm_gated.rmsnorm_fn(x, w, None, eps=1e-5), lambda x, w: rms(x) * w, X, W),
    "l2": (lambda x: l2norm(x, 1e-5), lambda x: x * (x.square().sum(-1, keepdim=True) + 1e-5).rsqrt(), X),
}  # fmt: skip
STRIDED = pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])


def inputs_of(shapes, strided):
    """Strided ones are transposed, which `float` leaves them, or every other one of a row, which it does not."""
    if not strided:
        return [rand(*shape) for shape in shapes]
    return [rand(*shape).mT.contiguous().mT if len(shape) > 1 else rand(2 * shape[0])[::2] for shape in shapes]


def by_constants(fn, i):
    """The second derivatives of outputs that meet a linear head, by one input alone."""

    def run(*inputs):
        outputs = fn(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum((o * torch.arange(1.0, 1 + o.numel()).view_as(o).sin().to(o)).sum() for o in outputs)
        grads = torch.autograd.grad(loss, inputs, create_graph=True)
        penalty = sum(grad.square().sum() for grad in grads)
        return torch.autograd.grad(penalty, inputs[i], allow_unused=True, materialize_grads=True)[0].clone().detach()

    return run


@STRIDED
@pytest.mark.parametrize("case", NORMS.values(), ids=NORMS)
def test_norms(case, strided, close):
    fn, formula, *shapes = case
    exact = [x.requires_grad_() for x in inputs_of(shapes, strided)]
    assert torch.autograd.gradgradcheck(fn, exact)
    inputs = [x.detach().float().requires_grad_() for x in exact]
    for i in range(len(shapes)):
        close(by_constants(fn, i)(*inputs), by_constants(formula, i)(*exact), 1e-4, i)


def test_norms_of_half_types(close):
    """The residual, in float32, and the input, in bfloat16, have their own gradients."""
    x, r, w = rand(*X), rand(*X), rand(*W)
    expected = [x.clone().requires_grad_(), r.clone().requires_grad_()]
    inputs = [x.bfloat16().requires_grad_(), r.float().requires_grad_()]
    for i in range(2):
        got = by_constants(lambda x, r: layernorm.rms_norm(x, w.bfloat16(), None, residual=r).float(), i)(*inputs)
        assert got.dtype == inputs[i].dtype
        close(got, by_constants(lambda x, r: rms(x + r) * w, i)(*expected), 5e-2, i)


def test_norms_of_a_checkpoint(close):
    """What is computed again has the graph of what there was the first time."""
    x, w = (rand(*shape).requires_grad_() for shape in (X, W))

    def run(x, w):
        return checkpoint(lambda x: layernorm.rms_norm(x.sin(), w, None), x, use_reentrant=False)

    for i in range(2):
        close(by_constants(run, i)(x, w), by_constants(lambda x, w: rms(x.sin()) * w, i)(x, w), 1e-10, i)


def test_norms_keep_no_more_than_they_did():
    """Of the terms of a sum nothing but their graph is kept."""
    kept = []
    x, r = (torch.ones(4, 8, requires_grad=True) * 1 for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layernorm.rms_norm(x, torch.ones(8), None, residual=r)
    stubs = [stub for group in y.grad_fn._fla_bdlru_noted.values() for stub in group]
    assert [stub.untyped_storage().nbytes() for stub in stubs] == [4, 4]
    assert not {t.data_ptr() for t in kept} & {x.data_ptr(), r.data_ptr()}


OPTIONS = {"label_smoothing": 0.2, "logit_scale": 1.5, "logit_softcapping": 3.0, "lse_square_scale": 0.05}


@STRIDED
@pytest.mark.parametrize("options", [{}, OPTIONS, {"inplace_backward": True}], ids=["plain", "options", "in place"])
def test_cross_entropy(options, strided, close):
    """With the derivative of plain PyTorch, where there is no z-loss."""
    (logits,) = (x.requires_grad_() for x in inputs_of([(5, 6)], strided))
    assert torch.autograd.gradgradcheck(lambda x: cross_entropy_loss(x, TARGETS, **options)[0], [logits])
    if options is not OPTIONS:
        x, expected = logits.detach().float().requires_grad_(), logits
        got = by_constants(lambda x: cross_entropy_loss(x, TARGETS, **options)[0], 0)(x)
        close(got, by_constants(lambda x: F.cross_entropy(x, TARGETS, reduction="none"), 0)(expected), 1e-4, "second")


@STRIDED
def test_sigmoid_of_beta(strided, close):
    (x,) = (x.requires_grad_() for x in inputs_of([X], strided))
    expected = by_constants(lambda x: 2 * x.sigmoid(), 0)(x)
    close(by_constants(lambda x: fused_beta_sigmoid(x, 2.0), 0)(x.detach().float().requires_grad_()), expected, 1e-4, "second")


BOUNDARIES = torch.tensor([0, 1, 1, 5])


@pytest.mark.parametrize("cu_seqlens", [None, BOUNDARIES], ids=["whole", "packed"])
def test_token_shift(cu_seqlens):
    """It is linear: what depends on the second derivative is the incoming gradient."""
    N = 2 if cu_seqlens is None else 3
    x, cache = rand(2 if cu_seqlens is None else 1, 5, 3).requires_grad_(), rand(N, 3).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: token_shift(x, cu_seqlens).pow(3), [x])
    assert torch.autograd.gradgradcheck(
        lambda x, cache: [o.pow(3) for o in token_shift(x, cu_seqlens, cache, output_cache=True)], [x, cache]
    )


def test_token_shift_as_plain_pytorch(close):
    x = rand(2, 5, 3).requires_grad_()
    close(
        by_constants(lambda x: token_shift(x).pow(3), 0)(x),
        by_constants(lambda x: (F.pad(x, (0, 0, 1, 0))[:, :-1] - x).pow(3), 0)(x), 1e-10, "second",
    )  # fmt: skip


FUSED = {
    "cross entropy": (lambda x, w, b: fused_linear_cross_entropy_loss(x, TARGETS, w, b), (5, 3), (6, 3), (6,)),
    "KL divergence": (lambda x, w: fused_kl_div_loss(x, torch.ones(5, 3), w, torch.eye(6, 3)), (5, 3), (6, 3)),
}  # fmt: skip
fused = pytest.mark.parametrize("case", FUSED.values(), ids=FUSED)


@fused
def test_losses_that_are_fused_with_a_linear_layer_are_refused(case):
    """Their gradients are constants, made in the forward pass; the part that comes from the incoming gradient is there."""
    fn, *shapes = case
    for i in range(len(shapes)):
        for last in (lambda loss: loss, torch.exp):
            inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
            grads = torch.autograd.grad(last(fn(*inputs)), inputs, create_graph=True)
            with pytest.raises(RuntimeError, match=r"cannot be differentiated again.*FLA's fused losses have none"):
                torch.autograd.grad(sum(grad.sum() for grad in grads), inputs[i])
    scale = torch.ones((), requires_grad=True)
    grads = torch.autograd.grad(scale * fn(*inputs), inputs, create_graph=True)
    by_scale = torch.autograd.grad(sum(grad.square().sum() for grad in grads), scale)[0]
    torch.testing.assert_close(by_scale, 2 * sum(grad.square().sum() for grad in grads))


@fused
def test_gradients_of_fused_losses_are_the_caller_s(case):
    """What was changed in place is not what the next backward pass of the same graph returns."""
    fn, *shapes = case
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    loss = fn(*inputs)
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    expected = [grad.clone() for grad in first]
    for grad in first:
        grad.mul_(2)
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), tuple(expected))
