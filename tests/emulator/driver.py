"""A Triton driver whose device is this machine: compiled PTX runs on CPU tensors, an operation of a warp at a time.

Triton's own launcher specialises and compiles a kernel as for the GPU that is named; what comes out is executed here.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
import types
import weakref
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import triton.compiler.compiler as compiler
from triton.backends.compiler import GPUTarget
from triton.runtime import driver as triton_driver

from emulator.ptx import CLASSES, Kernel

FOLDER = Path(os.environ.get("FLA_BDLRU_EMULATOR_CACHE", Path(tempfile.gettempdir()) / f"fla_bdlru_emulator_{os.getuid()}"))
HEADER = (Path(__file__).parent / "warp.h").read_text()
FLAGS = ["-O2", "-ftree-vectorize", "-fvect-cost-model=unlimited", "-march=native", "-ffp-contract=off", "-fwrapv"]
FLAGS += ["-fno-strict-aliasing", "-fno-math-errno", "-fno-trapping-math", "-w", "-shared", "-fPIC"]
KINDS = ("", "outside of the launch's tensors", "not aligned to its size", "of bytes that nothing wrote", "lanes branch apart")
COUNTERS = (*CLASSES, "requests", "sectors", "fewest", "read", "wrote")


COMPILED = {}  # what Triton made of a kernel, by its hash: "ptx", "cubin" and what else there is


class EmulatorError(RuntimeError):
    """What a GPU would not say, or would say as an illegal access."""


class Span(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64), ("written", ctypes.c_void_p)]


class Device(ctypes.Structure):
    _fields_ = [("spans", ctypes.c_uint64), ("span", ctypes.POINTER(Span))]
    _fields_ += [(name, ctypes.c_uint64) for name in ("kind", "line", "lane", "address", "store")]
    _fields_ += [("executed", ctypes.c_uint64 * len(CLASSES))] + [(name, ctypes.c_uint64) for name in COUNTERS[len(CLASSES) :]]


class Op(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("run", "to")] + [(name, ctypes.c_uint64) for name in ("line", "of")]
    _fields_ += [("a", ctypes.c_void_p * 12)]


@functools.cache
def symbol(text):
    return "form_" + hashlib.sha256("".join([text, HEADER, *FLAGS]).encode()).hexdigest()[:24]


def compiled(texts):
    """Functions by their text. New ones are compiled together; a link for each says in which library it is."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    missing = [text for text in dict.fromkeys(texts) if not (FOLDER / symbol(text)).exists()]
    if missing:
        with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
            source, library = Path(scratch) / "forms.c", FOLDER / f"{symbol(''.join(missing))}.so"
            source.write_text("\n".join([HEADER, *(text.replace("@", symbol(text), 1) for text in missing)]))
            subprocess.run(["gcc", *FLAGS, source, "-o", source.with_suffix(".so"), "-lm"], check=True)
            source.with_suffix(".so").rename(library)
            for text in missing:
                (link := Path(scratch) / symbol(text)).symlink_to(library)
                link.rename(FOLDER / link.name)
    return {text: getattr(ctypes.CDLL(str(FOLDER / symbol(text))), symbol(text)) for text in set(texts)}


class Program:
    """A kernel ready to run: its operations, and the memory in which their operands lie, 32 words of 8 bytes each."""

    def __init__(self, kernel):
        self.kernel, operations = kernel, kernel.operations
        places = {x: i for i, x in enumerate(dict.fromkeys(x for o in operations for x in o.operands), 2)}
        self.memory = np.zeros((len(places) + 2, 32), np.uint64)
        self.params = [(i, x[1]) for x, i in places.items() if x[0] == "param"]
        self.grid = places.get(("grid",), 0)
        at = {x: self.memory[1 if x == ("program",) else i].ctypes.data for x, i in places.items()}
        for x, i in places.items():
            if x[0] == "constant":
                self.memory[i].view(f"u{x[1]}")[:32] = x[2]
            elif x == ("lane",):
                self.memory[i].view("u4")[:32] = range(32)
        forms = compiled([RUN, *(o.text for o in operations)])
        self.run_ = forms[RUN]
        address = {text: ctypes.cast(form, ctypes.c_void_p).value for text, form in forms.items()}
        self.code = (Op * len(operations))()
        for op, o in zip(self.code, operations):
            op.run, op.line, op.of = address[o.text], o.line, CLASSES.index(o.of)
            op.to = ctypes.addressof(self.code) + kernel.labels[o.to] * ctypes.sizeof(Op) if o.to else None
            op.a[: len(o.operands)] = [at[x] for x in o.operands]

    def run(self, words, device, grid, first, last):
        """Whether an error came up in the programs first .. last - 1 of the grid."""
        for i, number in self.params:
            self.memory[i] = words[number]
        self.memory[self.grid].view("u4")[:32] = grid
        program = ctypes.c_void_p(self.memory[1].ctypes.data)
        return self.run_(ctypes.byref(device), self.code, program, first, last)


# a text like a form's, which goes through operations
RUN = """int @(Device *d, const Op *code, u32 *number, u32 first, u32 last) {
  for (u32 program = first; program < last; program++) {
    LANES number[l] = program;
    for (const Op *op = code; op; op = op->run(d, op)) d->executed[op->of]++;
    if (d->kind) return 1;
  }
  return 0;
}
"""


class Driver:
    """What Triton asks of a driver. `totals` counts, a kernel, what was executed; `window` may choose programs of a grid."""

    def __init__(self, arch=90):
        self.target = GPUTarget("cuda", arch, 32)
        self.kernels, self.written, self.totals = {}, {}, {}
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
            # what Triton has compiled stays with it, whoever drives
            triton_driver.active.launch(metadata, x, dict(zip(names, (values[place] for place in places))))

        return launch

    def launch(self, metadata, grid, values):
        if metadata.hash not in self.kernels:
            self.kernels[metadata.hash] = Program(Kernel(COMPILED[metadata.hash]["ptx"]))
        program = self.kernels[metadata.hash]
        kernel = program.kernel
        tensors = {name: x for name, x in values.items() if isinstance(x, torch.Tensor) and x.numel()}
        words = [x.data_ptr() if isinstance(x, torch.Tensor) else int(x or 0) & (2**64 - 1) for x in values.values()]
        words += [0] * (len(kernel.params) - len(words))  # scratch memory, of which there is none
        spans = (Span * max(1, len(tensors)))(*map(self.span, tensors.values()))
        device = Device(spans=len(tensors), span=spans)
        if grid and program.run(words, device, grid, *self.window(grid)):
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
        COMPILED[self.metadata.hash] = self.asm

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
