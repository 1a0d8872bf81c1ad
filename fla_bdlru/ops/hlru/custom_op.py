"""The custom op behind `chunk_hlru` and `fused_recurrent_hlru`: checks, gate-major layout, dispatch."""

from __future__ import annotations

from functools import partial

import torch

from fla_bdlru.ops.dispatch import resolve_backend
from fla_bdlru.ops.gate_norm import check_gate_norm
from fla_bdlru.ops.hlru.naive import naive_chunk_hlru
from fla_bdlru.ops.library import as_state, check_arguments, check_cu_seqlens, define_recurrence


def _native(backend: str):
    if backend == "cpu":
        from fla_bdlru.ops.hlru.cpu import cpu_hlru_bwd, cpu_hlru_fwd

        return cpu_hlru_fwd, cpu_hlru_bwd
    from fla_bdlru.ops.hlru.kernels import KERNELS
    from fla_bdlru.ops.triton_runtime import num_chunks, triton_bwd, triton_fwd

    return partial(triton_fwd, KERNELS), partial(triton_bwd, KERNELS), partial(num_chunks, KERNELS)


_hlru = define_recurrence("hlru", _native, state_shape=lambda v, g: (g.shape[2] - 1, v.shape[2]))


def hlru(
    v: torch.Tensor,
    g: torch.Tensor,
    initial_state: torch.Tensor | None,
    output_final_state: bool,
    gate_norm: str,
    cu_seqlens: torch.LongTensor | None,
    cp_context: object,
    chunk: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Checks the arguments of a public op, brings them into gate-major layout (views, where they are so already), runs."""
    check_gate_norm(gate_norm)
    if v.ndim != 3:
        raise ValueError(f"v must have shape [B, T, N]; got {list(v.shape)}.")
    if g.ndim != 4 or g.shape[-1] < 2:
        raise ValueError(f"g must have shape [B, T, N, M+1] with order M >= 1; got {list(g.shape)}.")
    order = g.shape[-1] - 1
    check_arguments(v, g, (*v.shape, order + 1), (v.shape[2], order), initial_state, cu_seqlens, cp_context)
    if resolve_backend(v.device, v.dtype) == "torch":
        check_cu_seqlens(cu_seqlens, v.shape[1])
        return naive_chunk_hlru(v, g, initial_state, output_final_state, gate_norm, cu_seqlens)
    o, ht = _hlru(
        v.contiguous(),
        g.transpose(2, 3).contiguous(),
        as_state(initial_state),
        None if cu_seqlens is None else cu_seqlens.long(),
        gate_norm,
        chunk,
    )
    return o, ht.transpose(1, 2) if output_final_state else None
