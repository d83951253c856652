"""Files that are read once: text and JSON lines, from where the last run stopped.

A last line without a line end may be still in the middle of being written: it waits, unless nothing but a line end can
follow (a JSON object), or the input is said to be complete.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec

from grape.abc.source import Bad, Chunk, Columns, Source
from grape.connectors.lines import MAX_EVENT, RAW, JsonLines, Parser, TextLines
from grape.connectors.picks import near_names, pick_of
from grape.connectors.reading import (
    BLOCK,
    TAIL,
    Descriptor,
    Position,
    fill,
    hash_of,
    pack,
    shown_path,
    unpack_position,
)
from grape.errors import UsageError

_GROWN: Final = "grown-line"


class Changed(UsageError):
    """A file is not what was read from it."""


class LinesFile(Source):
    """A regular file, line by line.

    Args:
        event: what the events are called.
        path: of the file, in UTF-8.
        max_event: bytes; a line that is longer, or becomes longer as msgpack, is bad.
        key, id: what they are taken from (`grape.connectors.picks.pick_of`); without a key events are keyless.
        block: bytes read at once.

    Attributes:
        kind: what its lines are: "text" or "jsonl".
    """

    kind: ClassVar[str]

    def __init__(
        self,
        event: str,
        path: str | Path,
        max_event: int = MAX_EVENT,
        *,
        key: Any = None,
        id: Any = None,
        block: int = BLOCK,
    ) -> None:
        if block < 1:
            raise ValueError(f"a block has at least one byte, not {block}")
        parser = parser_of(self.kind, event, max_event, key, id)
        self._path = Path(path).expanduser().resolve()
        self.path = shown_path(self._path)
        self.name = f"{parser.event}={self.path}"
        self.is_keyless = parser.key is None
        self._parser = parser
        self._block = block
        self._fd = -1
        self._start = 0
        self._use: Descriptor | None = None
        self._waits = ""

    def open(self, position: bytes) -> None:
        self.close()
        at = self._position(position)
        fd = self._open(self._path)
        try:
            self._before(fd, at)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._use, self._start = fd, Descriptor(fd), at.offset

    def read(self, position: bytes) -> Chunk | None:
        if self._use is None:
            raise RuntimeError(f"{self.name} is not open")
        with self._use as usable:
            return self._read(self._fd, self._use, self._position(position), self.is_final) if usable else None

    def total(self) -> int | None:
        try:
            return max(0, self._path.stat().st_size - self._start)
        except OSError:
            return None

    def news(self) -> list[str]:
        waits, self._waits = self._waits, ""
        return [waits] if waits else []

    def close(self) -> None:
        if self._use is not None:
            self._use.close()

    # -------------------------------------------------------------- reading

    def _read(self, fd: int, use: Descriptor, at: Position, is_final: bool) -> Chunk | None:
        self._waits = ""
        before = self._before(fd, at)
        if at.inside:
            return self._behind(fd, use, at, before, is_final)
        start = at.offset
        limit = self._parser.max_event + 2  # with its "\r", and one byte that is not "\n": surely over
        block = fill(fd, start, self._block)
        at_end = len(block) < self._block
        cut = block.rfind(b"\n") + 1
        while not cut and not at_end:
            if len(block) >= limit:
                return self._skip(fd, use, at, before, block, is_final)
            wanted = min(self._block, limit - len(block))
            more = fill(fd, start + len(block), wanted)
            at_end = len(more) < wanted
            newline = more.rfind(b"\n") + 1
            cut = len(block) + newline if newline else 0
            block += more
        last = block[cut:]
        if not (at_end and last and self._is_line(last, is_final)):
            block = block[:cut]
        if not block:
            if last:
                self._note_waiting(at, len(last))
            return None
        columns, bad, lines, size = self._parser.parse(block, self.path, at.line + 1)
        return self._chunk(columns, bad, at, before, start + size, lines, block[:size])

    def _is_line(self, last: bytes, is_final: bool) -> bool:
        """Whether the last line, which has no line end, is a line already."""
        return is_final or (len(last) <= self._parser.max_event and self._parser.is_whole(last))

    def _note_waiting(self, at: Position, size: int) -> None:
        self._waits = (
            f"{self.path}:{at.line + 1}: the last line ({size:,} bytes) has no line end yet and waits for one; "
            f"if the file is complete, say so: --feed {self._parser.event}={self.path},complete"
        )

    def _skip(
        self, fd: int, use: Descriptor, at: Position, before: bytes, begin: bytes, is_final: bool, kind: str = ""
    ) -> Chunk | None:
        """To the end of a line that is too long to be held, or (``kind``) has grown behind what is an event."""
        start = at.offset
        end, tail = start + len(begin), (before + begin)[-TAIL:]
        cut = 0
        is_blank = self._parser.is_blank(begin)
        while not cut:
            if use.is_closed():
                return None
            block = fill(fd, end, self._block)
            cut = block.find(b"\n") + 1
            taken = block[:cut] if cut else block
            end += len(taken)
            tail = (tail + taken)[-TAIL:]
            is_blank = is_blank and (not taken or self._parser.is_blank(taken))
            if len(block) < self._block:
                break
        size = end - start - (1 if cut else 0)
        if not cut and not is_final:
            self._note_waiting(at, size)
            return None
        if not kind:
            bad = [self._parser.over(f"{self.path}:{at.line + 1}", begin[:RAW], size)]
        else:
            bad = [] if is_blank else [self._grown(at, begin[:RAW])]
        return self._chunk([], bad, at, b"", end, 0 if kind else 1, tail)

    def _behind(self, fd: int, use: Descriptor, at: Position, before: bytes, is_final: bool) -> Chunk | None:
        """Behind a line that had no end when it became an event: its line end, or what it has grown by."""
        block = fill(fd, at.offset, self._block)
        cut = block.find(b"\n") + 1
        if not cut and len(block) == self._block:
            return self._skip(fd, use, at, before, block, is_final, _GROWN)
        added = block[:cut] if cut else block
        if not added:
            return None
        if self._parser.is_blank(added):
            bad = []
            if not cut:
                return None
        elif cut or is_final:
            bad = [self._grown(at, added[:RAW])]
        else:
            self._note_waiting(at, len(added))
            return None
        return self._chunk([], bad, at, before, at.offset + len(added), 0, added)

    def _grown(self, at: Position, raw: bytes) -> Bad:
        return Bad(
            f"{self.path}:{at.line}",
            self._parser.event,
            raw.rstrip(b"\r\n"),
            _GROWN,
            f"line {at.line} became an event when it ended at byte {at.offset}, without a line end, and has grown "
            "since: this is what it has grown by",
        )

    def _chunk(
        self,
        columns: list[Columns],
        bad: list[Bad],
        at: Position,
        before: bytes,
        end: int,
        lines: int,
        block: bytes,
    ) -> Chunk:
        last = block[-TAIL:] if len(block) >= TAIL else (before + block)[-TAIL:]
        position = Position(end, at.line + lines, not last.endswith(b"\n"), hash_of(last), at.inode)
        return Chunk(columns, pack(position), bad, end - at.offset)

    # -------------------------------------------------------------- is it what was read before

    def _position(self, position: bytes) -> Position:
        if not position:
            return Position()
        try:
            return unpack_position(position)
        except msgspec.MsgspecError as e:
            raise UsageError(f"{self.path}: the stored position cannot be read: {e}") from None

    def _before(self, fd: int, at: Position) -> bytes:
        """The bytes before a position.

        Raises:
            Changed: they are not those that were read.
        """
        size = min(TAIL, at.offset)
        before = fill(fd, at.offset - size, size)
        if len(before) < size:
            raise self._changed(
                f"it has {os.fstat(fd).st_size} bytes, but {at.offset} bytes ({at.line} lines) were read from it",
                "it was cut or replaced",
            )
        found = hash_of(before)
        if size and found != at.tail:
            raise self._changed(
                f"the {size} bytes before byte {at.offset} (line {at.line}) have the hash {found.hex()}, "
                f"but when they were read it was {at.tail.hex()}",
                "it was replaced or edited",
            )
        return before

    def _changed(self, facts: str, meaning: str) -> Changed:
        return Changed(
            f"{self.path}: {facts}; {meaning}. Bring back the file as it was, or feed the new one under "
            "another name (each path is a source of its own) or into another --data directory; a log that is rotated "
            f"is fed with --feed {self._parser.event}={self.path},follow"
        )

    def _open(self, path: Path) -> int:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise UsageError(f"{self.path}: no such file{self._hint()}") from None
        except OSError as e:
            raise UsageError(f"{self.path}: cannot be read: {e.strerror}") from None
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            return fd
        os.close(fd)
        if stat.S_ISDIR(mode):
            raise UsageError(f"{self.path}: is a directory; feed the files in it, one --feed each")
        raise UsageError(
            f"{self.path}: is not a regular file and cannot be read again after a restart; feed it as it is, "
            f"--feed {self._parser.event}={self.path}, or through standard input: --feed {self._parser.event}=-"
        )

    def _hint(self) -> str:
        parent = self._path.parent
        try:
            names = os.listdir(parent)
        except FileNotFoundError:
            return f"; nor is there a directory {shown_path(parent)}"
        except OSError:
            return ""
        return near_names(self._path.name, names)


class TextFile(LinesFile):
    """A text file: one event a line, its text is the data; empty lines too. A byte order mark is dropped."""

    kind = "text"


class JsonLinesFile(LinesFile):
    """A file of JSON values, one a line: the value is the data, and of a key that is a number its text. Blank lines are
    skipped, as is a byte order mark."""

    kind = "jsonl"


def parser_of(kind: str, event: str, max_event: int, key: Any = None, id: Any = None) -> Parser:
    """``kind``: "text" or "jsonl".

    Raises:
        UsageError: a key or an id that such lines cannot have.
    """
    if kind not in ("text", "jsonl"):
        raise ValueError(f"lines are 'text' or 'jsonl', not {kind!r}")
    is_text = kind == "text"
    keys = None if key is None else pick_of("key", key, is_text)
    ids = None if id is None else pick_of("id", id, is_text)
    return (TextLines if is_text else JsonLines)(event, max_event, keys, ids)
