"""BD-LRU in one pass, serial over time: short inputs and decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fla_bdlru.ops.bdlru.op import bdlru

if TYPE_CHECKING:
    from fla.ops.cp import FLACPContext


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

    The same function as `chunk_bdlru`, arguments, results and errors included; on a CPU
    it is the same code.

    Source: arXiv 2602.12021, block-diagonal LRU.

    Example:
        >>> import torch
        >>> from fla_bdlru.ops import chunk_bdlru, fused_recurrent_bdlru
        >>> v, g = torch.randn(2, 7, 8, 4), torch.randn(2, 7, 8, 4, 5)
        >>> _, state = chunk_bdlru(v[:, :6], g[:, :6], output_final_state=True)
        >>> step, _ = fused_recurrent_bdlru(v[:, 6:], g[:, 6:], initial_state=state)
        >>> assert torch.allclose(step, chunk_bdlru(v, g)[0][:, 6:], atol=1e-6)
    """
    return bdlru(v, g, initial_state, output_final_state, gate_norm, cu_seqlens, cp_context, chunk=False)
