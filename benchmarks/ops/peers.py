"""The contenders on a GPU: each gives a forward function and its inputs at a shape.

A contender that cannot run where it is asked to (a package that is missing, a kernel that refuses) raises; the caller writes
down why.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.ops.cases import Case
from benchmarks.ops.scan import scan_bdlru, scan_hlru

Contender = tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]
HEAD = 128  # channels of a head, for what has heads


def _random(*shape: int, case: Case, device: str) -> torch.Tensor:
    return torch.randn(*shape, device=device, dtype=getattr(torch, case.dtype)).requires_grad_()


def _ours(kind: str) -> Callable[[Case, str], Contender]:
    def make(case: Case, device: str) -> Contender:
        import fla_bdlru.ops as ops

        op = getattr(ops, f"{kind}_{case.op}")
        if case.op == "bdlru":
            v = _random(case.B, case.T, case.m, case.lanes, case=case, device=device)
            g = _random(case.B, case.T, case.m, case.m + 1, case.lanes, case=case, device=device)
            return lambda v, g: op(v.transpose(2, 3), g.permute(0, 1, 4, 2, 3))[0], (v, g)
        v = _random(case.B, case.T, case.lanes, case=case, device=device)
        g = _random(case.B, case.T, case.m + 1, case.lanes, case=case, device=device)
        return lambda v, g: op(v, g.transpose(2, 3))[0], (v, g)

    return make


def _scan(compiled: bool) -> Callable[[Case, str], Contender]:
    def make(case: Case, device: str) -> Contender:
        function = scan_bdlru if case.op == "bdlru" else scan_hlru
        shape = (case.lanes, case.m) if case.op == "bdlru" else (case.lanes,)
        v = _random(case.B, case.T, *shape, case=case, device=device)
        g = _random(case.B, case.T, *shape, case.m + 1, case=case, device=device)
        return torch.compile(function) if compiled else function, (v, g)

    return make


def _hgrn(kind: str) -> Callable[[Case, str], Contender]:
    def make(case: Case, device: str) -> Contender:
        from fla.ops import hgrn

        op = getattr(hgrn, f"{kind}_hgrn")
        x, g = (_random(case.B, case.T, case.channels, case=case, device=device) for _ in range(2))
        return lambda x, g: op(x, F.logsigmoid(g))[0], (x, g)

    return make


def _delta_rule(gated: bool) -> Callable[[Case, str], Contender]:
    def make(case: Case, device: str) -> Contender:
        from fla.ops.delta_rule import chunk_delta_rule
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

        heads = max(1, case.channels // HEAD)
        q, k, v = (_random(case.B, case.T, heads, HEAD, case=case, device=device) for _ in range(3))
        beta, g = (_random(case.B, case.T, heads, case=case, device=device) for _ in range(2))
        how = {"use_qk_l2norm_in_kernel": True}
        if gated:
            function = lambda q, k, v, beta, g: chunk_gated_delta_rule(q, k, v, F.logsigmoid(g), beta.sigmoid(), **how)[0]  # noqa: E731
            return function, (q, k, v, beta, g)
        return lambda q, k, v, beta: chunk_delta_rule(q, k, v, beta.sigmoid(), **how)[0], (q, k, v, beta)

    return make


def _mamba2(case: Case, device: str) -> Contender:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    head, state = 64, 128
    heads = max(1, case.channels // head)
    x = _random(case.B, case.T, heads, head, case=case, device=device)
    dt = _random(case.B, case.T, heads, case=case, device=device)
    b, c = (_random(case.B, case.T, 1, state, case=case, device=device) for _ in range(2))
    A = -torch.rand(heads, device=device)
    return (lambda x, dt, b, c: mamba_chunk_scan_combined(x, dt, A, b, c, chunk_size=256, dt_softplus=True), (x, dt, b, c))


def _accelerated_scan(case: Case, device: str) -> Contender:
    from accelerated_scan.triton import scan

    # channels before time, a power of two of steps
    gates, tokens = (_random(case.B, case.channels, case.T, case=case, device=device) for _ in range(2))
    return lambda gates, tokens: scan(gates.sigmoid(), tokens), (gates, tokens)


OURS: dict[str, Callable[[Case, str], Contender]] = {"chunk": _ours("chunk"), "fused_recurrent": _ours("fused_recurrent")}
SCANS = {"associative_scan": _scan(False), "associative_scan compiled": _scan(True)}
PEERS = {
    "chunk_hgrn": _hgrn("chunk"),
    "fused_recurrent_hgrn": _hgrn("fused_recurrent"),
    "chunk_delta_rule": _delta_rule(gated=False),
    "chunk_gated_delta_rule": _delta_rule(gated=True),
    "mamba2 scan": _mamba2,
    "accelerated_scan": _accelerated_scan,
}
