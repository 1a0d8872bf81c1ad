from fla_bdlru.ops.hlru.chunk import chunk_hlru
from fla_bdlru.ops.hlru.fused_recurrent import fused_recurrent_hlru
from fla_bdlru.ops.hlru.naive import naive_chunk_hlru, naive_recurrent_hlru
from fla_bdlru.ops.hlru.window import hlru_window

__all__ = ["chunk_hlru", "fused_recurrent_hlru", "hlru_window", "naive_chunk_hlru", "naive_recurrent_hlru"]
