"""Server-sent events, as they come in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from grape.authoring.emitter import Reply
from grape.errors import ProtocolError
from grape.remote.asked import Call, Heard
from grape.remote.http import sent_problem

MAX_LINE: Final = 64 << 20


class Events:
    """The replies to a call out of the body that brings them."""

    def __init__(self, call: Call, url: str) -> None:
        self._call = call
        self._url = url
        self._rest = bytearray()
        self._kind = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> Iterator[Reply | Heard]:
        """What has come with it as a whole.

        Raises:
            ProtocolError: it cannot be read.
        """
        self._rest += piece
        if b"\n" not in piece:
            if len(self._rest) > MAX_LINE:
                raise ProtocolError(f"a reply of over {MAX_LINE:,} bytes")
            return
        *lines, rest = self._rest.split(b"\n")
        self._rest = rest
        for line in lines:
            made = self._line(bytes(line.removesuffix(b"\r")))
            if made is not None:
                yield made

    def _line(self, line: bytes) -> Reply | Heard | None:
        if not line:
            kind, data, self._kind, self._data = self._kind, self._data, b"", []
            return self._event(kind, b"\n".join(data)) if kind or data else None
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._kind = value
        elif name == b"data":
            self._data.append(value)
        return None

    def _event(self, kind: bytes, data: bytes) -> Reply | Heard | None:
        if kind == b"error":
            return sent_problem(self._call, self._url, data)
        if kind not in (b"part", b"final"):
            return None  # of a later version
        try:
            return Reply(msgspec.json.decode(data), kind == b"final")
        except (msgspec.MsgspecError, RecursionError) as e:
            raise ProtocolError(f"a reply that is no JSON: {e}") from None
