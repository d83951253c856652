"""Traces without processes: what a header says, what a span is called, how spans become a tree, where they go."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.requests import Request

import otlp
from grape.apps.running import share_of
from grape.engine.check import Checker
from grape.errors import ProtocolError, UsageError
from grape.gateway import tracing
from grape.gateway.operating import Operating
from grape.gateway.problems import Problem
from grape.model.batch import Context
from grape.model.tracing import (
    NOBODY,
    Span,
    Trace,
    fresh_traceparent,
    read_context,
    read_traceparent,
    sampled,
    span_of,
)
from grape.protocol.messages import DERIVED
from grape.server.home import Home
from grape.tools.why import document, tree, walk
from grape.traces.otlp import request_of
from grape.traces.settings import settings_of

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEX = "0123456789abcdef"
traces = st.text(HEX, min_size=32, max_size=32).filter(lambda text: text != "0" * 32)
parents = st.text(HEX, min_size=16, max_size=16).filter(lambda text: text != "0" * 16)

# ------------------------------------------------------------------ W3C trace context


@given(traces, parents, st.integers(0, 255))
def test_a_traceparent_is_read(trace: str, parent: str, flags: int) -> None:
    header = f"00-{trace}-{parent}-{flags:02x}"
    assert read_traceparent(header) == (Trace(trace, parent), bool(flags & 1))
    assert sampled(header) == (Trace(trace, parent) if flags & 1 else None)
    assert read_context(str(Trace(trace, parent))) == Trace(trace, parent)
    assert sampled(Trace(trace, parent).traceparent) == Trace(trace, parent)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "no",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-0g",
        f"00-{TRACE}-{PARENT}-01\n",
    ],
)
def test_what_is_no_traceparent_is_none(header: str) -> None:
    assert read_traceparent(header) is None


def test_a_later_version_may_say_more() -> None:
    assert sampled(f"01-{TRACE}-{PARENT}-01-more") == Trace(TRACE, PARENT)
    assert sampled(f" 00-{TRACE}-{PARENT}-01\t") == Trace(TRACE, PARENT)


@given(st.text())
def test_any_text_is_read_or_none(text: str) -> None:
    read_traceparent(text)
    read_context(text)


def test_a_new_trace_has_nobody_before_it() -> None:
    found = sampled(fresh_traceparent())
    assert found is not None
    assert found.parent == NOBODY


@given(traces, st.text(), st.text(), st.integers(1, 99), st.integers(0, 9))
def test_a_span_is_called_by_what_it_is(trace: str, event: str, node: str, attempt: int, answers: int) -> None:
    own = span_of(trace, event, node, attempt, answers)
    assert own == span_of(trace, event, node, attempt, answers)
    others = {
        span_of(trace, event + "x", node, attempt, answers),
        span_of(trace, event, node + "x", attempt, answers),
        span_of(trace, event, node, attempt + 1, answers),
        span_of(trace, event, node, attempt, answers + 1),
    }
    assert own not in others
    assert read_context(f"{trace}-{own}") is not None


def test_the_name_of_a_span_is_that_of_the_document() -> None:
    """docs/protocol.md: others work it out as well."""
    assert span_of(TRACE, "id", "node", 1, 0) == "55f29ee913a70924"


# ------------------------------------------------------------------ the tree


def span(number: int, parent: int | None, **more: Any) -> Span:
    what = {"id": f"e{number}", "event": "e", "node": "n", "key": None, "attempt": 1, "outcome": "ok"}
    ids = TRACE, f"{number + 1:016x}", "" if parent is None else f"{parent + 1:016x}"
    return msgspec.convert(
        [
            *ids,
            *({**what, **more}[name] for name in ("id", "event", "node", "key", "attempt")),
            number,
            number + 1,
            "ok",
        ],
        Span,
    )


@given(st.lists(st.integers(-1, 30), max_size=30), st.randoms())
def test_every_span_is_in_the_tree_once(parents: list[int], rng: Any) -> None:
    """Whatever is missing of it, in whatever order, and also if its parents are a ring."""
    spans = [("app", span(i, None if parent < 0 else parent)) for i, parent in enumerate(parents)]
    rng.shuffle(spans)
    told = tree(TRACE, spans)
    steps = list(walk(told.steps))
    assert sorted(each.span for step in steps for each in step.attempts) == sorted(each.span for _, each in spans)
    for step in steps:
        for cause in step.causes:
            assert cause.attempts[0].parent in {each.span for each in step.attempts}


def test_attempts_are_one_step_and_what_each_caused_hangs_below_it() -> None:
    first, second = span(0, None), span(1, None, id="e0", attempt=2)
    told = tree(TRACE, [("a", span(3, 1)), ("a", second), ("a", first), ("b", span(2, 0)), ("b", span(2, 0))], "e0")
    (step,) = told.steps
    assert [each.attempt for each in step.attempts] == [1, 2]
    assert step.is_asked
    assert [(cause.app, cause.id) for cause in step.causes] == [("b", "e2"), ("a", "e3")]
    assert told.spans == 4


@example([0, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0], 10, 0)
@given(st.lists(st.integers(-1, 30), max_size=30), st.integers(0, 40), st.integers(0, 30))
def test_a_trace_is_told_with_what_caused_what(parents: list[int], most: int, asked: int) -> None:
    """However much of it, and also if its parents are a ring."""
    told = tree(TRACE, [("app", span(i, None if n < 0 else n)) for i, n in enumerate(parents)], f"e{asked}")
    whole = document(told)["steps"]
    some = document(told, most)
    shown = some["steps"]
    assert len(whole) == len(parents) == len(shown) + some["left_out"]
    assert [step["number"] for step in shown] == list(range(len(shown)))
    causes = {step["id"]: None if step["cause"] is None else whole[step["cause"]]["id"] for step in whole}
    assert {step["id"] for step in shown if step["asked"]} == {f"e{asked}"} & causes.keys() if most else True
    here = {step["id"] for step in shown}
    place = {step["id"]: step["number"] for step in whole}
    for step in shown:
        cause = causes[step["id"]]
        assert (None if step["cause"] is None else shown[step["cause"]]["id"]) == (cause if cause in here else None)
        assert cause is None or cause in here or place[cause] > place[step["id"]], "only that of a ring is left out"


def test_of_a_large_trace_is_told_what_led_to_what_was_asked_for() -> None:
    many = [("app", span(i, 0)) for i in range(1, 3_000)]
    deep = [("app", span(i, i - 1)) for i in range(3_000, 3_050)]
    told = tree(TRACE, [("app", span(0, None)), *many, *deep], "e3049")
    found = document(told, tracing.MOST)
    assert len(found["steps"]) == tracing.MOST + 51
    assert found["left_out"] == 3_050 - len(found["steps"])
    step = found["steps"][-1]
    assert step["asked"]
    way = []
    while step["cause"] is not None:
        way.append(step["id"])
        step = found["steps"][step["cause"]]
    assert way == [f"e{i}" for i in range(3_049, 2_998, -1)]
    assert step["id"] == "e0"


def test_so_many_ask_why_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each looks through all that is kept; the others are told to come again."""
    go = threading.Event()
    monkeypatch.setattr(tracing, "why", lambda apps, wanted: {"waited": go.wait(30)})

    class Asked:
        home = Home(tmp_path)

        async def look(self, name: str) -> Any:
            return object()

        async def ask(self, verb: str, argument: Any, kind: Any) -> list[str]:
            return ["app"]

        def check(self, headers: Any, app: str, verb: str) -> None:
            pass

    async def ask() -> list[Any]:
        everything: Any = Asked()
        why = Operating(everything, everything)._why
        scope = {"type": "http", "path_params": {"app": "app"}, "headers": [], "query_string": b"id=x"}
        asked = [asyncio.ensure_future(why(Request(scope))) for _ in range(20)]
        while sum(one.done() for one in asked) < 4:
            await asyncio.sleep(0)
        go.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(ask())
    assert [one.status_code for one in found if not isinstance(one, Exception)] == [200] * 16
    assert [one.status for one in found if isinstance(one, Problem)] == [429] * 4


