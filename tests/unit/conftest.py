"""What unit tests share."""

from __future__ import annotations

import subprocess
from pathlib import Path
from shutil import which

import pytest


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if which("cc") is None:
        pytest.skip("no C compiler (cc) for the shim under LMDB")
    library = tmp_path_factory.mktemp("shim") / "faultio.so"
    source = Path(__file__).with_name("faultio.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library
