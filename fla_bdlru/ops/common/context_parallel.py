"""Context parallelism: every rank runs its slice of the packed sequence, and slices exchange one (P, h) pair per block.

A slice maps the state that enters it to the one that leaves it, h -> P h + end. Slices follow each other in a chain as chunks
do on one device (pass 2 of `bdlru/README.md`), and the chain is short enough to be composed by everyone: all ranks gather all
pairs. P is zero where a document starts in the slice, so documents need no exchange of their own. The adjoint goes the other
way, on P^T, with the gradient that the slice sends back in place of `end`.

What this costs: a rank whose open documents all start in its slice, or all end there, runs the op once, one in the middle
of a document twice, forward and backward, the first time for what it hands on. P alone is wanted of a slice that a document
spans from end to end. Triton kernels that cut time into chunks have computed the chunks' transitions anyway, and their
product is P; elsewhere the op runs on M unit states without input, gates read M times. The exchange is M (M + 1) float32
values per lane and rank forward, M backward.

Everything here is gate-major, as inside the ops: states [S, M, L] and transitions [M, M, L] with L lanes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist

from fla_bdlru.ops.common.autograd import as_input, once_differentiable
from fla_bdlru.ops.common.checks import check_cu_seqlens
from fla_bdlru.ops.common.recompute import gates_of, save_with_gates

if TYPE_CHECKING:
    from fla.ops.cp import FLACPContext

    from fla_bdlru.ops.common.custom_op import Recurrence


class Part(NamedTuple):
    """A contiguous piece of the whole sequence on this rank: its place in the chain, its tokens and its documents."""

    slot: int
    tokens: slice
    first: int  # rows of its first and its last document among those of the rank
    last: int
    starts: bool  # whether the first document starts here
    ends: bool  # whether the last document ends here


def check_cp_context(cp_context: FLACPContext) -> torch.Tensor:
    """The boundaries of this rank's documents; `ValueError`, naming the field, for a context that cannot be heeded."""
    missing = [field for field in ("group", "cu_seqlens", "is_first_rank", "layout") if not hasattr(cp_context, field)]
    if missing:
        raise ValueError(
            f"cp_context must be what fla.ops.cp.build_cp_context returns; got {cp_context!r}, without {', '.join(missing)}."
        )
    if cp_context.cu_seqlens is None:
        raise ValueError("cp_context.cu_seqlens must hold the boundaries of this rank's documents; got None.")
    if cp_context.layout not in ("contiguous", "zigzag"):
        raise ValueError(f"cp_context.layout must be 'contiguous' or 'zigzag'; got {cp_context.layout!r}.")
    if cp_context.layout == "contiguous" and cp_context.is_first_rank is None:
        raise ValueError("cp_context.is_first_rank must say whether this rank's first document starts here; got None.")
    if cp_context.pre_num_ranks_dev is not None:
        raise ValueError("cp_context.pre_num_ranks_dev is set: CUDA graphs of context parallelism are not supported.")
    return cp_context.cu_seqlens


def parts_of(cp_context: FLACPContext) -> list[Part]:
    """The parts that this rank holds: one, or two in the zigzag layout."""
    rank, num_seqs = dist.get_rank(cp_context.group), len(cp_context.cu_seqlens) - 1
    if cp_context.layout == "contiguous":
        starts, ends = bool(cp_context.is_first_rank), bool(cp_context.is_last_rank)
        return [Part(rank, slice(None), 0, num_seqs - 1, starts, ends)]
    (start0, start1), (end0, end1) = cp_context.is_first_by_part, cp_context.is_last_by_part
    back, middle = 2 * dist.get_world_size(cp_context.group) - 1 - rank, cp_context.front_num_seqs
    return [
        Part(rank, slice(0, cp_context.part_len), 0, middle - 1, start0, end0),
        Part(back, slice(cp_context.part_len, None), middle, num_seqs - 1, start1, end1),
    ]


