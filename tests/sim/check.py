"""Run a plan in the simulator, and compare what came of it with the reference."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import partial
from typing import Any

import msgspec

from grape.abc.source import Columns
from grape.abc.transport import Table
from grape.engine.feed import Prepared
from grape.model import batch as codec
from grape.model.event import Event
from grape.model.stored import NO_POOLS, OUTPUT, REPLIES, decode_dead, decode_hold, state_key
from grape.testing.simulator import Simulator
from tests.sim.generator import GENERATORS, NodePlan, Plan, build, pack, unpack
from tests.sim.reference import Call, Expected, expect


class Wrong(AssertionError):
    """The engine did something else than the reference."""


def run_seed(seed: int, kind: str = "any", engines: int = 1, orders: float = 0.0) -> int:
    """Run one seed; returns how many times a node got an event. ``kind``: of topologies, see `GENERATORS`. ``engines``:
    that share the partitions. ``orders``: how likely an operator gives one, per move.

    Raises:
        Wrong, Stuck, GrapeError: a bug. The text says how to run this seed alone.
    """
    plan = GENERATORS[kind](seed)
    expected = expect(plan)
    run = Run(plan, engines, orders)
    try:
        run.go()
        run.compare(expected)
    except BaseException as e:
        e.add_note(
            f"\nrun this seed alone: GRAPE_SIM_KIND={kind} GRAPE_SIM_SEED={seed} GRAPE_SIM_ENGINES={engines} "
            f"GRAPE_SIM_ORDERS={orders} "
            f"pytest -q tests/sim\n{describe(plan)}"
        )
        raise
    finally:
        run.simulator.stop()
    return expected.events


def describe(plan: Plan) -> str:
    lines = [
        f"partitions {plan.partitions}, workers {plan.workers}, {len(plan.roots)} roots, {plan.chaos}, {plan.limits}, "
        f"{plan.profile}"
    ]
    return "\n".join([*lines, *map(str, plan.nodes)])


class Run:
    """One plan in the simulator."""

    def __init__(self, plan: Plan, engines: int = 1, orders: float = 0.0) -> None:
        self.plan = plan
        self.simulator = Simulator(
            partial(build, plan),
            plan.seed,
            changed=[partial(build, plan, nodes) for nodes in plan.later],
            chaos=msgspec.structs.replace(
                plan.chaos, engines=engines, hand_over=0.005 if engines > 1 else 0.0, orders=orders
            ),
            partitions=plan.partitions,
            workers=plan.workers,
            limits=plan.limits,
            profile=plan.profile,
        )
        self.calls: dict[str, Call] = {}
        """Request id -> the call it is."""

    def go(self) -> None:
        machine = self.simulator.machine
        sequence = 0
        for chunk in self.plan.chunks:
            columns: list[Columns] = []
            for root in chunk:
                data = pack(root.event, root.uid, root.rounds, root.mode, ["source", "", sequence, 0])
                sequence += 1
                columns.append(Columns(root.event, [root.key], [data]))
            machine.source.chunks.append(columns)
        for prepared in machine.read():
            self._note_calls(prepared)
        self.simulator.run()

    def _note_calls(self, prepared: Prepared) -> None:
        pools = {number: name for name, number in self.simulator.machine.app.record.logs.items()}
        for send in prepared.sends:
            header = codec.header_of(send.batch)
            (run,) = codec.runs_of(codec.body_of(send.batch, header))
            for i, data in enumerate(codec.data_of(run) or []):
                self.calls[f"{header.id_prefix}{i}"] = (unpack(data)[0], pools[send.target.pool])

    # ------------------------------------------------------------------ what must hold

    def compare(self, expected: Expected) -> None:
        self._compare_states(expected)
        self._compare_outputs(expected)
        self._compare_letters(expected)
        if not self.plan.later:  # a call is one of a pool
            self._compare_replies(expected)
        self._nothing_is_left(expected)

    def _rows(self, table: Table) -> list[tuple[bytes, bytes]]:
        machine = self.simulator.machine
        return [
            row
            for pool in machine.app.record.logs
            if not pool.startswith(NO_POOLS)
            for number in range(self.plan.partitions)
            for row in machine.transport.scan(machine.app.log(pool, number), table, b"", 1 << 62)
        ]

    def _compare_states(self, expected: Expected) -> None:
        app = self.simulator.machine.app
        nodes = {state_key(app.node_id(node.name), b""): node for node in self.plan.nodes}
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for row, record in self._rows("state"):
            found[nodes[row[:2]].name, row[2:].decode()] = msgspec.msgpack.decode(record)
        wanted: dict[tuple[str, str], dict[str, Any]] = {}
        fields = {
            "counter": ("count",),
            "general": ("total", "seen"),
            "async-node": ("total", "seen"),
            "stateful": ("total",),
        }
        kinds = {node.name: node for node in self.plan.nodes}
        for (node, key), state in expected.states.items():
            names = fields.get(kinds[node].kind, ())
            if names:
                wanted[node, key] = {name: state[name] for name in names}
        for (node, key), state in found.items():
            if "seen" in state:
                self._check_order(kinds[node], key, [origin for _, origin in state["seen"]])
                state["seen"] = sorted(uid for uid, _ in state["seen"])
        for state in wanted.values():
            if "seen" in state:
                state["seen"] = sorted(state["seen"])
        _equal("state", _without_defaults(wanted), _without_defaults(found))

    def _check_order(self, node: NodePlan, key: str, origins: list[list[Any] | None]) -> None:
        """What one node emits for one of its keys (so in one partition), or the source sends, comes in that order."""
        if not node.ordered or self.simulator.chaos.orders:  # what was buried and put back stands behind the others
            return
        _check_increasing(origins, f"at {node.name}, key {key}")

    def _compare_outputs(self, expected: Expected) -> None:
        for name, taker in self.simulator.machine.outputs.items():
            events = taker.committed
            found = Counter((event.key, unpack(event.data)[0]) for event in events)
            _equal(f"output {name}", expected.outputs[name], found)
            ids = Counter(event.id for event in events)
            if len(ids) != len(events):
                raise Wrong(f"output {name} has ids that are not unique: {ids.most_common(3)}")
            by_key: dict[str | None, list[Event]] = defaultdict(list)
            for event in events:
                by_key[event.key].append(event)
            for key, those in by_key.items() if not self.simulator.chaos.orders else ():
                _check_increasing([unpack(event.data)[3] for event in those], f"in output {name}, key {key}")

    def _compare_letters(self, expected: Expected) -> None:
        dead = Counter(
            (letter.node, letter.event, letter.key, _uid_of(letter.body))
            for letter in map(decode_dead, [value for _, value in self._rows("dead")])
        )
        self._equal_but_dropped("dead letters", expected.dead, dead)
        held = [decode_hold(value) for _, value in self._rows("hold")]
        stopped = Counter((entry.node, entry.event, entry.key, _uid_of(entry.body)) for entry in held)
        self._equal_but_dropped("stopped events", expected.stopped, stopped)
        if not all(entry.stopped for entry in held):
            raise Wrong("events are held that are not stopped")

    def _equal_but_dropped(self, what: str, wanted: Counter[Any], found: Counter[Any]) -> None:
        dropped = Counter((row.node, row.event, row.key, _uid_of(row.body)) for row in self.simulator.dropped)
        _equal(what, wanted - ((wanted - found) & dropped), found)

    def _compare_replies(self, expected: Expected) -> None:
        parts: dict[Call, Counter[str]] = defaultdict(Counter)
        finals: dict[Call, list[str]] = defaultdict(list)
        for event in self.simulator.machine.replies.committed:
            call = self.calls[event.key or ""]
            if event.name == "final":
                finals[call].append("error" if isinstance(event.data, dict) else event.data)
            else:
                if finals[call]:
                    raise Wrong(f"a part of {call} came after its final reply")
                parts[call][event.data] += 1
        for call in {*parts, *finals, *expected.parts, *expected.finals}:
            wanted = expected.finals[call]
            if not wanted:  # nothing ends the call, so every part has to arrive
                _equal(f"parts of {call}", expected.parts[call], parts[call])
                _equal(f"finals of {call}", [], finals[call])
            elif len(finals[call]) != 1 or finals[call][0] not in wanted or parts[call] - expected.parts[call]:
                raise Wrong(f"{call} was answered {finals[call]} and {parts[call]}, not one of {wanted}")

    def _nothing_is_left(self, expected: Expected) -> None:
        machine = self.simulator.machine
        app = machine.app
        apps = [each.app for each in self.simulator.machines]
        _equal(
            "what is left",
            {"events": 0, "bytes": 0, "holds": len(self._rows("hold")), "timers": 0},
            {
                "events": sum(each.backlog_events for each in apps),
                "bytes": sum(each.backlog_bytes for each in apps),
                "holds": sum(each.holds for each in apps),
                "timers": sum(each.timers for each in apps),
            },
        )
        _equal("stored timers", [], self._rows("timer"))
        self._start_again()
        # Nobody claims what belonged to a pool that is gone: what was lost of its trims stays.
        names = [pool.name for pool in machine.spec.pools]
        for name in (
            *names,
            *(REPLIES + name for name in names),
            *(OUTPUT + name for name in machine.outputs),
            REPLIES,
        ):
            for partition in range(self.plan.partitions):
                left = machine.transport.waiting(app.log(name, partition), 0)
                if left.batches:
                    raise Wrong(f"{left.batches} batches of {left.events} events stay in log {name}/{partition}")

    def _start_again(self) -> None:
        """On a transport that now hears every trim: those that were lost are given again."""
        machines = self.simulator.machines
        broker = machines[0].broker
        broker.weakness = msgspec.structs.replace(broker.weakness, forget=0.0)
        for machine in machines:
            machine.stop()
        for machine in machines:
            machine.start()
            machine.transport.pump()


def _without_defaults(states: dict[tuple[str, str], dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """A state that has its default value may be stored or not."""
    return {
        key: {name: value for name, value in state.items() if value not in (0, [])} for key, state in states.items()
    }


def _uid_of(body: bytes) -> str:
    (data,) = codec.data_of(next(codec.runs_of(body))) or [None]
    return unpack(data)[0]


def _check_increasing(origins: list[list[Any] | None], where: str) -> None:
    last: dict[tuple[str, str], tuple[int, int]] = {}
    for origin in origins:
        if origin is None:
            continue
        node, key, n, ordinal = origin
        before = last.get((node, key), (-1, -1))
        if (n, ordinal) <= before:
            raise Wrong(f"{where}: {node}[{key}] sent {before} before {(n, ordinal)}, they came the other way round")
        last[node, key] = (n, ordinal)


def _equal(what: str, wanted: Any, found: Any) -> None:
    if wanted == found:
        return
    if isinstance(wanted, Counter):
        raise Wrong(f"{what}: missing {dict(wanted - found)}, too many {dict(found - wanted)}")
    if isinstance(wanted, dict):
        keys = [k for k in {**wanted, **found} if wanted.get(k) != found.get(k)]
        raise Wrong(f"{what}: " + "; ".join(f"{k}: {wanted.get(k)} wanted, found {found.get(k)}" for k in keys[:5]))
    raise Wrong(f"{what}: {wanted} wanted, found {found}")
