"""The messages between engine and worker. Frozen values; bytes fields are opaque to whoever only passes them on.

Numbers: ``partition`` is a partition number of the worker's pool, ``epoch`` counts the assignments of that partition,
``seq`` the works of an epoch. Times are microseconds of wall time unless a name says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeVar

from msgspec import Meta, Struct

from grape.model.cursor import Progress
from grape.model.objects import ObjectWrite, Stored
from grape.model.topology import Limits, TopologySpec
from grape.model.tracing import Span

VERSION: Final = 1

T = TypeVar("T")

MAX_PARTS: Final = 1 << 16
"""Bodies, batches, works and nodes that a message tells of."""
MAX_ITEMS: Final = 1 << 18
"""Timers, failures and replies in a result; names that it counts."""
DERIVED: Final = 1 << 40
"""From here on the numbers of contexts are those that a result derives itself."""
MAX_ROWS: Final = 1 << 20
"""Keys of one node in a result or a question, and contexts of a body.

What a message may cost when it is decoded is bounded before it is: a column of small things takes thirty times its size
in memory."""

Parts = Annotated[list[T], Meta(max_length=MAX_PARTS)]
Items = Annotated[list[T], Meta(max_length=MAX_ITEMS)]
Rows = Annotated[list[T], Meta(max_length=MAX_ROWS)]
Counts = Annotated[dict[str, int], Meta(max_length=MAX_PARTS)]


# ------------------------------------------------------------------ engine -> worker


class Welcome(Struct, frozen=True, array_like=True, tag=1):
    """The answer to `Hello`: run ``pool``. ``taken``: outputs that somebody takes, all others need not be sent.
    ``unchained``: pairs (node, target) that may chain only in partitions assigned with ``chain_new``. ``boot_offset``:
    microseconds that make CLOCK_BOOTTIME the engine's time, by which state expires. ``heartbeat_timeout``: a worker
    that says nothing for so many seconds is killed. ``concurrency``: events of async slots to run at once.
    ``topology``: of the whole app, with what the workers of all languages have described; None: that of `Hello`.
    ``peers``: the other apps of the server, with the events that they listen to (None: not known). ``namespaces``: of
    objects: the app's own first; "write" or "read". ``levels``: of what handlers log, by node, "" of all others; empty:
    nobody has said, and it is "info"."""

    version: int
    pool: str
    worker: str
    partitions: int
    limits: Limits
    taken: frozenset[str]
    unchained: frozenset[tuple[str, str]] = frozenset()
    boot_offset: int = 0
    heartbeat_timeout: float = 30.0
    concurrency: int = 1_000
    topology: TopologySpec | None = None
    peers: dict[str, list[str] | None] = {}
    namespaces: dict[str, str] = {}
    levels: dict[str, str] = {}


class Assign(Struct, frozen=True, array_like=True, tag=2):
    """The partition is the worker's from now on; its cache for it is empty. ``held``: (node, key) whose events line up.
    ``empty``: no state is stored in it yet, so nothing has to be asked for."""

    partition: int
    epoch: int
    held: list[tuple[str, str]] = []
    empty: bool = False
    chain_new: bool = True


class Revoke(Struct, frozen=True, array_like=True, tag=3):
    """The partition is no longer the worker's; whatever it still has of it is dropped unanswered."""

    partition: int
    epoch: int


class BatchItem(Struct, frozen=True, array_like=True):
    """A batch to work on. Event ``i`` has the id ``id_prefix + str(i)``. ``done``: what is finished already.
    ``contexts``: size of the batch's table; ``calls``: every event is a call of its own, whose context is its index
    (then ``contexts`` is ``events``)."""

    position: int
    id_prefix: str
    created: int
    events: int
    body: bytes
    done: Progress = Progress()
    contexts: int = 0
    calls: bool = False


class Answer(Struct, frozen=True, array_like=True):
    """What came of a call: ``data`` is the reply, or (``is_error``) a map of code, text and node. ``digest``: of the
    call."""

    digest: bytes
    data: bytes
    is_error: bool = False


class RetryItem(Struct, frozen=True, array_like=True):
    """A held event, for ``node`` alone. ``attempt`` counts from 1 and includes this one. ``rest``: more of its line
    follow later, so its key stays locked. ``context``: -1 for none. ``answers``: to the calls of its handler, in
    order."""

    hold: int
    node: str
    id: str
    attempt: int
    named_deaths: int
    created: int
    body: bytes
    rest: bool = False
    context: int = -1
    answers: list[Answer] = []


