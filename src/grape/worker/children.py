"""Children that a handler forks: they are not the worker, cannot speak for it, and end where the handler ends.

A child has a copy of everything, so it would go on in the loops of the worker, run the events that its parent runs, and
answer for it. `subprocess` executes another program and is not meant; `multiprocessing` never comes back to us.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

from grape.worker.blame import user_traceback

is_child = False
"""This process was forked from a worker."""

_callbacks: list[Callable[[], object]] = []


def watch(sock: socket.socket) -> None:
    """From now on a child of this process is known as one, and has not got ``sock``."""

    def forked() -> None:
        global is_child
        is_child = True
        for callback in (sock.close, *_callbacks):
            with contextlib.suppress(Exception):
                callback()

    os.register_at_fork(after_in_child=forked)


def at_fork(callback: Callable[[], object]) -> None:
    """Call it in every child, before anything else."""
    _callbacks.append(callback)


def end_child(error: BaseException | None = None) -> None:
    """In a child: the handler has ended, by ``error`` if one is given, and so does the process."""
    if is_child:
        _leave(error)


def _leave(error: BaseException | None) -> NoReturn:
    code = 0
    with contextlib.suppress(BaseException):
        if isinstance(error, SystemExit):
            code = _exit_code(error.code)
        elif error is not None:
            code = 1
            sys.stderr.write(user_traceback(error))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    os._exit(code)


def _exit_code(code: object) -> int:
    """What Python makes of the argument of ``sys.exit``."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    sys.stderr.write(f"{code}\n")
    return 1
