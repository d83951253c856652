"""What is behind the door without a socket: a house on the memory transport and a fake clock, and those who come to it.

Nothing happens but what a test lets happen: `Rig.settle` does what is to be done now, `Rig.advance` lets time pass.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from grape.abc.transport import Send
from grape.engine.clock import FakeClock
from grape.engine.feed import Feed
from grape.engine.surroundings import Sizes, Surroundings
from grape.errors import GrapeError
from grape.host.assembly import Assembler, Plan
from grape.host.host import Host
from grape.host.house import House, Visitor
from grape.host.ordering import ordering
from grape.host.streams import Streams
from grape.host.verbs import telemetry
from grape.model import batch as codec
from grape.model.batch import RunMeta
from grape.model.stored import OUTPUT
from grape.model.topology import Limits
from grape.protocol.door import Begin, FromClient, FromEngine, Greeting, Open, OpenReader, Part
from grape.testing.loop import FakeLoop
from grape.transports.memory import MemoryBroker, MemoryTransport
from unit.lying import PROFILE, TOPOLOGY, LyingWorker

PARTITIONS = 4
T = TypeVar("T")


class FakeHost(Host):
    """Of a test: what is to be done soon is done when it says so."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(lambda why: None)
        self.clock = clock
        self.due: deque[Callable[[], None]] = deque()
        self.timers: list[tuple[int, int, Callable[[], None]]] = []
        self.stops = 0

    def soon(self, function: Callable[[], None]) -> None:
        self.due.append(function)

    def later(self, delay: float, function: Callable[[], None]) -> None:
        heapq.heappush(self.timers, (self.clock.now() + int(delay * 1e6), len(self.timers) + id(function), function))

    def wake(self) -> None:
        pass

    def stop(self) -> None:
        self.stops += 1


class Client:
    """``heard``: what has been said to it."""

    def __init__(self, rig: Rig, *, is_owner: bool = False, greets: bool = True) -> None:
        self.heard: list[FromEngine] = []
        self.rig = rig
        self.visitor = Visitor(rig.house, self.heard.append, is_owner=is_owner)
        if greets:
            self.say(Greeting(1))

    def say(self, *messages: FromClient) -> None:
        """What it says is done, but nothing that follows from it."""
        for message in messages:
            # as it comes from a socket
            self.visitor.received(msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=FromClient))

    def ask(self, message: FromClient, kind: type[T]) -> T:
        self.say(message)
        self.rig.settle()
        return self.last(kind)

    def last(self, kind: type[T]) -> T:
        return next(message for message in reversed(self.heard) if isinstance(message, kind))

    def count(self, kind: type[Any]) -> int:
        return sum(isinstance(message, kind) for message in self.heard)

    def go(self) -> None:
        self.visitor.gone()


class Rig:
    """An engine with an owner that takes the output "total" and never says that it has. ``begins``: it has begun."""

    def __init__(self, limits: Limits | None = None, *, begins: bool = True, **of_broker: Any) -> None:
        self.clock = FakeClock()
        self.host = FakeHost(self.clock)
        self.failure: GrapeError | None = None
        self._puts = 0
        assembler = Assembler()
        self.transport = MemoryTransport(assembler.callbacks, MemoryBroker(**of_broker))
        around = Surroundings(self.transport, self, self.clock, random.Random(0), self._stop, lambda text: None)
        profiles = dict.fromkeys((pool.name for pool in TOPOLOGY.pools), PROFILE)
        plan = Plan(topology=TOPOLOGY, limits=limits or Limits(), sizes=Sizes(profiles, 1), partitions=PARTITIONS)
        assembled = self._assembled(assembler.assemble(plan, around))
        self.app, self.engine = assembled.app, assembled.engine
        self.house = House(self.host, self.clock, "d", lambda text: None)
        self.house.described(TOPOLOGY)
        self.streams = Streams(self.app, self.engine, self.host, 1 << 40, 0)
        self.house.verbs.update(telemetry(self.engine, self.streams, list))
        self.house.verbs.update(ordering(self.engine, assembled.attaching, self.streams, self.host))
        self.house.opened(assembled, self.streams)
        self.attaching = assembled.attaching
        self.owner = Client(self, is_owner=True)
        self.owner.say(Open(), OpenReader(0, "total", "total=owner"))
        self.settle()
        if begins:
            self.begin()

    def begin(self) -> None:
        self.owner.say(Begin())
        self.engine.start()
        self.house.begun()
        self.settle()

    def _assembled(self, coroutine: Any) -> Any:
        loop = FakeLoop(self.clock)
        task = loop.create_task(coroutine)
        while not task.done():
            if not loop.has_work:
                self.transport.step()
            loop.run_round()
        result = task.result()
        loop.abandon()
        return result

    def spawn(self, pool: str, index: int) -> LyingWorker:
        return LyingWorker()

    def _stop(self, error: GrapeError) -> None:
        self.failure = error

    def put(self, *data: Any) -> None:
        """One batch into the output."""
        feeds: list[Feed] = []
        self.attaching.feed("maker", in_order=False, then=feeds.append)
        self.settle()
        target, now = self.app.log(f"{OUTPUT}total", 0), self.clock.now()
        body = codec.encode_run(RunMeta(["total"]), len(data), None, data)
        batch = codec.seal(body, len(data), feeds[0].id, target, self.app.record.incarnation, self._puts, now)
        self._puts += 1
        feeds[0]._committer.submit(b"", [Send(target, batch, len(data))], then=lambda: None)
        self.settle()

    def settle(self) -> None:
        """Until nothing is left to be done now."""
        while self.host.due or self.transport.step():
            if self.host.due:
                self.host.due.popleft()()
        assert self.failure is None
        assert self.engine.failure is None

    def advance(self, seconds: float) -> None:
        self.settle()
        end = self.clock.now() + int(seconds * 1e6)
        while self.host.timers and self.host.timers[0][0] <= end:
            at, _, function = heapq.heappop(self.host.timers)
            self.clock.advance(max(0, at - self.clock.now()) / 1e6)
            function()
            self.settle()
        self.clock.advance(max(0, end - self.clock.now()) / 1e6)


def part(name: str, *data: Any, partition: int = 0, **meta: Any) -> Part:
    body = codec.encode_run(RunMeta([name], **meta), len(data), None, data)
    return Part(name, partition, len(data), memoryview(body))
