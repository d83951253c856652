"""``grape run --reload``, for development: the run is started again whenever a file of the app has changed.

A process of its own watches: the run itself stays what it is. It is stopped as by Ctrl-C, what runs is committed, and
the next one goes on in the same data directory with the new code. A broken edit shows its error, and the next edit is
waited for.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from grape.authoring.loading import parse_target
from grape.cli.console import say

_POLL: Final = 0.3
_PATIENCE: Final = 10.0
_LEFT_OUT: Final = frozenset({"__pycache__", ".git", ".venv", "node_modules"})
_SUFFIXES: Final = frozenset({".py", ".js", ".mjs", ".pl", ".pm", ".toml", ".json", ".cpp", ".c", ".h", ".sh"})


def reload(target: str, data: str | None) -> int:
    """Run the command that this process was started with, without ``--reload``, again and again; returns its exit code
    after Ctrl-C or SIGTERM."""
    path = parse_target(target).path
    folder = path.parent if path is not None else Path.cwd()
    arguments = [one for one in sys.argv[1:] if one != "--reload"]
    temporary = None if data is not None else tempfile.mkdtemp(prefix="grape-")
    if temporary is not None:
        arguments += ["--data", temporary]
    try:
        return _watch(folder, [sys.executable, "-m", "grape", *arguments])
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _watch(folder: Path, command: list[str]) -> int:
    got: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: got.append(number))
    while True:
        seen = files_of(folder)
        child = subprocess.Popen(command)
        told = False
        while not got and files_of(folder) == seen:
            if child.poll() is not None and not told:
                told = True
                say(f"reload: the run has ended with exit code {child.returncode}; waiting for a change in {folder}")
            time.sleep(_POLL)
        _end(child)
        if got:
            return 128 + got[0]
        say("reload: the app has changed")


def _end(child: subprocess.Popen[bytes]) -> None:
    """What runs is committed; whoever does not end in time is ended, and nothing is lost then either."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """The files of an app, each with when it was changed and its size."""
    found: dict[str, tuple[int, int]] = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _LEFT_OUT and not name.startswith(".")]
        for name in names:
            if Path(name).suffix in _SUFFIXES:
                path = os.path.join(place, name)
                try:
                    status = os.stat(path)
                except OSError:
                    continue
                found[path] = status.st_mtime_ns, status.st_size
    return found
