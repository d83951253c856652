"""`grape.Client` and `grape.AsyncClient` on the real thing: what is handed in is done once, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

import grape
from grape import errors
from grape.authoring.emitter import Reply
from serving import COUNT, Server, count_app, serving, until, write_app

SLOW = COUNT.replace(
    "self.n += 1",
    """self.n += 1
        import time
        if event.data == "slow":
            time.sleep(1.5)""",
)
PARTS = [Reply(0, False), Reply(1, False), Reply(2, False)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With an app "count"."""
    base = tmp_path_factory.mktemp("remote")
    with serving(base / "home") as server:
        server.grape("app", "deploy", write_app(base / "count", f"VERSION = '1'\n{SLOW}"))
        yield server


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Server]:
    """Another one, as what has died often is not started again at once."""
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", write_app(tmp_path / "count", f"VERSION = '1'\n{SLOW}"))
        yield server


@pytest.fixture(scope="module", params=["http", "door"])
def url(request: pytest.FixtureRequest, server: Server) -> str:
    return server.url if request.param == "http" else f"door:{server.home}/apps/count/data"


def gateway(server: Server) -> int:
    """The process that speaks HTTP."""
    for pid in server.pids():
        if b"grape.gateway.process" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise ProcessLookupError("there is none")


def kill(server: Server, who: str) -> None:
    """The one that is there, or comes next."""

    def killed() -> bool:
        os.kill(server.engine("count") if who == "engine" else gateway(server), signal.SIGKILL)
        return True

    until(killed)


def own(name: str, url: str) -> str:
    """A key of this test alone."""
    return f"{name}-{url[:4]}"


# ---------------------------------------------------------------------- what it does


def test_events_and_calls(url: str) -> None:
    key = own("calls", url)
    with grape.Client(url) as client:
        client.emit("count@add", {"a": [1, 2.5, None, "ä", b"\xff"]}, key=key)
        assert client.call("count@add", b"\xff", key=key) == ["1", 2]
        assert client.call("count@add", key=key, type=tuple[str, int]) == ("1", 3)
        with pytest.raises(grape.BadPayload):
            client.call("count@add", key=key, type=int)
        assert list(client.call_stream("count@add", "parts", key=key)) == [*PARTS, Reply(["1", 5], True)]
        with pytest.raises(grape.CallFailed) as caught:
            client.call("count@add", "fail", key=key)
        assert (caught.value.code, caught.value.text, caught.value.node) == ("ValueError", "ValueError: no", "Count")
        with pytest.raises(grape.CallFailed):
            list(client.call_stream("count@add", "fail", key=key))


def test_the_same_id_is_once(url: str) -> None:
    key = own("once", url)
    with grape.Client(url) as client:
        for _ in range(3):
            client.emit("count@add", 1, key=key, id=f"{key}-1")
        for _ in range(3):
            assert client.call("count@add", 2, key=key, id=f"{key}-2") == ["1", 2]
        for _ in range(2):
            found = list(client.call_stream("count@add", "parts", key=key, id=f"{key}-3"))
            assert found == [*PARTS, Reply(["1", 3], True)]
        with pytest.raises(errors.Conflict):
            client.emit("count@add", 3, key=key, id=f"{key}-1")


def test_many(url: str) -> None:
    key = own("many", url)
    with grape.Client(url) as client:
        assert client.emit_many("count@add", (i for i in range(2_500)), key=lambda _: key) == 2_500
        assert client.emit_many("count@add", [(key, 1), (f"{key}-x", 2), grape.Event("add", key, 3)]) == 3
        assert client.emit_many("count@add", []) == 0
        assert client.call("count@add", key=key) == ["1", 2_503]
        for _ in range(2):
            client.emit_many("count@add", range(100), key=lambda _: key, id=lambda data: f"{key}-{data}")
        assert client.call("count@add", key=key) == ["1", 2_604]


