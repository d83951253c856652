"""The crash test in two sizes; ``make test-crash`` runs it as the issue asks: 20 MB, 50 kills."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def crash(*arguments: object, what: str = "run") -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.crash.{what}", *map(str, arguments)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("app", ["wordcount", "cycle"])
def test_every_count_is_exact_after_some_kills(app: str) -> None:
    """F4, F6, F12, F16: SIGKILL of engine and workers at random moments."""
    assert "kills survived" in crash("--megabytes", 1.5, "--kills", 6, "--app", app)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_count_is_exact_after_fifty_kills() -> None:
    assert "kills survived" in crash()


@pytest.mark.slow
def test_every_call_to_a_server_is_answered_once_after_some_kills() -> None:
    """F4, F16: SIGKILL of engine, gateway, workers and the server itself, with calls in flight."""
    assert "8 kills survived" in crash("--kills", 8, "--calls", 300, what="server")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_call_to_a_server_is_answered_once_after_fifty_kills() -> None:
    assert "50 kills survived" in crash(what="server")
