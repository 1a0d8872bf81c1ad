"""PyTorch versions of FLA's fused losses: cross entropy, linear + cross entropy, KL divergence."""

import torch
import torch.nn.functional as F

from fla_bdlru.fla_cpu.common import check_shape, is_batched, upcast


def _check_group(process_group) -> None:
    if process_group is not None and torch.distributed.get_world_size(process_group) > 1:
        raise ValueError(
            "process_group has more than one rank: vocabulary-parallel cross entropy needs tensors on a GPU; "
            "on a CPU pass process_group=None."
        )


def _transform(logits, logit_scale, logit_softcapping):
    """Scaled and softcapped logits in fp32, and the tanh that the softcap's gradient needs."""
    z, tanh = upcast(logits), None
    if logit_scale != 1.0:
        z = z * logit_scale
    if logit_softcapping is not None:
        tanh = torch.tanh(z / logit_softcapping)
        z = logit_softcapping * tanh
    return z, tanh


def cross_entropy_fwd(
    logits, target, label_smoothing, logit_scale, lse_square_scale, logit_softcapping, ignore_index, process_group
):
    # logits: [N, V]; loss (with the z-loss), z_loss, lse: [N] fp32
    _check_group(process_group)
    check_shape("target", target, logits.shape[:1])
    V = logits.shape[-1]
    z, _ = _transform(logits, logit_scale, logit_softcapping)
    lse = z.logsumexp(-1)
    valid = target != ignore_index
    picked = z.gather(-1, target.where(valid, torch.zeros_like(target))[:, None])[:, 0]
    loss = lse - (1 - label_smoothing) * picked
    if label_smoothing > 0:
        loss = loss - label_smoothing / V * z.sum(-1)
    z_loss = (lse_square_scale * lse.square()).masked_fill(~valid, 0.0)
    loss = loss.masked_fill(~valid, 0.0) + z_loss
    return loss, z_loss, lse, V, 0


def cross_entropy_bwd(
    logits, target, lse, dloss, label_smoothing, logit_scale, lse_square_scale, logit_softcapping, ignore_index,
    total_classes, inplace_backward,
):  # fmt: skip
    again = torch.is_grad_enabled()
    if again or is_batched(dloss):
        logits = logits.view_as(logits) if again and logits.requires_grad else logits.detach().requires_grad_()
        options = label_smoothing, logit_scale, lse_square_scale, logit_softcapping, ignore_index, None
        with torch.enable_grad():
            loss = cross_entropy_fwd(logits, target, *options)[0]
        return torch.autograd.grad(loss, logits, dloss, create_graph=again)[0]
    total_classes = total_classes or logits.shape[-1]
    z, tanh = _transform(logits, logit_scale, logit_softcapping)
    valid = target != ignore_index
    # With no transform `z` is `logits`, which only `inplace_backward` may overwrite.
    dz = z.sub_(lse[:, None]) if inplace_backward or z is not logits else z - lse[:, None]
    dz = dz.exp_()
    if lse_square_scale != 0.0:
        dz = dz.mul_(1 + 2 * lse_square_scale * lse[:, None])
    if label_smoothing > 0:
        dz = dz.sub_(label_smoothing / total_classes)
    index = target.where(valid, torch.zeros_like(target))[:, None]
    dz = dz.scatter_add_(-1, index, dz.new_full((), label_smoothing - 1.0).expand_as(index))
    if tanh is not None:
        dz = dz.mul_(1 - tanh.square())
    dz = dz.mul_((upcast(dloss) * logit_scale)[:, None]).masked_fill_(~valid[:, None], 0.0)
    if inplace_backward:
        return logits if dz is logits else logits.copy_(dz)
    return dz.to(logits.dtype)


def cross_entropy_loss_forward(self, input, target):
    """`FusedCrossEntropyLoss.forward` without its check that the tensors are on a GPU.

    A tracer gets the formula alone, whose gradient it derives and whose memory it plans.
    """
    from fla.modules.fused_cross_entropy.ops import cross_entropy_loss

    names = ["label_smoothing", "logit_scale", "lse_square_scale", "logit_softcapping", "ignore_index", "process_group"]
    options = {name: getattr(self, name) for name in names}
    if torch.compiler.is_compiling():
        loss, z_loss, *_ = cross_entropy_fwd(input, target, **options)
        z_loss = z_loss.detach()
    else:
        loss, z_loss = cross_entropy_loss(input, target, inplace_backward=self.inplace_backward, **options)
    if self.reduction != "none":
        total = (target != self.ignore_index).sum() if self.reduction == "mean" else 1
        loss, z_loss = loss.sum() / total, z_loss.sum() / total
    return (loss, z_loss) if self.return_z_loss else loss


def logsumexp_fwd(x, scale, softcapping, dtype):
    z, _ = _transform(x, 1.0 if scale is None else scale, softcapping)
    z = z.logsumexp(-1)
    return z if dtype is None else z.to(dtype)


def _scaled(grads, do):
    """Gradients saved by the forward, times the gradient of the loss; as they are if nobody needs them again."""
    again = torch.is_grad_enabled() or torch._C._autograd._get_current_graph_task_keep_graph()
    whole = not again and not do.is_meta and not is_batched(do) and do == 1
    return tuple(grad if grad is None or whole else (grad * do).to(grad.dtype) for grad in grads)


def fused_linear_cross_entropy_bwd(do, dx, dw, db):
    return _scaled((dx, dw, db), do)


def fused_kl_div_fwd(x, target_x, weight, target_weight, reduction, accumulate_grad_in_fp32, use_dx, use_dw):
    # x, target_x: [N, D]; weight, target_weight: [V, D]. Rows go in blocks, to hold block x V logits at a time.
    (N, D), V = x.shape, weight.shape[0]
    check_shape("target_x", target_x, (N, *target_x.shape[1:]))  # the teacher may have another width
    check_shape("weight", weight, (V, D))
    check_shape("target_weight", target_weight, (V, *target_x.shape[1:]))
    grad_dtype = torch.float32 if accumulate_grad_in_fp32 else weight.dtype
    block = max(1, -(-N // min(8, -(-V // D))))
    divisor = N if reduction == "batchmean" else 1
    loss, dx = 0.0, []
    dw = torch.zeros_like(weight, dtype=grad_dtype) if use_dw else None
    for b_x, b_target_x in zip(x.split(block), target_x.split(block)):
        log_p = upcast(F.linear(b_x, weight)).log_softmax(-1)
        log_q = upcast(F.linear(b_target_x, target_weight)).log_softmax(-1)
        q = log_q.exp()
        loss = loss + (q * (log_q - log_p)).sum() / divisor
        dlogits = ((log_p.exp() - q) / divisor).to(x.dtype)
        if use_dx:
            dx.append(dlogits @ weight)
        if use_dw:
            dw += dlogits.t().to(grad_dtype) @ b_x.to(grad_dtype)
    return loss, torch.cat(dx).to(x.dtype) if use_dx else None, dw.to(weight.dtype) if use_dw else None


def fused_kl_div_bwd(do, dx, dw):
    return _scaled((dx, dw), do)
