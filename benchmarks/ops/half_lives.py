"""How many letters near-exact gates last: measured with the op, beside the formula.

    python -m benchmarks.ops.half_lives                   # rows go to results/half-lives.csv
    python -m benchmarks.ops.half_lives --out benchmarks/results/half-lives.csv       # those that docs/groups.md shows

A block of five channels reads random permutations. In each row of gates one logit stands `distance` above the five others,
which are all `small`. Two states that differ, though not in their sums, read the same letters and inputs, in float32. What
they differ by shrinks at each letter by lambda, a row's large gate less a small one, so half is left after ln 2 / -ln lambda
letters. For softmax that is about e^distance ln 2 / (m + 1), whatever `small` is.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from benchmarks.ops import check_file
from benchmarks.records.machine import provenance
from benchmarks.tasks import make_generator
from fla_bdlru.ops import chunk_bdlru, normalize_gates

M = 5
DISTANCES = (6.0, 8.0, 10.0, 11.0)
SMALL = {"softmax": (0.0,), "sinh": (0.1, 1.0), "square": (0.1, 1.0), "linear": (0.1, 1.0), "tanh": (0.1, 1.0)}


def half_life(gate_norm: str, distance: float, small: float = 0.0, m: int = M) -> float:
    r"""Letters until half of a difference is left, by the formula.

    Example:
        >>> from benchmarks.ops.half_lives import half_life
        >>> assert round(half_life("softmax", 8.0), 1) == 344.6 == round(half_life("softmax", 8.0, small=3.0), 1)
    """
    row = torch.full((m + 1,), small, dtype=torch.float64)
    row[0] += distance
    p = normalize_gates(row, gate_norm)
    return math.log(2) / -math.log(p[0] - p[1])


def measured_half_life(
    gate_norm: str, distance: float, small: float = 0.0, m: int = M, dtype: torch.dtype = torch.float32
) -> float:
    r"""The same, measured; between two letters the difference counts as a straight line of its logarithm.

    Example:
        >>> from benchmarks.ops.half_lives import half_life, measured_half_life
        >>> assert abs(measured_half_life("softmax", 6.0) / half_life("softmax", 6.0) - 1) < 1e-3
    """
    letters = int(1.1 * half_life(gate_norm, distance, small, m)) + 2
    generator = make_generator("half-life", letters)
    images = torch.rand(letters, m, generator=generator).argsort(-1)
    g = torch.full((letters, m, m + 1), small, dtype=dtype).scatter_(-1, images[..., None], small + distance)
    v = torch.rand(letters, m, generator=generator).to(dtype) - 0.5
    start = torch.arange(m, dtype=dtype)
    starts = torch.stack([start, start.flip(0)])[:, None] / m
    o, _ = chunk_bdlru(*(x[None, :, None].expand(2, -1, 1, *x.shape[1:]) for x in (v, g)), starts, gate_norm=gate_norm)
    one, other = torch.cat([starts, o[:, :, 0]], 1).double()
    left = (one - other).abs().amax(-1).log2()
    left = left - left[0]
    t = int((left <= -1).nonzero()[0])
    return t - 1 + ((left[t - 1] + 1) / (left[t - 1] - left[t])).item()


def main(out: Annotated[Path, typer.Option(help="The CSV file, which is replaced.")] = Path("results/half-lives.csv")) -> None:
    """Measures every kind of gates at every distance, prints a line each and writes the rows."""
    check_file(out, "--out")
    rows = []
    for gate_norm, smalls in SMALL.items():
        for small in smalls:
            for distance in DISTANCES:
                row = {"gate_norm": gate_norm, "m": M, "small": small, "distance": distance}
                row["measured"] = round(measured_half_life(gate_norm, distance, small), 3)
                rows.append(row | {"formula": round(half_life(gate_norm, distance, small), 3)})
                print(*(f"{key}={value}" for key, value in rows[-1].items()))
    pd.DataFrame(rows).assign(dtype="float32", **provenance("cpu")).to_csv(out, index=False)


if __name__ == "__main__":
    typer.run(main)
