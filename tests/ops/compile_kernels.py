"""Compiles kernels for a GPU that need not be there, and prints what came out: one JSON object a kernel.

`python tests/ops/compile_kernels.py` prints the tables of the ops' READMEs; with a JSON list of jobs, their rows. PyTorch is
needed, a GPU is not.
"""

import atexit
import importlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp(prefix="fla_bdlru_compile_")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fla_bdlru.ops.gpu.gates import NORM_CODES
from fla_bdlru.ops.gpu.lanes import chunk_lru_kernel_carry
from fla_bdlru.ops.gpu.runtime import OPTIONS, chunks_ahead, columns, lanes_per_thread, register_limit

atexit.register(shutil.rmtree, os.environ["TRITON_CACHE_DIR"], ignore_errors=True)
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
FLOAT32 = {"h0", "end", "P_out", "P", "x0", "x_in", "x_last", "h_in", "ht", "dht", "u_in", "dh0"}
SCALARS = {"T", "C", "NC", "zero"}
DOCUMENTS = {"starts": "*i32", "ends": "*i32", "seq": "*i32", "cu_seqlens": "*i64"}
FOUND = {}  # by what is compiled, what came out
PACE = 0.0038  # seconds that `pace` says on an undisturbed processor, on which compiling was timed
WIDTHS = {"b8": 1, "b16": 2, "b32": 4, "b64": 8}


def target(arch):
    """sm_90 as 90; AMD's by their names, of which CDNA's (gfx9) have warps of 64."""
    amd = str(arch).startswith("gfx")
    return GPUTarget("hip" if amd else "cuda", arch, 64 if str(arch).startswith("gfx9") else 32)


def pace():
    """Seconds of a processor that a piece of work takes now, as neighbours slow what they share a core with."""
    start = time.process_time()
    sum(i * i for i in range(100_000))
    return time.process_time() - start


def compile_kernel(kernel, constants, dtype, arch, packed, loops, **limit):
    """What a kernel compiles to with every pointer aligned to 16 bytes, as PyTorch's are; once."""
    signature, values, hints = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            values[name], signature[name] = constants[name], "constexpr"
        elif name in SCALARS:
            signature[name] = "i32"
        elif name in DOCUMENTS and not packed:
            values[name], signature[name] = None, "constexpr"
        else:
            signature[name] = DOCUMENTS.get(name) or ("*fp32" if name in FLOAT32 else f"*{dtype}")
            hints[(i,)] = [["tt.divisibility", 16]]
    key = repr((kernel.__name__, signature, values, arch, loops, limit))
    if key not in FOUND:
        source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=hints)
        slowness = pace() / PACE
        start = sum(os.times()[:4])  # of this process and its children: ptxas is one
        binary = triton.compile(source, target=target(arch), options={**OPTIONS, **limit})
        FOUND[key] = {"seconds": round(sum(os.times()[:4]) - start, 2), "slowness": slowness, **read(binary, loops)}
    return FOUND[key]


def cuobjdump(option, path):
    """What Triton's cuobjdump says; it looks for nvdisasm on the path."""
    environment = {**os.environ, "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([TOOLS / "cuobjdump", option, path], capture_output=True, text=True, check=True, env=environment)
    return done.stdout


def longest_loop(code):
    """The instructions of the longest loop in machine code: what branches back, and the way to there."""
    lines = {int(m[1], 16): m[2] for m in re.finditer(r"^\s+/\*([0-9a-f]{4,6})\*/\s+(.*?);", code, re.MULTILINE)}
    back = [(int(m[1], 16), at) for at, x in lines.items() if (m := re.search(r"\bBRA\b.*?0x([0-9a-f]+)", x))]
    loops = ([lines[at] for at in sorted(lines) if to <= at <= end] for to, end in back if to < end)
    return max(loops, key=len, default=[])


def read_amd(binary):
    """The same of AMD's code, as far as its text says it."""
    text = binary.asm["amdgcn"]

    def number(name):
        return int(re.search(rf"\.{name}:\s+(\d+)", text)[1])

    loads = re.findall(r"\b(?:buffer|global)_load_(?:(?:d16_)?(?:u|s|b|i)?(\d+)|(u|s)?(byte|short)|dword(?:x(\d))?)", text)
    widths = [int(bits) // 8 if bits else {"byte": 1, "short": 2}.get(small) or 4 * int(n or 1) for bits, _, small, n in loads]
    return {
        "registers": number("vgpr_count"),
        "stack": number("private_segment_fixed_size"),
        "local": number("vgpr_spill_count") + number("sgpr_spill_count"),
        "shared": binary.metadata.shared,
        "shuffles": len(re.findall(r"\b(?:ds_b?permute|ds_swizzle|v_permlane|v_mov_b32_dpp)\w*|_dpp\b", text)),
        "barriers": len(re.findall(r"\bs_barrier", text)),
        "atomics": len(re.findall(r"_(?:atomic|cmpswap)_", text)),
        "narrowest_load": min(widths, default=16),
    }


def read(binary, loops):
    """Registers, memory beyond them, the instructions that must not be there and, slowly, those of the longest loop."""
    if "amdgcn" in binary.asm:
        return read_amd(binary)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = cuobjdump("--dump-resource-usage", file.name)
        code = {"instructions": len(longest_loop(cuobjdump("-sass", file.name)))} if loops else {}
    registers, stack, _, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage).groups())
    ptx = binary.asm["ptx"]
    loads = re.findall(r"ld\.global[\w.:]*?(?:\.v(\d))?\.(b\d+)", ptx)
    return {
        **code,
        "registers": registers,
        "stack": stack,
        "local": local,
        "shared": binary.metadata.shared,
        "shuffles": len(re.findall(r"shfl\.", ptx)),
        "barriers": len(re.findall(r"bar\.|barrier", ptx)),
        "atomics": len(re.findall(r"\b(?:atom|red)\.", ptx)),
        "maxima": len(re.findall(r"max\.f32", ptx)),
        "narrowest_load": min((int(n or 1) * WIDTHS[kind] for n, kind in loads), default=16),
    }


