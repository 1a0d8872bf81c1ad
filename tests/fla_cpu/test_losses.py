"""FLA's fused losses on a CPU against the textbook formulas, with every option."""

import pytest
import torch
import torch.nn.functional as F
from fla.modules import FusedCrossEntropyLoss, FusedKLDivLoss, FusedLinearCrossEntropyLoss
from fla.modules.fused_cross_entropy import cross_entropy_loss
from fla.modules.fused_linear_cross_entropy import logsumexp_fwd
from fla.modules.l2warp import l2_warp
from float64 import rand

OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"logit_scale": 0.5},
    {"logit_softcapping": 2.0},
    {"lse_square_scale": 0.1},
    {"label_smoothing": 0.2, "logit_scale": 1.5, "logit_softcapping": 3.0, "lse_square_scale": 0.05},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(o) or "plain")
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def reference_loss(logits, target, label_smoothing=0.0, logit_scale=1.0, lse_square_scale=0.0, logit_softcapping=None):
    """Loss and z-loss of each row; ignored rows give zero."""
    z = logits * logit_scale
    z = z if logit_softcapping is None else logit_softcapping * torch.tanh(z / logit_softcapping)
    valid = target != -100
    loss = F.cross_entropy(z, target, reduction="none", label_smoothing=label_smoothing)
    z_loss = lse_square_scale * z.logsumexp(-1).square() * valid
    return loss + z_loss, z_loss.detach()


@each_dtype
@each_option
@pytest.mark.parametrize("shape", [(7, 11), (1, 2), (5, 1025)], ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_cross_entropy_loss(check, dtype, options, shape, inplace):
    target = torch.randint(shape[1], (shape[0],))
    target[0] = -100

    def fn(logits):
        # the gradient overwrites the logits in place, so they are a copy here
        return cross_entropy_loss(logits.clone(), target, inplace_backward=inplace, **options)

    fp32 = [torch.float32] * 2
    check(fn, lambda x: reference_loss(x, target, **options), [2 * rand(*shape)], dtype, out_dtypes=fp32)


def test_inplace_backward_overwrites_the_logits():
    logits, target = torch.randn(3, 5), torch.tensor([1, 2, -100])
    grads = {}
    for inplace in (False, True):
        leaf = logits.clone().requires_grad_()
        x = leaf * 1.0
        cross_entropy_loss(x, target, inplace_backward=inplace)[0].sum().backward()
        grads[inplace] = leaf.grad
        assert torch.equal(x.detach(), logits) != inplace
        assert x.detach().data_ptr() != leaf.data_ptr()
    assert torch.allclose(grads[True], grads[False], atol=1e-6)
    assert grads[True][2].abs().sum() == 0


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_module(reduction):
    logits, target = torch.randn(6, 9), torch.tensor([0, 3, -100, 8, -100, 1])
    loss, z_loss = FusedCrossEntropyLoss(reduction=reduction, lse_square_scale=0.1, return_z_loss=True)(logits, target)
    rows, z_rows = reference_loss(logits.double(), target, lse_square_scale=0.1)
    for got, expected in ((loss, rows), (z_loss, z_rows)):
        expected = {"mean": expected.sum() / 4, "sum": expected.sum(), "none": expected}[reduction]
        assert torch.allclose(got.double(), expected, atol=1e-6)
    plain = FusedCrossEntropyLoss(reduction="mean")(logits, target)
    assert torch.allclose(plain, F.cross_entropy(logits, target))


def test_vocabulary_parallel_loss_is_refused(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)
    with pytest.raises(ValueError, match="process_group has more than one rank"):
        cross_entropy_loss(torch.randn(2, 3), torch.tensor([0, 1]), process_group=object())


@each_dtype
@pytest.mark.parametrize("scale, softcapping", [(None, None), (0.5, 3.0)])
def test_logsumexp(dtype, scale, softcapping):
    x = (4 * torch.randn(3, 4, 1000)).to(dtype)
    z = x.double() * (scale or 1)
    z = z if softcapping is None else softcapping * torch.tanh(z / softcapping)
    got = logsumexp_fwd(x, scale=scale, softcapping=softcapping)
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), z.logsumexp(-1), atol=1e-5)
    assert logsumexp_fwd(x, dtype=torch.bfloat16).dtype == torch.bfloat16


