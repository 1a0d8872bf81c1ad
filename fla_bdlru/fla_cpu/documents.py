"""Packed documents (`cu_seqlens`) as padded batches, so that an operation needs no notion of them."""

from collections.abc import Callable, Iterator

import torch

from fla_bdlru.ops.common.checks import check_cu_seqlens


def check_documents(x: torch.Tensor, cu_seqlens: torch.Tensor | None, initial_state: torch.Tensor | None) -> None:
    """Raises `ValueError` unless packed inputs `x` [B, T, ...] have B = 1, boundaries from 0 to T, one state a document."""
    B, T = x.shape[:2]
    if cu_seqlens is not None and B != 1:
        raise ValueError(f"The batch size is {B}; with cu_seqlens it has to be 1 (flatten the documents).")
    if cu_seqlens is not None and (cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2 or cu_seqlens.is_floating_point()):
        found = f"{cu_seqlens.dtype} {list(cu_seqlens.shape)}"
        raise ValueError(f"cu_seqlens must be integers of shape [num_seqs+1]; got {found}.")
    check_cu_seqlens(cu_seqlens, T)
    expected = B if cu_seqlens is None else len(cu_seqlens) - 1
    if initial_state is not None and initial_state.shape[0] != expected:
        raise ValueError(f"initial_state holds {initial_state.shape[0]} states; expected {expected}, one for each sequence.")


def token_positions(x: torch.Tensor, cu_seqlens: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequence number and position within the sequence of each of the B*T tokens of `x` ([B, T, ...])."""
    B, T = x.shape[:2]
    if cu_seqlens is None:
        rows, steps = (torch.arange(n, device=x.device) for n in (B, T))
        return rows.repeat_interleave(T), steps.repeat(B)
    starts = cu_seqlens.long()
    sequence = torch.arange(len(starts) - 1, device=starts.device).repeat_interleave(starts.diff(), output_size=T)
    return sequence, torch.arange(T, device=starts.device) - starts[sequence]


def prepare_chunk_indices(cu_seqlens: torch.Tensor, chunk_size: int, cu_seqlens_cpu: torch.Tensor | None) -> torch.Tensor:
    """FLA's own, for boundaries of any integer type: torch repeats by two of them only, which FLA caches as they are."""
    from fla.ops.utils import index

    cu_seqlens, cu_seqlens_cpu = (
        t if t is None or t.dtype in (torch.int32, torch.int64) else t.long() for t in (cu_seqlens, cu_seqlens_cpu)
    )
    return index.prepare_chunk_indices._fla_bdlru_original(cu_seqlens, chunk_size, cu_seqlens_cpu)


def _buckets(lengths: torch.Tensor) -> list[torch.Tensor]:
    """Documents grouped so that padding at most doubles a group: lengths in (2^(i-1), 2^i] go together."""
    exponents = (lengths.double().log2().ceil()).where(lengths > 0, -1.0)
    return [(exponents == e).nonzero().flatten() for e in exponents.unique()]


def split_documents(cu_seqlens: torch.Tensor | None, *tensors: torch.Tensor | None) -> Iterator[tuple]:
    """Document by document, its part of every tensor, [1, T, ...] or `None`; the first is a tensor."""
    lengths = [tensors[0].shape[1]] if cu_seqlens is None else cu_seqlens.diff().tolist()
    return zip(*([None] * len(lengths) if t is None else t.split(lengths, 1) for t in tensors))


def run_documents(fn: Callable, tensors: tuple, initial_state: torch.Tensor | None, cu_seqlens: torch.Tensor | None) -> tuple:
    """Runs `fn` on every document of packed inputs, [1, T, ...] or `None`, a bucket of similar lengths at a time.

    `fn(*tensors, initial_state)`, on [N, T, ...] inputs and one state a document, returns the output [N, T, ...] and the final
    state or None; a step whose inputs are all zero has to leave the state as it is. Without `cu_seqlens` it gets all as it is.
    """
    if cu_seqlens is None:
        return fn(*tensors, initial_state)
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    outputs, states, order, documents = [], [], [], []
    for members in _buckets(lengths):
        steps = torch.arange(int(lengths[members].max()), device=lengths.device)
        mask = steps < lengths[members, None]
        tokens = (starts[members, None] + steps)[mask]
        padded = [None if t is None else _pad(t[0, tokens], mask) for t in tensors]
        output, state = fn(*padded, None if initial_state is None else initial_state[members])
        outputs.append(output[mask])
        states.append(state)
        order.append(tokens)
        documents.append(members)
    output = torch.cat(outputs)[torch.cat(order).argsort()]
    states = None if states[0] is None else torch.cat(states)[torch.cat(documents).argsort()]
    return output[None], states


def _pad(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[tokens, ...] to [documents, steps, ...] with zeros where `mask` is false."""
    return tokens.new_zeros(*mask.shape, *tokens.shape[1:]).index_put((mask,), tokens)
