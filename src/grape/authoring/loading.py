"""Finding a topology by the name that a command line or another process gives: a module or a file."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import pkgutil
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeVar
from zlib import crc32

from msgspec import Struct

from grape.authoring.handler import where_of
from grape.authoring.places import is_engine_file, is_library_file, place
from grape.authoring.raised import line_of, shown, trace_of
from grape.authoring.topology import Topology
from grape.errors import TopologyError
from grape.model.near import near

Result = TypeVar("Result")

FACTORY: Final = "topology"
"""The function that is called if the target names none and no Topology stands at module level."""

_imported_now = ""
_DOTTED: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class Target(Struct, frozen=True):
    """A parsed target: a ``path`` or a ``module``, and the ``name`` in it (None: not said)."""

    path: Path | None
    module: str | None
    name: str | None


def load(target: str, config: dict[str, Any] | None = None) -> Topology:
    """Import the user's code and return its topology.

    Args:
        target: "module", "module:NAME", "path/to/file.py" or "path/to/file.py:NAME". NAME is a Topology or a function
            that returns one; without it, the only Topology at module level, else the function ``topology``.
        config: reaches such a function as it is; one without parameters is called without.

    Raises:
        TopologyError: there is no such thing, or the user's code failed; the text names the file and line, and
            shows the user's part of the traceback.

    The app's directory (that of the file; for a module the working directory) is put in front of ``sys.path``. A file
    that was loaded before is not executed again.
    """
    global _imported_now
    before, _imported_now = _imported_now, target
    try:
        return _load(target, config)
    finally:
        _imported_now = before


def imported_now() -> str:
    """The target that this process is loading at the moment, "" for none."""
    return _imported_now


def _load(target: str, config: dict[str, Any] | None) -> Topology:
    parsed = parse_target(target)
    module = _import_file(parsed.path) if parsed.path is not None else _import_module(parsed.module or "")
    found = _named(module, parsed.name, target) if parsed.name is not None else _only(module, target)
    return _made(found, {} if config is None else config, target)


def parse_target(target: str) -> Target:
    """Split a target; looks at the disk to tell files from modules.

    Raises:
        TopologyError: it is neither.
    """
    head, colon, name = target.rpartition(":")
    if not colon or os.path.exists(target):
        head, name = target, ""
    if colon and head != target and not name.isidentifier():
        raise TopologyError(f"{target!r}: what follows ':' is the name of a Topology or of a function, not {name!r}")
    if head.endswith(".py") or os.sep in head or Path(head).is_file():
        return Target(_existing(Path(head)), None, name or None)
    if _DOTTED.fullmatch(head):
        return Target(None, head, name or None)
    raise TopologyError(f"{target!r} is neither a module (package.module:NAME) nor a file (path/to/file.py:NAME)")


def _existing(path: Path) -> Path:
    """``path`` made absolute, if it is a file or a package directory."""
    if path.is_file():
        return path.absolute()
    if path.is_dir():
        if (path / "__init__.py").is_file():
            return (path / "__init__.py").absolute()
        files = sorted(file.name for file in path.glob("*.py"))
        raise TopologyError(f"{str(path)!r} is a directory, not a file. {_listed('Files in it', files)}".rstrip())
    folder = path.parent
    if not folder.is_dir():
        raise TopologyError(f"no such file: {str(path)!r}; there is no directory {str(folder)!r}")
    candidates = [file.name for file in folder.iterdir() if file.suffix == ".py"]
    matches = [str(folder / name) for name in near(path.name, candidates)]
    raise TopologyError(f"no such file: {str(path)!r}. {_did_you_mean(matches)}".rstrip())


def _import_file(path: Path) -> ModuleType:
    """Import ``path`` under a proper module name: its stem, dotted if it lies in a package."""
    root, name = _module_of(path)
    for folder in (path.parent, root):
        _put_on_path(folder)
    loaded = _loaded(path)
    if loaded is not None:
        return loaded
    if "." in name or path.name == "__init__.py":
        _check_package(name.partition(".")[0], root)
        return _guarded(lambda: importlib.import_module(name), str(path))
    if name in sys.modules or name in sys.stdlib_module_names:
        name = f"{name}_{crc32(str(path).encode()):08x}"
    return _guarded(lambda: _execute(name, path), str(path))


def _loaded(path: Path) -> ModuleType | None:
    """The module that ``path`` was imported as before."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not isinstance(module, ModuleType) or not isinstance(file, str) or module.__name__ == "__main__":
            continue
        if os.path.basename(file) == path.name and _same_file(file, path):
            return module
    return None


def _module_of(path: Path) -> tuple[Path, str]:
    """The directory to import from and the module's name."""
    folder, names = path.parent, [] if path.name == "__init__.py" else [path.stem]
    while (folder / "__init__.py").is_file() and folder.name.isidentifier() and folder.parent != folder:
        names.insert(0, folder.name)
        folder = folder.parent
    if all(name.isidentifier() for name in names) and names:
        return folder, ".".join(names)
    return path.parent, re.sub(r"\W|^(?=\d)", "_", path.stem)


def _check_package(package: str, root: Path) -> None:
    """Refuse a package whose name another one, imported before, has."""
    loaded = sys.modules.get(package)
    folders = [Path(folder).parent for folder in getattr(loaded, "__path__", ())]
    if loaded is not None and not any(_same_file(folder, root) for folder in folders):
        raise TopologyError(
            f"the package {package!r} in {str(root)!r} has the name of one that is imported already: {loaded!r}. "
            f"Rename it"
        )


