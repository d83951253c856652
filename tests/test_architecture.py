"""Imports point one way, none hides in a function, none goes in a ring; only builtins names a concrete backend; and
what is large is named, with its reason."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.architecture import Tree

SRC = Path(__file__).parents[1] / "src" / "grape"
TREE = Tree(SRC, "grape")
IMPORTS = TREE.imports()

# What a package may import of Grape, beside itself. Siblings never meet.
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "model": {"errors"},
    "authoring": {"errors", "model"},
    "types": {"errors", "model"},
    "abc": {"errors", "model"},
    "store": {"errors", "model", "abc"},
    "protocol": {"errors", "model"},
    "connectors": {"errors", "model", "abc", "authoring"},
    "transports": {"errors", "model", "abc", "store"},
    "isolates": {"errors", "model", "abc"},
    "_hot": set(),
    "hot": {"model", "_hot"},
    "worker": {"errors", "model", "hot", "authoring", "protocol"},
    "engine": {"errors", "model", "hot", "abc", "protocol"},
    "builtins": {"errors", "model", "abc"},
    "processes": {"errors", "model", "abc", "authoring", "protocol", "engine", "builtins"},
    "inline": {"authoring", "protocol", "worker"},
    "host": {
        *("errors", "model", "abc", "authoring", "protocol", "engine", "builtins", "processes", "inline"),
        *("isolates", "store"),
    },
    "client": {
        *("errors", "model", "hot", "abc", "authoring", "protocol", "connectors"),
        *("host", "processes"),
    },
}
TOP = {
    "apps",
    "bridge",
    "drivers",
    "server",
    "gateway",
    "remote",
    "storage",
    "logs",
    "traces",
    "running",
    "aio",
    "cli",
    "testing",
    "tools",
    "__main__",
    "grape",
}
PURE = {f"grape.drivers.{name}" for name in ("cron", "moments", "watching", "signing", "spec", "told")}
"""Of a package at the top: decisions alone, which everybody may ask."""
LAZY = {"__getattr__": "grape"}
"""Functions that may import: the public names that are resolved when they are asked for (PEP 562)."""

LARGEST = {"class": 500, "file": 700, "function": 60, "parameters": 8}
CLI = "typer makes the options of a command of its parameters"
FACE = "the options of the public call, each with its type"
HOT = "runs for every event: one function of closures, or a record without keywords, costs less"
SUITE = "a contract suite is read from top to bottom"
ALLOWED: dict[tuple[str, str], tuple[int, str]] = {
    ("file", "grape.testing.contracts.isolate"): (800, SUITE),
    ("class", "grape.testing.contracts.storage:StorageContract"): (560, SUITE),
    ("function", "grape.authoring.topology:Topology.add_slot"): (100, FACE),
    ("function", "grape.cli.run:run"): (134, CLI),
    ("function", "grape.cli.serve:serve"): (80, CLI),
    ("function", "grape.worker.emits:_closures"): (120, HOT),
    ("parameters", "grape.authoring.topology:Topology.add_slot"): (20, FACE),
    ("parameters", "grape.cli.bench:bench"): (13, CLI),
    ("parameters", "grape.cli.exec:execute"): (11, CLI),
    ("parameters", "grape.cli.letters:_add_change.change"): (9, CLI),
    ("parameters", "grape.cli.letters:_add_list.list_"): (10, CLI),
    ("parameters", "grape.cli.log:bury"): (9, CLI),
    ("parameters", "grape.cli.log:drop"): (9, CLI),
    ("parameters", "grape.cli.log:list_"): (10, CLI),
    ("parameters", "grape.cli.run:run"): (27, CLI),
    ("parameters", "grape.cli.serve:serve"): (16, CLI),
    ("function", "grape.cli.storage:put_"): (80, CLI),
    ("parameters", "grape.cli.storage:put_"): (13, CLI),
    ("parameters", "grape.hot.pure:count_events"): (9, HOT),
    ("parameters", "grape.model.batch:seal"): (9, "the fields of a header, in its order"),
    ("parameters", "grape.running:open"): (18, FACE),
    ("parameters", "grape.running:run"): (20, FACE),
    ("parameters", "grape.storage.objects:Objects.put"): (12, FACE),
    ("parameters", "grape.testing.machine:Machine.__init__"): (11, "the parts of a run, each with its name"),
    ("parameters", "grape.testing.simulator:Simulator.__init__"): (9, "the parts of a run, each with its name"),
    ("parameters", "grape.worker.stage:ChildStage.__init__"): (11, HOT),
}
"""(what, name) -> (how much, why): what is larger than it should be. Nothing may be here that is not, or is larger."""


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "grape"


@pytest.mark.parametrize("module", TREE.paths)
def test_imports_point_one_way(module: str) -> None:
    package = package_of(module)
    if package in TOP:
        return
    assert package in BELOW, f"say in BELOW what {package} may import"
    imported = {package_of(each.target) for each in IMPORTS if each.module == module} - {package}
    assert imported <= BELOW[package], f"{module} imports {sorted(imported - BELOW[package])}"


@pytest.mark.parametrize("module", sorted(PURE))
def test_what_only_decides_imports_nothing_that_does(module: str) -> None:
    imported = {each.target for each in IMPORTS if each.module == module} - PURE
    assert {package_of(target) for target in imported} <= {"errors", "model"}


def test_no_import_hides_in_a_function() -> None:
    hidden = [each for each in IMPORTS if each.function and LAZY.get(each.function) != each.module]
    assert hidden == []


def test_no_import_goes_in_a_ring() -> None:
    assert TREE.cycle() == []


def test_only_builtins_names_concrete_backends() -> None:
    """What can be exchanged is found by its kind and name; sources and sinks by `connectors.feeds` and `.takes`. (The
    contract suites and the kit bring their own.)"""
    text = (SRC / "builtins.py").read_text()
    concrete = {name.partition(":")[0] for name in re.findall(r'"(grape\.[\w.]+:\w+)"', text)}
    assert concrete
    concrete |= {module for module in TREE.paths if module.startswith("grape.transports.")}
    concrete |= {f"grape.connectors.{name}" for name in ("callables", "files", "follow", "sinks", "streams")}
    named = [
        (each.module, each.target)
        for each in IMPORTS
        if each.target in concrete and package_of(each.module) not in (package_of(each.target), "testing")
    ]
    assert named == []


@pytest.mark.parametrize("what", LARGEST)
def test_what_is_large_is_named_with_its_reason(what: str) -> None:
    large = {
        (each.what, each.name): each.size for each in TREE.sizes() if each.what == what and each.size > LARGEST[what]
    }
    allowed = {name: size for name, (size, _) in ALLOWED.items() if name[0] == what}
    assert {name: size for name, size in large.items() if size > allowed.get(name, 0)} == {}
    assert allowed.keys() <= large.keys(), "no longer large: take it out of ALLOWED"


# ------------------------------------------------------------------ that it sees what it should

FORMS = {
    "plain": "import pkg.low",
    "as": "import pkg.low as l",
    "from": "from pkg.low import thing",
    "module": "from pkg import low",
    "relative": "from . import low",
    "relative-name": "from .low import thing",
    "typing": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pkg import low",
    "try": "try:\n    from pkg import low\nexcept ImportError:\n    pass",
    "class": "class A:\n    from pkg import low",
    "dynamic": "import importlib\nlow = importlib.import_module('pkg.low')",
    "builtin": "low = __import__('pkg.low')",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_import_is_seen(tmp_path: Path, form: str) -> None:
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "low.py").write_text("from pkg import high\nthing = 1\n")
    (tmp_path / "high.py").write_text(FORMS[form])
    tree = Tree(tmp_path, "pkg")
    assert ("pkg.high", "pkg.low") in {(each.module, each.target) for each in tree.imports()}
    assert tree.cycle(), "and the ring"


def test_imports_in_functions_are_seen(tmp_path: Path) -> None:
    (tmp_path / "low.py").write_text("thing = 1\n")
    (tmp_path / "high.py").write_text(
        "class A:\n    async def f(self):\n        if self:\n            from pkg import low\n"
    )
    (each,) = Tree(tmp_path, "pkg").imports()
    assert (each.target, each.function) == ("pkg.low", "f")


def test_sizes_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("class A:\n    def f(self, a, /, b, *, c): ...\n\n\ndef g(): ...\n")
    sizes = {(each.what, each.name): each.size for each in Tree(tmp_path, "pkg").sizes()}
    assert sizes == {
        ("file", "pkg.a"): 5,
        ("class", "pkg.a:A"): 2,
        ("function", "pkg.a:A.f"): 1,
        ("parameters", "pkg.a:A.f"): 3,
        ("function", "pkg.a:g"): 1,
        ("parameters", "pkg.a:g"): 0,
    }


def test_the_source_is_python_that_can_be_read() -> None:
    assert all(isinstance(tree, ast.Module) for tree in TREE.trees.values())


def test_every_test_that_is_called_long_is_there() -> None:
    """Another name, and it would be in the default suite again."""
    for test in Path(__file__).with_name("long.txt").read_text().splitlines():
        file, name, *_ = test.partition("[")[0].split("::")
        assert re.search(rf"\b{name}\b", (Path(__file__).parents[1] / file).read_text()), test
