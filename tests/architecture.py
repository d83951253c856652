"""What a tree of Python modules imports and how large its parts are, read from the source alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Import(NamedTuple):
    """``target``: the module that is imported, as far as the tree knows it. ``function``: it stands in, or ""."""

    module: str
    target: str
    line: int
    function: str


class Size(NamedTuple):
    """``what``: "class", "function", "parameters" or "file"."""

    what: str
    name: str
    size: int


class Tree:
    """All modules below ``root``, which is the package ``package``."""

    def __init__(self, root: Path, package: str) -> None:
        self.root = root
        self.package = package
        self.paths = {self._name(path): path for path in sorted(root.rglob("*.py"))}
        self.modules = {*self.paths, *(self._name(path) for path in root.rglob("*.c"))}
        self.trees = {name: ast.parse(path.read_text()) for name, path in self.paths.items()}

    def _name(self, path: Path) -> str:
        return ".".join((self.package, *path.relative_to(self.root).with_suffix("").parts)).removesuffix(".__init__")

    def imports(self) -> list[Import]:
        """Every import of a module of this tree, in whatever form: ``import a.b``, ``from a import b`` where b is a
        module, ``from . import b``, ``from .b import c``, ``importlib.import_module("a.b")``, ``__import__("a.b")``;
        also under ``if TYPE_CHECKING`` and in ``try``."""
        found: list[Import] = []
        for name, tree in self.trees.items():
            for node, function in _walk(tree):
                for target in self._targets(name, node):
                    found.append(Import(name, target, getattr(node, "lineno", 0), function))
        return found

    def _targets(self, module: str, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from self._known(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = self._base(module, node)
            for alias in node.names:
                whole = f"{base}.{alias.name}" if base else alias.name
                yield from self._known(whole if whole in self.modules else base)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield from self._known(argument.value)

    def _base(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        is_package = self.paths[module].name == "__init__.py"
        parts = module.split(".")
        parts = parts[: len(parts) - node.level + is_package]
        return ".".join([*parts, *([node.module] if node.module else [])])

    def _known(self, name: str) -> Iterator[str]:
        """The module of this tree that ``name`` is, or is in."""
        parts = name.split(".")
        for end in range(len(parts), 0, -1):
            if ".".join(parts[:end]) in self.modules:
                yield ".".join(parts[:end])
                return

    def cycle(self) -> list[str]:
        """A ring of modules that import each other when they are loaded; empty if there is none."""
        graph: dict[str, set[str]] = {name: set() for name in self.modules}
        for each in self.imports():
            if not each.function and each.target != each.module:
                graph[each.module].add(each.target)
        done: set[str] = set()

        def visit(name: str, way: list[str]) -> list[str]:
            if name in way:
                return [*way[way.index(name) :], name]
            if name not in done:
                for target in sorted(graph[name]):
                    if ring := visit(target, [*way, name]):
                        return ring
                done.add(name)
            return []

        for name in graph:
            if ring := visit(name, []):
                return ring
        return []

    def sizes(self) -> list[Size]:
        """Lines of files, classes and functions, and parameters of functions (without self and cls)."""
        found: list[Size] = []
        for module, tree in self.trees.items():
            found.append(Size("file", module, len(self.paths[module].read_text().splitlines())))
            for node, scope in _named(tree):
                name = f"{module}:{scope}"
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if isinstance(node, ast.ClassDef):
                    found.append(Size("class", name, lines))
                    continue
                found.append(Size("function", name, lines))
                arguments = node.args
                count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
                first = (arguments.posonlyargs + arguments.args)[:1]
                found.append(Size("parameters", name, count - (bool(first) and first[0].arg in ("self", "cls"))))
        return found


def _walk(tree: ast.AST, function: str = "") -> Iterator[tuple[ast.AST, str]]:
    for node in ast.iter_child_nodes(tree):
        inner = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        yield node, function
        yield from _walk(node, inner)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _named(
    tree: ast.AST, scope: str = ""
) -> Iterator[tuple[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{scope}.{node.name}" if scope else node.name
            yield node, name
            yield from _named(node, name)
        else:
            yield from _named(node, scope)
