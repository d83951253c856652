"""The ways to those who take records: sockets, standard error, HTTP. Each has a thread of its own, and may wait."""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import socket
from collections.abc import Sequence
from typing import Final

from grape.logs import journald, otlp, syslog
from grape.logs.record import Entry, line_of
from grape.logs.sending import Refused, Wire
from grape.logs.syslog import Address
from grape.traces.posting import LATER, post
from grape.traces.settings import Settings

_TIMEOUT: Final = 5.0
"""Seconds in which one message has to be gone."""
_SEND_BUFFER: Final = 1 << 20


class Console(Wire):
    """Standard error."""

    def __init__(self, *, is_json: bool, descriptor: int = 2) -> None:
        self._is_json = is_json
        self._descriptor = descriptor

    def send(self, entries: Sequence[Entry]) -> int:
        lines = [line_of(entry.record, is_json=self._is_json) for entry in entries]
        view = memoryview("".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
        while view:
            view = view[os.write(self._descriptor, view) :]
        return len(entries)

    def close(self) -> None:
        pass


class _Socket(Wire):
    """Connects when there is something to send."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def connect(self) -> socket.socket:
        """
        Raises:
            OSError: nobody is there.
        """
        raise NotImplementedError

    def message(self, entry: Entry) -> bytes:
        raise NotImplementedError

    def send(self, entries: Sequence[Entry]) -> int:
        found = self._socket
        if found is None:
            found = self._socket = self.connect()
            found.settimeout(_TIMEOUT)
        sent = 0
        try:
            for entry in entries:
                self.put(found, self.message(entry))
                sent += 1
        except OSError:
            self.close()
            if not sent:
                raise
        return sent

    def put(self, found: socket.socket, message: bytes) -> None:
        found.send(message)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Syslog(_Socket):
    def __init__(self, address: Address) -> None:
        super().__init__()
        self._address = address
        self._host = socket.gethostname()
        self._is_stream = False

    def connect(self) -> socket.socket:
        kind, place = self._address
        self._is_stream = kind == "tcp"
        if isinstance(place, str):
            return self._local(place)
        if kind == "tcp":
            return socket.create_connection(place, _TIMEOUT)
        family, *_, address = socket.getaddrinfo(*place, type=socket.SOCK_DGRAM)[0]
        return _connected(socket.socket(family, socket.SOCK_DGRAM), address)

    def _local(self, path: str) -> socket.socket:
        try:
            return _connected(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), path)
        except OSError as e:
            if not isinstance(e, ConnectionError | FileNotFoundError | PermissionError):  # EPROTOTYPE: it is a stream
                self._is_stream = True
                return _connected(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), path)
            raise

    def message(self, entry: Entry) -> bytes:
        message = syslog.message_of(entry.record, self._host)
        if self._address.kind == "tcp":
            return syslog.framed(message)
        return message + b"\n" if self._is_stream else message

    def put(self, found: socket.socket, message: bytes) -> None:
        if not self._is_stream:
            found.send(message)
            return
        if select.select([found], [], [], 0)[0] and not found.recv(1 << 12):  # else this one would be lost
            raise ConnectionResetError("it has closed the connection")
        found.sendall(message)


class Journal(_Socket):
    def __init__(self, path: str = journald.SOCKET) -> None:
        super().__init__()
        self._path = path

    def connect(self) -> socket.socket:
        found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with contextlib.suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        return _connected(found, self._path)

    def message(self, entry: Entry) -> bytes:
        return journald.message_of(entry.record)


class Collector(Wire):
    """Of OpenTelemetry, over HTTP."""

    def __init__(self, settings: Settings, version: str) -> None:
        self._settings = settings
        self._version = version

    def send(self, entries: Sequence[Entry]) -> int:
        try:
            status, _ = post(self._settings, otlp.request_of(entries, self._settings.resource, self._version))
        except http.client.HTTPException as e:
            raise OSError(str(e) or type(e).__name__) from None
        if status in LATER:
            raise OSError(f"it answers {status}")
        if not 200 <= status < 300:
            raise Refused(f"it answers {status}")
        return len(entries)

    def close(self) -> None:
        pass


def _connected(found: socket.socket, place: str | tuple[object, ...]) -> socket.socket:
    try:
        found.settimeout(_TIMEOUT)
        found.connect(place)
    except BaseException:
        found.close()
        raise
    return found
