"""What is written down: heads of partitions and the rows beside their logs. All msgpack arrays; new fields go last."""

from __future__ import annotations

import hashlib
from typing import Final, Literal

import msgspec
from msgspec import Struct

from grape.model.batch import Context
from grape.model.cursor import Cursor
from grape.model.objects import OBJECTS
from grape.model.topology import TopologySpec

FORMAT: Final = 2
"""Version of everything in here."""

OUTPUT: Final = ">"
SOURCE: Final = "<"
TAKER: Final = "="
REPLIES: Final = "?"
"""First characters of log names that are no pools: ``>total`` is an output, ``<line=/a/b`` a source, ``=total=/x`` a
taker's position, ``?`` the home of replies."""
NO_POOLS: Final = (OUTPUT, SOURCE, TAKER, REPLIES, OBJECTS[0])

KEPT: Final = "="
"""What the ids of calls begin with whose replies are kept, for the reply-ttl, for whoever asks for them."""
KEPT_BRIEFLY: Final = "~"
"""The same for a minute: until whoever waits is there again."""
ERROR: Final = "error"
"""Name of an answer to a handler that tells of a failure."""
MOVED: Final = b"moved:"
"""Begins the keys of texts that say which timers of another partition have come, while they are still there, too."""
VERSION: Final = "@"
"""Begins, among the expiry times of a state record, the name of a state whose version stands there."""
REPLY_DEAD: Final = "the event that should have answered became a dead letter"
"""The note in a final reply that the engine itself gives."""
CLIENT_ID: Final = b"id:"
"""Begins the keys of texts that are ids of clients."""
TIMER_NAME: Final = b"timer:"
"""Begins the keys of texts that say which timers have a name: the keys of their rows, one behind the other."""


class Reading(Struct, array_like=True):
    """How far a log was read: as the same fields of `Head`."""

    cursor: Cursor = msgspec.field(default_factory=Cursor)
    seen: dict[bytes, int] = {}


class Head(Struct, array_like=True):
    """The committed state of a pool's partition.

    ``seen``: per origin (packed id + incarnation) the next sequence number to accept. ``sent``: per target log
    (packed) the number of batches sent to it. ``catching_up``: the pairs that did not chain in older code
    (`AppRecord.unchained`) do not yet, as something that was emitted unchained may wait in its own log. ``migrated``:
    (digest of a topology, position up to which the log has been adapted to it). ``answers``: how far the log is read to
    which the answers for its handlers come.
    """

    cursor: Cursor = msgspec.field(default_factory=Cursor)
    seen: dict[bytes, int] = {}
    sent: dict[bytes, int] = {}
    next_hold: int = 0
    next_timer: int = 0
    next_dead: int = 0
    catching_up: bool = False
    migrated: tuple[bytes, int] = (b"", 0)
    answers: Reading = msgspec.field(default_factory=Reading)


class HeldCall(Struct, array_like=True):
    """A call that a handler made for a held event. ``digest``: of what it asked. ``answer``: None while it waits."""

    event: str
    digest: bytes
    answer: bytes | None = None
    is_error: bool = False


class HoldEntry(Struct, array_like=True):
    """A failed event, one that waits for the answer to a call, or one that waits behind it. ``due``: microseconds of
    wall time. ``attempts`` made so far. ``locks``: later events of its (node, key) wait. ``stopped``: waits for an
    operator. ``calls``: of its handler, in order."""

    node: str
    event: str
    id: str
    key: str | None
    created: int
    body: bytes
    attempts: int = 0
    named_deaths: int = 0
    due: int = 0
    locks: bool = False
    behind: bool = False
    careful: bool = False
    stopped: bool = False
    context: Context | None = None
    kind: str = ""
    text: str = ""
    trace: bytes = b""
    calls: list[HeldCall] = []

    @property
    def is_suspended(self) -> bool:
        """It waits for an answer; ``due`` is when it gives that up."""
        return bool(self.calls) and self.calls[-1].answer is None


class DeadLetter(Struct, array_like=True):
    """An event that was given up. ``trace``: key of its traceback in the table of texts. ``failed``: wall time, us.
    ``origin``: for input that never became an event, where it stood (file:line)."""

    node: str
    event: str
    id: str
    key: str | None
    created: int
    body: bytes
    attempts: int
    failed: int
    kind: str
    text: str
    trace: bytes = b""
    context: Context | None = None
    origin: str = ""


