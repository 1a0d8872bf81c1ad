"""H-LRU in plain PyTorch: the recurrence as it is written, and the chunkwise form that the kernels follow."""

from __future__ import annotations

import torch

from fla_bdlru.ops.common.checks import check_arguments, check_count
from fla_bdlru.ops.common.scan import chunk_scan, step_scan

AXES = "[B, T, N]"


def hlru_step(A, b, window):
    """The output and the next state, the window with the output in front."""
    h = (A * window).sum(-1) + b
    return h, torch.cat([h.unsqueeze(-1), window[..., :-1]], -1)


def naive_recurrent_hlru(
    v: torch.Tensor,
    g: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    gate_norm: str = "softmax",
    cu_seqlens: torch.LongTensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    r"""H-LRU as a loop over time; the reference of every test.

    With p = norm(g) along the last axis, `h_t = sum_{i=1..M} p_t[i-1] h_{t-i} + p_t[M] v_t` per channel, and `o_t = h_t`.
    Half types are computed in float32, float32 and float64 in their own precision. Gradients are autograd's.
    Arguments, results and errors are those of `chunk_hlru` but for `cp_context`; the state of float64 inputs is float64.

    Source: arXiv 2602.12021, higher-order LRU.

    Example:
        >>> import torch
        >>> from fla_bdlru.ops.hlru import naive_recurrent_hlru
        >>> v, g = torch.randn(2, 5, 3), torch.randn(2, 5, 3, 5)
        >>> o, state = naive_recurrent_hlru(v, g, output_final_state=True)
        >>> assert state.shape == (2, 3, 4) and torch.equal(o[:, -1], state[..., 0]) and torch.equal(o[:, -2], state[..., 1])
    """
    check_arguments(AXES, v, g, initial_state, gate_norm, cu_seqlens)
    return step_scan(hlru_step, v, g, initial_state, output_final_state, gate_norm, cu_seqlens)


def naive_chunk_hlru(
    v: torch.Tensor,
    g: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    gate_norm: str = "softmax",
    cu_seqlens: torch.LongTensor | None = None,
    chunk_size: int = 32,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    r"""H-LRU in chunks of `chunk_size` steps: the chunkwise BD-LRU on companion matrices.

    The window `[h_t, .., h_{t-M+1}]` is a block whose first row holds the gates and whose other rows shift. Arguments and
    results are those of `naive_recurrent_hlru`.

    Raises:
        ValueError: as `naive_recurrent_hlru` does, and if `chunk_size` is not a positive integer.

    Source: arXiv 2602.12021, higher-order LRU, companion form.

    Example:
        >>> import torch
        >>> from fla_bdlru.ops.hlru import naive_chunk_hlru, naive_recurrent_hlru
        >>> v, g = torch.randn(2, 13, 3), torch.randn(2, 13, 3, 5)
        >>> o, _ = naive_chunk_hlru(v, g, chunk_size=4)
        >>> assert torch.allclose(o, naive_recurrent_hlru(v, g)[0], atol=1e-6)
    """
    check_arguments(AXES, v, g, initial_state, gate_norm, cu_seqlens)
    check_count("chunk_size", chunk_size)
    return chunk_scan(v, g, initial_state, output_final_state, gate_norm, cu_seqlens, chunk_size)
