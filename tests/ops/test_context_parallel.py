"""Context parallelism of the ops: slices on 1 to 4 gloo processes against the naive recurrence on the whole sequence."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from fla.ops.cp import FLACPContext
from ranks import run_ranks
from references import OPS
from slices import WIDTH, Case, compare, make_inputs, run_slice

from fla_bdlru.ops.common.context_parallel import carry, product

CASES = {
    "one document": Case([0, 13], [3, 5, 1, 4]),
    "one document in equal slices": Case([0, 12], 4),
    "documents span ranks": Case([0, 1, 9, 10, 17, 18], [5, 2, 4, 7]),
    "documents span equal slices": Case([0, 5, 6, 15, 16], 4),
    "documents end with ranks": Case([0, 4, 8, 16], 4),
    "empty documents": Case([0, 0, 3, 3, 11, 11, 11], [3, 2, 4, 2]),
    "a rank without tokens": Case([0, 2, 11], [4, 0, 3, 4]),
    "slices shorter than the order": Case([0, 2, 8], [1, 3, 1, 3], M=5),
    "one token a rank": Case([0, 1, 4], 4),
    "no initial state": Case([0, 2, 10, 13], [4, 1, 5, 3], with_h0=False),
    "order 1": Case([0, 2, 13], [3, 5, 1, 4], M=1),
    "nothing decays": Case([0, 2, 40], [9, 10, 11, 10], scale=30.0),
    "float64, plain PyTorch": Case([0, 2, 10, 13], [4, 1, 5, 3], dtype=torch.float64),
    "zigzag": Case([0, 3, 4, 14, 16], 4, layout="zigzag"),
    "zigzag, one document": Case([0, 16], 4, layout="zigzag"),
    "two ranks": Case([0, 4, 9], [7, 2]),
    "three ranks": Case([0, 4, 9, 12], 3),
    "one rank": Case([0, 4, 9], 1),
}


def run_slices(rank: int, cases: dict) -> dict:
    return {key: run_slice(rank, case) for key, case in cases.items()}


@cache
def launch(world_size: int) -> list[dict]:
    """One launch for all cases of a number of ranks."""
    return run_ranks(world_size, run_slices, {
        (op, name): case._replace(op=op) for name, case in CASES.items() for op in OPS if case.world_size == world_size
    })  # fmt: skip


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", CASES)
def test_slices_equal_the_whole(name, op):
    """Outputs, the states at all ends of slices and documents, H-LRU's windows, and all gradients."""
    case = CASES[name]._replace(op=op)
    compare(case, [rank[op, name] for rank in launch(case.world_size)])


def test_product():
    P = torch.randn(7, 3, 3, 5, dtype=torch.float64)
    for NC in range(1, 8):
        expected = torch.eye(3, dtype=torch.float64).expand(5, 3, 3)
        for P_c in P[:NC]:
            expected = P_c.permute(2, 0, 1) @ expected
        torch.testing.assert_close(product(P[:NC]).permute(2, 0, 1), expected)


@pytest.mark.parametrize("op", ["chunk_bdlru", "chunk_hlru"])
def test_a_context_without_a_group_is_packing(op):
    """As in FLA: `group=None` turns context parallelism off."""
    v, g, h0, *_ = make_inputs(Case([0, 4, 9], 1, op))
    cu_seqlens = torch.tensor([0, 4, 9])
    expected = OPS[op][0](v, g, h0, True, cu_seqlens=cu_seqlens)
    got = OPS[op][0](v, g, h0, True, cp_context=FLACPContext(cu_seqlens=cu_seqlens, is_first_rank=True))
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


GOOD = {
    "group": None,
    "cu_seqlens": torch.tensor([0, 7]),
    "is_first_rank": True,
    "layout": "contiguous",
    "pre_num_ranks_dev": None,
}
BAD_CONTEXTS = {
    "cp_context must be what fla.ops.cp.build_cp_context returns; got .* without group, cu_seqlens": object(),
    "cp_context.cu_seqlens must hold .* got None": SimpleNamespace(**{**GOOD, "cu_seqlens": None}),
    "cp_context.layout must be 'contiguous' or 'zigzag'; got 'striped'": SimpleNamespace(**{**GOOD, "layout": "striped"}),
    "cp_context.is_first_rank must say .* got None": SimpleNamespace(**{**GOOD, "is_first_rank": None}),
    "cp_context.pre_num_ranks_dev is set: CUDA graphs": SimpleNamespace(**{**GOOD, "pre_num_ranks_dev": torch.zeros(())}),
    r"must rise from 0 to T=7; got \[0, 6\]": SimpleNamespace(**{**GOOD, "cu_seqlens": torch.tensor([0, 6])}),
    "cu_seqlens needs a batch of 1 .* got B=2": SimpleNamespace(**GOOD),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("message", BAD_CONTEXTS)
def test_errors(op, message):
    B, shape = 2 if "B=2" in message else 1, (7, WIDTH, 3) if "bdlru" in op else (7, WIDTH)
    with pytest.raises(ValueError, match=message):
        OPS[op][0](torch.randn(B, *shape), torch.randn(B, *shape, 4), cp_context=BAD_CONTEXTS[message])


@pytest.mark.parametrize("op", OPS)
def test_boundaries_are_checked_where_ranks_take_part(op):
    """Before anything is exchanged: a rank that fails alone leaves the others waiting."""
    shape = (1, 7, WIDTH, 3) if "bdlru" in op else (1, 7, WIDTH)
    context = SimpleNamespace(**{**GOOD, "group": object(), "cu_seqlens": torch.tensor([0, 6])})
    with pytest.raises(ValueError, match=r"must rise from 0 to T=7; got \[0, 6\]"):
        OPS[op][0](torch.randn(shape), torch.randn(*shape, 4), cp_context=context)


def test_nan_does_not_pass_where_a_document_starts():
    """P of a slice in which a document starts is zero: what is before it does not reach what comes after."""
    P, x = torch.zeros(3, 2, 2, 4), torch.randn(3, 2, 4)
    x[0] = float("nan")
    assert torch.equal(carry(P, x)[2], x[1])
