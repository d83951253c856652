"""Traces: which event has caused which, as W3C trace context says it, and what is kept of the way of one.

A traced event carries ``trace-parent`` in its context: the trace, and the span that it is a child of. The id of its own
span follows from what the event is (`span_of`), so nothing has to be agreed on, and whoever runs it again after a crash
finds the same one.
"""

from __future__ import annotations

import hashlib
import random
import re
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from grape.model.stored import OUTPUT

SPANS: Final = "~spans"
"""The output in which the spans of an app lie."""
SPANS_LOG: Final = OUTPUT + SPANS
SPAN: Final = "span"
"""Name of its events."""
MAX_TEXT: Final = 1_000
"""Characters of the text of an error in a span."""
MAX_VIA: Final = 100
_HEADER: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_CONTEXT: Final = re.compile(r"([0-9a-f]{32})-([0-9a-f]{16})(?:-([1-9]\d{0,8}))?")
_SAMPLED: Final = 1
NOBODY: Final = "f" * 16
"""The parent in a ``traceparent`` of a trace that begins with the event."""
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16


class Trace(NamedTuple):
    """``trace``: its id, 32 hexadecimal digits. ``parent``: a span of it, 16; "": none. ``again``: how often an
    operator has had the event tried anew, whose attempts then count from 1."""

    trace: str
    parent: str
    again: int = 0

    def __str__(self) -> str:
        """As a context carries it."""
        return f"{self.trace}-{self.parent}" + (f"-{self.again}" if self.again else "")

    def span(self, event_id: str, node: str, attempt: int, answers: int) -> str:
        """The id of the span of an event that has this: see `span_of`."""
        return span_of(self.trace, event_id, node, attempt, answers, self.again)

    @property
    def traceparent(self) -> str:
        """As W3C trace context says it."""
        return f"00-{self.trace}-{self.parent}-01"


class Span(Struct, frozen=True, array_like=True):
    """One event at one node, once; or (``node`` "") that it came in.

    ``parent``: "" if nobody is known who caused it. ``id``: of the event, "" if it got one later. ``attempt`` counts
    from 1. ``start``, ``end``: nanoseconds of wall time. ``outcome``: "ok", "error" (then ``kind`` and ``text`` say
    which), "call" (it was left to wait for the answer to ``kind``), "in" (``kind`` says by what it came). ``state``:
    names of what is kept under its key, with "!" behind them if it may have changed. ``code``: which version ran. No
    data of an event is ever in here."""

    trace: str
    span: str
    parent: str
    id: str
    event: str
    node: str
    key: str | None
    attempt: int
    start: int
    end: int
    outcome: str
    kind: str = ""
    text: str = ""
    state: list[str] = []
    worker: str = ""
    code: str = ""


decode_spans: Final = msgspec.msgpack.Decoder(list[Span]).decode


def reason(span: Span) -> str:
    """Why it failed, with its kind, which the text may begin with."""
    return span.text if span.text.startswith(span.kind) else f"{span.kind}: {span.text}"


def read_context(text: str) -> Trace | None:
    """What a context carries; None: the event is not traced."""
    found = _CONTEXT.fullmatch(text)
    return None if found is None else Trace(found[1], found[2], int(found[3] or 0))


def once_more(text: str) -> str:
    """What the context of an event carries that an operator has tried anew."""
    found = read_context(text)
    return text if found is None else str(found._replace(again=found.again + 1))


def read_traceparent(header: str) -> tuple[Trace, bool] | None:
    """What a ``traceparent`` says, and whether it is sampled; None: it cannot be one, and is to be ignored."""
    found = _HEADER.fullmatch(header.strip(" \t"))
    if found is None or found[1] == "ff" or (found[1] == "00" and found[5]):
        return None
    if found[2] == _NO_TRACE or found[3] == _NO_SPAN:
        return None
    return Trace(found[2], found[3]), bool(int(found[4], 16) & _SAMPLED)


def sampled(header: str) -> Trace | None:
    """The trace that a ``traceparent`` asks for; None: none."""
    found = read_traceparent(header)
    return found[0] if found is not None and found[1] else None


def fresh_traceparent() -> str:
    """Of a new trace, whose first span nobody will tell of."""
    return Trace(f"{random.getrandbits(128) or 1:032x}", NOBODY).traceparent


def span_of(trace: str, event_id: str, node: str, attempt: int, answers: int = 0, again: int = 0) -> str:
    """The id of the span of an event at a node. ``answers``: to its calls, that it goes on with. ``again``: see
    `Trace`."""
    text = "\0".join((trace, event_id, node, str(attempt), str(answers), *([str(again)] if again else [])))
    found = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return found if found != _NO_SPAN else "1" * 16