class TimerEntry(Struct, array_like=True):
    """A delayed emit. ``name``: key of the text that names it."""

    log: str
    partition: int
    body: bytes
    context: Context | None = None
    name: bytes = b""


class Expiry(Struct, array_like=True):
    """A row that may go when it is due: a state record that has expired by then, or something remembered."""

    table: Literal["state", "text"]
    key: bytes


class SourceHead(Struct, array_like=True):
    """``position``: what the source needs to go on. ``sent``: as in `Head`. ``fed``: events so far. ``ended``: nothing
    came since the event that says that it has ended. ``next_id``: ids remembered so far. ``number``: appends so far."""

    position: bytes = b""
    sent: dict[bytes, int] = {}
    fed: int = 0
    spread: int = 0
    next_dead: int = 0
    ended: bool = False
    next_id: int = 0
    number: int = 0


class TakerHead(Struct, array_like=True):
    """``logs``: what was taken of each partition of the output. ``length`` and ``tail``: of the file. ``log``: the
    number of the output's log; -1: it is not known."""

    logs: dict[int, Reading] = {}
    length: int = 0
    tail: bytes = b""
    taken: int = 0
    log: int = -1


class NodeRecord(Struct, array_like=True):
    id: int
    pool: str
    states: tuple[str, ...] = ()


class AppRecord(Struct, array_like=True):
    """``logs``: number of every log name. ``incarnation``: random, so that ids of a new directory differ. ``moving``:
    nodes whose state is being moved, with their new pools; ``emptied``: pools that are gone, with those to which their
    timers are being moved. ``unchained``: pairs that chain in the topology and did not
    in an older one. ``dropped``: slots and nodes that were dropped when they were gone."""

    name: str
    id: int
    incarnation: int
    partitions: int
    logs: dict[str, int]
    nodes: dict[str, NodeRecord]
    topology: TopologySpec
    next_log: int = 1
    next_node: int = 1
    moving: dict[str, str] = {}
    unchained: frozenset[tuple[str, str]] = frozenset()
    dropped: frozenset[str] = frozenset()
    emptied: dict[str, str] = {}


class Catalog(Struct, array_like=True):
    format: int = FORMAT
    apps: dict[str, AppRecord] = {}
    next_app: int = 1


encode: Final = msgspec.msgpack.Encoder().encode
decode_head: Final = msgspec.msgpack.Decoder(Head).decode
decode_hold: Final = msgspec.msgpack.Decoder(HoldEntry).decode
decode_dead: Final = msgspec.msgpack.Decoder(DeadLetter).decode
decode_expiry: Final = msgspec.msgpack.Decoder(Expiry).decode
decode_timer: Final = msgspec.msgpack.Decoder(TimerEntry).decode
decode_source: Final = msgspec.msgpack.Decoder(SourceHead).decode
decode_taker: Final = msgspec.msgpack.Decoder(TakerHead).decode
decode_catalog: Final = msgspec.msgpack.Decoder(Catalog).decode


_decode_fields: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_decode_dues: Final = msgspec.msgpack.Decoder(dict[str, int] | None).decode


def timer_name_key(node: int, key: bytes = b"", name: str = "") -> bytes:
    """Key of the text that says which timers of a (node, key) are called so; without a name what all of the node's
    begin with."""
    prefix = TIMER_NAME + state_key(node, b"")
    if not name:
        return prefix
    return prefix + hashlib.blake2b(len(key).to_bytes(2, "big") + key + name.encode(), digest_size=16).digest()


def row_key(number: int) -> bytes:
    """Keys of hold and dead rows: eight bytes, big-endian."""
    return number.to_bytes(8, "big")


def timer_key(due: int, number: int) -> bytes:
    """Due time (us) and a number that makes it unique; sorts by due time."""
    return due.to_bytes(8, "big") + number.to_bytes(8, "big")


def expiry_of(record: bytes) -> int:
    """When all of a state record has expired (microseconds of wall time); 0: never."""
    try:
        fields = _decode_fields(record)
        due = (_decode_dues(fields.pop("")) or {}) if "" in fields else {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 0  # whoever reads it will say so
    return max(due.values()) if fields and all(name in due for name in fields) else 0


def state_key(node: int, key: bytes) -> bytes:
    return node.to_bytes(2, "big") + key
