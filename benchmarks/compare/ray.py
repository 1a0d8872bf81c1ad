"""Cells as Ray tasks: on this machine, or on the GPUs and machines of a cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

from benchmarks.compare.worker import THREAD_VARIABLES, run_cell, set_up_worker
from benchmarks.records.cell import Cell
from benchmarks.records.machine import usable_cores

ROOT = Path(__file__).resolve().parents[2]
EXCLUDED = ["/.git", "/.venv", "/results", "/build", "**/__pycache__"]  # of what is sent to the cluster's machines
ATTEMPTS = 3  # a cell whose worker or machine died runs again


class RayPool:
    """Runs each cell as a Ray task that holds `threads` CPUs, and a GPU if the device is one.

    Ray starts no more tasks than there are CPUs and GPUs, and each has `threads` threads, so nothing is oversubscribed. The
    checkout is sent to the other machines; they need the same Python environment.
    The address `"local"` starts Ray on this machine, `"auto"` finds the running cluster; else it is a cluster's, as
    `"192.0.2.1:6379"` or `"ray://192.0.2.1:10001"`. ValueError, if Ray is not installed, or no cluster answers there.
    """

    def __init__(self, address: str, workers: int | None, threads: int, device: str):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
            from ray.util.queue import Queue
        except ImportError:
            raise ValueError(f"ray_address={address!r} needs Ray, which is not installed: pip install ray.") from None
        environment = {
            "working_dir": str(ROOT),
            "excludes": EXCLUDED,
            "env_vars": {name: str(threads) for name in THREAD_VARIABLES},
        }
        own = {"num_cpus": usable_cores(), "include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address, runtime_env=environment, logging_level=logging.ERROR, log_to_driver=False, **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ValueError(f"ray_address={address!r}: no Ray cluster answers there. {error}") from None
        self.ray, self.slots, self.device, self.threads = ray, workers, device, threads
        resources = ray.cluster_resources()
        room = int(resources.get("CPU", 1) // threads)
        if device == "cuda":
            room = min(room, int(resources.get("GPU", 0)))
        if room < 1:
            self.ray.shutdown()
            raise ValueError(
                f"ray_address={address!r}: the cluster has no room for {threads} thread(s) on {device}: {resources}."
            )
        self.parallel = min(workers or room, room)
        self.queue = Queue(actor_options={"num_cpus": 0})
        options = {"num_cpus": threads, "num_gpus": int(device == "cuda"), "max_retries": ATTEMPTS - 1}
        self.task = ray.remote(**options)(_work)

    def submit(self, cell: Cell) -> Future:
        """Starts a cell; the future's result is that of `run_cell`, also if its worker died."""
        future = Future()

        def settle(done: Future) -> None:
            error = done.exception()  # out of memory, a machine that went away
            failure = {"error": f"{type(error).__name__}: {error}", "traceback": str(error)}
            future.set_result(done.result() if error is None else failure)

        self.task.remote(cell, self.device, self.threads, self.queue).future().add_done_callback(settle)
        return future

    def messages(self) -> Iterator[tuple]:
        """(key, step, loss, token accuracy) of running cells, as many as there are by now."""
        yield from self.queue.get_nowait_batch(self.queue.qsize())

    def close(self) -> None:
        """Stops what runs and leaves the cluster; one that was started here ends."""
        self.ray.shutdown()


def _work(cell: Cell, device: str, threads: int, messages) -> dict:
    set_up_worker(threads)
    return run_cell(cell, device, lambda *message: messages.put_nowait(message))
