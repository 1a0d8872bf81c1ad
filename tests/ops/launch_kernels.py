"""Launches the kernels as on an H100 that is not there, and prints each launch: a JSON object.

Triton's own launcher takes the arguments, specialises and compiles the kernel for sm_90 and is handed the grid; the driver
below it is a stand-in that runs nothing. What is wrong with an argument (a type, a None, an option, a key of the tuner) shows.

`python tests/ops/launch_kernels.py` goes through forward and backward of both ops.
"""

import atexit
import itertools
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp(prefix="fla_bdlru_launch_")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from emulator import Driver
from triton.runtime import driver

from fla_bdlru.ops.bdlru.kernels import KERNELS as bdlru_kernels
from fla_bdlru.ops.gpu import runtime as triton_runtime
from fla_bdlru.ops.gpu.runtime import triton_bwd, triton_fwd
from fla_bdlru.ops.hlru.kernels import KERNELS as hlru_kernels

atexit.register(shutil.rmtree, os.environ["TRITON_CACHE_DIR"], ignore_errors=True)
OPS = {"bdlru": bdlru_kernels, "hlru": hlru_kernels}


class NoGPU(Driver):
    """What Triton asks of a driver."""

    def __init__(self):
        super().__init__()
        self.launches, self.tuned = [], []

    def launcher_cls(self, source, metadata):
        def launch(grid_x, grid_y, grid_z, stream, function, packed, *rest):
            if grid_x * grid_y * grid_z:
                launched = {"kernel": metadata.name, "grid": [grid_x, grid_y, grid_z], "warps": metadata.num_warps}
                self.launches.append({**launched, "limit": metadata.maxnreg})

        return launch

    def get_benchmarker(self):
        def bench(call, quantiles):
            before = len(self.launches)
            call()
            self.tuned += self.launches[before:]
            del self.launches[before:]
            return [1.0] * len(quantiles)

        return bench


def cases():
    """What differs on the host: steps, chunks, documents, states, types, and whether the tuner has a choice."""
    for op, M in itertools.product(OPS, (1, 2, 3)):
        yield {"op": op, "M": M, "T": 1, "state": True}
        yield {"op": op, "M": M, "T": 3000, "state": True}
    for op in OPS:
        yield {"op": op, "M": 2, "T": 1}
        yield {"op": op, "M": 2, "T": 0, "state": True}
        yield {"op": op, "M": 2, "T": 3000}
        yield {"op": op, "M": 2, "T": 40, "packed": True}
        yield {"op": op, "M": 2, "T": 40, "packed": True, "state": True}
        yield {"op": op, "M": 2, "T": 3000, "packed": True, "state": True, "dtype": "float16"}
        yield {"op": op, "M": 2, "T": 40, "gradients": "o"}
        yield {"op": op, "M": 2, "T": 3000, "gradients": "ht"}
        yield {"op": op, "M": 17, "T": 40, "state": True, "dtype": "float32"}
        yield {"op": op, "M": 4, "T": 3000, "n": 34, "state": True, "dtype": "float32", "tuned": True}


def run(op, M, T, state=False, packed=False, dtype="bfloat16", gradients="o, ht", n=40, tuned=False):
    """The launches of a forward and a backward pass, and those by which the tuner chose."""
    kernels, rows, dtype = OPS[op], (M,) if op == "bdlru" else (), getattr(torch, dtype)
    triton_runtime.TUNED_ELEMENTS = 1 if tuned else 2**60
    gpu.launches.clear()
    gpu.tuned.clear()
    v, g = torch.zeros(1, T, *rows, n, dtype=dtype), torch.zeros(1, T, *rows, M + 1, n, dtype=dtype)
    cu_seqlens = torch.tensor([0, T // 3, T]) if packed else None
    states = torch.zeros(1 + packed, M, n)
    h0 = states if state else None
    do, dht = v if "o" in gradients else None, states if "ht" in gradients else None
    o, _, h_in, P = triton_fwd(kernels, v, g, h0, cu_seqlens, "softmax", True)
    forward = list(gpu.launches)
    gpu.launches.clear()
    triton_bwd(kernels, v, g, o, h_in, P, h0, do, dht, cu_seqlens, "softmax", True)
    return {"forward": forward, "backward": gpu.launches, "tried": gpu.tuned}


if __name__ == "__main__":
    gpu = NoGPU()
    driver.set_active(gpu)
    for case in cases():
        print(json.dumps({**case, **run(**case)}), flush=True)
