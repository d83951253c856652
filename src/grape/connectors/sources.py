"""Sources: text files, JSON lines, standard input, and custom ones written in Python.

A line ends with "\\n" or "\\r\\n", neither is part of it; a "\\r" anywhere else is. What follows the last line end is a
line too, if there is anything. Whole blocks are decoded at once; lines are looked at one by one only where one of them
is bad.
"""

from __future__ import annotations

import difflib
import os
import re
import select
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import blake2b
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from grape.abc.source import Bad, Chunk, Columns, Pairs, Source
from grape.errors import HandlerError, TooLarge, UsageError
from grape.model.address import MAX_KEY_BYTES, check_key
from grape.model.event import Event
from grape.model.topology import Limits
from grape.model.values import MAX_INT, MIN_INT, to_value

BLOCK: Final = 1 << 20
TAIL: Final = 4096
"""Bytes before a position whose hash it carries."""
RAW: Final = 1024
"""Bytes that are kept of a line over max-event."""
MAX_EVENT: Final = Limits().max_event

_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder().decode


class Position(Struct, frozen=True, array_like=True):
    """Where a file was read up to: bytes, lines, whether the last line had no end then, a hash of what is before it."""

    offset: int = 0
    line: int = 0
    inside: bool = False
    tail: bytes = b""


_unpack_position: Final = msgspec.msgpack.Decoder(Position).decode


def hash_of(tail: bytes) -> bytes:
    """The hash that positions carry: blake2b, 128 bits."""
    return blake2b(tail, digest_size=16).digest()


# ------------------------------------------------------------------ lines to events


class _Parser(ABC):
    """Makes events of one name out of whole lines."""

    def __init__(self, event: str, max_event: int) -> None:
        self.event = event
        self.max_event = max_event

    @abstractmethod
    def _together(self, block: bytes, lines: list[bytes] | None) -> Columns | None:
        """All lines of a block, or None if any is bad. ``lines``: the block split, if it has been."""

    @abstractmethod
    def _single(self, line: bytes) -> tuple[str | None, Any] | None:
        """Key and data of one line; None: no event.

        Raises:
            _BadLine: what is wrong with it.
        """

    def parse(self, block: bytes, place: str, first: int) -> tuple[list[Columns], list[Bad], int]:
        """Events, bad lines and the number of lines of ``block``, which begins with line ``first`` (from 1)."""
        lines = None
        fits = len(block) <= self.max_event
        if not fits:
            lines = _split(block)
            fits = max(map(len, lines)) <= self.max_event
        if fits:
            columns = self._together(block, lines)
            if columns is not None:
                count = block.count(b"\n") + (not block.endswith(b"\n"))
                numbers: Sequence[int] = range(first, first + count)
                if len(columns.data) < count:  # blank lines are no events
                    numbers = [n for n, line in enumerate(lines or _split(block), first) if line.strip()]
                numbered = Columns(columns.name, columns.keys, columns.data, numbers)
                return [numbered] if columns.data else [], [], count
        return self._singly(block, place, first)

    def _singly(self, block: bytes, place: str, first: int) -> tuple[list[Columns], list[Bad], int]:
        keys: list[str | None] = []
        data: list[Any] = []
        numbers: list[int] = []
        bad: list[Bad] = []
        lines = _split(block)
        for number, line in enumerate(lines, first):
            if line.endswith(b"\r") and (number - first < len(lines) - 1 or block.endswith(b"\n")):
                line = line[:-1]
            if len(line) > self.max_event:
                bad.append(self.over(f"{place}:{number}", line[:RAW], len(line)))
                continue
            try:
                event = self._single(line)
            except _BadLine as e:
                bad.append(Bad(f"{place}:{number}", self.event, line, e.kind, e.text))
                continue
            if event is not None:
                keys.append(event[0])
                data.append(event[1])
                numbers.append(number)
        keyless = all(key is None for key in keys)
        return [Columns(self.event, None if keyless else keys, data, numbers)] if data else [], bad, len(lines)

    def over(self, place: str, raw: bytes, size: int | None) -> Bad:
        """A line over max-event."""
        what = "a line" if size is None else f"a line of {size} bytes"
        text = f"{what} is over max-event ({self.max_event} bytes); its first {len(raw)} bytes are kept"
        return Bad(place, self.event, raw, TooLarge.code, text)


