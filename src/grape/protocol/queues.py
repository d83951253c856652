"""What is said of outputs as queues: the arguments and answers of the verbs at the door, see docs/door.md."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

PEEK: Final = "queue-peek"
POP: Final = "queue-pop"
ACK: Final = "queue-ack"
NACK: Final = "queue-nack"
CLEAR: Final = "queue-clear"
STATS: Final = "queue-stats"
FORGET: Final = "queue-forget"
CONSUMERS: Final = "queue-consumers"
TAIL: Final = "tail"

MOST: Final = 10_000
"""Events of one question."""
LONGEST: Final = 300.0
"""Seconds that one may wait for some."""
MAX_CONSUMER: Final = 200

Consumer = Annotated[str, Meta(min_length=1, max_length=MAX_CONSUMER, pattern=r"^[A-Za-z0-9_.:@-]+$")]
Count = Annotated[int, Meta(ge=1, le=MOST)]
Wait = Annotated[float, Meta(ge=0, le=LONGEST)]


class Peek(Struct, frozen=True, forbid_unknown_fields=True):
    """Up to ``count`` events of the output ``event``; of "queue-pop": done with, once they are told of. ``lease``:
    seconds after which what is not done with comes again. ``wait``: seconds for the first one to come.
    ``looks``: of "queue-peek": nothing is lent, and no attempt counted."""

    event: str
    consumer: Consumer = "default"
    count: Count = 1
    lease: Annotated[float, Meta(gt=0, le=86_400)] = 30.0
    wait: Wait = 0.0
    looks: bool = False


class Tokens(Struct, frozen=True, forbid_unknown_fields=True):
    """Of "queue-ack": these are done with. Of "queue-nack": they come again at once."""

    event: str
    tokens: Annotated[list[str], Meta(max_length=MOST)]
    consumer: Consumer = "default"


class Which(Struct, frozen=True, forbid_unknown_fields=True):
    """Of "queue-clear", "queue-stats" and "queue-forget"."""

    event: str
    consumer: Consumer = "default"


class Output(Struct, frozen=True, forbid_unknown_fields=True):
    """Of "queue-consumers": who has asked for it, and was not forgotten."""

    event: str


class Delivery(Struct, frozen=True):
    """An event that is lent. ``token``: by which it is done with. ``data``: msgpack. ``attempt``: counts from 1, since
    the engine was started. ``created``: seconds of wall time."""

    token: str
    id: str
    event: str
    key: str | None
    data: bytes
    attempt: int
    created: float


class QueueNumbers(Struct, frozen=True):
    """``lent``: to somebody now. ``again``: were lent, and wait to be again. ``acked``, ``redelivered``, ``dead``:
    since the engine was started."""

    consumer: str
    lent: int
    again: int
    acked: int
    redelivered: int
    dead: int


class OutputNumbers(Struct, frozen=True):
    """Of "queue-consumers". ``kept``: bytes in the output. ``expired``: bytes that went as they were too old or too
    much, since the engine was started."""

    output: str
    consumers: list[QueueNumbers]
    kept: int
    expired: int


class Tail(Struct, frozen=True, forbid_unknown_fields=True):
    """What comes into the output ``event``, for whoever just looks on. ``places``: as the answer before has said; None:
    from now on. ``wait``: seconds for the first one to come."""

    event: str
    places: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(max_length=1 << 16)] | None = None
    count: Count = 1_000
    wait: Wait = 0.0


class Tailed(Struct, frozen=True):
    """``places``: where to go on."""

    places: list[int]
    events: list[Delivery]
