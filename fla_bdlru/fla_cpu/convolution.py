"""PyTorch versions of `fla.modules.causal_conv1d.ops` and `fla.modules.token_shift`."""

import torch
import torch.nn.functional as F

from fla_bdlru.fla_cpu.activation import swish
from fla_bdlru.fla_cpu.common import are_for_kernels, check_shape, full_precision, upcast
from fla_bdlru.fla_cpu.documents import check_documents, token_positions

ACTIVATIONS = (None, "silu", "swish")


def _check(x, weight, bias, residual, activation) -> torch.Tensor:
    """`x` as tokens, [..., D]; raises `ValueError` for what does not go with it."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is not known; expected one of {ACTIVATIONS}.")
    if weight is None:
        raise ValueError("weight=None is not supported; expected a tensor of shape [D, W].")
    tokens = x if x.ndim < 3 or x.shape[-1] == weight.shape[0] else x.flatten(2)
    D = tokens.shape[-1]
    if weight.ndim != 2 or weight.shape[0] != D:
        raise ValueError(f"weight must have shape [D, W] with D={D} channels; got {list(weight.shape)}.")
    check_shape("bias", bias, (D,))
    if residual is not None and residual.numel() != x.numel():
        check_shape("residual", residual, x.shape)
    return tokens


def _check_state(tokens, initial_state, cu_seqlens, state_len) -> None:
    check_documents(tokens, cu_seqlens, initial_state)
    if initial_state is not None:
        check_shape("initial_state", initial_state, (len(initial_state), tokens.shape[-1], state_len))


def _behind(x, shifts, initial_state):
    """Whole sequences behind the `shifts` inputs before their start, [B, shifts + T, D]; zeros without a state."""
    if initial_state is None:
        return F.pad(x, (0, 0, shifts, 0))
    return torch.cat([initial_state[..., initial_state.shape[-1] - shifts :].mT, x], 1)


def _earlier(x, shifts, initial_state, cu_seqlens):
    """x[t - 1] to x[t - shifts] of the same sequence; before its start, the initial state's last columns or zero."""
    # x: [B, T, D], initial_state: [N, D, W], its last column is the input before the first token
    check_documents(x, cu_seqlens, initial_state)
    if cu_seqlens is None:
        long = _behind(x, shifts, initial_state)
        return [long[:, shifts - n : long.shape[1] - n] for n in range(1, shifts + 1)]
    sequence, position = token_positions(x, cu_seqlens)
    found, before = [], x.new_zeros(())
    for n in range(1, shifts + 1):
        if initial_state is not None:
            W = initial_state.shape[-1]
            before = initial_state[sequence, :, (position + W - n).clamp_max(W - 1)]
        # selected, not multiplied: what another sequence holds may be NaN
        found.append(F.pad(x, (0, 0, n, 0))[:, : x.shape[1]].where((position >= n)[:, None], before))
    return found


@full_precision
def _sequences(x, w, bias, initial_state):
    """The convolution of whole sequences as one of images, for whose layout PyTorch has a fast one."""
    images = _behind(x, w.shape[-1] - 1, initial_state).mT[:, :, None]
    return F.conv2d(images, w[:, None, None], bias, groups=x.shape[-1])[:, :, 0].mT


def _has_kernel(x, weight, bias, initial_state, cu_seqlens, *grads):
    return initial_state is None and cu_seqlens is None and x.numel() > 0 and are_for_kernels(x, weight, bias, *grads)


