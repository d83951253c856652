"""An engine on the memory transport, and a worker that says whatever a test wants it to say."""

from __future__ import annotations

import random
from typing import Any, Final

from grape.abc.blobs import Blobs
from grape.abc.elsewhere import Elsewhere
from grape.abc.transport import Callbacks, Claim, Commit, Outcome, Send
from grape.engine.app import App
from grape.engine.catalog import update_record, with_logs
from grape.engine.clock import FakeClock
from grape.engine.engine import Engine
from grape.engine.surroundings import Sizes, Surroundings
from grape.errors import GrapeError
from grape.model import batch as codec
from grape.model.address import PartitionId
from grape.model.batch import RunMeta
from grape.model.cursor import Progress
from grape.model.objects import OBJECTS
from grape.model.profile import Profile
from grape.model.section import Duration
from grape.model.stored import SOURCE, Catalog
from grape.model.topology import Limits, NodeSpec, PoolSpec, SlotSpec, StateSpec, TopologySpec
from grape.protocol.messages import (
    VERSION,
    Beat,
    Emitted,
    Failure,
    FromWorker,
    Hello,
    Result,
    StateChanges,
    ToWorker,
    Work,
)
from grape.transports.memory import MemoryTransport

TOPOLOGY: Final = TopologySpec(
    "forged",
    nodes=(
        NodeSpec("Count", states=(StateSpec("seen"), StateSpec("fresh", ttl=60.0))),
        NodeSpec("Plain"),
        NodeSpec("Other"),
        NodeSpec("Far", "far", (StateSpec("kept"),)),
    ),
    slots=(SlotSpec("word", "Count"), SlotSpec("line", "Plain"), SlotSpec("word2", "Other"), SlotSpec("away", "Far")),
    outputs=("total",),
    pools=(PoolSpec("main"), PoolSpec("far")),
)
CAPABILITIES: Final = ["partition", "cache", "chain"]
EVENTS: Final = 10
LIMITS: Final = Limits(max_event=200_000, batch_max=100_000)
PROFILE: Final = Profile(
    idle_timeout=Duration(0), heartbeat_timeout=Duration(1e9), startup_timeout=Duration(1e9)
)  # its clock jumps


class LyingWorker:
    """A link that records what it is sent, and whether it was ended."""

    unread = 0

    def __init__(self) -> None:
        self.sent: list[ToWorker] = []
        self.killed = False

    def send(self, message: ToWorker) -> None:
        self.sent.append(message)

    def terminate(self) -> None:
        self.kill()

    def kill(self) -> None:
        self.killed = True

    def last(self, kind: type[Any]) -> Any:
        return next(m for m in reversed(self.sent) if isinstance(m, kind))


