"""TOML files of people: whatever is wrong in one is told with its line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from grape.errors import UsageError

T = TypeVar("T")


class Misfit(ValueError):
    """Something in a file cannot be. ``way``: the keys that lead to it."""

    def __init__(self, way: tuple[str, ...], text: str) -> None:
        super().__init__(text)
        self.way = way


def read_toml(path: Path, text: str, read: Callable[[dict[str, Any]], T]) -> T:
    """What ``read`` makes of the tables of a file. ``read``: may raise `Misfit`.

    Raises:
        UsageError: it is no TOML, or something in it cannot be; the text names file, line and remedy.
    """
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        what, _, where = str(e).partition(" (at ")
        found_line = re.match(r"line (\d+)", where)
        line = found_line[1] if found_line is not None else len(text.splitlines())
        raise UsageError(f"{path}:{line}: {what[:1].lower()}{what[1:]}") from None
    except RecursionError:
        raise UsageError(f"{path}: it is nested too deep") from None
    try:
        return read(found)
    except Misfit as e:
        raise UsageError(f"{path}:{line_of(text, e.way)}: {e}") from None


def guarded(way: tuple[str, ...], keys: Any, read: Callable[[], T]) -> T:
    """What ``read`` gives; what it complains of is found below ``way``.

    Raises:
        Misfit: it complains.
    """
    try:
        return read()
    except ValueError as e:
        said = str(e).removeprefix(": ").removeprefix("grape.toml ")
        at = {str(key): re.search(rf"(?<![\w-]){re.escape(str(key))}(?![\w-])", said) for key in keys}
        named = sorted((found.start(), key) for key, found in at.items() if found is not None)
        raise Misfit((*way, *(key for _, key in named[:1])), said) from None


def line_of(text: str, way: tuple[str, ...]) -> int:
    """The line of a key of a TOML text: of the last step of the way that is found, else 1."""
    best, reached = 1, 0
    table: tuple[str, ...] = ()
    for at, line in enumerate(text.splitlines(), 1):
        head = re.match(r"\s*\[\[?([^\]#]+)\]", line)
        if head is not None:
            table = _steps(head[1])
        key = None if head is not None else re.match(r"""\s*([\w.\-"' ]+?)\s*=""", line)
        here = table if head is not None else (*table, *_steps(key[1])) if key is not None else ()
        depth = len(here) if here and here == way[: len(here)] else 0
        if depth > reached:
            best, reached = at, depth
    return best


def _steps(dotted: str) -> tuple[str, ...]:
    return tuple(step.strip().strip("\"'") for step in dotted.split("."))
