"""What a handler emits with: the node's own methods, or the context of a function.

In a worker the runtime sets ``emit``, ``emit_many`` and ``reply`` as attributes of the instance. The methods below run
outside a worker: they record, so that a unit test can call a handler directly and look at what it did.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from datetime import timedelta
from enum import Enum
from typing import Any, ClassVar, Final, Never

from msgspec import Struct

from grape.authoring.objects import NodeStorage, Recorded
from grape.authoring.options import refuse_unknown
from grape.model.address import check_key, check_timer_name
from grape.model.own import encode
from grape.model.values import seconds, shown


class Inherit(Enum):
    """The type of ``INHERIT``, the key of an emit that names none: that of the event being handled."""

    INHERIT = "INHERIT"

    def __repr__(self) -> str:
        return "INHERIT"


INHERIT: Final = Inherit.INHERIT


class Emitted(Struct, frozen=True):
    """An emit, recorded outside a worker. ``delay`` in seconds. ``timer``: its name."""

    event: str
    data: Any = None
    key: str | Inherit | None = INHERIT
    delay: float | None = None
    timer: str | None = None


class Reply(Struct, frozen=True):
    """A reply, recorded outside a worker."""

    data: Any = None
    final: bool = True


class Called(Struct, frozen=True):
    """A call, recorded outside a worker. ``timeout`` in seconds."""

    event: str
    data: Any = None
    key: str | Inherit | None = INHERIT
    timeout: float = 30.0


class _Storage:
    """Not a property: an attribute of the instance, which a worker sets, goes before it."""

    def __get__(self, emitter: Emitter | None, owner: type) -> NodeStorage:
        return NodeStorage(Recorded() if emitter is None else emitter.recorded_objects, "app")


class Emitter:
    """Emits and replies. Nothing is kept in ``__init__``: authors need not call it."""

    def emit(
        self,
        event: str,
        data: Any = None,
        *,
        key: str | Inherit | None = INHERIT,
        delay: float | timedelta | None = None,
        timer: str | None = None,
    ) -> None:
        """Emit ``event``; ``data`` is encoded here and now, so later changes of it are not seen.

        Args:
            key: the key of the event being handled unless given; None makes the emit keyless.
            delay: seconds (or a timedelta) until it is due; the timer is durable.
            timer: a name for that timer, one of this (node, key): it takes the place of the one that was set under the
                same name, if that is not due yet, and `cancel_timer` finds it.

        Raises:
            TypeError: name, key, data or delay is of a type that cannot travel.
            ValueError: the key or the timer's name is empty or too long, the delay negative; a timer without a delay.
            NoKey: a timer with a name in an event without a key.
        """
        if timer is not None:
            check_timer_name(timer)
            if delay is None:
                raise ValueError(f"timer={timer!r} names an emit with delay=..., and this one has none")
        self.emitted.append(
            Emitted(
                _checked_name(event),
                _travelled(data),
                key if key is None or key is INHERIT else check_key(key),
                None if delay is None else seconds(delay, "delay"),
                timer,
            )
        )

    def emit_many(
        self,
        event: str,
        *,
        keys: Collection[str | None] | None = None,
        data: Collection[Any] | None = None,
    ) -> None:
        """Emit ``event`` once per element of ``keys``, of ``data``, or of both (then of equal length).

        Without ``keys`` all have the key of the event being handled.

        Raises:
            TypeError: no column, a text or bytes as column, or an element of a type that cannot travel.
            ValueError: the columns differ in length, or a key is empty or too long.
        """
        _checked_name(event)
        count = column_length(keys, data)
        all_keys = [INHERIT] * count if keys is None else [key if key is None else check_key(key) for key in keys]
        all_data = [None] * count if data is None else [_travelled(item) for item in data]
        self.emitted.extend(Emitted(event, item, key) for key, item in zip(all_keys, all_data, strict=True))

    def reply(self, data: Any = None, *, final: bool = True) -> None:
        """Answer the original caller; the first ``final`` ends the call. Without a caller it does nothing.

        Raises:
            TypeError: ``data`` cannot travel.
        """
        self.replies.append(Reply(_travelled(data), bool(final)))

    def cancel_timer(self, timer: str) -> None:
        """The event that was emitted with ``timer=`` this name, by this node for this key, is not to come. If it was
        due already it may be on its way; without such a timer nothing happens.

        Raises:
            TypeError, ValueError: it cannot be a name.
            NoKey: in an event without a key.
        """
        self.cancelled_timers.append(check_timer_name(timer))

    def call(
        self,
        event: str,
        data: Any = None,
        *,
        key: str | Inherit | None = INHERIT,
        timeout: float | timedelta = 30.0,
        type: Any = Any,
    ) -> Any:
        """Ask a node, and go on with its final reply.

        Until the answer is there nothing waits but the event: the handler is left here, what it did is undone, and
        later events of its (node, key) line up. Then it runs again from its beginning, and the call returns; so up to
        its last call it must do the same every time. Outside a worker ``call_answers`` says what calls return.

        Args:
            key: of the request; that of the event being handled unless given.
            timeout: seconds (or a timedelta) to wait.
            type: what the answer is decoded as.

        Raises:
            NoAnswer: there was none in time.
            CallFailed: what should have answered failed for good.
            TypeError, ValueError: an argument that cannot be.
            UnknownEvent: no slot takes ``event``.
        """
        checked = key if key is None or key is INHERIT else check_key(key)
        self.calls_made.append(Called(_checked_name(event), _travelled(data), checked, seconds(timeout, "timeout")))
        if not self.call_answers:
            raise LookupError(f"call of {event!r} outside a worker: say first what it returns, in call_answers")
        answer = self.call_answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    storage = _Storage()
    """The app's objects (`NodeStorage`). Outside a worker they are in memory: ``recorded_objects``."""

    @property
    def recorded_objects(self) -> Recorded:
        """What was written outside a worker."""
        recorded: Recorded = self.__dict__.setdefault("_grape_objects", Recorded())
        return recorded

    @property
    def emitted(self) -> list[Emitted]:
        """What was emitted outside a worker, oldest first."""
        recorded: list[Emitted] = self.__dict__.setdefault("_grape_emitted", [])
        return recorded

    @property
    def cancelled_timers(self) -> list[str]:
        """Names of timers that were cancelled outside a worker, oldest first."""
        recorded: list[str] = self.__dict__.setdefault("_grape_cancelled", [])
        return recorded

    @property
    def calls_made(self) -> list[Called]:
        """What was called outside a worker, oldest first."""
        recorded: list[Called] = self.__dict__.setdefault("_grape_called", [])
        return recorded

    @property
    def call_answers(self) -> list[Any]:
        """What calls return outside a worker, the next one first; an exception is raised."""
        given: list[Any] = self.__dict__.setdefault("_grape_answers", [])
        return given

    @property
    def replies(self) -> list[Reply]:
        """What was replied outside a worker, oldest first."""
        recorded: list[Reply] = self.__dict__.setdefault("_grape_replies", [])
        return recorded


