"""What the Triton kernels of both ops share on the host: tiles, chunks, documents, and the order of the passes."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
from fla.utils import autotune_cache_kwargs
from triton import knobs
from triton.runtime import driver
from triton.runtime.autotuner import Autotuner

from fla_bdlru.ops.common.checks import read_switch
from fla_bdlru.ops.gpu.gates import NORM_CODES
from fla_bdlru.ops.gpu.lanes import chunk_lru_kernel_carry

MIN_CHUNK = 32
MULTIPROCESSORS = 132  # of a large GPU
MAX_UNROLLED = 16  # rows of a block, or turns of a window, that are unrolled; beyond, compiling would take minutes
# nothing crosses lanes, so a program is one warp; a product and a sum are one instruction
OPTIONS = {"num_warps": 1, "enable_fp_fusion": True}
REGISTERS = 65_536  # of a multiprocessor of NVIDIA's
TUNED_ELEMENTS = 2**20  # gate logits of a call below which times are noise, and nothing is tuned


@dataclass(frozen=True)
class Kernels:
    """The kernels of an op and what sets the two ops apart.

    `lane_axis` names the constant that counts lanes, `unrolled(M)` gives the constants that say what is unrolled, and
    `warps(M)` how many programs of pass 1, a warp each, the registers of a multiprocessor hold.
    """

    fwd_h: triton.JITFunction
    fwd_o: triton.JITFunction
    bwd_dh: triton.JITFunction
    bwd_dvg: triton.JITFunction
    lane_axis: str
    unrolled: Callable[[int], dict]
    warps: Callable[[int], int]


@functools.cache
def target() -> tuple[str, int]:
    """Triton's backend, and the threads of a warp and so of a tile: 64 on AMD's CDNA, 32 elsewhere."""
    try:
        found = driver.active.get_current_target()
    except RuntimeError:  # no device: the interpreter, or a host that only asks for shapes
        return "", 32
    return found.backend, found.warp_size


def warp_size() -> int:
    return target()[1]


def register_limit(warps: int, backend: str) -> dict[str, int]:
    """The option that keeps a program, one warp, to so few registers that `warps` of them run at once, as chunks count on.

    Compilers and norms differ: of pass 1 at m = 8 and softmax Triton 3.6 makes code of 202 registers, of which nine run, or of
    as many instructions and 168 registers, if told to; of other norms 3.7 makes up to 241, or 168 and a few values in memory.
    Where more than 16 run nothing is said, as more would go to memory there.
    """
    limit = REGISTERS // (32 * warps) // 8 * 8
    return {"maxnreg": limit} if backend == "cuda" and warps <= 16 and limit < 256 else {}


def lanes_per_thread(M: int, n: int, warp: int | None = None) -> int:
    """Blocks (channels) a thread owns: as many as registers allow and n lanes fill, so that loads are wide.

    They divide n: rows would not be aligned else, and the compiler would move them across threads.
    """
    most, warp = 4 if M <= 2 else 2 if M <= 4 else 1, warp or warp_size()
    return next(VEC for VEC in (4, 2, 1) if VEC <= most and n % VEC == 0 and (VEC == 1 or n > VEC // 2 * warp))


def widths(M: int, n: int, element_size: int) -> set[int]:
    """Blocks a thread may own: what `lanes_per_thread` says, and half of it where loads keep 4 bytes a thread."""
    most = lanes_per_thread(M, n)
    return {most, most // 2} if most // 2 * element_size >= 4 else {most}


def columns(M: int) -> int:
    """Columns of P that a program of pass 1 carries; M + 1 (all, gates read once) where registers allow."""
    return M + 1 if M <= 8 else 6 if M <= 16 else 2


def chunks_ahead(M: int) -> int:
    """Chunks whose P pass 2 holds in registers; 0 where one is too many."""
    return min(8, max(96 // (M * M + M), 2 if M <= 8 else 1)) if M <= MAX_UNROLLED else 0


def chunk_length(B: int, T: int, n: int, M: int, warps: int) -> int:
    """Steps of a chunk: as few as leave the device full and no program waiting. T where one pass is better.

    In chunks the inputs are read twice, and what is gained is that more programs run at once. Two chunks gain no more than
    they cost. Pass 2 is serial, and a chunk in it takes a tenth as long as a step of all other passes together (half, where
    it can read no chunk ahead), so it ends with them where C = T / C / 10.

    B and T may be symbols of torch.compile: each case that is looked at here is compiled for by itself.
    """
    tiles = B * -(-n // (warp_size() * lanes_per_thread(M, n)))
    most = torch.sym_max(MULTIPROCESSORS * warps // torch.sym_max(tiles, 1), 1)
    balanced = math.floor(torch.sym_sqrt(T / (10 if M <= 8 else 2)))
    C = torch.sym_max(torch.sym_max(MIN_CHUNK, -(-T // most)), balanced)
    return C if 2 * C < T else max(T, 1)


def documents(cu_seqlens: torch.Tensor, T: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per step: the document that starts there (or -1), the one that ends there (or -1), the one it belongs to; int32."""
    t = torch.arange(T, device=cu_seqlens.device)
    seq = torch.searchsorted(cu_seqlens[1:].contiguous(), t, right=True)
    starts, ends = cu_seqlens[seq] == t, cu_seqlens[seq + 1] - 1 == t
    return *(torch.where(x, seq, -1).int() for x in (starts, ends)), seq.int()


