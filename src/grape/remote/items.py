"""Events of the user's own as batches: `Event`s, pairs (key, data), or bare data, as of a source."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final

from grape.client.events import ClientEvent
from grape.errors import BadArgument, HandlerError
from grape.model.event import Event
from grape.model.values import shown
from grape.remote.asked import Batch, event_of, fresh_id

MOST: Final = 1_000
"""Events of a batch: as many as a gateway has under way at a time."""
MOST_BYTES: Final = 4 << 20

Pick = Callable[[Any], str] | None


class Items:
    """Of one event of an app.

    Args:
        key, id: what they are taken from, of an event's data; None: what the item says, and one that is made up.
    """

    def __init__(self, app: str, name: str, key: Pick, id: Pick) -> None:
        for what, pick in (("key=", key), ("id=", id)):
            if pick is not None and not callable(pick):
                raise BadArgument(f"{what} is a function that gets the data of an event, not {shown(pick)}")
        self._app = app
        self._name = name
        self._key = key
        self._id = id
        self._prefix = fresh_id()
        self._count = 0
        self._events: list[ClientEvent] = []
        self._size = 0

    def event(self, item: Any) -> ClientEvent:
        """
        Raises:
            BadArgument, BadValue, TooLarge: it cannot be one; the text says which.
        """
        name, key = self._name, None
        if isinstance(item, Event):
            name, key, data = item.name, item.key, item.data
        elif type(item) is tuple:
            if len(item) != 2:
                raise BadArgument(f"item {self._count}: a tuple is a pair (key, data), not {shown(item)}")
            key, data = item
        else:
            data = item
        own_id = f"{self._prefix}-{self._count}" if self._id is None else self._id(data)
        key = key if self._key is None else self._key(data)
        try:
            made = event_of(name, data, key, own_id, None)
        except (BadArgument, HandlerError) as e:
            raise type(e)(f"item {self._count}: {e}") from None
        self._count += 1
        return made

    def add(self, item: Any) -> Batch | None:
        """A batch that is full with it.

        Raises:
            BadArgument, BadValue, TooLarge: it cannot be one.
        """
        event = self.event(item)
        self._events.append(event)
        self._size += len(event.data) + len(event.key or "")
        return self.rest() if len(self._events) >= MOST or self._size >= MOST_BYTES else None

    def rest(self) -> Batch | None:
        """What no batch has yet."""
        events, self._events, self._size = self._events, [], 0
        return Batch(self._app, tuple(events)) if events else None


def note_accepted(error: BaseException, count: int) -> None:
    """Let an error, whosever it is, say how many events were accepted before it."""
    with contextlib.suppress(AttributeError, TypeError):
        setattr(error, "accepted", max(count, getattr(error, "accepted", 0)))  # noqa: B010 - it is any error


def check_iterable(items: object, kinds: tuple[type, ...]) -> None:
    """
    Raises:
        BadArgument: it has no items that are events.
    """
    if isinstance(items, str | bytes | bytearray | dict | Event) or not isinstance(items, kinds):
        raise BadArgument(f"events are a list or another iterable, not {shown(items)}")
