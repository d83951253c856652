"""What several integration tests need."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def sdk_env() -> dict[str, str]:
    """Where the runtimes find the SDKs."""
    done = subprocess.run([ROOT / "scripts" / "sdks"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(line.split("=", 1) for line in done.stdout.split())
