"""WebSocket: events and calls in, replies and outputs back, by the same rules as over HTTP."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Message,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from serving import Server, serving, write_app

CODE = """
from grape import Node, State, Topology


class Count(Node):
    n: int = State(int, default=0)

    def process(self, event):
        self.n += 1
        if event.data == "fail":
            raise ValueError("no such thing")
        if event.data == "slow":
            import time; time.sleep(1)
        if event.data == "large":
            self.reply("x" * 4_000_000)
            return
        if event.data == "parts":
            self.reply(1, final=False)
            self.reply(2, final=False)
        if event.data != "silent":
            self.emit("counted", [event.key, self.n])
            self.reply([event.key, self.n])


def topology(config):
    t = Topology("count")
    t.add_output("counted")
    t.add_slot("add", Count(), emits="counted")
    return t
"""


class Talk:
    """A client."""

    def __init__(
        self, url: str, app: str = "count", headers: dict[str, str] | None = None, protocols: Any = ()
    ) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self.socket = socket.create_connection((host, int(port)), 20)
        self._wire = WSConnection(ConnectionType.CLIENT)
        extra = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        request = Request(f"{host}:{port}", f"/apps/{app}/ws", extra_headers=extra, subprotocols=list(protocols))
        self.socket.sendall(self._wire.send(request))
        self._events = self._come()
        self.status, self.refused = 101, b""
        first = next(self._events)
        if isinstance(first, RejectConnection):
            self.status = first.status_code
            self.refused = b"".join(each.data for each in self._events if isinstance(each, RejectData))
        else:
            assert isinstance(first, AcceptConnection)
            self.protocol = first.subprotocol

    def _come(self) -> Iterator[Any]:
        while data := self.socket.recv(1 << 16):
            self._wire.receive_data(data)
            for event in self._wire.events():
                if isinstance(event, Ping):
                    self.socket.sendall(self._wire.send(event.response()))
                elif not isinstance(event, Pong):
                    yield event
                    if isinstance(event, CloseConnection):
                        return

    def say(self, message: Any = None, **said: Any) -> None:
        data = message if isinstance(message, str | bytes) else json.dumps(said)
        self.socket.sendall(self._wire.send(Message(data=data)))

    def heard(self) -> Any:
        """The next message, or (code, reason) of the end."""
        text = ""
        for event in self._events:
            if isinstance(event, CloseConnection):
                return event.code, event.reason
            if isinstance(event, TextMessage):
                text += event.data
                if event.message_finished:
                    return json.loads(text)
        raise AssertionError("the connection was cut")

    def ask(self, **said: Any) -> Any:
        self.say(**said)
        return self.heard()

    def ping(self) -> None:
        self.socket.sendall(self._wire.send(Ping(b"x" * 100)))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.sendall(self._wire.send(CloseConnection(1000)))
        self.socket.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("talks")
    with serving(base / "home") as server:
        server.grape("app", "deploy", write_app(base / "count", CODE))
        yield server


@pytest.fixture
def talk(server: Server) -> Iterator[Talk]:
    with contextlib.closing(Talk(server.url)) as talk:
        yield talk


def test_events_are_accepted_and_calls_answered(talk: Talk) -> None:
    assert talk.ask(emit="add", key="a", data=1, ref="r") == {"ref": "r", "accepted": 1}
    assert talk.ask(emit="add", key="a", call=True, ref=2) == {"ref": 2, "reply": ["a", 2]}
    talk.say(emit="add", key="a", data="parts", call=True, ref=3)
    assert [talk.heard() for _ in range(3)] == [
        {"ref": 3, "part": 1},
        {"ref": 3, "part": 2},
        {"ref": 3, "reply": ["a", 3]},
    ]


def test_an_id_counts_once(talk: Talk, server: Server) -> None:
    for _ in range(2):
        assert talk.ask(emit="add", key="once", id="own-1") == {"ref": None, "accepted": 1}
        assert talk.ask(emit="add", key="once", id="own-2", call=True) == {"ref": None, "reply": ["once", 2]}
    answer = server.post("/apps/count/events/add?key=once&wait=5", headers={"idempotency-key": "own-2"})
    assert answer.json() == ["once", 2]
    assert talk.ask(emit="add", key="once", data=1, id="own-1")["error"]["code"] == "conflict"


def test_many_at_once_in_their_order(talk: Talk) -> None:
    for number in range(3_000):
        talk.say(emit="add", key="many", data=number, ref=number)
    refs = [talk.heard()["ref"] for _ in range(3_000)]
    assert sorted(refs) == list(range(3_000))
    assert talk.ask(emit="add", key="many", call=True)["reply"] == ["many", 3_001]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("no json", "bad-argument"),
        ("[]", "bad-argument"),
        ("{}", "bad-argument"),
        (b"\xff\x00", "bad-argument"),
        ("[" * 5_000, "bad-argument"),
        ('{"emit": "add", "tail": "counted"}', "bad-argument"),
        ('{"emit": "add", "kye": "a"}', "bad-argument"),
        ('{"emit": "add", "key": ""}', "bad-argument"),
        ('{"emit": "add", "call": true, "wait": 1e9}', "bad-argument"),
        ('{"emit": "add", "data": 99999999999999999999999}', "bad-value"),
        ('{"emit": "none"}', "unknown-event"),
        ('{"emit": "add", "data": "fail", "key": "f", "call": true}', "ValueError"),
        ('{"emit": "add", "data": "silent", "call": true, "wait": 0.2}', "no-answer"),
        ('{"tail": "none"}', "usage"),
        ('{"tail": "counted", "after": "xx"}', "bad-argument"),
    ],
)
def test_whoever_asks_wrongly_is_told_and_goes_on(talk: Talk, said: str | bytes, code: str) -> None:
    talk.say(said)
    error = talk.heard()["error"]
    assert (error["code"], error["type"].startswith("urn:grape:")) == (code, True), error
    assert talk.ask(emit="add", key="after") == {"ref": None, "accepted": 1}


def test_whoever_looks_on_sees_what_comes_and_can_go_on_where_he_was(server: Server, talk: Talk) -> None:
    talk.say(tail="counted", ref="t")
    _seen(talk, 0)
    server.call("count", "add", params={"key": "seen"})
    after = _seen(talk, 1)
    talk.say(end="t")
    assert talk.ask(emit="add", key="seen")["accepted"] == 1
    assert talk.ask(emit="add", key="seen", call=True)["reply"] == ["seen", 3]
    with contextlib.closing(Talk(server.url)) as again:
        again.say(tail="counted", after=after, ref="t")
        _seen(again, 2, 3)


def _seen(talk: Talk, *numbers: int) -> str:
    """Where to go on, once these have come, and nothing else of that key."""
    found: list[int] = []
    while True:
        came = talk.heard()
        assert came["ref"] == "t"
        found += [event["data"][1] for event in came["events"] if event["key"] == "seen"]
        if found == [number for number in numbers if number]:
            return str(came["after"])


def test_a_message_that_is_too_large_ends_it(talk: Talk) -> None:
    with contextlib.suppress(OSError):
        talk.say('{"emit": "add", "data": "%s"}' % ("x" * (17 << 20)))
    assert _heard_or_cut(talk) in ((1009, "Message exceeds the maximum size (16777216 bytes)"), None)


def test_so_many_outputs_are_looked_on_at(talk: Talk) -> None:
    for number in range(33):
        talk.say(tail="counted", ref=number)
    first: dict[int, Any] = {}
    while len(first) < 33:  # what another test has emitted may come as well
        found = talk.heard()
        first.setdefault(found["ref"], found)
    assert [one["error"]["code"] for one in first.values() if "error" in one] == ["full"]


def test_who_may_talk(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", write_app(tmp_path / "count", CODE))
        assert Talk(server.url, headers={"origin": "http://elsewhere"}).status == 403
        assert Talk(server.url, "none").status == 404
        token = server.grape("token", "create", "emits", "--scope", "count:emit").strip()
        none = Talk(server.url)
        assert (none.status, json.loads(none.refused)["code"]) == (401, "unauthorized")
        other = server.grape("token", "create", "other", "--scope", "other:*").strip()
        assert Talk(server.url, headers={"authorization": f"Bearer {other}"}).status == 403
        for talk in (
            Talk(server.url, headers={"authorization": f"Bearer {token}"}),
            Talk(server.url, protocols=("grape", f"bearer.{token}")),  # as a page can
        ):
            assert talk.ask(emit="add", key="a")["accepted"] == 1
            assert talk.ask(tail="counted")["error"]["code"] == "forbidden"
        assert talk.protocol == "grape"
        server.grape("token", "revoke", "emits")
        assert talk.ask(emit="add", key="a")["error"]["code"] == "unauthorized"


def _heard_or_cut(talk: Talk) -> Any:
    try:
        return talk.heard()
    except (AssertionError, OSError):
        return None


def test_whoever_does_not_read_is_let_go(server: Server) -> None:
    with contextlib.closing(Talk(server.url)) as talk:
        for number in range(40):  # 160 MB
            talk.say(emit="add", key=f"large-{number}", data="large", call=True, ref=number)
        time.sleep(8)
        talk.socket.settimeout(30)
        found = [_heard_or_cut(talk)]
        while isinstance(found[-1], dict):
            found.append(_heard_or_cut(talk))
        assert found[-1] in ((1008, "over 64 MiB were not read"), None)
        assert len(found) < 40
    assert server.get("/healthz").status_code == 200


def test_answers_to_pings_are_not_kept_for_whoever_does_not_read_them(server: Server) -> None:
    gateway = next(pid for pid in server.pids() if "gateway.process" in Path(f"/proc/{pid}/cmdline").read_text())

    def size() -> int:
        return int(Path(f"/proc/{gateway}/statm").read_text().split()[1]) * 4096

    with contextlib.closing(Talk(server.url)) as talk:
        before = size()
        is_over = threading.Event()
        talk.socket.settimeout(1)

        def ping() -> None:
            with contextlib.suppress(OSError):
                while not is_over.is_set():
                    talk.ping()

        thread = threading.Thread(target=ping)
        thread.start()
        time.sleep(3)
        is_over.set()
        thread.join()
        assert size() - before < 64 << 20


def test_what_is_under_way_is_answered_before_the_server_ends(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", write_app(tmp_path / "count", CODE))
        talk = Talk(server.url)
        assert talk.ask(tail="counted")["events"] == []
        talk.say(emit="add", key="a", data="slow", call=True, ref="last")
        time.sleep(0.3)
        server.process.terminate()
        found = [talk.heard()]
        while isinstance(found[-1], dict):
            found.append(talk.heard())
        assert {"ref": "last", "reply": ["a", 1]} in found
        assert found[-1] == (1001, "the server ends; come again")
        assert server.process.wait(30) == 0


def test_what_is_no_place_to_talk_is_none(server: Server) -> None:
    for path in (b"/apps/count/events/add", b"/healthz", b"/apps/count/ws/more"):
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 10) as raw:
            raw.sendall(
                b"GET %s HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
                b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n" % path
            )
            assert b" 101 " not in raw.recv(1000)
    assert server.get("/apps/count/ws").status_code == 404
