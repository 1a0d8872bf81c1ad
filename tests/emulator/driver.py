"""A Triton driver whose device is this machine: compiled PTX, translated to C, runs on CPU tensors.

Triton's own launcher specialises and compiles a kernel as for the GPU that is named; what comes out is executed here.
"""

import contextlib
import ctypes
import hashlib
import os
import subprocess
import tempfile
import types
import weakref
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import torch
import triton.compiler.compiler as compiler
from triton.backends.compiler import GPUTarget
from triton.runtime import driver as triton_driver

from emulator.ptx import CLASSES, Kernel

FLAGS = ["-O1", "-ftree-vectorize", "-fvect-cost-model=unlimited", "-march=native", "-ffp-contract=off", "-fwrapv"]
FLAGS += ["-fno-strict-aliasing", "-fno-math-errno", "-fno-trapping-math", "-w", "-shared", "-fPIC"]
KINDS = (
    "",
    "outside of the launch's tensors",
    "not aligned to its size",
    "of bytes that nothing wrote",
    "lanes branch apart",
)
COUNTERS = (*CLASSES, "requests", "sectors", "fewest", "read", "wrote")


class EmulatorError(RuntimeError):
    """What a GPU would not say, or would say as an illegal access."""


class Span(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64), ("written", ctypes.c_void_p)]


class Device(ctypes.Structure):
    _fields_ = [("spans", ctypes.c_uint64), ("span", ctypes.POINTER(Span))]
    _fields_ += [(name, ctypes.c_uint64) for name in ("kind", "line", "lane", "address", "store")]
    _fields_ += [("executed", ctypes.c_uint64 * len(CLASSES))] + [(name, ctypes.c_uint64) for name in COUNTERS[len(CLASSES) :]]


def build(kernel):
    """The kernel's `run`, compiled once for its text."""
    folder = Path(
        os.environ.get("FLA_BDLRU_EMULATOR_CACHE", Path(tempfile.gettempdir()) / f"fla_bdlru_emulator_{os.getuid()}")
    )
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / (hashlib.sha256("".join([kernel.code, *FLAGS]).encode()).hexdigest()[:24] + ".so")
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            source = Path(scratch) / "kernel.c"
            source.write_text(kernel.code)
            subprocess.run(["gcc", *FLAGS, source, "-o", source.with_suffix(".so"), "-lm"], check=True)
            source.with_suffix(".so").rename(library)
    return ctypes.CDLL(str(library)).run


