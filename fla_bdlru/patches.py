"""What `import fla_bdlru` changes in other libraries: every patch is recorded here, beside its reason.

`python -m fla_bdlru.patches` prints the record. `FLA_BDLRU_PATCHES=0` does without all of them but one: a config with `mixer=`
is then refused, where FLA alone would build its own layers in silence. `fla_bdlru.swap_mixers(model)` swaps by hand.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from typing import Any, NamedTuple

from fla_bdlru.ops.common.checks import read_switch

ENV_VAR = "FLA_BDLRU_PATCHES"


class Patch(NamedTuple):
    """One thing that was changed: `target` is `"module:path"`, or what is asked to find it."""

    target: str
    why: str


RECORD: list[Patch] = []


def is_enabled() -> bool:
    r"""Whether the import patches other libraries.

    Raises:
        ValueError: if `FLA_BDLRU_PATCHES` is neither empty, `0` nor `1`.

    Example:
        >>> from fla_bdlru.patches import is_enabled
        >>> assert is_enabled()
    """
    return read_switch(ENV_VAR)


def record(target: str, why: str) -> None:
    """Notes a change, once, for what is changed in another way than by `patch`."""
    entry = Patch(target, why)
    if entry not in RECORD:
        RECORD.append(entry)


def resolve(target: str) -> tuple[Any, str, Any]:
    """`"module:function"` or `"module:Class.method"` to (the object that holds it, its name, the function)."""
    module_name, _, path = target.partition(":")
    owner = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name, getattr(owner, name)


def patch(target: str, new: Any, why: str) -> None:
    r"""Puts `new` in the place of a function or method of another library.

    Args:
        target (str):
            `"module:function"` or `"module:Class.method"`.
        new (Any):
            What stands there from now on.
        why (str):
            The reason, for the record.

    Raises:
        ImportError, AttributeError: if the target is not there.

    Example:
        >>> import math
        >>> from fla_bdlru.patches import RECORD, patch
        >>> old = math.tau
        >>> patch("math:tau", 6.0, "an example")
        >>> assert math.tau == 6.0 and RECORD.pop().target == "math:tau"
        >>> math.tau = old
    """
    owner, name, _ = resolve(target)
    setattr(owner, name, new)
    record(target, why)


def wrap(target: str, new: Callable, why: str) -> None:
    """As `patch`, with `new(original, *args, **kwargs)` in front of what stood there; done again, it changes nothing."""
    original = resolve(target)[2]
    reasons = getattr(original, "_fla_bdlru_reasons", ())
    if why in reasons:
        return

    @wraps(original)
    def wrapper(*args, **kwargs):
        return new(original, *args, **kwargs)

    wrapper._fla_bdlru_reasons = (*reasons, why)
    patch(target, wrapper, why)


class _Finder(MetaPathFinder):
    """Finds a module as Python does, and has it extended once it is executed."""

    def __init__(self, name: str, extend: Callable[[], None]) -> None:
        self.name = name
        self.extend = extend

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (execute(module), self.extend())
        return spec


def when_imported(name: str, extend: Callable[[], None]) -> None:
    """Calls `extend`, which may be called again, whenever a module has been executed, and now where it is loaded already."""
    if name in sys.modules:
        extend()
    if not any(isinstance(finder, _Finder) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(name, extend))
        record("sys.meta_path", f"`{name}` is extended when it is imported")


def make_table() -> str:
    r"""The record as a table in Markdown.

    Example:
        >>> from fla_bdlru.patches import make_table
        >>> assert make_table().startswith("| what | why |")
    """
    return "\n".join(["| what | why |", "|---|---|", *(f"| `{entry.target}` | {entry.why} |" for entry in RECORD)])


if __name__ == "__main__":
    import fla_bdlru.patches  # this module runs as __main__; the record is the package's

    print(fla_bdlru.patches.make_table())
