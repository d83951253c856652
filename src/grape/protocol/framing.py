"""Frames on the socket: a length (u32, little-endian) and one msgpack message."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final, Generic, TypeVar

import msgspec

from grape.errors import ProtocolError
from grape.protocol.base import FromSpeaker, ToSpeaker
from grape.protocol.door import APPEND_TAG, BATCHES_TAG, Append, Batches, FromClient, FromEngine
from grape.protocol.messages import FromWorker, ToWorker

MAX_FRAME: Final = 96 << 20
"""Largest frame in bytes: a result of ``max-result`` (64 MB) and what describes it."""

SEND_BUFFER: Final = 4 << 20
"""Bytes of a socket at the door, as far as the system allows: a frame goes out, as a rule, without waiting for whoever
reads it. Without it the two would take turns on the processor, some hundred kilobytes each."""
_SMALL: Final = 4096
_WORTH_A_WRITE: Final = 1 << 15
_SCRATCH: Final = 1 << 18
_AT_ONCE: Final = 1 << 19
"""Bytes of memory that a large frame gets at least, as it begins."""
_GROWS: Final = 8
"""How many times as much as has come it gets, then and whenever it is full."""
LENGTH: Final = struct.Struct("<I")

_ARRAY_MARKS: Final = bytes(0x90 <= mark <= 0x9F or mark in (0xDC, 0xDD) for mark in range(256))
"""What the first byte of a message can be: all are msgpack arrays."""

_encoder = msgspec.msgpack.Encoder()
T = TypeVar("T")

Piece = bytes | bytearray | memoryview
"""Of a frame."""


def frame(message: ToWorker | FromWorker | ToSpeaker | FromSpeaker | FromClient | FromEngine) -> bytearray:
    """The message as bytes for the socket.

    Raises:
        ProtocolError: it is larger than `MAX_FRAME`.
    """
    buffer = bytearray(LENGTH.size)
    _encoder.encode_into(message, buffer, LENGTH.size)
    size = len(buffer) - LENGTH.size
    if size > MAX_FRAME:
        raise ProtocolError(f"a frame of {size} bytes is over the limit of {MAX_FRAME}")
    LENGTH.pack_into(buffer, 0, size)
    return buffer


class FrameReader(Generic[T]):
    """Bytes in, messages out. Never allocates for a length that is not allowed.

    Raises:
        ProtocolError: a frame is too long, or is no message of this side; from `feed` if nothing good stands before
            it, else from the next `check`: the last words of a worker may tell what it died of.
    """

    def __init__(self, kind: type[T] | object, limit: int = MAX_FRAME) -> None:
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._limit = limit
        self._chunks: list[bytes | bytearray] = []
        self._have = 0
        self._need = LENGTH.size
        self._error: ProtocolError | None = None

    def check(self) -> None:
        """Raise what stood behind the last messages."""
        if self._error is not None:
            raise self._error

    def feed(self, data: bytes) -> list[T]:
        """Take what the socket gave; return the messages that are complete now, in order."""
        self.check()
        if len(data) >= _SMALL:
            self._chunks.append(data)
        elif self._chunks and isinstance(self._chunks[-1], bytearray):
            self._chunks[-1] += data  # a frame that drips in must not cost an object a byte
        else:
            self._chunks.append(bytearray(data))
        self._have += len(data)
        if self._have < self._need:
            return []
        buffer = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        view, at, end = memoryview(buffer), 0, len(buffer)
        out: list[T] = []
        try:
            at = self._parse(view, at, end, out)
        except ProtocolError as e:
            if not out:
                raise
            self._error = e
            return out
        self._chunks = [bytes(view[at:])] if at < end else []
        self._have = end - at
        return out

    def _parse(self, view: memoryview, at: int, end: int, out: list[T]) -> int:
        """Put the whole messages from ``at`` on into ``out``; returns where the rest begins."""
        while True:
            if end - at < LENGTH.size:
                self._need = LENGTH.size
                return at
            size = checked_size(view, at, end, self._limit)
            if end - at < LENGTH.size + size:
                self._need = LENGTH.size + size
                return at
            start = at + LENGTH.size
            try:
                out.append(self._decode(view[start : start + size]))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
                raise ProtocolError(f"a frame of {size} bytes is not a message: {e}") from None
            at = start + size


class FrameBuffer(Generic[T]):
    """As `FrameReader`, for whoever reads into memory that is given: a large frame comes to lie where it stays, and a
    `memoryview` in it is never copied. It takes memory as it comes, whatever length it says it has."""

    def __init__(self, kind: type[T] | object, limit: int = MAX_FRAME) -> None:
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._limit = limit
        self._small = bytearray(_SCRATCH)
        self._have = 0
        self._large: bytearray | None = None
        self._size = 0
        """Of the large one, with its length."""
        self._error: ProtocolError | None = None

    def check(self) -> None:
        """Raise what stood behind the last messages."""
        if self._error is not None:
            raise self._error

    def buffer(self) -> memoryview:
        """Where what comes next is to be put."""
        return memoryview(self._small if self._large is None else self._large)[self._have :]

    def filled(self, count: int) -> list[T]:
        """So many bytes have been put there; returns the messages that are complete now, in order.

        Raises:
            ProtocolError: as `FrameReader.feed`.
        """
        self.check()
        self._have += count
        out: list[T] = []
        try:
            if self._large is None:
                self._take_small(out)
            elif self._have == self._size:
                large, self._large, self._have = self._large, None, 0
                out.append(self._message(memoryview(large)[LENGTH.size :]))
            elif self._have == len(self._large):
                self._begin(memoryview(self._large))
        except ProtocolError as e:
            if not out:
                raise
            self._error = e
        return out

    def feed(self, data: bytes) -> list[T]:
        """`filled`, by whoever has the bytes already."""
        out: list[T] = []
        left = memoryview(data)
        while left:
            place = self.buffer()
            size = min(len(place), len(left))
            place[:size] = left[:size]
            out += self.filled(size)
            left = left[size:]
        return out

    def _take_small(self, out: list[T]) -> None:
        view, at, end = memoryview(self._small), 0, self._have
        while end - at >= LENGTH.size:
            size = checked_size(view, at, end, self._limit)
            begin, after = at + LENGTH.size, at + LENGTH.size + size
            if after > end:
                if LENGTH.size + size > _SCRATCH:
                    self._size = LENGTH.size + size
                    self._begin(view[at:end])
                    return
                break
            at = after
            out.append(self._message(bytes(view[begin:after])))
        self._small[: end - at] = bytes(view[at:end])
        self._have = end - at

    def _begin(self, come: memoryview) -> None:
        """A large one, of which this has come; the rest of what it says it has may never."""
        self._large = bytearray(min(self._size, max(_AT_ONCE, _GROWS * len(come))))
        self._large[: len(come)] = come
        self._have = len(come)

    def _message(self, packed: bytes | memoryview) -> T:
        try:
            message: T = self._decode(packed)
            return message
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
            raise ProtocolError(f"a frame of {len(packed)} bytes is not a message: {e}") from None


def checked_size(view: memoryview, at: int, end: int, limit: int) -> int:
    """Of the message whose frame begins at ``at``; what has come of it ends at ``end``.

    Raises:
        ProtocolError: it is too large, or none.
    """
    size: int = LENGTH.unpack_from(view, at)[0]
    if size > limit:
        raise ProtocolError(f"a frame says it has {size} bytes; the limit is {limit}")
    if end - at > LENGTH.size and not _ARRAY_MARKS[view[at + LENGTH.size]]:
        # Found at once, not when as many bytes have come as stray ones announce.
        raise ProtocolError(f"a frame of {size} bytes is not a message: it begins with {view[at + 4]:#04x}")
    return size


def append_frame(append: Append) -> list[Piece]:
    """The same bytes as `frame`, in pieces, so that no body has to be copied.

    Raises:
        ProtocolError: it is larger than `MAX_FRAME`.
    """
    pieces = _Pieces()
    pieces.array(9 + 1, APPEND_TAG, append.stream, append.number, append.position)
    pieces.array(len(append.parts))
    for part in append.parts:
        pieces.array(5, part.name, part.partition, part.events)
        pieces.body(part.body)
        pieces.values(part.contexts)
    pieces.values(append.bad, append.ids, append.size, append.more, append.at_end)
    return pieces.framed()


def batches_frame(message: Batches) -> list[Piece]:
    """As `append_frame`.

    Raises:
        ProtocolError: it is larger than `MAX_FRAME`.
    """
    pieces = _Pieces()
    pieces.array(3 + 1, BATCHES_TAG, message.reader, message.number)
    pieces.array(len(message.items))
    for item in message.items:
        pieces.array(6, item.number, item.position)
        pieces.body(item.batch)
        pieces.values(item.events, item.first, item.late)
    return pieces.framed()


class _Pieces:
    """A message that is written field by field; its bodies stay where they are."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._fields = b""

    def array(self, length: int, *begin: Any) -> None:
        """One of so many fields begins, with these."""
        self._fields += bytes((0x90 | length,)) if length < 16 else _marked(length, b"\xdc\xdc\xdd")
        self.values(*begin)

    def values(self, *fields: Any) -> None:
        self._fields += b"".join(map(_encoder.encode, fields))

    def body(self, body: bytes | memoryview) -> None:
        self._fields += _marked(len(body), b"\xc4\xc5\xc6")
        self._pieces += [self._fields, body]
        self._fields = b""

    def framed(self) -> list[Piece]:
        """
        Raises:
            ProtocolError: it is larger than `MAX_FRAME`.
        """
        pieces = [*self._pieces, self._fields]
        size = sum(map(len, pieces))
        if size > MAX_FRAME:
            raise ProtocolError(f"a frame of {size} bytes is over the limit of {MAX_FRAME}")
        return [LENGTH.pack(size), *pieces]


