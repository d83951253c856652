"""Which events a handler emits although it does not declare them: what can be seen of its code without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_CALLS: Final = frozenset({"emit", "emit_many", "call"})
_LARGEST: Final = 1 << 20


class Code:
    """The code of one app, each file read once.

    Args:
        place: below which all of it lies; what leads out of it is not read.
    """

    def __init__(self, place: Path) -> None:
        self._place = place.resolve()
        self._trees: dict[Path, ast.Module | None] = {}

    def emits(self, where: str) -> list[str]:
        """Names of events that stand in the function or class at ``where`` ("file:line"), as they are emitted.
        Empty: none, or it cannot be seen."""
        file, _, line = where.rpartition(":")
        tree = self._tree(Path(file)) if file and line.isdecimal() else None
        scope = None if tree is None else _scope(tree, int(line))
        return [] if scope is None else list(dict.fromkeys(_named(scope)))

    def _tree(self, file: Path) -> ast.Module | None:
        path = (self._place / file).resolve()
        if path not in self._trees:
            self._trees[path] = _parsed(path) if path.is_relative_to(self._place) else None
        return self._trees[path]


def _parsed(path: Path) -> ast.Module | None:
    try:
        if path.suffix != ".py" or path.stat().st_size > _LARGEST:
            return None
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _scope(tree: ast.Module, line: int) -> ast.AST | None:
    """The outermost class or function that has this line: a handler may have its class to help it."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            if first <= line <= (node.end_lineno or node.lineno):
                return node
    return None


def _named(scope: ast.AST) -> Iterator[str]:
    for node in ast.walk(scope):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CALLS:
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value