def _execute(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        name, path, loader=importlib.machinery.SourceFileLoader(name, str(path))
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {str(path)!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before execution: dataclasses and annotations look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _import_module(name: str) -> ModuleType:
    _put_on_path(Path.cwd())
    importlib.invalidate_caches()
    return _guarded(lambda: _imported(name), name)


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        missing = e.name or ""
        if name != missing and not name.startswith(f"{missing}."):
            raise
        file = Path(f"{name}.py")
        if file.is_file():
            raise TopologyError(f"no module {missing!r}; {str(file)!r} is a file, write it with a path") from None
        matches = near(missing, _siblings(missing))
        raise TopologyError(
            f"no module {missing!r} in {os.getcwd()!r} or on sys.path. {_did_you_mean(matches)}".rstrip()
        ) from None


def _siblings(module: str) -> list[str]:
    """Names of the modules beside ``module``: in its package, or in the working directory."""
    package = module.rpartition(".")[0]
    folders = list(getattr(sys.modules.get(package), "__path__", [])) if package else [os.getcwd()]
    prefix = f"{package}." if package else ""
    return [prefix + found.name for found in pkgutil.iter_modules(folders)]


def _named(module: ModuleType, name: str, target: str) -> Any:
    if hasattr(module, name):
        return getattr(module, name)
    candidates = [*_topologies(module), *_functions(module)]
    matches = near(name, candidates)
    hint = _did_you_mean(matches) if matches else _listed("It has", candidates)
    raise TopologyError(f"{_file_of(module)} has no {name!r} (in {target!r}). {hint}".rstrip())


def _only(module: ModuleType, target: str) -> Any:
    """What a target without a NAME means."""
    topologies = _topologies(module)
    if len({id(value) for value in topologies.values()}) > 1:
        raise TopologyError(
            f"{_file_of(module)} has several topologies: {', '.join(topologies)}. "
            f"Say which one: {target}:{next(iter(topologies))}"
        )
    if topologies:
        return next(iter(topologies.values()))
    factory = getattr(module, FACTORY, None)
    if factory is not None:
        return factory
    functions = _functions(module)
    matches = near(FACTORY, functions, 0.5)
    hint = f"If {matches[0]}() returns one: {target}:{matches[0]}" if matches else ""
    raise TopologyError(
        f"{_file_of(module)} has no topology: neither t = Topology(...) at module level nor a function "
        f"{FACTORY}(config) that returns one. {hint}".rstrip()
    )


def _made(found: Any, config: dict[str, Any], target: str) -> Topology:
    """The topology itself, or what the function ``found`` returns."""
    if isinstance(found, Topology):
        if config:
            raise TopologyError(
                f"{target!r} is a Topology at module level, which cannot take the configuration "
                f"({', '.join(map(str, config))}). Build it in a function {FACTORY}(config)"
            )
        return found
    if not (inspect.isroutine(found) or callable(found)) or isinstance(found, type):
        raise TopologyError(
            f"{target!r} is of type {type(found).__name__}, neither a Topology nor a function that returns one"
        )
    where = where_of(found)
    made = _guarded(lambda: _call(found, config, where), where)
    if inspect.iscoroutine(made):
        made.close()
    if not isinstance(made, Topology):
        returned = "nothing (is a return missing?)" if made is None else f"an object of type {type(made).__name__}"
        raise TopologyError(f"{where}: {_title(found)} has to return a Topology, it returned {returned}")
    return made


def _call(factory: Callable[..., Any], config: dict[str, Any], where: str) -> Any:
    parameters = inspect.signature(factory).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(needed) > 1 or (needed and not positional):
        raise TopologyError(f"{where}: {_title(factory)} gets the configuration as its only argument, or none")
    if positional:
        return factory(config)
    if config:
        raise TopologyError(f"{where}: {_title(factory)} takes no configuration ({', '.join(map(str, config))} given)")
    return factory()


def _guarded(run: Callable[[], Result], what: str) -> Result:
    """``run()``; a failure of the user's code becomes a TopologyError that shows the user's part of the traceback."""
    try:
        return run()
    except TopologyError:
        raise
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            raise  # Ctrl-C, not the user's code
        where, text = _users_part(e)
        raise TopologyError(f"{where or what}: {_summary(e)}\n{text}".rstrip()) from e


def _summary(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it called sys.exit({'' if error.code is None else repr(error.code)})"
    return line_of(error)


def _users_part(error: BaseException) -> tuple[str, str]:
    """Where in the user's code ``error`` came up, and its traceback without frames of the engine."""
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if not is_engine_file(frame.filename) and (not where or not is_library_file(frame.filename)):
            where = shown(place(frame.filename, frame.lineno or 0))
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        where = shown(place(error.filename, error.lineno))
    return where, trace_of(error, is_engine_file)


def _topologies(module: ModuleType) -> dict[str, Topology]:
    return {name: value for name, value in vars(module).items() if isinstance(value, Topology)}


def _functions(module: ModuleType) -> list[str]:
    """Functions that the module itself defines."""
    return [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]


def _file_of(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return place(file, 1).rpartition(":")[0] if file else module.__name__


def _put_on_path(folder: Path) -> None:
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))


def _same_file(one: str | Path, other: str | Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _did_you_mean(matches: Iterable[str]) -> str:
    names = " or ".join(repr(name) for name in matches)
    return f"Did you mean {names}?" if names else ""


def _listed(what: str, names: list[str]) -> str:
    return f"{what}: {', '.join(names[:10])}" if names else ""


def _title(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__name__', repr(function))}()"
