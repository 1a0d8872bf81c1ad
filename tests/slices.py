"""A packed sequence that several ranks hold in slices: what each computes, and the naive recurrence on the whole of it."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from fla.ops.cp import FLACPContext, build_cp_context
from ranks import uneven_context
from references import OPS

from fla_bdlru.ops import hlru_window
from fla_bdlru.ops.common.context_parallel import entering_states

WIDTH = 17


class Case(NamedTuple):
    """A packed sequence, and how many tokens each rank holds (a number: equal slices on so many, by FLA's own builder)."""

    cu_seqlens: list[int]
    lengths: list[int] | int
    op: str = ""
    M: int = 3
    dtype: torch.dtype = torch.float32
    with_h0: bool = True
    layout: str = "contiguous"
    scale: float = 1.0

    @property
    def world_size(self):
        return self.lengths if isinstance(self.lengths, int) else len(self.lengths)


def make_context(case: Case, rank: int) -> tuple[FLACPContext, torch.Tensor, list[int]]:
    if not isinstance(case.lengths, int):
        return uneven_context(case.cu_seqlens, case.lengths, rank)
    context = build_cp_context(torch.tensor(case.cu_seqlens), dist.group.WORLD, layout=case.layout)
    parts = [rank] if case.layout == "contiguous" else [rank, 2 * case.world_size - 1 - rank]
    length = case.cu_seqlens[-1] // (case.world_size * len(parts))
    t = torch.cat([torch.arange(part * length, (part + 1) * length) for part in parts])
    doc = torch.searchsorted(torch.tensor(case.cu_seqlens[1:]), t, right=True).view(len(parts), length)
    return context, t, torch.cat([row.unique_consecutive() for row in doc]).tolist()


def make_inputs(case: Case):
    """v, g, h0 and the gradients of the outputs and the windows, of the whole sequence, in float64."""
    generator = torch.Generator().manual_seed(1)

    def randn(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    T, num_seqs = case.cu_seqlens[-1], len(case.cu_seqlens) - 1
    shape = (1, T, WIDTH, case.M) if "bdlru" in case.op else (1, T, WIDTH)
    v, g, h0, do, dw = (
        randn(*s) for s in (shape, (*shape, case.M + 1), (num_seqs, WIDTH, case.M), shape, (1, T, case.M, WIDTH))
    )
    return v, case.scale * g, h0 if case.with_h0 else torch.zeros_like(h0), do, dw


def state_weight(h: torch.Tensor, doc: int, end: int) -> torch.Tensor:
    """The gradient of a final state: a function of the document and of where in the whole sequence it ends."""
    return torch.cos(3.0 * end + doc + torch.arange(h.numel(), dtype=torch.float64)).view(h.shape)


def run_slice(rank: int, case: Case) -> dict:
    context, t, docs = make_context(case, rank)
    v, g, h0, do, dw = make_inputs(case)
    v, g, h0 = (x.to(case.dtype).requires_grad_() for x in (v[:, t], g[:, t], h0[docs]))
    initial_state, given = h0 if case.with_h0 else None, h0.detach().clone()
    o, ht = OPS[case.op][0](v, g, initial_state, True, cp_context=context)
    before = sum(case.lengths[:rank]) if not isinstance(case.lengths, int) else 0
    ends = [int(t[end - 1]) + 1 if end else before for end in context.cu_seqlens[1:].tolist()]
    dht = torch.stack([state_weight(h, doc, end) for h, doc, end in zip(ht, docs, ends)])
    outputs, grads, window = [o, ht], [do[:, t].to(o.dtype), dht.to(ht.dtype)], None
    if "hlru" in case.op:
        states = entering_states(ht, initial_state, context)
        window = hlru_window(o, case.M, states, context.cu_seqlens)
        outputs, grads = [*outputs, window], [*grads, dw[:, t].to(window.dtype)]
    handed = [grad.clone() for grad in grads]
    if window is not None:
        torch.autograd.grad(states, ht, grads[1], retain_graph=True)
        window = window.detach()
    torch.autograd.backward(outputs, grads)
    # rows that are not read are not written either, and whoever hands in a gradient keeps it as it was
    assert torch.equal(h0, given)
    assert all(map(torch.equal, grads, handed))
    return {
        "t": t, "docs": docs, "ends": ends, "o": o.detach(), "ht": ht.detach(), "window": window,
        "dv": v.grad, "dg": g.grad, "dh0": h0.grad,
    }  # fmt: skip


def compare(case: Case, ranks: list[dict]) -> None:
    v, g, h0, do, dw = make_inputs(case)
    v, g, h0 = (x.requires_grad_() for x in (v, g, h0))
    naive, cu_seqlens = OPS[case.op][1], torch.tensor(case.cu_seqlens)
    o, _ = naive(v, g, h0, cu_seqlens=cu_seqlens)
    loss, states, window = (o * do).sum(), [], None
    for rank in ranks:
        rows = []
        for doc, end in zip(rank["docs"], rank["ends"]):
            tokens = slice(case.cu_seqlens[doc], end)
            rows.append(naive(v[:, tokens], g[:, tokens], h0[doc : doc + 1], True)[1][0])
            loss = loss + (rows[-1] * state_weight(rows[-1], doc, end)).sum()
        states.append(torch.stack(rows))
    if "hlru" in case.op:
        window = hlru_window(o, case.M, h0, cu_seqlens)
        loss = loss + (window * dw).sum()
    loss.backward()
    whole = {"o": o, "window": window, "dv": v.grad, "dg": g.grad}
    for rank, ht in zip(ranks, states):
        assert_close(case, "ht", rank["ht"], ht)
        for key, x in whole.items():
            if x is not None:
                assert_close(case, key, rank[key], x[:, rank["t"]])
    if case.with_h0:
        docs, dh0 = torch.tensor([doc for rank in ranks for doc in rank["docs"]]), torch.cat([rank["dh0"] for rank in ranks])
        # only the rank where a document starts has a gradient
        assert_close(case, "dh0", torch.zeros_like(h0).index_add(0, docs, dh0.double()), h0.grad)


def assert_close(case: Case, key: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = (1e-12 if case.dtype == torch.float64 else 3e-6) * max([1.0, *expected.detach().abs().flatten().tolist()])
    torch.testing.assert_close(got.double(), expected.detach(), rtol=0, atol=tolerance, msg=lambda m: f"{key}: {m}")
