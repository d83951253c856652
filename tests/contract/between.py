"""What lies between a program and a server, and loses what goes through it."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Final, Literal

from grape.errors import StorageFailed
from grape.storage.objects import Objects

Fault = Literal["", "unheard", "unanswered", "cut"] | bytes
"""What becomes of a request: it is not passed on; it is, and its answer is not; half of its answer is; or this is what
is answered, without asking."""
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CONNECTION: Final = re.compile(rb"\r\nconnection:[^\r]*", re.IGNORECASE)


class Between:
    """
    Attributes:
        faults: is asked for each request, by method and target.
    """

    def __init__(self, port: int) -> None:
        self._behind = port
        self.port = 0
        self.asked: list[str] = []
        self.faults: Callable[[str, str], Fault] = lambda method, target: ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Between]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request of each connection."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            body = await reader.readexactly(int(length[1])) if length else b""
            method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            self.asked.append(method)
            fault = self.faults(method, target)
            if isinstance(fault, bytes):
                writer.write(fault)
            elif fault != "unheard":
                answer = await self._passed_on(head, body)
                if fault != "unanswered":
                    writer.write(answer[: len(answer) // 2] if fault == "cut" else answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    async def _passed_on(self, head: bytes, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._behind)
        writer.write(_CONNECTION.sub(b"", head)[:-2] + b"Connection: close\r\n\r\n" + body)
        answer = await reader.read(-1)
        writer.close()
        return answer


def answered(status: int, code: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code} it is</Message></Error>".encode()
    return b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status, len(body), body)


def first(count: int, fault: Fault, *methods: str) -> Callable[[str, str], Fault]:
    """Becomes of so many requests by these methods."""
    left = [count]

    def found(method: str, target: str) -> Fault:
        if method not in methods or left[0] == 0:
            return ""
        left[0] -= 1
        return fault

    return found


async def count_through(between: Between, objects: Objects, most: int) -> None:
    """Two at a time count so many, and answers are lost: what is told as done is done once, and what is not known is
    told so."""
    random = Random(5)

    def fault(method: str, target: str) -> Fault:
        return random.choice(["unheard", "unanswered", *[""] * 6]) if method == "PUT" else ""

    between.faults = fault
    done, unknown = [], []

    async def count(mine: bytes) -> None:
        try:
            await objects.swap("count", lambda there: (there or b"") + mine)
            done.append(mine)
        except StorageFailed:
            unknown.append(mine)

    for i in range(0, most, 2):
        await asyncio.gather(count(b"%d," % i), count(b"%d," % (i + 1)))
    found = await objects.get("count")
    assert found is not None
    counted = found.data.split(b",")[:-1]
    assert len(counted) == len(set(counted))
    assert {b"%b," % each for each in counted} - set(unknown) == set(done)
    assert len(done) > most // 2