def _convolve(x, weight, bias, residual, initial_state, activation, cu_seqlens):
    """The convolution in fp32; x: [B, T, D], weight: [D, W]."""
    if _has_kernel(x, weight, bias, initial_state, cu_seqlens):
        from fla_bdlru.fla_cpu import native_convolution

        y = native_convolution.forward(x, weight, bias, activation is not None)
        return y if residual is None else y + upcast(residual).view(x.shape)
    s = upcast(x)
    w, bias, state = (None if t is None else t.to(s.dtype) for t in (weight, bias, initial_state))
    if cu_seqlens is None and x.numel():
        y = _sequences(s, w, bias, state)
    else:
        W = w.shape[-1]
        y = s * w[:, -1]
        for n, earlier in enumerate(_earlier(s, W - 1, state, cu_seqlens), 1):
            y = torch.addcmul(y, earlier, w[:, W - 1 - n])
        y = y if bias is None else y + bias
    if activation is not None:
        y = F.silu(y)
    return y if residual is None else y + upcast(residual).view(x.shape)


def _final_state(x, state_len, initial_state, cu_seqlens):
    """The last `state_len` inputs of each sequence, [N, D, state_len]."""
    if cu_seqlens is None:
        starts = torch.arange(x.shape[0], device=x.device) * x.shape[1]
        lengths = torch.full_like(starts, x.shape[1])
    else:
        starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    position = lengths[:, None] - state_len + torch.arange(state_len, device=starts.device)
    tokens = x.reshape(-1, x.shape[-1])
    if tokens.shape[0] == 0:
        tokens = F.pad(tokens, (0, 0, 0, 1))  # one to look at, in the graph of `x`
    index = (starts[:, None] + position).clamp(0, tokens.shape[0] - 1)
    state = tokens[index].masked_fill((position < 0)[..., None], 0.0).transpose(1, 2).contiguous()
    if initial_state is None:
        return state
    earlier = (position + state_len).clamp_max(initial_state.shape[-1] - 1).clamp_min(0)
    earlier = initial_state.to(x.dtype).gather(2, earlier[:, None].expand_as(state))
    return torch.where((position >= 0)[:, None], state, earlier)


def causal_conv1d_fwd(x, weight, bias, residual, initial_state, output_final_state, activation, cu_seqlens):
    tokens = _check(x, weight, bias, residual, activation)
    _check_state(tokens, initial_state, cu_seqlens, weight.shape[-1])
    y = _convolve(tokens, weight, bias, residual, initial_state, activation, cu_seqlens)
    final_state = _final_state(tokens, weight.shape[-1], initial_state, cu_seqlens) if output_final_state else None
    return y.to(x.dtype).view(x.shape), final_state


def causal_conv1d(
    x, weight=None, bias=None, residual=None, initial_state=None, output_final_state=False, activation=None,
    backend="triton", cu_seqlens=None, cu_seqlens_cpu=None, chunk_indices=None, cp_context=None, **kwargs,
):  # fmt: skip
    """The convolution for a tracer, which derives its gradients itself: it refuses those that `causal_conv1d_bwd` asks for."""
    if cp_context is not None:
        raise NotImplementedError("cp_context: a convolution split over ranks is not traced on a CPU; compile without it.")
    return causal_conv1d_fwd(x, weight, bias, residual, initial_state, output_final_state, activation, cu_seqlens)


def causal_conv1d_bwd(x, dy, dht, weight=None, bias=None, residual=None, initial_state=None, activation=None, cu_seqlens=None):
    tokens, dr = _check(x, weight, bias, residual, activation), dy if residual is not None else None
    _check_state(tokens, initial_state, cu_seqlens, weight.shape[-1])
    if dy.numel() != x.numel():
        check_shape("dy", dy, x.shape)
    if dht is None and _has_kernel(tokens, weight, bias, initial_state, cu_seqlens, dy):
        from fla_bdlru.fla_cpu import native_convolution

        dx, dw, db = native_convolution.backward(tokens, weight, bias, activation is not None, dy.reshape(tokens.shape))
        return dx.view(x.shape), dw, db, dr, None
    # The forward again with a graph: it has to be recomputed for the activation anyway.
    leaves = {"x": tokens, "weight": weight, "bias": bias, "initial_state": initial_state}
    again = torch.is_grad_enabled()  # somebody takes the derivative of this, too
    leaves = {
        name: t.view_as(t) if again and t.requires_grad else t.detach().requires_grad_()
        for name, t in leaves.items()
        if t is not None
    }
    with torch.enable_grad():
        state, bias_leaf = leaves.get("initial_state"), leaves.get("bias")
        y = _convolve(leaves["x"], leaves["weight"], bias_leaf, None, state, activation, cu_seqlens)
        outputs, grads = [y], [upcast(dy).reshape(y.shape)]
        if dht is not None:
            outputs.append(_final_state(leaves["x"], weight.shape[-1], state, cu_seqlens))
            grads.append(dht.to(outputs[-1].dtype))
        grads = dict(zip(leaves, torch.autograd.grad(outputs, list(leaves.values()), grads, create_graph=again)))
    return grads["x"].view(x.shape), grads["weight"], grads.get("bias"), dr, grads.get("initial_state")


