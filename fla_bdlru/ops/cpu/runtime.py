"""What the CPU kernels share on the host: compiling with a disk cache, flat arrays, tasks and threads."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import warnings
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial, wraps
from itertools import pairwise
from pkgutil import get_data
from typing import Any

import numpy as np
import torch
from numba import njit

from fla_bdlru.ops.cpu.lanes import LANES

# numba's disk cache looks at a kernel's own file only; this makes it see changes in what kernels are built from.
SOURCES = ("cpu/gates.py", "cpu/lanes.py", "cpu/runtime.py", "common/gate_norm.py")


def _build() -> int:
    try:
        return zlib.crc32(b"".join(get_data("fla_bdlru.ops", name) for name in SOURCES))
    except OSError:
        return 0  # installed without sources, of which numba keeps nothing


_BUILD = _build()

INLINE_WORK = 1 << 20  # gates (about 0.3 ms); below, waking threads costs more than they save
HUGE_PAGE_BYTES = 1 << 22
MAX_TILES = 16  # tiles of LANES lanes that one task steps through together, so that reads are long rows


@cache
def _warn_cache(folder: str, reason: str) -> None:
    warnings.warn(
        f"numba's disk cache in {folder!r} cannot be used ({reason}), so kernels are compiled without it, seconds each; "
        "damaged files are written anew, and NUMBA_CACHE_DIR names another folder.",
        stacklevel=2,
    )


def _forgive(disk: Any, name: str) -> None:
    """Has a method of numba's disk cache warn, once, where it raises: for a damaged file, or a full disk."""
    method = getattr(disk, name)

    @wraps(method)
    def attempt(*args):
        try:
            return method(*args)
        except Exception as error:  # whatever unpickling raises
            with suppress(OSError):  # an index that names what is damaged, of older sources or not there
                os.unlink(disk._cache_file._index_path)
            _warn_cache(str(disk.cache_path), type(error).__name__ + (f": {error}" if str(error) else ""))
            return None

    setattr(disk, name, attempt)


def kernel(function: Callable) -> Callable:
    """Compiles to run without the GIL, cached on disk where numba finds a place to write."""
    options = {"nogil": True, "error_model": "numpy"}
    function.__qualname__ += f"_{_BUILD:08x}"  # part of the cache's file name
    try:
        compiled = njit(cache=True, **options)(function)
    except Exception:  # neither beside the source nor in a user cache directory, or there is no source
        return njit(**options)(function)
    for name in ("load_overload", "save_overload"):
        _forgive(compiled._cache, name)
    return compiled


# ------------------------------------------------------------------------------------------------------- tensors


_STORED_AS = {torch.float32: "<f4", torch.bfloat16: "<i2"}


class _Memory:
    """What numpy reads a tensor's memory from, and keeps alive."""

    def __init__(self, x: torch.Tensor):
        self.tensor = x
        self.__array_interface__ = {
            "version": 3,
            "typestr": _STORED_AS[x.dtype],
            "shape": (x.numel(),),
            "data": (x.data_ptr(), False),
        }


def as_array(x: torch.Tensor | None) -> np.ndarray | None:
    """The memory of a contiguous tensor as a 1-D array; bfloat16 as int16.

    Not by `Tensor.numpy`, after which its storage has one size for good: FSDP frees parameters by giving them none.
    """
    if x is None:
        return None
    if not x.is_contiguous():
        raise ValueError(f"kernels read contiguous memory; got strides {x.stride()} of shape {tuple(x.shape)}.")
    return np.asarray(_Memory(x)) if x.numel() else np.empty(0, _STORED_AS[x.dtype])


def widened(x: torch.Tensor) -> torch.Tensor:
    """float16 as float32; the types that kernels read as they are."""
    return x.float() if x.dtype == torch.float16 else x


