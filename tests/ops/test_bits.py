"""On a CPU no bit of a sequence depends on what it is computed with: batch, length, threads, packing, where it is split."""

import pytest
import torch

pytest.importorskip("numba")

from fla_bdlru.ops import chunk_bdlru, chunk_hlru

B, T, LANES, M = 3, 150, 392, 2  # 1.06 million gates: enough for several threads; a row alone is not
OPS = {"bdlru": (chunk_bdlru, (LANES, M)), "hlru": (chunk_hlru, (LANES,))}


def run(op, v, g, h0, cu_seqlens=None):
    """Outputs, last states, and the gradients of the sum of their squares."""
    leaves = [x.clone().requires_grad_() for x in (v, g, h0)]
    o, state = op(*leaves, output_final_state=True, cu_seqlens=cu_seqlens)
    (o.double().square().sum() + state.double().square().sum()).backward()
    return o.detach(), state.detach(), *(x.grad for x in leaves)


@pytest.mark.parametrize("gate_type", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPS)
def test_bits_of_a_sequence(name, gate_type):
    op, shape = OPS[name]
    v, g = torch.randn(B, T, *shape).to(gate_type), torch.randn(B, T, *shape, M + 1).to(gate_type)
    h0, threads = torch.randn(B, LANES, M), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [run(op, v[b : b + 1], g[b : b + 1], h0[b : b + 1]) for b in range(B)]
        together = [torch.cat(parts) for parts in zip(*alone)]
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for got, expected in zip(run(op, v, g, h0), together):
                assert torch.equal(got, expected)
            packed = run(op, v.flatten(0, 1)[None], g.flatten(0, 1)[None], h0, torch.arange(B + 1) * T)
            for got, expected in zip(packed, together):
                assert torch.equal(got.reshape(expected.shape), expected)
            for cut in (1, 77, T - 1):
                first, state = op(v[:, :cut], g[:, :cut], h0, True)
                rest, state = op(v[:, cut:], g[:, cut:], state, True)
                assert torch.equal(torch.cat([first, rest], 1), together[0])
                assert torch.equal(state, together[1])
    finally:
        torch.set_num_threads(threads)
