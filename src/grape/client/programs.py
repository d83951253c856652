"""What programs do with an engine that runs: emit, call, look."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from concurrent.futures import Future
from typing import Any, Final

from grape.client.calls import Call, Calls, CallStream, answer_as
from grape.client.connection import Connection, answered, decoded
from grape.client.events import ClientEvent, check_call_timeout, check_timeout, client_event
from grape.client.tracing import in_trace
from grape.errors import GrapeError
from grape.model.numbers import AppNumbers
from grape.model.topology import Limits
from grape.protocol.door import Emit

UNKNOWN: Final = "it is not known whether the event was accepted (with the same id= emit it again)"


class EngineClient(ABC):
    """Somebody who is, or may be, connected to an engine. Any thread.

    Attributes:
        calls: that wait for answers.
    """

    def __init__(self) -> None:
        self.calls = Calls()

    @abstractmethod
    def connected(self) -> Connection:
        """
        Raises:
            GrapeError: the engine has ended.
        """

    @property
    @abstractmethod
    def limits(self) -> Limits:
        """What events may be."""

    traceparent: str = ""
    """In which all that is handed in is traced, if it is sampled; the one that is current in the program's own
    OpenTelemetry goes before it. (W3C trace context: docs/traces.md)"""

    def emit(
        self,
        event: str,
        data: Any = None,
        *,
        key: str | None = None,
        id: str | None = None,
        deadline: float | None = None,
        timeout: float | None = 30.0,
    ) -> None:
        """Hand in an event; returns when it is durable.

        Args:
            id: the event's own id: the same id and content is accepted once, other content is a conflict.
            deadline: in so many seconds nobody is interested any more: no handler starts with it, or with what was
                emitted for it, later than that; it becomes a dead letter.
            timeout: seconds to wait; None: without an end.

        Raises:
            Full: the backlog is at its limit.
            Conflict: the id was used for another event.
            UnknownEvent: nothing listens to it.
            BadArgument: a name, key, id or time that cannot be one; BadValue, TooLarge: data that cannot travel.
            NoAnswer: it is not known whether it was accepted; with ``id`` it can be emitted again. A TimeoutError.
        """
        checked = client_event(event, data, key, id, deadline, self.limits.max_event)
        wait = check_timeout(timeout)
        answered(self.hand_in(checked), wait, UNKNOWN)

    def call(
        self,
        event: str,
        data: Any = None,
        *,
        key: str | None = None,
        deadline: float | None = None,
        timeout: float | None = 30.0,
        type: Any = Any,
    ) -> Any:
        """Hand in an event and wait for its answer: the data of the first final reply to it, by whatever node gives it.

        Args:
            deadline: as of `emit`; an event that is too late answers with an error.
            timeout: seconds to wait; None: without an end.
            type: what the answer is decoded as.

        Raises:
            BadPayload: the answer does not fit ``type``.
            CallFailed: what should have answered failed for good; it has the code, text and node of the failure.
            NoAnswer: nothing came in time, or the engine was closed. A TimeoutError.
            Full: 10,000 calls wait already; or as of `emit`, as are UnknownEvent, BadArgument, BadValue and TooLarge.
        """
        for reply in self._start_call(event, data, key, deadline, timeout, keeps_parts=False):
            return answer_as(reply.data, type)

    def call_stream(
        self,
        event: str,
        data: Any = None,
        *,
        key: str | None = None,
        deadline: float | None = None,
        timeout: float | None = 30.0,
    ) -> CallStream:
        """Hand in an event, now; an iterator over the replies to it, as they come: ``reply.data``, and ``reply.final``
        of the last one. Arguments and errors are those of `call`, but that ``timeout`` is for each reply.

        Parts that nobody reads are kept, up to 64 MiB of all calls; whoever reads no further closes it.
        """
        return self._start_call(event, data, key, deadline, timeout, keeps_parts=True)

    def _start_call(
        self, event: str, data: Any, key: str | None, deadline: float | None, timeout: float | None, keeps_parts: bool
    ) -> CallStream:
        checked = client_event(event, data, key, None, deadline, self.limits.max_event)
        wait = check_call_timeout(timeout)
        fresh = threading.Semaphore(0)
        call = self.calls.open(keeps_parts, fresh.release)
        self.start_call(call, checked)
        return CallStream(call, fresh, wait)

    def start_call(self, call: Call, event: ClientEvent) -> None:
        """Hand in the event of a call. Returns at once; what goes wrong is told to the call."""

        def accepted(handed_in: Future[None]) -> None:
            error = handed_in.exception()
            if error is None:
                call.accepted()
            else:
                call.fail(error)

        self.hand_in(event, call.request).add_done_callback(accepted)

    def hand_in(self, event: ClientEvent, request: str = "") -> Future[None]:
        """Hand in an event: done when it is durable. ``request``: under which its caller waits for replies."""
        try:
            connection = self.connected()
        except GrapeError as e:
            return failed(e)
        event = in_trace(event, self.traceparent)
        what = event.name, event.key, event.data, event.id, event.wait, request, event.trace, event.via
        return connection.ask(lambda number: Emit(number, *what))

    def numbers(self) -> AppNumbers:
        """What is measured, as it is now: queues, workers, rates, latencies, by pool; see `grape.model.numbers`.

        Raises:
            GrapeError: the engine has ended.
        """
        return answered(self.ask_numbers(), 30.0, "no answer")

    def ask_numbers(self) -> Future[AppNumbers]:
        try:
            return decoded(self.connected().ask_verb("numbers"), AppNumbers)
        except GrapeError as e:
            return failed(e)


def failed(error: GrapeError) -> Future[Any]:
    """What was asked of an engine that has ended."""
    asked: Future[Any] = Future()
    asked.set_exception(error)
    return asked
