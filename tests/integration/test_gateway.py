"""HTTP: what is handed in is durable when it is confirmed, answers come back whatever dies, and whoever asks wrongly is
told."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Receive

from command import grape
from grape.gateway import reading
from grape.gateway.problems import Problem
from serving import COUNT, Server, count_app, serving, until, write_app

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With an app "count"."""
    base = tmp_path_factory.mktemp("gateway")
    with serving(base / "home") as server:
        server.grape("app", "deploy", count_app(base / "count"))
        yield server


def problem(answer: httpx.Response, status: int, code: str) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert (found["status"], found["code"]) == (status, code)
    assert found["type"].startswith("urn:grape:")
    return str(found["detail"])


# ---------------------------------------------------------------------- events


@pytest.mark.parametrize(
    ("media", "body"),
    [
        ("application/json", b'{"a": [1, 2.5, null, "\xc3\xa4"]}'),
        ("application/json; charset=utf-8", b'{"a": [1, 2.5, null, "\xc3\xa4"]}'),
        ("application/msgpack", msgspec.msgpack.encode({"a": [1, 2.5, None, "ä"]})),
        ("text/plain", b"some text"),
        ("application/octet-stream", b"\x00\xff"),
        ("application/json", b""),
    ],
)
def test_one_event_in_every_form(server: Server, media: str, body: bytes) -> None:
    answer = server.http.post("/apps/count/events/add?key=forms", content=body, headers={"content-type": media})
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1})


