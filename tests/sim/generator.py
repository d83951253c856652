"""Random topologies, and input for them. What an event does at a node (`react`) depends on nothing but the seed, the
node and what the event carries, so that the reference can work it out without ids, order or time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import lru_cache
from random import Random
from typing import Any, Final
from zlib import crc32

from msgspec import Struct, structs

from grape import Context, Event, Node, State, Topology
from grape.model.profile import Profile
from grape.model.section import Duration
from grape.model.topology import Limits
from grape.testing import Crash
from grape.testing.simulator import Chaos
from grape.transports.memory import Weakness

KEYS: Final = tuple(f"k{i}" for i in range(6))
NAMED_DEATHS: Final = 6
"""More than there are kills, so that no innocent event is given up."""
INHERIT: Final = "(inherit)"
ALWAYS: Final = 99

KINDS: Final = ("function", "generator", "batch", "node", "counter", "general", "stateful", "async", "async-node")
MANUAL: Final = ("node", "counter", "general", "stateful", "async", "async-node")
"""Kinds that emit by name, with keys and delays, and may reply."""


class NodePlan(Struct, frozen=True, eq=False):
    """``targets``: what it emits, of which ``emits`` is declared."""

    name: str
    kind: str
    pool: str
    listens: tuple[str, ...]
    targets: tuple[str, ...]
    emits: tuple[str, ...]
    ordered: bool
    chain: bool
    on_fail: str
    retries: int
    batch: int
    concurrency: int


class Root(Struct, frozen=True):
    """An event of the source. ``mode``: what its descendants may reply."""

    event: str
    key: str | None
    uid: str
    rounds: int
    mode: str


class Plan(Struct, frozen=True, eq=False):
    """``chunks``: the input, chunk by chunk. ``kind``: which of the generators made it. ``later``: the
    nodes as later code has them, which does the same by other ways."""

    seed: int
    nodes: tuple[NodePlan, ...]
    outputs: tuple[str, ...]
    chunks: tuple[tuple[Root, ...], ...]
    partitions: int
    workers: int
    limits: Limits
    profile: Profile
    chaos: Chaos
    kind: str = "any"
    later: tuple[tuple[NodePlan, ...], ...] = ()

    @property
    def roots(self) -> list[Root]:
        return [root for chunk in self.chunks for root in chunk]

    def listeners(self, event: str) -> list[NodePlan]:
        return [node for node in self.nodes if event in node.listens]


class Emit(Struct, frozen=True):
    """``key``: INHERIT, None or a key. ``delay`` in seconds; None: at once."""

    event: str
    key: str | None
    delay: float | None
    uid: str
    rounds: int


class Reaction(Struct, frozen=True):
    """What one event does at one node. ``fails``: its first so many attempts, ALWAYS: all. ``crashes``: every attempt
    ends the worker. ``add``: to the state. ``sleeps``: seconds, async only. ``replies``: (data, final)."""

    emits: tuple[Emit, ...]
    replies: tuple[tuple[str, bool], ...]
    fails: int
    crashes: bool
    add: int
    sleeps: float


def make_changes(seed: int) -> Plan:
    """Code that changes while events wait: what chains, in which pool a node is, how it is run."""
    rng = Random(f"{seed}/changes")
    plan = make_plan(seed)
    nodes = tuple(
        structs.replace(node, on_fail="dead", kind=node.kind if node.kind != "async" else "node") for node in plan.nodes
    )

    def changed(node: NodePlan) -> NodePlan:
        declared = tuple(target for target in node.targets if node.kind not in MANUAL or rng.random() < 0.7)
        return structs.replace(
            node,
            emits=declared,
            chain=rng.random() < 0.9,
            pool=rng.choice(("main", "slow")) if rng.random() < 0.15 else node.pool,
            retries=rng.choice((0, 1, 2, 3)) if node.retries else 0,
            batch=rng.choice((2, 5)) if node.kind == "batch" else 1,
            concurrency=rng.choice((1, 3, 100)),
        )

    later: list[tuple[NodePlan, ...]] = []
    for _ in range(rng.randint(1, 3)):
        later.append(tuple(map(changed, later[-1] if later else nodes)))
    chaos = structs.replace(plan.chaos, change=rng.choice((0.002, 0.01, 0.05)), kills=rng.choice((0, 2)))
    chunks = tuple(tuple(structs.replace(root, mode="none") for root in chunk) for chunk in plan.chunks)
    return structs.replace(plan, nodes=nodes, chunks=chunks, chaos=chaos, kind="changes", later=tuple(later))


CYCLE_KINDS: Final = ("async-node", "async-node", "async-node", "async", "general", "counter")


def make_cycles(seed: int) -> Plan:
    """Async nodes with state, in cycles, on a slow machine: what has to wait for each other, and may do so for ever."""
    rng = Random(f"{seed}/cycles")
    events = [f"e{i}" for i in range(rng.randint(1, 3))]
    nodes = [
        NodePlan(
            name=f"n{number}",
            kind="async-node" if not number else rng.choice(CYCLE_KINDS),
            pool="main" if rng.random() < 0.8 else "slow",
            listens=tuple(rng.sample(events, rng.randint(1, len(events)))) if number else tuple(events),
            targets=(*events, "out0"),
            emits=(),
            ordered=rng.random() < 0.9,
            chain=True,
            on_fail="dead",
            retries=rng.choice((0, 3)),
            batch=1,
            concurrency=rng.choice((1, 2, 5, 100)),
        )
        for number in range(rng.randint(1, 3))
    ]
    limits = Limits(
        dispatch_events=rng.choice((2, 5, 20, 8192)),
        batch_target=60,
        batch_max=240,
        cache_bytes=rng.choice((0, 0, 300, 64 << 20)),
        hold_events=rng.choice((2, 10_000)),
        named_deaths=NAMED_DEATHS,
        reply_ttl=1e9,
    )
    kills = rng.choice((0, 0, 2))
    large = rng.random() < 0.1
    chaos = Chaos(
        weakness=rng.choice((None, Weakness(0.0, 0.05, 0.05, 0.05, Random(f"{seed}/trims").choice((0.0, 0.1, 0.9))))),
        worker_kill=0.005,
        inner_kill=0.01,
        engine_kill=0.002,
        kills=kills,
        lag=rng.choice((0.0, 0.3, 0.6)),
        drops=Random(f"{seed}/drops").random() < 0.5,
    )
    roots = tuple(
        Root(rng.choice(events), rng.choice(KEYS), f"r{number}", rng.randint(1, 2 + large), "none")
        for number in range(rng.randint(1, 2 + 3 * large))
    )
    pools = Profile(idle_timeout=Duration(0)) if rng.random() < 0.7 else profile(seed)
    return Plan(
        seed,
        tuple(nodes),
        ("out0",),
        tuple((root,) for root in roots),
        rng.randint(1, 4),
        rng.randint(1, 3),
        limits,
        pools,
        chaos,
        "cycles",
    )


def make_plan(seed: int) -> Plan:
    """Everything about the run with this seed."""
    rng = Random(seed)
    outputs = tuple(f"out{i}" for i in range(rng.randint(1, 2)))
    events = [f"e{i}" for i in range(rng.randint(1, 5))]
    pools = ["main", "main", "slow"] if rng.random() < 0.5 else ["main"]
    count = rng.randint(1, 5)
    nodes: list[NodePlan] = []
    for number in range(count):
        kind = rng.choice(KINDS)
        listens = tuple(rng.sample(events, rng.randint(1, min(2, len(events)))))
        if number == count - 1:  # every event has a listener
            heard = {event for node in nodes for event in node.listens}
            listens = tuple(dict.fromkeys((*listens, *(event for event in events if event not in heard))))
        possible = [*events, *outputs]
        if kind in MANUAL:
            targets = tuple(rng.sample(possible, rng.randint(1, min(4, len(possible)))))
            emits = tuple(target for target in targets if rng.random() < 0.6)
        else:
            targets = emits = (rng.choice(possible),)
        nodes.append(
            NodePlan(
                name=f"n{number}",
                kind=kind,
                pool=rng.choice(pools),
                listens=listens,
                targets=targets,
                emits=emits,
                ordered=rng.random() < 0.8,
                chain=rng.random() < 0.8,
                on_fail="stop" if kind in MANUAL and rng.random() < 0.2 else "dead",
                retries=rng.choice((0, 1, 2, 3)),
                batch=rng.choice((2, 5)) if kind == "batch" else 1,
                concurrency=rng.choice((1, 3, 100)),
            )
        )
    stops = any(node.on_fail == "stop" for node in nodes)
    target = rng.choice((60, 500, 128 << 10))
    limits = Limits(
        dispatch_events=rng.choice((3, 20, 8192)),
        batch_target=target,
        batch_max=4 * target,
        cache_bytes=rng.choice((0, 2_000, 64 << 20)),
        hold_events=10_000 if stops else rng.choice((2, 10_000)),
        named_deaths=NAMED_DEATHS,
        reply_ttl=1e9,  # however long it takes, the first final reply ends the call
    )
    chaos = Chaos(
        weakness=None
        if rng.random() < 0.2
        else Weakness(
            *(rng.choice((0.0, 0.05, 0.2)) for _ in range(4)), Random(f"{seed}/trims").choice((0.0, 0.1, 0.9))
        ),
        worker_kill=rng.choice((0.0, 0.002, 0.02)),
        inner_kill=rng.choice((0.0, 0.01, 0.05)),
        engine_kill=rng.choice((0.0, 0.001, 0.01)),
        kills=NAMED_DEATHS - 1,
        largest_commit=Random(f"{seed}/commits").choice((256 << 20, 256 << 20, 12_000, 40_000)),
        drops=Random(f"{seed}/drops").random() < 0.5,
    )
    roots = [
        Root(
            rng.choice(events),
            rng.choice(KEYS) if rng.random() < 0.85 else None,
            f"r{number}",
            rng.randint(0, 3),
            rng.choice(("none", "parts", "final")),
        )
        for number in range(rng.randint(1, 40 if seed % 8 == 5 else 14))  # some bugs want a crowd
    ]
    chunks: list[tuple[Root, ...]] = []
    while roots:
        size = rng.randint(1, 8)
        chunks.append(tuple(roots[:size]))
        roots = roots[size:]
    return Plan(
        seed, tuple(nodes), outputs, tuple(chunks), rng.randint(1, 4), rng.randint(1, 2), limits, profile(seed), chaos
    )


def profile(seed: int) -> Profile:
    """How the pools are kept: most come and go."""
    rng = Random(f"{seed}/profile")
    if rng.random() < 0.3:
        return Profile(idle_timeout=Duration(0))
    return Profile(
        pool_limit=rng.choice((None, 2, 4)),
        pool_min=rng.choice((None, 0, 0, 1, 2)),
        grow_threshold=Duration(rng.choice((0.0, 0.1, 1.0))),
        idle_timeout=Duration(rng.choice((0.0, 0.3, 2.0, 20.0))),
        max_events=rng.choice((0, 0, 1, 10)),
        concurrency=rng.choice((1, 3, 1_000)),
    )


# ------------------------------------------------------------------ what an event does


@lru_cache(maxsize=2_000)
def react(plan: Plan, node: NodePlan, uid: str, rounds: int, mode: str, key: str | None) -> Reaction:
    """``key`` is only looked at where a handler can see it."""
    rng = Random(crc32(f"{plan.seed}/{node.name}/{uid}".encode()))
    most = 1 if node.kind in ("function", "batch") else 3
    emits: list[Emit] = []
    for ordinal in range(min(most, rng.choice((0, 1, 1, 1, 2, 3)))):
        event = rng.choice(node.targets)
        emit_key: str | None = INHERIT
        delay: float | None = None
        if node.kind in MANUAL:
            emit_key = rng.choice((INHERIT, INHERIT, INHERIT, None, *rng.sample(KEYS, 3)))
            delay = rng.choice((0.0, 0.5, 3.0, 30.0)) if rng.random() < 0.15 else None
        if event in plan.outputs or rounds > 0:
            emits.append(Emit(event, emit_key, delay, f"{uid}.{node.name[1:]}{ordinal}", rounds - 1))
    replies: list[tuple[str, bool]] = []
    if node.kind in MANUAL and mode != "none" and rng.random() < 0.3:
        replies.append((f"{uid}@{node.name}", mode == "final"))
    fails, crashes = 0, False
    chance = rng.random()
    attempts_are_seen = node.kind != "function"
    may_give_up = node.on_fail == "dead" or not node.ordered or key is None  # else it would stop its key for ever
    if chance < 0.10 and attempts_are_seen:
        fails = rng.randint(0, node.retries)
    elif chance < 0.15 and may_give_up:
        fails = ALWAYS
    elif chance < 0.165 and may_give_up:
        crashes = True
    return Reaction(
        tuple(emits), tuple(replies), fails, crashes, crc32(uid.encode()) % 1000, rng.choice((0.0, 0.0, 0.01, 2.0))
    )


class Failed(Exception):
    """What a handler raises on purpose."""


def pack(event: str, uid: str, rounds: int, mode: str, origin: list[Any] | None) -> Any:
    """The data of an event: a map, or a text for every other event name (text has fast ways of its own). ``origin``:
    emitting node, its key, its count, ordinal."""
    if crc32(event.encode()) & 1:
        where = "" if origin is None else "/".join(map(str, origin))
        return f"{uid} {rounds} {mode} {where}"
    return {"uid": uid, "rounds": rounds, "mode": mode, "origin": origin}


def unpack(data: Any) -> tuple[str, int, str, list[Any] | None]:
    if isinstance(data, dict):
        return data["uid"], data["rounds"], data["mode"], data["origin"]
    uid, rounds, mode, where = data.split(" ")
    origin: list[Any] | None = None
    if where:
        node, key, n, ordinal = where.split("/")
        origin = [node, key, int(n), int(ordinal)]
    return uid, int(rounds), mode, origin


# ------------------------------------------------------------------ the topology


class _Actor:
    """The common part of all handlers."""

    def __init__(self, plan: Plan, node: NodePlan) -> None:
        self.plan = plan
        self.node = node

    def reaction(self, data: Any, key: str | None) -> tuple[Reaction, str, list[Any] | None]:
        uid, rounds, mode, origin = unpack(data)
        return react(self.plan, self.node, uid, rounds, mode, key), mode, origin

    def act(self, emitter: Any, event: Event, count: int | None) -> None:
        """Emit and reply; then, if this attempt fails, fail: all of it has to be undone. ``count``: how many events of
        this key this node has seen, if it knows."""
        reaction, mode, _ = self.reaction(event.data, event.key)
        for ordinal, emit in enumerate(reaction.emits):
            origin = None
            if count is not None and emit.delay is None:
                origin = [self.node.name, event.key, count, ordinal]
            options: dict[str, Any] = {} if emit.key == INHERIT else {"key": emit.key}
            if emit.delay is not None:
                options["delay"] = emit.delay
            emitter.emit(emit.event, pack(emit.event, emit.uid, emit.rounds, mode, origin), **options)
        for data, final in reaction.replies:
            emitter.reply(data, final=final)
        self.end(reaction, event.attempt)

    @staticmethod
    def end(reaction: Reaction, attempt: int) -> None:
        if reaction.crashes:
            raise Crash
        if attempt <= reaction.fails:
            raise Failed(f"attempt {attempt}")

    def results(self, data: Any, key: str | None, attempt: int) -> list[Any]:
        """What a handler that returns or yields gives."""
        reaction, mode, _ = self.reaction(data, key)
        self.end(reaction, attempt)
        return [pack(emit.event, emit.uid, emit.rounds, mode, None) for emit in reaction.emits]


class PlainNode(Node):
    def __init__(self, actor: _Actor) -> None:
        super().__init__(name=actor.node.name)
        self.actor = actor

    def process(self, event: Event) -> None:
        self.actor.act(self, event, None)


class CounterNode(Node):
    """One plain state. Its count tells receivers the order of its emits."""

    count = State(int, default=0)

    def __init__(self, actor: _Actor) -> None:
        super().__init__(name=actor.node.name)
        self.actor = actor

    def process(self, event: Event) -> None:
        count = None
        if event.key is not None:
            self.count += 1
            count = self.count
        self.actor.act(self, event, count)


class GeneralNode(Node):
    """Two states, one of them changed in place."""

    total = State(int, default=0)
    seen = State(list[Any])

    def __init__(self, actor: _Actor) -> None:
        super().__init__(name=actor.node.name)
        self.actor = actor

    def process(self, event: Event) -> None:
        if event.key is not None:
            reaction, _, origin = self.actor.reaction(event.data, event.key)
            self.seen.append([unpack(event.data)[0], origin])
            self.total += reaction.add
        self.actor.act(self, event, None)


class AsyncNode(Node):
    total = State(int, default=0)
    seen = State(list[Any])

    def __init__(self, actor: _Actor) -> None:
        super().__init__(name=actor.node.name)
        self.actor = actor

    async def process(self, event: Event) -> None:
        reaction, _, origin = self.actor.reaction(event.data, event.key)
        if event.key is not None:
            self.seen.append([unpack(event.data)[0], origin])
        await asyncio.sleep(reaction.sleeps)
        if event.key is not None:
            self.total += reaction.add
        self.actor.act(self, event, None)


def _handler(actor: _Actor) -> Any:
    kind = actor.node.kind

    def function(data: Any) -> Any:
        return next(iter(actor.results(data, None, 1)), None)

    def generator(data: Any, event: Event) -> Iterator[Any]:
        reaction, _, _ = actor.reaction(data, event.key)
        yield from actor.results(data, event.key, ALWAYS + 1)
        actor.end(reaction, event.attempt)

    def batch(events: list[Event]) -> list[Any]:
        out: list[Any] = []
        for event in events:
            try:
                out.append(next(iter(actor.results(event.data, event.key, event.attempt)), None))
            except Failed as e:
                out.append(e)
        return out

    def stateful(data: Any, event: Event, context: Context, total: State[int] = State(int, default=0)) -> None:
        if event.key is not None:
            total.value += actor.reaction(data, event.key)[0].add
        actor.act(context, event, None)

    async def asynchronous(data: Any, event: Event, context: Context) -> None:
        reaction, _, _ = actor.reaction(data, event.key)
        await asyncio.sleep(reaction.sleeps)
        actor.act(context, event, None)

    if kind in ("function", "generator", "batch", "stateful"):
        return {"function": function, "generator": generator, "batch": batch, "stateful": stateful}[kind]
    if kind == "async":
        return asynchronous
    return {"node": PlainNode, "counter": CounterNode, "general": GeneralNode, "async-node": AsyncNode}[kind](actor)


def build(plan: Plan, nodes: tuple[NodePlan, ...] | None = None) -> Topology:
    """The topology, with nodes of its own. ``nodes``: as other code has them."""
    topology = Topology("sim")
    for output in plan.outputs:
        topology.add_output(output)
    for node in nodes or plan.nodes:
        handler = _handler(_Actor(plan, node))
        for event in node.listens:
            topology.add_slot(
                event,
                handler,
                name=node.name,
                pool=node.pool,
                emits=node.emits,
                retries=node.retries,
                backoff=1.0,
                on_fail=node.on_fail,  # type: ignore[arg-type]
                ordered=node.ordered,
                chain=node.chain,
                batch=node.batch,
                concurrency=node.concurrency,
                timeout=0,
            )
    return topology


GENERATORS: Final[dict[str, Callable[[int], Plan]]] = {
    "any": make_plan,
    "cycles": make_cycles,
    "changes": make_changes,
}
