"""What both clients are made of, beside what they wait with."""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable
from types import FunctionType
from typing import Any, Final, ParamSpec, TypeVar, cast

from grape.authoring.places import HIDDEN
from grape.client.events import ClientEvent, check_timeout
from grape.client.tracing import in_trace
from grape.errors import BadArgument, GrapeError, Refused, UserError
from grape.model.tracing import read_traceparent
from grape.model.values import shown
from grape.remote.asked import Call, Emit, Order, Timeout, Verb, address_of, app_of, event_of, timeout_of
from grape.remote.door import PREFIX
from grape.remote.http import token_of, url_of
from grape.remote.patience import Patience
from grape.remote.talks import StreamTalk, Talk, talk

P = ParamSpec("P")
T = TypeVar("T")

URL: Final = "http://127.0.0.1:8080"
"""Where `grape serve` listens, if nobody says otherwise."""


def at_the_await(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """`grape.running.at_the_call` of what is awaited."""

    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        wrong: GrapeError
        try:
            return await function(*args, **kwargs)
        except (UserError, Refused) as e:
            wrong = e
        raise wrong.with_traceback(None) from None

    code = cast(FunctionType, call)
    code.__code__ = code.__code__.replace(co_filename=HIDDEN)
    return call


class Ground:
    """
    Args:
        url: None: $GRAPE_URL, else `URL`. token: None: $GRAPE_TOKEN, else none.

    Attributes:
        url, token: those that hold. directory: of a door; "": it is a server that is spoken to.

    Raises:
        BadArgument: one of them cannot be.
    """

    def __init__(
        self,
        url: str | None,
        token: str | None,
        timeout: float | None,
        retries: int | None,
        traceparent: str | None = None,
    ) -> None:
        given = os.environ.get("GRAPE_URL") or URL if url is None else url
        self.directory = given.removeprefix(PREFIX) if type(given) is str and given.startswith(PREFIX) else ""
        self.url = given if self.directory else url_of(given)
        said = os.environ.get("GRAPE_TOKEN") or None if token is None else token
        self.token = None if said is None else token_of(said)
        self._timeout = check_timeout(timeout)
        if self._timeout == 0:
            raise BadArgument("timeout=0: a server takes some time to answer")
        if retries is not None and (type(retries) is not int or retries < 0):
            raise BadArgument(f"retries= is a whole number from 0, or None for as many as fit, not {shown(retries)}")
        self._retries = retries
        if traceparent is not None and (type(traceparent) is not str or read_traceparent(traceparent) is None):
            raise BadArgument(f"traceparent= is as W3C trace context says it, 00-...-...-01, not {shown(traceparent)}")
        self._traceparent = traceparent or ""

    def _event(self, name: str, data: Any, key: str | None, id: str | None, deadline: float | None) -> ClientEvent:
        return in_trace(event_of(name, data, key, id, deadline), self._traceparent)

    def patience(self, timeout: Timeout) -> Patience:
        """
        Raises:
            BadArgument: that is no time.
        """
        return Patience(timeout_of(timeout, self._timeout), self._retries)

    def emit(
        self, app_event: str, data: Any, key: str | None, id: str | None, deadline: float | None, timeout: Timeout
    ) -> Talk[Any]:
        """
        Raises:
            BadArgument, BadValue, TooLarge: it cannot be handed in.
        """
        app, name = address_of(app_event)
        return talk(Emit(app, self._event(name, data, key, id, deadline)), self.patience(timeout))

    def call(
        self, app_event: str, data: Any, key: str | None, id: str | None, deadline: float | None, timeout: Timeout
    ) -> Talk[Any]:
        """As of `emit`."""
        app, name = address_of(app_event)
        return talk(Call(app, self._event(name, data, key, id, deadline)), self.patience(timeout))

    def stream(
        self, app_event: str, data: Any, key: str | None, id: str | None, deadline: float | None, timeout: Timeout
    ) -> StreamTalk:
        """As of `emit`."""
        app, name = address_of(app_event)
        return StreamTalk(Call(app, self._event(name, data, key, id, deadline)), self.patience(timeout))

    def order(
        self, verb: Verb, app: str, timeout: Timeout, version: str = "", drop_slots: tuple[str, ...] = ()
    ) -> Talk[Any]:
        """
        Raises:
            BadArgument: that is no name, version or slot.
        """
        if type(version) is not str:
            raise BadArgument(f"version= is text, not {shown(version)}")
        if type(drop_slots) not in (tuple, list) or not all(type(slot) is str for slot in drop_slots):
            raise BadArgument(f'drop_slots= is several texts, ("EVENT>NODE",), not {shown(drop_slots)}')
        name = "" if verb == "apps" else app_of(app)
        return talk(Order(verb, name, version, tuple(drop_slots)), self.patience(timeout))


def check_concurrency(given: object) -> int:
    """
    Raises:
        BadArgument: it is none.
    """
    if type(given) is not int or not 1 <= given <= 1_000:
        raise BadArgument(f"concurrency= is a whole number from 1 to 1,000, not {shown(given)}")
    return given
