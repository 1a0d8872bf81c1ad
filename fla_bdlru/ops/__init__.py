from fla_bdlru.ops.bdlru import chunk_bdlru, fused_recurrent_bdlru, naive_chunk_bdlru, naive_recurrent_bdlru
from fla_bdlru.ops.common.gate_norm import GATE_NORMS, normalize_gates
from fla_bdlru.ops.hlru import chunk_hlru, fused_recurrent_hlru, hlru_window, naive_chunk_hlru, naive_recurrent_hlru

__all__ = [
    "GATE_NORMS", "chunk_bdlru", "chunk_hlru", "fused_recurrent_bdlru", "fused_recurrent_hlru", "hlru_window",
    "naive_chunk_bdlru", "naive_chunk_hlru", "naive_recurrent_bdlru", "naive_recurrent_hlru", "normalize_gates",
]  # fmt: skip
