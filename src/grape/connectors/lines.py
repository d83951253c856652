"""Whole lines to events: text and JSON, their keys and ids.

A line ends with "\\n" or "\\r\\n", neither is part of it; a "\\r" anywhere else is. Whole blocks are decoded at once;
lines are looked at one by one only where one of them is bad.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from grape.abc.source import Bad, Columns
from grape.connectors.picks import Pick, Unfit
from grape.errors import HandlerError, TooLarge, UsageError
from grape.model.depth import MAX_DEPTH
from grape.model.topology import Limits
from grape.model.values import MAX_INT, MIN_INT, to_value

RAW: Final = 1024
"""Bytes that are kept of a line over max-event."""
MAX_EVENT: Final = Limits().max_event
MAX_BAD: Final = 1_000
"""Bad lines of one chunk: so feeding can stop soon behind ``--max-dead``."""

BOM: Final = b"\xef\xbb\xbf"
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")

_pack: Final = msgspec.msgpack.Encoder().encode


class Parsed(NamedTuple):
    """``lines`` and ``size`` (bytes): how much of the block it is."""

    columns: list[Columns]
    bad: list[Bad]
    lines: int
    size: int


class BadLine(Exception):
    """What is wrong with a line."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


class Parser(ABC):
    """Makes events of one name out of whole lines.

    Args:
        key, id: what they are taken from.
    """

    def __init__(self, event: str, max_event: int, key: Pick | None = None, id: Pick | None = None) -> None:
        self.event = event
        self.max_event = max_event
        self.key = key
        self.id = id

    @abstractmethod
    def _together(self, block: bytes, lines: list[bytes] | None) -> list[Any] | None:
        """The data of all lines of a block, or None if any is bad. ``lines``: the block split, if it has been."""

    @abstractmethod
    def _single(self, line: bytes) -> tuple[Any, Any] | None:
        """One line's data, as it is read and as it travels; None: no event.

        Raises:
            BadLine: what is wrong with it.
        """

    @abstractmethod
    def is_whole(self, line: bytes) -> bool:
        """Whether nothing but a line end can follow what is a line so far."""

    def is_blank(self, added: bytes) -> bool:
        """Whether such bytes behind a line that is an event already change nothing."""
        return added in (b"\n", b"\r\n", b"\r")

    def parse(self, block: bytes, place: str, first: int) -> Parsed:
        """Events and bad lines of ``block``, which begins with line ``first`` (from 1).

        Raises:
            UsageError: it is text of another encoding.
        """
        if first != 1 or not block.startswith((BOM, *_UTF16)):
            return self._parse(block, place, first)
        if block.startswith(_UTF16):
            raise UsageError(
                f"{place}: begins as UTF-16 does, and text is read as UTF-8; convert it: "
                f"iconv -f UTF-16 -t UTF-8 {place} > FILE"
            )
        parsed = self._parse(block[len(BOM) :] or b"\n", place, first)  # with nothing behind it, a line that is empty
        return parsed._replace(size=min(len(block), parsed.size + len(BOM)))

    def _parse(self, block: bytes, place: str, first: int) -> Parsed:
        lines = None
        fits = len(block) <= self.max_event
        if not fits:
            lines = _split(block)
            fits = max(map(len, lines)) <= self.max_event
        if fits:
            data = self._together(block, lines)
            named = None if data is None else self._named(data)
            if data is not None and named is not None:
                count = block.count(b"\n") + (not block.endswith(b"\n"))
                numbers: Sequence[int] = range(first, first + count)
                if len(data) < count:  # blank lines are no events
                    numbers = [n for n, line in enumerate(lines or _split(block), first) if line.strip()]
                columns = Columns(self.event, named[0], data, numbers, named[1])
                return Parsed([columns] if data else [], [], count, len(block))
        return self._singly(block, place, first)

    def _named(self, data: list[Any]) -> tuple[list[str | None] | None, list[str] | None] | None:
        """Keys and ids, or None if one has none."""
        keys: list[Any] | None = None
        ids = None
        if self.key is not None and data:
            keys = self.key.column(data)
            if keys is None:
                return None
        if self.id is not None and data:
            ids = self.id.column(data)
            if ids is None:
                return None
        return keys, ids

    def _singly(self, block: bytes, place: str, first: int) -> Parsed:
        keys: list[str | None] = []
        ids: list[str] = []
        data: list[Any] = []
        numbers: list[int] = []
        bad: list[Bad] = []
        lines = _split(block)
        used = 0
        for number, whole in enumerate(lines, first):
            if len(bad) >= MAX_BAD:
                lines = lines[: number - first]
                break
            used += len(whole) + 1
            line = whole
            if line.endswith(b"\r") and (number - first < len(lines) - 1 or block.endswith(b"\n")):
                line = line[:-1]
            if len(line) > self.max_event:
                bad.append(self.over(f"{place}:{number}", line[:RAW], len(line)))
                continue
            try:
                event = self._single(line)
                if event is None:
                    continue
                key = None if self.key is None else self.key.one(event[0])
                own = None if self.id is None else self.id.one(event[0])
            except (BadLine, Unfit) as e:
                bad.append(Bad(f"{place}:{number}", self.event, line, e.kind, e.text))
                continue
            keys.append(key)
            if own is not None:
                ids.append(own)
            data.append(event[1])
            numbers.append(number)
        columns = Columns(self.event, None if self.key is None else keys, data, numbers, ids if self.id else None)
        return Parsed([columns] if data else [], bad, len(lines), min(used, len(block)))

    def over(self, place: str, raw: bytes, size: int | None) -> Bad:
        """A line over max-event."""
        what = "a line" if size is None else f"a line of {size} bytes"
        text = f"{what} is over max-event ({self.max_event} bytes); its first {len(raw)} bytes are kept"
        return Bad(place, self.event, raw, TooLarge.code, text)