def gather_chain(x: torch.Tensor, cp_context: FLACPContext) -> torch.Tensor:
    """What all ranks hold for their parts, `x` [parts, ...], in the order of the chain: [slots, ...]."""
    gathered = x.new_empty(dist.get_world_size(cp_context.group), *x.shape)
    dist.all_gather(list(gathered), x.contiguous(), group=cp_context.group)
    # zigzag: rank r holds slots r and 2 * world_size - 1 - r
    return gathered[:, 0] if len(x) == 1 else torch.cat([gathered[:, 0], gathered[:, 1].flip(0)])


def sent_back(states: torch.Tensor, parts: list[Part]) -> torch.Tensor:
    """A row of `states` [num_seqs, ...] for each part: that of the document that goes on there, else zeros."""
    return torch.stack([torch.zeros_like(states[0]) if part.starts else states[part.first] for part in parts])


def carry(P: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
    """What enters each slot: y[0] = 0, y[c+1] = P[c] y[c] + x[c]. No matrix product: TF32 and autocast would round it.

    Where P is zero, as where a document starts, nothing comes from y, NaN neither.
    """
    y = [torch.zeros_like(x[0])]
    for P_c, x_c in zip(P[:-1], x[:-1]):
        y.append(torch.where(P_c == 0, 0.0, P_c * y[-1]).sum(1) + x_c)
    return y


def product(P: torch.Tensor) -> torch.Tensor:
    """P[-1] ... P[1] P[0] for P [NC, M, M, L], in log2(NC) rounds."""
    while len(P) > 1:
        later, earlier = P[1::2], P[: len(P) // 2 * 2 : 2]
        pairs = sum(later[:, :, j, None] * earlier[:, None, j] for j in range(P.shape[1]))
        P = torch.cat([pairs, P[-1:]]) if len(P) % 2 else pairs
    return P[0]


def unit_transition(op: Recurrence, v: torch.Tensor, g: torch.Tensor, states: torch.Tensor, options: tuple) -> torch.Tensor:
    """P [M, M, L] of tokens of one document: where M unit states (of the kind of `states`) go without input."""
    _, M, L = states.shape
    units = torch.eye(M, dtype=states.dtype, device=states.device)[:, None, :, None].repeat(1, 1, 1, L)
    v = torch.zeros_like(v)
    return torch.stack([op.forward(v, g, unit, None, *options)[1][0] for unit in units], 1)


class ContextParallel(torch.autograd.Function):
    """A recurrence over the slices of all ranks; every rank takes part in its forward and its backward."""

    @staticmethod
    def forward(ctx, cp_context, op, v, g, h0, cu_seqlens, *options):
        parts, (M, L) = parts_of(cp_context), (g.shape[-2] - 1, g.shape[-1])
        continued = [part for part in parts if not part.starts]
        dtype = torch.promote_types(v.dtype, torch.float32)
        start = v.new_zeros(len(cu_seqlens) - 1, M, L, dtype=dtype) if h0 is None else h0.clone()
        for part in continued:
            start[part.first] = 0
        cu_seqlens = None if len(start) == 1 else cu_seqlens

        result, pairs = None, start.new_zeros(len(parts), M + 1, M, L)
        if not all(part.ends for part in parts):
            result = op.forward(v, g, start, cu_seqlens, *options)
        for pair, part in zip(pairs, parts):
            if part.ends:
                continue  # nobody waits for it
            pair[M] = result[1][part.last]
            if part.first == part.last and not part.starts:
                whole = cu_seqlens is None and result[3].numel() > 0
                tokens = v[:, part.tokens], g[:, part.tokens]
                pair[:M] = product(result[3][0]) if whole else unit_transition(op, *tokens, start, options)
        chain = gather_chain(pairs, cp_context)
        entering = carry(chain[:, :M], chain[:, M])
        for part in continued:
            start[part.first] = entering[part.slot]
        if result is None or continued:
            result = op.forward(v, g, start, cu_seqlens, *options)

        o, ht, h, P = result
        ctx.cp_context, ctx.op, ctx.parts, ctx.options = cp_context, op, parts, options
        ctx.set_materialize_grads(False)
        save_with_gates(ctx, g, v, o, h, P, h0, start, cu_seqlens, chain)
        return o, ht

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, do, dht):
        g, v, o, h, P, h0, start, cu_seqlens, chain = saved
        g = gates_of(ctx, g)
        continued = [part for part in ctx.parts if not part.starts]
        open_ended = [part for part in ctx.parts if not part.ends]
        do = None if do is None else as_input(do)
        dht = torch.zeros_like(start) if dht is None else as_input(dht).clone()

        def run():
            return ctx.op.backward(v, g, o, h, P, start, do, dht, cu_seqlens, *ctx.options)

        grads = run() if continued else None
        sent = gather_chain(sent_back(grads[2] if continued else start, ctx.parts), ctx.cp_context)
        arriving = carry(chain[:, :-1].transpose(1, 2).flip(0), sent.flip(0))[::-1]
        for part in open_ended:
            dht[part.last] += arriving[part.slot]
        if grads is None or open_ended:
            grads = run()

        dv, dg, dh0 = grads
        for part in continued:
            dh0[part.first] = 0  # it was not read
        return None, None, dv, dg, None if h0 is None else dh0, None, *[None for _ in ctx.options]


class EnteringStates(torch.autograd.Function):
    """Moves the states at the end of parts to the next in the chain, into the rows of documents that go on there."""

    @staticmethod
    def forward(ctx, cp_context, final_state, initial_state):
        ctx.cp_context, ctx.parts = cp_context, parts_of(cp_context)
        ctx.has_initial_state = initial_state is not None
        ends = gather_chain(torch.stack([final_state[part.last] for part in ctx.parts]), cp_context)
        states = initial_state.clone() if ctx.has_initial_state else torch.zeros_like(final_state)
        for part in ctx.parts:
            if not part.starts:
                states[part.first] = ends[part.slot - 1]
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, dstates):
        dinitial, dfinal = dstates.clone(), torch.zeros_like(dstates)
        sent = gather_chain(sent_back(dstates, ctx.parts), ctx.cp_context)
        for part in ctx.parts:
            if not part.starts:
                dinitial[part.first] = 0
            if part.slot + 1 < len(sent):
                dfinal[part.last] += sent[part.slot + 1]
        return None, dfinal, dinitial if ctx.has_initial_state else None


