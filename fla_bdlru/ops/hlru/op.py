"""The custom op behind `chunk_hlru` and `fused_recurrent_hlru`: checks, gate-major layout, dispatch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from fla_bdlru.ops.common.checks import check_hlru
from fla_bdlru.ops.common.context_parallel import check_cp_context, context_parallel
from fla_bdlru.ops.common.custom_op import as_input, as_state, define_recurrence, plain_recurrence
from fla_bdlru.ops.common.dispatch import resolve_backend
from fla_bdlru.ops.hlru.naive import naive_chunk_hlru

if TYPE_CHECKING:
    from fla.ops.cp import FLACPContext


def _native(backend: str):
    if backend == "cpu":
        from fla_bdlru.ops.cpu.hlru import cpu_hlru_bwd, cpu_hlru_fwd

        return cpu_hlru_fwd, cpu_hlru_bwd
    from fla_bdlru.ops.gpu.runtime import num_chunks, triton_bwd, triton_fwd
    from fla_bdlru.ops.hlru.kernels import KERNELS

    return partial(triton_fwd, KERNELS), partial(triton_bwd, KERNELS), partial(num_chunks, KERNELS)


_hlru, _passes = define_recurrence("hlru", _native, state_shape=lambda v, g: (g.shape[2] - 1, v.shape[2]))


def _plain(v, g, h0, cu_seqlens, gate_norm):
    o, ht = naive_chunk_hlru(v, g.transpose(2, 3), h0.transpose(1, 2), True, gate_norm, cu_seqlens)
    return o, ht.transpose(1, 2)


_plain_passes = plain_recurrence(_plain)


def hlru(
    v: torch.Tensor,
    g: torch.Tensor,
    initial_state: torch.Tensor | None,
    output_final_state: bool,
    gate_norm: str,
    cu_seqlens: torch.LongTensor | None,
    cp_context: FLACPContext | None,
    chunk: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Checks the arguments of a public op, brings them into gate-major layout (views, where they are so already), runs."""
    if cp_context is not None:
        cu_seqlens = check_cp_context(cp_context)
    check_hlru(v, g, initial_state, gate_norm, cu_seqlens)
    plain = resolve_backend(v.device, v.dtype, g.dtype) == "torch"
    parallel = cp_context is not None and cp_context.group is not None
    if plain and not parallel:
        return naive_chunk_hlru(v, g, initial_state, output_final_state, gate_norm, cu_seqlens)
    run = partial(context_parallel, cp_context, _plain_passes if plain else _passes) if parallel else _hlru
    o, ht = run(
        as_input(v),
        as_input(g.transpose(2, 3)),
        as_state(initial_state, v.dtype),
        None if cu_seqlens is None else cu_seqlens.long().contiguous(),
        gate_norm,
        chunk,
    )
    return o, ht.transpose(1, 2) if output_final_state else None
