"""What ends the workers of a pool when the engine cannot: a small process beside it, which waits for the engine's end.

A worker dies with the engine, but what it has started does not, where nothing but a control group holds it. So somebody
has to outlive the engine. It has one end of a pipe whose other end is the engine's alone; the kernel closes that one,
however the engine ends. Then it kills what is in the groups until they are empty, and removes them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Final

from grape.isolates.procs import CHILDREN, STARTED

# Of version 1 a group is a directory for each controller; those that do not have a file pass over what is for others.
_SCRIPT: Final = """
trap '' HUP INT QUIT TERM
read -r engine
tries=0
while [ $tries -lt 1000 ]; do
    left=
    for group do
        [ -d "$group" ] || continue
        left=1
        [ -w "$group/cgroup.kill" ] && echo 1 > "$group/cgroup.kill"
        for leaf in "$group"/*/; do
            [ -w "$leaf/freezer.state" ] && echo FROZEN > "$leaf/freezer.state"
        done
        for procs in "$group"/*/cgroup.procs; do
            [ -r "$procs" ] && while read -r pid; do kill -KILL "$pid"; done < "$procs"
        done
        for leaf in "$group"/*/; do
            [ -w "$leaf/freezer.state" ] && echo THAWED > "$leaf/freezer.state"
            rmdir "$leaf"
        done
        rmdir "$group"
    done
    [ "$left" ] || exit 0
    tries=$((tries + 1))
    sleep 0.01
done
"""
_TOO_SOON: Final = 0.5


class Guard:
    """One for a group; another one is started when it is killed."""

    def __init__(self, paths: Sequence[str]) -> None:
        """
        Raises:
            OSError: it cannot be started.
        """
        self._paths = tuple(dict.fromkeys(paths))
        self._is_closing = threading.Event()
        self._lock = threading.Lock()
        """Of what is changed when another one is started."""
        self._start()
        self._thread = threading.Thread(target=self._watch, name="grape-guard", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The groups are gone: so it goes as well."""
        with self._lock:
            self._is_closing.set()
            os.close(self._held)
        self._thread.join(10.0)

    def _start(self) -> None:
        reading, held = os.pipe()
        try:
            with CHILDREN:
                self._process = subprocess.Popen(
                    ["/bin/sh", "-c", _SCRIPT, "grape-guard", *self._paths],
                    stdin=reading,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={"PATH": os.defpath},
                    start_new_session=True,
                )
                STARTED.add(self._process.pid)
            self._held = held
        except BaseException:
            os.close(held)
            raise
        finally:
            os.close(reading)

    def _watch(self) -> None:
        while True:
            since = time.monotonic()
            pid = self._process.pid
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            with CHILDREN:
                self._process.wait()
                STARTED.discard(pid)
            if time.monotonic() - since < _TOO_SOON and self._is_closing.wait(_TOO_SOON):
                return
            with self._lock, contextlib.suppress(OSError):  # the host may have no room for it; then it is tried again
                if self._is_closing.is_set():
                    return
                held = self._held
                self._start()
                os.close(held)
