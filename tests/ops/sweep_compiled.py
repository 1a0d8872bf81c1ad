"""Random configurations of the compiled kernels, executed on this machine, against the naive recurrences in float64.

`python tests/ops/sweep_compiled.py --minutes 30` adds what it found to sweep_compiled.json, as it goes.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import torch  # noqa: E402
import triton  # noqa: E402
from emulator import EmulatorError, emulated  # noqa: E402

import fla_bdlru.ops as ops  # noqa: E402
from fla_bdlru.ops.gpu import runtime  # noqa: E402

SUMMARY = Path(__file__).with_suffix(".json")
DTYPES = {"float32": 2e-5, "bfloat16": 3e-2, "float16": 4e-3}
WIDTHS = (1, 2, 3, 8, 16, 31, 32, 33, 40, 64, 65, 66, 68, 96, 100, 128, 130)


def draw(rng):
    """What kernels are compiled for."""
    M = rng.choice((1, 2, 3, 4, 5, 6, 8))
    return {
        "op": rng.choice(("bdlru", "hlru")),
        "M": M,
        "norm": rng.choice(ops.GATE_NORMS),
        "width": rng.choice(WIDTHS if M <= 4 else WIDTHS[:9]),
        "dtype": rng.choice(tuple(DTYPES)),
        "packed": rng.random() < 0.4,
        "state": rng.random() < 0.7,
        "gradients": rng.choice(("o", "ht", "o, ht")),
        "chunked": rng.random() < 0.7,
    }


def vary(rng, packed, chunked):
    """What the same kernels run on."""
    T = rng.choice((1, 2, 3, rng.randint(4, 40), rng.randint(30, 140)))
    cuts = sorted(rng.randint(0, T) for _ in range(rng.randint(0, 5))) if packed else []
    return {
        "T": T,
        "B": 1 if packed else rng.randint(1, 3),
        "cu_seqlens": [0, *cuts, T] if packed else None,
        "chunk": rng.choice((1, 4, 7, 32)) if chunked else 0,
        "seed": rng.randrange(2**31),
    }


def results(op, v, g, h0, c, do, dht):
    """Outputs, final state and all gradients, in float64."""
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in (v, g, h0)]
    documents = None if c["cu_seqlens"] is None else torch.tensor(c["cu_seqlens"])
    o, ht = op(*leaves, True, gate_norm=c["norm"], cu_seqlens=documents)
    loss = (o.double() * do).sum() if "o" in c["gradients"].split(", ") else 0
    loss = loss + ((ht.double() * dht).sum() if "ht" in c["gradients"] else 0)
    loss.backward()
    found = {"o": o, "ht": ht} | {f"d{k}": x.grad for k, x in zip(("v", "g", "h0"), leaves) if x is not None}
    return {k: torch.zeros(()) if x is None else x.detach().double() for k, x in found.items()}


def wrong(c):
    """What is wrong with a configuration, or None."""
    torch.manual_seed(c["seed"])
    dtype, M = getattr(torch, c["dtype"]), c["M"]
    shape = (c["B"], c["T"], c["width"], M) if c["op"] == "bdlru" else (c["B"], c["T"], c["width"])
    sequences = len(c["cu_seqlens"]) - 1 if c["cu_seqlens"] else c["B"]
    v, g = torch.randn(shape).to(dtype), torch.randn(*shape, M + 1)
    # gates without a denominator grow, and those near 0 amplify rounding
    g = (g / (M + 1) if c["norm"] == "none" else g.abs() + 0.1 if c["norm"] in ("linear", "silu", "square", "relu") else g).to(
        dtype
    )
    h0 = torch.randn(sequences, c["width"], M) if c["state"] else None
    do, dht = torch.randn(shape, dtype=torch.float64), torch.randn(sequences, c["width"], M, dtype=torch.float64)
    runtime.chunk_length = lambda B, T, n, M, warps: min(c["chunk"] or max(T, 1), max(T, 1))
    exact = results(
        getattr(ops, f"naive_recurrent_{c['op']}"), v.double(), g.double(), None if h0 is None else h0.double(), c, do, dht
    )
    try:
        got = results(getattr(ops, f"chunk_{c['op']}"), v, g, h0, c, do, dht)
    except EmulatorError as error:
        return str(error)
    errors = {
        k: ((got[k] - x).abs().max() / x.abs().max().clamp_min(1)).item() if x.numel() else 0.0 for k, x in exact.items()
    }
    bad = {k: e for k, e in errors.items() if not e <= DTYPES[c["dtype"]]}
    return f"errors {bad}" if bad else None


def add(found, driver):
    """Adds what was found since the last time to the summary file."""
    found["shuffles"] = sum(counts["shuffle"] for counts in driver.totals.values())
    driver.totals.clear()
    old = (
        json.loads(SUMMARY.read_text()) if SUMMARY.exists() else {"configurations": 0, "wrong": [], "shuffles": 0, "runs": []}
    )
    for key in ("configurations", "wrong", "shuffles"):
        old[key] += found[key]
    if found["run"] not in old["runs"]:
        old["runs"].append(found["run"])
    scratch = SUMMARY.with_suffix(".tmp")
    scratch.write_text(json.dumps(old, indent=1) + "\n")
    scratch.replace(SUMMARY)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--each", type=int, default=100, help="runs of a set of compiled kernels")
    parser.add_argument("--seed", type=int, default=None)
    args = parser.parse_args()
    os.environ["FLA_BDLRU_AUTOTUNE"] = "0"
    torch.set_num_threads(1)
    seed = random.randrange(2**31) if args.seed is None else args.seed
    rng, start, reported = random.Random(seed), time.time(), time.time()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    run = {"commit": commit.stdout.strip(), "seed": seed, "torch": torch.__version__, "triton": triton.__version__}
    run |= {"target": "sm_90", "python": platform.python_version()}
    total, found = 0, {"configurations": 0, "wrong": [], "shuffles": 0, "run": run}
    with emulated() as driver:
        while (now := time.time()) - start < 60 * args.minutes:
            if total % args.each == 0:
                constants = draw(rng)
            c = {**constants, **vary(rng, constants["packed"], constants["chunked"])}
            reason = wrong(c)
            total += 1
            found["wrong"] += [{**c, "reason": reason}] if reason else []
            found["configurations"] += 1
            if now - reported > 20:
                add(found, driver)
                print(f"{total} configurations, {len(found['wrong'])} wrong, {found['shuffles']} shuffles", flush=True)
                found, reported = {"configurations": 0, "wrong": [], "shuffles": 0, "run": run}, now
        add(found, driver)


if __name__ == "__main__":
    main()
