"""Change one thing in a module, see whether a test notices: what none notices is said, with its line.

    make mutants MODULE=grape.model.batch [MOST=100] [SEED=0] [TESTS=tests/unit]

The tests are collected once, and each is traced once (`.cache/mutants`, until it or the module changes). A mutant is
a fork of that process in which the code of one function is another (what a module runs as it is loaded stays as it
is). It meets the tests that run its function, those first that run little else.
"""

from __future__ import annotations

import ast
import copy
import gc
import hashlib
import os
import pickle
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple

import hypothesis
import pytest
from hypothesis import strategies as st

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache" / "mutants"
SECONDS = 8
"""Of processor time that the tests of one mutant may take; who takes longer goes in circles."""
BUDGET = 4.0
"""Seconds of tests, as they were traced, that a mutant meets at most."""

Ran = dict[str, set[int]]
"""By file, the functions of it that a test ran, by their first lines."""


# ------------------------------------------------------------------ what is changed


class Mutant(NamedTuple):
    """``tree``: of the whole module. ``function``: in which it is, by its first line."""

    line: int
    what: str
    tree: ast.Module
    function: int


_COMPARED: dict[type, list[type]] = {
    ast.Lt: [ast.LtE, ast.GtE],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
}
_REPLACED: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.Pow: ast.Mult,
}
_CALLED = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list"}