class _BadLine(Exception):
    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


def _split(block: bytes) -> list[bytes]:
    lines = block.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def _not_utf8(line: bytes, e: UnicodeDecodeError) -> _BadLine:
    try:
        line.decode()
    except UnicodeDecodeError as whole:  # ``e`` may be about a part of it
        e = whole
    return _BadLine("not-utf8", f"not UTF-8: {e.reason} at byte {e.start} of the line")


class _Text(_Parser):
    def _together(self, block: bytes, lines: list[bytes] | None) -> Columns | None:
        try:
            text = block.decode()
        except UnicodeDecodeError:
            return None
        if "\r" in text:
            text = text.replace("\r\n", "\n")
        data = text.split("\n")
        if not data[-1]:
            data.pop()
        return Columns(self.event, None, data)

    def _single(self, line: bytes) -> tuple[str | None, Any] | None:
        try:
            return None, line.decode()
        except UnicodeDecodeError as e:
            raise _not_utf8(line, e) from None


_DIGITS: Final = bytes(48 if 48 <= i <= 57 else 32 for i in range(256))
_LONG: Final = b"0" * 19
"""A line without 19 digits in a row holds no integer beyond 64 bits."""
_GROWTH: Final = 4
"""No JSON becomes more than so many times larger as msgpack (worst: 1e9, three bytes, becomes nine)."""
_BOM: Final = b"\xef\xbb\xbf"


class _Json(_Parser):
    def __init__(self, event: str, max_event: int, key_field: str | None) -> None:
        super().__init__(event, max_event)
        self._field = key_field
        self._decode = msgspec.json.Decoder().decode

    def parse(self, block: bytes, place: str, first: int) -> tuple[list[Columns], list[Bad], int]:
        if first == 1 and block.startswith(_BOM):
            block = block[len(_BOM) :] or b"\n"
        return super().parse(block, place, first)

    def _together(self, block: bytes, lines: list[bytes] | None) -> Columns | None:
        if lines is None:
            lines = _split(block)
        if len(block) * _GROWTH > self.max_event and max(map(len, lines)) * _GROWTH > self.max_event:
            return None
        try:
            values = self._decoded(lines)
            if _LONG in block.translate(_DIGITS):
                roots = [value for value in values if type(value) is int]
                if roots and (min(roots) < MIN_INT or max(roots) > MAX_INT):
                    return None
                _pack(values)
        except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError):
            return None
        if self._field is None or not values:
            return Columns(self.event, None, values)
        try:
            keys = list(map(itemgetter(self._field), values))
        except (KeyError, TypeError):
            return None
        kinds = set(map(type, keys))
        if kinds == {int}:
            keys = list(map(str, keys))
        elif kinds != {str} or not _are_short(keys):
            return None
        return Columns(self.event, keys, values)

    def _decoded(self, lines: list[bytes]) -> list[Any]:
        # Not decode_lines: it takes a value over two lines, and two values in one.
        try:
            return list(map(self._decode, lines))
        except msgspec.DecodeError:
            full = [line for line in lines if line.strip()]
            if len(full) == len(lines):
                raise
            return list(map(self._decode, full))

    def _single(self, line: bytes) -> tuple[str | None, Any] | None:
        if not line.strip():
            return None
        try:
            value = self._decode(line)
        except UnicodeDecodeError as e:
            raise _not_utf8(line, e) from None
        except msgspec.DecodeError as e:
            raise _BadLine("bad-json", f"not JSON: {e}") from None
        except RecursionError:
            raise _BadLine("bad-json", "nested too deeply") from None
        try:
            data = to_value(value, self.max_event)
        except HandlerError as e:
            raise _BadLine(e.code, f"{e}") from None
        return None if self._field is None else _key_in(value, self._field), data


