"""The crash log: how workers ended that should not have, with the last lines they printed. One file each, beside the
data, the newest hundred are kept."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

FOLDER: Final = "crashes"
KEPT: Final = 100


class Crash(Struct, frozen=True):
    """``time``, ``since``: when it ended, and when it was started (wall time, seconds). ``why``: how, in words; the
    first line alone is short. ``lines``: (level, slot, text)."""

    time: float
    worker: str
    pid: int
    since: float
    why: str
    lines: list[tuple[str, str, str]]


class CrashLog:
    """The crashes of one data directory. One writer, any number of readers."""

    def __init__(self, data: str | os.PathLike[str]) -> None:
        self._folder = Path(data) / FOLDER

    def add(self, crash: Crash) -> None:
        """Keep it; the oldest over a hundred go. What cannot be written is not kept: nothing depends on it."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._folder.chmod(0o700)
            known = self._files()
            number = int(known[-1].stem) + 1 if known else 1
            path = self._folder / f"{number:08}.json"
            draft = path.with_suffix(".new")
            with open(draft, "wb", opener=_private) as file:
                file.write(msgspec.json.encode(crash))
            draft.rename(path)
            for old in known[: len(known) + 1 - KEPT]:
                old.unlink(missing_ok=True)

    def all(self) -> list[tuple[int, Crash]]:
        """Every crash with its number, oldest first. Files that cannot be read are left out."""
        found: list[tuple[int, Crash]] = []
        for path in self._files():
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                found.append((int(path.stem), msgspec.json.decode(path.read_bytes(), type=Crash)))
        return found

    def _files(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return sorted(path for path in self._folder.iterdir() if path.suffix == ".json" and path.stem.isdecimal())


def _private(path: str, flags: int) -> int:
    """What a worker has printed is for the owner of the data alone."""
    fd = os.open(path, flags, 0o600)
    os.fchmod(fd, 0o600)
    return fd
