"""Plays the adapter for one base speaker: hands out runs, looks at what comes back.

A step of a case is an object with one of these keys, or of those of `Peer`:

    describes  {"nodes": {name: its states}, "slots": [[event, node], ...]}: these are among what its hello describes
    ready      it has to say that it is
    run        events of "node" to hand out, [[event, key, data], ...], with the "states" of their keys, and "attempt".
               Under "gives" what has to come of them: "events" (how many are finished, if not all), "emits" ([[event,
               key as it is sent, data], ...]), "origins", "delays", "states" (key: what was set), "deleted" (key:
               which), "replies", "failed"; "pieces": it hands in so often at least.
               "torn": the frame comes byte by byte
    begin      events to hand out, without waiting for what comes of them
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import structs

from grape.protocol.base import Ran, Run
from grape.protocol.framing import speaker_frames
from grape.protocol.messages import Beat
from grape.testing.conformance.cases import Case, same
from grape.testing.conformance.peer import Failed, Peer, in_order_of_key

_CREATED: Final = 1_700_000_000_000_000
_decode = msgspec.msgpack.Decoder().decode


class Effects:
    """What one run has done."""

    def __init__(self) -> None:
        self.events = 0
        self.pieces = 0
        self.origins: list[int] = []
        self.emits: list[list[Any]] = []
        self.delays: list[int] = []
        self.states: dict[str, dict[str, Any]] = {}
        self.deleted: dict[str, list[str]] = {}
        self.replies: list[list[Any]] = []
        self.failed: dict[str, Any] | None = None


class Adapter(Peer):
    """See the module."""

    def __init__(self, command: Sequence[str], directory: str, env: dict[str, str], case: Case) -> None:
        self._next_id = 0
        super().__init__(command, directory, env, case, speaker_frames)

    def _start(self) -> None:
        super()._start()
        if self._case.welcome:
            self._welcome()
            self._next(Beat)

    def _step(self, step: dict[str, Any]) -> None:
        match step:
            case {"describes": wanted}:
                self._describes(wanted)
            case {"ready": _}:
                self._next(Beat)
            case {"run": events}:
                self._check(self._run(events, step), step.get("gives", {}), len(events))
            case {"begin": events}:
                self._send(self._run_of(events, step))
            case _:
                super()._step(step)

    def _describes(self, wanted: dict[str, Any]) -> None:
        described = self.hello.topology
        nodes = {node.name: sorted(state.name for state in node.states) for node in described.nodes}
        slots = [[slot.event, slot.node] for slot in described.slots]
        for name, states in wanted["nodes"].items():
            if nodes.get(name) != states:
                raise Failed(f"it describes the nodes and states {nodes}; {name!r} should have {states}")
        for slot in wanted["slots"]:
            if slot not in slots:
                raise Failed(f"it describes the slots {slots}, {slot} is not among them")

    # ------------------------------------------------------------------ runs

    def _run_of(self, events: list[list[Any]], step: dict[str, Any]) -> Run:
        """Columns as the adapter makes them: names once if they are one, no column of nils."""
        names, keys, data = map(list, zip(*events, strict=True))
        first, self._next_id = self._next_id, self._next_id + len(events)
        return Run(
            step["node"],
            len(events),
            names[:1] if len(set(names)) == 1 else names,
            None if set(keys) == {None} else keys,
            None if all(value is None for value in data) else data,
            "1-",
            first,
            step.get("ids"),
            _CREATED,
            step.get("attempt", 1),
            step.get("states"),
        )

    def _run(self, events: list[list[Any]], step: dict[str, Any]) -> Effects:
        effects = Effects()
        self._send(self._run_of(events, step), torn=step.get("torn", False))
        while effects.events < len(events) and effects.failed is None:
            self._take(self._next(Ran), len(events), {key for _, key, _ in events if key is not None}, effects)
        return effects

    def _take(self, ran: Ran, count: int, keys: set[str], effects: Effects) -> None:
        effects.pieces += 1
        first, effects.events = effects.events, effects.events + ran.events
        if ran.events < 0 or effects.events > count:
            raise Failed(f"{effects.events} events of a run of {count} are finished")
        if ran.failed is not None:
            if ran.failed.index != effects.events - 1:
                raise Failed(
                    f"event {ran.failed.index} has failed, but {effects.events} are finished: it is not the last"
                )
            effects.failed = structs.asdict(ran.failed)
        of_these = range(first, effects.events)
        self._take_emits(ran, of_these, effects)
        for reply in ran.replies:
            if reply.index not in of_these:
                raise Failed(f"a reply of event {reply.index}, beside {of_these}")
            effects.replies.append([reply.index, _decode(reply.data), reply.final])
        if len({change.key for change in ran.states}) < len(ran.states):
            raise Failed(f"a key stands twice in the states of one Ran: {ran.states!r:.300}")
        for change in ran.states:
            if change.key not in keys:
                raise Failed(f"a state of the key {change.key!r:.100}, which no event of the run has")
            values = {name: _decode(value) for name, value in change.values.items()}
            effects.states.setdefault(change.key, {}).update(values)
            if change.deleted:
                effects.deleted[change.key] = sorted(change.deleted)

    def _take_emits(self, ran: Ran, of_these: range, effects: Effects) -> None:
        emits = ran.emits
        count = len(emits.data)
        names = emits.names * count if len(emits.names) == 1 else emits.names
        keys = [None] * count if emits.keys is None else emits.keys
        delays = [-1] * count if emits.delays is None else emits.delays
        if any(len(column) != count for column in (emits.origins, names, keys, delays)):
            raise Failed(f"columns of emits that are not equally long: {emits!r:.300}")
        if emits.origins != sorted(emits.origins) or not set(emits.origins) <= set(of_these):
            raise Failed(f"emits of the events {emits.origins!r:.200}: not in order, or not of {of_these}")
        failed = effects.failed
        if failed is not None and failed["index"] in emits.origins:
            raise Failed("emits of the event that failed")
        effects.origins += emits.origins
        effects.delays += delays
        effects.emits += [[n, k, _decode(v)] for n, k, v in zip(names, keys, emits.data, strict=True)]

    def _check(self, effects: Effects, gives: dict[str, Any], count: int) -> None:
        if "emits" in gives and not same(in_order_of_key(effects.emits), in_order_of_key(gives["emits"])):
            raise Failed(f"it emits {effects.emits!r:.600}, not {gives['emits']!r:.600}")
        for what in ("origins", "delays", "states", "deleted", "replies"):
            if what in gives and not same(getattr(effects, what), gives[what]):
                raise Failed(f"{what}: {getattr(effects, what)!r:.600}, not {gives[what]!r:.600}")
        wanted = gives.get("events", count)
        if effects.events != wanted:
            raise Failed(f"{effects.events} events are finished, not {wanted}; failed: {effects.failed}")
        if effects.pieces < gives.get("pieces", 1):
            raise Failed(f"it has handed in {effects.pieces} times, not {gives['pieces']}")
        failed = gives.get("failed")
        if (failed is None) != (effects.failed is None):
            raise Failed(f"failed: {effects.failed}, not {failed}")
        for name, value in (failed or {}).items():
            said = (effects.failed or {})[name]
            if not (value in said if name in ("text", "trace") else same(said, value)):
                raise Failed(f"a failure with {name}={said!r:.300}, not {value!r}")