@torch.compiler.disable
def context_parallel(cp_context: FLACPContext, op: Recurrence, v, g, h0, cu_seqlens, *options) -> tuple:
    """`o` and `ht` of `op`, whose inputs are those of the custom op, as if all ranks' slices were one sequence.

    Slices need not be of one length. A row of `h0` whose document began on an earlier rank is not read; a document that goes
    on at the next rank has in `ht` the state that it hands over.
    """
    check_cu_seqlens(cu_seqlens, v.shape[1])
    return ContextParallel.apply(cp_context, op, v, g, h0, cu_seqlens, *options)


@torch.compiler.disable
def entering_states(final_state: torch.Tensor, initial_state: torch.Tensor | None, cp_context: FLACPContext) -> torch.Tensor:
    """The states `[num_seqs, ...]` that this rank's documents start from: `initial_state`, or what an earlier rank hands over.

    The other two are what the op returned and was given. `hlru_window` reads from the result what lies before a document's
    first step on this rank. Gradients go back to the rank that a state came from; every rank takes part in both passes.
    """
    check_cp_context(cp_context)
    if cp_context.group is None:
        return torch.zeros_like(final_state) if initial_state is None else initial_state
    return EnteringStates.apply(cp_context, final_state, initial_state)


def entering_tokens(x: torch.Tensor, num: int, cp_context: FLACPContext) -> torch.Tensor:
    """The `num` tokens of `x` [1, T, D] before each document's first on this rank: [num_seqs, num, D], zeros where it starts.

    Raises:
        ValueError: if a slice is shorter than `num` tokens.
    """
    boundaries, t = cp_context.cu_seqlens, torch.arange(x.shape[1], device=x.device)
    last = x.new_zeros(len(boundaries) - 1, num, x.shape[-1])
    for part in parts_of(cp_context):
        tokens = t[part.tokens]
        if len(tokens) < num:
            raise ValueError(
                f"cp_context: a slice holds {len(tokens)} tokens, but a convolution over the next one reads {num} of them."
            )
        tokens = tokens[-num:]
        last[part.last] = torch.where((tokens >= boundaries[part.last])[:, None], x[0, tokens], 0.0)
    return entering_states(last, None, cp_context)
