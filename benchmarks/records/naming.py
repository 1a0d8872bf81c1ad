"""Names of our variants, taken apart: `hlru-m4-silu-conv` is an H-LRU of order 4 with silu gates and a short convolution."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fla_bdlru.ops import GATE_NORMS

FAMILIES = {"bdlru": "BD-LRU", "hlru": "H-LRU"}
# what a name may end in, and the layer's argument for it
SUFFIXES: dict[str, dict] = {
    **{norm: {"gate_norm": norm} for norm in GATE_NORMS},
    "memory": {"gate_bias": "memory"},
    "conv": {"use_short_conv": True},
    "gated": {"use_output_gate": True},
    "start": {"initial_state": "learned"},
}
_NAME = re.compile(r"(bdlru|hlru)-m([1-9][0-9]?)((?:-[a-z]+)*)")


def task_label(task: str) -> str:
    r"""A task's name at a column of a picture or a table.

    Example:
        >>> from benchmarks.records.naming import task_label
        >>> [task_label(task) for task in ("s3xz2", "even_pairs")]
        ['S3xZ2', 'even pairs']
    """
    return re.sub("[a-z](?=[0-9])", lambda letter: letter[0].upper(), task.replace("_", " "))


@dataclass(frozen=True)
class Ours:
    """A BD-LRU or H-LRU as its variant's name says it."""

    family: str  # `bdlru` or `hlru`
    size: int  # block size or order
    args: dict  # the layer's other arguments, those that are not its defaults

    @property
    def name(self) -> str:
        """The one name of its variant, without what is its default, parts in the order of `SUFFIXES`."""
        return "-".join((self.family, f"m{self.size}", *(part for part in SUFFIXES if self._has(part))))

    @property
    def norm(self) -> str:
        """Its gate norm."""
        return self.args.get("gate_norm", "softmax")

    @property
    def plain(self) -> bool:
        """Whether nothing but family and size is special about it."""
        return not self.args

    @property
    def label(self) -> str:
        """Everything but the gate norm, for a legend."""
        parts = [part for part in SUFFIXES if part not in GATE_NORMS and self._has(part)]
        return ", ".join((f"{FAMILIES[self.family]}, m = {self.size}", *parts))

    def _has(self, suffix: str) -> bool:
        return SUFFIXES[suffix].items() <= self.args.items()


def parse_name(variant: str) -> Ours | None:
    r"""Takes a variant's name apart: a family, a size, then any of `SUFFIXES`, at most one of them a gate norm.

    `None` for another mixer, a suffix that is not known, and one that comes twice.

    Example:
        >>> from benchmarks.records.naming import parse_name
        >>> parse_name("bdlru-m4-tanh-conv")
        Ours(family='bdlru', size=4, args={'gate_norm': 'tanh', 'use_short_conv': True})
        >>> assert parse_name("gated_deltanet-neg") is parse_name("bdlru-m4-tanh-silu") is None
    """
    found = _NAME.fullmatch(variant)
    if found is None:
        return None
    args: dict = {}
    for suffix in found[3].split("-")[1:]:
        if suffix not in SUFFIXES or SUFFIXES[suffix].keys() & args.keys():
            return None
        args |= SUFFIXES[suffix]
    if args.get("gate_norm") == "softmax":  # the layers' default: the same model as without it
        del args["gate_norm"]
    return Ours(found[1], int(found[2]), args)