def penalty(loss, logits, factor=1e-4):
    """What L2Warp adds to the gradient: of factor / 2 times the squared largest logit, averaged over tokens."""
    extra = factor / 2 * logits.flatten(0, -2).amax(-1).square().mean()
    return loss + extra - extra.detach()


@each_dtype
@pytest.mark.parametrize("shape", [(13, 8, 50), (5, 16, 7), (64, 4, 100)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "sum", "label_smoothing": 0.1},
        {"use_l2warp": True, "l2_penalty_factor": 0.5, "logit_scale": 0.7},
        {"logit_softcapping": 2.0, "num_chunks": 3, "accumulate_grad_in_fp32": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("bias", [False, True])
def test_linear_cross_entropy(check, dtype, shape, options, bias):
    N, D, V = shape
    target = torch.randint(V, (N,))
    target[1] = -100
    reduction = options.get("reduction", "mean")
    row_options = {k: v for k, v in options.items() if k in ("label_smoothing", "logit_scale", "logit_softcapping")}

    def reference(x, w, b):
        logits = F.linear(x, w, b)
        loss = reference_loss(logits, target, **row_options)[0].sum()
        loss = loss / (N - 1) if reduction == "mean" else loss
        return penalty(loss, logits, options["l2_penalty_factor"]) if options.get("use_l2warp") else loss

    criterion = FusedLinearCrossEntropyLoss(**options)
    inputs = [rand(N, D), rand(V, D), rand(V) if bias else None]
    fn = lambda x, w, b: criterion(x, target, w, b)  # noqa: E731
    if dtype == torch.bfloat16 and options.get("use_l2warp"):
        pytest.skip("rounding decides which logit is the largest")
    check(fn, reference, inputs, dtype, out_dtypes=[torch.float32], tolerance=5e-2 if dtype == torch.bfloat16 else None)


def test_linear_cross_entropy_gradient_follows_the_loss_scale():
    x, w, target = torch.randn(6, 4), torch.randn(9, 4), torch.randint(9, (6,))
    grads = []
    for scale in (1.0, 3.0):
        leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
        loss = FusedLinearCrossEntropyLoss()(leaves[0], target, leaves[1])
        grads.append(torch.autograd.grad(scale * loss, leaves))
    for one, three in zip(*grads):
        assert torch.allclose(3 * one, three, atol=1e-6)


def test_l2_warp(check):
    inputs = [rand(3, 4, 9)]

    def fn(logits):
        return l2_warp(logits.square().sum(), logits)

    check(fn, lambda logits: penalty(logits.square().sum(), logits), inputs)


@each_dtype
@pytest.mark.parametrize("shape", [(13, 8, 50), (5, 16, 7)], ids=str)
@pytest.mark.parametrize("fp32", [True, False])
def test_kl_div(check, dtype, shape, fp32):
    N, D, V = shape
    teacher_x, teacher_w = rand(N, D).to(dtype), rand(V, D).to(dtype)

    def reference(x, w):
        log_p, log_q = (F.linear(*pair).log_softmax(-1) for pair in ((x, w), (teacher_x.double(), teacher_w.double())))
        return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)

    criterion = FusedKLDivLoss(accumulate_grad_in_fp32=fp32)
    tolerance = 6e-2 if dtype == torch.bfloat16 else None
    inputs = [rand(N, D), rand(V, D)]
    fn = lambda x, w: criterion(x, teacher_x, w, teacher_w)  # noqa: E731
    check(fn, reference, inputs, dtype, out_dtypes=[torch.float32], tolerance=tolerance)
