"""What clients ask, and what they hear of it: the same whatever carries it."""

from __future__ import annotations

import math
import uuid
from collections.abc import AsyncGenerator, Generator
from types import EllipsisType
from typing import Any, Final, Literal, Protocol

from msgspec import Struct, structs

from grape.apps.manifest import APP
from grape.authoring.emitter import Reply
from grape.client.events import ClientEvent, check_seconds, client_event
from grape.errors import BadArgument, GrapeError
from grape.model.values import shown

Verb = Literal["apps", "app", "start", "stop", "pause", "resume", "restart", "upgrade", "rollback"]
Timeout = float | EllipsisType | None
"""Seconds; None: without an end; ``...``: as the client says."""

MAX_DATA: Final = 64 << 20
"""Bytes of an event that are worth sending: what an app takes is its server's to say."""


class Emit(Struct, frozen=True):
    """Hand in an event."""

    app: str
    event: ClientEvent


class Batch(Struct, frozen=True):
    """Hand in several, in their order."""

    app: str
    events: tuple[ClientEvent, ...]


class Call(Struct, frozen=True):
    """Hand in an event, and wait for its answer."""

    app: str
    event: ClientEvent


class Order(Struct, frozen=True):
    """Ask of apps, or have one started, stopped, changed. ``version``, ``drop_slots``: of an upgrade or rollback."""

    verb: Verb
    app: str = ""
    version: str = ""
    drop_slots: tuple[str, ...] = ()

    @property
    def is_harmless(self) -> bool:
        """Done twice it is as done once."""
        return self.verb in ("apps", "app", "start", "stop", "pause", "resume")


Asked = Emit | Batch | Call | Order


class Heard(Struct, frozen=True):
    """What came of one try.

    Args:
        value: the answer, if there is no error.
        again: the same may succeed later.
        is_open: it may have been done all the same.
        pause: seconds after which it is to be tried again; None: nobody says.
        untaken: of a batch, which (by their index) were not accepted; None: it is not known of any.
        is_stranger: nobody has ever answered there.
    """

    value: Any = None
    error: GrapeError | None = None
    again: bool = False
    is_open: bool = False
    pause: float | None = None
    untaken: tuple[int, ...] | None = None
    is_stranger: bool = False


class Wire(Protocol):
    """What carries questions to whoever answers, for any thread."""

    def ask(self, asked: Asked, timeout: float | None) -> Heard:
        """Try once. What goes wrong is told, not raised."""

    def replies(self, call: Call, timeout: float | None) -> Generator[Reply | Heard | None, None, None]:
        """Try once: None as soon as the event is on its way, all replies from the first one on, each within
        ``timeout``; instead of the final one, what went wrong."""

    def close(self) -> None: ...


class AsyncWire(Protocol):
    """`Wire` under asyncio."""

    async def ask(self, asked: Asked, timeout: float | None) -> Heard: ...

    def replies(self, call: Call, timeout: float | None) -> AsyncGenerator[Reply | Heard | None, None]: ...

    async def close(self) -> None: ...


def address_of(app_event: object) -> tuple[str, str]:
    """The app and the event of "app@event".

    Raises:
        BadArgument: it is none.
    """
    app, at, event = app_event.partition("@") if type(app_event) is str else ("", "", "")
    if not at or not event:
        raise BadArgument(f'an event of an app on a server is text, "app@event", not {shown(app_event)}')
    return app_of(app), event


def app_of(name: object) -> str:
    """
    Raises:
        BadArgument: it cannot be the name of an app.
    """
    if type(name) is not str or not APP.fullmatch(name):
        raise BadArgument(f"the name of an app has small letters, digits, '-', '_' and '.', not {shown(name)}")
    return name


def event_of(name: str, data: Any, key: object, event_id: object, deadline: object) -> ClientEvent:
    """As of `client_event`; one without an id gets one, so that it is accepted once however often it is sent."""
    return client_event(name, data, key, fresh_id() if event_id is None else event_id, deadline, MAX_DATA)


def fresh_id() -> str:
    return uuid.uuid4().hex


def timeout_of(given: object, usual: float | None) -> float | None:
    """Seconds; None: without an end.

    Raises:
        BadArgument: it is neither.
    """
    if given is ...:
        return usual
    found = None if given is None else check_seconds(given, "timeout=")
    if found == 0:
        raise BadArgument("timeout=0: a server takes some time to answer")
    return found


def later(asked: Asked, elapsed: float) -> Asked:
    """The same after so many seconds: a deadline has come nearer."""
    if isinstance(asked, Emit | Call) and asked.event.wait is not None:
        left = max(0, asked.event.wait - math.ceil(elapsed * 1e6))
        return structs.replace(asked, event=structs.replace(asked.event, wait=left))
    return asked
