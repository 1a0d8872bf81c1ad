"""Chunkwise H-LRU: parallel over chunks of time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fla_bdlru.ops.hlru.op import hlru

if TYPE_CHECKING:
    from fla.ops.cp import FLACPContext


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
        output_final_state (bool):
            Whether to return the last state. Default: `False`.
        gate_norm (str):
            One of `fla_bdlru.ops.GATE_NORMS`. Default: `"softmax"`.
        cu_seqlens (torch.LongTensor, Optional):
            Document boundaries of shape `[num_seqs+1]`, from 0 to T; needs B = 1. Default: `None`.
        cp_context (FLACPContext, Optional):
            What `fla.ops.cp.build_cp_context` returns: inputs are this rank's slice of the packed sequence, and its
            `cu_seqlens` win. States are those of this rank's documents; the initial state of one that began on an earlier
            rank is not read, the final state of one that goes on is what it hands over. All ranks of the group run forward
            and backward together. Default: `None`.

    Returns:
        (torch.Tensor, torch.Tensor | None):
            Outputs `[B, T, N]` in the dtype of `v`, and the final state `[B, N, M]` in float32, newest first, or `None`.

    Raises:
        ValueError: on shapes, dtypes or devices that do not fit, an unknown `gate_norm`, B > 1 with `cu_seqlens`, or a
            `cp_context` that cannot be heeded.

    Note:
        Memory is gate-major: `v` and `g.transpose(2, 3)` contiguous (N has stride 1) cost no copy, any other layout one
        copy each. The state comes as a view of that layout.
        Second derivatives need the PyTorch path (`FLA_BDLRU_BACKEND=torch`); elsewhere they raise `RuntimeError`.

    Source: arXiv 2602.12021, higher-order LRU.

    Example:
        >>> import torch
        >>> from fla_bdlru.ops import chunk_hlru
        >>> v, g = torch.randn(2, 16, 8), torch.randn(2, 16, 4, 8).transpose(2, 3)      # order 3
        >>> o, state = chunk_hlru(v, g, output_final_state=True)
        >>> assert state.shape == (2, 8, 3) and torch.equal(o[:, -1], state[..., 0])
    """
    return hlru(v, g, initial_state, output_final_state, gate_norm, cu_seqlens, cp_context, chunk=True)