def _split(block: bytes) -> list[bytes]:
    lines = block.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def _not_utf8(line: bytes) -> BadLine | None:
    """What to say of a line that is no text; None: it is."""
    try:
        line.decode()
    except UnicodeDecodeError as e:
        return BadLine("not-utf8", f"not UTF-8: {e.reason} at byte {e.start} of the line")
    return None


class TextLines(Parser):
    """A line's text is the data; empty lines too."""

    def _together(self, block: bytes, lines: list[bytes] | None) -> list[Any] | None:
        try:
            text = block.decode()
        except UnicodeDecodeError:
            return None
        if "\r" in text:
            text = text.replace("\r\n", "\n")
        data = text.split("\n")
        if not data[-1]:
            data.pop()
        return data

    def _single(self, line: bytes) -> tuple[Any, Any] | None:
        wrong = _not_utf8(line)
        if wrong is not None:
            raise wrong
        text = line.decode()
        return text, text

    def is_whole(self, line: bytes) -> bool:
        return False


_DIGITS: Final = bytes(48 if 48 <= i <= 57 else 32 for i in range(256))
_LONG: Final = b"0" * 19
"""A line without 19 digits in a row holds no integer beyond 64 bits."""
_SHORT: Final = 2 * MAX_DEPTH
"""A line of so many bytes is not nested too deep."""
_GROWTH: Final = 4
"""No JSON becomes more than so many times larger as msgpack (worst: 1e9, three bytes, becomes nine)."""
_ESCAPES: Final = re.compile(rb"(?:\\[^u])|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u[dD][89a-fA-F]..)")


class JsonLines(Parser):
    """A line's JSON value is the data; blank lines are none."""

    def __init__(self, event: str, max_event: int, key: Pick | None = None, id: Pick | None = None) -> None:
        super().__init__(event, max_event, key, id)
        self._decode = msgspec.json.Decoder().decode

    def _together(self, block: bytes, lines: list[bytes] | None) -> list[Any] | None:
        if lines is None:
            lines = _split(block)
        if len(block) * _GROWTH > self.max_event and max(map(len, lines)) * _GROWTH > self.max_event:
            return None
        if max(map(len, lines)) > _SHORT and any(map(_may_be_deep, lines)):
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
        return values

    def _decoded(self, lines: list[bytes]) -> list[Any]:
        # Not decode_lines: it takes a value over two lines, and two values in one.
        try:
            return list(map(self._decode, lines))
        except msgspec.DecodeError:
            full = [line for line in lines if line.strip()]
            if len(full) == len(lines):
                raise
            return list(map(self._decode, full))

    def _single(self, line: bytes) -> tuple[Any, Any] | None:
        if not line.strip():
            return None
        try:
            value = self._decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:  # which of them it is for bad UTF-8 depends on msgspec
            raise _not_utf8(line) or BadLine("bad-json", _lone_surrogate(line) or f"not JSON: {e}") from None
        except RecursionError:
            raise BadLine("bad-json", "nested too deeply") from None
        try:
            return value, to_value(value, self.max_event)
        except HandlerError as e:
            raise BadLine(e.code, f"{e}") from None

    def is_blank(self, added: bytes) -> bool:
        return not added.strip()

    def is_whole(self, line: bytes) -> bool:
        line = line.strip()
        if not line.endswith((b"}", b"]", b'"', b"true", b"false", b"null")):  # a number may go on
            return False
        try:
            self._decode(line)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return False
        return True


def _may_be_deep(line: bytes) -> bool:
    return len(line) > _SHORT and line.count(b"[") + line.count(b"{") > MAX_DEPTH


def _lone_surrogate(line: bytes) -> str:
    """What to say of JSON that is right but for half of a surrogate pair, which stands for no character; else ""."""
    for found in _ESCAPES.finditer(line):
        if found[1] is not None:
            try:
                json.loads(line)
            except (ValueError, RecursionError):
                return ""
            escape = found[1].decode(errors="backslashreplace")
            return f"a lone surrogate ({escape}) at byte {found.start()} of the line: half of a pair is no character"
    return ""