def test_of_many_it_is_said_how_many_were_accepted(url: str) -> None:
    key = own("accepted", url)

    def rows() -> Iterator[Any]:
        yield from range(1_500)
        yield object()

    with grape.Client(url) as client:
        with pytest.raises(errors.HandlerError, match="item 1500") as caught:
            client.emit_many("count@add", rows(), key=lambda _: key)
        assert caught.value.accepted == 1_000
        with pytest.raises(errors.UnknownEvent) as unknown:
            client.emit_many("count@nothing", range(10))
        assert unknown.value.accepted == 0
        with pytest.raises(ZeroDivisionError) as own_error:
            client.emit_many("count@add", (1 // (1_200 - i) for i in range(2_000)), key=lambda _: key)
        assert own_error.value.accepted == 1_000  # type: ignore[attr-defined]
        assert client.call("count@add", key=key) == ["1", 2_001]


def test_answers_come_in_order(url: str) -> None:
    taken = []

    def rows() -> Iterator[str]:
        for i in range(60):
            taken.append(i)
            yield "slow" if i == 0 else str(i)

    with grape.Client(url) as client:
        found = client.map("count@add", rows(), 4, key=lambda data: own(f"map-{data}", url), type=tuple[str, int])
        assert taken == []
        assert next(found) == ("1", 1)
        assert len(taken) <= 9
        assert list(found) == [("1", 1)] * 59
        with client.map("count@add", ["fail", "fine"], key=lambda data: own(data, url)) as failing:
            with pytest.raises(grape.CallFailed):
                next(failing)
            assert list(failing) == []
        with client.map("count@add", iter(int, 1), key=lambda _: own("endless", url)) as endless:
            assert next(endless)[0] == "1"


def test_one_client_in_eight_threads(url: str) -> None:
    key = own("threads", url)
    with grape.Client(url) as client, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda i: client.call("count@add", i, key=key)[1], range(200)))
    assert sorted(found) == list(range(1, 201))


