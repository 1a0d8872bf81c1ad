"""BD-LRU: the public ops; `Recurrence` checks their arguments and takes them to what runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fla_bdlru.ops.bdlru.naive import AXES, bdlru_step
from fla_bdlru.ops.common.custom_op import Recurrence

if TYPE_CHECKING:
    from fla.ops.cp import FLACPContext

_bdlru = Recurrence("bdlru", AXES, bdlru_step)


def chunk_bdlru(
    v: torch.Tensor,
    g: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    gate_norm: str = "softmax",
    cu_seqlens: torch.LongTensor | None = None,
    cp_context: FLACPContext | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    r"""Block-diagonal linear recurrent unit, parallel over chunks of time.

    With p = norm(g) along the last axis, `h_t[i] = sum_j p_t[i, j] h_{t-1}[j] + p_t[i, M] v_t[i]`, and `o_t = h_t`. Gates
    are normalised inside, in float32, and never stored; the state is float32 whatever the inputs. On a CPU a native
    multi-threaded path runs (extra `cpu`); `FLA_BDLRU_BACKEND` forces a path.

    Args:
        v (torch.Tensor):
            Inputs of shape `[B, T, H, M]`: H blocks of M channels. float32, bfloat16 or float16 (float64, here or
            in `g`: PyTorch path).
        g (torch.Tensor):
            Gate logits of shape `[B, T, H, M, M+1]`; `g[..., i, j]` weighs channel j for row i, `g[..., i, M]` the input.
        initial_state (torch.Tensor, Optional):
            State of shape `[B, H, M]` (`[num_seqs, H, M]` with `cu_seqlens`). Default: zeros.
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
            Outputs `[B, T, H, M]` in the dtype of `v`, and the final state `[B, H, M]` in float32, or `None`.

    Raises:
        ValueError: on shapes, dtypes or devices that do not fit, an unknown `gate_norm`, B > 1 with `cu_seqlens`, or a
            `cp_context` that cannot be heeded.

    Note:
        Memory is gate-major: `v.transpose(2, 3)` and `g.permute(0, 1, 3, 4, 2)` contiguous (H has stride 1) cost no copy,
        any other layout one copy each. Outputs and states come as views of that layout.
        Second derivatives need the PyTorch path (`FLA_BDLRU_BACKEND=torch`); elsewhere they raise `RuntimeError`.

    Source: arXiv 2602.12021, block-diagonal LRU.

    Example:
        >>> import torch
        >>> from fla_bdlru.ops import chunk_bdlru
        >>> v = torch.randn(2, 16, 4, 8).transpose(2, 3)                    # H = 8 blocks of M = 4 channels
        >>> g = torch.randn(2, 16, 4, 5, 8).permute(0, 1, 4, 2, 3)
        >>> o, state = chunk_bdlru(v, g, output_final_state=True)
        >>> assert o.shape == v.shape and torch.equal(o[:, -1], state)
    """
    return _bdlru(v, g, initial_state, output_final_state, gate_norm, cu_seqlens, cp_context, chunk=True)


def fused_recurrent_bdlru(
    v: torch.Tensor,
    g: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    gate_norm: str = "softmax",
    cu_seqlens: torch.LongTensor | None = None,
    cp_context: FLACPContext | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    r"""Block-diagonal linear recurrent unit in one pass over time, for short inputs and decoding.

    The same function as `chunk_bdlru`, arguments, results and errors included; on a CPU it is the same code.

    Source: arXiv 2602.12021, block-diagonal LRU.

    Example:
        >>> import torch
        >>> from fla_bdlru.ops import chunk_bdlru, fused_recurrent_bdlru
        >>> v, g = torch.randn(2, 7, 8, 4), torch.randn(2, 7, 8, 4, 5)
        >>> _, state = chunk_bdlru(v[:, :6], g[:, :6], output_final_state=True)
        >>> step, _ = fused_recurrent_bdlru(v[:, 6:], g[:, 6:], initial_state=state)
        >>> assert torch.allclose(step, chunk_bdlru(v, g)[0][:, 6:], atol=1e-6)
    """
    return _bdlru(v, g, initial_state, output_final_state, gate_norm, cu_seqlens, cp_context, chunk=False)
