"""Functions run in several processes joined by gloo, as torchrun would, and what each returned."""

import os
import pickle
import sys
import tempfile
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
PRELOAD = ["fla_bdlru", "fla_bdlru.ops.cpu.scan"]
SECONDS = 120  # a rank that waits for another for good is an error, not a hung suite


def run_ranks(world_size: int, function: Callable, *args: Any) -> list[Any]:
    """What `function(rank, *args)` returned on every rank; whatever one raised is raised here, with its traceback."""
    processes = get_context("forkserver")
    processes.set_forkserver_preload(PRELOAD)
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
