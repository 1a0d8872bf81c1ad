"""How near to a copy of memory the CPU ops run: `python -m benchmarks.ops.cpu --roofline`.

Bytes are the fewest, every input read once and every output written once; a copy of 256 MiB before and after each call, on the
same threads, says what the machine moves just then. One thread is timed by its processor time, which other processes stretch
less. Memory that is freed stays with the process (glibc), so that fewer first touches of a page are timed.
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import time

import torch

from benchmarks.ops.cases import Case

COLUMNS = {
    "m": "m",
    "float32_fwd_share": "float32 fwd",
    "float32_both_share": "fwd+bwd",
    "bfloat16_fwd_share": "bfloat16 fwd",
    "bfloat16_both_share": "fwd+bwd ",
    "fwd_ratio": "bfloat16 faster, fwd",
    "both_ratio": "fwd+bwd  ",
    "copy_gb_per_s": "copy, GB/s",
}
COPY = 1 << 26  # float32 elements


def make_inputs(op: str, B: int, T: int, H: int, M: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random v, g and do in public axes; memory is gate-major (H last)."""
    if op == "bdlru":
        v, do = (torch.randn(B, T, M, H).transpose(2, 3) for _ in range(2))
        return v, torch.randn(B, T, M, M + 1, H).permute(0, 1, 4, 2, 3), do
    v, do = (torch.randn(B, T, H) for _ in range(2))
    return v, torch.randn(B, T, M + 1, H).transpose(2, 3), do


def keep_memory() -> None:
    """Has glibc give no memory back."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: all from the heap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def measure_roofline(op: str, B: int, T: int, H: int, M: int, repeats: int, copied: int = COPY) -> dict[str, float]:
    """Shares of a copy's bandwidth, forward and forward + backward in both types, and how many times faster bfloat16 is."""
    from fla_bdlru import ops

    native, clock = getattr(ops, f"chunk_{op}"), time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    source, target = torch.ones(copied), torch.ones(copied)

    def seconds(function):
        start = clock()
        function()
        return clock() - start

    def copy():
        target.copy_(source)

    def forward(v, g, do):
        with torch.no_grad():
            native(v, g)

    def both(v, g, do):
        torch.autograd.grad(native(v, g)[0], (v, g), do)

    calls = {}
    for name in ("float32", "bfloat16"):
        v, g, do = (x.to(getattr(torch, name)).requires_grad_() for x in make_inputs(op, B, T, H, M))
        case = Case(op, M, B, T, H * M if op == "bdlru" else H, name)
        for mode, function in (("fwd", forward), ("both", both)):
            least = case.least_bytes("fwd" if mode == "fwd" else "fwd+bwd")
            calls[f"{name}_{mode}"] = lambda function=function, x=(v, g, do): function(*x), least
    for call, _ in calls.values():
        call()
    rows = {name: [] for name in calls}
    for _ in range(repeats):
        for name, (call, least) in calls.items():
            before, own, after = (seconds(x) for x in (copy, call, copy))
            bandwidth = 2 * 4 * copied / (0.5 * (before + after))
            rows[name].append((own, least / own / bandwidth, bandwidth / 1e9))
    found = {f"{name}_share": statistics.median(share for _, share, _ in x) for name, x in rows.items()}
    for mode in ("fwd", "both"):
        pairs = zip(rows[f"float32_{mode}"], rows[f"bfloat16_{mode}"])
        found[f"{mode}_ratio"] = statistics.median(a / b for (a, *_), (b, *_) in pairs)
    return {**found, "copy_gb_per_s": statistics.median(x for *_, x in rows["float32_fwd"])}