def _others(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand where ``node`` does."""
    match node:
        case ast.Compare(left, [op], [right]):
            for other in _COMPARED[type(op)]:
                yield ast.Compare(left, [other()], [right])
        case ast.Compare(left, ops, rights):
            for i, op in enumerate(ops):
                for other in _COMPARED[type(op)]:
                    yield ast.Compare(left, [*ops[:i], other(), *ops[i + 1 :]], rights)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            for i in range(len(values)):
                rest = [*values[:i], *values[i + 1 :]]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.Invert(), operand):
            yield operand
        case ast.BinOp(left, op, right) if type(op) in _REPLACED:
            yield ast.BinOp(left, _REPLACED[type(op)](), right)
        case ast.AugAssign(target, op, value) if type(op) in _REPLACED:
            yield ast.AugAssign(target, _REPLACED[type(op)](), value)
            yield ast.Pass()
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.Constant(str() as text):
            yield ast.Constant("" if text else "other")
        case ast.Constant(bytes() as data):
            yield ast.Constant(b"" if data else b"other")
        case ast.IfExp(_, body, orelse):
            yield from (body, orelse)
        case ast.If(_, body, orelse):
            yield ast.If(ast.Constant(True), body, orelse)
            yield ast.If(ast.Constant(False), body, orelse)
        case ast.Expr(ast.Call() | ast.Await()) | ast.Raise() | ast.Delete():
            yield ast.Pass()
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.Return(ast.AST() as value) if ast.unparse(value) != "None":
            yield ast.Return(ast.Constant(None))
        case ast.Continue():
            yield ast.Break()
        case ast.Break():
            yield ast.Continue()
        case ast.Slice(lower, upper, step) if lower or upper:
            if lower:
                yield ast.Slice(None, upper, step)
            if upper:
                yield ast.Slice(lower, None, step)
        case ast.Call(ast.Name(name), args, keywords) if name in _CALLED:
            yield ast.Call(ast.Name(_CALLED[name], ast.Load()), args, keywords)
        case ast.comprehension(target, iter, [_, *_] as ifs, is_async):
            for i in range(len(ifs)):
                yield ast.comprehension(target, iter, [*ifs[:i], *ifs[i + 1 :]], is_async)
        case ast.ExceptHandler(ast.Tuple(kinds), name, body):
            for i in range(len(kinds)):
                yield ast.ExceptHandler(ast.Tuple([*kinds[:i], *kinds[i + 1 :]], ast.Load()), name, body)


_UNTOUCHED = ("annotation", "returns", "ctx")


def _places(node: ast.AST, function: int) -> Iterator[tuple[ast.AST, str, int | None, int]]:
    """Where something may stand: (parent, field, index in it, function around it); no texts of errors, no types."""
    for field, value in ast.iter_fields(node):
        if field in _UNTOUCHED or (isinstance(node, ast.Raise) and field != "exc"):
            continue
        inside = function
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and field == "body" and not function:
            inside = min(n.lineno for n in (node, *node.decorator_list))
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr | ast.Assert):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue  # what documents it
            if isinstance(node, ast.Raise) and isinstance(child, ast.Call):
                continue
            if isinstance(child, ast.FunctionDef) and any("overload" in ast.dump(d) for d in child.decorator_list):
                continue
            yield node, field, index if isinstance(value, list) else None, inside
            yield from _places(child, inside)


def mutants(source: str, most: int, seed: int) -> list[Mutant]:
    """Some of all that there are, in the order of their lines."""
    tree = ast.parse(source)
    places = list(_places(tree, 0))
    inside = [(n, _child(parent, field, i)) for n, (parent, field, i, function) in enumerate(places) if function]
    all_of = [(n, which) for n, node in inside for which, _ in enumerate(_others(node))]
    some = random.Random(seed).sample(all_of, min(most, len(all_of)))
    return sorted((_mutant(tree, number, which) for number, which in some), key=lambda mutant: mutant.line)


def _mutant(tree: ast.Module, number: int, which: int) -> Mutant:
    changed = copy.deepcopy(tree)
    parent, field, index, function = next(place for n, place in enumerate(_places(changed, 0)) if n == number)
    old = _child(parent, field, index)
    new = list(_others(old))[which]
    what = f"{_shown(old)}  ->  {_shown(new)}"
    line = getattr(old, "lineno", 0) or _line_in(old) or getattr(parent, "lineno", 0)
    if hasattr(old, "lineno"):
        ast.copy_location(new, old)
    if index is None:
        setattr(parent, field, new)
    else:
        getattr(parent, field)[index] = new
    return Mutant(line, what, ast.fix_missing_locations(changed), function)


def _child(parent: ast.AST, field: str, index: int | None) -> Any:
    value = getattr(parent, field)
    return value if index is None else value[index]


def _line_in(node: ast.AST) -> int:
    return min((n.lineno for n in ast.walk(node) if hasattr(n, "lineno")), default=0)


def _shown(node: ast.AST) -> str:
    if isinstance(node, ast.ExceptHandler):
        node = node.type or node
    if isinstance(node, ast.If):
        return f"if {ast.unparse(node.test)}"
    return ast.unparse(node).partition("\n")[0][:110]


# ------------------------------------------------------------------ how it gets in


def _codes(code: CodeType) -> Iterator[CodeType]:
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield const
            yield from _codes(const)


def functions(path: str) -> list[FunctionType]:
    """All that are there of a file."""
    return [f for f in gc.get_objects() if isinstance(f, FunctionType) and f.__code__.co_filename == path]


def patch(found: list[FunctionType], path: str, mutant: Mutant) -> None:
    """Give the functions that the mutant changes their other code."""
    codes = {(code.co_qualname, code.co_firstlineno): code for code in _codes(compile(mutant.tree, path, "exec"))}
    for function in found:
        old = function.__code__
        function.__code__ = codes.get((old.co_qualname, old.co_firstlineno), old)


# ------------------------------------------------------------------ a run


def _source(module: str) -> Path:
    return ROOT / "src" / (module.replace(".", "/") + ".py")


class Runner:
    """A plugin of pytest: instead of running the tests once it does so for each mutant."""

    _functions: list[FunctionType]
    _is_mutant = False

    def __init__(self, module: str, most: int, seed: int) -> None:
        self._module = module
        self._path = str(_source(module))
        self._mutants = mutants(Path(self._path).read_text(), most, seed)
        self._tests: dict[str, tuple[float, Ran]] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items if "slow" not in item.keywords}
        self._trace(session, items)
        _warm()
        self._functions = functions(self._path)
        gc.freeze()
        killed = 0
        for mutant in self._mutants:
            names = self._meets(mutant, items)
            if names and self._fork(mutant, names, items):
                killed += 1
            else:
                print(f"{self._module}:{mutant.line}: {mutant.what}  [{len(names)} tests]", flush=True)
        print(f"{self._module}: {killed} of {len(self._mutants)} mutants killed", flush=True)
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> None:
        """A test that fails ends the mutant's process, which nobody wants a report of."""
        if self._is_mutant and call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
            os._exit(1)

    def _meets(self, mutant: Mutant, items: dict[str, pytest.Item]) -> list[str]:
        """The tests that run its function."""
        names: list[str] = []
        left = BUDGET
        for name in sorted(items, key=lambda name: sum(map(len, self._tests[name][1].values()))):
            took, ran = self._tests[name]
            if mutant.function in ran.get(self._path, ()) and left > 0:
                left -= took
                names.append(name)
        return names

    def _fork(self, mutant: Mutant, names: list[str], items: dict[str, pytest.Item]) -> bool:
        if pid := os.fork():
            return _ended(pid) != 0
        try:
            _silence()
            self._is_mutant = True
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            patch(self._functions, self._path, mutant)
            _run([items[name] for name in names])
        except BaseException:
            os._exit(1)
        os._exit(0)

    def _trace(self, session: pytest.Session, items: dict[str, pytest.Item]) -> None:
        """What each test runs, and how long it takes; kept until the test or the module is another one."""
        CACHE.mkdir(parents=True, exist_ok=True)
        files: dict[Path, list[pytest.Item]] = {}
        for item in items.values():
            files.setdefault(item.path, []).append(item)
        for path, own in files.items():
            cached = CACHE / f"{path.stem}.pickle"
            state, hashes, found = pickle.loads(cached.read_bytes()) if cached.exists() else ("", {}, {})
            touched = any(self._path in ran for _, ran in found.values())
            if state == _hash(path) and not (touched and hashes[self._path] != _hash(Path(self._path))):
                self._tests |= found
                continue
            pid = os.fork()
            if not pid:
                try:
                    _silence()
                    found = {item.nodeid: _traced(item) for item in own}
                    seen = {file for _, ran in found.values() for file in ran}
                    cached.write_bytes(pickle.dumps((_hash(path), {f: _hash(Path(f)) for f in seen}, found)))
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)
            self._tests |= pickle.loads(cached.read_bytes())[2]


