"""Imports point one way; none hides in a function; no file but builtins names a concrete backend."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "grape"

# What a package may import of Grape, beside itself. Siblings never meet.
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "model": {"errors"},
    "authoring": {"errors", "model"},
    "abc": {"errors", "model"},
    "store": {"errors", "model", "abc"},
    "protocol": {"errors", "model"},
    "connectors": {"errors", "model", "abc", "authoring"},
    "transports": {"errors", "model", "abc", "store"},
    "isolates": {"errors", "model", "abc"},
    "worker": {"errors", "model", "authoring", "protocol"},
    "engine": {"errors", "model", "abc", "protocol"},
}
TOP = {"session", "inline", "running", "cli", "testing", "tools", "builtins", "__main__"}
LAZY = {("__init__.py", "__getattr__"), ("running.py", "new_event_loop")}


def modules() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def package_of(path: Path) -> str:
    relative = path.relative_to(SRC)
    return relative.parts[0].removesuffix(".py")


def grape_imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            if name.startswith("grape."):
                found.add(name.split(".")[1])
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SRC)))
def test_imports_point_one_way(path: Path) -> None:
    package = package_of(path)
    if package in TOP or package == "__init__":
        return
    assert package in BELOW, f"say in BELOW what {package} may import"
    imported = grape_imports(ast.parse(path.read_text())) - {package}
    assert imported <= BELOW[package], f"{path.name} imports {sorted(imported - BELOW[package])}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SRC)))
def test_no_import_hides_in_a_function(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    assert (path.name, function.name) in LAZY, f"{path.name}:{node.lineno} imports inside a function"


def test_no_import_cycles() -> None:
    graph: dict[str, set[str]] = {}
    names = {
        ".".join(("grape", *p.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__"): p for p in modules()
    }
    for name, path in names.items():
        graph[name] = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module in names:
                graph[name].add(node.module)
            elif isinstance(node, ast.Import):
                graph[name].update(alias.name for alias in node.names if alias.name in names)
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"import cycle: {' -> '.join((*way, name))}"
        if name not in done:
            for target in graph[name]:
                visit(target, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())
