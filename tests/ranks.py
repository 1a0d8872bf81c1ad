"""Functions run in several processes joined by gloo, as torchrun would, and what each returned."""

import os
import pickle
import runpy
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fla.ops.cp import FLACPContext

# imported once, in the process that the ranks fork from
PRELOAD = ["fla_bdlru", "fla_bdlru.ops.cpu.scan", "fla.models", "pytest", "transformers.trainer", "torch.distributed.fsdp"]
PRELOAD += ["torch.distributed.checkpoint", "benchmarks.lm.train", "benchmarks.lm.plan", "benchmarks.records.plots"]
SECONDS = 120  # a rank that waits for another for good is an error, not a hung suite


def forkserver():
    """Where processes start that need not be fresh."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def run_ranks(world_size: int, function: Callable, *args: Any) -> list[Any]:
    """What `function(rank, *args)` returned on every rank; whatever one raised is raised here, with its traceback."""
    processes = forkserver()
    # a test module is known to pytest alone: ranks load it from its file
    module = sys.modules[function.__module__]
    call = (module.__name__, module.__file__, function.__name__, pickle.dumps(args))
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            processes.Process(target=_run_rank, args=(rank, world_size, Path(folder), *call), daemon=True)
            for rank in range(world_size)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(SECONDS)
        hung = [i for i, rank in enumerate(ranks) if rank.is_alive()]
        for i in hung:
            ranks[i].kill()
        errors = "\n".join(path.read_text() for path in sorted(Path(folder).glob("*.error")))
        assert not errors, errors
        assert not hung, f"ranks {hung} did not end in {SECONDS} s"
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _run_rank(rank: int, world_size: int, folder: Path, module: str, file: str, name: str, args: bytes) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        if module not in sys.modules:
            spec = spec_from_file_location(module, file)
            sys.modules[module] = module_from_spec(spec)
            spec.loader.exec_module(sys.modules[module])
        torch.manual_seed(0)
        torch.save(getattr(sys.modules[module], name)(rank, *pickle.loads(args)), folder / f"{rank}.pt")
        dist.barrier()
    except Exception:
        (folder / f"{rank}.error").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        os._exit(1)
    dist.destroy_process_group()


class Forked:
    """What `python` with `words` would do, in forks; several are joined as torchrun would, one is not."""

    def __init__(self, processes, *words):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.output = tempfile.NamedTemporaryFile("r")  # noqa: SIM115
        environ = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)} if processes > 1 else {}
        self.ranks = []
        for rank in range(processes):
            own = {**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else environ
            self.ranks.append(forkserver().Process(target=_run, args=(words, own, self.output.name), daemon=True))
            self.ranks[-1].start()

    def poll(self):
        """The worst exit code, once all have ended."""
        return None if any(rank.is_alive() for rank in self.ranks) else max(abs(rank.exitcode) for rank in self.ranks)

    returncode = property(poll)

    def communicate(self, timeout):
        deadline = time.monotonic() + timeout
        for rank in self.ranks:
            rank.join(deadline - time.monotonic())
        return self.output.read(), "" if self.poll() is not None else "it did not end"

    def kill(self):
        for rank in self.ranks:
            rank.kill()
            rank.join()


def _run(words, environ, output):
    # as Python with `words` would
    os.environ.update(environ)
    torch.set_num_threads(1)
    with open(output, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [word for word in words if word != "-m"]
    (runpy.run_module if words[0] == "-m" else runpy.run_path)(sys.argv[0], run_name="__main__")


def uneven_context(cu_seqlens: list[int], lengths: list[int], rank: int) -> tuple[FLACPContext, torch.Tensor, list[int]]:
    """The context of a slice of any length, empty documents kept; its tokens' places in the whole; its documents."""
    lo = sum(lengths[:rank])
    hi = lo + lengths[rank]
    docs = [
        doc
        for doc, (bos, eos) in enumerate(pairwise(cu_seqlens))
        if lo <= bos < hi or bos < lo < eos or bos == eos == hi == cu_seqlens[-1]
    ]
    bos, eos = cu_seqlens[docs[0]], cu_seqlens[docs[-1] + 1]
    context = FLACPContext(
        group=dist.group.WORLD,
        cu_seqlens=torch.tensor([max(cu_seqlens[doc], lo) - lo for doc in docs] + [min(eos, hi) - lo]),
        is_first_rank=bos >= lo,
        is_last_rank=eos <= hi,
    )
    return context, torch.arange(lo, hi), docs