OPTIONS = ["-s", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:warnings", "-m", "not slow"]


def _hash(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@hypothesis.given(st.text(), st.floats(), st.lists(st.integers()))
def _warm(text: str, number: float, numbers: list[int]) -> None:
    """What Hypothesis works out once, before there are forks of it."""


def _silence() -> None:
    os.setpgid(0, 0)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)


def _ended(pid: int) -> int:
    """How a child ended, which does not wait for ever either."""
    end = time.monotonic() + 10 * SECONDS
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.005)


def _run(items: list[pytest.Item]) -> None:
    session = items[0].session
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            os._exit(1)


def _traced(item: pytest.Item) -> tuple[float, Ran]:
    ran: Ran = {}
    below = str(ROOT / "src")

    def on_call(frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(below):
            ran.setdefault(code.co_filename, set()).add(code.co_firstlineno)

    began = time.perf_counter()
    threading.setprofile(on_call)
    sys.setprofile(on_call)
    try:
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return time.perf_counter() - began, ran


_quick = hypothesis.settings(
    database=None, deadline=None, derandomize=True, phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate]
)
"""The same examples for each mutant, and none is made smaller."""


def main(module: str, most: str = "100", seed: str = "0", *tests: str) -> int:
    hypothesis.settings.register_profile("mutants", _quick)
    hypothesis.settings.load_profile("mutants")
    runner = Runner(module, int(most), int(seed))
    ended = pytest.main(["-q", *OPTIONS, *(tests or ("tests/unit",))], plugins=[runner])
    return 0 if ended == pytest.ExitCode.NO_TESTS_COLLECTED else int(ended)  # pytest itself has run none


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
