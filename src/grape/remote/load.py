"""Load for a server: requests as fast as it answers them (closed loop), or at a rate (open loop), and their latencies.

At a rate every request has a moment at which it should go out, whether or not the ones before it were answered; it is
measured from that moment. So a server that stands still for a second shows in every request of that second, not in one
("coordinated omission", Gil Tene).
"""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

_STEPS: Final = 64
"""Buckets in which latencies double."""
_WAIT: Final = 60.0


class Histogram(Struct):
    """Latencies in seconds, each known to about one percent."""

    counts: dict[int, int] = msgspec.field(default_factory=dict)

    def add(self, seconds: float) -> None:
        bucket = round(math.log2(max(seconds, 1e-7)) * _STEPS)
        self.counts[bucket] = self.counts.get(bucket, 0) + 1

    def merge(self, other: Histogram) -> None:
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def quantile(self, share: float) -> float:
        """0.0 if nothing was counted."""
        left = math.ceil(share * self.total)
        for bucket in sorted(self.counts):
            left -= self.counts[bucket]
            if left <= 0:
                return float(2 ** (bucket / _STEPS))
        return 0.0


class Load(Struct, frozen=True):
    """What is to be sent.

    Args:
        url: of the server. path: of the request, with its query. ``{n}`` in it, and in ``body``, is the number of the
            request, ``{k}`` that number modulo ``keys``.
        headers: beside those of every request.
        connections: open at once. rate: requests a second over all of them, 0: as they are answered.
        seconds, total: whichever is over first; 0: no bound of that kind.
        offset, step: numbers of the requests are offset, offset + step, ..
    """

    url: str
    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    connections: int = 16
    rate: float = 0.0
    seconds: float = 10.0
    total: int = 0
    keys: int = 1_000
    offset: int = 0
    step: int = 1

    def numbers(self) -> Iterator[int]:
        number, left = self.offset, self.total
        while not self.total or left > 0:
            yield number
            number, left = number + self.step, left - 1


class Outcome(Struct):
    """Of a load. ``statuses``: of answers. ``errors``: what kept others from having one. ``late``: requests that went
    out after their moment, as all connections were busy."""

    seconds: float = 0.0
    latencies: Histogram = msgspec.field(default_factory=Histogram)
    statuses: dict[str, int] = {}
    errors: dict[str, int] = {}
    late: int = 0

    def merge(self, other: Outcome) -> None:
        self.seconds = max(self.seconds, other.seconds)
        self.latencies.merge(other.latencies)
        self.statuses = dict(Counter(self.statuses) + Counter(other.statuses))
        self.errors = dict(Counter(self.errors) + Counter(other.errors))
        self.late += other.late


def due(rate: float, began: float, index: int) -> float | None:
    """When request ``index`` should go out; None: as soon as a connection is free."""
    return began + index / rate if rate else None


async def run(load: Load) -> Outcome:
    """Send it, and wait for all answers."""
    return await _Running(load).run()


class _Running:
    def __init__(self, load: Load) -> None:
        self._load = load
        self._numbers = load.numbers()
        self._sent = 0
        self._outcome = Outcome()
        split = urlsplit(load.url)
        self._host, self._tls = split.hostname or "127.0.0.1", split.scheme == "https"
        self._port = split.port or (443 if self._tls else 80)
        lines = [f"host: {split.netloc}", *(f"{name}: {value}" for name, value in load.headers)]
        self._head = "".join(f"{line}\r\n" for line in lines)
        self._began = 0.0

    async def run(self) -> Outcome:
        self._began = time.monotonic()
        await asyncio.gather(*(self._connection() for _ in range(self._load.connections)))
        self._outcome.seconds = time.monotonic() - self._began
        return self._outcome

    def _next(self) -> tuple[int, float | None] | None:
        """(number, moment) of the next request; None: there is none."""
        moment = due(self._load.rate, self._began, self._sent)
        now = time.monotonic() if moment is None else max(moment, time.monotonic())
        if self._load.seconds and now - self._began >= self._load.seconds:
            return None
        number = next(self._numbers, None)
        if number is None:
            return None
        self._sent += 1
        return number, moment

    async def _connection(self) -> None:
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while (found := self._next()) is not None:
            number, moment = found
            if moment is not None:
                wait = moment - time.monotonic()
                if wait > 0:
                    await asyncio.sleep(wait)
                elif wait < -0.001:
                    self._outcome.late += 1
            began = moment if moment is not None else time.monotonic()
            try:
                if streams is None:
                    context = ssl.create_default_context() if self._tls else None
                    streams = await asyncio.open_connection(self._host, self._port, ssl=context)
                async with asyncio.timeout(_WAIT):
                    status, stays = await self._ask(*streams, number)
            except (OSError, TimeoutError, ValueError, EOFError) as e:
                what = "no answer in time" if isinstance(e, TimeoutError) else str(e) or type(e).__name__
                self._outcome.errors[what] = self._outcome.errors.get(what, 0) + 1
                _close(streams)
                streams = None
                await asyncio.sleep(0.05)
                continue
            self._outcome.latencies.add(time.monotonic() - began)
            self._outcome.statuses[status] = self._outcome.statuses.get(status, 0) + 1
            if not stays:
                _close(streams)
                streams = None
        _close(streams)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> tuple[str, bool]:
        """(status, whether the connection stays)."""
        load = self._load
        path, body = _filled(load.path, number, load.keys), load.body
        if b"{" in body:
            body = _filled(body.decode(), number, load.keys).encode()
        writer.write(f"POST {path} HTTP/1.1\r\n{self._head}content-length: {len(body)}\r\n\r\n".encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("transfer-encoding", "") == "chunked":
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                await reader.readexactly(size + 2)
            await reader.readuntil(b"\r\n")
        else:
            await reader.readexactly(int(headers.get("content-length", "0")))
        return first.split(" ")[1], headers.get("connection", "").lower() != "close"


def _filled(text: str, number: int, keys: int) -> str:
    return text.replace("{n}", str(number)).replace("{k}", str(number % keys))


def _close(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None) -> None:
    if streams is not None:
        streams[1].close()
