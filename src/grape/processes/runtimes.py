"""What runs the workers of a pool, by its runtime."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import msgspec
from msgspec import structs

from grape.abc.isolate import Command
from grape.authoring.loading import parse_target
from grape.errors import UsageError
from grape.model.topology import PoolSpec

_PATHS: Final = ("PYTHONPATH", "NODE_PATH", "PERL5LIB", "LD_LIBRARY_PATH")
"""Variables with directories from which a runtime loads code."""
_INTERPRETERS: Final = {"node": ("node",), "perl": ("perl",), "exec": ()}
_ADAPTER: Final = "grape.worker.adapter"


def python_command(target: str, config: str, directory: str, env: dict[str, str]) -> Command:
    """What runs a Python worker. It may read where it imports from."""
    paths = [os.path.abspath(path) for name in _PATHS for path in env.get(name, "").split(os.pathsep) if path]
    return Command(
        argv=_python_worker(target),
        input=config.encode(),
        directory=os.path.abspath(directory),
        env=env,
        readable=tuple(path for path in dict.fromkeys(paths) if os.path.exists(path)),
    )


def _python_worker(target: str) -> tuple[str, ...]:
    """The command line of a Python worker, which finds the app's configuration in its standard input."""
    return (sys.executable, "-m", "grape.worker", "--target", target, "--config-fd", "0")


def command_of(pool: PoolSpec, target: str, python: Command) -> Command:
    """What runs a worker of ``pool`` of the app ``target``; ``python``: what runs those in Python.

    Raises:
        UsageError: its entry is not there.
    """
    if pool.runtime == "python":
        return python
    directory = app_directory(target, python.directory)
    entry = os.path.join(directory, pool.entry[0])
    # The code says what runs: it must be the app's own, not any program of the host.
    if not os.path.realpath(entry).startswith(os.path.realpath(directory).rstrip("/") + "/"):
        raise UsageError(
            f"pool {pool.name!r} (runtime={pool.runtime!r}): {pool.entry[0]!r} leads out of the app's directory, "
            f"{directory}; what a pool runs has to lie in it, also behind symbolic links (entry=)"
        )
    if not os.path.isfile(entry):
        raise UsageError(
            f"pool {pool.name!r} (runtime={pool.runtime!r}): there is no file {pool.entry[0]!r} in the app's "
            f"directory, {directory} (entry=)"
        )
    if not Path(entry).resolve().is_relative_to(python.directory):
        python = structs.replace(python, readable=(*python.readable, directory))
    if pool.runtime in ("exec", "lines") and not os.access(entry, os.X_OK):
        raise UsageError(
            f"pool {pool.name!r} (runtime={pool.runtime!r}): {entry} is not executable; chmod +x {entry}, and a script "
            f"says in its first line what runs it (#!/usr/bin/awk -f)"
        )
    if pool.runtime == "lines":
        return structs.replace(python, argv=_adapter("--lines", entry, *pool.entry[1:]), input=b"")
    words = (*_INTERPRETERS[pool.runtime], entry, *pool.entry[1:], "--config-fd", "0")
    return structs.replace(python, argv=words)


def app_directory(target: str, working: str) -> str:
    """Where the files of an app lie: beside its own one; if it is a module, in the working directory."""
    path = parse_target(target).path
    return working if path is None else str(path.parent)


def adapted(command: Command) -> Command:
    """The same worker, a base speaker, behind its adapter."""
    return structs.replace(command, argv=_adapter("--command", *command.argv))


def _adapter(how: str, *words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", _ADAPTER, how, msgspec.json.encode(words).decode())
