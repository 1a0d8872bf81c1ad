"""Runs cells, in worker processes of this machine or by Ray, and hands each result over as it ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from rich.console import Console

from benchmarks.compare.progress import BarDisplay, PlainDisplay, TimeLeft
from benchmarks.compare.worker import THREAD_VARIABLES, run_cell, set_up_worker
from benchmarks.records.cell import Cell

_messages = None


class Interrupted(Exception):
    """The run was asked to stop; what had finished is stored."""


class WorkerDied(Exception):
    """A worker process ended on its own, for instance for lack of memory."""


class ProcessPool:
    """Worker processes on this machine."""

    slots = None  # takes all cells at once; those that no process is free for wait in it

    def __init__(self, workers: int, threads: int, device: str):
        for name in THREAD_VARIABLES:
            os.environ[name] = str(threads)
        context = multiprocessing.get_context("spawn")
        self.device, self.queue = device, context.Queue()
        self.executor = ProcessPoolExecutor(workers, context, _start_worker, (self.queue, threads))
        self.processes: set[multiprocessing.Process] = set()

    def submit(self, cell: Cell) -> Future:
        """Starts a cell; the future's result is that of `run_cell`."""
        with handled(signal.SIG_IGN, signal.SIGINT):
            others = set(multiprocessing.active_children())
            future = self.executor.submit(_work, cell, self.device)
            self.processes |= set(multiprocessing.active_children()) - others
            return future

    def messages(self) -> Iterator[tuple]:
        """(key, step, loss, token accuracy) of running cells, as many as there are by now."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self.queue.get_nowait()

    def close(self) -> None:
        """Stops all workers, whatever they do."""
        with handled(signal.SIG_IGN, signal.SIGINT):
            for process in self.processes:
                process.kill()
            self.executor.shutdown(wait=True, cancel_futures=True)


def _start_worker(messages, threads: int) -> None:
    global _messages
    _messages = messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    threading.Thread(target=_follow_parent, daemon=True).start()
    set_up_worker(threads)


def _follow_parent() -> None:
    # a parent that was killed cannot clean up: leave with it
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(cell: Cell, device: str) -> dict:
    return run_cell(cell, device, lambda *message: _messages.put(message))


@contextlib.contextmanager
def handled(handler, *numbers: signal.Signals) -> Iterator[dict]:
    """Signals go to a handler, afterwards to those that are yielded; processes started in here inherit what is ignored."""
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield previous
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def _stop(*_) -> None:
    raise KeyboardInterrupt


def run_cells(
    cells: list[Cell],
    finished: Callable[[Cell, dict], str],
    device: str,
    workers: int | None,
    threads: int,
    console: Console,
    ray_address: str | None = None,
    failed: Callable[[Cell, dict], str] = lambda cell, result: f"failed: {result['error']}",
) -> dict[str, dict]:
    """Runs cells in parallel, in order; the calling process is the only one that writes.

    `finished` is called in this process with each cell and what `run_cell` returned, `failed` with a cell that ended with an
    `error` and a `traceback`; what they return is shown to the user, by bars on a terminal and plain lines elsewhere. Without
    `ray_address` (`"local"`, `"auto"` or a cluster's address) processes of this machine run the cells, and with it `workers`
    may be `None`: as many as the cluster has room for. Returns `error` and `traceback` of each cell that failed, by key.

    Raises:
        Interrupted: on Ctrl-C or SIGTERM; the workers have been stopped.
        WorkerDied: if a worker process ended on its own.
        ValueError: if Ray is asked for and is not installed, or does not answer.
    """
    if not cells:
        return {}
    if ray_address is None:
        pool = ProcessPool(min(workers, len(cells)), threads, device)
    else:
        from benchmarks.compare.ray import RayPool

        pool = RayPool(ray_address, workers, threads, device)
        workers = pool.parallel
    failures: dict[str, dict] = {}
    display = (BarDisplay if console.is_terminal else PlainDisplay)(console, cells, TimeLeft(cells, workers))
    try:
        with handled(_stop, signal.SIGINT, signal.SIGTERM), display:
            waiting, pending = deque(cells), {}
            while waiting or pending:
                while waiting and (pool.slots is None or len(pending) < pool.slots):
                    cell = waiting.popleft()
                    pending[pool.submit(cell)] = cell
                done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                for message in pool.messages():
                    display.update(*message)
                for future in done:
                    cell, result = pending.pop(future), future.result()
                    if "error" in result:
                        failures[cell.key] = result
                        display.finish(cell, failed(cell, result), failed=True)
                    else:
                        display.finish(cell, finished(cell, result))
    except KeyboardInterrupt:
        raise Interrupted from None
    except BrokenProcessPool:
        raise WorkerDied from None
    finally:
        pool.close()
    return failures
