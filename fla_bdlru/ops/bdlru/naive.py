"""BD-LRU in plain PyTorch: the recurrence as it is written, and the chunkwise form that the kernels follow."""

from __future__ import annotations

import torch

from fla_bdlru.ops.common.checks import check_arguments, check_count
from fla_bdlru.ops.common.scan import apply, chunk_scan, step_scan

AXES = "[B, T, H, M]"


def bdlru_step(A, b, h):
    """The output and the next state, which are the same here."""
    h = apply(A, h) + b
    return h, h


def naive_recurrent_bdlru(
    v: torch.Tensor,
    g: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    gate_norm: str = "softmax",
    cu_seqlens: torch.LongTensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    r"""BD-LRU as a loop over time; the reference of every test.

    With p = norm(g) along the last axis, `h_t[i] = sum_j p_t[i, j] h_{t-1}[j] + p_t[i, M] v_t[i]`, and `o_t = h_t`.
    Half types are computed in float32, float32 and float64 in their own precision. Gradients are autograd's.
    Arguments, results and errors are those of `chunk_bdlru` but for `cp_context`; the state of float64 inputs is float64.

    Source: arXiv 2602.12021, block-diagonal LRU.

    Example:
        >>> import torch
        >>> from fla_bdlru.ops.bdlru import naive_recurrent_bdlru
        >>> v, g = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4, 5)
        >>> o, state = naive_recurrent_bdlru(v, g, output_final_state=True)
        >>> assert o.shape == (2, 5, 3, 4) and torch.equal(o[:, -1], state)
    """
    check_arguments(AXES, v, g, initial_state, gate_norm, cu_seqlens)
    return step_scan(bdlru_step, v, g, initial_state, output_final_state, gate_norm, cu_seqlens)


def naive_chunk_bdlru(
    v: torch.Tensor,
    g: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    gate_norm: str = "softmax",
    cu_seqlens: torch.LongTensor | None = None,
    chunk_size: int = 32,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    r"""BD-LRU in chunks of `chunk_size` steps, the three passes of the kernels in plain PyTorch.

    About `2 chunk_size + T / chunk_size` dependent steps instead of T. Arguments and results are those of
    `naive_recurrent_bdlru`.

    Raises:
        ValueError: as `naive_recurrent_bdlru` does, and if `chunk_size` is not a positive integer.

    Source: arXiv 2602.12021, block-diagonal LRU; composition of affine maps as in any parallel scan.

    Example:
        >>> import torch
        >>> from fla_bdlru.ops.bdlru import naive_chunk_bdlru, naive_recurrent_bdlru
        >>> v, g = torch.randn(2, 13, 3, 4), torch.randn(2, 13, 3, 4, 5)
        >>> o, _ = naive_chunk_bdlru(v, g, chunk_size=4)
        >>> assert torch.allclose(o, naive_recurrent_bdlru(v, g)[0], atol=1e-6)
    """
    check_arguments(AXES, v, g, initial_state, gate_norm, cu_seqlens)
    check_count("chunk_size", chunk_size)
    return chunk_scan(v, g, initial_state, output_final_state, gate_norm, cu_seqlens, chunk_size)
