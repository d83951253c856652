"""What a worker lacks and its engine has: variables, and places where Python finds code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

_NO_VARIABLE: Final = re.compile(r"\bos(?:\.py)?>?\", line \d+, in __getitem__\n(?:.*\n)*?KeyError: '([^'\n]+)'")
_NO_MODULE: Final = re.compile(r"ModuleNotFoundError: No module named '(\w+)'")


def hint_for(trace: str, env: Mapping[str, str], path: Sequence[str]) -> str:
    """What to do about an error that a worker has for want of what ``env`` and ``path`` of the engine have; "" if that
    is not what it has."""
    variable = _NO_VARIABLE.search(trace)
    if variable is not None and variable[1] in env:
        name = variable[1]
        return f"the engine has the variable {name}, its workers do not: pass it on with --env {name} (env= in Python)"
    module = _NO_MODULE.search(trace)
    if module is not None:
        where = _place_of(module[1], path)
        if where:
            return (
                f"the engine finds {module[1]!r} in {where}, its workers do not look there: "
                f"--env PYTHONPATH={where} (env= in Python)"
            )
    return ""


def with_hint(text: str, env: Mapping[str, str], path: Sequence[str]) -> str:
    """``text`` and the hint for it."""
    hint = hint_for(text, env, path)
    return f"{text.rstrip()}\n{hint}" if hint else text


def _place_of(module: str, path: Sequence[str]) -> str:
    """The directory of ``path`` that has it."""
    for folder in path:
        try:
            if PathFinder.find_spec(module, [folder]) is not None:
                return str(Path(folder).absolute())
        except (ImportError, OSError, ValueError):
            continue
    return ""
