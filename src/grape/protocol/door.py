"""The messages at the door: how whatever is no worker reaches an engine. Frozen values, framed as those of workers are.

    client                                   engine
    Greeting                         ->
                                     <-      Described             what the app is
    Open                             ->                            its owner alone, until it is open
                                     <-      Opened                where it goes on
    OpenStream / OpenReader ..       ->
                                     <-      StreamOpened / ReaderOpened ..
    Begin                            ->                            its owner alone
    Append ..                        ->
                                     <-      Accepted ..           durable
                                     <-      Batches ..
    Took ..                          ->                            written where it belongs
    Emit, Lookup, Ask                ->
                                     <-      Emitted, Verdicts, Answer, or Refused
    Stop                             ->
                                     <-      Ended or Failed

A client numbers its streams, readers and questions itself. Whatever the engine refuses has no effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal, NamedTuple, TypeVar

from msgspec import Meta, Raw, Struct

from grape.model.batch import Context
from grape.model.topology import Limits, TopologySpec

VERSION: Final = 1
APPEND_TAG: Final = 5
BATCHES_TAG: Final = 40
WINDOW: Final = 16 << 20
"""Bytes of one stream that may be under way, sent and not accepted: of bodies, and what `size_beside` says. One step
may always be."""
BESIDE: Final = 100
"""What a dead letter or an id counts beside its bytes and characters."""
FRAME: Final = 32 << 20
"""Bytes of parts after which the next go into another frame; one part may be larger."""

T = TypeVar("T")
Items = Annotated[list[T], Meta(max_length=1 << 18)]
Verdict = Literal["new", "known", "conflict"]


class Named(NamedTuple):
    """The id of an event that is fed, and what tells its content from others under the same id."""

    id: str
    content: int
    key: str | None


class Part(Struct, frozen=True, array_like=True):
    """Events of one name for one partition, as runs (see `grape.model.batch`). Where a key lives is said by
    `grape.model.address.partition_of`. ``contexts``: what its events inherit; its runs say which has which. Only what
    comes from another app has them, and parts whose name is the log of replies that they are for."""

    name: str
    partition: int
    events: int
    body: memoryview
    contexts: list[Context] = []


class BadInput(Struct, frozen=True, array_like=True):
    """Input that cannot become an event, and is a dead letter. ``place``: "file:line"."""

    place: str
    name: str
    raw: bytes
    kind: str
    text: str


class Batch(Struct, frozen=True, array_like=True):
    """Of partition ``number`` of an output. Events before ``first`` were taken by an earlier read. ``late``: indexes of
    replies that come after the final one of their call."""

    number: int
    position: int
    batch: memoryview
    events: int
    first: int = 0
    late: list[int] = []


class Unread(Struct, frozen=True, array_like=True):
    """``events`` from number ``at`` on of the ``item``-th batch, which cannot be read."""

    item: int
    at: int
    events: int
    name: str
    key: str | None
    raw: bytes
    text: str


def size_beside(position: bytes, bad: Sequence[BadInput], ids: Sequence[Named]) -> int:
    """What counts of a step beside the bodies of its parts."""
    letters = sum(BESIDE + len(one.place) + len(one.name) + len(one.raw) + len(one.kind) + len(one.text) for one in bad)
    return len(position) + letters + sum(BESIDE + len(one.id) for one in ids)


# ------------------------------------------------------------------ client -> engine


class Greeting(Struct, frozen=True, array_like=True, tag=1):
    """The first word."""

    version: int


class Open(Struct, frozen=True, array_like=True, tag=2):
    """What was described is what is meant: take the directory, and make what lies in it fit."""


class Begin(Struct, frozen=True, array_like=True, tag=3):
    """All streams and readers that belong to the run are open: start."""


class OpenStream(Struct, frozen=True, array_like=True, tag=4):
    """``name``: tells the stream from all others, for ever. ``in_order``: all of it goes to one partition, which
    `StreamOpened` names. One client has a stream open at a time."""

    stream: int
    name: str
    in_order: bool = False
    is_repeatable: bool = True


class Append(Struct, frozen=True, array_like=True, tag=APPEND_TAG):
    """``number``: dense, goes on from `StreamOpened`; one that was accepted before is accepted again without effect.
    ``position``: what the client needs to go on behind it. ``size``: bytes of input. ``more``: the next frame belongs
    to the same step; position, dead letters and ids are those of the last. ``at_end``: it holds the event that says
    that the input has ended, and waits until everything before it has been worked off."""

    stream: int
    number: int
    position: bytes
    parts: Items[Part]
    bad: Items[BadInput] = []
    ids: Items[Named] = []
    size: int = 0
    more: bool = False
    at_end: bool = False


class CloseStream(Struct, frozen=True, array_like=True, tag=6):
    """Nothing more comes of it here. ``at_end``: as its input has ended."""

    stream: int
    at_end: bool


class Lookup(Struct, frozen=True, array_like=True, tag=7):
    """Which of these ids are to be fed; those that are new are promised to this stream."""

    stream: int
    number: int
    ids: Items[Named]


class OpenReader(Struct, frozen=True, array_like=True, tag=8):
    """``event``: an output; None: replies. ``name``: tells the reader from all others, for ever."""

    reader: int
    event: str | None
    name: str


class StartReader(Struct, frozen=True, array_like=True, tag=9):
    """Batches may come. ``length``, ``tail``: of what it writes to, as it is now; durable before the first batch."""

    reader: int
    length: int
    tail: bytes


class Took(Struct, frozen=True, array_like=True, tag=10):
    """The first ``done`` events of the `Batches` with this number are where they belong; the rest is given again."""

    reader: int
    number: int
    done: int
    length: int
    tail: bytes
    unread: Items[Unread] = []


class Emit(Struct, frozen=True, array_like=True, tag=11):
    """One event. ``data``: msgpack. ``wait``: microseconds after which nobody is interested any more. ``request``: its
    replies come as `Replies` under this. ``trace``: a W3C ``traceparent``: one that is sampled has it
    traced. ``via``: what it came by, for people."""

    number: int
    name: str
    key: str | None
    data: bytes
    id: str = ""
    wait: int | None = None
    request: str = ""
    trace: str = ""
    via: str = ""


class TakeReplies(Struct, frozen=True, array_like=True, tag=12):
    """From now on replies come as they are made, to whoever asks for them; nothing is kept for anybody."""


class Ask(Struct, frozen=True, array_like=True, tag=13):
    """A question or an order by its name; see `grape.host.verbs`."""

    number: int
    verb: str
    argument: Raw = Raw(b"\xc0")


class Stop(Struct, frozen=True, array_like=True, tag=14):
    """What runs is committed, the rest stays. Said again: stop at once."""


FromClient = (
    Greeting
    | Open
    | Begin
    | OpenStream
    | Append
    | CloseStream
    | Lookup
    | OpenReader
    | StartReader
    | Took
    | Emit
    | TakeReplies
    | Ask
    | Stop
)

# ------------------------------------------------------------------ engine -> client


class Described(Struct, frozen=True, array_like=True, tag=33):
    """What the app is. ``inline``: pools that have no workers of their own. ``data``: its directory."""

    version: int
    topology: TopologySpec
    data: str


class Opened(Struct, frozen=True, array_like=True, tag=34):
    """What a client needs to make batches. ``incarnation``: of the app's directory. ``traced``: this share of events is
    to be traced that nobody has said it of."""

    partitions: int
    incarnation: int
    limits: Limits
    traced: float = 0.0


class Begun(Struct, frozen=True, array_like=True, tag=35):
    """Events are taken."""


class StreamOpened(Struct, frozen=True, array_like=True, tag=36):
    """``number``: of the last append that was accepted; ``position``: behind it. ``fed``: events so far. ``spread``:
    batches so far. ``partition``: that gets all of it, if it is in order. ``has_ended``: nothing came since the event
    that says that it has ended. ``calls``: its events are calls, whose ids say where they stood."""

    stream: int
    number: int
    position: bytes
    fed: int
    spread: int
    partition: int | None
    has_ended: bool
    calls: bool


class Accepted(Struct, frozen=True, array_like=True, tag=37):
    """All appends up to ``number`` are durable."""

    stream: int
    number: int


class Verdicts(Struct, frozen=True, array_like=True, tag=38):
    number: int
    verdicts: list[Verdict]


class ReaderOpened(Struct, frozen=True, array_like=True, tag=39):
    """``length``, ``tail``: as they were committed with what was taken last; (0, b""): never."""

    reader: int
    length: int
    tail: bytes


class Batches(Struct, frozen=True, array_like=True, tag=BATCHES_TAG):
    """What stands in an output and was not taken; no more comes before `Took`."""

    reader: int
    number: int
    items: list[Batch]


class Replies(Struct, frozen=True, array_like=True, tag=41):
    """Batches of replies: key = request, name = "part" or "final"."""

    batches: list[bytes]


class Emitted(Struct, frozen=True, array_like=True, tag=42):
    """The event is durable."""

    number: int


class Refused(Struct, frozen=True, array_like=True, tag=43):
    """The answer to the question ``number`` (of an `Emit`, `Lookup` or `Ask`): no, and why. ``code``: of the error."""

    number: int
    code: str
    text: str


class Answer(Struct, frozen=True, array_like=True, tag=44):
    number: int
    value: Raw


class About(Struct, frozen=True, array_like=True):
    """``event``: id of the one that was handled. ``trace``: id of its trace. ``fields``: of a record, a JSON object."""

    event: str = ""
    trace: str = ""
    fields: str = ""


class Said(Struct, frozen=True, array_like=True, tag=45):
    """Lines for people, to the owner: (worker, level, node, text). Those of the engine itself are of "engine".
    ``about``: of lines of which more is known, by their index."""

    lines: list[tuple[str, str, str, str]]
    about: dict[int, About] = {}


class Halt(Struct, frozen=True, array_like=True, tag=46):
    """Streams are to end. ``in_order``: what was read and cannot be read again is still taken, for some seconds."""

    in_order: bool


class Ended(Struct, frozen=True, array_like=True, tag=47):
    """The run is over. An event or a question that has no answer by then was not taken in. ``outcomes``: see
    `grape.client.outcomes`."""

    outcomes: Raw


class Failed(Struct, frozen=True, array_like=True, tag=48):
    """The run could not begin, or not go on; or, to any client, it broke the protocol or came too late. ``code``: of
    the error."""

    code: str
    text: str


FromEngine = (
    Described
    | Opened
    | Begun
    | StreamOpened
    | Accepted
    | Verdicts
    | ReaderOpened
    | Batches
    | Replies
    | Emitted
    | Refused
    | Answer
    | Said
    | Halt
    | Ended
    | Failed
)