def compute_dh0_triton(dy, y, weight, initial_state, activation, cu_seqlens, dht):
    # dy: [B, T, D], y: the output before the activation
    grad = upcast(dy)
    if activation is not None:
        grad = swish(upcast(y).view(dy.shape))[1](grad)
    zeros = torch.zeros_like(dy)
    return causal_conv1d_bwd(zeros, grad, dht, weight, initial_state=initial_state, cu_seqlens=cu_seqlens)[-1]


def causal_conv1d_update_states(x, state_len, initial_state, cu_seqlens):
    x = x[None] if x.dim() == 2 else x
    _check_state(x, initial_state, cu_seqlens, state_len)
    return _final_state(x, state_len, initial_state, cu_seqlens)


def causal_conv1d_update(x, cache, residual, weight, bias, activation):
    # x: [N, D], [N, 1, D] or [1, N, D], one token a sequence; cache: [N, D, W], updated in place
    token = upcast(_check(x, weight, bias, residual, activation)).reshape(-1, weight.shape[0])
    if cache is None:
        raise ValueError("cache=None is not supported; expected a tensor of shape [N, D, W].")
    check_shape("cache", cache, (len(token), *weight.shape))
    window = torch.cat([upcast(cache)[..., 1:], token[..., None]], -1)
    y = (window * upcast(weight)).sum(-1)
    if bias is not None:
        y = y + upcast(bias)
    if activation is not None:
        y = F.silu(y)
    if residual is not None:
        y = y + upcast(residual).reshape(y.shape)
    cache.copy_(window)
    return y.to(x.dtype).view(x.shape), cache


def token_shift_fwd(x, cu_seqlens=None, cache=None, output_cache=False):
    # y[t] = x[t - 1] - x[t], with the cache ([N, D]) or zero before the first token
    cache = None if cache is None else cache.view(-1, x.shape[-1], 1)
    y = _earlier(x, 1, cache, cu_seqlens)[0] - x
    N, T = (x.shape[0], x.shape[1]) if cu_seqlens is None else (len(cu_seqlens) - 1, int(cu_seqlens.diff().max()))
    cache_out = _final_state(x, 1, cache, cu_seqlens)[..., 0] if output_cache else None
    return y, N, T, True, cache_out


def token_shift_bwd(dy, N, dcache, cu_seqlens, has_init_cache):
    # not zeros_like, which would be batched as dy can be
    leaves = [torch.zeros(dy.shape, dtype=dy.dtype, device=dy.device, requires_grad=True)]
    if has_init_cache:
        leaves.append(torch.zeros(N, dy.shape[-1], dtype=dy.dtype, device=dy.device, requires_grad=True))
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        y, *_, cache_out = token_shift_fwd(leaves[0], cu_seqlens, *leaves[1:], output_cache=dcache is not None)
        outputs, grads = ([y], [dy]) if dcache is None else ([y, cache_out], [dy, dcache])
        grads = torch.autograd.grad(outputs, leaves, grads, create_graph=again)
    return grads if has_init_cache else (*grads, None)
