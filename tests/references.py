"""The public ops and the naive recurrence that each of them equals."""

from fla_bdlru.ops import (
    chunk_bdlru,
    chunk_hlru,
    fused_recurrent_bdlru,
    fused_recurrent_hlru,
    naive_recurrent_bdlru,
    naive_recurrent_hlru,
)

NAIVE = {"bdlru": naive_recurrent_bdlru, "hlru": naive_recurrent_hlru}
OPS = {
    "chunk_bdlru": (chunk_bdlru, naive_recurrent_bdlru),
    "fused_recurrent_bdlru": (fused_recurrent_bdlru, naive_recurrent_bdlru),
    "chunk_hlru": (chunk_hlru, naive_recurrent_hlru),
    "fused_recurrent_hlru": (fused_recurrent_hlru, naive_recurrent_hlru),
}