# ------------------------------------------------------------------ what a worker says


def checker() -> Checker:
    made: Checker = Checker.__new__(Checker)
    return made


def test_contexts_are_derived_from_what_is_traced() -> None:
    contexts = [Context("r"), Context(trace=str(Trace(TRACE, PARENT)))]
    checker().derives([(1, PARENT), (DERIVED, PARENT)], contexts)
    for derived in (
        [(0, PARENT)],
        [(2, PARENT)],
        [(-1, PARENT)],
        [(DERIVED, PARENT)],
        [(1, "no")],
        [(1, PARENT + "0")],
    ):
        with pytest.raises(ProtocolError, match="a context"):
            checker().derives(derived, contexts)


@pytest.mark.parametrize(
    "change",
    [
        {"trace": "no"},
        {"span": ""},
        {"parent": ""},
        {"event": "e" * 300},
        {"state": ["s" * 300]},
        {"id": "i" * 20_000},
        {"text": "t" * 1_001},
        {"start": 9, "end": 8},
        {"start": -1},
        {"attempt": -1},
        {"code": "mine"},
    ],
)
def test_a_span_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    good = span(1, 0)
    checker().spans([good])
    with pytest.raises(ProtocolError, match="a span"):
        checker().spans([msgspec.structs.replace(good, **change)])


