"""The last M outputs at every step, as the layer of the paper reads them."""

from __future__ import annotations

import torch

from fla_bdlru.ops.common.checks import check_count, check_cu_seqlens, check_state, check_tensor, num_sequences


def hlru_window(
    o: torch.Tensor,
    order: int,
    initial_state: torch.Tensor | None = None,
    cu_seqlens: torch.LongTensor | None = None,
) -> torch.Tensor:
    r"""Collects the window `[h_t, .., h_{t-M+1}]` at every step from the outputs of an H-LRU op.

    Args:
        o (torch.Tensor):
            Outputs of the op, `[B, T, N]`.
        order (int):
            The order M: how many outputs each window holds.
        initial_state (torch.Tensor, Optional):
            The state that the op started from, newest first, `[B, N, M]` (`[num_seqs, N, M]` with `cu_seqlens`): what lies
            before the first step. Default: zeros.
        cu_seqlens (torch.LongTensor, Optional):
            Document boundaries of shape `[num_seqs+1]`; no window reaches over one. Default: `None`.

    Returns:
        torch.Tensor:
            Windows of shape `[B, T, M, N]`, newest first.

    Raises:
        ValueError: if `order` is not a positive integer, on shapes that do not fit, or `cu_seqlens` that do not run from 0
            to T or come with B > 1.

    Source: arXiv 2602.12021, higher-order LRU.

    Example:
        >>> import torch
        >>> from fla_bdlru.ops import hlru_window
        >>> o = torch.arange(4.0).view(1, 4, 1)
        >>> assert hlru_window(o, order=2).squeeze().tolist() == [[0, 0], [1, 0], [2, 1], [3, 2]]
    """
    check_tensor("o", o)
    if o.ndim != 3:
        raise ValueError(f"o must have shape [B, T, N]; got {list(o.shape)}.")
    check_count("order", order)
    check_state(initial_state, (num_sequences("o", o, cu_seqlens), o.shape[2], order))
    check_cu_seqlens(cu_seqlens, o.shape[1])
    B, T, N = o.shape
    if cu_seqlens is None:
        # [B, M-1, N] oldest first, then the outputs
        past = o.new_zeros(B, order - 1, N)
        if initial_state is not None:
            past = initial_state[..., : order - 1].transpose(1, 2).flip(1).to(o.dtype)
        x = torch.cat([past, o], 1)
        if T == 0:
            return o.new_empty(B, 0, order, N)
        return x.unfold(1, order, 1).transpose(2, 3).flip(2)  # one copy, whose gradient is one sum
    num_seqs = cu_seqlens.shape[0] - 1
    t, lag = torch.arange(T, device=o.device), torch.arange(order, device=o.device)
    seq = torch.searchsorted(cu_seqlens[1:].contiguous(), t, right=True)
    since = (t - cu_seqlens[seq])[:, None] - lag  # [T, M], negative where the lag reaches before the document
    if initial_state is None:
        before, past = torch.full_like(since, T), o.new_zeros(1, N)
    else:
        before, past = T + seq[:, None] * order - since - 1, initial_state.transpose(1, 2).reshape(num_seqs * order, N)
    rows = torch.where(since >= 0, t[:, None] - lag, before)
    return torch.cat([o[0], past.to(o.dtype)])[rows].unsqueeze(0)
