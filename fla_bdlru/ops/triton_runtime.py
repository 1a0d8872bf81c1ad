"""What the Triton kernels of both ops share on the host: tiles, chunks, documents, and the order of the passes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
import triton

from fla_bdlru.ops.gate_kernels import NORM_CODES
from fla_bdlru.ops.lane_kernels import carry_kernel

# Programs of one warp that fill a large GPU (132 multiprocessors of 16 warps); with fewer, time is cut into chunks.
FILL = 2112
MIN_CHUNK = 32
MAX_UNROLLED = 8  # rows of a block; above, the loop over them stays a loop, or compiling takes minutes


@dataclass(frozen=True)
class Kernels:
    """The kernels of an op, and what sets the two ops apart: the name of the lane axis, whether rows may be unrolled."""

    fwd_chunk: triton.JITFunction
    fwd_scan: triton.JITFunction
    bwd_chunk: triton.JITFunction
    bwd_scan: triton.JITFunction
    lane_axis: str
    unrolls_rows: bool


def lanes_per_thread(M: int, n: int) -> int:
    """Blocks (channels) a thread owns: as many as registers allow and n lanes fill, so that loads are wide."""
    return min(4 if M <= 2 else 2 if M <= 4 else 1, 1 if n <= 32 else 2 if n <= 64 else 4)


def columns(M: int) -> int:
    """Columns of P that a program of pass 1 carries; M + 1 (all, gates read once) where registers allow."""
    return M + 1 if M <= 5 else 3 if M <= 8 else 4 if M <= 16 else 2


def chunk_length(B: int, T: int, tiles: int, M: int) -> int:
    """Steps of a chunk, a power of two; at least T where lanes alone fill the device, and one pass is enough.

    In chunks the inputs are read twice, so they are as long as a full device allows. P costs more the larger M is.
    """
    C = MIN_CHUNK * max(1, M // 2)
    while C < T and B * tiles * T > FILL * C:
        C *= 2
    return C


def documents(cu_seqlens: torch.Tensor, T: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per step: the document that starts there (or -1), the one that ends there (or -1), the one it belongs to; int32."""
    t = torch.arange(T, device=cu_seqlens.device)
    seq = torch.searchsorted(cu_seqlens[1:].contiguous(), t, right=True)
    starts, ends = cu_seqlens[seq] == t, cu_seqlens[seq + 1] - 1 == t
    return *(torch.where(x, seq, -1).int() for x in (starts, ends)), seq.int()


