"""Hosts that lack something, for real, and engines that are another user: programs in a namespace of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import pytest

import grape
from grape.testing.contracts.isolate import python_for

ROOT: Final = os.geteuid() == 0
NOBODY: Final = 65534
PROJECT: Final = Path(__file__).parents[1]
_PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


def open_to_all(path: Path) -> None:
    """Let every user enter a directory of pytest, and all those above it that are pytest's as well."""
    for each in (path, *path.parents):
        if each == Path(tempfile.gettempdir()):
            break
        each.chmod(0o755)


def as_nobody(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a Python command line as an ordinary user; only root may ask. Skips the test if there is no Python that
    nobody can run and that has what this one has: one below /root is of no use to others."""
    return subprocess.run(
        [python_of_nobody(), "-B", *argv],
        cwd=PROJECT,
        env=environment(),
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def python_of_nobody() -> str:
    """A Python that nobody can run, and that has what Grape needs in `environment`; skips the test if there is none."""
    found = _python_of_nobody()
    if found is None:
        pytest.skip("no Python here can be run by nobody and has what Grape needs: install it in /usr")
    return found


@cache
def _python_of_nobody() -> str | None:
    try:
        return python_for(NOBODY, "grape.isolates.sandbox, pytest", environment())
    except AssertionError:
        return None


def environment() -> dict[str, str]:
    own = sysconfig.get_path("stdlib")  # another Python has its own
    paths = [path for path in sys.path if path.endswith("site-packages") or not path.startswith(own)]
    paths = [str(Path(grape.__file__).parents[1]), *(path for path in paths if path and not path.endswith(".zip"))]
    return {"PATH": _PATH, "HOME": "/tmp", "PYTHONPATH": ":".join(paths)}


def without(files: Sequence[str], code: str, before: str = "") -> str:
    """What a Python script prints on a host that does not have some files; ``before``: shell commands, as root of a
    user namespace."""
    hide = [f"mount --bind /dev/null $(readlink -f {path})" for path in files]
    script = "; ".join(["set -e", *hide, *([before] if before else []), 'exec "$0" -c "$1"'])
    argv = ["unshare", "--user", "--map-root-user", "--mount", "/bin/sh", "-c", script, sys.executable]
    done = subprocess.run(
        [*argv, textwrap.dedent(code)], capture_output=True, text=True, check=False, cwd=PROJECT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