class Named(Struct, frozen=True, array_like=True):
    """An event on which a worker died or overran its timeout: hand it in as failed instead of starting it."""

    id: str
    node: str
    kind: str
    text: str
    death: bool
    trace: str = ""


class Work(Struct, frozen=True, array_like=True, tag=4):
    """``careful``: announce every event before it starts and hand in results root by root. Results name a context by
    its number: those of the retries come first, from ``context_base`` on, then those of each batch. ``deadlines``: of
    contexts that have one, by number. ``traced``: of contexts of traced events, the trace and the span that caused them
    (`grape.model.tracing`); only for whoever can record spans, or logs."""

    partition: int
    epoch: int
    seq: int
    batches: list[BatchItem] = []
    retries: list[RetryItem] = []
    careful: bool = False
    named: list[Named] = []
    context_base: int = 0
    deadlines: dict[int, int] = {}
    traced: dict[int, str] = {}


class Values(Struct, frozen=True, array_like=True, tag=5):
    """The answer to `Ask`, in its order; if it is shorter, the worker asks again for the rest."""

    values: list[bytes | None]


class Drain(Struct, frozen=True, array_like=True, tag=6):
    """Finish what has been started, hand it in, and exit. Works not yet begun are dropped."""


class PeersChanged(Struct, frozen=True, array_like=True, tag=7):
    """The other apps of the server are these from now on: see `Welcome`. Said only to whoever can hear it."""

    peers: dict[str, list[str] | None]


class Try(Struct, frozen=True, array_like=True, tag=8):
    """Say which of these records of a node's state its code cannot read: `Tried`. Nothing changes. Only before
    `Welcome`, to whoever can."""

    node: str
    records: list[bytes]


class Leased(Struct, frozen=True, array_like=True, tag=9):
    """The answer to `Lease`: so many events may be handed to the slot now, at least one."""

    event: str
    node: str
    count: int


class Fetched(Struct, frozen=True, array_like=True, tag=10):
    """The answer to `Fetch` or `Keep` of that id. ``stored``: without its bytes; None: there is no such object.
    ``data``: of a read, as many bytes as fit; of a `Keep` that was the last one, the digest. ``items``, ``position``:
    of a page. ``error``: an error code and a text; nothing else counts then."""

    id: int
    stored: Stored | None = None
    data: bytes = b""
    items: list[tuple[str, Stored]] = []
    position: str = ""
    error: tuple[str, str] | None = None


class LevelsChanged(Struct, frozen=True, array_like=True, tag=11):
    """Handlers log from now on as much as this says: see `Welcome`. Said only to whoever can hear it."""

    levels: dict[str, str]


# ------------------------------------------------------------------ worker -> engine


class Hello(Struct, frozen=True, array_like=True, tag=32):
    """The worker has loaded the app, and describes it."""

    version: int
    pid: int
    language: str
    topology: TopologySpec
    capabilities: list[str]


class Refusal(Struct, frozen=True, array_like=True, tag=33):
    """Instead of `Hello`: the app cannot be loaded. ``text`` is for its author. ``kind`` is an error code."""

    kind: str
    text: str


class Ask(Struct, frozen=True, array_like=True, tag=34):
    """State that is not in the worker's cache, of one node."""

    partition: int
    epoch: int
    node: str
    keys: Rows[bytes]


class Announce(Struct, frozen=True, array_like=True, tag=35):
    """Careful mode: this event is about to start."""

    partition: int
    epoch: int
    id: str
    node: str


class Beat(Struct, frozen=True, array_like=True, tag=36):
    """The watchdog lives. Sent by its own thread. ``running``: a handler is, or nobody knows; a worker that has work
    and runs none for ten seconds has lost it, and is replaced."""

    running: bool = True


class Stuck(Struct, frozen=True, array_like=True, tag=37):
    """The event overran its slot's timeout. The process ends itself right after this. ``trace``: where it was."""

    partition: int
    epoch: int
    id: str
    node: str
    text: str
    trace: str = ""


class Emitted(Struct, frozen=True, array_like=True):
    """A body for the log (pool or output ``target``, ``partition``). ``contexts``: numbers of the work's contexts; the
    body's own context column indexes this list."""

    target: str
    partition: int
    events: int
    body: bytes
    contexts: Rows[int] = []


class StateChanges(Struct, frozen=True, array_like=True):
    """Columns. Value None deletes. ``expires``: when the engine should look whether the record has expired as a whole;
    0: it need not, or will already."""

    node: str
    keys: Rows[bytes]
    values: Rows[bytes | None]
    expires: Rows[int] | None = None