_PAGE, _madvise = 4096, None
if sys.platform == "linux":
    _PAGE = os.sysconf("SC_PAGESIZE")
    _madvise = ctypes.CDLL(None).madvise
    _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """`torch.empty` on the CPU, with huge pages where it is large: the first touch of 4 KiB pages costs more than a kernel."""
    x = torch.empty(shape, dtype=dtype, device="cpu")
    size = x.numel() * x.element_size()
    if size >= HUGE_PAGE_BYTES and _madvise is not None:
        start = -(-x.data_ptr() // _PAGE) * _PAGE
        _madvise(start, (x.data_ptr() + size - start) // _PAGE * _PAGE, 14)  # 14: MADV_HUGEPAGE, a hint that may fail
    return x


def boundaries(v: torch.Tensor, cu_seqlens: torch.Tensor | None) -> np.ndarray:
    """Where sequences start and end, in rows of the flattened [B * T]."""
    if cu_seqlens is not None:
        return cu_seqlens.numpy()
    return np.arange(v.shape[0] + 1, dtype=np.int64) * v.shape[1]


# ------------------------------------------------------------------------------------------------------- threads

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _forget_pool() -> None:
    """In a forked child the pool has no threads, and the lock may be held by one that is gone."""
    global _lock, _pool, _pool_size
    _lock, _pool, _pool_size = threading.Lock(), None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _submit(function: Callable[[], None], copies: int) -> list[Future]:
    """Starts `copies` of a function; fewer (or none) where no thread can be had, as when the interpreter shuts down."""
    global _pool, _pool_size
    futures = []
    with _lock:
        if _pool_size < copies:
            if _pool is not None:
                _pool.shutdown(wait=False)  # what it has queued still runs
            _pool, _pool_size = ThreadPoolExecutor(copies, thread_name_prefix="fla_bdlru"), copies
        try:
            for _ in range(copies):
                futures.append(_pool.submit(function))
        except RuntimeError:
            pass
    return futures


def run_jobs(jobs: list[Callable[[], None]]) -> None:
    """Runs jobs on up to `torch.get_num_threads()` threads, the caller's included, and returns when all are done.

    Whoever is free takes the next job, and the caller works through them too: a pool that is busy with other callers
    only costs speed. Helpers that have not begun when the jobs run out are cancelled.
    """
    helpers = min(torch.get_num_threads(), len(jobs)) - 1
    queue = deque(jobs)

    def work():
        while queue:
            try:
                job = queue.popleft()
            except IndexError:
                return
            job()

    futures = _submit(work, helpers) if helpers > 0 else []
    try:
        work()
    finally:
        queue.clear()
        for future in futures:
            if not future.cancel():
                future.result()


def run_tasks(function: Callable, arguments: tuple, tasks: int, work: int) -> None:
    """Calls `function(*arguments, lo, hi)` for all tasks, on one thread if their `work` is small.

    A task must write what no other does; then who runs which changes no bit of the result.
    """
    pieces = 1 if work < INLINE_WORK else min(tasks, 4 * torch.get_num_threads())
    limits = [tasks * i // pieces for i in range(pieces + 1)]
    run_jobs([partial(function, *arguments, lo, hi) for lo, hi in pairwise(limits)])


def launch(function: Callable, arrays: tuple[np.ndarray, ...], num_lanes: int, bounds: np.ndarray, row: int) -> None:
    """Runs a compiled kernel over all (sequence, lanes) tasks; `row` is the number of gates per step and lane.

    A task is one sequence and up to MAX_TILES tiles; the last `num_lanes % LANES` lanes are a masked tile of their own.
    Lanes never meet, so how tasks are cut and who runs them changes no bit of the result.
    """
    num_seqs = len(bounds) - 1
    end = num_lanes // LANES * LANES
    threads = torch.get_num_threads()
    inline = int(bounds[-1] - bounds[0]) * num_lanes * row < INLINE_WORK
    tiles = MAX_TILES if inline else max(1, min(MAX_TILES, end // LANES * num_seqs // (2 * threads)))
    jobs = []

    def add(first, last, width, lanes):
        tasks = num_seqs * (-(-(last - first) // width))
        pieces = 1 if inline else min(tasks, 4 * threads)
        for i in range(pieces):
            lo, hi = tasks * i // pieces, tasks * (i + 1) // pieces
            jobs.append(partial(function, *arrays, bounds, num_lanes, first, last, width, lanes, lo, hi))

    if end:
        add(0, end, tiles * LANES, None)
    if end < num_lanes:
        add(end, num_lanes, LANES, num_lanes - end)
    if inline:
        for job in jobs:
            job()
    else:
        run_jobs(jobs)
