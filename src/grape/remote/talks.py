"""From the first try to the answer, without I/O: generators that say what to try and how long to pause, and are sent
what came of it. A client runs them with whatever carries its questions."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

from msgspec import Struct

from grape.authoring.emitter import Reply
from grape.errors import GrapeError
from grape.remote.asked import Asked, Batch, Call, Heard, later
from grape.remote.patience import Patience

T = TypeVar("T")


class Try(Struct, frozen=True):
    """Ask that, and send what was heard. ``timeout``: seconds; None: without an end."""

    asked: Asked
    timeout: float | None


class Pause(Struct, frozen=True):
    """Wait so many seconds."""

    seconds: float


Talk = Generator[Try | Pause, Heard | None, T]


def talk(asked: Asked, patience: Patience) -> Talk[Any]:
    """Until it is answered.

    Raises:
        GrapeError: it is not.
    """
    while True:
        heard = yield Try(later(asked, patience.elapsed), patience.left)
        assert heard is not None
        if heard.error is None:
            return heard.value
        yield Pause(patience.after(heard))


def batch_talk(batch: Batch, patience: Patience, before: int) -> Talk[int]:
    """Until all of a batch are accepted; how many those are, with those ``before`` it. As long as some are accepted
    there is time for the others.

    Raises:
        GrapeError: it has `accepted`.
    """
    left = list(enumerate(batch.events))
    while True:
        heard = yield Try(Batch(batch.app, tuple(event for _, event in left)), patience.left)
        assert heard is not None
        if heard.error is None:
            return before + len(batch.events)
        if heard.untaken is not None and len(heard.untaken) < len(left):
            left = [left[i] for i in heard.untaken]
            patience.renew()
        try:
            pause = patience.after(heard)
        except GrapeError as e:
            e.accepted = before + left[0][0]
            raise
        yield Pause(pause)


class StreamTalk:
    """The replies to a call, of which each try gives all from the first one on.

    Attributes:
        is_over: the final one has come.
    """

    def __init__(self, call: Call, patience: Patience) -> None:
        self.is_over = False
        self._call = call
        self._patience = patience
        self._given = 0
        self._seen = 0

    def next_try(self) -> tuple[Call, float | None]:
        """What to ask for, and the time for each reply."""
        self._seen = 0
        asked = later(self._call, self._patience.elapsed)
        assert isinstance(asked, Call)
        return asked, self._patience.left

    def came(self, reply: Reply) -> bool:
        """Whether it is a new one."""
        self._seen += 1
        if self._seen <= self._given:
            return False
        self._given = self._seen
        self.is_over = reply.final
        self._patience.renew(is_accepted=True)
        return True

    def failed(self, heard: Heard) -> float:
        """Seconds to wait before the next try.

        Raises:
            GrapeError: there is none.
        """
        return self._patience.after(heard)
