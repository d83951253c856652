"""Say to a server, over HTTP, what it should not be told; see that it lives, and never says that the fault is its own.

    python -m tests.fuzz.http [SECONDS] [--seed N]

Raw sockets: requests that are cut, flipped, glued and lied about, bodies that are no JSON, msgpack, lines, gzip or
zstd, or nested deeply, WebSocket frames of any kind. What is well formed is answered all the while, and at the end
gateway and engine are the same processes as at the beginning.
"""

from __future__ import annotations

import collections
import gzip
import json
import os
import random
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fuzz.command import fuzz

from serving import COUNT, Server, write_app  # type: ignore[import-not-found]

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

THREADS = 12
MOST_MEMORY = 1 << 30
"""Bytes of a gateway."""
CODE = (
    ("VERSION = '1'\n" + COUNT)
    .replace("        self.reply([", "        self.emit('out', event.data)\n        self.reply([")
    .replace("Count(), retries=0)", 'Count(), retries=0, emits="out")\n    t.add_output("out")')
)

METHODS = [
    "GET",
    "POST",
    "POST",
    "POST",
    "PUT",
    "HEAD",
    "DELETE",
    "OPTIONS",
    "CONNECT",
    "TRACE",
    "PRI",
    "get",
    "\x00",
    "POST POST",
]
PATHS = [
    "/", "/healthz", "/metrics", "/openapi.json", "/apps", "/apps/count", "/apps/count/ws", "/apps/count/events",
    "/apps/count/events/add", "/apps/count/events/", "/apps//events/add", "/apps/count/events/add/more",
    "/apps/count/answers/x", "/apps/count/outputs/out", "/apps/count/outputs/out/peek", "/apps/count/outputs/out/pop",
    "/apps/count/outputs/out/ack", "/apps/count/outputs/out/nack", "/apps/count/outputs/out/clear",
    "/apps/count/outputs/none/peek", "/apps/none/events/add", "/apps/%00/events/add", "/apps/%ff/events/%ff",
    "/apps/../../etc/passwd", "/dashboard/../process.py", "/dashboard/%2e%2e/process.py", "http://localhost/healthz",
    "//", "*", "/\x01", "/apps/count/letters", "/apps/count/graph", "/apps/count/state", "/apps/count/readyz",
    "/apps/count/events/add%0d%0ax: y", "?", "/" + "a/" * 3000,
]  # fmt: skip
QUERIES = [
    "", "", "?key=a", "?key=", "?key=%ff", "?key=a&key=b", "?wait=0.2", "?wait=", "?wait=nan", "?wait=-1",
    "?wait=1e999",
    "?deadline=0", "?deadline=nan", "?deadline=-1", "?deadline=1e300", "?key-field=k", "?key-field=", "?&&==&", "?%",
    "?after=x&limit=-1", "?limit=99999999999999999999", "?version=%00", "?key=" + "k" * 20_000, "?a=" + "%41" * 5000,
]  # fmt: skip
MEDIA = [
    "application/json", "application/json", "application/msgpack", "application/x-ndjson", "text/plain",
    "application/octet-stream", "multipart/form-data", "application/json; charset=utf-16", ";", "", "\xff", "a" * 5000,
]  # fmt: skip
HEADERS = [
    ("idempotency-key", "a"), ("idempotency-key", ""), ("idempotency-key", "\xff" * 200),
    ("idempotency-key", "x" * 300),
    ("prefer", "respond-async"), ("accept", "text/event-stream"), ("accept", "application/msgpack"), ("accept", "\xff"),
    ("accept-encoding", "gzip, zstd"), ("accept-encoding", ",;q=;,"), ("authorization", "Bearer x"),
    ("authorization", "\xff"),
    ("origin", "http://localhost"), ("origin", "null"), ("origin", "http://elsewhere"), ("host", "elsewhere"),
    ("host", ""),
    ("last-event-id", "kZ"), ("last-event-id", "gaH_"), ("expect", "100-continue"), ("upgrade", "websocket"),
    ("connection", "upgrade"), ("connection", "close"), ("transfer-encoding", "chunked"),
    ("transfer-encoding", "gzip, chunked"),
    ("transfer-encoding", "identity"), ("content-length", "0"), ("content-length", "-1"),
    ("content-length", "99999999999"),
    ("content-length", "5, 5"), ("content-encoding", "gzip"), ("content-encoding", "zstd"), ("content-encoding", "br"),
    ("x", "y" * 70_000), ("x\x00", "y"), ("x y", "z"), ("sec-websocket-version", "13"),
    ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="), ("if-none-match", '"' * 100), ("cookie", "a=b"),
]  # fmt: skip


