"""Very many connections, most of which want nothing or never say what: whoever wants something is answered."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from grape.gateway.limits import BoundedProtocol
from serving import Server, count_app

MANY = 10_000
_HEAD = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n"


@contextlib.contextmanager
def files(soft: int) -> Iterator[None]:
    """So many may be open, of whoever is started now as well."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def idle(server: Server, count: int, said: bytes) -> Iterator[list[socket.socket]]:
    """So many connections that have said that."""
    place = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_connection(place, 20)) for _ in range(count)]
        for one in found:
            one.sendall(said)
        yield found


def slowest(server: Server, count: int) -> float:
    """Seconds of the slowest of so many events."""
    found = 0.0
    for number in range(count):
        began = time.monotonic()
        assert server.post("/apps/count/events/add?key=a", number).status_code == 202
        found = max(found, time.monotonic() - began)
    return found


def is_closed(one: socket.socket) -> bool:
    one.settimeout(0.5)
    try:
        while data := one.recv(4096):
            assert data
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


# F100
def test_ten_thousand_connections_and_slow_ones_keep_nobody_waiting(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    many = MANY if hard == resource.RLIM_INFINITY else min(MANY, hard - 1_000)
    with files(1_024):  # as most systems have it: the gateway has to raise it
        server = Server(tmp_path / "home")
    try:
        server.grape("app", "deploy", count_app(tmp_path / "count"))
        with files(many + 800), idle(server, many, _HEAD + b"\r\n") as connections:
            for one in connections:
                assert one.recv(4096).startswith(b"HTTP/1.1 200")
            with idle(server, 200, _HEAD) as slow:
                is_over = threading.Event()

                def drip() -> None:
                    while not is_over.wait(0.2):
                        for one in slow:
                            with contextlib.suppress(OSError):
                                one.send(b"x")

                thread = threading.Thread(target=drip)
                thread.start()
                began = time.monotonic()
                try:
                    while time.monotonic() - began < 11:
                        assert slowest(server, 20) < 2
                        time.sleep(0.2)
                finally:
                    is_over.set()
                    thread.join()
                assert all(map(is_closed, slow)), "they may have had more time than a head has"
            connections[-1].sendall(_HEAD + b"\r\n")
            assert connections[-1].recv(4096).startswith(b"HTTP/1.1 200")
    finally:
        server.http.close()
        assert server.stop() == 0


def test_when_no_more_connections_can_be_an_idle_one_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "most", 5)
    busy = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/wait":
            await busy.wait()
        await Response(b"ok")(scope, receive, send)

    async def ask(path: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET %s HTTP/1.1\r\nhost: localhost\r\n\r\n" % path)
        return reader, writer

    port = 0

    async def run() -> None:
        nonlocal port
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, http=BoundedProtocol, lifespan="off", log_level="error"))
        serving = asyncio.ensure_future(server.serve([listening]))
        waiting = [await ask(b"/wait") for _ in range(3)]
        idle = [await ask(b"/") for _ in range(2)]
        for reader, _ in idle:
            assert b"ok" in await reader.readuntil(b"ok")
        reader, _ = await ask(b"/")
        assert b"ok" in await reader.readuntil(b"ok")
        gone = [asyncio.ensure_future(reader.read()) for reader, _ in idle]
        done, _ = await asyncio.wait(gone, timeout=1)
        assert len(done) == 1
        busy.set()
        for reader, _ in waiting:
            assert b"ok" in await reader.readuntil(b"ok")
        server.should_exit = True
        await serving
        await asyncio.gather(*gone, return_exceptions=True)

    asyncio.run(run())