class Rig:
    """An engine of one worker in pool "main", with one partition and a batch of ten calls of ``word`` in its log."""

    def __init__(
        self,
        limits: Limits = LIMITS,
        *,
        says_hello: bool = True,
        blobs: Blobs | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.clock = FakeClock()
        self.notices: list[str] = []
        self.failure: GrapeError | None = None
        self.workers: list[LyingWorker] = []
        self.engine: Engine | None = None
        self.commits: list[Commit] = []
        self.transport = MemoryTransport(Callbacks(self._done, self._arrived, self._failed, self._claimed))
        record = with_logs(update_record(Catalog(), TOPOLOGY, 1, 1), [f"{SOURCE}test", OBJECTS])
        self.app = App(record, TOPOLOGY, limits)
        self.app.taken = frozenset(TOPOLOGY.outputs)
        self.source = self.app.log(f"{SOURCE}test", 0)
        self.claims: dict[PartitionId, Claim] = {}
        pools = [self.app.log(pool.name, 0) for pool in TOPOLOGY.pools]
        self.transport.claim([self.source, *pools])
        self.transport.pump()
        self.term = self.claims[self.source].term
        self.engine = Engine(
            self.app,
            Surroundings(
                self.transport, self, self.clock, random.Random(0), self._stop, self.notices.append, blobs, elsewhere
            ),
            Sizes(dict.fromkeys(("main", "far"), PROFILE), 1),
            self.claims,
        )
        self.feed()
        self.engine.start()
        if says_hello:
            self.say(Hello(VERSION, 1, "test", TOPOLOGY, CAPABILITIES))
            self.say(Beat())

    # the parts of an engine's surroundings

    def spawn(self, pool: str, index: int) -> LyingWorker:
        worker = LyingWorker()
        if pool == "main":
            self.workers.append(worker)
        return worker

    def _done(self, outcomes: list[tuple[Commit, Outcome]]) -> None:
        assert self.engine is not None
        self.commits += [commit for commit, _ in outcomes if commit.partition != self.source]
        self.engine.done([(commit, outcome) for commit, outcome in outcomes if commit.partition != self.source])

    def _arrived(self, arrivals: Any) -> None:
        assert self.engine is not None
        self.engine.arrived(arrivals)

    def _failed(self, error: BaseException) -> None:
        raise error

    def _claimed(self, claims: list[tuple[PartitionId, Claim]]) -> None:
        self.claims.update(claims)

    def _stop(self, error: GrapeError) -> None:
        self.failure = error

    # what a test does

    def feed(self) -> None:
        body = codec.encode_run(RunMeta(["word"]), EVENTS, [f"k{i}" for i in range(EVENTS)], list(range(EVENTS)))
        log = self.app.log("main", 0)
        batch = codec.seal(body, EVENTS, self.source, log, 1, 0, self.clock.now(), flags=codec.SELF_REPLY)
        sends = (Send(log, batch, EVENTS),)
        self.transport.commit(Commit(self.source, self.term, 1, b"head", sends))
        self.transport.pump()

    @property
    def worker(self) -> LyingWorker:
        return self.workers[-1]

    @property
    def work(self) -> Work:
        work: Work = self.worker.last(Work)
        return work

    def say(self, message: FromWorker) -> None:
        assert self.engine is not None
        self.engine.received("main", 0, self.worker, message)
        self.transport.pump()

    def fail_one(self) -> None:
        """Event 0 fails; the retry comes with the next work."""
        self.say(result(self, failures=[failure()], done=[(self.position, Progress(EVENTS))]))
        self.clock.advance(10)
        assert self.engine is not None
        self.engine.tick()
        assert [r.hold for r in self.work.retries] == [0]

    @property
    def position(self) -> int:
        (item,) = self.work.batches
        return item.position

    def committed(self) -> Any:
        """Everything that is stored."""
        broker = self.transport.broker
        logs = {log: dict(found.batches) for log, found in broker._logs.items()}
        tables = {name: dict(table.rows) for name, table in broker._tables.items()}
        heads = {partition: found.head for partition, found in broker._partitions.items()}
        return logs, tables, heads

    def replace_worker(self) -> None:
        """The operating system says that the worker has ended; another one comes."""
        assert self.engine is not None
        self.engine.gone("main", 0, self.worker, "it was killed by signal 9 (SIGKILL)")
        self.transport.pump()
        assert len(self.workers) == 2
        self.say(Hello(VERSION, 2, "test", TOPOLOGY, CAPABILITIES))
        self.say(Beat())


def result(rig: Rig, **fields: Any) -> Result:
    work = rig.work
    values: dict[str, Any] = {"partition": work.partition, "epoch": work.epoch, "ended": [work.seq], "done": []}
    return Result(**{**values, **fields})


def failure(**fields: Any) -> Failure:
    values: dict[str, Any] = {
        "node": "Count",
        "event": "word",
        "id": "1-0",
        "key": "k0",
        "created": 0,
        "body": codec.one("word", "k0", 0),
        "kind": "ValueError",
    }
    return Failure(**{**values, **fields})


def emitted(**fields: Any) -> Emitted:
    values: dict[str, Any] = {"target": "main", "partition": 0, "events": 1, "body": codec.one("line", None, 1)}
    return Emitted(**{**values, **fields})


def run(count: int, keys: bytes, data: bytes, **meta: Any) -> bytes:
    """A run of which nothing has to fit."""
    packed = codec.encode({"names": ["line"], **meta})
    lengths = b"".join(n.to_bytes(4, "little") for n in (count, len(packed), len(keys), len(data)))
    return lengths + packed + keys + data


def states(**fields: Any) -> StateChanges:
    values: dict[str, Any] = {"node": "Count", "keys": [b"k0"], "values": [codec.encode({"seen": 1})]}
    return StateChanges(**{**values, **fields})
