"""Calls of handlers: how one suspends its event, and what it gets when that runs again.

The first time a handler comes to a call there is no answer: it is left (`Suspended`), all that it did is undone, and
its event is held. The request goes out with the same commit. When the answer is there the handler runs once more from
its beginning, and the call returns it; so do all that it has made before. Nothing waits but the event.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from hashlib import blake2b
from typing import Any, Final, Protocol

import msgspec

from grape.authoring.emitter import INHERIT
from grape.errors import CallFailed, HandlerError, NoAnswer
from grape.model import own
from grape.model.values import encode, seconds
from grape.protocol.messages import Answer
from grape.worker.objects import Access, Part
from grape.worker.together import Together

_MOST: Final = 1_000
"""Calls that one event may make."""


class Suspended(BaseException):
    """A handler is left, as the answer to its call is yet to come. Not an Exception: a handler's own ``except`` is not
    for it. ``timeout``: microseconds."""

    def __init__(self, event: str, data: Any, key: Any, timeout: int, digest: bytes) -> None:
        super().__init__(f"waits for the answer to {event!r}")
        self.event = event
        self.data = data
        self.key = key
        self.timeout = timeout
        self.digest = digest


class Running(Protocol):
    """The event that a handler runs for."""

    def own_key(self) -> str | None:
        """Its key."""

    def keys_ahead(self) -> Sequence[str | None]:
        """Its key and those of the events that its handler gets next; empty: none is known."""

    @property
    def together(self) -> Together | None:
        """The work that it is part of, if that is handed in as a whole."""

    def answers(self) -> Sequence[Answer]:
        """To the calls that it has made before."""

    def place(self) -> object:
        """Equal while it is the same run of it."""

    def is_left(self) -> None:
        """Its handler ends here."""

    def objects(self) -> Access | None:
        """By which it has objects; None: there are none."""

    @property
    def part(self) -> Part:
        """The partition in which it runs."""


class Calls:
    """Of one emitter. ``suspended``: by what its event was left; it stays if the handler has caught that."""

    def __init__(self, node: str, running: Running) -> None:
        self._node = node
        self._running = running
        self.begin()

    def begin(self) -> None:
        """Another stage: nothing of the one before counts."""
        self._place: object = None
        self._made = 0
        self._was_caught = False
        self.suspended: Suspended | None = None

    def answer(self, event: str, data: Any, key: Any, timeout: float | timedelta, type: Any) -> Any:
        """Of the next call of the event; all its arguments can travel.

        Raises:
            Suspended: it is not there yet.
            NoAnswer: it did not come in time.
            CallFailed: who should have answered failed.
            HandlerError: the handler asked something else before, or too often.
        """
        wait = int(seconds(timeout, "timeout") * 1e6)
        if not wait:
            raise ValueError("timeout=0: an answer takes longer than that")
        place = self._running.place()
        if self.suspended is not None:
            if place == self._place:
                raise self.suspended  # it is left, whatever it has caught
            self._was_caught = True
        if place != self._place:
            self._place, self._made = place, 0
        ordinal, self._made = self._made, self._made + 1
        digest = blake2b(encode([event, None if key is INHERIT else [key], data]), digest_size=8).digest()
        answers = self._running.answers()
        if ordinal >= len(answers):
            if ordinal >= _MOST:
                raise HandlerError(f"node {self._node!r} has made {_MOST:,} calls for one event")
            self._running.is_left()
            self.suspended = Suspended(event, data, key, wait, digest)
            raise self.suspended
        answer = answers[ordinal]
        if answer.digest != digest:
            raise HandlerError(
                f"call {ordinal + 1} of node {self._node!r} was another one when its event ran before: up to its last "
                f"call a handler must do the same every time (no time, no chance, nothing from outside, the same code)"
            )
        if answer.is_error:
            raise _error(answer)
        try:
            return own.decoder(type)(answer.data)
        except (msgspec.MsgspecError, RecursionError) as e:
            raise own.misfit(type, e, f"answer to {event!r}") from None

    def was_caught_before(self, error: BaseException) -> bool:
        """Whether a handler went on although it was to be left, before one raised ``error``."""
        return self._was_caught or self.suspended not in (None, error)

    def check(self) -> None:
        """
        Raises:
            HandlerError: the handler went on although it was to be left.
        """
        if self.suspended is not None:
            raise HandlerError(
                f"node {self._node!r} caught what ends its handler while it waits for the answer to "
                f"{self.suspended.event!r}: a bare except, or except BaseException, has to raise again"
            )


def _error(answer: Answer) -> Exception:
    said = msgspec.msgpack.decode(answer.data)["error"]
    if said["code"] == NoAnswer.code:
        return NoAnswer(said["text"])
    return CallFailed(said["code"], said["text"], said["node"])
