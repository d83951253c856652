"""What an app's Python code needs beside it: a directory of packages, built once for what is asked for.

``requirements.txt`` in the app's directory says what; wheels in its folder ``wheels`` are taken before the index, and
instead of it if the file says so (``--no-index``). Only wheels are installed: to build from source would run code of
others as whoever keeps the server, outside of every jail.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Final

from grape.errors import UsageError

FILE: Final = "requirements.txt"
WHEELS: Final = "wheels"
_OURS: Final = ("msgspec",)
"""What the worker itself needs, which no app may change under it."""
_PATIENCE: Final = 900.0


def key_of(package: Path) -> str | None:
    """What names the environment that the app wants; None: it wants none."""
    wanted = package / FILE
    if not wanted.is_file():
        return None
    found = hashlib.sha256(f"{sys.version_info[:2]} {sys.platform} {_constraints()}\n".encode())
    found.update(wanted.read_bytes())
    for wheel in sorted((package / WHEELS).glob("*.whl")):
        with open(wheel, "rb") as file:
            found.update(f"{wheel.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return found.hexdigest()


def _constraints() -> str:
    return "\n".join(f"{name}=={version(name)}" for name in _OURS)


def build(package: Path, target: Path) -> None:
    """Make the environment of an app, which is ``target`` then. Blocking, perhaps minutes.

    Raises:
        UsageError: it cannot be; the text ends with what the installer said.
    """
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        constraints = new / "constraints.txt"
        constraints.write_text(_constraints() + "\n")
        done = subprocess.run(
            [*_installer(), "--target", new / "site", "--only-binary", ":all:", "-c", constraints, *_wanted(package)],
            cwd=package,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise UsageError(f"{FILE} cannot be installed (only wheels are):\n" + "\n".join(said[-15:]))
        (new / "site").mkdir(exist_ok=True)
        os.rename(new / "site", target)
    except subprocess.TimeoutExpired:
        raise UsageError(f"{FILE} was not installed within {_PATIENCE:.0f} s") from None
    except OSError as e:
        if not target.is_dir():  # else somebody else has just made the same
            raise UsageError(f"{e.filename or target}: {e.strerror or e}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _installer() -> list[str]:
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    return [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]


def _wanted(package: Path) -> list[str]:
    links = ["--find-links", str(package / WHEELS)] if (package / WHEELS).is_dir() else []
    return ["-r", str(package / FILE), *links]