def test_what_is_confirmed_is_durable(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", count_app(tmp_path / "count"))
        for _ in range(20):
            assert server.post("/apps/count/events/add", 1, params={"key": "a"}).status_code == 202
        server.kill()
    with serving(tmp_path / "home") as server:
        assert server.call("count", "add", params={"key": "a"}) == ["1", 21]


def test_several_events(server: Server) -> None:
    def count() -> int:
        found: list[int] = server.call("count", "add", params={"key": "several"})
        return found[1]

    named = [{"event": "add", "key": "several", "data": i} for i in range(2_500)]
    assert server.post("/apps/count/events", named).json() == {"accepted": 2_500}
    lines = b"".join(b'{"k": "several", "i": %d}\n' % i for i in range(1_000))
    answer = server.http.post(
        "/apps/count/events/add?key-field=k", content=lines, headers={"content-type": "application/x-ndjson"}
    )
    assert answer.json() == {"accepted": 1_000}
    packed = msgspec.msgpack.encode(named[:10])
    answer = server.http.post("/apps/count/events", content=packed, headers={"content-type": "application/msgpack"})
    assert answer.json() == {"accepted": 10}
    assert count() == 3_511


def test_of_several_with_one_that_cannot_be_none_is_taken(server: Server) -> None:
    for bad, says in (
        ({"evnt": "add"}, "unknown field `evnt`"),
        ({"event": "add", "key": ""}, "key"),
        ({"event": "add", "data": 1 << 70}, "cannot travel"),
        (3, "object"),
    ):
        found = [{"event": "add", "key": "none"}, {"event": "add", "key": "none"}, bad]
        answer = server.post("/apps/count/events", found)
        assert answer.status_code in (400, 422), answer.text
        assert "item 2" in answer.json()["detail"]
        assert says in answer.json()["detail"]
    assert server.call("count", "add", params={"key": "none"}) == ["1", 1]


@pytest.mark.parametrize("ids", [False, True])
def test_of_several_with_one_that_nobody_hears_none_is_taken(server: Server, ids: bool) -> None:
    key = f"some-{ids}"
    found = [{"event": "add", "key": key}, {"event": "nobody"}, {"event": "add", "key": key}]
    if ids:
        found = [{**event, "id": f"none-{i}"} for i, event in enumerate(found)]
    detail = problem(server.post("/apps/count/events", found), 404, "unknown-event")
    assert "item 1" in detail
    assert server.call("count", "add", params={"key": key}) == ["1", 1]


def test_of_several_with_a_conflict_it_is_said_how_many_were_taken(server: Server) -> None:
    found = [{"event": "add", "key": "part", "data": i, "id": f"part-{min(i, 1)}"} for i in range(3)]
    answer = server.post("/apps/count/events", found)
    problem(answer, 409, "conflict")
    assert answer.json()["accepted"] == 2
    assert [refused["item"] for refused in answer.json()["refused"]] == [2]
    assert server.call("count", "add", params={"key": "part"}) == ["1", 3]


def test_a_batch_is_taken_once_over_restarts_and_kills(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", count_app(tmp_path / "count"))
        codes: list[int] = []
        is_over = threading.Event()

        def load() -> None:
            while not is_over.is_set():
                events = [{"event": "add", "key": f"k{i % 7}", "data": "x" * 200} for i in range(500)]
                codes.append(server.post("/apps/count/events", events).status_code)

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for kill in (False, True, True, False, True):
                seen = len(codes)
                until(lambda seen=seen: len(codes) > seen + 5)  # type: ignore[misc]
                if kill:
                    os.kill(server.engine("count"), signal.SIGKILL)
                else:
                    server.grape("app", "restart", "count")
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
        assert set(codes) == {202}
        total = sum(server.call("count", "add", params={"key": f"k{i}"})[1] - 1 for i in range(7))
        assert total == 500 * len(codes)


# F43
def test_the_same_id_is_once_and_another_content_is_a_conflict(server: Server) -> None:
    for _ in range(3):
        answer = server.post("/apps/count/events/add", 1, params={"key": "id"}, headers={"idempotency-key": "same"})
        assert answer.status_code == 202
    answer = server.post("/apps/count/events/add", 2, params={"key": "id"}, headers={"idempotency-key": "same"})
    problem(answer, 409, "conflict")
    assert server.call("count", "add", params={"key": "id"}) == ["1", 2]


# ---------------------------------------------------------------------- calls


def test_a_call_is_answered(server: Server) -> None:
    assert server.call("count", "add", params={"key": "call"}) == ["1", 1]
    answer = server.post("/apps/count/events/add?wait=5&key=call", headers={"accept": "application/msgpack"})
    assert msgspec.msgpack.decode(answer.content) == ["1", 2]


def test_a_call_whose_handler_fails_says_so(server: Server) -> None:
    detail = problem(server.post("/apps/count/events/add?wait=5&key=f", "fail"), 502, "ValueError")
    assert detail == "node 'Count' failed: ValueError: no"


def test_parts_come_in_order_as_server_sent_events(server: Server) -> None:
    with server.http.stream(
        "POST", "/apps/count/events/add?wait=9&key=sse", json="parts", headers={"accept": "text/event-stream"}
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines == [
        *(line for i in range(3) for line in ("event: part", f"data: {i}")),
        "event: final",
        'data: ["1",1]',
    ]


def test_an_answer_is_kept_for_whoever_asks_again(server: Server) -> None:
    options = {"params": {"key": "kept"}, "headers": {"idempotency-key": "k-1", "prefer": "respond-async"}}
    answer = server.http.post("/apps/count/events/add", json="parts", **options)  # type: ignore[arg-type]
    assert answer.status_code == 202
    place = answer.headers["location"]
    assert server.get(place, params={"wait": "10"}).json() == ["1", 1]
    for _ in range(2):  # asked again, by the answer's place and by the same call
        assert server.get(place).json() == ["1", 1]
        assert server.call("count", "add", "parts", params={"key": "kept"}, headers={"idempotency-key": "k-1"}) == [
            "1",
            1,
        ]
    with server.http.stream(
        "POST",
        "/apps/count/events/add?wait=9&key=kept",
        json="parts",
        headers={"accept": "text/event-stream", "idempotency-key": "k-1"},
    ) as again:
        assert [line for line in again.iter_lines() if line.startswith("data")] == [
            *(f"data: {i}" for i in range(3)),
            'data: ["1",1]',
        ]
    problem(server.get("/apps/count/answers/nobody"), 404, "no-call")


def test_an_answer_survives_the_death_of_engine_gateway_and_server(tmp_path: Path) -> None:
    slow = COUNT.replace(
        "self.n += 1", "self.n += 1\n        if event.data == 'slow':\n            import time; time.sleep(1)"
    )
    home = tmp_path / "home"
    with serving(home) as server:
        server.grape("app", "deploy", write_app(tmp_path / "count", f"VERSION = '1'\n{slow}"))
        place = server.post(
            "/apps/count/events/add?key=a", "slow", headers={"idempotency-key": "i", "prefer": "respond-async"}
        ).headers["location"]
        assert server.get(place).status_code == 202  # not yet
        os.kill(server.engine("count"), signal.SIGKILL)
        assert server.get(place, params={"wait": "30"}).json() == ["1", 1]
        server.kill()
    with serving(home) as server:
        until(lambda: server.get(place).status_code == 200)
        assert server.get(place).json() == ["1", 1]
        assert server.call("count", "add", params={"key": "a"}) == ["1", 2]


def test_two_gateways_share_the_work_and_each_answers_its_own(tmp_path: Path) -> None:
    with serving(tmp_path / "home", "--gateways", "2") as server:
        server.grape("app", "deploy", count_app(tmp_path / "count"))
        gateways = [pid for pid in server.pids() if "grape.gateway.process" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert len(gateways) == 2
        answers: list[int] = []

        def ask(key: str) -> None:
            for _ in range(15):  # each by a connection of its own, so that both gateways have some
                options = {"params": {"key": key, "wait": "30"}, "headers": {"connection": "close"}}
                answers.append(httpx.post(f"{server.url}/apps/count/events/add", json=1, **options).json()[1])  # type: ignore[arg-type]
                events = [{"event": "add", "key": key}] * 10
                headers = {"connection": "close"}
                assert httpx.post(f"{server.url}/apps/count/events", json=events, headers=headers).status_code == 202

        threads = [threading.Thread(target=ask, args=(f"two-{i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        os.kill(gateways[0], 0)
        server.grape("app", "restart", "count")
        for thread in threads:
            thread.join()
        assert len(answers) == 60
        for i in range(4):
            assert server.call("count", "add", params={"key": f"two-{i}"}) == ["1", 15 * 11 + 1]


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_a_call_without_an_id_goes_on_with_the_next_engine(tmp_path: Path, how: str) -> None:
    """Its event is accepted; the engine that comes back answers to the same request."""
    slow = COUNT.replace("self.n += 1", "self.n += 1\n        import time; time.sleep(0.5)")
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", write_app(tmp_path / "count", f"VERSION = '1'\n{slow}"))
        answers: list[object] = []
        thread = threading.Thread(
            target=lambda: answers.append(server.call("count", "add", params={"key": "a"})), daemon=True
        )
        thread.start()
        until(lambda: server.info("count")["numbers"]["fed"].get("add") == 1)
        if how == "restart":
            server.grape("app", "restart", "count")
        else:
            os.kill(server.engine("count"), signal.SIGKILL)
        thread.join(30)
        assert answers == [["1", 1]]


def test_no_answer_in_time(server: Server, tmp_path: Path) -> None:
    code = COUNT.replace("self.reply([VERSION, self.n])", "pass")
    server.grape("app", "deploy", write_app(tmp_path / "silent", f"VERSION = '1'\n{code}", name="silent"))
    detail = problem(server.post("/apps/silent/events/add?key=a&wait=0.3"), 504, "no-answer")
    assert "the event was accepted" in detail


# ---------------------------------------------------------------------- what is measured


def test_metrics_are_those_of_prometheus_and_count(server: Server) -> None:
    def measured() -> dict[str, float]:
        text = server.get("/metrics").text
        return {
            f"{sample.name}{sorted(sample.labels.items())}": sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    before = measured()
    for _ in range(3):
        server.call("count", "add", params={"key": "measured"})
    fed = "grape_fed_total[('app', 'count'), ('event', 'add')]"
    assert measured()[fed] == before.get(fed, 0) + 3
    assert before["grape_app_up[('app', 'count')]"] == 1
    assert before["grape_app_state[('app', 'count'), ('state', 'running')]"] == 1
    assert "grape_pool_workers_limit[('app', 'count'), ('pool', 'main')]" in before
    assert not any("measured" in name for name in measured())  # F109: no key is a label


def test_what_can_be_asked_is_told_as_openapi_and_is_so(server: Server) -> None:
    found = server.get("/openapi.json").json()
    assert found["openapi"].startswith("3.1")
    post = found["paths"]["/apps/count/events/add"]["post"]
    assert set(post["responses"]) == {"200", "202", "default"}
    for path, operations in found["paths"].items():
        place = path.replace("{app}", "count").replace("{id}", "nobody")
        for method in operations.keys() & {"get", "post"}:
            if method == "post" and "/events" not in path:
                continue  # it would stop the app
            answer = server.http.request(method, place, json=[] if path.endswith("/events") else None)
            said = operations[method]["responses"]
            assert str(answer.status_code) in said or answer.headers["content-type"] == "application/problem+json"
            assert answer.status_code not in (405, 500), (method, path)


def test_what_is_not_allowed_is_told_with_all_that_is(server: Server) -> None:
    answer = server.http.request("PATCH", "/apps/count/objects/count/key")
    assert (answer.status_code, answer.json()["code"]) == (405, "method")
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "PUT", "POST", "DELETE"}


# ---------------------------------------------------------------------- mistakes, and attacks


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "says"),
    [
        ("/apps/cuont/events/add", b"1", {}, 404, "no app 'cuont'"),
        ("/apps/..%2F..%2Fetc/events/add", b"1", {}, 404, ""),
        ("/apps/Count/events/add", b"1", {}, 404, "no app"),
        ("/apps/count/events/ad", b"1", {}, 404, "did you mean 'add'"),
        ("/apps/count/events/add", b'{"a', {}, 400, "no JSON"),
        ("/apps/count/events/add", b"[" * 100_000, {}, 400, "JSON"),
        ("/apps/count/events/add", b"\xff", {"content-type": "text/plain"}, 400, "UTF-8"),
        ("/apps/count/events/add", b"\xc1", {"content-type": "application/msgpack"}, 400, "msgpack"),
        ("/apps/count/events/add", b"a=b", {"content-type": "application/x-www-form-urlencoded"}, 415, "known are"),
        ("/apps/count/events/add?wait=x", b"1", {}, 400, "wait"),
        ("/apps/count/events/add?wait=-1", b"1", {}, 400, "wait"),
        ("/apps/count/events/add?wait=nan", b"1", {}, 400, "wait"),
        ("/apps/count/events/add?wait=1e9", b"1", {}, 400, "wait"),
        ("/apps/count/events/add?deadline=x", b"1", {}, 400, "deadline"),
        ("/apps/count/events/add?key=", b"1", {}, 400, "key"),
        ("/apps/count/events/add?key=" + "k" * 5000, b"1", {}, 400, "key"),
        ("/apps/count/events/add", b"1", {"idempotency-key": "x" * 300}, 400, "Idempotency-Key"),
        ("/apps/count/events", b"{}", {}, 400, "array"),
        ("/apps/count/events", b'{"a":1}\n{"b', {"content-type": "application/x-ndjson"}, 400, "line 2"),
        ("/nowhere", b"1", {}, 404, "nowhere"),
    ],
)
def test_what_is_asked_wrongly_is_told(
    server: Server, path: str, body: bytes, headers: dict[str, str], status: int, says: str
) -> None:
    answer = server.http.post(path, content=body, headers={"content-type": "application/json", **headers})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in answer.json()["detail"]


@pytest.mark.parametrize("body", [b"9223372036854775808", b"[" * 300 + b"]" * 300])
def test_data_that_cannot_travel_is_no_fault_of_the_gateway(server: Server, body: bytes) -> None:
    answer = server.http.post("/apps/count/events/add", content=body, headers={"content-type": "application/json"})
    assert "cannot travel" in problem(answer, 422, "bad-value")


@pytest.mark.parametrize(
    ("path", "media"),
    [
        ("/apps/count/events/add", "application/x-ndjson"),
        ("/apps/count/events/add", "application/json"),
        ("/apps/count/events/add", "application/msgpack"),
        ("/apps/count/events/add", "text/plain"),
        ("/apps/count/events", "application/json"),
        ("/apps/count/outputs/none/peek", "application/json"),
    ],
)
def test_text_that_is_no_utf_8_is_no_fault_of_the_gateway(server: Server, path: str, media: str) -> None:
    body = b"\xa3a\xff\xfe" if media == "application/msgpack" else b'"\xff\xfe"'
    problem(server.http.post(path, content=body, headers={"content-type": media}), 400, "bad-argument")


def test_a_name_that_no_file_can_have_is_that_of_no_app(server: Server) -> None:
    for path in ("/apps/%00/readyz", "/apps/%00", f"/apps/{'x' * 300}/readyz"):
        problem(server.get(path), 404, "no-app")


def test_an_id_of_any_characters_has_a_place_where_its_answer_is(server: Server) -> None:
    for own_id in (b"a/b", b"a?b#c", b"a%2Fb", b"a b", b"\xff\xe9", b"=x"):
        headers = {b"idempotency-key": own_id, b"prefer": b"respond-async"}
        came = server.http.post("/apps/count/events/add", params={"key": own_id.hex()}, headers=headers)
        assert came.status_code == 202
        assert server.get(came.headers["location"], params={"wait": "10"}).json() == ["1", 1]


def test_bodies_that_never_end_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_BODIES", 100)

    def coming(*pieces: bytes, more: bool) -> Receive:
        left = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        left += [] if more else [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            return left.pop(0) if left else await asyncio.Event().wait()

        return receive

    async def ask() -> None:
        slow = [asyncio.ensure_future(reading.read_body(coming(bytes(45), more=True))) for _ in range(2)]
        await asyncio.sleep(0)
        assert await reading.read_body(coming(bytes(5), bytes(5), more=False)) == bytes(10)
        with pytest.raises(Problem, match="on their way") as refused:
            await reading.read_body(coming(bytes(5), bytes(6), more=False))
        assert refused.value.status == 429
        for one in slow:
            one.cancel()
        await asyncio.wait(slow)
        assert await reading.read_body(coming(bytes(100), more=False)) == bytes(100)

    asyncio.run(ask())


def test_an_event_that_is_too_large(server: Server) -> None:
    detail = problem(server.post("/apps/count/events/add", "x" * (9 << 20)), 413, "too-large")
    assert "8388608" in detail
    answer = server.http.post(
        "/apps/count/events/add", content=b"x" * (65 << 20), headers={"content-type": "application/octet-stream"}
    )
    problem(answer, 413, "too-large")
    assert server.get("/healthz").status_code == 200


# F99 and what a page in a browser could do to whoever runs a server on his own machine
def test_pages_of_others_may_not_ask(server: Server) -> None:
    for headers in ({"origin": "http://evil.example"}, {"host": "evil.example"}, {"origin": "null"}):
        problem(server.post("/apps/count/events/add?key=page", 1, headers=headers), 403, "forbidden")
    assert server.post("/apps/count/events/add?key=page", 1, headers={"origin": server.url}).status_code == 202
    assert server.call("count", "add", params={"key": "page"}) == ["1", 2]


# F98
def test_tokens(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", count_app(tmp_path / "count"))
        write_app(tmp_path / "other", f"VERSION = '1'\n{COUNT}", name="other")
        server.grape("app", "deploy", tmp_path / "other")
        emit = server.grape("token", "create", "web", "--scope", "count:emit").strip()
        admin = server.grape("token", "create", "ops", "-s", "count:admin", "-s", "*:read").strip()
        old = server.grape("token", "create", "old", "-s", "*:*", "--days", "0").strip()

        def ask(token: str | None, path: str, method: str = "POST") -> int:
            headers = {} if token is None else {"authorization": f"Bearer {token}"}
            return server.http.request(method, path, headers=headers).status_code

        add = "/apps/count/events/add?key=a"
        assert [ask(token, add) for token in (emit, None, "grape_x", old, admin)] == [202, 401, 401, 401, 403]
        assert ask(emit, "/apps/other/events/add?key=a") == 403
        assert [ask(token, "/apps", "GET") for token in (emit, admin)] == [403, 200]
        assert [ask(token, "/apps/count/restart") for token in (emit, admin)] == [403, 200]
        assert ask(admin, "/apps/other/stop") == 403
        assert ask(None, "/healthz", "GET") == 200
        for place in (tmp_path / "home").rglob("*"):
            if place.is_file():
                data = place.read_bytes()
                assert not any(token.encode() in data for token in (emit, admin, old)), place
        server.grape("token", "revoke", "web")
        assert ask(emit, add) == 401
        assert "web" not in server.grape("token", "list")
        for name in ("ops", "old"):
            server.grape("token", "revoke", name)
        assert [ask(token, add) for token in (None, emit)] == [401, 401]  # not: everybody may
        assert "no scope" in grape("token", "create", "x", "-s", "a:b", "--home", server.home).stderr


def raw(server: Server, data: bytes, wait: float = 10) -> bytes:
    """What comes back until the other side closes, or nothing more comes."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=wait) as client:
        client.sendall(data)
        found = b""
        try:
            while got := client.recv(65536):
                found += got
        except TimeoutError:
            pass
        return found


_ADD = b"POST /apps/count/events/add?key=smuggled HTTP/1.1\r\nhost: 127.0.0.1\r\n"


# F101
@pytest.mark.parametrize(
    "head",
    [
        _ADD + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n1",
        _ADD + b"content-length: 1\r\ncontent-length: 2\r\n\r\n11",
        _ADD + b"transfer-encoding: x\r\n\r\n1",
        b"GET /healthz HTTP/1.1\r\nhost : 127.0.0.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nx: a\rb\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nx: a\x00b\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/9.9\r\n\r\n",
    ],
)
def test_what_proxies_could_read_otherwise_is_refused(server: Server, head: bytes) -> None:
    assert b" 200 " not in (found := raw(server, head, 2)), found
    assert b" 202 " not in found
    assert server.get("/healthz").status_code == 200


# F100
def test_a_head_that_is_too_long_is_refused(server: Server) -> None:
    found = raw(server, b"GET /healthz HTTP/1.1\r\n" + b"x: %s\r\n" % (b"y" * 1000) * 200)
    assert b" 431 " in found
    assert server.get("/healthz").status_code == 200


# F100
@pytest.mark.slow
def test_who_is_slow_or_says_nothing_is_let_go_and_the_others_are_served(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    clients = [socket.create_connection((host, int(port))) for _ in range(2_000)]
    for client in clients[:1_000]:
        client.sendall(b"GET /healthz HTTP/1.1\r\nx: ")
    try:
        began = time.monotonic()
        assert server.call("count", "add", params={"key": "slow"}) == ["1", 1]
        assert time.monotonic() - began < 10
        for client in clients:
            client.settimeout(30)
            try:
                while client.recv(4096):
                    pass
            except ConnectionResetError:
                pass
    finally:
        for client in clients:
            client.close()


def test_what_is_full_is_told_with_when_to_come_again(tmp_path: Path) -> None:
    code = COUNT.replace("self.n += 1", "import time; time.sleep(600)")
    app = write_app(tmp_path / "count", f"VERSION = '1'\n{code}")
    with open(app / "grape.toml", "a") as file:
        file.write("[pool.main]\nqueue-limit = 50\n")
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", app)
        codes = [server.post("/apps/count/events/add", 1, params={"key": "a"}).status_code for _ in range(60)]
        assert codes.count(202) >= 50
        answer = server.post("/apps/count/events/add", 1, params={"key": "a"})
        problem(answer, 429, "full")
        assert int(answer.headers["retry-after"]) >= 1


def test_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    trust = ssl.create_default_context(cafile=str(certificate))
    with serving(
        tmp_path / "home", "--tls-certificate", str(certificate), "--tls-key", str(key), verify=trust
    ) as server:
        assert server.url.startswith("https://")
        server.grape("app", "deploy", count_app(tmp_path / "count"))
        assert server.call("count", "add", params={"key": "a"}) == ["1", 1]
        with pytest.raises(httpx.TransportError):
            httpx.get(server.url.replace("https", "http") + "/healthz")
    assert "cannot be read" in grape("serve", tmp_path / "home", "--tls-certificate", tmp_path / "none").stderr


def test_pages_of_an_origin_that_was_named_may_ask(tmp_path: Path) -> None:
    with serving(tmp_path / "home", "--origin", "https://shop.example") as server:
        server.grape("app", "deploy", count_app(tmp_path / "count"))
        place, origin = "/apps/count/events/add?key=a", {"origin": "https://shop.example"}
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
        answer = server.http.request("OPTIONS", place, headers={**origin, **asked})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin["origin"]
        answer = server.post(place, 1, headers=origin)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (202, origin["origin"])
        answer = server.http.request("OPTIONS", place, headers={"origin": "https://evil.example", **asked})
        assert "access-control-allow-origin" not in answer.headers
        assert server.post(place, 1, headers={"origin": "https://evil.example"}).status_code == 403


# ---------------------------------------------------------------------- packed bodies and answers


def _zip(data: bytes) -> bytes:
    return gzip.compress(data)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", _zip), ("zstd", zstd.compress), ("identity", bytes)])
def test_a_body_may_come_packed(server: Server, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    answer = server.http.post("/apps/count/events/add", content=pack(b'{"a": 1}'), headers=headers)
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1})
    lines = b"".join(b'{"k": "%s", "i": %d}\n' % (encoding.encode(), i) for i in range(50_000))  # over a megabyte
    answer = server.http.post(
        "/apps/count/events/add?key-field=k",
        content=pack(lines[:700_000]) + pack(lines[700_000:]),  # two members
        headers={"content-type": "application/x-ndjson", "content-encoding": encoding},
    )
    assert answer.json() == {"accepted": 50_000}
    assert server.call("count", "add", params={"key": encoding}) == ["1", 50_001]


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_what_is_packed_wrongly_or_swells_is_refused(server: Server, encoding: str) -> None:
    pack = _zip if encoding == "gzip" else zstd.compress

    def ask(body: bytes, encoding: str = encoding) -> httpx.Response:
        headers = {"content-type": "application/json", "content-encoding": encoding}
        return server.http.post("/apps/count/events/add", content=body, headers=headers)

    whole = pack(b'{"a": [%s]}' % (b"1," * 10_000 + b"1"))
    for body in (b"", b"no such thing", whole[:-9], whole + b"rest", whole[: len(whole) // 2]):
        problem(ask(body), 400, "bad-argument")
    assert "unpacked" in problem(ask(pack(bytes(100 << 20))), 413, "too-large")
    problem(ask(whole, "br"), 415, "media-type")
    problem(ask(whole, f"{encoding}, {encoding}"), 415, "media-type")


def test_what_is_to_be_kept_of_a_packed_body_is_bounded(server: Server) -> None:
    streamed = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    body = streamed.compress(bytes(1000)) + streamed.flush()  # which does not say how long it is
    headers = {"content-type": "application/octet-stream", "content-encoding": "zstd"}
    problem(server.http.post("/apps/count/events/add", content=body, headers=headers), 400, "bad-argument")


@pytest.mark.parametrize(
    ("accepts", "encoding"),
    [
        ("gzip", "gzip"),
        ("gzip, zstd", "zstd"),
        ("zstd;q=0, gzip;q=0.5", "gzip"),
        ("br", None),
        ("gzip;q=0", None),
        ("", None),
    ],
)
def test_answers_go_packed_to_whoever_takes_that(server: Server, accepts: str, encoding: str | None) -> None:
    with server.http.stream("GET", "/openapi.json", headers={"accept-encoding": accepts}) as answer:
        assert answer.headers.get("content-encoding") == encoding
        body = b"".join(answer.iter_raw())
    assert len(body) == int(answer.headers["content-length"])
    unpack: Callable[[bytes], bytes] = {"gzip": gzip.decompress, "zstd": zstd.decompress}.get(encoding or "", bytes)
    assert msgspec.json.decode(unpack(body))["openapi"] == "3.1.0"
    small = server.get("/healthz", headers={"accept-encoding": accepts})
    assert "content-encoding" not in small.headers