def test_apps(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server, grape.Client(server.url) as client:
        assert client.apps() == ()
        server.grape("app", "deploy", count_app(tmp_path / "count"))
        assert [(app.name, app.state) for app in client.apps()] == [("count", "running")]
        assert client.stop("count").state == "stopped"
        with pytest.raises(errors.Away, match="it is stopped"):
            client.emit("count@add", timeout=0.5)
        assert client.start("count").state == "running"
        server.grape("app", "deploy", count_app(tmp_path / "count", "2"))
        assert client.call("count@add", key="a")[0] == "2"
        assert client.rollback("count").version == "1"
        assert client.call("count@add", key="a")[0] == "1"
        assert client.upgrade("count", "2").version == "2"
        assert client.restart("count").state == "running"
        until(lambda: client.app("count").numbers is not None)
        with pytest.raises(errors.NoApp):
            client.app("nothing")
        with pytest.raises(errors.UsageError, match="no version '3'"):
            client.upgrade("count", "3")


def test_a_door_has_no_apps(server: Server) -> None:
    with grape.Client(f"door:{server.home}/apps/count/data") as client, pytest.raises(errors.Unsupported):
        client.apps()


# ---------------------------------------------------------------------- what dies


@pytest.mark.parametrize("who", ["engine", "gateway"])
@pytest.mark.slow
def test_what_is_under_way_goes_on_and_is_done_once(mortal: Server, who: str) -> None:
    key = f"dies-{who}"
    with grape.Client(mortal.url) as client, ThreadPoolExecutor(3) as threads:
        call = threads.submit(client.call, "count@add", "slow", key=f"{key}-call")
        emits = threads.submit(lambda: [client.emit("count@add", i, key=f"{key}-emit") for i in range(300)])
        many = threads.submit(client.emit_many, "count@add", range(20_000), key=lambda i: f"{key}-{i % 4}")
        for _ in range(2):
            time.sleep(0.4)
            kill(mortal, who)
        assert call.result(60) == ["1", 1]
        assert len(emits.result(60)) == 300
        assert many.result(60) == 20_000
        assert client.call("count@add", key=f"{key}-emit") == ["1", 301]
        assert [client.call("count@add", key=f"{key}-{i}")[1] for i in range(4)] == [5_001] * 4


@pytest.mark.parametrize("who", ["engine", "gateway"])
def test_the_parts_of_a_stream_come_once(mortal: Server, who: str) -> None:
    key = f"stream-{who}"
    with grape.Client(mortal.url) as client:
        client.emit("count@add", "slow", key=key)  # it stands before
        with client.call_stream("count@add", "parts", key=key) as replies:
            time.sleep(0.3)
            kill(mortal, who)
            assert next(replies) == PARTS[0]
            kill(mortal, who)
            assert list(replies) == [*PARTS[1:], Reply(["1", 2], True)]


@pytest.mark.slow
def test_at_a_door_the_next_engine_goes_on(mortal: Server) -> None:
    with grape.Client(f"door:{mortal.home}/apps/count/data") as client, ThreadPoolExecutor(3) as threads:
        call = threads.submit(client.call, "count@add", "slow", key="door-call")
        stream = threads.submit(lambda: list(client.call_stream("count@add", "parts", key="door-call")))
        many = threads.submit(client.emit_many, "count@add", range(20_000), key=lambda _: "door-many")
        for _ in range(2):
            time.sleep(0.4)
            kill(mortal, "engine")
        assert sorted([call.result(60)[1], stream.result(60)[-1].data[1]]) == [1, 2]
        assert stream.result()[:-1] == PARTS
        assert many.result(60) == 20_000
        assert client.call("count@add", key="door-many") == ["1", 20_001]


def test_under_asyncio_what_dies_comes_back(mortal: Server) -> None:
    async def main() -> None:
        async with grape.AsyncClient(mortal.url) as client:
            calls = [asyncio.create_task(client.call("count@add", "slow", key=f"a-{i}")) for i in range(2)]
            many = asyncio.create_task(client.emit_many("count@add", range(5_000), key=lambda _: "a-many"))
            for who in ("engine", "gateway"):
                await asyncio.sleep(0.4)
                kill(mortal, who)
            assert await asyncio.gather(*calls) == [["1", 1]] * 2
            assert await many == 5_000
            assert await client.call("count@add", key="a-many") == ["1", 5_001]

    asyncio.run(main())


# ---------------------------------------------------------------------- asyncio


def test_under_asyncio(url: str) -> None:
    key = own("async", url)

    async def rows() -> Any:
        for i in range(50):
            yield f"{key}-{i}", i

    async def main() -> None:
        async with grape.AsyncClient(url) as client:
            await client.emit("count@add", 1, key=key)
            assert await client.call("count@add", 2, key=key, type=tuple[str, int]) == ("1", 2)
            found = [reply async for reply in client.call_stream("count@add", "parts", key=key)]
            assert found == [*PARTS, Reply(["1", 3], True)]
            assert await client.emit_many("count@add", range(1_500), key=lambda _: key) == 1_500
            assert await client.emit_many("count@add", rows()) == 50
            assert [answer async for answer in client.map("count@add", rows(), 8)] == [["1", 2]] * 50
            async with client.map("count@add", iter(int, 1), key=lambda _: key) as endless:
                assert (await anext(endless))[0] == "1"
            with pytest.raises(grape.CallFailed):
                await client.call("count@add", "fail", key=key)
            with pytest.raises(grape.UnknownEvent):
                await client.emit("count@ad")

    asyncio.run(main())


def test_a_task_that_is_cancelled_leaves_the_client_sound(url: str) -> None:
    key = own("cancel", url)

    async def main() -> None:
        async with grape.AsyncClient(url) as client:
            for timeout in (0.01, 0.1, 0.3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(timeout):
                        await client.call("count@add", "slow", key=key, id=f"{key}-id")
            assert await client.call("count@add", "slow", key=key, id=f"{key}-id") == ["1", 1]
            async with client.call_stream("count@add", "parts", key=key) as replies:
                assert await anext(replies) == PARTS[0]
            assert await client.call("count@add", key=key) == ["1", 3]

    asyncio.run(main())


# ---------------------------------------------------------------------- who cannot be reached, or is no server


def both(url: str, ask: Callable[[grape.Client], Any], **options: Any) -> list[Exception]:
    """What each client raises; ``ask`` is given it."""
    found = []
    with grape.Client(url, **options) as client, pytest.raises(errors.GrapeError) as caught:
        ask(client)
    found.append(caught.value)

    async def main() -> None:
        async with grape.AsyncClient(url, **options) as client:
            await ask(client)  # type: ignore[arg-type]

    with pytest.raises(errors.GrapeError) as caught:
        asyncio.run(main())
    return [*found, caught.value]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:9", "nothing listens there"),
        ("https://127.0.0.1:9", "nothing listens there"),
        ("http://nowhere.invalid", "nowhere.invalid cannot be reached"),
        ("door:/nowhere", "no such directory"),
    ],
)
def test_nobody_is_there(url: str, says: str) -> None:
    for error in both(url, lambda client: client.emit("count@add"), timeout=1):
        assert isinstance(error, errors.Unreachable)
        assert isinstance(error, ConnectionError)
        assert says in str(error)