# ------------------------------------------------------------------ export


def test_the_environment_says_where_traces_go() -> None:
    assert settings_of({}) is None
    found = settings_of(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/base/",
            "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20x, a = b=c",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "a=d",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=other,team=a%2Cb",
        }
    )
    assert found is not None
    assert (found.url, found.timeout, found.packs) == ("http://c:4318/base/v1/traces", 2.5, False)
    assert found.headers == {"authorization": "Bearer x", "a": "d"}
    assert found.resource == {"service.name": "other", "team": "a,b"}
    own = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://c/t", "OTEL_SERVICE_NAME": "me"}
    found = settings_of(own)
    assert found is not None
    assert (found.url, found.resource) == ("https://c/t", {"service.name": "me"})
    assert settings_of({**own, "OTEL_SDK_DISABLED": "TRUE"}) is None
    assert settings_of({**own, "OTEL_TRACES_EXPORTER": "none"}) is None


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4318", "is the address of a collector"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://c", "is the address of a collector"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTLP over HTTP, as JSON"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip", "none or gzip"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "secret", "separated by commas"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=b%0Ac", "a line end"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "milliseconds"),
    ],
)
def test_what_the_environment_says_wrong_is_told(name: str, value: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as e:
        settings_of({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", name: value})
    assert "secret" not in str(e.value)


def test_the_sampler_of_the_environment() -> None:
    def share(sampler: str, argument: str = "") -> float:
        return share_of({"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument})

    assert (share(""), share("always_on"), share("parentbased_always_off")) == (0, 1, 0)
    assert (share("traceidratio", "0.25"), share("parentbased_traceidratio", "0.5")) == (0.25, 0.5)
    for sampler, argument in (("jaeger_remote", ""), ("traceidratio", "2"), ("traceidratio", "x")):
        with pytest.raises(UsageError, match="OTEL_TRACES_SAMPLER"):
            share(sampler, argument)


texts = st.text(max_size=20)


@given(
    st.lists(
        st.builds(
            Span, traces, parents, st.one_of(st.just(""), parents), texts, st.text(min_size=1), texts,
            st.one_of(st.none(), texts), st.integers(1, 9), st.integers(1, 1 << 60), st.integers(1 << 60, 1 << 61),
            st.sampled_from(("ok", "error", "call", "in")), texts, texts, st.lists(texts, max_size=3), texts, texts,
        ),
        max_size=5,
    )
)  # fmt: skip
def test_whatever_a_span_holds_is_otlp(spans: list[Span]) -> None:
    """As the official definitions have it."""
    collector = otlp.Strict.__new__(otlp.Strict)
    collector.spans, collector.resources, collector.problems = [], [], []
    body = request_of([("app", each) for each in spans], {"service.name": "s"}, "1")
    assert collector.take("/v1/traces", "application/json", body) == 200, collector.problems
    assert [each.trace_id.hex() for each in collector.spans] == [each.trace for each in spans]
    assert [each.start_time_unix_nano for each in collector.spans] == [each.start for each in spans]


def test_a_failed_span_says_why_and_a_key_is_an_attribute() -> None:
    failed = msgspec.structs.replace(span(1, 0), outcome="error", kind="ValueError", text="no", key="ann", state=["n!"])
    (found,) = json.loads(request_of([("app", failed)], {}, "1"))["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert found["status"] == {"code": 2, "message": "ValueError: no"}
    attributes = {each["key"]: each["value"] for each in found["attributes"]}
    assert attributes["grape.key"] == {"stringValue": "ann"}
    assert attributes["error.type"] == {"stringValue": "ValueError"}
    assert attributes["grape.state.written"] == {"arrayValue": {"values": [{"stringValue": "n"}]}}
