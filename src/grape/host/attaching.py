"""Streams and readers come to an engine: each has a log of its own, for ever, under a number of the catalog."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, NamedTuple

from grape.abc.transport import Arrival
from grape.engine.app import App
from grape.engine.catalog import CatalogStore, with_logs
from grape.engine.committer import Committer
from grape.engine.engine import Engine
from grape.engine.feed import Feed
from grape.engine.ids import Ids
from grape.engine.outlet import DeadOutputs, Take, dead_log
from grape.engine.retention import Retention
from grape.errors import Full, UsageError
from grape.model.address import MAX_LOGS, PartitionId
from grape.model.retention import Keeping
from grape.model.stored import OUTPUT, REPLIES, SOURCE, TAKER
from grape.model.tracing import SPANS_LOG

_SPARED: Final = 1_024
"""Numbers of logs that are left to what the app itself may have in later versions."""


class TakenBy(NamedTuple):
    """``event``: an output, None: replies. ``name``: of who takes it, which tells it from all others for ever."""

    event: str | None
    name: str

    @property
    def log(self) -> str:
        return REPLIES if self.event is None else OUTPUT + self.event

    @property
    def dead_event(self) -> str:
        """By which the dead letters of what it takes are known."""
        return self.event or "reply"


class Attaching:
    """Of one engine. Whoever comes again finds what there was.

    Attributes:
        calls: events of streams that come from now on are calls: somebody takes replies.
    """

    def __init__(self, app: App, engine: Engine, catalog: CatalogStore) -> None:
        self.calls = False
        self._app = app
        self._engine = engine
        self._catalog = catalog
        self._ids = Ids(app, engine.transport, engine.clock)
        self._feeds: dict[str, Feed] = {}
        self._takes: dict[TakenBy, Take] = {}
        self._committers: dict[str, Committer] = {}
        self._dead: dict[str, DeadOutputs] = {}
        self._peers: dict[str, list[Take]] = {}
        self._retained: dict[str, Retention] = {}
        self._wanted: list[tuple[dict[str, str], Callable[[dict[str, Committer]], None]]] = []
        self._numbering: list[str] = []
        self._is_busy = False

    def feed(self, name: str, *, in_order: bool, then: Callable[[Feed], None]) -> None:
        """The feed of a stream; ``then`` gets it, now or when it has been claimed.

        Raises:
            Full: the directory has had as many streams and readers as it can.
        """
        if name in self._feeds:
            self._feeds[name].set_order(in_order=in_order)
            then(self._feeds[name])
            return
        log, engine = SOURCE + name, self._engine
        self._check_room(log)

        def claimed(committers: dict[str, Committer]) -> None:
            self._feeds[name] = Feed(
                self._app,
                name,
                engine.transport,
                committers[log],
                self._ids,
                in_order=in_order,
                calls=self.calls,
            )
            then(self._feeds[name])

        self._claim({log: f"source {name!r}"}, claimed)

    def take(self, taken: TakenBy, then: Callable[[Take, DeadOutputs], None]) -> None:
        """The position of a reader, and where what it cannot read goes; as `feed`. However often it is
        asked for, also before it is there, it is one.

        Raises:
            Full: as `feed`.
            UsageError: whoever takes another output has this name.
        """
        dead = taken.dead_event
        if taken in self._takes:
            then(self._takes[taken], self._dead[dead])
            return
        if any(other.name == taken.name for other in self._takes):
            raise UsageError(f"{taken.name!r:.300} reads another output: a reader belongs to one")
        own, letters = TAKER + taken.name, dead_log(dead)
        self._check_room(own, letters)

        def claimed(committers: dict[str, Committer]) -> None:
            if dead not in self._dead:
                self._dead[dead] = DeadOutputs(self._app, committers[letters])
            if taken not in self._takes:  # somebody else may have asked for it meanwhile
                self._takes[taken] = self._make_take(taken, committers[own])
            then(self._takes[taken], self._dead[dead])

        self._claim({own: f"taker {taken.name!r}", letters: f"dead letters of output {dead!r}"}, claimed)

    def _make_take(self, taken: TakenBy, committer: Committer) -> Take:
        app, engine = self._app, self._engine
        take = Take(app, taken.name, taken.log, engine.transport, committer, engine.clock)
        take.peers = self._peers.setdefault(taken.log, [])
        take.peers.append(take)
        take.retention = self._retained.get(taken.log)
        take.keeps = taken.log == SPANS_LOG
        for number in take.logs:
            engine.on_arrival(app.log(taken.log, number), partial(_of, take.arrived, number))
        return take

    def keep(self, event: str, keeping: Keeping) -> Retention:
        """An output is kept, from now on, also if nobody takes it. Before it has any taker."""
        app, engine, log = self._app, self._engine, OUTPUT + event
        retention = self._retained[log] = Retention(app, event, engine.transport, keeping)
        for number in range(app.partitions):
            engine.on_arrival(app.log(log, number), partial(_of, retention.arrived, number))
        if event in app.topology.outputs:
            app.taken |= {event}
        return retention

    def let_go(self, event: str, numbers: set[int]) -> None:
        """Of what nobody keeps of these partitions of an output."""
        log = OUTPUT + event
        peers = [] if log == SPANS_LOG else self._peers.get(log, [])
        taken = {number: min(peer.committed(number) for peer in peers) for number in numbers} if peers else {}
        self._retained[log].let_go(numbers, taken)

    def number(self, names: Iterable[str], then: Callable[[], None]) -> None:
        """Have numbers for logs that nobody commits to by himself.

        Raises:
            Full: there are no more.
        """
        self._check_room(*names)
        self._numbering += names
        self._claim({}, lambda _: then())

    @property
    def logs(self) -> Iterable[str]:
        """Names of all that there ever were."""
        return self._app.record.logs

    def own(self, log: str, then: Callable[[Committer], None]) -> None:
        """``then`` gets the committer of a source's log that there is, which may be in use."""
        self._claim({log: f"log {log!r:.300}"}, lambda committers: then(committers[log]))

    def freed(self, log: PartitionId) -> None:
        """A commit that nobody here knew of was under way in this log, and is no more."""
        for dead in self._dead.values():
            if dead.log == log:
                dead.go_on()

    # ------------------------------------------------------------------ numbers and claims

    def _check_room(self, *names: str) -> None:
        """
        Raises:
            Full: no log can have another number.
        """
        record = self._app.record
        wanted = {name for logs, _ in self._wanted for name in logs}.union(names) - record.logs.keys()
        if wanted and record.next_log + len(wanted) > MAX_LOGS - _SPARED:
            raise Full(
                f"the directory has had {record.next_log:,} streams, readers and pools; there is no room for more"
            )

    def _claim(self, logs: dict[str, str], then: Callable[[dict[str, Committer]], None]) -> None:
        """Have these logs; the value names one in errors. What is asked for meanwhile is done together, after it."""
        self._wanted.append((logs, then))
        if not self._is_busy:
            self._is_busy = True
            self._number()

    def _number(self) -> None:
        """What is wanted by now gets its numbers in the catalog, durably."""
        wanted, self._wanted = self._wanted, []
        names = {name: what for logs, _ in wanted for name, what in logs.items()}
        record = with_logs(self._app.record, [*names, *self._numbering])
        self._numbering = []

        def numbered() -> None:
            self._app.record = record
            self._own(names, [then for _, then in wanted])

        if record == self._app.record:
            numbered()
        else:
            self._catalog.save(record, numbered)

    def _own(self, names: dict[str, str], then: list[Callable[[dict[str, Committer]], None]]) -> None:
        fresh = {self._app.log(name, 0): name for name in names if name not in self._committers}

        def claimed(found: dict[PartitionId, Committer]) -> None:
            self._committers.update((name, found[own]) for own, name in fresh.items())
            for each in then:
                each(self._committers)
            if self._wanted:
                self._number()
            else:
                self._is_busy = False

        if fresh:
            self._engine.claim({own: names[name] for own, name in fresh.items()}, claimed)
        else:
            claimed({})


def _of(arrived: Callable[[int], None], number: int, _: Arrival) -> None:
    arrived(number)
