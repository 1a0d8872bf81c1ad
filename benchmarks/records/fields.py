"""Fields of a configuration: what each takes, and errors that name the field, the value and what is accepted."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

POSITIVE = "a whole number greater than 0"


class FieldError(ValueError):
    """A field that is wrong: `where` names it, the message says what was found and what is accepted."""

    def __init__(self, where: str, message: str):
        super().__init__(f"{where}: {message}")
        self.where, self.message = where, message


class Refused(ValueError):
    """A value that is refused for a reason of its own."""


@dataclass(frozen=True)
class Accepts:
    """What a field takes: `convert` returns the value or raises ValueError, `words` say what is accepted."""

    convert: Callable[[Any], Any]
    words: str


def option(default: Any = MISSING, accepts: Accepts | None = None, **metadata: Any) -> Any:
    """A field of a dataclass, with what it takes and what else is said of it."""
    return field(default=default, metadata={"accepts": accepts, **metadata})


def nearest(name: Any, names: Iterable[str]) -> str:
    """What an error adds to a wrong name: the right one that is most like it, if one is near."""
    near = get_close_matches(str(name), list(names), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def accept(test: Callable[[Any], bool], words: str, convert: Callable[[Any], Any] = lambda value: value) -> Accepts:
    """Takes what, converted, passes a test; `True` and `False` are no numbers."""

    def checked(value: Any) -> Any:
        if isinstance(value, bool) or not test(converted := convert(value)):
            raise ValueError
        return converted

    return Accepts(checked, words)


def whole(lowest: int, words: str = POSITIVE, multiple: int = 1, highest: float = math.inf) -> Accepts:
    """Whole numbers, also as text; 3.0 is none."""

    def convert(value: Any) -> int:
        if isinstance(value, float):
            raise ValueError
        return int(value)

    return accept(lambda number: lowest <= number <= highest and number % multiple == 0, words, convert)


def real(test: Callable[[float], bool], words: str) -> Accepts:
    """Numbers, also as text."""
    return accept(test, words, float)


def one_of(*known: str, words: str = "") -> Accepts:
    """Names."""

    def convert(value: Any) -> str:
        if value not in known:
            raise Refused(f"{value!r} is not known; expected one of {', '.join(known)}.{nearest(value, known)}")
        return value

    return Accepts(convert, words or f"one of {', '.join(known)}")


def _switch(value: Any) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ValueError
    return str(value).lower() == "true"


SWITCH = Accepts(_switch, "true or false")


class _UniqueKeys(yaml.SafeLoader):
    """YAML as it is meant: a key stands once."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for (key, _), value in zip(node.value, keys):
            if keys.count(value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{value!r} stands there twice", key.start_mark)
        return super().construct_mapping(node, deep)


def read_fields(path: Path) -> dict[str, Any]:
    """What a TOML or YAML file holds, fields and tables of them; FieldError, if it cannot be read or holds something else."""
    is_yaml = path.suffix.lower() in (".yaml", ".yml")
    try:
        text = path.read_text(encoding="utf-8-sig")  # an editor may have put a mark first
        content = yaml.load(text, _UniqueKeys) if is_yaml else tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise FieldError(str(path), f"cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    except (yaml.YAMLError, tomllib.TOMLDecodeError) as error:
        reason = " ".join(str(error).split())
        raise FieldError(str(path), f"is not {'YAML' if is_yaml else 'TOML'}: {reason}.") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise FieldError(str(path), f"{content!r} is not accepted; expected fields such as task: [s3, parity].")
    return content
