"""The data directory of a run: where it is, what of it stays, and what lies in it that failed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

import msgspec

from grape.abc.transport import Transport
from grape.engine.app import App
from grape.engine.logged import BURIED
from grape.model.address import PartitionId
from grape.model.objects import OBJECTS
from grape.model.stored import OUTPUT, REPLIES, SOURCE, TAKER, decode_dead


class DataDirectory:
    """
    Args:
        path: None: a temporary one is made.

    Attributes:
        path: where it is. is_temporary: nobody has asked for it.
    """

    def __init__(self, path: str | None) -> None:
        self.is_temporary = path is None
        self.path = path or tempfile.mkdtemp(prefix="grape-")
        self._missing: list[Path] = []

    def note_missing(self) -> None:
        """What is not there now goes with `undo`."""
        whole = Path(self.path).absolute()
        self._missing = [path for path in (whole, *whole.parents) if not path.exists()]

    def undo(self) -> None:
        """A run that could not begin leaves no directory that was not there before."""
        if self._missing:
            shutil.rmtree(self._missing[0], ignore_errors=True)
            for path in self._missing[1:]:
                with contextlib.suppress(OSError):
                    path.rmdir()

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def count_dead(app: App, transport: Transport, *, failed: bool = False) -> int:
    """Dead letters: of partitions, and of sources (input that never became an event). ``failed``: without those that
    an operator has buried."""
    record = app.record
    total = 0
    for name in record.logs:
        if not name.startswith((OUTPUT, REPLIES, TAKER, OBJECTS)):
            for number in range(1 if name.startswith(SOURCE) else record.partitions):
                total += _count_rows(transport, app.log(name, number), failed=failed)
    return total


def _count_rows(transport: Transport, partition: PartitionId, *, failed: bool) -> int:
    total, after = 0, b""
    while rows := transport.scan(partition, "dead", after, 1000):
        total += sum(1 for _, letter in rows if not _is_buried(letter)) if failed else len(rows)
        after = rows[-1][0] + b"\0"
    return total


def _is_buried(letter: bytes) -> bool:
    try:
        return decode_dead(letter).kind == BURIED
    except (msgspec.MsgspecError, ValueError, RecursionError):  # whatever it was
        return False
