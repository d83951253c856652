"""Frames on the socket: a length (u32, little-endian) and one msgpack message."""

from __future__ import annotations

import struct
from typing import Final, Generic, TypeVar

import msgspec

from grape.errors import ProtocolError
from grape.protocol.base import FromSpeaker, ToSpeaker
from grape.protocol.door import FromClient, FromEngine
from grape.protocol.messages import FromWorker, ToWorker

MAX_FRAME: Final = 96 << 20
"""Largest frame in bytes: a result of ``max-result`` (64 MB) and what describes it."""

_SMALL: Final = 4096
LENGTH: Final = struct.Struct("<I")

_ARRAY_MARKS: Final = bytes(0x90 <= mark <= 0x9F or mark in (0xDC, 0xDD) for mark in range(256))
"""What the first byte of a message can be: all are msgpack arrays."""

_encoder = msgspec.msgpack.Encoder()
T = TypeVar("T")


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
            size = LENGTH.unpack_from(view, at)[0]
            if size > self._limit:
                raise ProtocolError(f"a frame says it has {size} bytes; the limit is {self._limit}")
            if end - at > LENGTH.size and not _ARRAY_MARKS[view[at + LENGTH.size]]:
                # Found at once, not when as many bytes have come as stray ones announce.
                raise ProtocolError(f"a frame of {size} bytes is not a message: it begins with {view[at + 4]:#04x}")
            if end - at < LENGTH.size + size:
                self._need = LENGTH.size + size
                return at
            start = at + LENGTH.size
            try:
                out.append(self._decode(view[start : start + size]))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
                raise ProtocolError(f"a frame of {size} bytes is not a message: {e}") from None
            at = start + size


def worker_frames() -> FrameReader[FromWorker]:
    """The engine's side: reads what workers send."""
    return FrameReader(FromWorker)


def engine_frames() -> FrameReader[ToWorker]:
    """The worker's side: reads what the engine sends."""
    return FrameReader(ToWorker)


def speaker_frames() -> FrameReader[FromSpeaker]:
    """What a base speaker sends."""
    return FrameReader(FromSpeaker)


def client_frames() -> FrameReader[FromClient]:
    """The engine's side of the door: reads what clients send."""
    return FrameReader(FromClient)


def door_frames() -> FrameReader[FromEngine]:
    """A client's side of the door: reads what the engine sends."""
    return FrameReader(FromEngine)
