"""Run a topology in memory in a unit test, with a fake clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from hashlib import sha256
from random import Random
from types import TracebackType
from typing import Any, Final

import msgspec
from msgspec import Struct

from grape.abc.transport import Table
from grape.authoring.topology import Topology
from grape.engine.clock import FakeClock
from grape.engine.feed import Prepared
from grape.errors import UnknownEvent, UsageError
from grape.model import batch as codec
from grape.model import own
from grape.model.address import check_key, partition_of
from grape.model.event import Event
from grape.model.foreign import output_to
from grape.model.names import check_key as check_object_key
from grape.model.names import check_namespace, own_namespace
from grape.model.near import did_you_mean
from grape.model.objects import ALWAYS, INLINE, ObjectWrite, place_key
from grape.model.stored import decode_dead, decode_hold, state_key
from grape.model.topology import Limits
from grape.model.values import to_value
from grape.testing.machine import Granted, ListTaker, Machine
from grape.transports.memory import MemoryBroker

_MOST_MOVES: Final = 1_000_000


class Answer(Struct, frozen=True):
    """A reply. ``final`` ended the call."""

    data: Any
    final: bool


class Dead(Struct, frozen=True):
    """A dead letter. ``kind`` is an error code or the name of an exception class, ``text`` one line of what went wrong,
    ``traceback`` that of the handler. ``attempts`` made in all."""

    event: str
    node: str
    key: str | None
    data: Any
    id: str
    kind: str
    text: str
    attempts: int
    traceback: str


class Held(Struct, frozen=True):
    """A failed event that waits for its next attempt, or one that waits ``behind`` it.

    ``due``: wall time, seconds since 1970. ``stopped``: after the last attempt, with ``on_fail="stop"``. ``attempts``
    made so far."""

    event: str
    node: str
    key: str | None
    data: Any
    id: str
    attempts: int
    due: float
    behind: bool
    stopped: bool
    kind: str
    text: str


class Harness:
    """A topology on the real engine and the real worker runtime, in memory, in this thread, on a fake clock.

        def test_words_are_counted():
            with Harness(topology()) as run:
                run.feed("line", "a b a")
                run.settle()
                assert run.state("Count", "a") == {"seen": 2}
                assert [e.data["count"] for e in run.outputs("total") if e.key == "a"] == [1, 2]

    Nothing happens by itself: `feed` puts an event in, `settle` works off all that is due, `advance` moves the clock.
    No call sleeps; equal calls give equal results. An async handler runs on an event loop of the same clock: while it
    sleeps, `settle` moves the clock. It must not wait for anything real (a socket, a thread), and a harness does not
    run inside of a running event loop.

    For less than that no harness is needed: a handler is a function or a method that a test may call. Outside a
    worker a node records what it emits and replies, and its State are attributes:

        node = Count()
        node.process(Event("word", key="a"))
        assert node.seen == 1
        assert node.emitted == [Emitted("total", {"word": "a", "count": 1}, "a")]

    Args:
        topology: what to run, or a function without arguments that builds it; then every start (`restart`, a worker
            that crashed) gets nodes of its own, as worker processes do. Of one given topology the nodes are the same
            objects all the time.
        now: what the clock shows, seconds since 1970 or a datetime.
        partitions: of the app.
        limits: sizes and counts, see `grape.model.topology.Limits`.
        apps: other apps beside this one, each with its slots, so that it can emit to them: see `sent`.
        namespaces: of objects that it may use beside its own: {"photos": "read"}. elsewhere: which of them (or its own)
            are in another storage, where what is written arrives after its commit.

    Raises:
        TopologyError: it cannot be built as written.
    """

    def __init__(
        self,
        topology: Topology | Callable[[], Topology],
        *,
        now: float | datetime = 1_600_000_000.0,
        partitions: int = 4,
        limits: Limits | None = None,
        apps: Mapping[str, Iterable[str]] | None = None,
        namespaces: Mapping[str, str] | None = None,
        elsewhere: Iterable[str] = (),
    ) -> None:
        def given() -> Topology:
            assert isinstance(topology, Topology)
            return topology

        if not isinstance(topology, Topology) and not callable(topology):
            raise UsageError(f"Harness takes a Topology, or a function that builds it, not {type(topology).__name__}")
        if partitions < 1:
            raise UsageError(f"partitions={partitions}: there is at least one")
        seconds = now.timestamp() if isinstance(now, datetime) else float(now)
        self._clock = FakeClock(int(seconds * 1e6))
        self._machine = Machine(
            given if isinstance(topology, Topology) else topology,
            self._clock,
            MemoryBroker(),
            partitions=partitions,
            limits=limits,
            rng=Random(0),
            peers={app: list(slots) for app, slots in (apps or {}).items()},
            granted=Granted(dict(namespaces or {}), frozenset(elsewhere)),
        )
        self._seen: dict[str, int] = {}
        self._calls: dict[str, str] = {}

    def __enter__(self) -> Harness:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release everything. Idempotent."""
        if self._machine.is_running:
            self._machine.stop()

    def __repr__(self) -> str:
        return f"<Harness of {self._machine.spec.name!r} at {self.now:.6f}>"

    # ------------------------------------------------------------------ time and work

    @property
    def now(self) -> float:
        """Wall time, seconds since 1970."""
        return self._clock.now() / 1e6

    def feed(self, event: str, data: Any = None, *, key: str | None = None) -> str:
        """Hand in an event from outside; it is processed by the next `settle` or `advance`. Returns its id, under which
        `replies` has what was replied to it.

        (With listeners in several pools, each pool has a copy with an id of its own; this is that of the first one.)

        Raises:
            UnknownEvent: nothing listens to it.
            TypeError, ValueError: the key cannot be one.
            BadValue, TooLarge: the data cannot travel.
        """
        self._check_open()
        app = self._machine.app
        if event not in app.routing.listeners:
            extra = " (it is an output: events come out of it)" if event in app.routing.outputs else ""
            what = f"topology {app.record.name!r} has no slot"
            raise UnknownEvent(_no_such(what, event, app.routing.listeners) + extra)
        value = to_value(data, app.limits.max_event)
        (prepared,) = self._machine.add(event, value, None if key is None else check_key(key))
        ids = list(_ids_of(prepared))
        self._calls.update(dict.fromkeys(ids, ids[0]))
        return ids[0]

    def settle(self) -> None:
        """Work off all that is due now: what was fed, everything emitted from it, retries and timers that have become
        due. What is due later waits for `advance`. The clock only moves while async handlers wait for it.

        Raises:
            GrapeError: the engine had to stop.
            UsageError: it does not come to an end, or a handler waits for something outside of the harness.
        """
        self._check_open()
        machine = self._machine
        for _ in range(_MOST_MOVES):
            moves = machine.moves()
            if moves:
                moves[0]()
                continue
            wake = machine.tick()
            if machine.moves():
                continue
            if not machine.engine.in_flight:
                return
            if wake is None:
                raise UsageError(
                    "an async handler waits for something that does not come from this harness's clock (a socket, a "
                    "thread, a future that nobody sets) and has no timeout; replace it in the test"
                )
            self._clock.advance_to(wake)
        raise UsageError(
            f"not settled after {_MOST_MOVES:,} steps: does the topology go round in a circle for ever? "
            f"{machine.app.backlog_events} events wait"
        )

    def advance(self, seconds: float) -> None:
        """Let time pass, and do what becomes due meanwhile (timers, retries), each at its time.

        Raises:
            UsageError: backwards. Otherwise as `settle`.
        """
        if seconds < 0:
            raise UsageError(f"advance({seconds}): time goes forward only")
        end = self._clock.now() + round(seconds * 1e6)
        self.settle()
        while (due := self._machine.tick()) is not None and due <= end:
            self._clock.advance_to(due)
            self.settle()
        self._clock.advance_to(end)
        self.settle()

    def finish(self, within: float = 7 * 86_400.0) -> None:
        """Let as much time pass as it takes until nothing is left: no timer, no retry.

        Raises:
            UsageError: something is left after ``within`` seconds. Otherwise as `settle`.
        """
        end = self._clock.now() + round(within * 1e6)
        self.settle()
        while not self._machine.is_finished and (due := self._machine.tick()) is not None:
            if due > end:
                raise UsageError(
                    f"not finished after {within:g} s: the next timer or retry is due in "
                    f"{(due - self._clock.now()) / 1e6:g} s"
                )
            self._clock.advance_to(due)
            self.settle()

    def restart(self) -> None:
        """Kill the engine and its workers, and start again on what is durable: events that were fed (also those not yet
        processed), state, timers, held events. What was in work is done again: effects outside of Grape happen twice
        then, everything else once."""
        self._check_open()
        self._machine.stop()
        self._machine.start()

    def crash(self, moves: int) -> None:
        """Go on for that many single steps (a message, a commit, a handler's batch), then `restart`: for finding out
        what a kill at any moment does."""
        self._check_open()
        for _ in range(moves):
            possible = self._machine.moves()
            if possible:
                possible[0]()
            else:
                self._machine.tick()
        self.restart()

    # ------------------------------------------------------------------ what came of it

    def outputs(self, name: str) -> list[Event]:
        """The events of an output that were committed since the last call for it. In the order of their commits; of one
        (emitting node, partition) that is the order of the emits.

        Raises:
            UsageError: it is no output.
        """
        taker = self._machine.outputs.get(name)
        if taker is None:
            extra = ". It is a slot: look at what its nodes did" if name in self._machine.app.routing.listeners else ""
            what = f"topology {self._machine.spec.name!r} has no output"
            raise UsageError(_no_such(what, name, self._machine.outputs) + extra)
        return self._new(name, taker)

    def sent(self, app: str) -> list[Event]:
        """What was emitted to another app, ``app@event``, and committed since the last call for it; as `outputs`.

        Raises:
            UsageError: it is none of ``apps``.
        """
        taker = self._machine.outputs.get(output_to(app))
        if taker is None:
            raise UsageError(f"there is no app {app!r} here; say so with Harness(..., apps={{{app!r}: [..]}})")
        return self._new(output_to(app), taker)

    def replies(self) -> dict[str, list[Answer]]:
        """By the id that `feed` returned: all replies so far, in the order of their arrival. An event that became a
        dead letter has a final one with ``{"error": ...}``; after a final one no other comes."""
        answers: dict[str, list[Answer]] = {}
        for event in self._machine.replies.committed:
            request = event.key or ""
            answers.setdefault(self._calls.get(request, request), []).append(Answer(event.data, event.name == "final"))
        return answers

    def state(self, node: str, key: str) -> dict[str, Any]:
        """The keyed state of a node: name -> value, decoded to its type; without what is unset or expired.

        Raises:
            UsageError: there is no such node, or it has no State.
        """
        pool = self._check_state(node)
        app = self._machine.app
        log = app.log(pool, partition_of(check_key(key), app.partitions))
        row = state_key(app.node_id(node), key.encode())
        (record,) = self._machine.transport.get(log, "state", [row])
        return {} if record is None else self._decode_state(node, record)

    def states(self, node: str) -> dict[str, dict[str, Any]]:
        """All keyed state of a node, by key, sorted.

        Raises:
            UsageError: there is no such node, or it has no State.
        """
        pool = self._check_state(node)
        prefix = state_key(self._machine.app.node_id(node), b"")
        found = {
            row[len(prefix) :].decode(): self._decode_state(node, record)
            for row, record in self._rows("state", [pool])
            if row.startswith(prefix)
        }
        return {key: found[key] for key in sorted(found) if found[key]}

    def objects(self, namespace: str | None = None) -> dict[str, bytes]:
        """All objects of a namespace (None: the app's own) that are committed, and there, by key."""
        machine = self._machine
        name = own_namespace(machine.spec.name) if namespace is None else namespace
        if name in machine.elsewhere.namespaces:
            return {key: data for (its, key), (_, data) in sorted(machine.elsewhere.objects.items()) if its == name}
        found: dict[str, bytes] = {}
        position = ""
        while True:
            items, position = machine.engine.objects.page(name, "", position, 1000)
            for key, _ in items:
                stored = machine.engine.objects.stored(place_key(name, key))
                assert stored is not None
                found[key] = machine.blobs.blobs[stored.checksum] if stored.blob else stored.data
            if not position:
                return found

    def put_object(self, key: str, data: bytes | str, namespace: str | None = None) -> None:
        """Write an object from outside, at once.

        Raises:
            BadArgument: it cannot be one.
        """
        machine = self._machine
        name = own_namespace(machine.spec.name) if namespace is None else check_namespace(namespace)
        content = data.encode() if isinstance(data, str) else bytes(data)
        if name in machine.elsewhere.namespaces:
            machine.elsewhere.put(name, check_object_key(key), content)
            return
        digest = sha256(content).digest()
        is_large = len(content) > INLINE
        if is_large:
            machine.blobs.blobs[digest] = content
        write = ObjectWrite(
            name, check_object_key(key), len(content), digest, blob=is_large, data=b"" if is_large else content
        )
        done: list[object] = []
        machine.engine.objects.write([(write, ALWAYS)], done.append)
        while not done:
            machine.transport.step()

    def dead(self) -> list[Dead]:
        """All dead letters."""
        letters: list[Dead] = []
        for _, value in self._rows("dead"):
            letter = decode_dead(value)
            letters.append(
                Dead(
                    letter.event,
                    letter.node,
                    letter.key,
                    _data_of(letter.body),
                    letter.id,
                    letter.kind,
                    letter.text,
                    letter.attempts,
                    self._text(letter.trace),
                )
            )
        return letters

    def held(self) -> list[Held]:
        """What waits for a retry, for an operator, or behind one of these; oldest first in each partition."""
        entries: list[Held] = []
        for _, value in self._rows("hold"):
            entry = decode_hold(value)
            entries.append(
                Held(
                    entry.event,
                    entry.node,
                    entry.key,
                    _data_of(entry.body),
                    entry.id,
                    entry.attempts,
                    entry.due / 1e6,
                    entry.behind,
                    entry.stopped,
                    entry.kind,
                    entry.text,
                )
            )
        return entries

    def notices(self) -> list[str]:
        """What an operator would have read: workers that were replaced."""
        return list(self._machine.notices)

    # ------------------------------------------------------------------ inside

    def _check_open(self) -> None:
        if not self._machine.is_running:
            raise UsageError("this harness is closed")

    def _new(self, name: str, taker: ListTaker) -> list[Event]:
        since = self._seen.get(name, 0)
        committed = taker.committed
        self._seen[name] = len(committed)
        return committed[since:]

    def _check_state(self, node: str) -> str:
        nodes = {spec.name: spec for spec in self._machine.spec.nodes}
        found = nodes.get(node)
        if found is None:
            raise UsageError(_no_such(f"topology {self._machine.spec.name!r} has no node", node, nodes))
        if not found.states:
            raise UsageError(f"node {node!r} declares no State")
        return found.pool

    def _decode_state(self, node: str, record: bytes) -> dict[str, Any]:
        fields = msgspec.msgpack.decode(record, type=dict[str, msgspec.Raw])
        expires = msgspec.msgpack.decode(fields.pop("", msgspec.Raw(b"\x80")), type=dict[str, int])
        states = self._machine.topology.handlers[node].states
        now = self._clock.now()
        return {
            name: own.decoder(states[name].value_type if name in states else Any)(value)
            for name, value in fields.items()
            if expires.get(name, now + 1) > now
        }

    def _rows(self, table: Table, pools: Iterable[str] | None = None) -> Iterator[tuple[bytes, bytes]]:
        app = self._machine.app
        for pool in pools or [pool.name for pool in self._machine.spec.pools]:
            for number in range(app.partitions):
                yield from self._machine.transport.scan(app.log(pool, number), table, b"", 1 << 62)

    def _text(self, key: bytes) -> str:
        if not key:
            return ""
        found = (value for row, value in self._rows("text") if row == key)
        return next(found, b"").decode("utf-8", "replace")


def _ids_of(prepared: Prepared) -> Iterator[str]:
    for send in prepared.sends:
        yield f"{codec.header_of(send.batch).id_prefix}0"


def _data_of(body: bytes) -> Any:
    return (codec.data_of(next(codec.runs_of(body))) or [None])[0]


def _no_such(what: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    others = f"it has {', '.join(map(repr, names)) or 'none'}"
    return f"{what} {name!r}; {did_you_mean(name, names, others)}"