def num_chunks(v: torch.Tensor, g: torch.Tensor, chunk: bool) -> int:
    """Into how many chunks a call cuts time."""
    B, T, M, n = *v.shape[:2], g.shape[-2] - 1, g.shape[-1]
    return -(-T // chunk_length(B, T, -(-n // (32 * lanes_per_thread(M, n))), M)) if chunk else 1


class Launch:
    """The arguments that all kernels of one call share."""

    def __init__(self, kernels: Kernels, v, g, cu_seqlens, gate_norm: str, chunk: bool):
        self.B, self.T = v.shape[:2]
        M, n = g.shape[-2] - 1, g.shape[-1]
        VEC = lanes_per_thread(M, n)
        self.BN, self.M, self.n = 32 * VEC, M, n
        self.tiles = triton.cdiv(n, self.BN)
        self.C = chunk_length(self.B, self.T, self.tiles, M) if chunk else max(self.T, 1)
        self.NC = triton.cdiv(self.T, self.C)
        self.num_seqs = self.B if cu_seqlens is None else len(cu_seqlens) - 1
        shape = {"M": M, "MP": triton.next_power_of_2(M), "BN": self.BN, "VEC": VEC}
        self.carry_options = {"H": n, **shape}
        self.options = {kernels.lane_axis: n, **shape, "NORM": NORM_CODES[gate_norm], "VARLEN": cu_seqlens is not None}
        if kernels.unrolls_rows:
            self.options["UNROLL"] = M <= MAX_UNROLLED
        self.starts = self.ends = self.seq = None
        if cu_seqlens is not None:
            self.starts, self.ends, self.seq = documents(cu_seqlens, self.T)
        self.device = v.device

    def context(self):
        """The tensors' device, which need not be the current one."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    def empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(*shape, device=self.device, dtype=torch.float32)

    def chunk_states(self) -> torch.Tensor:
        return self.empty(self.B, self.NC, self.M, self.n)

    def run(self, kernel, *tensors, programs: int = 1, **options) -> None:
        grid = (self.tiles * programs * self.NC * self.B,)
        kernel[grid](*tensors, self.T, self.C, self.NC, 0, **options, **self.options, num_warps=1)

    def carry(self, end, P, x0, x_in, x_last, reverse: bool) -> None:
        carry_kernel[(self.tiles * self.B,)](
            end, P, x0, x_in, x_last, self.NC, 0, HAS_X0=x0 is not None, REVERSE=reverse, num_warps=1, **self.carry_options
        )


def triton_fwd(kernels, v, g, h0, cu_seqlens, gate_norm, chunk):
    """The forward pass of either op on gate-major tensors: (o, ht, h_in, P); the last two are for the backward.

    `h_in` [B, NC, M, n] and `P` [B, NC, M, M, n] in float32 are the states that enter chunks and the chunks' transitions;
    both are empty where one pass was enough.
    """
    k = Launch(kernels, v, g, cu_seqlens, gate_norm, chunk)
    packed, chunked = cu_seqlens is not None, k.NC > 1
    o = torch.empty_like(v)
    # an empty document keeps its state
    ht = k.empty(k.num_seqs, k.M, k.n).zero_() if h0 is None else h0.clone()
    h_in, P = k.empty(0), k.empty(0)
    with k.context():
        if chunked:
            h_in, P, end = k.chunk_states(), k.empty(k.B, k.NC, k.M, k.M, k.n), k.chunk_states()
            cols = columns(k.M)
            k.run(
                kernels.fwd_chunk, g, v, h0, k.starts, end, P,
                programs=(k.M + cols) // cols, CC=cols, HAS_H0=packed and h0 is not None,
            )  # fmt: skip
            # documents take their states themselves; what enters and leaves the packed sequence is nothing
            k.carry(end, P, None if packed else h0, h_in, k.empty(k.B, k.M, k.n) if packed else ht, reverse=False)
        k.run(
            kernels.fwd_scan, g, v, h0, k.starts, k.ends, h_in if chunked else h0, o, ht,
            HAS_H0=h0 is not None, HAS_H_IN=chunked or (h0 is not None and not packed), LAST=not (chunked or packed),
        )  # fmt: skip
    return o, ht, h_in, P


def triton_bwd(kernels, v, g, o, h_in, P, h0, do, dht, cu_seqlens, gate_norm, chunk):
    """The backward pass of either op: (dv, dg, dh0)."""
    k = Launch(kernels, v, g, cu_seqlens, gate_norm, chunk)
    packed, chunked = cu_seqlens is not None, k.NC > 1
    dv, dg = torch.empty_like(v), torch.empty_like(g)
    dh0 = k.empty(k.num_seqs, k.M, k.n).zero_() if dht is None else dht.clone()
    has = {"HAS_DO": do is not None, "HAS_DHT": dht is not None}
    u_in = dht
    with k.context():
        if chunked:
            end, u_in = k.chunk_states(), k.chunk_states()
            k.run(kernels.bwd_chunk, g, do, dht, k.starts, k.ends, end, **has)
            k.carry(end, P, None if packed else dht, u_in, k.empty(k.B, k.M, k.n) if packed else dh0, reverse=True)
        has |= {"HAS_H0": h0 is not None, "HAS_U_IN": chunked or (dht is not None and not packed)}
        has["LAST"] = not (chunked or packed)
        if kernels.unrolls_rows:
            has["HAS_H_IN"] = chunked or (h0 is not None and not packed)
            before, documents_of = (h_in if chunked else h0,), ()
        else:
            before, documents_of = (), (k.seq, cu_seqlens)
        k.run(kernels.bwd_scan, g, v, o, h0, *before, do, dht, u_in, k.starts, k.ends, *documents_of, dg, dv, dh0, **has)
    return dv, dg, dh0
