"""When the code has changed: what is stored belongs to slots and nodes that may be gone, or have moved.

    plan (pure) -> survey (what waits, what is stored) -> refuse, or steps (each one commit of one partition)

Partitions of the *old* topology do the work, before any worker is there. Every step can be repeated: a start that is
killed in between is followed by one that finds the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import Final

from msgspec import Struct, structs

from grape.engine.app import App
from grape.engine.inbox import OpenBatch, origin_key, own_origin
from grape.engine.partition.log import finish_unstarted, stored_batches, unfinished_batches
from grape.engine.partition.partition import Partition
from grape.engine.walk import Single, walk
from grape.errors import UsageError
from grape.model import batch as codec
from grape.model.address import PartitionId
from grape.model.near import did_you_mean, near
from grape.model.routing import Routing, route
from grape.model.section import show_size
from grape.model.stored import (
    MOVED,
    AppRecord,
    HoldEntry,
    TimerEntry,
    decode_hold,
    decode_timer,
    encode,
    expiry_of,
    state_key,
    timer_name_key,
)
from grape.model.topology import TopologySpec

SlotId = tuple[str, str]
"""(event, node)"""

_STEP_ROWS: Final = 5_000
_STEP_BYTES: Final = 4 << 20
_PAGE: Final = 1_000
_LETTER_COSTS: Final = 256
_PAGE_BYTES: Final = 4096
_DROPPED: Final = "slot-dropped"
_TIMER_KEY: Final = 17
"""One byte more than the key of a timer has."""


class Plan(Struct, frozen=True):
    """What differs. ``slots``: gone, or in another pool now; ``moved``: node -> new pool; ``nodes``: gone; ``chained``:
    pairs that chain now and did not before; ``emptied``: pools that are gone, with one that is there."""

    slots: frozenset[SlotId]
    moved: dict[str, str]
    nodes: frozenset[str]
    chained: frozenset[tuple[str, str]]
    emptied: dict[str, str]

    def __bool__(self) -> bool:
        return bool(self.slots or self.moved or self.nodes or self.chained or self.emptied)


def plan(record: AppRecord, new: TopologySpec) -> Plan:
    """Compare what is stored with a new topology."""
    pools = {node.name: node.pool for node in new.nodes}
    slots = {(slot.event, slot.node) for slot in new.slots}
    moved = {name: pools[name] for name, node in record.nodes.items() if name in pools and pools[name] != node.pool}
    gone = {
        (slot.event, slot.node)
        for slot in record.topology.slots
        if (slot.event, slot.node) not in slots or slot.node in moved
    }
    chained = route(new).chained - route(record.topology).chained
    there = [pool.name for pool in new.pools]
    emptied = {pool.name: there[0] for pool in record.topology.pools if pool.name not in there}
    return Plan(frozenset(gone), moved, frozenset(record.nodes.keys() - pools.keys()), chained, emptied)


class Waiting(Struct):
    """Events that wait for one slot. ``copies``: that wait for others, in the pool to which its node moves.
    ``letters``: about the bytes that they would take as dead letters."""

    log: int = 0
    held: int = 0
    timers: int = 0
    copies: int = 0
    letters: int = 0

    @property
    def total(self) -> int:
        return self.log + self.held + self.timers

    def __str__(self) -> str:
        parts = [(self.log, "in the log"), (self.held, "held for a retry"), (self.timers, "as timers")]
        return ", ".join(f"{n:,} {where}" for n, where in parts if n)


class SourceSent(Struct, frozen=True):
    """What a source has sent: its log, and `SourceHead.sent`."""

    id: PartitionId
    sent: dict[bytes, int]


class _Event(Struct):
    """An event in the log that is not finished. ``gone``: its nodes that are; ``stays``: others still wait for it."""

    batch: OpenBatch
    single: Single
    gone: list[str]
    stays: bool


class Migration:
    """From ``app``, with the old record and topology, to ``new``.

    Args:
        partitions: of all pools of the old topology, claimed.
        partition: makes a partition of a pool of the new topology, for state that moves.
        discard: slots whose events become no dead letters.
    """

    def __init__(
        self,
        app: App,
        new: TopologySpec,
        partitions: list[Partition],
        partition: Callable[[str, int], Partition],
        discard: frozenset[str] = frozenset(),
    ) -> None:
        self.plan = plan(app.record, new)
        self.discarded = 0
        """Events that were given up without a dead letter."""
        self._discard = discard
        self._app = app
        self._new = new
        self._new_routing: Routing = route(new)
        self._new_pools = {node.name: node.pool for node in new.nodes}
        self._there = {(slot.event, slot.node, self._new_pools[slot.node]) for slot in new.slots}
        self._partitions = partitions
        self._partition = partition
        self._digest = blake2b(encode(new), digest_size=8).digest()

    # ------------------------------------------------------------------ what there is

    def awaits(self, sources: Iterable[SourceSent]) -> bool:
        """Whether something that was committed is still on its way to a log: what waits is not known before that."""
        incarnation = self._app.record.incarnation
        targets = {p.id.packed(): p for p in self._partitions}
        known: dict[bytes, dict[bytes, set[int]]] = {}
        for packed, partition in targets.items():
            sequences = known[packed] = {}
            for stored in stored_batches(partition.ledger):
                header = codec.header_of(stored.batch)
                sequences.setdefault(origin_key(header), set()).add(header.sequence)
        origins = [(own_origin(p.id, incarnation), p.head.sent) for p in self._partitions]
        origins += [(own_origin(head.id, incarnation), head.sent) for head in sources]
        for origin, sent in origins:
            for packed, count in sent.items():
                if packed in targets:
                    seen = targets[packed].head.seen.get(origin, 0)
                    if any(n not in known[packed].get(origin, ()) for n in range(seen, count)):
                        return True
        return False

    def survey(self) -> tuple[dict[SlotId, Waiting], dict[str, int]]:
        """What waits for slots that are gone, and how many keys have state of nodes that are."""
        waiting: dict[SlotId, Waiting] = {}

        def of(event: str, node: str) -> Waiting:
            return waiting.setdefault((event, node), Waiting())

        for partition in self._partitions:
            for event in self._log(partition):
                for node in event.gone:
                    found = of(event.single.entry.event, node)
                    found.log += 1
                    found.letters += _letter_size(event.single.entry.body)
            for _, held in self._held(partition):
                of(held.event, held.node).held += 1
            for _, timer, nodes in self._timers(partition):
                for node in nodes:
                    found = of(_name_in(timer.body), node)
                    found.timers += 1
                    found.letters += _letter_size(timer.body)
            for name, node in self._copies(partition):
                of(name, node).copies += 1
        states = {node: sum(1 for _ in self._states(node)) for node in sorted(self.plan.nodes)}
        return waiting, {node: count for node, count in states.items() if count}

    def check(self, drop_slots: frozenset[str], drop_nodes: frozenset[str]) -> None:
        """
        Raises:
            UsageError: something would be lost that nobody allowed to be dropped, or the dead letters have no room.
        """
        self._check_options(drop_slots | self._discard, drop_nodes)
        waiting, states = self.survey()
        app, lines, letters = self._app.record.name, [], 0
        for (event, node), found in sorted(waiting.items()):
            if found.copies:
                lines.append(
                    f"node {node} moves to pool {self.plan.moved[node]!r}, where {found.copies:,} events {event!r} "
                    f"wait for others, of which it had copies in its old pool. Run the old code until they are done"
                )
            if not found.total or self._is_among(self._discard, event, node):
                continue
            if self._is_among(drop_slots, event, node):
                letters += found.letters
                continue
            counts = f"{found.total:,} events wait for it ({found})"
            if node in self.plan.moved:
                what = (
                    f"slot {event!r} -> {node} has moved to pool {self.plan.moved[node]!r}, and {counts} in its old one"
                )
            else:
                what = f"slot {event!r} -> {node} is gone from app {app!r}, and {counts}"
            lines.append(f"{what}. Run the old code until they are done, or give them up: --drop-slot {event}")
        for node, count in states.items():
            if node not in drop_nodes:
                new = near(node, self._new_pools.keys() - self._app.record.nodes.keys())
                renamed = f"; if it was renamed, keep the old name: name={node!r} on {new[0]!r}" if new else ""
                lines.append(
                    f"node {node!r} is gone from app {app!r}, and it has state of {count:,} keys. Bring it back, or "
                    f"remove the state: --drop-node {node}{renamed}"
                )
        room = min((partition.ledger.transport.room() for partition in self._partitions), default=0)
        if letters > room:
            lines.append(
                f"as dead letters, what waits for slots that are dropped would take {show_size(letters)}, and there is "
                f"room for {show_size(room)}. Make room, or give it up without letters: --discard-slot instead of "
                f"--drop-slot, which needs none"
            )
        if lines:
            raise UsageError("\n".join(lines))

    @staticmethod
    def _is_among(given: frozenset[str], event: str, node: str) -> bool:
        return event in given or f"{event}>{node}" in given

    def _check_options(self, drop_slots: frozenset[str], drop_nodes: frozenset[str]) -> None:
        known = {name for event, node in self.plan.slots for name in (event, f"{event}>{node}")}
        known |= self._app.record.dropped
        there = {name for slot in self._new.slots for name in (slot.event, f"{slot.event}>{slot.node}")}
        for option, given, gone, present in (
            ("--drop-slot" if drop_slots - self._discard else "--discard-slot", drop_slots, known, there),
            ("--drop-node", drop_nodes, self.plan.nodes | self._app.record.dropped, set(self._new_pools)),
        ):
            refuse_drops(option, given - gone, present, gone)

    # ------------------------------------------------------------------ doing it

    def steps(self) -> Iterator[Partition]:
        """Do what the plan says; every partition that is yielded has to be flushed and settled before the next step."""
        for partition in self._partitions:
            yield from self._bury_held(partition)
            yield from self._bury_timers(partition)
            yield from self._bury_log(partition)
            if self.plan.chained:  # what waits was emitted by code that did not chain; nothing may overtake it
                partition.head.catching_up = True
                partition.ledger.draft.changed = True
                yield partition
        for node in sorted(self.plan.nodes):
            yield from self._remove_state(node)

    def _bury_held(self, partition: Partition) -> Iterator[Partition]:
        for n, (number, entry) in enumerate(list(self._held(partition)), 1):
            self._give_up(partition, entry, entry.event, entry.node)
            partition.failures.release(number, partition.ledger.clock.now())
            if n % _STEP_ROWS == 0 or not partition.ledger.has_room(partition.ledger.most // 4):
                yield partition
        yield partition

    def _bury_timers(self, partition: Partition) -> Iterator[Partition]:
        """A timer for which others wait too stays, so that its letters come with the mark that they are written."""
        timers = list(self._timers(partition))
        stays = {key for key, timer, _ in timers if self._stays(_name_in(timer.body), timer.log, None)}
        for n, (key, timer, nodes) in enumerate([row for row in timers if row[0] not in stays], 1):
            self._bury_timer(partition, timer, nodes)
            partition.ledger.put("timer", key, None)
            if n % _STEP_ROWS == 0 or not partition.ledger.has_room(partition.ledger.most // 4):
                yield partition
        yield partition
        if stays and partition.head.migrated[0] != self._digest:
            for _, timer, nodes in [row for row in timers if row[0] in stays]:
                self._bury_timer(partition, timer, nodes)
            partition.head.migrated = (self._digest, 0)
            yield partition

    def _bury_timer(self, partition: Partition, timer: TimerEntry, nodes: list[str]) -> None:
        event = _name_in(timer.body)
        for node in nodes:
            entry = HoldEntry(node, event, "", _key_in(timer.body), partition.ledger.clock.now(), timer.body)
            entry.context = timer.context
            self._give_up(partition, entry, event, node)

    def _bury_log(self, partition: Partition) -> Iterator[Partition]:
        """A batch whose events also have other listeners stays, so its position is remembered with the letters."""
        digest, done = partition.head.migrated
        if digest != self._digest:
            done = 0
        rows = size = 0
        position = -1
        for event in list(self._log(partition)) if self.plan.slots else []:
            if event.batch.position != position and (
                rows >= _STEP_ROWS or size >= min(_STEP_BYTES, partition.ledger.most // 4)
            ):
                yield partition
                rows = size = 0
            position = event.batch.position
            if position >= done:
                for node in event.gone:
                    entry = event.single.of(node)
                    self._give_up(partition, entry, entry.event, node)
                    rows, size = rows + 1, size + len(entry.body)
            if not event.stays:
                finish_unstarted(partition.ledger, partition.backlog, event.batch.position, event.single.at)
            partition.head.migrated = (self._digest, position + 1)
        yield partition

    def _remove_state(self, node: str) -> Iterator[Partition]:
        number = self._app.node_id(node)
        for partition in self._partitions:
            if partition.pool != self._app.record.nodes[node].pool:
                continue
            for keys in _pages(self._states_in(partition, number), partition.ledger.most // 2):
                for key, _ in keys:
                    partition.ledger.put("state", key, None)
                yield partition
            for names in _pages(self._timer_names(partition, number), partition.ledger.most // 2):
                for name, _ in names:
                    partition.ledger.put("text", name, None)
                yield partition

    def moves(self, moved: dict[str, str], emptied: dict[str, str]) -> Iterator[Partition]:
        """Copy state of nodes (name -> pool) to their new pool, and timers of pools that are gone to another one, then
        remove them from the old one. The record must say so before the first step (`AppRecord.moving`, ``emptied``), as
        in between they are in both places."""
        old = {(p.pool, p.number): p for p in self._partitions}

        def target_of(pool: str, n: int) -> Partition:
            if (pool, n) not in old:  # once for all that moves there: it goes on from its own commits
                old[pool, n] = self._partition(pool, n)
            return old[pool, n]

        for node, pool in sorted(moved.items()):
            number = self._app.node_id(node)
            before = self._app.record.nodes[node].pool
            for n in range(self._app.record.partitions):
                source = old[before, n]
                has_any = any(
                    any(rows) for rows in (self._states_in(source, number), self._timer_names(source, number))
                )
                if has_any:
                    target = target_of(pool, n)
                    yield from self._move_state(source, target, number)
                    yield from self._move_timers(source, target, number)
        for before, pool in sorted(emptied.items()):
            for n in range(self._app.record.partitions):
                yield from self._move_pool(old[before, n], target_of(pool, n))

    def _move_state(self, source: Partition, target: Partition, node: int) -> Iterator[Partition]:
        for page in _pages(self._states_in(source, node), source.ledger.most // 2):
            for key, value in page:
                target.ledger.put("state", key, value)
                due = expiry_of(value)
                if due:
                    target.expiries.add(due, "state", key)
            yield target
        for page in _pages(self._states_in(source, node), source.ledger.most // 2):
            for key, _ in page:
                source.ledger.put("state", key, None)
            yield source

    def _move_timers(self, source: Partition, target: Partition, node: int) -> Iterator[Partition]:
        """Those that have a name, which the node has to find where its state is."""
        for page in _pages(self._timer_names(source, node), source.ledger.most // 2):
            for name, keys in page:
                target.timers.cancel(name)  # of an earlier start, which was cut off
                for key, entry in source.timers.named(name, keys):
                    target.timers.add(int.from_bytes(key[:8], "big"), entry)
            yield target
        for page in _pages(self._timer_names(source, node), source.ledger.most // 2):
            for name, _ in page:
                source.timers.cancel(name)
            yield source

    def _move_pool(self, source: Partition, target: Partition) -> Iterator[Partition]:
        """All timers: where they lie nobody looks any more. An earlier start may have been cut off in the middle."""
        come = MOVED + source.id.packed()
        for page in _pages(source.ledger.rows("timer"), source.ledger.most // 2):
            for key, value in page:
                if not any(target.ledger.rows("text", come + key, come + key + b"\0")):
                    entry = decode_timer(value)
                    target.timers.add(int.from_bytes(key[:8], "big"), structs.replace(entry, name=b""))
                    target.ledger.put("text", come + key, b"\1")
            yield target
        for page in _pages(source.ledger.rows("timer"), source.ledger.most // 2):
            for key, _ in page:
                source.ledger.put("timer", key, None)
            yield source
        for page in _pages(target.ledger.rows("text", come, come + b"\xff" * _TIMER_KEY), target.ledger.most // 2):
            for key, _ in page:
                target.ledger.put("text", key, None)
            yield target

    def _give_up(self, partition: Partition, entry: HoldEntry, event: str, node: str) -> None:
        if self._is_among(self._discard, event, node):
            self.discarded += 1
        else:
            partition.failures.give_up(entry, _DROPPED, self._why(event, node))

    def _why(self, event: str, node: str) -> str:
        return f"slot {event!r} -> {node} is gone from app {self._app.record.name!r} (--drop-slot)"

    # ------------------------------------------------------------------ reading

    def _listeners(self, event: str, pool: str) -> list[str]:
        return [n for found in self._app.routing.listeners.get(event, ()) if found.pool == pool for n in found.nodes]

    def _stays(self, event: str, pool: str, only: list[str] | None) -> bool:
        """Whether a node of the new topology takes this event from this log."""
        for found in self._new_routing.listeners.get(event, ()):
            if found.pool == pool and (only is None or any(node in only for node in found.nodes)):
                return True
        return False

    def _gone(self, event: str, nodes: Iterable[str], pool: str) -> list[str]:
        return [node for node in nodes if (event, node, pool) not in self._there]

    def _log(self, partition: Partition) -> Iterator[_Event]:
        """Unfinished events of the log for which a slot is gone."""
        pool = partition.pool
        for batch, progress, stored in unfinished_batches(partition.ledger):
            for single in walk(stored, batch.header, partition.number):
                name = single.entry.event
                gone = self._gone(name, single.only or self._listeners(name, pool), pool)
                stays = self._stays(name, pool, single.only)
                if (gone or not stays) and not progress.is_done(single.at):
                    yield _Event(batch, single, gone, stays)

    def _copies(self, partition: Partition) -> Iterator[SlotId]:
        """Each pool that listens has a copy of an event. Those here were not meant for nodes that move here: they have
        got, or wait for, another one."""
        coming = {node for node, pool in self.plan.moved.items() if pool == partition.pool}
        slots = {(slot.event, slot.node) for slot in self._app.topology.slots} if coming else set()
        heard: dict[str, list[str]] = {}
        for slot in self._new.slots:
            if slot.node in coming and (slot.event, slot.node) in slots:
                heard.setdefault(slot.event, []).append(slot.node)
        if not heard:
            return
        for batch, progress, stored in unfinished_batches(partition.ledger):
            for single in walk(stored, batch.header, partition.number):
                if single.only is None and not progress.is_done(single.at):
                    yield from ((single.entry.event, node) for node in heard.get(single.entry.event, ()))
        for target in self._partitions:
            for _, value in target.ledger.rows("timer"):
                timer = decode_timer(value)
                if (timer.log, timer.partition) == (partition.pool, partition.number):
                    yield from ((_name_in(timer.body), node) for node in heard.get(_name_in(timer.body), ()))

    def _held(self, partition: Partition) -> Iterator[tuple[int, HoldEntry]]:
        for key, value in partition.ledger.rows("hold"):
            entry = decode_hold(value)
            if self._gone(entry.event, [entry.node], partition.pool):
                yield int.from_bytes(key, "big"), entry

    def _timers(self, partition: Partition) -> Iterator[tuple[bytes, TimerEntry, list[str]]]:
        for key, value in partition.ledger.rows("timer"):
            timer = decode_timer(value)
            event = _name_in(timer.body)
            nodes = self._gone(event, self._listeners(event, timer.log), timer.log)
            if nodes:
                yield key, timer, nodes

    def _states(self, node: str) -> Iterator[tuple[bytes, bytes]]:
        number = self._app.node_id(node)
        for partition in self._partitions:
            if partition.pool == self._app.record.nodes[node].pool:
                yield from self._states_in(partition, number)

    @staticmethod
    def _timer_names(partition: Partition, node: int) -> Iterator[tuple[bytes, bytes]]:
        return partition.ledger.rows("text", timer_name_key(node), timer_name_key(node + 1))

    @staticmethod
    def _states_in(partition: Partition, number: int) -> Iterator[tuple[bytes, bytes]]:
        return partition.ledger.rows("state", state_key(number, b""), state_key(number + 1, b""))


def refuse_drops(option: str, given: Iterable[str], present: set[str], gone: Iterable[str] = ()) -> None:
    """
    Raises:
        UsageError: something is to be dropped that is not gone.
    """
    for name in sorted(given):
        if name in present:
            raise UsageError(f"{option} {name}: it is still in the topology; only what is gone from it can be dropped")
        hint = did_you_mean(name, gone, f"gone are {', '.join(sorted(gone)) or 'none'}")
        raise UsageError(f"{option} {name}: there is nothing of that name that is gone from the topology; {hint}")


def _letter_size(body: bytes) -> int:
    """Bytes that a dead letter takes in a store of pages: long values have pages of their own."""
    size = len(body) + _LETTER_COSTS
    return size if size < _PAGE_BYTES // 2 else -(-size // _PAGE_BYTES) * _PAGE_BYTES


def _name_in(body: bytes) -> str:
    return next(codec.runs_of(body)).meta.names[0]


def _key_in(body: bytes) -> str | None:
    keys = codec.keys_of(next(codec.runs_of(body)))
    return None if keys is None else keys[0]


def _pages(rows: Iterator[tuple[bytes, bytes]], most: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """Some rows at once, of at most so many bytes, but for one larger row."""
    page: list[tuple[bytes, bytes]] = []
    size = 0
    for row in rows:
        if len(page) >= _PAGE or (page and size + len(row[1]) > most):
            yield page
            page, size = [], 0
        page.append(row)
        size += len(row[0]) + len(row[1])
    if page:
        yield page
