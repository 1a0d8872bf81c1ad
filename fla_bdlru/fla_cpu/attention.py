"""Softmax attention on a CPU: stand-ins for the flash_attn package, and PyTorch versions of `fla.ops.attn`."""

import torch
import torch.nn.functional as F

from fla_bdlru.fla_cpu.common import check_shape, full_precision, upcast
from fla_bdlru.fla_cpu.documents import check_documents, split_documents
from fla_bdlru.ops.common.checks import check_cu_seqlens

MISSING = (
    "flash_attn is not installed: install it with `pip install flash-attn --no-build-isolation` to run attention "
    "on a GPU (tensors on a CPU do not need it)."
)


def _attend(q, k, v, softmax_scale, causal, window_size):
    """Attention of q [N, Tq, H, D] to k and v [N, Tk, Hk, D]; the last query stands at the last key."""
    check_shape("k", k, (q.shape[0], *k.shape[1:3], q.shape[-1]))
    check_shape("v", v, (*k.shape[:3], v.shape[-1]))
    query = torch.arange(k.shape[1] - q.shape[1], k.shape[1], device=k.device)[:, None]
    key = torch.arange(k.shape[1], device=k.device)
    left, right = window_size
    mask = (key <= query) | (not causal)
    if left >= 0:
        mask = mask & (key >= query - left)
    if right >= 0:
        mask = mask & (key <= query + right)
    # A query that sees nothing gets 0; it looks at key 0 meanwhile, so that its softmax has a value and a gradient.
    blind = ~mask.any(-1, keepdim=True)
    mask = mask | (blind & (key == 0))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=softmax_scale, enable_gqa=True)
    return o.masked_fill(blind, 0.0).transpose(1, 2)


def _check(**options) -> None:
    names = [name for name, x in options.items() if name != "deterministic" and (isinstance(x, torch.Tensor) or x)]
    if names:
        raise ValueError(f"Attention on a CPU does not have these flash_attn options: {', '.join(names)}.")


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), **options):
    """Attention over [B, T, H, D], with keys and values of the same number of heads or a divisor of it."""
    _check(dropout_p=dropout_p, **options)
    return _attend(q, k, v, softmax_scale, causal, window_size)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q=None, max_seqlen_k=None, dropout_p=0.0, softmax_scale=None,
    causal=False, window_size=(-1, -1), **options,
):  # fmt: skip
    """Attention over packed documents, [tokens, H, D]."""
    _check(dropout_p=dropout_p, **options)
    check_cu_seqlens(cu_seqlens_q, len(q), "cu_seqlens_q")
    check_cu_seqlens(cu_seqlens_k, len(k), "cu_seqlens_k")
    q_lengths, k_lengths = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    if len(q_lengths) != len(k_lengths):
        raise ValueError(
            f"cu_seqlens_q holds {len(q_lengths)} sequences, and cu_seqlens_k {len(k_lengths)}; expected as many."
        )
    outputs = []
    for document in zip(q.split(q_lengths), k.split(k_lengths), v.split(k_lengths)):
        b_q, b_k, b_v = (t[None] for t in document)
        seen = b_k.shape[1] > 0
        outputs.append(_attend(b_q, b_k, b_v, softmax_scale, causal, window_size)[0] if seen else torch.zeros_like(b_q[0]))
    return torch.cat(outputs)


@full_precision
def _gated_attend(q, k, v, g, scale, window_size, sink_bias):
    """Causal attention of one or more sequences whose last query stands at the last key, in fp32.

    q: [N, Tq, HQ, K], k: [N, Tk, H, K], v: [N, Tk, H, V]; g: log decay of each key's step, [N, Tk, HQ]; sink_bias: [HQ].
    """
    groups, (Tq, Tk) = q.shape[2] // k.shape[2], (q.shape[1], k.shape[1])
    q, k, v = (upcast(t).transpose(1, 2) for t in (q, k, v))
    k, v = (t.repeat_interleave(groups, 1) for t in (k, v))
    scores = scale * q @ k.transpose(-1, -2)
    if g is not None:
        total = g.double().cumsum(1).transpose(1, 2)
        scores = scores + (total[:, :, Tk - Tq :, None] - total[:, :, None]).to(scores.dtype)
    distance = torch.arange(Tk - Tq, Tk, device=k.device)[:, None] - torch.arange(Tk, device=k.device)
    hidden = distance < 0 if window_size is None else (distance < 0) | (distance >= window_size)
    scores = scores.masked_fill(hidden, -torch.inf)
    if sink_bias is not None:
        # a key without a value: it takes part of the weights
        sink = upcast(sink_bias)[:, None, None].expand(*scores.shape[:-1], 1)
        return (torch.cat([scores, sink], -1).softmax(-1)[..., :-1] @ v).transpose(1, 2)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def _check_parts(q, k, v, g, sink_bias):
    check_shape("k", k, (*k.shape[:3], q.shape[-1]))
    check_shape("v", v, (*k.shape[:3], v.shape[-1]))
    check_shape("g", g, (*k.shape[:2], q.shape[2]))
    check_shape("sink_bias", sink_bias, (q.shape[2],))
    if k.shape[2] == 0 or q.shape[2] % k.shape[2] != 0:
        raise ValueError(f"{q.shape[2]} query heads are not a multiple of {k.shape[2]} key heads.")


def parallel_attn(q, k, v, g, scale, window_size, cu_seqlens, sink_bias):
    check_shape("k", k, (*q.shape[:2], *k.shape[2:]))
    _check_parts(q, k, v, g, sink_bias)
    check_documents(q, cu_seqlens, None)
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    parts = split_documents(cu_seqlens, q, k, v, g)
    return torch.cat([_gated_attend(*part, scale, window_size, sink_bias) for part in parts], 1).to(v.dtype)


def attn_decoding_one_step(q, k, v, g, scale, cu_seqlens, do_gate_scale, window_size, sink_bias):
    # q: [1, N, HQ, K], one query a sequence; k, v, g: [1, tokens, ...], packed
    _check_parts(q, k, v, g, sink_bias)
    if cu_seqlens is None or (window_size is not None and window_size < 0):
        raise ValueError(f"cu_seqlens={cu_seqlens}, window_size={window_size}: expected boundaries and a size of 0 or more.")
    check_documents(k, cu_seqlens, None)
    check_shape("q", q, (1, len(cu_seqlens) - 1, *q.shape[2:]))
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    g = g * scale if do_gate_scale and g is not None else g
    outputs = []
    for query, (keys, values, gates) in zip(q.split(1, 1), split_documents(cu_seqlens, k, v, g)):
        if keys.shape[1] == 0 or window_size == 0:
            outputs.append(query.new_zeros(1, 1, q.shape[2], v.shape[-1], dtype=v.dtype))
        else:
            outputs.append(_gated_attend(query, keys, values, gates, scale, window_size, sink_bias).to(v.dtype))
    return torch.cat(outputs, 1)
