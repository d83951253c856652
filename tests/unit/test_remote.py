"""Clients of a server, without one: what is said, what answers mean, what is tried again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from grape import Event
from grape.authoring.emitter import Reply
from grape.client.events import ClientEvent
from grape.errors import (
    Away,
    BadArgument,
    CallFailed,
    Conflict,
    Corrupt,
    EngineError,
    Forbidden,
    Full,
    GrapeError,
    NoAnswer,
    NoApp,
    TooLarge,
    Unauthorized,
    UnknownEvent,
    Unreachable,
    UsageError,
)
from grape.gateway.problems import Problem, problem_of
from grape.model.values import BadValue
from grape.remote.asked import Asked, Batch, Call, Emit, Heard, Order, address_of, event_of
from grape.remote.ground import Ground
from grape.remote.http import heard_of, lost, request_of, stream_request, token_of, url_of
from grape.remote.items import MOST, Items
from grape.remote.patience import LONGEST, STRANGER, Patience
from grape.remote.sse import Events
from grape.remote.talks import Pause, StreamTalk, Talk, Try, batch_talk, talk

URL = "http://h"
EMIT = Emit("a", ClientEvent("e", None, b"\xc0", "id"))
CALL = Call("a", EMIT.event)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def patience(timeout: float | None = 30.0, retries: int | None = None) -> tuple[Patience, Clock]:
    clock = Clock()
    return Patience(timeout, retries, clock, lambda low, high: high), clock


def run(talk: Talk[Any], clock: Clock, heard: list[Heard]) -> tuple[Any, list[Try], list[float]]:
    """Its answer, what it tried and how long it paused, with ``heard`` of each try."""
    tries: list[Try] = []
    pauses: list[float] = []
    came: Heard | None = None
    try:
        while True:
            step = talk.send(came)
            if isinstance(step, Pause):
                pauses.append(step.seconds)
                clock.now += step.seconds
                came = None
            else:
                tries.append(step)
                came = heard.pop(0)
    except StopIteration as e:
        return e.value, tries, pauses


# ---------------------------------------------------------------------- who is asked


@pytest.mark.parametrize(
    ("url", "is_right"),
    [
        ("http://127.0.0.1:8080", True),
        ("https://example.com/grape/", True),
        ("http://[::1]:1", True),
        ("127.0.0.1:8080", False),
        ("localhost", False),
        ("ftp://h", False),
        ("http://", False),
        ("http://h:x", False),
        ("http://h:99999", False),
        ("http://h/?a=b", False),
        ("http://h/#x", False),
        ("http://u:secret@h", False),
        ("http://h /", False),
        ("http://h\r\nx: y", False),
        ("", False),
        (5, False),
        (b"http://h", False),
    ],
)
def test_urls(url: Any, is_right: bool) -> None:
    if is_right:
        assert url_of(url) == url.rstrip("/")
    else:
        with pytest.raises(BadArgument) as caught:
            url_of(url)
        assert "secret" not in str(caught.value)


def test_tokens_are_in_no_error() -> None:
    assert token_of("grape_x\n") == "grape_x"
    for bad in ("grape_secret x", "grape_secret\r\nx: y", "grape_secretä", "", 5):
        with pytest.raises(BadArgument) as caught:
            token_of(bad)
        assert "secret" not in str(caught.value)


def test_what_is_not_said_is_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAPE_URL", raising=False)
    monkeypatch.delenv("GRAPE_TOKEN", raising=False)
    ground = Ground(None, None, 30, None)
    assert (ground.url, ground.token, ground.directory) == ("http://127.0.0.1:8080", None, "")
    monkeypatch.setenv("GRAPE_URL", "http://h:1/")
    monkeypatch.setenv("GRAPE_TOKEN", "grape_t")
    ground = Ground(None, None, 30, None)
    assert (ground.url, ground.token) == ("http://h:1", "grape_t")
    ground = Ground("door:/d", "other", 30, None)
    assert (ground.url, ground.token, ground.directory) == ("door:/d", "other", "/d")


@pytest.mark.parametrize("given", ["add", "@add", "count@", "Count@add", "../x@add", "", None, 5, b"count@add"])
def test_what_is_no_event_of_an_app(given: Any) -> None:
    with pytest.raises(BadArgument):
        address_of(given)


# ---------------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("add", "add"),
        ("a/b", "a%2Fb"),
        ("..", "%2E%2E"),
        (".", "%2E"),
        ("a.b", "a.b"),
        ("a b?c#d%", "a%20b%3Fc%23d%25"),
        ("ä", "%C3%A4"),
        ("a@b", "a%40b"),
    ],
)
def test_names_of_events_in_paths(name: str, path: str) -> None:
    request = request_of(Emit(*address_named(name)), 5)
    assert request.path == f"/apps/app/events/{path}"


def address_named(name: str) -> tuple[str, ClientEvent]:
    app, event = address_of(f"app@{name}")
    return app, event_of(event, None, None, None, None)


def test_an_event_as_a_request() -> None:
    event = event_of("add", {"a": b"\xff"}, "k&ä", "my id", 1.5)
    request = request_of(Emit("count", event), 5)
    assert (request.method, request.timeout) == ("POST", 5)
    assert request.path == "/apps/count/events/add?key=k%26%C3%A4&deadline=1.500000"
    assert request.headers == {"content-type": "application/msgpack", "idempotency-key": "my id"}
    assert msgspec.msgpack.decode(request.body) == {"a": b"\xff"}


def test_a_call_waits_as_long_as_a_server_lets_it() -> None:
    event = event_of("add", None, None, "i", None)
    for timeout, wait in ((5.0, "5.000"), (None, "300.000"), (1e6, "300.000"), (0.0, "0.001")):
        request = request_of(Call("count", event), timeout)
        assert request.path == f"/apps/count/events/add?wait={wait}"
        assert request.headers["accept"] == "application/msgpack"
    assert stream_request(Call("count", event), 5).headers["accept"] == "text/event-stream"


def test_one_without_an_id_gets_one() -> None:
    ids = {request_of(Emit(*address_named("add")), 5).headers["idempotency-key"] for _ in range(100)}
    assert len(ids) == 100


@pytest.mark.parametrize("own_id", ["ä", " a", "a ", "a\r\nx: y", "x" * 256])
def test_an_id_that_no_header_can_say(own_id: str) -> None:
    with pytest.raises(BadArgument, match="id="):
        request_of(Emit("count", event_of("add", None, None, own_id, None)), 5)


def test_orders_as_requests() -> None:
    for order, method, path in (
        (Order("apps"), "GET", "/apps"),
        (Order("app", "a"), "GET", "/apps/a"),
        (Order("stop", "a"), "POST", "/apps/a/stop"),
        (
            Order("upgrade", "a", "1 2", ("x>y", "z>y")),
            "POST",
            "/apps/a/upgrade?version=1+2&drop-slot=x%3Ey&drop-slot=z%3Ey",
        ),
    ):
        request = request_of(order, 5)
        assert (request.method, request.path) == (method, path)


# ---------------------------------------------------------------------- answers


def told(problem: Problem, asked: Asked = EMIT, **more: Any) -> Heard:
    """What is heard of what the gateway says."""
    body = msgspec.json.encode({**problem.document, **more})
    headers = {"content-type": "application/problem+json", **problem.headers}
    return heard_of(asked, URL, problem.status, headers, body)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (UnknownEvent("no"), False),
        (Conflict("no"), False),
        (BadArgument("no"), False),
        (BadValue("no"), False),
        (TooLarge("no"), False),
        (Full("no"), True),
        (NoAnswer("no"), True),
        (Corrupt("no"), False),
        (UsageError("no"), False),
    ],
)
def test_errors_of_an_engine_are_what_they_were(error: GrapeError, again: bool) -> None:
    heard = told(problem_of(error))
    assert (type(heard.error), str(heard.error), heard.again) == (type(error), "no", again)


def test_a_handler_that_failed() -> None:
    for code in ("ValueError", "full", "no-answer", "away"):
        heard = told(problem_of(CallFailed(code, "it's no", "No'de")), CALL)
        assert isinstance(heard.error, CallFailed)
        assert (heard.error.code, heard.error.text, heard.error.node) == (code, "it's no", "No'de")
        assert not heard.again


@pytest.mark.parametrize(
    ("problem", "kind", "again"),
    [
        (Problem(401, "unauthorized", "x"), Unauthorized, False),
        (Problem(403, "forbidden", "x"), Forbidden, False),
        (Problem(404, "no-app", "x"), NoApp, False),
        (Problem(404, "no-page", "x"), UsageError, False),
        (Problem(415, "media-type", "x"), UsageError, False),
        (Problem(408, "slow", "x"), NoAnswer, True),
        (Problem(500, "bug", "x"), EngineError, False),
        (Problem(503, "away", "x", {"retriable": True}, {"retry-after": "1"}), Away, True),
        (Problem(503, "no-server", "x", None, {"retry-after": "1"}), Away, True),
        (Problem(418, "what-comes-later", "x"), EngineError, False),
    ],
)
def test_errors_of_a_server(problem: Problem, kind: type[GrapeError], again: bool) -> None:
    heard = told(problem)
    assert (type(heard.error), heard.again) == (kind, again)
    assert heard.pause == (1.0 if problem.status == 503 else None)


@pytest.mark.parametrize(
    ("status", "kind", "again", "is_open"),
    [
        (502, Away, True, True),
        (503, Away, True, True),
        (504, NoAnswer, True, True),
        (429, Full, True, False),
        (404, UsageError, False, False),
        (500, EngineError, False, False),
        (301, UsageError, False, False),
    ],
)
def test_errors_of_whoever_stands_between(status: int, kind: type[GrapeError], again: bool, is_open: bool) -> None:
    heard = heard_of(EMIT, URL, status, {"content-type": "text/html"}, b"<html>")
    assert (type(heard.error), heard.again) == (kind, again)
    assert heard.is_open == is_open or kind is Away
    assert URL in str(heard.error)


@pytest.mark.parametrize(
    ("asked", "status", "media", "body"),
    [
        (EMIT, 200, "text/html", b"<html>"),
        (EMIT, 202, "application/json", b"{}"),
        (EMIT, 204, "", b""),
        (CALL, 200, "text/html", b"ok"),
        (CALL, 202, "application/json", b"{}"),
        (CALL, 200, "application/json", b"{"),
        (Batch("a", (EMIT.event,)), 202, "application/json", b'{"accepted": 0}'),
        (Order("app", "a"), 200, "application/json", b"{}"),
        (Order("apps"), 200, "application/json", b"[" * 5000),
    ],
)
def test_what_is_no_server_of_grape_confirms_nothing(asked: Asked, status: int, media: str, body: bytes) -> None:
    heard = heard_of(asked, URL, status, {"content-type": media}, body)
    assert type(heard.error) is UsageError
    assert not heard.again


@pytest.mark.parametrize(
    ("text", "pause"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("-1", 0.0),
        ("nan", None),
        ("inf", None),
        ("1e99", 3600.0),
        ("soon", None),
        ("", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_when_to_come_again(text: str, pause: float | None) -> None:
    assert heard_of(EMIT, URL, 429, {"retry-after": text}, b"").pause == pause


def test_what_was_not_accepted_of_a_batch() -> None:
    batch = Batch("a", tuple(ClientEvent("e", None, b"", str(i)) for i in range(6)))
    heard = told(problem_of(Full("no")), batch, accepted=2, refused=[{"item": 1, "code": "full"}], untried=3)
    assert heard.untaken == (1, 3, 4, 5)
    assert heard.again
    assert told(problem_of(BadArgument("no")), batch).untaken is None


def test_orders_that_may_have_been_done_are_not_given_again() -> None:
    for order, again in ((Order("stop", "a"), True), (Order("rollback", "a"), False)):
        assert lost(order, URL, "gone", was_sent=True, again=True, is_stranger=False).again is again
        assert lost(order, URL, "gone", was_sent=False, again=True, is_stranger=False).again
        assert told(Problem(503, "no-server", "x"), order).again is again
        assert told(Problem(429, "full", "x", {"retriable": True}), order).again


# ---------------------------------------------------------------------- patience


def failing(error: GrapeError | None = None, **more: Any) -> Heard:
    return Heard(error=error or Full("no"), **{"again": True, **more})


def test_the_same_is_tried_again_with_the_same_id_and_what_is_left_of_its_time() -> None:
    patient, clock = patience(10)
    event = event_of("e", 1, None, None, 3.0)
    answer, tries, pauses = run(talk(Call("a", event), patient), clock, [failing()] * 4 + [Heard("answer")])
    assert answer == "answer"
    assert pauses == [0.05, 0.1, 0.2, 0.4]
    events = [tried.asked.event for tried in tries if isinstance(tried.asked, Call)]
    assert {each.id for each in events} == {event.id}
    assert [each.wait and each.wait / 1e6 for each in events] == pytest.approx([3.0, 2.95, 2.85, 2.65, 2.25], abs=1e-4)
    assert [tried.timeout for tried in tries] == pytest.approx([10, 9.95, 9.85, 9.65, 9.25])


def test_what_is_refused_for_good_is_not_tried_again() -> None:
    patient, clock = patience()
    with pytest.raises(Conflict):
        run(talk(EMIT, patient), clock, [Heard(error=Conflict("no"))])


def test_the_server_says_when_to_come_again() -> None:
    patient, clock = patience(10)
    _, _, pauses = run(talk(EMIT, patient), clock, [failing(pause=2.0), failing(pause=0.0), Heard()])
    assert pauses == [2.5, 0.1]
    patient, clock = patience(1)
    with pytest.raises(Full):  # at once: there is no time for that
        run(talk(EMIT, patient), clock, [failing(pause=2.0)])
    assert clock.now == 100


def test_time_and_tries_come_to_an_end() -> None:
    patient, clock = patience(10)
    with pytest.raises(Full):
        run(talk(EMIT, patient), clock, [failing()] * 100)
    assert 100 + 10 - LONGEST <= clock.now <= 110
    patient, clock = patience(None, 2)
    heard = [failing()] * 100
    with pytest.raises(Full):
        run(talk(EMIT, patient), clock, heard)
    assert len(heard) == 97
    patient, clock = patience(10, 0)
    with pytest.raises(Full):
        run(talk(EMIT, patient), clock, [failing()])


def test_an_address_where_nobody_ever_answered_is_given_up_soon() -> None:
    patient, clock = patience(None)
    with pytest.raises(Unreachable):
        run(talk(EMIT, patient), clock, [failing(Unreachable("no"), is_stranger=True)] * 100)
    assert STRANGER <= clock.now - 100 < STRANGER + 2 * LONGEST


def test_what_one_try_may_have_done_the_next_ones_refusal_does_not_deny() -> None:
    patient, clock = patience(3)
    with pytest.raises(NoAnswer, match="not known"):
        run(talk(EMIT, patient), clock, [failing(NoAnswer("gone"), is_open=True)] + [failing()] * 100)
    patient, clock = patience(3)
    with pytest.raises(UnknownEvent):  # but what can never be was not
        run(talk(EMIT, patient), clock, [failing(NoAnswer("gone"), is_open=True), Heard(error=UnknownEvent("no"))])


# ---------------------------------------------------------------------- batches


def batch_of(count: int) -> Batch:
    return Batch("a", tuple(ClientEvent("e", None, b"", str(i)) for i in range(count)))


def test_of_a_batch_only_what_was_not_accepted_is_sent_again() -> None:
    patient, clock = patience()
    heard = [failing(untaken=(2, 3, 5)), failing(NoAnswer("gone"), is_open=True), failing(untaken=(1,)), Heard(1)]
    answer, tries, _ = run(batch_talk(batch_of(6), patient, 100), clock, heard)
    assert answer == 106
    sent = [[event.id for event in tried.asked.events] for tried in tries if isinstance(tried.asked, Batch)]
    assert sent == [["0", "1", "2", "3", "4", "5"], ["2", "3", "5"], ["2", "3", "5"], ["3"]]


def test_how_many_were_accepted_is_said() -> None:
    patient, clock = patience()
    with pytest.raises(Conflict) as caught:
        run(batch_talk(batch_of(6), patient, 100), clock, [Heard(error=Conflict("no"), untaken=(2, 4, 5))])
    assert caught.value.accepted == 102
    assert Full("another one").accepted == 0


def test_as_long_as_some_are_accepted_there_is_time() -> None:
    patient, clock = patience(2)
    heard = [failing(untaken=tuple(range(1, n)), pause=1.0) for n in range(20, 1, -1)]
    answer, _, _ = run(batch_talk(batch_of(20), patient, 0), clock, [*heard, Heard(1)])
    assert answer == 20
    assert clock.now > 115


def test_items_are_events_pairs_or_data() -> None:
    items = Items("a", "e", None, None)
    events = [items.event(item) for item in (5, ("k", 6), (None, 7), Event("other", "q", 8), [1, 2], None)]
    assert [(e.name, e.key, msgspec.msgpack.decode(e.data)) for e in events] == [
        ("e", None, 5),
        ("e", "k", 6),
        ("e", None, 7),
        ("other", "q", 8),
        ("e", None, [1, 2]),
        ("e", None, None),
    ]
    assert len({e.id for e in events}) == 6
    items = Items("a", "e", lambda data: data["k"], lambda data: f"id-{data['n']}")
    event = items.event({"k": "key", "n": 1})
    assert (event.key, event.id) == ("key", "id-1")


@pytest.mark.parametrize(
    ("item", "kind"), [((1, 2, 3), BadArgument), ((5, 6), BadArgument), (1 << 70, BadValue), (object(), BadValue)]
)
def test_an_item_that_cannot_be_one_is_named(item: Any, kind: type[GrapeError]) -> None:
    items = Items("a", "e", None, None)
    items.event(1)
    with pytest.raises(kind, match="item 1: "):
        items.event(item)


def test_batches_are_bounded() -> None:
    items = Items("a", "e", None, None)
    made = [batch for i in range(2_500) if (batch := items.add(i))]
    assert [len(batch.events) for batch in made] == [MOST, MOST]
    rest = items.rest()
    assert rest is not None
    assert len(rest.events) == 500
    assert items.rest() is None
    large = [items.add("x" * (3 << 20)) for _ in range(4)]
    assert [batch and len(batch.events) for batch in large] == [None, 2, None, 2]


# ---------------------------------------------------------------------- streams


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_server_sent_events_in_pieces(step: int, end: str) -> None:
    lines = [
        "event: part",
        'data: "ä"',
        "",
        ": ping",
        "",
        "event: later",
        "data: {",
        "",
        "event:final",
        "data:[1,",
        "data: 2]",
        "",
        "",
    ]
    body = end.join(lines).encode()
    events = Events(CALL, URL)
    found = [came for at in range(0, len(body), step) for came in events.feed(body[at : at + step])]
    assert found == [Reply("ä", False), Reply([1, 2], True)]


def test_an_error_among_server_sent_events() -> None:
    problem = msgspec.json.encode(problem_of(CallFailed("ValueError", "no", "N")).document)
    (heard,) = Events(CALL, URL).feed(b"event: error\ndata: " + problem + b"\n\n")
    assert isinstance(heard, Heard)
    assert isinstance(heard.error, CallFailed)
    assert heard.error.code == "ValueError"


def test_what_has_come_of_a_stream_does_not_come_again() -> None:
    patient, clock = patience(5)
    stream = StreamTalk(CALL, patient)
    given: list[Reply] = []
    for parts in (2, 1, 4):  # of each try, until its connection ends
        stream.next_try()
        given += [reply for i in range(parts) if stream.came(reply := Reply(i, False))]
        clock.now += stream.failed(failing(NoAnswer("gone"), is_open=True))
    stream.next_try()
    given += [reply for i in range(5) if stream.came(reply := Reply(i, i == 4))]
    assert given == [Reply(i, i == 4) for i in range(5)]
    assert stream.is_over
