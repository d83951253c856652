"""What /proc tells of processes, at moments that are hard to meet."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from grape.isolates import procs


def test_what_is_just_becoming_another_program_is_not_overlooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """F52: in the middle of an exec a process has no environment, so that its tag cannot be seen."""
    me = procs.stat("self")
    assert me is not None
    left = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(1000)"],
        env={**os.environ, procs.TAG: "tag-of-a-worker"},
        start_new_session=True,
    )
    seen = 0
    real = procs._environ

    def environ(pid: int) -> list[bytes]:
        nonlocal seen
        if pid == left.pid and seen < 3:
            seen += 1
            return [b""]
        return real(pid)

    monkeypatch.setattr(procs, "_environ", environ)
    ended = subprocess.Popen(["true"], start_new_session=True)
    ended.wait()
    try:
        assert procs.end_descendants(ended.pid, "tag-of-a-worker", me.start) == []
        assert (found := procs.stat(left.pid)) is None or found.state in "ZX"
        assert seen == 3
    finally:
        left.kill()
        left.wait()
