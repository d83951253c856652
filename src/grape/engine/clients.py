"""What clients hand in: checked at one door before it touches anything, then accepted once.

A client's event has no number of its own, as those of sources have. With an ``id`` its partition remembers it for the
dedup-horizon, together with its acceptance.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final
from zlib import crc32

import msgspec
from msgspec import Struct

from grape.authoring.emitter import seconds
from grape.engine.engine import Engine
from grape.errors import BadArgument, Conflict, Full, GrapeError, UnknownEvent
from grape.model.address import check_key, partition_of
from grape.model.batch import Context
from grape.model.near import near
from grape.model.values import encode, to_value

MAX_ID_BYTES: Final = 1_024
MAX_TIMEOUT: Final = 1e9


class ClientEvent(Struct, frozen=True):
    """An event as a client means it, checked. ``data``: encoded. ``wait``: microseconds until its deadline."""

    name: str
    key: str | None
    data: bytes
    id: str = ""
    wait: int | None = None

    @property
    def content(self) -> int:
        """Tells it from other events under the same id."""
        return crc32(self.data, crc32(repr((self.name, self.key)).encode()))


def client_event(
    name: object, data: Any, key: object, event_id: object, deadline: object, max_event: int
) -> ClientEvent:
    """
    Args:
        event_id, deadline: None if there is none.

    Raises:
        BadArgument: a name, key, id or deadline that cannot be one.
        BadValue: data that cannot travel.
        TooLarge: data over ``max_event`` bytes.
    """
    if type(name) is not str or not name:
        raise BadArgument(f"the name of an event is text (str) of 1 character at least, not {_shown(name)}")
    return ClientEvent(
        _text(name, "the name of an event", MAX_ID_BYTES),
        None if key is None else _checked(lambda: check_key(key)),
        bytes(encode(to_value(data, max_event))),
        "" if event_id is None else _text(event_id, "id=", MAX_ID_BYTES),
        None if deadline is None else int(check_seconds(deadline, "deadline=") * 1e6),
    )


def check_seconds(value: object, what: str) -> float:
    """
    Raises:
        BadArgument: it is no number of seconds.
    """
    if not isinstance(value, int | float | timedelta):
        raise BadArgument(f"{what} is a number of seconds, not {_shown(value)}")
    return _checked(lambda: seconds(value, what))


def check_timeout(value: object) -> float | None:
    """Seconds to wait; None: without an end.

    Raises:
        BadArgument: it is neither.
    """
    return None if value is None else min(check_seconds(value, "timeout="), MAX_TIMEOUT)


def _text(value: object, what: str, most: int) -> str:
    if type(value) is not str:
        raise BadArgument(f"{what} is text (str), not {_shown(value)}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as e:
        raise BadArgument(f"{what} must be valid Unicode text: {e.reason}") from None
    if not 1 <= size <= most:
        raise BadArgument(f"{what} has 1 to {most:,} bytes of UTF-8, this one has {size:,}")
    return value


def _checked[T](check: Callable[[], T]) -> T:
    try:
        return check()
    except GrapeError:
        raise
    except (TypeError, ValueError, OverflowError) as e:
        raise BadArgument(str(e)) from None


def _shown(value: object) -> str:
    return f"{type(value).__name__} {msgspec_safe(value)}"
