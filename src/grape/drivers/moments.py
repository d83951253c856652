"""Which moments of a schedule are to be fired now: pure, with the time as an argument.

What has been fired last is the position of the driver's stream, committed together with the events. So whatever is
killed, and whenever: a moment behind the position is still to come, one before it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, takewhile
from typing import Final, Literal, Protocol
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Struct

CatchUp = Literal["none", "last", "all"]

MOST: Final = 1_000
"""Moments that are made up for, at most: the newest."""
BACK: Final = 3 * 3_600_000
"""Milliseconds. A clock that is set back by less is waited for: its moments have been. By more, it was wrong before."""


class Schedule(Protocol):
    """Of a driver. Times are milliseconds since 1970."""

    text: str
    zone: ZoneInfo | None

    def after(self, at: int, low: int) -> int | None:
        """The first moment behind ``at`` and ``low``; None: there is none."""

    def back(self, at: int, high: int) -> Iterator[int]:
        """Those behind ``at``, up to ``high``, the newest first."""


class MomentsAt(Struct, frozen=True, array_like=True, tag="moments"):
    """A position. ``schedule``: its text. ``at``: behind this. ``fired``: the last one that was; 0: none yet."""

    schedule: str
    at: int
    fired: int = 0


class Moments:
    """
    Args:
        catch_up: what becomes of moments that nobody was there for. grace: for so long one may still come late.

    Attributes:
        is_new: it has no position that was stored: what comes from now on could be lost with it.
        fired: the last moment; 0: none.
    """

    def __init__(self, schedule: Schedule, catch_up: CatchUp, grace: int) -> None:
        self.schedule = schedule
        self.is_new = True
        self.fired = 0
        self._catch_up = catch_up
        self._grace = grace
        self._at: int | None = None

    def begin(self, position: bytes, now: int) -> None:
        """Go on behind a position that is stored. With another schedule it begins now: what that one missed while the
        app had the old one are no moments of it."""
        try:
            stored = msgspec.msgpack.decode(position, type=MomentsAt)
        except msgspec.MsgspecError:  # there is none, or it was of another kind
            stored = MomentsAt("", 0)
        self.fired = stored.fired
        self.is_new = stored.schedule != self.schedule.text or stored.at > now + BACK
        self._at = now if self.is_new else stored.at

    def due(self, now: int) -> list[int]:
        """The moments to be fired now, in their order."""
        at = self._at
        if at is None:
            return []
        if at > now + BACK:
            self._at, self.is_new = now, True
            return []
        late = max(at, now - self._grace)
        recent = self._between(at, late, now, None)
        if late == at or self._catch_up == "none" or (self._catch_up == "last" and recent):
            return recent
        return self._between(at, at, late, 1 if self._catch_up == "last" else MOST) + recent

    def _between(self, at: int, low: int, high: int, most: int | None) -> list[int]:
        """Those behind ``low``, up to ``high``; of many the newest."""
        found = list(takewhile(lambda moment: moment > low, islice(self.schedule.back(at, high), most)))
        return found[::-1]

    def next(self, now: int) -> int | None:
        """When there is something to fire next, ``now`` at the earliest; None: never."""
        if self._at is None:
            return None
        if self.due(now):
            return now
        return self.schedule.after(self._at, now)

    def position(self, fired: int | None = None) -> bytes:
        """What is stored with this moment, or with none."""
        assert self._at is not None
        at = self._at if fired is None else fired
        return msgspec.msgpack.encode(MomentsAt(self.schedule.text, at, self.fired if fired is None else fired))

    def took(self, fired: int | None = None) -> None:
        """That is stored."""
        self.is_new = False
        if fired is not None:
            self._at = self.fired = fired