def _are_short(keys: list[str]) -> bool:
    """Whether all are surely keys by their length."""
    return all(keys) and max(map(len, keys)) * 4 <= MAX_KEY_BYTES


_JSON_NAMES: Final = {dict: "an object", list: "an array", str: "text", bool: "true or false", type(None): "null"}


def _key_in(value: Any, field: str) -> str:
    """The key of a line: the text of its field.

    Raises:
        _BadLine: it has none.
    """
    if type(value) is not dict:
        what = _JSON_NAMES.get(type(value), "a number")
        raise _BadLine("bad-key", f"the key is the field {field!r} of an object, but this line is {what}")
    if field not in value:
        raise _BadLine("bad-key", f"no field {field!r} to take the key from{_near(field, value)}")
    key = value[field]
    if type(key) is int or type(key) is float:
        key = str(key)
    if type(key) is not str:
        what = _JSON_NAMES.get(type(key), type(key).__name__)
        raise _BadLine("bad-key", f"the key, field {field!r}, is {what}; it must be text or a number")
    try:
        return check_key(key)
    except ValueError as e:
        raise _BadLine("bad-key", f"field {field!r}: {e}") from None


def _near(name: str, names: Iterable[str], otherwise: str = "") -> str:
    near = difflib.get_close_matches(name, list(names), 3)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else otherwise


# ------------------------------------------------------------------ files


