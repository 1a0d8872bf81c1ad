"""CPU stand-ins for the two functions of the flash_attn package that FLA's attention layers call."""

import torch
import torch.nn.functional as F

MISSING = (
    "flash_attn is not installed: install it with `pip install flash-attn --no-build-isolation` to run attention "
    "on a GPU (tensors on a CPU do not need it)."
)


def _attend(q, k, v, q_lengths, k_lengths, softmax_scale, causal, window_size):
    """Attention of padded batches, [N, T, H, D], whose rows hold `q_lengths` queries and `k_lengths` keys."""
    # The last query sees the last key, so query i stands at key position i + k_length - q_length.
    query = torch.arange(q.shape[1])[:, None] + (k_lengths - q_lengths)[:, None, None]
    key = torch.arange(k.shape[1])
    mask = (key < k_lengths[:, None, None]) & (key <= query if causal else True)
    left, right = window_size
    if left >= 0:
        mask = mask & (key >= query - left)
    if right >= 0:
        mask = mask & (key <= query + right)
    # A query that sees nothing gets 0; it looks at key 0 meanwhile, so that its softmax has a value and a gradient.
    blind = ~mask.any(-1, keepdim=True)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    o = F.scaled_dot_product_attention(
        q, k, v, attn_mask=(mask | (blind & (key == 0)))[:, None], scale=softmax_scale, enable_gqa=True
    )
    return o.masked_fill(blind[:, None], 0.0).transpose(1, 2)


def _check(dropout_p: float, options: dict) -> None:
    unsupported = [name for name, value in options.items() if isinstance(value, torch.Tensor) or value]
    if dropout_p or unsupported:
        names = ["dropout_p"] * bool(dropout_p) + unsupported
        raise ValueError(f"Attention on a CPU does not have these flash_attn options: {', '.join(names)}.")


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    **options,
) -> torch.Tensor:
    """Attention over [B, T, H, D], with keys and values of the same number of heads or a divisor of it."""
    options.pop("deterministic", None)
    _check(dropout_p, options)
    q_lengths, k_lengths = (torch.full((t.shape[0],), t.shape[1]) for t in (q, k))
    return _attend(q, k, v, q_lengths, k_lengths, softmax_scale, causal, window_size)


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    **options,
) -> torch.Tensor:
    """Attention over packed documents, [tokens, H, D]."""
    options.pop("deterministic", None)
    _check(dropout_p, options)
    q_lengths, k_lengths = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    documents = zip(q.split(q_lengths), k.split(k_lengths), v.split(k_lengths))
    outputs = []
    for b_q, b_k, b_v in documents:
        if len(b_k) == 0:
            outputs.append(torch.zeros_like(b_q))
            continue
        lengths = torch.tensor([len(b_q)]), torch.tensor([len(b_k)])
        outputs.append(_attend(b_q[None], b_k[None], b_v[None], *lengths, softmax_scale, causal, window_size)[0])
    return torch.cat(outputs)
