"""What programs hand in: checked before anything is sent, as whoever wrote the line can mend it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

from msgspec import Struct

from grape.errors import BadArgument
from grape.model.address import MAX_ID_BYTES, check_key, check_text
from grape.model.values import encode, seconds, shown, to_value

T = TypeVar("T")

MAX_TIMEOUT: Final = 1e9


class ClientEvent(Struct, frozen=True):
    """An event as a client means it, checked. ``data``: encoded. ``wait``: microseconds until its deadline. ``trace``:
    a W3C ``traceparent``, ``via``: what it came by."""

    name: str
    key: str | None
    data: bytes
    id: str = ""
    wait: int | None = None
    trace: str = ""
    via: str = ""


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
        raise BadArgument(f"the name of an event is text (str) of 1 character at least, not {shown(name)}")
    return ClientEvent(
        _checked(lambda: check_text(name, "the name of an event", MAX_ID_BYTES)),
        None if key is None else _checked(lambda: check_key(key)),
        bytes(encode(to_value(data, max_event))),
        "" if event_id is None else _checked(lambda: check_text(event_id, "id=", MAX_ID_BYTES)),
        None if deadline is None else int(check_seconds(deadline, "deadline=") * 1e6),
    )


def check_seconds(value: object, what: str) -> float:
    """
    Raises:
        BadArgument: it is no number of seconds.
    """
    if not isinstance(value, int | float | timedelta):
        raise BadArgument(f"{what} is a number of seconds, not {shown(value)}")
    return _checked(lambda: seconds(value, what))


def check_timeout(value: object) -> float | None:
    """Seconds to wait; None: without an end.

    Raises:
        BadArgument: it is neither.
    """
    return None if value is None else min(check_seconds(value, "timeout="), MAX_TIMEOUT)


def check_call_timeout(value: object) -> float | None:
    """`check_timeout` of a call, in which nothing can come in no time.

    Raises:
        BadArgument: it is none.
    """
    checked = check_timeout(value)
    if checked == 0:
        raise BadArgument("timeout=0: an answer takes some time; whoever wants none emits instead of calling")
    return checked


def _checked(check: Callable[[], T]) -> T:
    try:
        return check()
    except (TypeError, ValueError, OverflowError) as e:
        raise BadArgument(str(e)) from None
