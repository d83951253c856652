"""Very many connections, most of which want nothing or never say what: whoever wants something is answered."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvicorn
import uvloop
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from grape.gateway import limits
from grape.gateway.limits import BoundedProtocol, BoundedSocket
from grape.gateway.reading import read_body
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


def whole_answer(one: socket.socket) -> bytes:
    """Its head and its body may come apart."""
    found = b""
    while not found.endswith(b"}"):
        data = one.recv(4096)
        assert data, found
        found += data
    return found


# F100
@pytest.mark.slow
def test_ten_thousand_connections_and_slow_ones_keep_nobody_waiting(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    many = MANY if hard == resource.RLIM_INFINITY else min(MANY, hard - 1_000)
    with files(1_024):  # as most systems have it: the gateway has to raise it
        server = Server(tmp_path / "home")
    try:
        server.grape("app", "deploy", count_app(tmp_path / "count"))
        with files(many + 800), idle(server, many, _HEAD + b"\r\n") as connections:
            for one in connections:
                assert whole_answer(one).startswith(b"HTTP/1.1 200")
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
            assert whole_answer(connections[-1]).startswith(b"HTTP/1.1 200")
    finally:
        server.http.close()
        assert server.stop() == 0


@contextlib.asynccontextmanager
async def listening(app: ASGIApp) -> AsyncIterator[tuple[str, int]]:
    """Where, in this process."""
    taken = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=BoundedProtocol, ws=BoundedSocket, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve([taken]))
    try:
        yield taken.getsockname()
    finally:
        server.should_exit = True
        await serving


Wire = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def said(place: tuple[str, int], data: bytes) -> Wire:
    reader, writer = await asyncio.open_connection(*place)
    writer.write(data)
    return reader, writer


def run(test: Coroutine[Any, Any, None]) -> None:
    """On the loop that a gateway has."""
    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(test)


_GET = b"GET %s HTTP/1.1\r\nhost: localhost\r\n\r\n"


def test_when_no_more_connections_can_be_an_idle_one_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "most", 5)

    async def test() -> None:
        busy = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] == "/wait":
                await busy.wait()
            await Response(b"ok")(scope, receive, send)

        async with listening(app) as place:
            waiting = [await said(place, _GET % b"/wait") for _ in range(3)]
            idle = [await said(place, _GET % b"/") for _ in range(2)]
            for reader, _ in idle:
                assert b"ok" in await reader.readuntil(b"ok")
            reader, _ = await said(place, _GET % b"/")
            assert b"ok" in await reader.readuntil(b"ok")
            gone = [asyncio.ensure_future(reader.read()) for reader, _ in idle]
            done, _ = await asyncio.wait(gone, timeout=1)
            assert len(done) == 1
            busy.set()
            for reader, _ in waiting:
                assert b"ok" in await reader.readuntil(b"ok")
        await asyncio.gather(*gone, return_exceptions=True)

    run(test())


def test_a_body_that_does_not_come_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "BODY_TIME", 0.3)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(ClientDisconnect):
            await Response(b"ok " + await read_body(receive))(scope, receive, send)

    async def test() -> None:
        async with listening(app) as place:
            head = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\r\n"
            reader, writer = await said(place, head)
            for piece in (b"a", b"b", b"c", b"d"):  # slowly, but it comes
                await asyncio.sleep(0.2)
                writer.write(piece)
            assert (await reader.readuntil(b"ok abcd")).startswith(b"HTTP/1.1 200")
            writer.write(head + b"a")
            found = await reader.read()
            assert found.startswith(b"HTTP/1.1 408")
            assert msgspec.json.decode(found.partition(b"\r\n\r\n")[2])["code"] == "slow"

    run(test())
    assert not caplog.records


def test_what_is_wrong_with_the_next_request_is_not_said_in_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        is_said = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
            await send({"type": "http.response.body", "body": b"ab", "more_body": True})
            await is_said.wait()
            await send({"type": "http.response.body", "body": b"cd"})

        async with listening(app) as place:
            reader, writer = await said(place, _GET % b"/")
            assert (await reader.readuntil(b"ab")).startswith(b"HTTP/1.1 200")
            writer.write(b"no request\r\n\r\n")
            assert await reader.read() == b""
            is_said.set()

    run(test())
    assert not caplog.records


def test_an_answer_is_not_cut_as_the_next_request_has_only_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_TIME", 0.2)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.7)
        await Response(b"ok")(scope, receive, send)

    async def test() -> None:
        async with listening(app) as place:
            reader, writer = await said(place, _GET % b"/")
            writer.write(b"GET")
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            assert (await reader.read()).startswith(b"HTTP/1.1 408")

    run(test())


@pytest.mark.parametrize(
    "data",
    [
        b"no request\r\n\r\n",
        b"\0" * 200_000,
        b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nhost: \xf8\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_and_fills_no_log(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(ClientDisconnect):
            await Response(await read_body(receive))(scope, receive, send)

    async def test() -> None:
        async with listening(app) as place:
            reader, writer = await said(place, data)
            with contextlib.suppress(ConnectionResetError):
                found = await reader.read()
                assert found == b"" or found.startswith(b"HTTP/1.1 4"), found
            writer.close()

    run(test())
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]
