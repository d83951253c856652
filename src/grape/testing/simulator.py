"""The simulator: a `Machine` whose next move is chosen by chance, with kills in between, until nothing is left to do.

Equal seeds give equal runs. The transport is the weak `memory` (see `grape.transports.memory`), so that commits are
lost or end unknown and batches arrive late, twice and out of order; workers and engines die at random moments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Final

from msgspec import Struct, structs

from grape.authoring.topology import Topology
from grape.engine.clock import FakeClock
from grape.engine.engine import Engine
from grape.errors import UsageError
from grape.model.profile import Profile
from grape.model.stored import DeadLetter, HoldEntry
from grape.model.topology import Limits
from grape.protocol.orders import Changes
from grape.testing.machine import Crash, Granted, Machine, Move, Share, Worker
from grape.testing.ordering import put_back, random_order
from grape.transports.memory import MemoryBroker, Weakness

_MOST_MOVES: Final = 400_000
_NEW_SPEEDS: Final = 0.01
_SLOW: Final = (0.2, 0.02, 0.001)
_HAND_OVERS: Final = 4
_ORDERS: Final = 40


class Chaos(Struct, frozen=True):
    """What goes wrong, as probabilities per move, and how often at most.

    ``weakness`` None: the plain transport. ``worker_kill``: a worker dies between two moves; of what it has said and
    the engine has not heard, a random part arrives. ``inner_kill``: a worker dies in the middle of a work, where it
    asks for state or announces an event. ``engine_kill``: the engine and all its workers are gone. ``stall``: a handler
    seems to take so long that a work ends early. ``kills``: of all kinds together. ``lag``: how likely anything that
    moves (the words to one worker, its loop, the transport, a taker) is slow for some time, as on a machine under load.
    ``change``: the run is stopped and started with other code. ``largest_commit``: of the transport, in bytes.
    ``hand_over``: one of several engines is gone, and starts again with a partition of another that is not told of it.
    ``drops``: whether the transport can drop single batches.
    ``engines``: that share the partitions; the first has the source and the takers.
    """

    weakness: Weakness | None = Weakness()
    worker_kill: float = 0.002
    inner_kill: float = 0.01
    engine_kill: float = 0.001
    tick: float = 0.02
    stall: float = 0.02
    kills: int = 5
    lag: float = 0.0
    change: float = 0.0
    largest_commit: int = 256 << 20
    hand_over: float = 0.0
    drops: bool = True
    engines: int = 1
    orders: float = 0.0
    """An operator gives an order (`grape.testing.ordering`), some times at most."""


class Stuck(Exception):
    """The simulated engine stands still with work left, or never comes to an end."""


class Simulator:
    """One simulated run.

    Args:
        build: makes the topology, for every worker anew.
        changed: other code for the same app, to which the run changes, one after the other.
        seed: of all chance in the run.
        chaos: what goes wrong.
        partitions, workers, limits, profile, granted: as of `Machine`.

    Attributes:
        machines: of all engines; ``machine`` is the first.
    """

    def __init__(
        self,
        build: Callable[[], Topology],
        seed: int,
        *,
        changed: Sequence[Callable[[], Topology]] = (),
        chaos: Chaos | None = None,
        partitions: int = 3,
        workers: int = 2,
        limits: Limits | None = None,
        profile: Profile | None = None,
        granted: Granted | None = None,
    ) -> None:
        self.chaos = chaos or Chaos()
        self._rng = Random(seed)
        self._kills = self.chaos.kills
        self._hand_overs = _HAND_OVERS
        self._orders = _ORDERS
        self.changes_ordered: list[Changes] = []
        """What came of orders."""
        self.dropped: list[DeadLetter | HoldEntry] = []
        """What some were to drop; a kill may have been faster."""
        self._stale: list[Move] = []
        self._changed = deque(changed)
        self.changes = 0
        """How often other code was accepted."""
        self._elapsed = 0.0
        self.moves = 0
        self.clock = FakeClock()
        weak = self.chaos.weakness
        seed_of = None if weak is None else self._rng.getrandbits(32)
        broker = MemoryBroker(seed_of, weak, largest_commit=self.chaos.largest_commit, drops=self.chaos.drops)
        self.machines = [
            Machine(
                build,
                self.clock,
                broker,
                partitions=partitions,
                workers=workers,
                limits=limits,
                profile=profile,
                rng=Random(self._rng.getrandbits(32)),
                share=share,
                granted=granted,
            )
            for share in _shares(partitions, self.chaos.engines)
        ]
        self.machine = self.machines[0]
        for machine in self.machines:
            machine.elapsed = self._tell_elapsed
            machine.interrupt = self._interrupt
            machine.pick = self._pick
        self._speeds: dict[tuple[str, str, int], float] = {}

    def run(self) -> None:
        """Until nothing is left: no event, no timer, no retry, and nothing under way in the transport.

        Raises:
            Stuck: it does not get there.
            GrapeError: the engine stopped.
        """
        rng, chaos = self._rng, self.chaos
        while self.moves < _MOST_MOVES:
            self.moves += 1
            if self._kills > 0:
                chance = rng.random()
                if chance < chaos.engine_kill:
                    self._kills -= 1
                    machine = rng.choice(self.machines) if len(self.machines) > 1 else self.machine
                    machine.stop()
                    machine.start()
                    continue
                # (A worker that dies three times in a row before it has started is the app's fault.)
                started = [worker for machine in self.machines for worker in machine.workers if worker.is_welcome]
                if chance < chaos.engine_kill + chaos.worker_kill and started:
                    self._kills -= 1
                    worker = rng.choice(started)
                    worker.die(rng.randint(0, len(worker.said)))
                    continue
            if chaos.hand_over and self._hand_overs > 0 and rng.random() < chaos.hand_over:
                self._hand_over()
                continue
            if chaos.orders and self._orders > 0 and rng.random() < chaos.orders:
                self._order()
                continue
            if self._changed and rng.random() < chaos.change:
                self._change()
                continue
            moves = self._moves()
            if moves and rng.random() >= chaos.tick:
                self._pick(moves)()
                continue
            wakes = [at for machine in self.machines if (at := machine.tick()) is not None]
            if self._moves():
                continue
            if not wakes:
                if self._give_anew():
                    continue
                if all(machine.is_finished for machine in self.machines):
                    if self._put_back():
                        continue
                    if not self._changed:
                        return
                    self._change()
                    continue
                raise Stuck(f"nothing moves after {self.moves:,} moves, but {self._left()}")
            self.clock.advance_to(min(wakes))
        raise Stuck(f"no end after {self.moves:,} moves: {self._left()}")

    def stop(self) -> None:
        """All engines are gone."""
        for machine in self.machines:
            if machine.is_running:
                machine.stop()

    def _moves(self) -> list[Move]:
        return [*(move for machine in self.machines for move in machine.moves()), *self._stale[:1]]

    def _left(self) -> str:
        return "; ".join(machine.left() for machine in self.machines)

    def _hand_over(self) -> None:
        heir, other = self._rng.sample(self.machines, 2)
        owned, others = heir.share.owned or frozenset(), other.share.owned or frozenset()
        if not others:
            return
        self._hand_overs -= 1
        number = frozenset((self._rng.choice(sorted(others)),))
        other.share = structs.replace(other.share, owned=others - number)
        heir.share = structs.replace(heir.share, owned=owned | number)
        heir.stop()
        heir.start()
        self._stale += [partial(self._find_out, other.engine, n) for n in number]

    def _find_out(self, engine: Engine, number: int) -> None:
        """Whoever has nothing to commit would never learn that it was fenced."""
        self._stale.pop(0)
        for pool in engine.pools.values():
            partition = pool.partitions.get(number)
            if partition is not None:
                partition.ledger.then(lambda: None)
                partition.flush()

    def _give_anew(self) -> bool:
        """What two have taken from each other, as an outcome was unknown."""
        for machine in self.machines:
            owned = machine.share.owned
            if owned is not None and any(owned - pool.partitions.keys() for pool in machine.engine.pools.values()):
                machine.stop()
                machine.start()
                return True
        return False

    def _order(self) -> None:
        self._orders -= 1
        machine = self._rng.choice(self.machines)
        order = random_order(machine, self._rng, self.dropped)
        if order is not None:
            machine.orders.give(order, self.changes_ordered.append)

    def _put_back(self) -> bool:
        """What orders have buried and not put back is; returns whether there was something."""
        if not self.chaos.orders:
            return False
        self._orders = 0
        given = [(machine, order) for machine in self.machines for order in put_back(machine)]
        for machine, order in given:
            machine.orders.give(order, self.changes_ordered.append)
        return bool(given)

    def _change(self) -> None:
        """The next code; it may be refused while something waits that it has no place for, and is then given up."""
        before = self.machine.build
        try:
            self._start_with(self._changed.popleft())
            self.changes += 1
        except UsageError:
            self._start_with(before)

    def _start_with(self, build: Callable[[], Topology]) -> None:
        for machine in self.machines:
            machine.stop()
        for machine in self.machines:
            machine.build = build
            machine.start()

    def _pick(self, moves: list[Move]) -> Move:
        lag, rng = self.chaos.lag, self._rng
        if not lag:
            return rng.choice(moves)
        if rng.random() < _NEW_SPEEDS:
            self._speeds.clear()
        for move in moves:
            if (name := _name_of(move)) not in self._speeds:
                self._speeds[name] = rng.choice(_SLOW) if rng.random() < lag else 1.0
        return rng.choices(moves, [self._speeds[_name_of(move)] for move in moves])[0]

    def _interrupt(self, worker: Worker) -> None:
        if self._kills > 0 and self._rng.random() < self.chaos.inner_kill:
            self._kills -= 1
            raise Crash

    def _tell_elapsed(self) -> float:
        if self._rng.random() < self.chaos.stall:
            self._elapsed += 0.07
        return self._elapsed


def _shares(partitions: int, engines: int) -> list[Share]:
    if engines == 1:
        return [Share()]
    owned = [frozenset(range(first, partitions, engines)) for first in range(engines)]
    return [Share(numbers, f"test{i or ''}", takes=i == 0) for i, numbers in enumerate(owned)]


def _name_of(move: Move) -> tuple[str, str, int]:
    """What moves: the method, and of which worker."""
    worker = getattr(move, "__self__", None)
    if isinstance(worker, Worker):
        return move.__name__, worker.pool, worker.index
    return getattr(move, "__name__", "end"), getattr(worker, "name", ""), 0