class Driver:
    """What Triton asks of a driver. `totals` counts, a kernel, what was executed; `window` may choose programs of a grid."""

    def __init__(self, arch=90):
        self.target = GPUTarget("cuda", arch, 32)
        self.ptx, self.kernels, self.written, self.totals = {}, {}, {}, {}
        self.window = lambda grid: (0, grid)
        properties = {"max_shared_mem": 227 * 1024, "warpSize": 32, "multiprocessor_count": 132}
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: properties,
            load_binary=lambda name, kernel, shared, device: (name, name, 0, 0, 1024),
        )

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_interface(self):
        return torch.cpu

    def get_benchmarker(self):
        def bench(call, quantiles):
            call()
            return [1.0] * len(quantiles)

        return bench

    def launcher_cls(self, source, metadata):
        names = [name for name in source.fn.arg_names if source.signature.get(name) != "constexpr"]
        places = [source.fn.arg_names.index(name) for name in names]

        def launch(x, y, z, stream, function, packed, *rest):
            if (y, z) != (1, 1) or metadata.num_warps != 1 or metadata.shared:
                raise EmulatorError(f"{metadata.name}: one warp, one axis and no shared memory is what runs here")
            values = rest[-len(source.fn.arg_names) :]
            self.launch(metadata, x, dict(zip(names, (values[place] for place in places))))

        return launch

    def launch(self, metadata, grid, values):
        if metadata.hash not in self.kernels:
            kernel = Kernel(self.ptx[metadata.hash])
            self.kernels[metadata.hash] = kernel, build(kernel)
        kernel, run = self.kernels[metadata.hash]
        tensors = {name: x for name, x in values.items() if isinstance(x, torch.Tensor) and x.numel()}
        words = [x.data_ptr() if isinstance(x, torch.Tensor) else int(x or 0) & (2**64 - 1) for x in values.values()]
        words += [0] * (len(kernel.params) - len(words))  # scratch memory, of which there is none
        spans = (Span * max(1, len(tensors)))(*map(self.span, tensors.values()))
        device = Device(spans=len(tensors), span=spans)
        if grid and run((ctypes.c_uint64 * len(words))(*words), ctypes.byref(device), grid, *self.window(grid)):
            places = ", ".join(f"{k} {tuple(x.shape)} at {x.data_ptr():#x}" for k, x in tensors.items())
            access = f"{'store' if device.store else 'load'} at {device.address:#x}, " if device.address else ""
            line = f"line {device.line + 1}, {kernel.lines[device.line].strip()}"
            raise EmulatorError(f"{kernel.name}, {line}: {access}lane {device.lane}: {KINDS[device.kind]} ({places})")
        counts = Counter(dict(zip(COUNTERS, [*device.executed, *(getattr(device, n) for n in COUNTERS[len(CLASSES) :])])))
        self.totals.setdefault(kernel.name, Counter()).update(counts | Counter(launches=1))

    def span(self, x):
        first = x.data_ptr()
        last = first + (sum((n - 1) * s for n, s in zip(x.shape, x.stride())) + 1) * x.element_size()
        written = self.written.get(x.untyped_storage().data_ptr())
        offset = first - x.untyped_storage().data_ptr()
        return Span(first, last, None if written is None else ctypes.addressof(written) + offset)

    def poison(self, x):
        """Fills what `torch.empty` returned with NaN, and has the bytes remembered that kernels write."""
        storage = x.untyped_storage()
        if x.device.type == "cpu" and storage.nbytes() and x.is_floating_point():
            storage.fill_(255)
            self.written[storage.data_ptr()] = (ctypes.c_uint8 * storage.nbytes())()
            weakref.finalize(storage, self.written.pop, storage.data_ptr(), None)
        return x


class PoisonedTorch(types.ModuleType):
    """`torch`, whose empty tensors a driver poisons."""

    def __init__(self, driver):
        super().__init__("torch")
        self.empty = lambda *args, **kwargs: driver.poison(torch.empty(*args, **kwargs))
        self.empty_like = lambda *args, **kwargs: driver.poison(torch.empty_like(*args, **kwargs))

    def __getattr__(self, name):
        return getattr(torch, name)


@contextlib.contextmanager
def emulated(arch=90):
    """Has ops on CPU tensors run their compiled kernels here; yields the driver.

    Example:
        >>> with emulated() as driver:
        ...     chunk_bdlru(v, g)
        >>> assert not any(counts["shuffle"] for counts in driver.totals.values())
    """
    from fla_bdlru.ops.common import dispatch
    from fla_bdlru.ops.gpu import runtime

    driver, init, why_not = Driver(arch), compiler.CompiledKernel.__init__, dispatch._why_not
    backend = os.environ.get("FLA_BDLRU_BACKEND")

    def remember(self, *args, **kwargs):
        init(self, *args, **kwargs)
        driver.ptx[self.metadata.hash] = self.asm["ptx"]

    compiler.CompiledKernel.__init__ = remember
    dispatch._why_not = lambda wanted, device, dtypes: None if device.type == "cpu" else why_not(wanted, device, dtypes)
    runtime.torch = PoisonedTorch(driver)
    os.environ["FLA_BDLRU_BACKEND"] = "triton"
    before = triton_driver._active
    triton_driver.set_active(driver)
    try:
        yield driver
    finally:
        compiler.CompiledKernel.__init__ = init
        dispatch._why_not = why_not
        runtime.torch = torch
        triton_driver._active = before
        os.environ.pop("FLA_BDLRU_BACKEND")
        os.environ |= {} if backend is None else {"FLA_BDLRU_BACKEND": backend}
