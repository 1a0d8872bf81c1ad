"""The ops that tests run over, the naive recurrence that each of them equals, their inputs, and how they are run."""

import torch

from fla_bdlru import ops

NAIVE = {"bdlru": ops.naive_recurrent_bdlru, "hlru": ops.naive_recurrent_hlru}
OPS = {
    f"{kind}_{name}": (getattr(ops, f"{kind}_{name}"), naive)
    for name, naive in NAIVE.items()
    for kind in ("chunk", "fused_recurrent")
}
# the references themselves, chunkwise ones too
REFERENCES = {
    f"naive_{kind}_{name}": getattr(ops, f"naive_{kind}_{name}") for name in NAIVE for kind in ("recurrent", "chunk")
}


def make_inputs(name, B=2, T=7, width=5, M=3, num_seqs=None, scale=1.0, dtype=torch.float32, device=None):
    """v, g and an initial state, which is float32."""
    shape = (B, T, width, M) if "bdlru" in name else (B, T, width)
    v, g = torch.randn(shape, device=device), scale * torch.randn(*shape, M + 1, device=device)
    return v.to(dtype), g.to(dtype), torch.randn(B if num_seqs is None else num_seqs, width, M, device=device)


def run(op, v, g, h0, do, dht, **kwargs):
    """Outputs, last state, and the gradients of all inputs through those of the two that have one."""
    v, g, h0 = (None if x is None else x.detach().clone().requires_grad_() for x in (v, g, h0))
    o, ht = op(v, g, h0, True, **kwargs)
    sum((x.double() * dx).sum() for x, dx in ((o, do), (ht, dht)) if dx is not None).backward()
    results = {"o": o, "ht": ht, "dv": v.grad, "dg": g.grad} | ({} if h0 is None else {"dh0": h0.grad})
    return {key: x.detach() for key, x in results.items()}
