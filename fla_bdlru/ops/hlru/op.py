"""H-LRU: the public ops; `Recurrence` checks their arguments and takes them to what runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fla_bdlru.ops.common.autograd import is_traced
from fla_bdlru.ops.common.checks import check_count, check_cu_seqlens, check_state, check_tensor, num_sequences
from fla_bdlru.ops.common.custom_op import Recurrence
from fla_bdlru.ops.hlru.naive import AXES, hlru_step

if TYPE_CHECKING:
    from fla.ops.cp import FLACPContext

_hlru = Recurrence("hlru", AXES, hlru_step)


def chunk_hlru(
    v: torch.Tensor,
    g: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    gate_norm: str = "softmax",
    cu_seqlens: torch.LongTensor | None = None,
    cp_context: FLACPContext | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    r"""Higher-order linear recurrent unit, parallel over chunks of time.

    With p = norm(g) along the last axis, `h_t = sum_{i=1..M} p_t[i-1] h_{t-i} + p_t[M] v_t` per channel, and `o_t = h_t`.
    Gates are normalised inside, in float32, and never stored; the state is float32 whatever the inputs. On a CPU a native
    multi-threaded path runs (extra `cpu`); `FLA_BDLRU_BACKEND` forces a path.

    Args:
        v (torch.Tensor):
            Inputs of shape `[B, T, N]`: N channels. float32, bfloat16 or float16 (float64, here or
            in `g`: PyTorch path).
        g (torch.Tensor):
            Gate logits of shape `[B, T, N, M+1]` for order M; `g[..., i]` weighs `h_{t-1-i}`, `g[..., M]` the input.
        initial_state (torch.Tensor, Optional):
            The last M values, newest first, of shape `[B, N, M]` (`[num_seqs, N, M]` with `cu_seqlens`). Default: zeros.
        output_final_state, gate_norm, cu_seqlens, cp_context:
            As in `chunk_bdlru`.

    Returns:
        (torch.Tensor, torch.Tensor | None):
            Outputs `[B, T, N]` in the dtype of `v`, and the final state `[B, N, M]` in float32, newest first, or `None`.

    Raises:
        ValueError: as `chunk_bdlru` does.

    Note:
        Memory is gate-major: `v` and `g.transpose(2, 3)` contiguous (N has stride 1) cost no copy, any other layout one
        copy each. The state comes as a view of that layout. Second derivatives are as `chunk_bdlru` has them.

    Source: arXiv 2602.12021, higher-order LRU.

    Example:
        >>> import torch
        >>> from fla_bdlru.ops import chunk_hlru
        >>> v, g = torch.randn(2, 16, 8), torch.randn(2, 16, 4, 8).transpose(2, 3)      # order 3
        >>> o, state = chunk_hlru(v, g, output_final_state=True)
        >>> assert state.shape == (2, 8, 3) and torch.equal(o[:, -1], state[..., 0])
    """
    return _hlru(v, g, initial_state, output_final_state, gate_norm, cu_seqlens, cp_context, chunk=True)


def fused_recurrent_hlru(
    v: torch.Tensor,
    g: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    gate_norm: str = "softmax",
    cu_seqlens: torch.LongTensor | None = None,
    cp_context: FLACPContext | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    r"""Higher-order linear recurrent unit in one pass over time, for short inputs and decoding.

    The same function as `chunk_hlru`, arguments, results and errors included; on a CPU it is the same code.

    Source: arXiv 2602.12021, higher-order LRU.

    Example:
        >>> import torch
        >>> from fla_bdlru.ops import chunk_hlru, fused_recurrent_hlru
        >>> v, g = torch.randn(2, 7, 8), torch.randn(2, 7, 8, 4)
        >>> _, state = chunk_hlru(v[:, :6], g[:, :6], output_final_state=True)
        >>> step, _ = fused_recurrent_hlru(v[:, 6:], g[:, 6:], initial_state=state)
        >>> assert torch.allclose(step, chunk_hlru(v, g)[0][:, 6:], atol=1e-6)
    """
    return _hlru(v, g, initial_state, output_final_state, gate_norm, cu_seqlens, cp_context, chunk=False)


def hlru_window(
    o: torch.Tensor, order: int, initial_state: torch.Tensor | None = None, cu_seqlens: torch.LongTensor | None = None
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
    check_state(initial_state, (num_sequences("o", o, cu_seqlens), o.shape[2], order), "o", o)
    check_cu_seqlens(cu_seqlens, o.shape[1])
    B, T, N = o.shape
    if cu_seqlens is None:
        # [B, M-1, N] oldest first, then the outputs
        past = o.new_zeros(B, order - 1, N)
        if initial_state is not None:
            past = initial_state[..., : order - 1].transpose(1, 2).flip(1).to(o.dtype)
        x = torch.cat([past, o], 1)
        if T == 0:
            return o[:, :, None].expand(B, 0, order, N)  # with its graph
        if is_traced():  # of views that overlap a tracer would ask for T >= order
            return torch.stack([x.narrow(1, order - 1 - lag, T) for lag in range(order)], 2)
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
