"""What is timed on a GPU: shapes as data, and what each shape moves through memory at least."""

from __future__ import annotations

from dataclasses import dataclass, replace

MODES = ("fwd", "fwd+bwd")
LENGTHS = (2048, 32_768, 131_072, 8192, 512)  # the likeliest first
TOKENS = 16_384  # at least so many in a batch


@dataclass(frozen=True)
class Case:
    """One shape."""

    op: str  # `bdlru` or `hlru`
    m: int  # block size or order
    B: int  # sequences
    T: int  # steps of a sequence
    channels: int  # width of `o`: H * m for BD-LRU, N for H-LRU
    dtype: str = "bfloat16"  # of inputs, outputs and gradients

    @property
    def lanes(self) -> int:
        """Blocks or channels that run side by side."""
        return self.channels // self.m if self.op == "bdlru" else self.channels

    def beside(self, peer: Case) -> bool:
        """Whether times of both may be laid side by side: the same tokens, channels and types."""
        shapes = ((case.B, case.T, case.channels, case.dtype) for case in (self, peer))
        return len(set(shapes)) == 1

    def least_bytes(self, mode: str) -> int:
        """Bytes that `mode` moves when every input is read once and every output written once; chunks read inputs twice."""
        m, size = self.m, 4 if self.dtype == "float32" else 2
        if self.op == "bdlru":
            forward, backward = m * (m + 1) + 2 * m, 2 * m * (m + 1) + 4 * m
        else:
            forward, backward = m + 3, 2 * m + 6
        elements = forward if mode == "fwd" else forward + backward
        return size * elements * self.B * self.T * self.lanes


def batch(T: int) -> int:
    return max(1, TOKENS // T)


def op_cases() -> list[Case]:
    """Ours: m over lengths, then batch, width and type around the middle of the table."""
    cases = [Case("bdlru", m, batch(T), T, 1024) for T in LENGTHS for m in (1, 2, 4, 8, 16)]
    cases += [Case("hlru", m, batch(T), T, 1024) for T in (2048, 131_072) for m in (2, 4, 8, 16)]
    middle = [Case("bdlru", m, 8, 2048, 1024) for m in (2, 4)] + [Case("hlru", 4, 8, 2048, 1024)]
    cases += [replace(case, channels=2048) for case in middle]
    cases += [replace(case, B=B) for case in middle for B in (1, 32)]
    cases += [replace(case, dtype=dtype) for case in middle for dtype in ("float32", "float16")]
    cases += [Case("bdlru", m, 8, 2048, 1020 // m * m) for m in (3, 5, 6)]
    return cases + published_cases()


def published_cases() -> list[Case]:
    """The shape that the models' authors timed: see README."""
    return [Case("bdlru", m, 4, 16_384, 1946) for m in (1, 2)]


def peer_cases() -> list[Case]:
    """Shapes at which the peers run; m only matters to the associative scan."""
    return [Case("bdlru", 1, batch(T), T, 1024) for T in LENGTHS]


def scan_cases() -> list[Case]:
    """The associative scan keeps A and its products in memory, so it gets the middle of the table alone."""
    return [Case("bdlru", m, 8, 2048, 1024) for m in (1, 2, 4)]


def layer_shapes() -> list[tuple[int, int]]:
    """(B, T) of the layers' table."""
    return [(8, 2048), (1, 32_768)]


def rehearsal(case: Case) -> Case:
    """The same case, small enough for a CPU."""
    lanes = 4
    return replace(case, B=1, T=24, channels=lanes * case.m if case.op == "bdlru" else lanes, dtype="float32")