def rows(op, M, gate_norm="softmax", dtype="bf16", arch=90, packed=False, n=1024, VEC=None, WARP=None, loops=False):
    """What the kernels of one configuration compile to."""
    module = importlib.import_module(f"fla_bdlru.ops.{op}.kernels").KERNELS
    warp = WARP or target(arch).warp_size
    VEC = VEC or lanes_per_thread(M, n, warp)
    shape = {"M": M, "MP": triton.next_power_of_2(M), "WARP": warp}
    common = {**shape, "VEC": VEC, module.lane_axis: n, "NORM": NORM_CODES[gate_norm], "VARLEN": packed, "HAS_H0": packed}
    common |= module.unrolled(M)
    steps = common.get("TURN", 1)  # of the longest loop; a chunk's loop, where rows are not unrolled, is over rows
    gates = VEC * (steps * (M + 1) if op == "hlru" else (M if common["UNROLL"] else 1) * (M + 1))
    backward = {"HAS_DO": True, "HAS_DHT": packed}
    configurations = {
        "fwd_h": (module.fwd_h, {**common, "CC": columns(M)}),
        "fwd_o": (module.fwd_o, {**common, "HAS_H_IN": True, "LAST": False}),
        "bwd_dh": (module.bwd_dh, {**common, **backward}),
        "bwd_dvg": (module.bwd_dvg, {**common, **backward, "HAS_H_IN": True, "HAS_U_IN": True, "LAST": False}),
        "carry": (chunk_lru_kernel_carry, {**common, "H": n, "AHEAD": chunks_ahead(M), "HAS_X0": True, "REVERSE": True}),
    }
    variant = f"{dtype} {arch if str(arch).startswith('gfx') else f'sm_{arch}'} {gate_norm}" + (" packed" if packed else "")
    for name, (kernel, constants) in configurations.items():
        constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
        limit = register_limit(module.warps(M), target(arch).backend) if name == "fwd_h" else {}
        yield {
            "op": op,
            "M": M,
            "n": n,
            "kernel": name,
            "variant": variant,
            "dtype": dtype,
            "VEC": VEC,
            "gates": gates,
            **compile_kernel(kernel, constants, dtype, arch, packed, loops, **limit),
        }


def main():
    if len(sys.argv) > 1:
        for job in json.loads(sys.argv[1]):
            for row in rows(**job):
                print(json.dumps(row), flush=True)
        return
    for op, M in itertools.product(("bdlru", "hlru"), (1, 2, 3, 4, 5, 6, 8, 16)):
        cells = []
        for r in rows(op, M, loops=True):
            bad = {name: r[name] for name in ("stack", "local", "shared", "shuffles", "barriers", "atomics") if r[name]}
            gates = "" if r["kernel"] == "carry" else f" / {r['instructions'] / r['gates']:.1f}"
            cells.append(f"{r['registers']}{gates}{bad or ''}")
        print(f"| {op} {M} ({lanes_per_thread(M, 1024)}) | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
