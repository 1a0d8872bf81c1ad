"""The contenders on a GPU: each gives a forward function and its inputs at a shape.

A contender that cannot run where it is asked to (a package that is missing, a kernel that refuses) raises; the caller writes
down why.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.ops.cases import Case
from benchmarks.ops.scan import scan_bdlru, scan_hlru

Contender = tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]
HEAD = 128  # channels of a head, for what has heads


def _draw(case: Case, device: str, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device=device, dtype=getattr(torch, case.dtype)).requires_grad_()


def _ours(kind: str, case: Case, device: str) -> Contender:
    import fla_bdlru.ops as ops

    op, rows = getattr(ops, f"{kind}_{case.op}"), (case.m,) if case.op == "bdlru" else ()
    v = _draw(case, device, case.B, case.T, *rows, case.lanes)
    g = _draw(case, device, case.B, case.T, *rows, case.m + 1, case.lanes)
    if rows:
        return lambda v, g: op(v.transpose(2, 3), g.permute(0, 1, 4, 2, 3))[0], (v, g)
    return lambda v, g: op(v, g.transpose(2, 3))[0], (v, g)


def _scan(compiled: bool, case: Case, device: str) -> Contender:
    function, rows = (scan_bdlru, (case.m,)) if case.op == "bdlru" else (scan_hlru, ())
    v = _draw(case, device, case.B, case.T, case.lanes, *rows)
    g = _draw(case, device, case.B, case.T, case.lanes, *rows, case.m + 1)
    return torch.compile(function) if compiled else function, (v, g)


def _hgrn(kind: str, case: Case, device: str) -> Contender:
    from fla.ops import hgrn

    op = getattr(hgrn, f"{kind}_hgrn")
    x, g = (_draw(case, device, case.B, case.T, case.channels) for _ in range(2))
    return lambda x, g: op(x, F.logsigmoid(g))[0], (x, g)


def _delta_rule(gated: bool, case: Case, device: str) -> Contender:
    from fla.ops.delta_rule import chunk_delta_rule
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    heads, how = max(1, case.channels // HEAD), {"use_qk_l2norm_in_kernel": True}
    q, k, v = (_draw(case, device, case.B, case.T, heads, HEAD) for _ in range(3))
    beta, g = (_draw(case, device, case.B, case.T, heads) for _ in range(2))
    if gated:
        function = lambda q, k, v, beta, g: chunk_gated_delta_rule(q, k, v, F.logsigmoid(g), beta.sigmoid(), **how)[0]  # noqa: E731
        return function, (q, k, v, beta, g)
    return lambda q, k, v, beta: chunk_delta_rule(q, k, v, beta.sigmoid(), **how)[0], (q, k, v, beta)


def _mamba2(case: Case, device: str) -> Contender:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    head, state = 64, 128
    heads = max(1, case.channels // head)
    x = _draw(case, device, case.B, case.T, heads, head)
    dt = _draw(case, device, case.B, case.T, heads)
    b, c = (_draw(case, device, case.B, case.T, 1, state) for _ in range(2))
    A = -torch.rand(heads, device=device)
    return (lambda x, dt, b, c: mamba_chunk_scan_combined(x, dt, A, b, c, chunk_size=256, dt_softplus=True), (x, dt, b, c))


def _accelerated_scan(case: Case, device: str) -> Contender:
    from accelerated_scan.scalar import scan  # of 0.3; its kernels before took powers of two alone

    # channels before time
    gates, tokens = (_draw(case, device, case.B, case.channels, case.T) for _ in range(2))
    return lambda gates, tokens: scan(gates.sigmoid(), tokens), (gates, tokens)


OURS: dict[str, Callable[[Case, str], Contender]] = {kind: partial(_ours, kind) for kind in ("chunk", "fused_recurrent")}
SCANS = {"associative_scan": partial(_scan, False), "associative_scan compiled": partial(_scan, True)}
PEERS = {
    "chunk_hgrn": partial(_hgrn, "chunk"),
    "fused_recurrent_hgrn": partial(_hgrn, "fused_recurrent"),
    "chunk_delta_rule": partial(_delta_rule, False),
    "chunk_gated_delta_rule": partial(_delta_rule, True),
    "mamba2 scan": _mamba2,
    "accelerated_scan": _accelerated_scan,
}
