"""Work on a data file in a process of its own: reading a file that was cut off kills the process that reads it."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

from grape.cli.console import complain, say
from grape.cli.run import EXIT_ENGINE, EXIT_INT, EXIT_USE
from grape.errors import EngineError, GrapeError

DEADLY = (signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT)


def apart(data: str, work: Callable[[], int], advice: str, killed: int = EXIT_ENGINE) -> int:
    """Do ``work`` in a child; returns the exit code, ``killed`` if it died of what it read. ``advice``: what to do if
    the data are damaged."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _in_child(work, advice)
    while True:
        try:
            _, status = os.waitpid(child, 0)
            break
        except (KeyboardInterrupt, SystemExit):  # the child got it as well, and ends in order
            continue
    if not os.WIFSIGNALED(status):
        return os.waitstatus_to_exitcode(status)
    number = os.WTERMSIG(status)
    if number not in DEADLY:
        return 128 + number
    name = signal.Signals(number).name
    complain(f"{data}/data.mdb is cut off, or so damaged that it cannot be read ({name})\n{advice}")
    return killed


def _in_child(work: Callable[[], int], advice: str) -> None:
    code = EXIT_ENGINE
    try:
        code = work()
        sys.stdout.flush()
    except GrapeError as e:
        complain(str(e))
        code = EXIT_ENGINE if isinstance(e, EngineError) else EXIT_USE
        if code == EXIT_ENGINE:
            say(advice)
    except (KeyboardInterrupt, SystemExit):
        code = EXIT_INT
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