class TimerName(Struct, frozen=True, array_like=True):
    """By which a (node, key) finds its timers again."""

    node: str
    key: bytes
    name: str


class Timer(Struct, frozen=True, array_like=True):
    """An emit that becomes due ``delay`` microseconds from now; ``emitted`` holds exactly one event. None: all timers
    of that name that are not due yet are cancelled. Replacing one is both, in that order."""

    delay: int
    emitted: Emitted | None
    name: TimerName | None = None


class Call(Struct, frozen=True, array_like=True):
    """A handler asks, and its event waits for the answer. ``requests``: the event as it goes to each pool that listens,
    whose body names context 0, the engine's. ``timeout``: microseconds."""

    event: str
    digest: bytes
    timeout: int
    requests: Parts[Emitted]


class Failure(Struct, frozen=True, array_like=True):
    """An event that failed at one node, or (``behind``) that waits behind one that did, or (``call``) for an answer.

    ``hold``: the retried item it was, -1 for a new one. ``body``: the event as a batch of one. ``hops`` so far.
    """

    node: str
    event: str
    id: str
    key: str | None
    created: int
    body: bytes
    hold: int = -1
    behind: bool = False
    context: int = -1
    kind: str = ""
    text: str = ""
    trace: str = ""
    named: bool = False
    final: bool = False
    """It must not be tried again: nothing about it can change (bad payload excepted, which new code may mend)."""
    call: Call | None = None


class Reply(Struct, frozen=True, array_like=True):
    context: int
    data: bytes
    final: bool


MOST_LEASED: Final = 1 << 20
"""Events that one `Lease` may ask for."""


class Lease(Struct, frozen=True, array_like=True, tag=40):
    """It has ``count`` events for a slot with a rate. One question of each slot at a time."""

    event: str
    node: str
    count: int


class Tried(Struct, frozen=True, array_like=True, tag=39):
    """The answer to `Try`: (index of the record, why it cannot be read)."""

    problems: list[tuple[int, str]]


class Fetch(Struct, frozen=True, array_like=True, tag=41):
    """An object is asked for, as it is now, with what this partition has handed in: ``what`` "stat", "read" (from
    ``start`` up to ``end``, -1: to its end; at most a frame at a time), "page" (keys that begin with ``key``, from
    ``position`` on), or "many" (those of ``keys`` that are small, whole, as far as they fit)."""

    partition: int
    epoch: int
    id: int
    what: Literal["stat", "read", "page", "many"]
    namespace: str
    key: str
    start: int = 0
    end: int = -1
    position: str = ""
    limit: int = 1000
    keys: list[str] = []


class Keep(Struct, frozen=True, array_like=True, tag=42):
    """Bytes of an object that are too many for its row: each part is answered before the next one comes. They go into a
    file, which a result then names by its digest. ``upload``: which object's; parts of several may come mixed.
    ``given_up``: no more of it comes, and what has come is nothing."""

    partition: int
    epoch: int
    id: int
    data: bytes
    last: bool
    upload: int = 0
    given_up: bool = False


class Result(Struct, frozen=True, array_like=True, tag=38):
    """Effects of finished events of one partition. ``ended``: works of which nothing more comes. ``done``: (position,
    progress) of every batch that moved. ``counts``: "event>node" -> processed; ``emits``: name -> emitted. ``derived``:
    contexts that it adds, which have the numbers from `DERIVED` on: (another context, the span that is the parent now).
    ``spans``: of traced events. ``objects``: in the order in which they are written."""

    partition: int
    epoch: int
    ended: Parts[int]
    done: Parts[tuple[int, Progress]]
    retried: Parts[int] = []
    emitted: Parts[Emitted] = []
    states: Parts[StateChanges] = []
    timers: Items[Timer] = []
    failures: Items[Failure] = []
    replies: Items[Reply] = []
    counts: Counts = {}
    emits: Counts = {}
    derived: Items[tuple[int, str]] = []
    spans: Items[Span] = []
    objects: Items[ObjectWrite] = []

    @property
    def is_progress(self) -> bool:
        """An event, or a held one, or a work is over."""
        return bool(self.ended or self.done or self.retried or self.failures)


ToWorker = Welcome | Assign | Revoke | Work | Values | Drain | PeersChanged | Try | Leased | Fetched | LevelsChanged
FromWorker = Hello | Refusal | Ask | Announce | Beat | Stuck | Result | Tried | Lease | Fetch | Keep
