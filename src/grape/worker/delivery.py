"""Where what a stage emitted goes: at once into the next stage (chained pairs), or into the outbox by target log."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import Any, Final, TypeVar

from msgspec import Struct

from grape.authoring.emitter import INHERIT
from grape.hot import scatter
from grape.model.address import Partitions
from grape.model.batch import one
from grape.model.foreign import app_of, is_foreign, log_to
from grape.model.routing import Routing
from grape.model.values import Raw, encode
from grape.protocol.messages import Emitted, Reply, Timer, TimerName
from grape.worker.calls import Suspended
from grape.worker.effects import REPLY_COSTS, TIMER_COSTS, Assigned, Effects
from grape.worker.emits import Cancelled, Delayed, Replied, weight
from grape.worker.objects import OBJECT_COSTS, Written
from grape.worker.outbox import Target
from grape.worker.stage import ChildStage, Stage
from grape.worker.units.unit import Emissions, Unit

OUTPUT: Final = ">"
"""First character of the log name of an output; pools have their bare names."""

T = TypeVar("T")


class _Log(Struct, frozen=True):
    """A log that takes a name. Only names of one ``group`` share a run; ``only``: these nodes alone are meant."""

    name: str
    group: object
    only: list[str] | None = None


class _Route(Struct, frozen=True):
    """Where one name leads when one node emits it. ``chained``: units of this pool that run at once if the key stays in
    the partition; ``near``: logs for such events beside the chained ones; ``far``: for all others. ``dropped``: it is
    an output that nobody takes."""

    chained: tuple[Unit, ...]
    near: tuple[_Log, ...]
    far: tuple[_Log, ...]
    dropped: bool = False


class _Flow(Struct, frozen=True):
    """Events of one name on their way. ``keys`` None: all keyless. ``flat``: their places among all that the stage
    emitted, None: in order. ``kinds``: types of ``data``, if known."""

    name: str
    keys: list[str | None] | None
    data: list[Any]
    hops: int | list[int]
    contexts: list[int] | None
    flat: list[int] | None
    kinds: set[type] | None = None

    def pick(self, indexes: list[int]) -> _Flow:
        flat = indexes if self.flat is None else _picked(self.flat, indexes)
        hops = self.hops if isinstance(self.hops, int) else _picked(self.hops, indexes)
        keys = None if self.keys is None else _picked(self.keys, indexes)
        contexts = None if self.contexts is None else _picked(self.contexts, indexes)
        return _Flow(self.name, keys, _picked(self.data, indexes), hops, contexts, flat, self.kinds)


def _picked(column: list[T], indexes: list[int]) -> list[T]:
    return [column[i] for i in indexes]


class Delivery:
    """Of one worker.

    Args:
        pool: its name.
        units: its nodes.
        routing: of the whole topology.
        unchained: pairs that chain only in partitions with ``chain_new``.
        taken: outputs that somebody takes.
        partitions: key -> partition.
        run_stage: runs a chained stage, which may deliver in turn.
    """

    def __init__(
        self,
        pool: str,
        units: dict[str, Unit],
        routing: Routing,
        unchained: frozenset[tuple[str, str]],
        taken: frozenset[str],
        partitions: Partitions,
        run_stage: Callable[[Unit, Stage], None],
    ) -> None:
        self._pool = pool
        self._units = units
        self._routing = routing
        self._unchained = unchained
        self._taken = taken
        self._partitions = partitions
        self._run_stage = run_stage
        self._routes: dict[tuple[str, bool], dict[str, _Route]] = {}
        self._branches: dict[tuple[str, str], str] = {}
        self._part: Assigned
        self._effects: Effects

    def deliver(self, part: Assigned, effects: Effects, unit: Unit, stage: Stage, emissions: Emissions) -> None:
        """Run what chains, collect the rest in ``effects``. ``stage`` of ``unit`` ran in ``part``."""
        self._part, self._effects = part, effects  # a chained stage delivers into the same
        effects.emits += len(emissions)
        effects.add_size(emissions.size)
        if emissions.marks is None:
            self._results(unit, stage, emissions, emissions.flat)
            return
        if isinstance(emissions.names, str) and emissions.keys is None:
            self._results(unit, stage, emissions, _origins(emissions.marks))
        else:
            self._emits(unit, stage, emissions, emissions.marks)

    def _results(self, unit: Unit, stage: Stage, emissions: Emissions, origins: list[int] | None) -> None:
        """All have the key of their event, so nothing leaves the partition. ``origins``: the event of each, None: one
        an event."""
        names, marks = emissions.names, emissions.marks

        def of_events(column: Any) -> Any:
            return column if origins is None or not isinstance(column, list) else _picked(column, origins)

        keys, hops, contexts = of_events(stage.keys), of_events(_one_more(stage.hops)), of_events(stage.contexts)
        flow = _Flow("", keys, emissions.data, hops, contexts, None if marks is not None else origins, emissions.kinds)
        if isinstance(names, str):
            self._send(unit, stage, _named(flow, names), marks, stays=True)
            return
        for name, picked in self._in_order(unit, stage, names, flow, []):
            self._send(unit, stage, _named(flow.pick(picked), name), marks, stays=True)

    def _emits(self, unit: Unit, stage: Stage, emissions: Emissions, marks: list[int]) -> None:
        """Emits that name their own keys, or several events."""
        names, keys, data = emissions.names, emissions.keys, emissions.data
        hops = _one_more(stage.hops)
        contexts = None
        if keys is None:
            keys = [INHERIT] * len(data)
        inherits = INHERIT in keys
        if isinstance(names, str) and not inherits and isinstance(hops, int) and stage.contexts is None:
            self._send(unit, stage, _Flow(names, keys, data, hops, None, None), marks, stays=False)
            return
        origins = _origins(marks)
        if inherits:
            own = stage.key_column()
            keys = [own[at] if key is INHERIT else key for key, at in zip(keys, origins, strict=True)]
        if isinstance(hops, list):
            hops = _picked(hops, origins)
        if stage.contexts is not None:
            contexts = _picked(stage.contexts, origins)
        flow = _Flow("", keys, data, hops, contexts, None)
        if isinstance(names, str):
            self._send(unit, stage, _named(flow, names), marks, stays=False)
            return
        for name, picked in self._in_order(unit, stage, names, flow, origins):
            self._send(unit, stage, _named(flow.pick(picked), name), marks, stays=False)

    def _in_order(
        self, unit: Unit, stage: Stage, names: list[Any], flow: _Flow, origins: list[int]
    ) -> list[tuple[str, list[int]]]:
        """Emits of several names as consecutive groups of one name each, so that a node which listens to several of
        them gets them in order. Timers and replies are done with here."""
        groups: list[tuple[str, list[int]]] = []
        shared = self._shares_nodes({name for name in names if type(name) is str})
        by_name: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            if type(name) is str:
                if shared:
                    if groups and groups[-1][0] == name:
                        groups[-1][1].append(i)
                    else:
                        groups.append((name, [i]))
                else:
                    picked = by_name.get(name)
                    if picked is None:
                        picked = by_name[name] = []
                        groups.append((name, picked))
                    picked.append(i)
            elif type(name) is Delayed:
                assert flow.keys is not None
                of = self._timer_name(unit, stage, origins, i, name.timer)
                self._delay(name, flow.keys[i], flow.data[i], -1 if flow.contexts is None else flow.contexts[i], of)
            elif type(name) is Cancelled:
                self._cancel(self._timer_name(unit, stage, origins, i, name.timer))
            elif type(name) is Replied:
                context = stage.context_of(origins[i])
                if context >= 0:
                    value = flow.data[i]
                    packed = bytes(value) if type(value) is Raw else encode(value)
                    self._effects.add_size(REPLY_COSTS)
                    self._effects.replies.append(Reply(context, packed, name.final))
            elif type(name) is Written:
                self._effects.add_size(OBJECT_COSTS + name.write.weight)
                self._effects.written.append(name)
        return groups

    def _shares_nodes(self, names: set[str]) -> bool:
        """Whether some node listens to several of ``names``, or may do so in another app: it has to get them in the
        order of their emits."""
        nodes = [n for name in names for listener in self._routing.listeners.get(name, ()) for n in listener.nodes]
        apps = [app_of(name) for name in names if is_foreign(name)]
        return len(set(nodes)) < len(nodes) or len(set(apps)) < len(apps)

    def _leaves(self, name: str) -> bool:
        """It is taken from the partition that emits it."""
        return name in self._routing.outputs or is_foreign(name)

    def _numbers(self, keys: list[str | None]) -> list[int]:
        own, partitions = self._part.number, self._partitions
        if None in keys:
            return [own if key is None else partitions[key] for key in keys]
        return list(map(partitions.__getitem__, keys))  # type: ignore[arg-type]

    def _send(self, unit: Unit, stage: Stage, flow: _Flow, marks: list[int] | None, *, stays: bool) -> None:
        """``stays``: nothing of it leaves the partition, as all has the key of its event."""
        counts = self._effects.emit_counts
        counts[flow.name] = counts.get(flow.name, 0) + len(flow.data)
        route = self._route(unit.node, flow.name)
        if route.dropped:
            return
        own = self._part.number
        stays = stays or flow.keys is None or self._leaves(flow.name)
        if route.chained:
            self._chain_near(unit, stage, route, flow, marks, stays=stays)
        elif stays:
            self._collect(route.far, own, flow.name, flow.keys, flow.data, flow.hops, flow.contexts)
        else:
            self._scatter(route.far, flow)

    def _chain_near(
        self, unit: Unit, stage: Stage, route: _Route, flow: _Flow, marks: list[int] | None, *, stays: bool
    ) -> None:
        """Chain what stays in the partition; the rest goes far."""
        numbers = None if stays else self._numbers(flow.keys or [])
        own = self._part.number
        if numbers is None or numbers.count(own) == len(numbers):
            if flow.data:
                self._chain(unit, stage, route, flow, marks)
            return
        near = flow.pick([i for i, number in enumerate(numbers) if number == own])
        if near.data:
            self._chain(unit, stage, route, near, marks)
        self._scatter(route.far, flow.pick([i for i, number in enumerate(numbers) if number != own]))

    def _chain(self, unit: Unit, stage: Stage, route: _Route, flow: _Flow, marks: list[int] | None) -> None:
        if route.near:
            self._collect(route.near, self._part.number, flow.name, flow.keys, flow.data, flow.hops, flow.contexts)
        branch = self._branch(unit.node, stage.name_of(0))
        for target in route.chained:
            child = ChildStage(
                stage,
                len(flow.data),
                flow.name,
                flow.keys,
                flow.data,
                flow.hops,
                flow.contexts,
                flow.flat,
                marks,
                flow.kinds,
                branch,
            )
            self._run_stage(target, child)

    def _branch(self, node: str, event: str) -> str:
        """What tells the ids of events that ``node`` has chained from those of other nodes that heard the same event:
        its number among them, if it is not the first."""
        branch = self._branches.get((node, event))
        if branch is None:
            listeners = self._routing.listeners.get(event, ())
            nodes = [name for listener in listeners if listener.pool == self._pool for name in listener.nodes]
            number = nodes.index(node) if node in nodes else 0
            branch = self._branches[node, event] = f"{number}-" if number else ""
        return branch

    def _collect(
        self,
        logs: tuple[_Log, ...],
        partition: int,
        name: str,
        keys: list[str | None] | None,
        data: list[Any] | None,
        hops: int | list[int],
        contexts: list[int] | None,
    ) -> None:
        """Append to one partition of every log. ``data`` None: all nil."""
        if len(logs) > 1:  # each gets a copy of its own
            texts = [*(data or ()), *(keys or ())]
            self._effects.add_size((len(logs) - 1) * sum(map(weight, texts)))
        for log in logs:
            base = hops if isinstance(hops, int) else hops[0]
            columns = self._effects.outbox.columns(Target(log.name, partition), log.group, name, base, log.only)
            columns.extend(name, keys, data, hops, contexts)

    def _scatter(self, logs: tuple[_Log, ...], flow: _Flow) -> None:
        """Sort by partition, then append. The usual case (no data, or nothing but keys and data) goes another way: this
        is where every event of a splitter passes."""
        name, keys, data, hops = flow.name, flow.keys, flow.data, flow.hops
        assert keys is not None
        own, partitions = self._part.number, self._partitions
        if isinstance(hops, int) and flow.contexts is None:
            some = None if data.count(None) == len(data) else data
            for number, its_keys, its_data in scatter(keys, some, partitions, own):
                self._collect(logs, number, name, its_keys, its_data, hops, None)
            return
        rows: dict[int, list[int]] = {}
        for i, number in enumerate(self._numbers(keys)):
            rows.setdefault(number, []).append(i)
        for number, picked in rows.items():
            part = flow.pick(picked)
            self._collect(logs, number, name, part.keys, part.data, part.hops, part.contexts)

    @staticmethod
    def _timer_name(unit: Unit, stage: Stage, origins: list[int], i: int, name: str) -> TimerName | None:
        key = stage.key_of(origins[i]) if name else None
        return None if key is None else TimerName(unit.node, key.encode(), name)

    def _cancel(self, of: TimerName | None) -> None:
        assert of is not None
        self._effects.add_size(TIMER_COSTS)
        self._effects.timers.append(Timer(0, None, of))

    def _delay(self, delayed: Delayed, key: str | None, data: Any, context: int, of: TimerName | None) -> None:
        if of is not None:
            self._cancel(of)  # it takes the place of the one before
        name = delayed.name
        counts = self._effects.emit_counts
        counts[name] = counts.get(name, 0) + 1
        is_far = key is not None and not self._leaves(name)
        number = self._partitions[key or ""] if is_far else self._part.number
        contexts = [] if context < 0 else [context]
        body = one(name, key, data, **({"contexts": [0]} if contexts else {}))
        for log in self._logs_of(name):
            self._effects.add_size(TIMER_COSTS)
            self._effects.timers.append(Timer(delayed.delay, Emitted(log, number, 1, body, contexts), of))

    def requests(self, part: Assigned, unit: Unit, stage: Stage, index: int, call: Suspended) -> list[Emitted]:
        """What asks for ``call``, which event ``index`` of ``stage`` makes: one for each pool that listens."""
        key = stage.key_of(index) if call.key is INHERIT else call.key
        number = part.number if key is None or self._leaves(call.event) else self._partitions[key]
        body = one(call.event, key, call.data, hops=stage.hops_of(index) + 1, contexts=[0])
        return [Emitted(log, number, 1, body) for log in self._logs_of(call.event)]

    def _logs_of(self, name: str) -> list[str]:
        if is_foreign(name):
            return [log_to(app_of(name))]
        if name in self._routing.outputs:
            return [OUTPUT + name] if name in self._taken else []
        return [listener.pool for listener in self._routing.listeners[name]]

    def _route(self, node: str, name: str) -> _Route:
        routes = self._routes.setdefault((node, self._part.chain_new), {})
        found = routes.get(name)
        if found is None:
            found = routes[name] = self._make_route(node, name)
        return found

    def _make_route(self, node: str, name: str) -> _Route:
        if is_foreign(name):
            return _Route((), (), (_Log(log_to(app_of(name)), app_of(name)),))
        if name in self._routing.outputs:
            return _Route((), (), (_Log(OUTPUT + name, name),), dropped=name not in self._taken)
        pairs = self._routing.chained
        if not self._part.chain_new:
            pairs = pairs - self._unchained
        chained: list[Unit] = []
        near: list[_Log] = []
        far: list[_Log] = []
        for listener in self._routing.listeners[name]:
            group = (listener.pool, listener.nodes)
            far.append(_Log(listener.pool, group))
            rest = [target for target in listener.nodes if (node, target) not in pairs]
            if listener.pool == self._pool:
                chained += [self._units[target] for target in listener.nodes if (node, target) in pairs]
            if rest:
                near.append(_Log(listener.pool, group, None if len(rest) == len(listener.nodes) else rest))
        return _Route(tuple(chained), tuple(near), tuple(far))


def _named(flow: _Flow, name: str) -> _Flow:
    return _Flow(name, flow.keys, flow.data, flow.hops, flow.contexts, flow.flat, flow.kinds)


def _one_more(hops: int | list[int]) -> int | list[int]:
    return hops + 1 if isinstance(hops, int) else [h + 1 for h in hops]


def _origins(marks: list[int]) -> list[int]:
    """For every emit the index of the event that made it."""
    out: list[int] = []
    before = 0
    for i, mark in enumerate(marks):
        out.extend(repeat(i, mark - before))
        before = mark
    return out
