"""Names of variants, taken apart: `hlru-m4-silu` is an H-LRU of order 4 with silu gates."""

from __future__ import annotations

import re

_NAME = re.compile(r"(bdlru|hlru)-m(\d+)(?:-(\w+))?")
FAMILIES = {"bdlru": "BD-LRU", "hlru": "H-LRU"}


def family_of(variant: str) -> str:
    """`"bdlru"`, `"hlru"`, or empty for another mixer."""
    found = _NAME.fullmatch(variant)
    return found[1] if found else ""


def size_of(variant: str) -> int:
    """Block size or order of one of ours."""
    return int(_NAME.fullmatch(variant)[2])


def norm_of(variant: str) -> str:
    """Gate norm of one of ours."""
    return _NAME.fullmatch(variant)[3] or "softmax"
