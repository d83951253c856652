"""What makes the engine's process a good parent: settings of a whole process, for `grape run`, not for a library."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Final

from grape.isolates.procs import CHILDREN, STARTED, children, stat

_PR_SET_DUMPABLE: Final = 4
_PR_SET_CHILD_SUBREAPER: Final = 36

_adopts = False


def become_subreaper_and_undumpable() -> None:
    """Orphans of workers come to this process instead of init (see `reap_orphans`). Processes of the same user, so
    workers as well, can neither trace it nor read its memory, environment or descriptors, and it leaves no core dump.

    What it can still read of itself: everything if it is root. Else all but /proc/self/{environ,io,mem,auxv}, which
    belong to root then: `psutil.Process().memory_full_info()` works, `io_counters()` does not.

    Raises:
        OSError: the kernel refuses.
    """
    global _adopts
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_CHILD_SUBREAPER, 1), (_PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")
    _adopts = True


def reap_orphans() -> int:
    """Collect what came here from workers and has ended; returns how many.

    Those are children that were not started here and have another session than this process. Nothing is done unless
    `become_subreaper_and_undumpable` was called: a library does not wait for the children of its host.
    """
    reaped = 0
    if _adopts:
        own = os.getsid(0)
        for pid in children("self"):
            with CHILDREN, contextlib.suppress(ChildProcessError):
                one = stat(pid)
                if one is not None and one.state == "Z" and one.session != own and pid not in STARTED:
                    reaped += os.waitpid(pid, os.WNOHANG)[0] == pid
    return reaped
