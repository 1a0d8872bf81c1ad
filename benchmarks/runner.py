"""Runs cells in worker processes and stores each as it ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.train import Cell

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
PLAIN_SECONDS = 15.0

_messages = None


class Interrupted(Exception):
    """The run was asked to stop; what had finished is stored."""


class WorkerDied(Exception):
    """A worker process ended on its own, for instance for lack of memory."""


def _start_worker(messages, threads: int) -> None:
    global _messages
    _messages = messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    threading.Thread(target=_follow_parent, daemon=True).start()
    import torch

    from benchmarks.models import quiet

    torch.set_num_threads(threads)
    quiet()


def _follow_parent() -> None:
    # a parent that was killed cannot clean up: leave with it
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(cell: Cell, device: str) -> dict:
    from benchmarks.train import train_cell

    _messages.put((cell.key, 0, float("nan"), float("nan")))
    try:
        return train_cell(cell, device, lambda *numbers: _messages.put((cell.key, *numbers)))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


@contextlib.contextmanager
def _stop_on_signals():
    # SIGTERM is treated as Ctrl-C
    def stop(*_):
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _signals_ignored():
    # processes started in here ignore SIGINT from their first instruction on
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def run_cells(
    cells: list[Cell],
    finished: Callable[[Cell, dict], str],
    device: str,
    workers: int,
    threads: int,
    console: Console,
) -> dict[str, dict]:
    r"""Runs cells in `workers` processes; the calling process is the only one that writes.

    Args:
        cells (list[Cell]):
            What to run, in order.
        finished (Callable[[Cell, dict], str]):
            Called in this process with each cell and what `train_cell` returned; its result is shown to the user.
        device (str):
            A torch device.
        workers (int):
            Number of processes.
        threads (int):
            Threads of each.
        console (Console):
            Where progress goes: bars on a terminal, plain lines elsewhere.

    Returns:
        dict[str, dict]:
            `error` and `traceback` of each cell that failed, by key.

    Raises:
        Interrupted: on Ctrl-C or SIGTERM; the workers have been stopped.
        WorkerDied: if a worker process ended on its own.
    """
    if not cells:
        return {}
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    failures: dict[str, dict] = {}
    pool = ProcessPoolExecutor(min(workers, len(cells)), context, _start_worker, (messages, threads))
    display = (BarDisplay if console.is_terminal else PlainDisplay)(console, cells)
    try:
        with _stop_on_signals(), display:
            with _signals_ignored():
                pending: dict[Future, Cell] = {pool.submit(_work, cell, device): cell for cell in cells}
            while pending:
                done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                with contextlib.suppress(queue.Empty):
                    while True:
                        display.update(*messages.get_nowait())
                for future in done:
                    cell, result = pending.pop(future), future.result()
                    if "error" in result:
                        failures[cell.key] = result
                        display.finish(cell, f"failed: {result['error']}")
                    else:
                        display.finish(cell, finished(cell, result))
    except KeyboardInterrupt:
        raise Interrupted from None
    except BrokenProcessPool:
        raise WorkerDied from None
    finally:
        with _signals_ignored():
            for process in multiprocessing.active_children():
                process.kill()
            pool.shutdown(wait=True, cancel_futures=True)
    return failures


class BarDisplay:
    """An overall bar with the time left, and a line per running cell."""

    def __init__(self, console: Console, cells: list[Cell]):
        self.waiting = {cell.key: cell for cell in cells}
        self.progress = Progress(
            TextColumn("{task.description}", style="bold"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
        )
        self.count = len(cells)
        self.overall = self.progress.add_task("all runs", total=sum(cell.steps for cell in cells), numbers="steps")
        self.running: dict[str, tuple[int, int]] = {}

    def __enter__(self):
        self.progress.start()

    def __exit__(self, *_):
        self.progress.stop()

    def update(self, key: str, step: int, loss: float, accuracy: float) -> None:
        if key not in self.waiting:  # a message that was under way when its cell ended
            return
        cell = self.waiting[key]
        if key not in self.running:
            self.running[key] = (self.progress.add_task(cell.title, total=cell.steps, numbers=""), 0)
        line, before = self.running[key]
        numbers = f"loss {loss:.3f}  accuracy {accuracy:.3f}" if step else "starting"
        self.progress.update(line, completed=step, numbers="scoring" if step == cell.steps else numbers)
        self.progress.advance(self.overall, step - before)
        self.running[key] = (line, step)

    def finish(self, cell: Cell, summary: str) -> None:
        self.update(cell.key, cell.steps, 0.0, 0.0)
        self.progress.remove_task(self.running.pop(cell.key)[0])
        del self.waiting[cell.key]
        self.progress.update(self.overall, numbers=f"steps, {self.count - len(self.waiting)}/{self.count} runs done")
        self.progress.console.print(f"{cell.title}: {summary}", highlight=False, markup=False)


class PlainDisplay:
    """A line now and then, for logs."""

    def __init__(self, console: Console, cells: list[Cell]):
        self.console, self.waiting = console, {cell.key: cell for cell in cells}
        self.count, self.total = len(cells), sum(cell.steps for cell in cells)
        self.running: dict[str, tuple[int, float, float]] = {}
        self.steps_done = 0
        self.start = self.last = time.monotonic()

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass

    def update(self, key: str, step: int, loss: float, accuracy: float) -> None:
        if key in self.waiting:
            self.running[key] = (step, loss, accuracy)
        now = time.monotonic()
        if now - self.last < PLAIN_SECONDS:
            return
        self.last = now
        steps = self.steps_done + sum(step for step, _, _ in self.running.values())
        left = f", about {(now - self.start) * (self.total - steps) / steps:.0f} s left" if steps else ""
        lines = [
            f"{self.waiting[k].title} step {s}/{self.waiting[k].steps} loss {loss:.3f} accuracy {accuracy:.3f}"
            for k, (s, loss, accuracy) in self.running.items()
            if s
        ]
        head = f"{steps / self.total:.0%} of all steps, {self.count - len(self.waiting)}/{self.count} runs done{left}"
        self._print("; ".join([head, *lines]))

    def finish(self, cell: Cell, summary: str) -> None:
        self.running.pop(cell.key, None)
        del self.waiting[cell.key]
        self.steps_done += cell.steps
        self._print(f"[{self.count - len(self.waiting)}/{self.count}] {cell.title}: {summary}")

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
