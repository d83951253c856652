"""The crash test in two sizes; ``make test-crash`` runs it as the issue asks: 20 MB, 50 kills."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def crash(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.run", *map(str, arguments)],
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
