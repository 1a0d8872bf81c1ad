from fla_bdlru.ops.hlru.naive import naive_chunk_hlru, naive_recurrent_hlru
from fla_bdlru.ops.hlru.op import chunk_hlru, fused_recurrent_hlru, hlru_window

__all__ = ["chunk_hlru", "fused_recurrent_hlru", "hlru_window", "naive_chunk_hlru", "naive_recurrent_hlru"]
