"""A control group outlives no engine, whoever of engine and guard is killed first."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.escape.world import _is_shell
from tests.jails import NOBODY, PROJECT, ROOT

from grape.errors import Unsupported
from grape.isolates import cgroups
from grape.isolates.procs import children, stat
from grape.testing.contracts.isolate import eventually, processes, python_for


def guards(engine: int) -> dict[int, list[str]]:
    """Pid of each guard of a process, and the groups that it looks after."""
    found = {}
    for pid in children(engine):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended just now
            continue
        if b"grape-guard" in words:
            found[pid] = [os.fsdecode(word) for word in words[words.index(b"grape-guard") + 1 :] if word]
    return found


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """One whose worker, at the level cgroup, has a daemon that is found by a marker."""
    try:
        cgroups.check()
    except Unsupported as e:
        pytest.skip(str(e))
    if ROOT:
        python_for(NOBODY)
    app = Path("/var/tmp") / f"grape-guard-{secrets.token_hex(4)}"
    app.mkdir(mode=0o755)
    marker = secrets.token_hex(8)
    argv = [sys.executable, "-m", "tests.escape.world", "--engine", "cgroup", str(app), marker]
    try:
        with subprocess.Popen(argv, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            eventually("the daemon runs", lambda: any(map(_is_shell, processes(marker))))
            yield process, marker
            process.kill()
    finally:
        shutil.rmtree(app)


def assert_all_is_gone(marker: str, groups: list[str]) -> None:
    eventually("the daemon has ended", lambda: not any(map(_is_shell, processes(marker))))
    eventually("its groups are gone", lambda: not any(map(os.path.exists, groups)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_engine_that_is_killed_takes_its_groups_along(
    engine: tuple[subprocess.Popen[bytes], str], number: signal.Signals
) -> None:
    process, marker = engine
    ((guard, groups),) = guards(process.pid).items()
    assert all(map(os.path.isdir, groups))
    os.kill(guard, signal.SIGTERM)  # which it does not mind
    process.send_signal(number)
    process.wait()
    assert_all_is_gone(marker, groups)
    eventually("the guard has gone", lambda: (one := stat(guard)) is None or one.state in "ZX")


def test_a_guard_that_is_killed_is_replaced(engine: tuple[subprocess.Popen[bytes], str]) -> None:
    process, marker = engine
    ((first, groups),) = guards(process.pid).items()
    for _ in range(2):
        before = set(guards(process.pid))
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        eventually("there is another one", lambda before=before: set(guards(process.pid)) - before)  # type: ignore[misc]
    assert first not in guards(process.pid)
    assert any(map(_is_shell, processes(marker))), "what it guards goes on"
    process.kill()
    process.wait()
    assert_all_is_gone(marker, groups)
