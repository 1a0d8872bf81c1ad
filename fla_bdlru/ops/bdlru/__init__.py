from fla_bdlru.ops.bdlru.naive import naive_chunk_bdlru, naive_recurrent_bdlru
from fla_bdlru.ops.bdlru.op import chunk_bdlru, fused_recurrent_bdlru

__all__ = ["chunk_bdlru", "fused_recurrent_bdlru", "naive_chunk_bdlru", "naive_recurrent_bdlru"]
