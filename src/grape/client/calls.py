"""Calls: who waits for which answer.

Replies come in batches, once the commit that made them is done, those to other clients among them. What nobody waits
for (any more) is dropped.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final
from uuid import uuid4

from msgspec import MsgspecError

from grape.authoring.emitter import Reply
from grape.errors import CallFailed, Full, GrapeError, NoAnswer
from grape.model import batch as codec
from grape.model import own
from grape.model.stored import REPLY_DEAD
from grape.model.values import decode
from grape.protocol.door import Replies

MAX_CALLS: Final = 10_000
"""Calls of one engine that wait at the same time."""
MAX_PART_BYTES: Final = 64 << 20
"""Parts that all calls together have got and not read."""

Heard = Callable[[], object]


class Call:
    """One call. ``heard`` is called, on a thread of the engine, whenever there is something to `take`."""

    def __init__(self, calls: Calls, request: str, keeps_parts: bool, heard: Heard) -> None:
        self.request = request
        self.keeps_parts = keeps_parts
        self.heard = heard
        self.replies: deque[tuple[bytes, bool]] = deque()
        self.error: BaseException | None = None
        self.is_accepted = False
        self.has_ended = False
        self._calls = calls

    def take(self) -> Reply | None:
        """The next reply; None if there is none yet.

        Raises:
            CallFailed: the answer is an error.
            GrapeError: there will be none.
        """
        reply = self._calls.take(self)
        if reply is None:
            if self.error is not None:
                raise self.error
            return None
        packed, final = reply
        data = decoded_reply(packed)
        failed = failure_in(data) if final else None
        if failed is not None:
            raise failed
        return Reply(data, final)

    def accepted(self) -> None:
        """Its event is durable."""
        self.is_accepted = True

    def fail(self, error: BaseException) -> None:
        """There will be no (further) reply."""
        self._calls.fail(self, error)

    def clear(self) -> None:
        """What came up to now is had from where it is kept."""
        self._calls.clear(self)

    def close(self) -> None:
        """Nobody waits for it any more."""
        self._calls.close(self)

    def late(self, timeout: float | None) -> NoAnswer:
        """What is raised if nothing came in time."""
        how = (
            "its event was accepted, and what answers later is dropped"
            if self.is_accepted
            else ("it is not known whether its event was accepted")
        )
        return NoAnswer(f"no answer after {timeout:g} s; {how}")


class Calls:
    """The calls of one engine that wait. Any thread."""

    def __init__(self) -> None:
        self._prefix = f"call-{uuid4().hex}-"  # answers of an earlier run on this directory are nobody's
        self._numbers = itertools.count()
        self._lock = threading.RLock()  # the garbage collector may close a forgotten stream at any moment
        self._waiting: dict[str, Call] = {}
        self._part_bytes = 0
        self._ended: Callable[[], GrapeError] | None = None

    def open(self, keeps_parts: bool, heard: Heard, request: str = "") -> Call:
        """``request``: under which it waits; "": one of its own.

        Raises:
            Full: too many wait, or one waits under that already.
            GrapeError: the engine has ended.
        """
        with self._lock:
            if self._ended is not None:
                raise self._ended()
            if len(self._waiting) >= MAX_CALLS:
                raise Full(f"{MAX_CALLS:,} calls wait for their answers already")
            if request in self._waiting:
                raise Full("a call with the same id waits already")
            call = Call(self, request or f"{self._prefix}{next(self._numbers)}", keeps_parts, heard)
            self._waiting[call.request] = call
            return call

    def __len__(self) -> int:
        return len(self._waiting)

    def replied(self, replies: Replies) -> None:
        """Batches of replies, some of which may be for somebody here."""
        if self._waiting:
            for batch in replies.batches:
                for request, packed, final in replies_in(batch):
                    self._replied(request, packed, final)

    def _replied(self, request: str, packed: bytes, final: bool) -> None:
        with self._lock:
            call = self._waiting.get(request)
            if call is None or not (final or call.keeps_parts):
                return
            if final:
                self._end(call)
            elif self._part_bytes + len(packed) > MAX_PART_BYTES:
                call.error = Full(f"over {MAX_PART_BYTES:,} bytes of parts of replies were not read; read them faster")
                self._end(call)
            else:
                self._part_bytes += len(packed)
            if call.error is None:
                call.replies.append((packed, final))
        call.heard()

    def take(self, call: Call) -> tuple[bytes, bool] | None:
        with self._lock:
            if not call.replies:
                return None
            packed, final = call.replies.popleft()
            self._part_bytes -= 0 if final else len(packed)
            return packed, final

    def fail(self, call: Call, error: BaseException) -> None:
        """There will be no (further) reply."""
        with self._lock:
            if call.has_ended:
                return
            call.error = error
            self._end(call)
        call.heard()

    def close(self, call: Call) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            self._end(call)
            self.clear(call)

    def clear(self, call: Call) -> None:
        """What it has got and not taken is let go of."""
        with self._lock:
            self._part_bytes -= sum(len(packed) for packed, final in call.replies if not final)
            call.replies.clear()

    def end(self, waiting: Callable[[], GrapeError], later: Callable[[], GrapeError]) -> None:
        """The engine has ended: what all get that wait, and whoever comes."""
        with self._lock:
            self._ended = later
            calls = list(self._waiting.values())
        for call in calls:
            call.fail(waiting())

    def _end(self, call: Call) -> None:
        call.has_ended = True
        if self._waiting.get(call.request) is call:
            del self._waiting[call.request]


class CallStream:
    """The replies to one call, as they come: the last one is final. To be used as an iterator; ``with`` it, or `close`,
    gives the rest up."""

    def __init__(self, call: Call, fresh: threading.Semaphore, timeout: float | None) -> None:
        self._call = call
        self._fresh = fresh
        self._timeout = timeout
        self._is_over = False

    def __iter__(self) -> CallStream:
        return self

    def __next__(self) -> Reply:
        """
        Raises:
            CallFailed: what should have answered failed for good.
            NoAnswer: no reply came in time.
            GrapeError: the engine had to stop.
        """
        if self._is_over:
            raise StopIteration
        try:
            reply = self._next()
        except BaseException:
            self.close()
            raise
        if reply.final:
            self.close()
        return reply

    def _next(self) -> Reply:
        deadline = math.inf if self._timeout is None else time.monotonic() + self._timeout
        while (reply := self._call.take()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._call.late(self._timeout)
            self._fresh.acquire(timeout=min(left, threading.TIMEOUT_MAX))
        return reply

    def close(self) -> None:
        """Nobody waits for further replies."""
        self._is_over = True
        self._call.close()

    def __enter__(self) -> CallStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def replies_in(batch: bytes) -> Iterator[tuple[str, bytes, bool]]:
    """(request, data, final) of each; what cannot be read is left out: its call will have no answer in time."""
    try:
        for run in codec.runs_of(codec.body_of(batch, codec.header_of(batch))):
            keys, data = codec.keys_of(run), codec.raw_data_of(run)
            if keys is not None and data is not None:
                for name, key, raw in zip(codec.names_of(run), keys, data, strict=True):
                    yield key or "", bytes(raw), name == "final"
    except (GrapeError, MsgspecError, ValueError, RecursionError, IndexError):
        return


def answer_as(data: Any, kind: Any) -> Any:
    """
    Raises:
        BadPayload: it does not fit.
    """
    return data if kind is Any else own.convert(data, kind, "answer")


def decoded_reply(packed: bytes) -> Any:
    """Its data; what is no value of ours stays as it is."""
    try:
        return decode(packed)
    except (MsgspecError, RecursionError, TypeError, ValueError):  # such as a map with a map as a key
        return packed


def failure_in(data: Any) -> CallFailed | None:
    """What is raised for the answer that the engine gives if an event has become a dead letter."""
    if type(data) is dict and data.keys() == {"error"} and type(data["error"]) is dict:
        error = data["error"]
        if error.get("note") == REPLY_DEAD:
            return CallFailed(*(str(error.get(name, "")) for name in ("code", "text", "node")))
    return None