class Attacker:
    """What is said. All of it by chance."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def request(self) -> bytes:
        """One or several, whole or not."""
        rng = self._rng
        said = b"".join(self._one() for _ in range(rng.choice((1, 1, 1, 2, 5))))
        if rng.random() < 0.15:
            said = self._spoiled(said)
        return said

    def _one(self) -> bytes:
        rng = self._rng
        if rng.random() < 0.1:
            return self._talk()
        body = self._body()
        method, path, query = (
            rng.choice(METHODS[:4] if rng.random() < 0.9 else METHODS),
            rng.choice(PATHS),
            rng.choice(QUERIES),
        )
        if rng.random() < 0.5:
            path = rng.choice(("/apps/count/events/add", "/apps/count/events"))
        headers = [("host", "localhost"), ("content-type", rng.choice(MEDIA))]
        headers += rng.sample(HEADERS, rng.choice((0, 0, 0, 1, 1, 2)))
        head = f"{method} {path}{query} HTTP/{rng.choice(('1.1',) * 20 + ('1.0', '2.0', '9', ''))}\r\n"
        how = rng.random()
        if how < 0.6:
            headers.append(("content-length", str(len(body))))
        elif how < 0.8:
            headers.append(("transfer-encoding", "chunked"))
            body = self._chunked(body)
        elif how < 0.9:
            headers.append(("content-length", str(max(0, len(body) + rng.randint(-20, 20)))))
        if any(name == "content-encoding" and value == "gzip" for name, value in headers) and rng.random() < 0.7:
            body = gzip.compress(body, 1)
        if any(name == "content-encoding" and value == "zstd" for name, value in headers) and rng.random() < 0.7:
            body = zstd.compress(body)
        head += "".join(f"{name}: {value}\r\n" for name, value in headers)
        return head.encode("latin-1") + b"\r\n" + body

    def _chunked(self, body: bytes) -> bytes:
        rng = self._rng
        said = b""
        while body:
            size = rng.randint(1, max(1, len(body)))
            told = size if rng.random() < 0.9 else rng.choice((0, size + 1, size - 1, 1 << 40, 1 << 70))
            said += (
                b"%x%s\r\n" % (told, rng.choice((b"", b"", b";a=b", b" ")))
                + body[:size]
                + rng.choice((b"\r\n", b"\r\n", b"\r\n", b"\n", b""))
            )
            body = body[size:]
        return said + rng.choice((b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\n", b"0\r\nx: y\r\n\r\n", b"", b"-1\r\n\r\n"))

    def _body(self) -> bytes:
        rng = self._rng
        depth = rng.choice((10, 100, 1_000, 100_000))
        return rng.choice(
            (
                lambda: b"",
                lambda: b'{"a": 1}',
                lambda: json.dumps(
                    [{"event": "add", "key": "a", "data": i} for i in range(rng.randint(0, 50))]
                ).encode(),
                lambda: b'[{"event": "add", "id": "i%d", "data": 1}]' % rng.randint(0, 3),
                lambda: b'{"count": 10, "tokens": ["1.2.3", "x"]}',
                lambda: b'{"k": "a"}\n' * rng.randint(1, 50),
                lambda: b'{"k": 1}\n{"k"\n\x00\n',
                lambda: b"[" * depth + b"]" * depth,
                lambda: b'{"a":' * depth,
                lambda: b"\x91" * depth + b"\xc0",
                lambda: b"\x81\xa1a" * depth + b"\xc0",
                lambda: b"\xdd\xff\xff\xff\xff",
                lambda: b"\xc6\xff\xff\xff\xffabc",
                lambda: b"\xc7\x05\x05hello",
                lambda: b'"\xff\xfe"',
                lambda: b'"\\ud800"',
                lambda: b"1e999",
                lambda: b"-" + b"9" * rng.randint(1, 5_000),
                lambda: rng.randbytes(rng.choice((1, 10, 1_000, 100_000))),
                lambda: msgspec.msgpack.encode({"a": [1, 2.5, None, b"x"]}),
                lambda: bytes(rng.choice((1 << 20, 9 << 20))) if rng.random() < 0.05 else b"0",
            )
        )()

    def _talk(self) -> bytes:
        """A WebSocket, and frames of all kinds."""
        rng = self._rng
        said = (
            b"GET /apps/count/ws HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        for _ in range(rng.randint(0, 8)):
            body = rng.choice(
                (
                    b'{"emit": "add", "ref": 1}', b'{"emit": "add", "call": true, "wait": 0.2}', b'{"tail": "out"}',
                    b'{"tail": "out", "after": "kQE"}', b'{"end": 1}', b"{}", b'{"ref": {}}', b"[" * 1000, b"\xff", b"",
                    rng.randbytes(10), b'{"emit": "add", "data": %s}' % self._body()[:1000],
                )
            )  # fmt: skip
            first = rng.choice((0x81, 0x81, 0x81, 0x82, 0x01, 0x00, 0x80, 0x88, 0x89, 0x8A, 0x83, 0xC1, 0xFF))
            size = len(body) if rng.random() < 0.9 else rng.choice((0, 125, 1 << 20, (1 << 63) - 1))
            masked = 0x80 if rng.random() < 0.95 else 0
            length = bytes([masked | size]) if size < 126 else bytes([masked | 127]) + struct.pack(">Q", size)
            said += bytes([first]) + length + (b"\0\0\0\0" if masked else b"") + body
        return said

    def _spoiled(self, said: bytes) -> bytes:
        rng = self._rng
        found = bytearray(said)
        for _ in range(rng.randint(1, 5)):
            if not found:
                break
            at = rng.randrange(len(found))
            match rng.randrange(5):
                case 0:
                    found[at] = rng.randrange(256)
                case 1:
                    del found[at : at + rng.randint(1, 40)]
                case 2:
                    found[at:at] = rng.randbytes(rng.randint(1, 10))
                case 3:
                    found[at:at] = found[: rng.randint(1, 200)]
                case 4:
                    found[at:at] = rng.choice((b"\r\n", b"\n", b"\r", b"\0", b": ", b"\r\n\r\n"))
        return bytes(found)

    def say(self, place: tuple[str, int]) -> bytes:
        """Say something, and hear what is answered."""
        rng, said = self._rng, self.request()
        heard = b""
        with socket.create_connection(place, 5) as raw:
            raw.settimeout(rng.choice((0.01, 0.05, 0.3)))
            try:
                if rng.random() < 0.3:  # in pieces
                    at = rng.randrange(len(said) + 1)
                    raw.sendall(said[:at])
                    time.sleep(rng.choice((0, 0.001, 0.02)))
                    said = said[at:]
                if rng.random() < 0.1:
                    return heard  # gone in the middle
                raw.sendall(said)
                if rng.random() < 0.3:
                    raw.shutdown(socket.SHUT_WR)
                if rng.random() < 0.1:
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return heard
                while len(heard) < 1 << 20 and (data := raw.recv(1 << 16)):
                    heard += data
            except OSError:
                pass
        return heard


class Fuzz:
    """One server and those who attack it."""

    def __init__(self, base: Path, seed: int) -> None:
        self.statuses: collections.Counter[str] = collections.Counter()
        self.found: list[str] = []
        self._seed = seed
        self._server = Server(base / "home")
        self._server.grape("app", "deploy", write_app(base / "count", CODE))
        self._place = ("127.0.0.1", int(self._server.url.rpartition(":")[2]))
        self._end = 0.0

    def run(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        before = self._processes()
        threads = [threading.Thread(target=self._attack, args=(self._seed + i,)) for i in range(THREADS)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            self._check("one of those who ask rightly", self._is_well)
            time.sleep(0.2)
        self._check("at the end", self._is_well)
        if self._processes() != before:
            self.found.append(f"processes: {before}, then {self._processes()}")
        said = self._server.said.read_text()
        if "Traceback" in said or "Exception in ASGI" in said:
            self.found.append(said[-4_000:])
        if self._server.stop() != 0:
            self.found.append("it did not end in order")

    def _check(self, what: str, check: Callable[[], str]) -> None:
        try:
            wrong = check()
        except Exception as e:
            wrong = f"{type(e).__name__}: {e}"
        if wrong and len(self.found) < 20:
            self.found.append(f"{what}: {wrong}")

    def _is_well(self) -> str:
        began = time.monotonic()
        answer = self._server.post("/apps/count/events/add?key=well&wait=20", 1)
        took = time.monotonic() - began
        size = int(Path(f"/proc/{self._gateway}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        if answer.status_code != 200 or took > 10:
            return f"{answer.status_code} after {took:.1f} s: {answer.text[:200]}"
        return f"the gateway has {size >> 20} MiB" if size > MOST_MEMORY else ""

    @property
    def _gateway(self) -> int:
        pids: list[int] = self._server.pids()
        return next(pid for pid in pids if "gateway.process" in Path(f"/proc/{pid}/cmdline").read_text())

    def _processes(self) -> tuple[int, int]:
        return self._gateway, self._server.engine("count")

    def _attack(self, seed: int) -> None:
        attacker = Attacker(seed)
        while time.monotonic() < self._end:
            try:
                heard = attacker.say(self._place)
            except OSError as e:
                self._check("a connection", lambda e=e: str(e))  # type: ignore[misc]
                continue
            for status in re.findall(rb"HTTP/1\.1 (\d\d\d) ", heard):
                self.statuses[status.decode()] += 1
                if status == b"500" and len(self.found) < 20:
                    self.found.append(f"500 (seed {seed}): {heard[:600]!r}")

    def totals(self) -> str:
        return f"{sum(self.statuses.values()):,} answers: {dict(self.statuses.most_common())}"


if __name__ == "__main__":
    fuzz(__doc__, Fuzz)
