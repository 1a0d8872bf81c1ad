"""Trains one small model under FSDP2 on gloo processes; started by `test_distributed.py` under torchrun.

accelerate (1.15) gives FSDP to accelerator devices only and ignores it on a CPU, so that one condition is lifted here:
the rest, from the Trainer's arguments to checkpoints and scores, is what runs on GPUs.
"""

import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from benchmarks.compare.models import quiet
from benchmarks.lm.models import settle
from benchmarks.lm.plan import make_runs, prepare_corpus
from benchmarks.lm.report import CURVE_COLUMNS
from benchmarks.lm.settings import load_settings
from benchmarks.lm.train import train
from benchmarks.records.store import ResultStore


def shard_on_cpu() -> None:
    original = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = init


def main(out: Path, *changes: str) -> None:
    quiet()
    shard_on_cpu()
    PartialState(cpu=True)
    settings = settle(load_settings("quick", changes))
    corpus = prepare_corpus(settings, out, lambda line: None)
    (run,) = make_runs(settings, corpus, 2)
    main_process = PartialState().is_main_process
    result = train(run, corpus, out, "cpu", fsdp=True, processes=2, say=print if main_process else lambda line: None)
    if main_process:
        with ResultStore(out, "fsdp", ("key", "loss"), CURVE_COLUMNS) as store:
            store.add({"key": run.key, "loss": " ".join(map(str, result["losses"]))}, result["curve"])
    PartialState().destroy_process_group()  # gloo's threads outlive the interpreter else, and may abort its end


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