def num_chunks(kernels: Kernels, v: torch.Tensor, g: torch.Tensor, chunk: bool) -> int:
    """Into how many chunks a call cuts time."""
    B, T, M, n = *v.shape[:2], g.shape[-2] - 1, g.shape[-1]
    return -(-T // chunk_length(B, T, n, M, kernels.warps(M))) if chunk else 1


@functools.cache
def autotuned(kernel: triton.JITFunction) -> Autotuner:
    """The kernel behind Triton's autotuner, which chooses how many lanes a thread owns; T is not part of the key."""
    return triton.autotune(
        configs=[triton.Config({"VEC": VEC}, num_warps=1) for VEC in (1, 2, 4)],
        key=[name for name in kernel.fn.__annotations__ if name != "VEC"],  # the constants: nothing else is annotated
        prune_configs_by={"early_config_prune": _candidates},
        **autotune_cache_kwargs,
    )(kernel)


def _candidates(configs: list, named_args: dict, **options) -> list:
    allowed = widths(options["M"], options.get("H") or options["N"], named_args["g"].element_size())
    return [config for config in configs if config.kwargs["VEC"] in allowed]


def tunes() -> bool:
    """Whether kernels may be tuned by timing: on by default, off by `FLA_BDLRU_AUTOTUNE=0` or where PyTorch is told to be
    deterministic, since another choice may round differently."""
    switched_on = read_switch("FLA_BDLRU_AUTOTUNE")
    return switched_on and not knobs.runtime.interpret and not torch.are_deterministic_algorithms_enabled()


def aligned(x: torch.Tensor | None) -> torch.Tensor | None:
    """x, or a copy where its memory does not begin at a multiple of 16 bytes, as that of a slice.

    The compiler gives a lane fewer blocks of such tensors than of others, and would move rows across lanes.
    """
    return x if x is None or x.data_ptr() % 16 == 0 else x.clone()


class Launch:
    """The arguments that all kernels of one call share."""

    def __init__(self, kernels: Kernels, v, g, cu_seqlens, gate_norm: str, chunk: bool):
        self.B, self.T = v.shape[:2]
        self.M, self.n = M, n = g.shape[-2] - 1, g.shape[-1]
        self.VEC = lanes_per_thread(M, n)
        self.NC = num_chunks(kernels, v, g, chunk)
        self.C = triton.cdiv(self.T, max(self.NC, 1))
        self.num_seqs = self.B if cu_seqlens is None else len(cu_seqlens) - 1
        self.tuned = len(widths(M, n, g.element_size())) > 1 and g.numel() >= TUNED_ELEMENTS and tunes()
        self.shape = {"M": M, "MP": triton.next_power_of_2(M), "WARP": warp_size()}
        self.options = {
            kernels.lane_axis: n, **self.shape, **kernels.unrolled(M),
            "NORM": NORM_CODES[gate_norm], "VARLEN": cu_seqlens is not None,
        }  # fmt: skip
        self.starts = self.ends = self.seq = None
        if cu_seqlens is not None:
            self.starts, self.ends, self.seq = documents(cu_seqlens, self.T)
        self.device = v.device

    def context(self):
        """The tensors' device, which need not be the current one."""
        return contextlib.nullcontext() if self.device.type == "cpu" else getattr(torch, self.device.type).device(self.device)

    def empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(*shape, device=self.device, dtype=torch.float32)

    def chunk_states(self) -> torch.Tensor:
        return self.empty(self.B, self.NC, self.M, self.n)

    def run(self, kernel, *tensors, programs: int = 1, **options) -> None:
        def grid(meta):
            return (triton.cdiv(self.n, meta["WARP"] * meta["VEC"]) * programs * self.NC * self.B,)

        arguments = (*tensors, self.T, self.C, self.NC, 0)
        if self.tuned:
            autotuned(kernel)[grid](*arguments, **options, **self.options, enable_fp_fusion=True)
        else:
            kernel[grid](*arguments, VEC=self.VEC, **options, **self.options, **OPTIONS)

    def carry(self, end, P, x0, x_in, x_last, reverse: bool) -> None:
        chunk_lru_kernel_carry[(triton.cdiv(self.n, warp_size()) * self.B,)](
            end, P, x0, x_in, x_last, self.NC, 0,
            H=self.n, **self.shape, AHEAD=chunks_ahead(self.M), HAS_X0=x0 is not None, REVERSE=reverse,
            VARLEN=self.starts is not None, **OPTIONS,
        )  # fmt: skip


def empty_like_state(k: Launch, x: torch.Tensor | None, packed: bool) -> torch.Tensor:
    """Room for a state of every sequence. Kernels write all of it, but for documents of no steps, which keep x."""
    if not packed and k.T > 0:
        return k.empty(k.num_seqs, k.M, k.n)
    return k.empty(k.num_seqs, k.M, k.n).zero_() if x is None else x.clone()


def triton_fwd(kernels, v, g, h0, cu_seqlens, gate_norm, chunk):
    """The forward pass of either op on gate-major tensors: (o, ht, h_in, P); the last two are for the backward.

    `h_in` [B, NC, M, n] and `P` [B, NC, M, M, n] in float32 are the states that enter chunks and the chunks' transitions;
    both are empty where one pass was enough.
    """
    k = Launch(kernels, v, g, cu_seqlens, gate_norm, chunk)
    packed, chunked = cu_seqlens is not None, k.NC > 1
    v, g, h0 = map(aligned, (v, g, h0))
    o = torch.empty_like(v)
    ht = empty_like_state(k, h0, packed)
    h_in, P = k.empty(0), k.empty(0)
    with k.context():
        if chunked:
            h_in, P, end = k.chunk_states(), k.empty(k.B, k.NC, k.M, k.M, k.n), k.chunk_states()
            cols, limit = columns(k.M), register_limit(kernels.warps(k.M), target()[0])
            k.run(
                kernels.fwd_h, g, v, h0, k.starts, end, P,
                programs=(k.M + cols) // cols, CC=cols, HAS_H0=packed and h0 is not None, **limit,
            )  # fmt: skip
            # documents take their states themselves; what enters and leaves the packed sequence is nothing
            k.carry(end, P, None if packed else h0, h_in, k.empty(k.B, k.M, k.n) if packed else ht, reverse=False)
        k.run(
            kernels.fwd_o, g, v, h0, k.starts, k.ends, h_in if chunked else h0, o, ht,
            HAS_H0=h0 is not None, HAS_H_IN=chunked or (h0 is not None and not packed), LAST=not (chunked or packed),
        )  # fmt: skip
    return o, ht, h_in, P


def triton_bwd(kernels, v, g, o, h_in, P, h0, do, dht, cu_seqlens, gate_norm, chunk):
    """The backward pass of either op: (dv, dg, dh0)."""
    k = Launch(kernels, v, g, cu_seqlens, gate_norm, chunk)
    packed, chunked = cu_seqlens is not None, k.NC > 1
    v, g, o, h0, do, dht = map(aligned, (v, g, o, h0, do, dht))
    dv, dg = torch.empty_like(v), torch.empty_like(g)
    dh0 = empty_like_state(k, dht, packed)
    has = {"HAS_DO": do is not None, "HAS_DHT": dht is not None}
    u_in = dht
    with k.context():
        if chunked:
            end, u_in = k.chunk_states(), k.chunk_states()
            k.run(kernels.bwd_dh, g, do, dht, k.starts, k.ends, end, **has)
            k.carry(end, P, None if packed else dht, u_in, k.empty(k.B, k.M, k.n) if packed else dh0, reverse=True)
        has |= {"HAS_H0": h0 is not None, "HAS_U_IN": chunked or (dht is not None and not packed)}
        has["LAST"] = not (chunked or packed)
        if kernels.lane_axis == "H":
            has["HAS_H_IN"] = chunked or (h0 is not None and not packed)
            before, documents_of = (h_in if chunked else h0,), ()
        else:
            before, documents_of = (), (k.seq, cu_seqlens)
        k.run(kernels.bwd_dvg, g, v, o, h0, *before, do, dht, u_in, k.starts, k.ends, *documents_of, dg, dv, dh0, **has)
    return dv, dg, dh0
