"""A partition on the memory transport, without an engine: a test hands it what the engine would."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final

from grape.abc.transport import Arrival, Callbacks, Claim, Commit, Outcome, Send, Table
from grape.engine.app import App
from grape.engine.catalog import update_record, with_logs
from grape.engine.clock import FakeClock
from grape.engine.partition.partition import Partition
from grape.model import batch as codec
from grape.model.address import PartitionId
from grape.model.batch import Context, Header
from grape.model.stored import REPLIES, SOURCE, Catalog
from grape.model.topology import Limits, NodeSpec, PoolSpec, SlotSpec, StateSpec, TopologySpec
from grape.protocol.messages import Emitted, Failure, Result, Work
from grape.transports.memory import MemoryBroker, MemoryTransport

TOPOLOGY: Final = TopologySpec(
    "desk",
    nodes=(
        NodeSpec("Count", states=(StateSpec("seen"),)),
        NodeSpec("Loose"),
        NodeSpec("Strict"),
        NodeSpec("Far", "far"),
    ),
    slots=(
        SlotSpec("word", "Count", retries=2, backoff=1.0),
        SlotSpec("loose", "Loose", retries=1, ordered=False),
        SlotSpec("strict", "Strict", retries=0, on_fail="stop"),
        SlotSpec("away", "Far"),
    ),
    outputs=("total",),
    pools=(PoolSpec("main"), PoolSpec("far")),
)


class Longest(random.Random):
    """A back-off takes as long as it may."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Desk:
    """``partition``: number 0 of pool "main", of two. ``logs``: what was sent to the logs beside its own."""

    def __init__(self, limits: Limits = Limits(), broker: MemoryBroker | None = None) -> None:
        self.limits = limits
        self.broker = broker or MemoryBroker()
        self.clock = FakeClock(1_000_000_000)
        self._fed = 0
        self.restart()

    def restart(self) -> None:
        """What is not stored is gone."""
        self.transport = MemoryTransport(Callbacks(self._done, self._arrived, self._failed, self._claimed), self.broker)
        record = update_record(Catalog(), TOPOLOGY, 2, 1, rng=random.Random(0))
        self.app = App(with_logs(record, [f"{SOURCE}test"]), TOPOLOGY, self.limits)
        self.source, self.log = self.app.log(f"{SOURCE}test", 0), self.app.log("main", 0)
        self._claims: dict[PartitionId, Claim] = {}
        self.transport.claim([self.source, self.log])
        self.transport.pump()
        self._term, self._commits = self._claims[self.source].term, 0
        self.partition = Partition(self.app, "main", 0, self.transport, self.clock, Longest(), self._claims[self.log])
        self.ledger = self.partition.ledger

    def _done(self, outcomes: list[tuple[Commit, Outcome]]) -> None:
        for commit, outcome in outcomes:
            if commit.partition == self.log:
                self.partition.done(commit, outcome)

    def _arrived(self, arrivals: list[Arrival]) -> None:
        for arrival in arrivals:
            if arrival.partition == self.log:
                self.partition.backlog.add(arrival.events, arrival.size)

    def _claimed(self, claims: list[tuple[PartitionId, Claim]]) -> None:
        self._claims.update(claims)
        for partition, claim in claims:
            if partition == self.log and hasattr(self, "partition"):
                self.partition.claimed(claim)

    def claim(self, log: PartitionId) -> Claim:
        """As another owner would, who finds what is stored."""
        self.transport.claim([log])
        self.transport.pump()
        return self._claims[log]

    def _failed(self, error: BaseException) -> None:
        raise error

    @property
    def now(self) -> int:
        return self.clock.now()

    def settle(self) -> None:
        """Everything in the draft is committed, and what follows of it."""
        self.partition.flush()
        self.transport.pump()

    # ------------------------------------------------------------------ what comes

    def feed(
        self,
        *data: Any,
        name: str = "word",
        keys: Sequence[str | None] | None = None,
        contexts: Sequence[Context] = (),
        sequence: int | None = None,
        flags: int = 0,
    ) -> None:
        """A batch of a source, in whose table the contexts stand in the order of the events."""
        meta = codec.RunMeta([name], contexts=list(range(len(contexts))) if contexts else None)
        body = codec.encode_run(meta, len(data), keys, data)
        number = self._fed if sequence is None else sequence
        self._fed = max(self._fed, number + 1)
        batch = codec.seal(body, len(data), self.source, self.log, 7, number, self.now, contexts, flags)
        self._commits += 1
        send = Send(self.log, batch, len(data))
        self.transport.commit(Commit(self.source, self._term, self._commits, b"head", [send]))
        self.transport.pump()

    def work(self) -> Work:
        """What there is to do."""
        found = self.partition.make_work(self.now)
        assert found is not None
        self.transport.pump()
        return found

    def say(self, work: Work, **fields: Any) -> Any:
        """The result of a work, which is over unless ``ended`` is given."""
        values: dict[str, Any] = {"ended": [work.seq], "done": [], **fields}
        failed = self.partition.apply(Result(work.partition, work.epoch, **values))
        self.settle()
        return failed

    # ------------------------------------------------------------------ what is there

    def rows(self, table: Table) -> dict[bytes, bytes]:
        return dict(self.transport.scan(self.log, table, b"", 10_000))

    def sent(self, log: PartitionId) -> list[tuple[Header, list[Context], list[codec.Run]]]:
        """The batches in a log."""
        out = []
        for stored in self.transport.read(log, 0, 1 << 30):
            header = codec.check(stored.batch)
            runs = list(codec.runs_of(codec.body_of(stored.batch, header)))
            out.append((header, codec.contexts_of(stored.batch, header), runs))
        return out

    def values(self, log: PartitionId) -> list[Any]:
        """The data of all events in a log."""
        return [value for *_, runs in self.sent(log) for run in runs for value in codec.data_of(run) or [None]]

    @property
    def replies(self) -> list[tuple[str, str, Any]]:
        """(request, "part" or "final", data) that the home of replies has got."""
        return [
            each
            for *_, runs in self.sent(self.app.log(REPLIES, 0))
            for run in runs
            for each in zip(codec.keys_of(run) or (), codec.names_of(run), codec.data_of(run) or (), strict=True)
        ]


def failure(event: str = "word", node: str = "Count", key: str | None = "k", **fields: Any) -> Failure:
    own = {"id": "1-0", "created": 5, "body": codec.one(event, key, 0), "kind": "ValueError", "text": "no"}
    return Failure(node, event, key=key, **{**own, **fields})  # type: ignore[arg-type]


def emitted(data: Any = 1, name: str = "total", target: str = ">total", **fields: Any) -> Emitted:
    own = {"partition": 0, "events": 1, "body": codec.one(name, None, data)}
    return Emitted(target, **{**own, **fields})
