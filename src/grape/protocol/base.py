"""The messages between an adapter and a base speaker: a worker that runs handlers, and leaves all the rest to Grape.

It gets runs of one node's events with their state, and answers with what they did. See docs/protocol.md, section 11.
"""

from __future__ import annotations

from typing import Any

from msgspec import Raw, Struct

from grape.model.objects import About
from grape.protocol.messages import Answer, Beat, Drain, Hello, LevelsChanged, Refusal, Welcome

# ------------------------------------------------------------------ adapter -> speaker


class Run(Struct, frozen=True, array_like=True, tag=7):
    """Events of one node, to be run in this order. ``names``: one for all, or
    one an event. ``keys``, ``data`` None: all are nil. The id of event ``i`` is ``ids[i]``, without ``ids`` it is
    ``id_prefix + str(id_first + i)``. ``states``: what is stored of the keys, None: the node has no state. ``answers``:
    to the calls that its only event has made. ``trace``: of its only event, if that is traced."""

    node: str
    events: int
    names: list[str]
    keys: list[str | None] | None = None
    data: list[Any] | None = None
    id_prefix: str = ""
    id_first: int = 0
    ids: list[str] | None = None
    created: int = 0
    attempt: int = 1
    states: dict[str, dict[str, Any]] | None = None
    answers: list[Answer] = []
    trace: str = ""


class OtherApps(Struct, frozen=True, array_like=True, tag=10):
    """The other apps of the server are these from now on: see `Welcome`. Said between two runs, to whoever can emit to
    them."""

    peers: dict[str, list[str] | None]


class Got(Struct, frozen=True, array_like=True, tag=12):
    """The answer to `Want`. ``kind``: of the failure that it is, "" if it is none. ``more``: there are bytes behind
    ``data``."""

    kind: str = ""
    text: str = ""
    found: bool = True
    about: About | None = None
    data: bytes = b""
    items: list[About] = []
    position: str = ""
    more: bool = False


# ------------------------------------------------------------------ speaker -> adapter


class Want(Struct, frozen=True, array_like=True, tag=43):
    """A handler does something with objects: the event ``index`` of the run. ``upload``: which object's bytes these
    are, of which ``last`` is the last part."""

    index: int
    what: str
    namespace: str | None
    key: str
    start: int = 0
    end: int | None = None
    position: str = ""
    about: dict[str, Any] = {}
    data: bytes = b""
    upload: int = 0
    last: bool = True


class Emits(Struct, frozen=True, array_like=True):
    """Columns, in order. ``origins``: the event of each, by its index in the run. ``names``: one for all, or one each.
    ``keys``: None inherits that of the event, False is no key; None for all: all inherit. ``delays``: microseconds, -1
    is none. ``timers``: names of those that have a delay; without one, and the name "", the timer is cancelled."""

    origins: list[int] = []
    names: list[str] = []
    data: list[Raw] = []
    keys: list[str | bool | None] | None = None
    delays: list[int] | None = None
    timers: list[str | None] | None = None


class StateChange(Struct, frozen=True, array_like=True):
    """What has changed of one key's record."""

    key: str
    values: dict[str, Raw]
    deleted: list[str] = []


class Asked(Struct, frozen=True, array_like=True):
    """A call of a handler. ``key``: as in `Emits`; ``digest`` and ``timeout``: as in `Call`."""

    event: str
    digest: bytes
    timeout: int
    data: Raw
    key: str | bool | None = None


class Failed(Struct, frozen=True, array_like=True):
    """Why an event failed, or (``call``) what it waits for; nothing that it did is among the effects."""

    index: int
    kind: str
    text: str
    trace: str = ""
    call: Asked | None = None


class Answered(Struct, frozen=True, array_like=True):
    """A reply of the event ``index``."""

    index: int
    data: Raw
    final: bool = True


class Ran(Struct, frozen=True, array_like=True, tag=39):
    """The next ``events`` of the run are finished, with these effects. A failed one
    is the last of them, and ends the run; the adapter sends anew what is left."""

    events: int
    emits: Emits = Emits()
    states: list[StateChange] = []
    replies: list[Answered] = []
    failed: Failed | None = None


ToSpeaker = Welcome | Run | OtherApps | LevelsChanged | Got | Drain
FromSpeaker = Hello | Refusal | Beat | Ran | Want