def test_a_server_that_is_about_to_be_there_is_waited_for(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with grape.Client(f"http://127.0.0.1:{port}") as client, ThreadPoolExecutor(1) as threads:
        asked = threads.submit(client.apps)
        time.sleep(0.5)
        with serving(tmp_path / "home", "--listen", f"127.0.0.1:{port}"):
            assert asked.result(30) == ()


Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def answering(*answers: Answer) -> Iterator[tuple[str, list[BaseHTTPRequestHandler]]]:
    """A server that answers so in turn, the last one for ever; its url, and what was asked."""
    asked: list[BaseHTTPRequestHandler] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            asked.append(self)
            answers[min(len(asked), len(answers)) - 1](self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def saying(status: int, body: bytes = b"", **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def hanging_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def silent(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(20)


def dripping(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(202)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(200):
            handler.wfile.write(b" ")
            time.sleep(0.1)


ACCEPTED = saying(202, b'{"accepted":1}', content_type="application/json")


def test_whoever_stands_between_may_fail() -> None:
    answers = (saying(502, b"<html>"), hanging_up, saying(503), saying(504), saying(429, retry_after="1"), ACCEPTED)
    for emit in (
        lambda url: grape.Client(url).emit("count@add", 1),
        lambda url: asyncio.run(grape.AsyncClient(url).emit("count@add", 1)),
    ):
        with answering(*answers) as (url, asked):
            began = time.monotonic()
            emit(url)
            assert time.monotonic() - began > 1
            assert len(asked) == 6
            assert len({each.headers["idempotency-key"] for each in asked}) == 1


@pytest.mark.parametrize("answer", [silent, dripping])
def test_a_slow_server_is_waited_for_as_long_as_it_is_said(answer: Answer) -> None:
    with answering(answer) as (url, _):
        began = time.monotonic()
        for error in both(url, lambda client: client.emit("count@add"), timeout=0.5):
            assert isinstance(error, errors.NoAnswer)
            assert isinstance(error, TimeoutError)
            assert url in str(error)
            assert "not known whether" in str(error)
        assert time.monotonic() - began < 6


def test_what_is_no_server_of_grape_confirms_nothing() -> None:
    for answer, says in (
        (saying(200, b"<html>", content_type="text/html"), "no server of Grape"),
        (saying(404), "says 404"),
        (saying(301, location="https://there"), "https://there"),
    ):
        with answering(answer) as (url, asked):
            for error in both(url, lambda client: client.emit("count@add")):
                assert type(error) is errors.UsageError
                assert says in str(error)
            assert len(asked) == 2


def test_a_stream_that_breaks_off_is_asked_for_again() -> None:
    def broken(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.send_header("connection", "close")
        handler.end_headers()
        handler.wfile.write(b"event: part\ndata: 1\n\nevent: final\nda")

    def whole(handler: BaseHTTPRequestHandler) -> None:
        saying(200, b"event: part\ndata: 1\n\nevent: final\ndata: 2\n\n", content_type="text/event-stream")(handler)

    with answering(broken, whole) as (url, asked), grape.Client(url) as client:
        assert list(client.call_stream("count@add")) == [Reply(1, False), Reply(2, True)]
        assert len({each.headers["idempotency-key"] for each in asked}) == 1


def test_an_answer_that_is_not_there_in_time(server: Server) -> None:
    for error in both(server.url, lambda client: client.call("count@add", "slow", key="late", timeout=0.3)):
        assert isinstance(error, errors.NoAnswer)
        assert "the event was accepted" in str(error)


def test_without_an_end(server: Server) -> None:
    with grape.Client(server.url, timeout=None) as client:
        assert client.call("count@add", "slow", key="no-end") == ["1", 1]


def test_what_is_full_is_tried_again(tmp_path: Path) -> None:
    code = COUNT.replace("self.n += 1", "self.n += 1; import time; time.sleep(0.02)")
    app = write_app(tmp_path / "count", f"VERSION = '1'\n{code}")
    with open(app / "grape.toml", "a") as file:
        file.write("[pool.main]\nqueue-limit = 20\n")
    with serving(tmp_path / "home") as server, grape.Client(server.url, timeout=20) as client:
        server.grape("app", "deploy", app)
        assert client.emit_many("count@add", range(100), key=lambda _: "a") == 100
        assert client.call("count@add", key="a") == ["1", 101]
        until(lambda: server.info("count")["numbers"]["fed"]["add"] == 101)


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAPE_TOKEN", raising=False)
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", count_app(tmp_path / "count"))
        token = server.grape("token", "create", "web", "--scope", "count:emit").strip()
        for given, kind in ((None, errors.Unauthorized), ("grape_x", errors.Unauthorized)):
            for error in both(server.url, lambda client: client.emit("count@add"), token=given):
                assert type(error) is kind
        with grape.Client(server.url, token) as client:
            client.emit("count@add", key="a")
            with pytest.raises(errors.Forbidden) as caught:
                client.restart("count")
            assert token not in str(caught.value)
        monkeypatch.setenv("GRAPE_TOKEN", token)
        monkeypatch.setenv("GRAPE_URL", server.url)
        with grape.Client() as client:
            assert client.call("count@add", key="a") == ["1", 2]


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "mistake",
    [
        lambda client: client.emit("add"),
        lambda client: client.emit("count@add", object()),
        lambda client: client.emit("count@add", key=5),
        lambda client: client.emit("count@add", id=""),
        lambda client: client.emit("count@add", deadline=-1),
        lambda client: client.emit("count@add", timeout="1"),
        lambda client: client.call("count@add", timeout=0),
        lambda client: client.call_stream("count@"),
        lambda client: client.emit_many("count@add", "text"),
        lambda client: client.emit_many("count@add", [1], key="k"),
        lambda client: client.emit_many("count@add", [(1, 2, 3)]),
        lambda client: client.map("count@add", [1], 0),
        lambda client: client.map("count@add", 5),
        lambda client: client.app("../x"),
        lambda client: client.upgrade("count", 2),
        lambda client: client.upgrade("count", drop_slots="x>y"),
        lambda client: grape.Client("127.0.0.1:8080"),
        lambda client: grape.Client(timeout=-1),
        lambda client: grape.Client(retries=-1),
        lambda client: grape.AsyncClient(token="a b"),
    ],
)
def test_a_mistake_is_told_where_it_is_made_before_anything_is_sent(mistake: Callable[[Any], Any]) -> None:
    with grape.Client("http://127.0.0.1:9") as client, pytest.raises(errors.UserError) as caught:
        mistake(client)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert {frame.filename for frame in frames} <= {__file__, "<grape>"}
    assert caught.value.__suppress_context__


def test_a_mistake_under_asyncio_is_told_where_it_is_made() -> None:
    async def main() -> None:
        async with grape.AsyncClient("http://127.0.0.1:9") as client:
            await client.emit("add")

    with pytest.raises(errors.BadArgument) as caught:
        asyncio.run(main())
    names = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-2:] == [__file__, "<grape>"]


def test_one_that_is_closed(url: str) -> None:
    client = grape.Client(url)
    client.close()
    client.close()
    with pytest.raises(errors.UsageError, match="closed"):
        client.emit("count@add")
    with pytest.raises(errors.UsageError, match="closed"):
        client.call_stream("count@add")


def test_another_app_at_a_door(server: Server) -> None:
    with grape.Client(f"door:{server.home}/apps/count/data") as client, pytest.raises(errors.NoApp, match="count"):
        client.emit("cuont@add")


def test_without_httpx_it_is_said_how_it_is_got(server: Server) -> None:
    code = (
        "import sys; sys.modules['httpx'] = None\n"
        "import grape\n"
        f"with grape.Client('door:{server.home}/apps/count/data') as client: client.emit('count@add')\n"
        "grape.Client()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "UsageError: a client of a server needs httpx: pip install 'grape-engine[client]'" in done.stderr
    assert done.stderr.count("File ") == 2


def test_no_proxy_leads_to_this_machine(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with grape.Client(server.url) as client:
        assert client.call("count@add", key="proxy") == ["1", 1]


def test_a_value_that_comes_back_is_what_it_was(server: Server) -> None:
    """Over msgpack: bytes, and keys that are no text."""
    base = server.home.parent
    code = (
        "from grape import Topology\n"
        "def echo(context, data):\n    context.reply(data)\n"
        "def topology(config):\n    t = Topology('echo')\n    t.add_slot('say', echo)\n    return t\n"
    ).replace("def echo(context, data)", "from grape import Context\ndef echo(data, context: Context)")
    server.grape("app", "deploy", write_app(base / "echo", code))
    value = {"bytes": b"\x00\xff", "float": 0.1, "large": -(1 << 63), "map": {1: 2}, "text": "ä"}
    with grape.Client(server.url) as client:
        assert client.call("echo@say", value) == value
        assert msgspec.convert(client.call("echo@say", 5), int) == 5
