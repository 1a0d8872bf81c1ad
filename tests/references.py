"""The ops that tests run over, and the naive recurrence that each of them equals."""

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