class _Descriptor:
    """A file descriptor that one thread uses and any other may close: closed when nobody uses it any more, since its
    number could be another file's by then."""

    def __init__(self, *fds: int) -> None:
        self._fds = fds
        self._lock = threading.RLock()
        self._used = False
        self._closed = False

    def is_closed(self) -> bool:
        return self._closed

    def __enter__(self) -> bool:
        with self._lock:
            self._used = not self._closed
            return self._used

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._used:
                self._used = False
                if self._closed:
                    self._close()

    def close(self, wake: int | None = None) -> None:
        """Close it now, or as soon as it is not used any more. ``wake``: a descriptor to write to if it is used."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if not self._used:
                self._close()
            elif wake is not None:
                os.write(wake, b"x")

    def _close(self) -> None:
        for fd in self._fds:
            os.close(fd)


def _shown(path: Path) -> str:
    """A path as text that can be stored, whatever bytes it has."""
    return os.fsencode(path).decode(errors="backslashreplace")


class _File(Source):
    def __init__(self, path: str | Path, parser: _Parser, block: int) -> None:
        if block < 1:
            raise ValueError(f"a block has at least one byte, not {block}")
        self._path = Path(path).expanduser().resolve()
        self.path = _shown(self._path)
        self.name = f"{parser.event}={self.path}"
        self._parser = parser
        self._block = block
        self._fd = -1
        self._start = 0
        self._use: _Descriptor | None = None

    def open(self, position: bytes) -> None:
        self.close()
        at = self._position(position)
        fd = self._open()
        try:
            self._behind(fd, at, self._before(fd, at))
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._use, self._start = fd, _Descriptor(fd), at.offset

    def read(self, position: bytes) -> Chunk | None:
        if self._use is None:
            raise RuntimeError(f"{self.name} is not open")
        with self._use as usable:
            return self._read(self._fd, self._use, self._position(position)) if usable else None

    def total(self) -> int | None:
        try:
            return max(0, self._path.stat().st_size - self._start)
        except OSError:
            return None

    def close(self) -> None:
        if self._use is not None:
            self._use.close()

    # -------------------------------------------------------------- reading

    def _read(self, fd: int, use: _Descriptor, at: Position) -> Chunk | None:
        before = self._before(fd, at)
        ended = self._behind(fd, at, before)
        if ended is None:
            return None
        limit = self._parser.max_event + 2  # with its "\r", and one byte that is not "\n": surely over
        start = at.offset + len(ended)
        block = self._fill(fd, start, self._block)
        at_end = len(block) < self._block
        cut = block.rfind(b"\n") + 1
        while not cut and not at_end:
            if len(block) >= limit:
                return self._skip(fd, use, at, before + ended, start, block)
            wanted = min(self._block, limit - len(block))
            more = self._fill(fd, start + len(block), wanted)
            at_end = len(more) < wanted
            newline = more.rfind(b"\n") + 1
            cut = len(block) + newline if newline else 0
            block += more
        if not at_end:
            block = block[:cut]
        if not block:
            return self._chunk([], [], at, before + ended, start, 0, b"") if ended else None
        columns, bad, lines = self._parser.parse(block, self.path, at.line + 1)
        return self._chunk(columns, bad, at, before + ended, start + len(block), lines, block)

    def _skip(self, fd: int, use: _Descriptor, at: Position, before: bytes, start: int, begin: bytes) -> Chunk | None:
        """To the end of a line that is too long to be held."""
        end, tail = start + len(begin), (before + begin)[-TAIL:]
        cut = 0
        while not cut:
            if use.is_closed():
                return None
            block = self._fill(fd, end, self._block)
            cut = block.find(b"\n") + 1
            taken = block[:cut] if cut else block
            end += len(taken)
            tail = (tail + taken)[-TAIL:]
            if len(block) < self._block:
                break
        size = end - start - (1 if cut else 0)
        bad = self._parser.over(f"{self.path}:{at.line + 1}", begin[:RAW], size)
        return self._chunk([], [bad], at, b"", end, 1, tail)

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
        position = Position(end, at.line + lines, not last.endswith(b"\n"), hash_of(last))
        return Chunk(columns, _pack(position), bad, end - at.offset)

    @staticmethod
    def _fill(fd: int, start: int, size: int) -> bytes:
        """``size`` bytes, less only at the end of the file."""
        block = os.pread(fd, size, start)
        while block and len(block) < size:
            more = os.pread(fd, size - len(block), start + len(block))
            if not more:
                break
            block += more
        return block

    # -------------------------------------------------------------- is it what was read before

    def _position(self, position: bytes) -> Position:
        if not position:
            return Position()
        try:
            return _unpack_position(position)
        except msgspec.MsgspecError as e:
            raise UsageError(f"{self.path}: the stored position cannot be read: {e}") from None

    def _before(self, fd: int, at: Position) -> bytes:
        """The bytes before a position.

        Raises:
            UsageError: they are not those that were read.
        """
        size = min(TAIL, at.offset)
        before = self._fill(fd, at.offset - size, size)
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

    def _behind(self, fd: int, at: Position, before: bytes) -> bytes | None:
        """The line end that a line got which had none when it was read; None if nothing was added to it.

        Raises:
            UsageError: the line itself has grown.
        """
        if not at.inside:
            return b""
        added = os.pread(fd, 2, at.offset)
        if not added:
            return None
        if not before.endswith(b"\r"):
            if added.startswith(b"\n"):
                return b"\n"
            if added == b"\r\n":
                return added
        raise self._changed(
            f"line {at.line} ended at byte {at.offset}, without a line end, when it was read, and has grown since: "
            f"the file has {os.fstat(fd).st_size} bytes now",
            "its beginning is an event already",
        )

    def _changed(self, facts: str, meaning: str) -> UsageError:
        return UsageError(
            f"{self.path}: {facts}; {meaning}. Bring back the file as it was, or feed the new one under "
            "another name (each path is a source of its own) or into another --data directory"
        )

    def _open(self) -> int:
        try:
            # A named pipe would block here without O_NONBLOCK.
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
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
            f"{self.path}: is not a regular file and cannot be read again after a restart; "
            f"feed it through standard input: --feed {self._parser.event}=- < {self.path}"
        )

    def _hint(self) -> str:
        parent = self._path.parent
        try:
            names = os.listdir(parent)
        except FileNotFoundError:
            return f"; nor is there a directory {_shown(parent)}"
        except OSError:
            return ""
        return _near(self._path.name, names)


class TextFile(_File):
    """A text file: one keyless event a line, its text is the data; empty lines too.

    Args:
        event: what the events are called.
        path: of a regular file in UTF-8.
        max_event: bytes; a longer line is bad.
        block: bytes read at once.
    """

    def __init__(self, event: str, path: str | Path, max_event: int = MAX_EVENT, *, block: int = BLOCK) -> None:
        super().__init__(path, _Text(event, max_event), block)


class JsonLinesFile(_File):
    """A file of JSON values, one a line: the value is the data. Blank lines are skipped, as is a byte order mark.

    Args:
        event: what the events are called.
        path: of a regular file in UTF-8.
        max_event: bytes; a line that is longer, or becomes longer as msgpack, is bad.
        key_field: the field of every line that is the event's key: text, or a number, which becomes its text.
        block: bytes read at once.
    """

    def __init__(
        self,
        event: str,
        path: str | Path,
        max_event: int = MAX_EVENT,
        key_field: str | None = None,
        *,
        block: int = BLOCK,
    ) -> None:
        super().__init__(path, _Json(event, max_event, key_field), block)


# ------------------------------------------------------------------ standard input


class Stdin(Source):
    """Lines from a file descriptor that cannot be read again; every run reads it from where it stands.

    What has been read is handed on at once, so that a slow writer is not waited for. The descriptor stays open.

    Args:
        event: what the events are called.
        kind: "text" or "jsonl".
        max_event: bytes; a longer line is bad.
        key_field: as for `JsonLinesFile`.
        fd: the file descriptor.
        block: bytes a chunk aims at.

    Attributes:
        restarted: an earlier run has read from a standard input, which this one cannot continue.
    """

    def __init__(
        self,
        event: str,
        kind: str = "text",
        max_event: int = MAX_EVENT,
        key_field: str | None = None,
        *,
        fd: int = 0,
        block: int = BLOCK,
    ) -> None:
        if kind not in ("text", "jsonl"):
            raise ValueError(f"standard input is 'text' or 'jsonl', not {kind!r}")
        self.name = f"{event}=-"
        self.restarted = False
        self._parser: _Parser = _Text(event, max_event) if kind == "text" else _Json(event, max_event, key_field)
        self._fd = fd
        self._block = block
        self._buffer = bytearray()
        self._searched = 0
        self._skipping = False
        self._at_end = False
        self._read_bytes = 0
        self._line = 0
        self._wake = -1
        self._use: _Descriptor | None = None

    def open(self, position: bytes) -> None:
        self.close()
        try:
            mode = os.fstat(self._fd).st_mode
        except OSError as e:
            raise UsageError(f"{self.name}: standard input cannot be read: {e.strerror}") from None
        if stat.S_ISDIR(mode):
            raise UsageError(f"{self.name}: standard input is a directory")
        self.restarted = bool(position)
        woken, self._wake = os.pipe()
        self._use = _Descriptor(woken, self._wake)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._poll.register(woken, select.POLLIN)

    def read(self, position: bytes) -> Chunk | None:
        if self._use is None:
            raise RuntimeError(f"{self.name} is not open")
        with self._use as usable:
            return self._read(self._use) if usable else None

    def total(self) -> int | None:
        try:
            status = os.fstat(self._fd)
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def close(self) -> None:
        if self._use is not None:
            self._use.close(self._wake)

    def _read(self, use: _Descriptor) -> Chunk | None:
        buffer, parser = self._buffer, self._parser
        taken = self._read_bytes
        while not use.is_closed():
            cut = buffer.rfind(b"\n", self._searched) + 1
            if cut and (len(buffer) >= self._block or self._at_end or not self._poll.poll(0)):
                block = bytes(memoryview(buffer)[:cut])
                del buffer[:cut]
                self._searched = 0
                return self._chunk(block, taken)
            if not cut:
                self._searched = len(buffer)
                if len(buffer) >= parser.max_event + 2:
                    bad = parser.over(f"<stdin>:{self._line + 1}", bytes(buffer[:RAW]), None)
                    buffer.clear()
                    self._searched = 0
                    self._skipping = True
                    self._line += 1
                    return Chunk([], self._position(), [bad], self._read_bytes - taken)
                if self._at_end:
                    block = bytes(buffer)
                    buffer.clear()
                    self._searched = 0
                    return self._chunk(block, taken) if block else None
            self._poll.poll()
            if use.is_closed():
                break
            self._take()
        return None

    def _take(self) -> None:
        """Read what is there."""
        try:
            piece = os.read(self._fd, self._block)
        except (BlockingIOError, InterruptedError):
            return
        self._at_end = not piece
        self._read_bytes += len(piece)
        if self._skipping:
            end = piece.find(b"\n") + 1
            if not end:
                return
            self._skipping = False
            piece = piece[end:]
        self._buffer += piece

    def _chunk(self, block: bytes, taken: int) -> Chunk:
        columns, bad, lines = self._parser.parse(block, "<stdin>", self._line + 1)
        self._line += lines
        # The next standard input has lines of the same numbers.
        unnumbered = [Columns(part.name, part.keys, part.data) for part in columns]
        return Chunk(unnumbered, self._position(), bad, self._read_bytes - taken)

    def _position(self) -> bytes:
        return _pack((self._read_bytes, self._line))


# ------------------------------------------------------------------ written in Python


class CallableSource(Source):
    """A custom source: ``read(position) -> (events, position)``.

    ``position`` is None at the start, then what the source returned last, as msgpack keeps it (tuples become lists).
    The source must return the same events for the same position again. Events are `Event`s, or pairs (key, data), a
    key of None being keyless, or bare data; a tuple is always a pair. They are committed with the position, all
    together, so some thousand at a time are best. No events and the same position, or None instead of both, is the end.

    An event whose key or value cannot travel is bad, "name[index]", index counted in its list.

    Args:
        event: what events are called that do not say it themselves.
        read: the function, or an object with a method ``read`` (and perhaps ``close``).
        name: tells the source from all others, for ever: its position is stored under it.
        max_event: bytes; a larger value is bad.
    """

    def __init__(self, event: str, read: Any, name: str, max_event: int = MAX_EVENT) -> None:
        method = getattr(read, "read", read)
        if not callable(method):
            raise UsageError(
                f"source {name!r}: {type(read).__name__} has no read(position), which returns (events, position)"
            )
        self.name = name
        self._event = event
        self._read: Callable[[Any], Any] = method
        self._close = getattr(read, "close", None)
        self._max_event = max_event
        self._closed = False

    def open(self, position: bytes) -> None:
        self._closed = False

    def read(self, position: bytes) -> Chunk | None:
        if self._closed:
            return None
        at = _unpack(position) if position else None
        try:
            result = self._read(at)
            if result is None:
                return None
            items, new = self._unpacked(result)
        except (UsageError, OSError):
            raise
        except Exception as e:
            raise UsageError(f"source {self.name!r}: read({at!r:.60}) raised {type(e).__name__}: {e}") from e
        try:
            packed = _pack(new)
            _unpack(packed)
        except (TypeError, ValueError, OverflowError, RecursionError) as e:
            raise UsageError(f"source {self.name!r}: its position cannot be stored: {e}") from None
        if not items and packed == (position or _pack(None)):
            return None
        if items and type(items[0]) is tuple:
            pairs = Pairs(self._event, items, self._values, partial(self._sift, items))
            return Chunk([pairs], packed, [], 0)
        columns, bad = self._sift(items)
        return Chunk(columns, packed, bad, 0)

    def close(self) -> None:
        self._closed = True
        if callable(self._close):
            self._close()

    def _unpacked(self, result: Any) -> tuple[list[Any], Any]:
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise UsageError(
                f"source {self.name!r}: read() must return (events, position), or None at the end; "
                f"it returned {result!r:.60}"
            )
        events, position = result
        if events is None:
            return [], position
        if isinstance(events, str | bytes | dict | Event) or not isinstance(events, Iterable):
            raise UsageError(
                f"source {self.name!r}: events must be a list or another iterable of events, "
                f"not {type(events).__name__}: {events!r:.60}"
            )
        return events if type(events) is list else list(events), position

    def _sift(self, items: list[Any]) -> tuple[list[Columns], list[Bad]]:
        """The good ones in columns, and the bad ones."""
        bad: list[Bad] = []
        return self._columns(items, bad) if items else [], bad

    def _columns(self, items: list[Any], bad: list[Bad]) -> list[Columns]:
        kinds = set(map(type, items))
        if kinds == {tuple}:
            try:
                keys = [key for key, _ in items]
            except ValueError:  # not all are pairs: below, one by one
                pass
            else:
                return self._column(self._event, keys, list(map(itemgetter(1), items)), 0, bad)
        if tuple not in kinds and not any(issubclass(kind, Event) for kind in kinds):
            try:
                return [Columns(self._event, None, self._values(items, kinds))]
            except HandlerError:
                return self._column(self._event, None, items, 0, bad)
        events = [self._event_of(i, item) for i, item in enumerate(items)]
        columns: list[Columns] = []
        start = 0
        for name, group in groupby(events, itemgetter(0)):
            _, group_keys, group_data = map(list, zip(*group, strict=True))
            columns += self._column(name, group_keys, group_data, start, bad)
            start += len(group_keys)
        return columns

    def _event_of(self, index: int, item: Any) -> tuple[str, Any, Any]:
        if isinstance(item, Event):
            if type(item.name) is not str or not item.name:
                raise UsageError(f"source {self.name!r}, event {index}: its name is {item.name!r:.60}")
            return item.name, item.key, item.data
        if type(item) is not tuple:
            return self._event, None, item
        if len(item) != 2:
            raise UsageError(
                f"source {self.name!r}, event {index}: a tuple is (key, data), this one has {len(item)} values; "
                "for data that is a tuple, return (None, data)"
            )
        return self._event, item[0], item[1]

    def _column(self, name: str, keys: list[Any] | None, data: list[Any], start: int, bad: list[Bad]) -> list[Columns]:
        """Events of one name. ``start``: the index of the first."""
        kinds = set() if keys is None else set(map(type, keys))
        if kinds == {type(None)}:
            keys = None
        if keys is None or (kinds == {str} and _are_unicode(keys, 0) and _are_short(keys)):
            try:
                return [Columns(name, keys, self._values(data))]
            except HandlerError:
                pass
        good_keys: list[str | None] = []
        good_data: list[Any] = []
        for i, (key, value) in enumerate(zip(keys or [None] * len(data), data, strict=True), start):
            kind = "bad-key"
            try:
                if key is not None:
                    check_key(key)
                kind = "bad-value"
                value = to_value(value, self._max_event)
            except (HandlerError, TypeError, ValueError) as e:
                raw = f"{value!r:.{RAW}}".encode(errors="backslashreplace")[:RAW]
                kind = e.code if isinstance(e, HandlerError) else kind
                bad.append(Bad(f"{self.name}[{i}]", name, raw, kind, f"source {self.name!r}, event {i}: {e}"))
                continue
            good_keys.append(key)
            good_data.append(value)
        return [Columns(name, None if keys is None else good_keys, good_data)] if good_data else []

    def _values(self, data: list[Any], kinds: set[type] | None = None) -> list[Any]:
        """A column as values; one kind of plain ones is checked as a whole. ``kinds``: their types, if known.

        Raises:
            HandlerError: one cannot travel.
        """
        kinds = kinds or set(map(type, data))
        if kinds == {str} and _are_unicode(data, self._max_event):
            return data
        if kinds == {int} and min(data) >= MIN_INT and max(data) <= MAX_INT:
            return data
        if kinds <= {float, bool, type(None)}:
            return data
        return [to_value(value, self._max_event) for value in data]


def _are_unicode(texts: list[str], limit: int) -> bool:
    """Whether all can be encoded and surely none has more than ``limit`` bytes (0: no limit). Looked at as one text,
    which costs a tenth of looking at each."""
    together = "".join(texts)
    width = 1
    if not together.isascii():
        width = 4
        try:
            together.encode()
        except UnicodeEncodeError:
            return False
    return not limit or len(together) * width <= limit or max(map(len, texts)) * width <= limit


# ------------------------------------------------------------------ --feed

_EXAMPLE: Final = (
    "examples: --feed line=book.txt, --feed order=orders.jsonl,key=id, --feed line=- (standard input), "
    "--feed order=-,jsonl"
)
_OPTION: Final = re.compile(r"[A-Za-z][A-Za-z_-]*(=.*)?", re.DOTALL)
_JSON_SUFFIXES: Final = (".jsonl", ".ndjson")


def parse_feed(text: str, max_event: int = MAX_EVENT) -> Source:
    """What ``--feed EVENT=SOURCE`` means: "-", or a file of JSON lines (.jsonl, .ndjson, or ``,jsonl``) or text.

    Options follow the last commas; a comma whose rest does not look like an option belongs to the file name, and so
    does all of it if such a file exists.

    Raises:
        UsageError: it cannot be understood.
    """
    event, equals, rest = text.partition("=")
    event = event.strip()
    if not equals or not event or not rest:
        raise UsageError(f"--feed {text!r}: must be EVENT=SOURCE; {_EXAMPLE}")
    place, kind, field = _options(text, rest)
    if place == "-":
        if kind is None:
            kind = "text" if field is None else "jsonl"
    elif kind is None:
        kind = "jsonl" if place.lower().endswith(_JSON_SUFFIXES) else "text"
    if kind == "text" and field is not None:
        how = "asked for as text" if place == "-" else "read as text"
        raise UsageError(
            f"--feed {text!r}: {place} is {how}, which has no field {field!r} for a key; "
            f"if it holds JSON lines: --feed {event}={place},jsonl,key={field}"
        )
    if place == "-":
        return Stdin(event, kind, max_event, field)
    if kind == "text":
        return TextFile(event, place, max_event)
    return JsonLinesFile(event, place, max_event, field)


def _options(text: str, rest: str) -> tuple[str, str | None, str | None]:
    """The file, its kind and its key field."""
    kind = field = None
    while "," in rest and not Path(rest).is_file():
        place, _, option = rest.rpartition(",")
        if not _OPTION.fullmatch(option):
            break
        word, equals, value = option.partition("=")
        if word == "key" and equals:
            if not value:
                raise UsageError(f"--feed {text!r}: key= names no field; {_EXAMPLE}")
            if field is not None:
                raise UsageError(f"--feed {text!r}: key= stands there twice; {_EXAMPLE}")
            field = value
        elif option in ("jsonl", "text"):
            if kind is not None:
                raise UsageError(f"--feed {text!r}: {option} and {kind}, which is it? {_EXAMPLE}")
            kind = option
        elif equals or place == "-":
            known = ("key=FIELD", "jsonl", "text")
            raise UsageError(f"--feed {text!r}: unknown option {option!r}; known are {', '.join(known)}; {_EXAMPLE}")
        else:
            break
        rest = place
    if not rest:
        raise UsageError(f"--feed {text!r}: no file is named; {_EXAMPLE}")
    return rest, kind, field