def joined(pieces: list[Piece]) -> Iterator[Piece]:
    """The same bytes in fewer pieces; no large one is copied."""
    small: list[Piece] = []
    for piece in pieces:
        if len(piece) < _WORTH_A_WRITE:
            small.append(piece)
            continue
        if small:
            yield b"".join(small)
            small = []
        yield piece
    if small:
        yield b"".join(small)


def _marked(length: int, marks: bytes) -> bytes:
    """A length in the fewest bytes; ``marks``: of one of 1, 2 or 4 bytes (of an array: there is none of 1)."""
    if length < 1 << 8 and marks[0] != marks[1]:
        return marks[:1] + length.to_bytes(1, "big")
    if length < 1 << 16:
        return marks[1:2] + length.to_bytes(2, "big")
    return marks[2:] + length.to_bytes(4, "big")


def worker_frames() -> FrameReader[FromWorker]:
    """The engine's side: reads what workers send."""
    return FrameReader(FromWorker)


def engine_frames() -> FrameReader[ToWorker]:
    """The worker's side: reads what the engine sends."""
    return FrameReader(ToWorker)


def speaker_frames() -> FrameReader[FromSpeaker]:
    """What a base speaker sends."""
    return FrameReader(FromSpeaker)


def client_frames() -> FrameBuffer[FromClient]:
    """The engine's side of the door: reads what clients send."""
    return FrameBuffer(FromClient)


def door_frames() -> FrameBuffer[FromEngine]:
    """A client's side of the door: reads what the engine sends."""
    return FrameBuffer(FromEngine)
