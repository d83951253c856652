"""An engine, its workers, its source and its takers in one thread: nothing moves unless somebody says so.

Everything in here is the real thing (engine, partitions, feeding, taking, worker runtime, memory transport). Only what
moves them is not: no event loop, no threads, no wall clock. `Machine.moves` lists what could happen next, and whoever
drives picks: `grape.testing.Harness` the first, the simulator any.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from random import Random
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from grape.abc.blobs import MemoryBlobs
from grape.abc.source import Chunk, Columns, Source
from grape.abc.transport import Rows, Table
from grape.authoring.topology import Topology
from grape.client.packing import Packer
from grape.engine.clock import FakeClock
from grape.engine.committer import Committer
from grape.engine.feed import Feed, Prepared
from grape.engine.orders.orders import Orders
from grape.engine.outlet import Take
from grape.engine.surroundings import Sizes, Surroundings
from grape.errors import EngineError, GrapeError, Unstoppable
from grape.host.assembly import Assembler, Plan
from grape.host.attaching import Attaching, TakenBy
from grape.inline import InlineLink
from grape.model import batch as codec
from grape.model.event import Event, Lineage
from grape.model.foreign import Peers, output_to
from grape.model.profile import Profile
from grape.model.routing import long_events
from grape.model.section import Duration
from grape.model.stored import OUTPUT, REPLIES
from grape.model.topology import Limits, TopologySpec
from grape.protocol.door import Append, Opened, StreamOpened
from grape.protocol.messages import Announce, Ask, FromWorker, ToWorker, Welcome
from grape.testing.elsewhere import MemoryElsewhere
from grape.testing.loop import FakeLoop
from grape.transports.memory import MemoryBroker, MemoryTransport
from grape.worker.process import serve_on_loop

_TAKE_BYTES: Final = 1 << 20
_FAKE_SOCKET: Final = -1
_LATE: Final = 0.1

Move = Callable[[], None]
T = TypeVar("T")


class Crash(Unstoppable):
    """Raised by a handler, it ends its worker on the spot, like a segmentation fault: nothing of the running work
    arrives. No ``except Exception`` stops it."""


class ListSource(Source):
    """Reads a list of chunks that may grow; the position is the number of chunks read."""

    def __init__(self, name: str = "test") -> None:
        self.name = name
        self.chunks: list[list[Columns]] = []

    def open(self, position: bytes) -> None:
        pass

    def read(self, position: bytes) -> Chunk | None:
        at = int(position or b"0")
        if at >= len(self.chunks):
            return None
        return Chunk(self.chunks[at], b"%d" % (at + 1), [], 0)


class ListTaker:
    """Takes an output (None: replies). Appends what is taken to a list, as a file sink does to its file: what lies
    behind the committed length was written but never committed, and is cut off by the next write."""

    def __init__(self, event: str | None) -> None:
        self.taken = TakenBy(event, f"{REPLIES if event is None else OUTPUT + event}=test")
        self.entries: list[Event] = []
        self.take: Take | None = None
        self.is_committing = False

    @property
    def committed(self) -> list[Event]:
        assert self.take is not None
        return self.entries[: self.take.head.length]

    def open(self, take: Take) -> None:
        self.is_committing = False
        self.take = take

    def has_work(self) -> bool:
        return self.take is not None and not self.is_committing and not self.take.is_idle

    def move(self) -> None:
        """Write and submit what can be taken."""
        take = self.take
        assert take is not None
        taken = take.read(_TAKE_BYTES)
        if taken is None:
            return
        late: list[set[int]] = [set()] * len(taken.batches)
        rows: list[tuple[Table, Rows]] = []
        if self.taken.event is None:
            late, rows = take.after_final(taken.batches)
        del self.entries[take.head.length :]
        for batch, skip in zip(taken.batches, late, strict=True):
            self.entries += [event for i, event in enumerate(events_of(batch)) if i not in skip]
        self.is_committing = True
        take.commit(taken, len(self.entries), b"", self._committed, rows)

    def _committed(self) -> None:
        self.is_committing = False


class StoredLineage(Lineage):
    """Where the events of a stored batch come from."""

    __slots__ = ("_header", "_hops", "_ids")

    def __init__(self, header: codec.Header) -> None:
        self._header = header
        self._ids: dict[int, str] = {}
        self._hops: list[int] = []

    def add(self, run: codec.Run) -> None:
        hops, at = run.meta.hops, len(self._hops)
        self._hops += [hops] * run.count if isinstance(hops, int) else hops
        self._ids.update((at + i, own) for i, own in (run.meta.ids or {}).items())

    def id_of(self, index: int) -> str:
        return self._ids.get(index) or f"{self._header.id_prefix}{index}"

    def time_of(self, index: int) -> float:
        return self._header.created / 1e6

    def attempt_of(self, index: int) -> int:
        return 1

    def hops_of(self, index: int) -> int:
        return self._hops[index]

    def trace_of(self, index: int) -> str | None:
        return None

    def progress(self) -> None:
        pass


def events_of(batch: bytes) -> list[Event]:
    """The events of a sealed batch; their data decoded to builtins."""
    header = codec.header_of(batch)
    lineage = StoredLineage(header)
    events: list[Event] = []
    for run in codec.runs_of(codec.body_of(batch, header)):
        lineage.add(run)
        names = codec.names_of(run)
        keys = codec.keys_of(run) or [None] * run.count
        data = codec.data_of(run) or [None] * run.count
        for name, key, value in zip(names, keys, data, strict=True):
            events.append(Event(name, key, value, lineage, len(events)))
    return events


class Worker(InlineLink):
    """A worker whose words, and those of the engine to it, lie on the way until they are delivered, one by one; it can
    die at any moment.

    ``said``: on the way to the engine. ``heard``: on the way to the worker. ``asks``: it waits for an answer, and does
    nothing else.
    """

    def __init__(self, machine: Machine, pool: str, index: int, topology: Topology) -> None:
        self.pool = pool
        self.index = index
        self.said: deque[FromWorker] = deque()
        self.heard: deque[ToWorker] = deque()
        self.asks = False
        self.is_dead = False
        self.is_welcome = False
        self.loop: FakeLoop | None = None
        self._tasks: deque[Callable[[], object]] = deque()
        self._arrived: deque[ToWorker] = deque()
        self._machine = machine
        if any(node.is_async and node.pool == pool for node in topology.spec().nodes):
            self.loop = FakeLoop(machine.clock)
            self.loop.set_task_factory(self._new_task)
        super().__init__(topology, Worker._tell, self._later, _ignore, self._elapsed, machine.clock.now)

    def _elapsed(self) -> float:
        return self._machine.elapsed()

    def _new_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any] | Generator[Any, None, Any]
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop)
        task.add_done_callback(self._noticed)
        return task

    def _noticed(self, task: asyncio.Task[Any]) -> None:
        """A crash ends the worker, whoever awaits the task."""
        if not task.cancelled() and isinstance(task.exception(), Crash) and self.loop is not None:
            self.loop.fail(Crash())

    # What the runtime calls

    @staticmethod
    def _tell(link: InlineLink, message: FromWorker) -> None:
        assert isinstance(link, Worker)
        if link.is_dead:
            return
        link.said.append(message)
        if isinstance(message, Announce | Ask):
            link._machine.interrupt(link)

    def _later(self, task: Callable[[], object]) -> None:
        if self.loop is not None:
            self.loop.call_soon(task)
        else:
            self._tasks.append(task)

    def _wait(self) -> None:
        """As over a socket: until something is heard; everybody else goes on meanwhile."""
        self.read(super().send, wait=True)

    def _is_set_up(self, message: Welcome) -> None:
        if self.loop is not None and self.dispatcher.pool is not None:
            self._serving = self.loop.create_task(serve_on_loop(self, self.dispatcher, None))
            self._serving.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self.is_dead:
            return
        error = task.exception()
        if error is not None and self.loop is not None:
            self.loop.fail(error)
        elif error is None:
            self.runtime.teardown()
            self.kill()

    # What the engine calls

    def send(self, message: ToWorker) -> None:
        if not self.is_dead:
            self.is_welcome = self.is_welcome or isinstance(message, Welcome)
            self.heard.append(message)

    def kill(self) -> None:
        self.die(len(self.said))

    # What the driver calls

    @property
    def has_work(self) -> bool:
        if self.is_dead or self.asks:
            return False
        if self.loop is None:
            return bool(self._tasks)
        self.loop.next_due()
        return self.loop.has_work

    def run(self) -> None:
        """Take one step, or run one round of the loop."""
        try:
            if self.loop is None:
                self._tasks.popleft()()
            else:
                self.loop.run_round()
        except Crash:
            self.die(len(self.said))

    def deliver(self) -> None:
        """The oldest word arrives at the engine."""
        self._machine.engine.received(self.pool, self.index, self, self.said.popleft())

    def hear(self) -> None:
        """The engine's oldest word arrives in the worker's socket. Somebody who waits for an answer reads it at once;
        else a synchronous pool does when it is its turn, and the loop of an asynchronous one is told."""
        self._arrived.append(self.heard.popleft())
        if self.loop is not None and self.dispatcher.pool is not None:
            self.loop.readable(_FAKE_SOCKET)
        elif not self.asks:
            self._later(self._read_all)

    def fileno(self) -> int:
        return _FAKE_SOCKET

    def read(self, take: Callable[[ToWorker], None], *, wait: bool) -> bool:
        """All that has arrived, as one read of a socket gives it."""
        self.asks = wait
        try:
            while wait and not self._arrived:
                if self.is_dead or not self._machine.go_on():
                    raise Crash  # the engine has ended this worker, or stopped
        finally:
            self.asks = False
        while self._arrived:
            take(self._arrived.popleft())
        return not self.is_dead

    def _read_all(self) -> None:
        self.read(super().send, wait=False)

    def die(self, arriving: int) -> None:
        """End now. Of what was said and not delivered, the first ``arriving`` messages still arrive."""
        if self.is_dead:
            return
        self.is_dead = True
        while len(self.said) > arriving:
            self.said.pop()
        self._tasks.clear()
        self.heard.clear()
        super().kill()

    def bury(self) -> None:
        """Nothing of it is left."""
        self.is_dead = True
        if self.loop is not None and not self.loop.is_closed():
            self.loop.readable(_FAKE_SOCKET)
            self.loop.abandon()
        self.dispatcher.pool = None  # the frames of a crash hold events, in which the garbage collector does not look


def _ignore(_: InlineLink, how: str) -> None:
    """`InlineLink` reports its end; here the driver decides when it is noticed."""


def _never(_: Worker) -> None:
    pass


def _no_log(log: str, then: Callable[[Committer], None]) -> None:
    raise AssertionError("no order is about a source here")


def _first(moves: list[Move]) -> Move:
    return moves[0]


class Share(Struct, frozen=True):
    """What one of several engines on a broker has of their app.

    ``owned``: numbers of partitions; None: all. ``source``: the name of its own. ``takes``: all outputs, and the
    replies; one engine does.
    """

    owned: frozenset[int] | None = None
    source: str = "test"
    takes: bool = True


class Granted(Struct, frozen=True):
    """``namespaces``: of objects, that an app may use beside its own: "read" or "write". ``elsewhere``: those that are
    in another storage."""

    namespaces: dict[str, str] = {}
    elsewhere: frozenset[str] = frozenset()


class Machine:
    """One engine at a time; `stop` and `start` are a kill and a new start on what is committed.

    Args:
        build: makes the topology, for every start and every worker anew: as worker processes do, which share nothing.
            Another one may be set before a `start`: the code has changed.
        clock: stands unless it is moved.
        broker: what is committed; outlives the engines.
        partitions: of the app.
        workers: per pool.
        profile: of all pools; as a rule nobody leaves.
        rng: jitter of the back-off, and incarnations.
        share: if there are other machines on the broker, for the same app: what this one has of it.
        peers: other apps, with their slots; what goes there is kept as in outputs.
        granted: of objects.

    Attributes:
        interrupt: called with a worker in the middle of its work (it asks for state, or announces an event); may raise
            `Crash`.
        pick: chooses what happens while a worker waits for an answer.
        elapsed: monotonic seconds as the workers see them; they measure with it how long handlers take.
    """

    def __init__(
        self,
        build: Callable[[], Topology],
        clock: FakeClock,
        broker: MemoryBroker,
        *,
        partitions: int,
        workers: int = 1,
        limits: Limits | None = None,
        profile: Profile | None = None,
        rng: Random | None = None,
        share: Share | None = None,
        peers: Peers | None = None,
        granted: Granted | None = None,
    ) -> None:
        self.clock = clock
        self._granted = granted or Granted()
        self._peers: Peers = peers or {}
        self.broker = broker
        self.share = share or Share()
        self.limits = limits or Limits()
        self.profile = profile or Profile(idle_timeout=Duration(0))
        self.interrupt: Callable[[Worker], None] = _never
        self.pick: Callable[[list[Move]], Move] = _first
        self.elapsed: Callable[[], float] = lambda: clock.now() / 1e6
        self.source = ListSource(self.share.source)
        self.notices: list[str] = []
        self.failure: Exception | None = None
        self.build = build
        self._partitions = partitions
        self._workers = workers
        self._rng = rng or Random(0)
        self.topology: Topology
        self.spec: TopologySpec
        self.blobs = MemoryBlobs()
        self.elsewhere = MemoryElsewhere(self._granted.elsewhere, self.blobs)
        self.outputs: dict[str, ListTaker] = {}
        self.replies = ListTaker(None)
        self.is_running = False
        self.start()

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Claim everything, and go on where the committed state says."""
        self.topology = self.build()
        self.spec = self.topology.spec()
        for name in (*self.spec.outputs, *map(output_to, self._peers)):
            self.outputs.setdefault(name, ListTaker(name))
        self.workers: list[Worker] = []
        assembler = Assembler()
        self.transport = MemoryTransport(assembler.callbacks, self.broker)
        around = Surroundings(
            self.transport,
            self,
            self.clock,
            self._rng,
            self._stop_with,
            self.notices.append,
            self.blobs,
            self.elsewhere,
        )
        assembled = self._settle(assembler.assemble(self._plan(), around))
        self.app, self.engine = assembled.app, assembled.engine
        self.is_running = True
        self._soon: deque[Move] = deque()
        self._later: deque[Move] = deque()
        self.orders = Orders(self.engine, self._soon.append, lambda _, move: self._later.append(move), _no_log)
        self._attach(assembled.attaching)
        self._prepared: deque[Prepared] = deque()
        self._read_to = self.feed.head.position
        self.engine.start()
        self.read()

    def _plan(self) -> Plan:
        never = Duration(1e9)  # nobody beats here, and the clock jumps
        profile = msgspec.structs.replace(self.profile, heartbeat_timeout=never, startup_timeout=never)
        return Plan(
            topology=self.spec,
            limits=self.limits,
            sizes=Sizes(dict.fromkeys((pool.name for pool in self.spec.pools), profile), self._workers),
            partitions=self._partitions,
            owned=self.share.owned,
            peers=self._peers,
            namespaces=self._granted.namespaces,
            elsewhere=self.elsewhere.namespaces,
        )

    def _attach(self, attaching: Attaching) -> None:
        """The source and the takers, as the owner of an engine does it at the door."""
        feeds: list[Feed] = []
        takers = self._takers()
        self.app.taken = frozenset(self.outputs)
        attaching.calls = True
        for taker in takers:
            attaching.take(taker.taken, lambda take, _, taker=taker: taker.open(take))  # type: ignore[misc]
        attaching.feed(self.source.name, in_order=self.source.terms.in_order, then=feeds.append)
        while not feeds:
            self.transport.step()
        (self.feed,) = feeds
        for taker in takers:
            assert taker.take is not None
            taker.take.let_go()
        head, app = self.feed.head, self.app
        opened = Opened(app.partitions, app.record.incarnation, app.limits)
        stream = StreamOpened(
            0, head.number, head.position, head.fed, head.spread, self.feed.partition, head.ended, self.feed.calls
        )
        self._packer = Packer(self.source, opened, stream, long_events(self.spec))
        self._appends = head.number

    def _all_takers(self) -> list[ListTaker]:
        return [*self.outputs.values(), self.replies]

    def _takers(self) -> list[ListTaker]:
        return self._all_takers() if self.share.takes else []

    def _settle(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it to its end; all that it can wait for is the transport."""
        loop = FakeLoop(self.clock)
        task = loop.create_task(coroutine)
        try:
            while not task.done():
                if not loop.has_work:
                    self.transport.step()
                loop.run_round()
            return task.result()
        finally:
            loop.abandon()

    def spawn(self, pool: str, index: int) -> Worker:
        """`grape.engine.worker.Spawner`."""
        worker = Worker(self, pool, index, self.build())
        self.workers.append(worker)
        return worker

    def stop(self) -> None:
        """Everything is gone at once but what is committed, or under way in the broker."""
        self.is_running = False
        self.transport.kill()
        self.elsewhere.kill(self._rng.randrange(len(self.elsewhere.pending) + 1))
        for worker in self.workers:
            worker.bury()
        self.workers = []

    def _stop_with(self, error: GrapeError) -> None:
        self.failure = self.failure or error

    # ------------------------------------------------------------------ moves

    def read(self) -> list[Prepared]:
        """Prepare what was added to the source; returns it."""
        added: list[Prepared] = []
        while (chunk := self.source.read(self._read_to)) is not None:
            self._read_to = chunk.position
            packed = self._packer.pack(chunk)
            self._appends += 1
            prepared = self.feed.prepare(Append(0, self._appends, packed.position, packed.parts, packed.bad))
            assert prepared is not None
            added.append(prepared)
        self._prepared += added
        return added

    def add(self, event: str, data: Any = None, key: str | None = None) -> list[Prepared]:
        """One more event for the source, in a chunk of its own; returns it as it will be committed."""
        keys: list[str | None] | None = None if key is None else [key]
        self.source.chunks.append([Columns(event, keys, [data])])
        return self.read()

    def moves(self) -> list[Move]:
        """What can happen next, most urgent first. Empty: nothing, before the clock moves.

        Raises:
            GrapeError: the engine had to stop.
        """
        if self.failure is not None:
            raise self.failure
        moves: list[Move] = []
        for worker in self.workers:
            if worker.said:
                moves.append(worker.deliver)
            elif worker.is_dead and not worker.asks:
                moves.append(partial(self._notice_end, worker))
            if worker.heard:
                moves.append(worker.hear)
            if worker.has_work:
                moves.append(worker.run)
        if self.transport.outstanding:
            moves.append(self._step)
        if self._prepared and not self.feed.is_busy and self.engine.feeding_is_open(self.engine.pools):
            moves.append(self._feed)
        moves += [taker.move for taker in self._takers() if taker.has_work()]
        if self.elsewhere.pending:
            moves.append(self.elsewhere.step)
        if self._soon:
            moves.append(self._do_soon)
        if self._later and (not moves or self._rng.random() < _LATE):
            moves.append(self._do_later)
        return moves

    def go_on(self) -> bool:
        """While somebody waits: one move of anybody else; False: there is none, now or later."""
        if self.failure is not None:
            return False
        try:
            moves = self.moves()
            if not moves:
                self.engine.tick()
                moves = self.moves()
            if not moves:
                raise EngineError(f"a worker waits for an answer, and nothing moves: {self.left()}")
            self.pick(moves)()
        except Exception as e:  # of whatever moved: the handler that waits has nothing to do with it
            self.failure = self.failure or e
            return False
        return True

    def _do_soon(self) -> None:
        self._soon.popleft()()

    def _do_later(self) -> None:
        """Its time is over: whenever it is its turn."""
        self._later.popleft()()

    def _step(self) -> None:
        self.transport.step()

    def _feed(self) -> None:
        batch = self.feed.first(list(self._prepared))
        for _ in batch:
            self._prepared.popleft()
        self.feed.commit(batch, lambda: None)

    def _notice_end(self, worker: Worker) -> None:
        self.workers.remove(worker)
        worker.bury()
        self.engine.gone(worker.pool, worker.index, worker, "it was killed")

    @property
    def is_finished(self) -> bool:
        """Nothing is left to do, now or later, but for stopped events and what waits behind them."""
        takers = self._takers()
        return (
            not self._prepared
            and not self.feed.is_busy
            and not self.orders.count
            and self.engine.finished
            and self.transport.idle
            and all(not taker.is_committing and not taker.has_work() for taker in takers)
        )

    def left(self) -> str:
        """In words, what is not done."""
        app = self.app
        return (
            f"{len(self._prepared)} chunks are not fed, {app.backlog_events} events wait, {app.holds} are held, "
            f"{app.timers} timers stand, {self.transport.outstanding} steps of the transport are outstanding, "
            f"works are {'' if self.engine.in_flight else 'not '}in flight"
        )

    def tick(self) -> int | None:
        """Let happen what is due; returns when something will be due next (microseconds), None: nothing ever.

        Raises:
            GrapeError: the engine had to stop.
        """
        wakes = [self.engine.tick()] + [w.loop.next_due() for w in self.workers if w.loop is not None]
        if self.failure is not None:
            raise self.failure
        return min((at for at in wakes if at is not None), default=None)