class Context(Emitter):
    """What a function asks for by annotation (``def check(order: Order, context: Context)``) to emit and reply."""


class Node(Emitter):
    """Processing code with a name and, if it declares ``State``, with durable state per key.

    Attributes:
        name: unique in the topology; without it, the class name is taken.
        emits: names of events that ``process`` emits; declared edges are checked early and may chain.
    """

    name: str | None = None
    emits: ClassVar[str | tuple[str, ...]] = ()

    def __init__(self, *, name: str | None = None, **unknown: Never) -> None:
        refuse_unknown(type(self).__name__, unknown, ("name",))
        if name is not None:
            self.name = name

    def process(self, event: Any, /) -> Any:
        """Work on ``event``, an ``Event`` (in a ``batch=`` slot: a list of them). Sync, ``async`` or generator.

        What it returns or yields is emitted if the slot declares exactly one name in ``emits``.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method process(self, event)")

    def setup(self) -> None:
        """Called once in every worker process, before the first event."""

    def teardown(self) -> None:
        """Called once when a worker process ends in order. A killed one does not call it."""


def column_length(keys: Collection[Any] | None, data: Collection[Any] | None) -> int:
    """The common length of the columns of an ``emit_many``.

    Raises:
        TypeError: no column, or a text or bytes as column (its characters would become events).
        ValueError: the columns differ in length.
    """
    for name, column in (("keys", keys), ("data", data)):
        if isinstance(column, str | bytes | bytearray):
            raise TypeError(f"{name}= is a list, one element per event, not {type(column).__name__}: {shown(column)}")
    if keys is not None and data is not None:
        if len(keys) != len(data):
            raise ValueError(f"keys= has {len(keys)} elements and data= has {len(data)}: they must be equally many")
        return len(keys)
    column = data if keys is None else keys
    if column is None:
        raise TypeError("emit_many needs keys=, data= or both")
    return len(column)


def _checked_name(event: object) -> str:
    if type(event) is not str:
        raise TypeError(f"the name of an event is text (str), not {type(event).__name__}: {shown(event)}")
    return event


def _travelled(data: Any) -> Any:
    """``data`` as it is now. It must encode, as in a worker, so that a test fails at the same line.

    Raises:
        TypeError: it cannot travel.
    """
    if type(data) is int and not -(2**63) <= data < 2**63:
        raise TypeError(f"{shown(data)} cannot travel: an integer must be from -2^63 to 2^63-1")
    try:
        encode(data)
    except (TypeError, ValueError, OverflowError, RecursionError) as e:
        raise TypeError(f"this value cannot travel: {e}; it is a {type(data).__name__}") from None
    return deepcopy(data)
