"""Plays the engine for one worker: hands out works, looks at what comes back.

A step of a case is an object with one of these keys, or of those of `Peer`:

    work      events to hand out, [[event, key, data], ...], and under "gives" what has to come of them; beside it
              "partition", "careful", "named", "contexts" (one an event, -1 for none), "hops", "deadlines", "only",
              "traced", "mixed" (all are one run, whatever their names)
    begin     events to hand out, without waiting for what comes of them
    retry     a held event: {"hold", "node", "event": [event, key, data], "attempt", "rest"}; "gives".
              "answers" to the calls that were made since the last "work", [{"data"} or {"error"}, ...]; "other": these
              are to something else
    assign    {"partition", "epoch", "held", "empty", "chain_new"}
    revoke    a partition
    stale     as work, with "epoch": nothing may come back
    restart   the worker is killed and started anew; all partitions are assigned in the next epoch
    stuck     {"node"}: it has to report an overrun timeout, and end
    peers     the other apps of the server from now on, as in `Welcome`. levels: of what it logs, as there
    rated     [[event, node, rate, burst], ...]: as it describes these slots
    there     objects that are committed: {namespace: {key: text, or null}}, or [text, tags]
    waits     [event, node]: it has to ask for the turn of an event of this slot, which it does not get

Whoever asks for turns in a step "work" or "retry" is given one at a time: at once, or after so many seconds as "wait"
says, within which it has to hand in what had one. "gives": {"turns": how many it was given}.

Questions for objects are answered with "piece" bytes at most (65,536); "refused": with this error, [code, text];
"changing": as if somebody wrote them meanwhile; "committing": as if the same was committed meanwhile; "flipped": a byte
of them is another one; "cut": so many are there. "gives":
"objects" that are written ([[namespace, key, text, or null], ...]), "fetched" ([[what, namespace, key], ...], once
however often it was asked in a row), "brought" (how often all bytes of an object went ahead), "given_up".
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from grape.errors import ProtocolError
from grape.model import batch as codec
from grape.model.address import partition_of
from grape.model.cursor import Progress
from grape.model.stored import OUTPUT
from grape.protocol.framing import worker_frames
from grape.protocol.messages import (
    MOST_LEASED,
    Announce,
    Answer,
    Ask,
    Assign,
    BatchItem,
    Beat,
    Call,
    Emitted,
    Fetch,
    Keep,
    Lease,
    Leased,
    LevelsChanged,
    Named,
    PeersChanged,
    Result,
    RetryItem,
    Revoke,
    Stuck,
    TimerName,
    Values,
    Work,
)
from grape.testing.conformance.cases import Case, same
from grape.testing.conformance.objects import Shelf
from grape.testing.conformance.peer import PARTITIONS, Failed, Peer, in_order_of_key

_SILENCE: Final = 0.4
_OF_A_FAILURE: Final = (
    "node", "event", "id", "key", "hold", "behind", "context", "kind", "text", "trace", "final", "named"
)  # fmt: skip
_decode = msgspec.msgpack.Decoder().decode


class Effects:
    """What works have done, put together."""

    def __init__(self) -> None:
        self.emits: defaultdict[str, list[list[Any]]] = defaultdict(list)
        self.states: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        self.failures: list[dict[str, Any]] = []
        self.replies: list[list[Any]] = []
        self.timers: list[list[Any]] = []
        self.retried: list[int] = []
        self.announced: list[list[str]] = []
        self.counts: dict[str, int] = {}
        self.turns = 0


class Driver(Peer):
    """See the module."""

    def __init__(self, command: Sequence[str], directory: str, env: dict[str, str], case: Case) -> None:
        self._epoch = 0
        self._seq = 0
        self._position = 0
        self._digests: list[bytes] = []
        self._leases: dict[tuple[str, str], int] = {}
        self._store: dict[tuple[str, int, bytes], bytes] = {}
        self._objects = Shelf()
        super().__init__(command, directory, env, case, worker_frames)

    def _start(self) -> None:
        super()._start()
        self._leases = {}
        if self._case.welcome:
            self._welcome()
            self._next(Beat)
            self._epoch += 1
            for number in range(PARTITIONS):
                self._send(Assign(number, self._epoch, [], not self._store))

    def _meanwhile(self, message: Struct, wanted: str) -> None:
        if isinstance(message, Fetch | Keep):
            self._send(self._objects.answer(message))
        elif isinstance(message, Ask):
            found = [self._store.get((message.node, message.partition, key)) for key in message.keys]
            self._send(Values(found[:2] or found))  # an answer may hold the first values only
        else:
            super()._meanwhile(message, wanted)

    # ------------------------------------------------------------------ steps

    def _step(self, step: dict[str, Any]) -> None:
        self._objects.begin(step)
        match step:
            case {"there": objects}:
                self._objects.fill(objects)
            case {"work": events}:
                self._check(self._work(events, step), step.get("gives", {}))
            case {"begin": events}:
                self._seq += 1
                item = BatchItem(998, "998-", 0, len(events), _body(events, None, 0))
                self._send(Work(step.get("partition", 0), self._epoch, self._seq, [item]))
            case {"retry": held}:
                self._check(self._retry(held), step.get("gives", {}))
            case {"assign": assign}:
                held = [(node, key) for node, key in assign.get("held", [])]
                self._epoch = max(self._epoch, assign["epoch"])
                self._send(
                    Assign(
                        assign["partition"],
                        assign["epoch"],
                        held,
                        assign.get("empty", True),
                        assign.get("chain_new", True),
                    )
                )
            case {"revoke": number}:
                self._send(Revoke(number, self._epoch))
            case {"stale": events}:
                self._stale(events, step)
            case {"peers": peers}:
                self._send(PeersChanged(peers))
            case {"levels": levels}:
                self._send(LevelsChanged(levels))
            case {"rated": wanted}:
                slots = {(slot.event, slot.node): [slot.rate, slot.burst] for slot in self.topology.slots}
                for event, node, *options in wanted:
                    found = slots.get((event, node))
                    if found != options:
                        raise Failed(f"rate and burst of {event} at {node}: {found}, not {options}")
            case {"waits": [event, node]}:
                self._asked(self._next(Lease), (event, node))
                self._silence("it does not wait for its turn", waits=True)
            case {"drain": _} if self._leases:
                super()._step(step)
                if any(isinstance(message, Result) and (message.done or message.counts) for message in self._inbox):
                    raise Failed(f"what had no turn is done: {self._inbox!r:.500}")
            case {"restart": _}:
                self.close()
                self._start()
            case {"stuck": what}:
                stuck = self._next(Stuck)
                if stuck.node != what["node"]:
                    raise Failed(f"it is stuck in {stuck.node}, not in {what['node']}")
                self._ends(True)
            case _:
                super()._step(step)

    # ------------------------------------------------------------------ works

    def _work(self, events: list[list[Any]], step: dict[str, Any]) -> Effects:
        """Hand out one batch, again and again until it is done."""
        number, effects = step.get("partition", 0), Effects()
        self._digests = []
        self._position += 1
        position, done = self._position, Progress()
        contexts = step.get("contexts")
        count = 0 if contexts is None else max(contexts) + 1
        body = _body(events, contexts, step.get("hops", 0), step.get("only"), step.get("mixed", False))
        deadlines = {int(context): at for context, at in step.get("deadlines", {}).items()}
        traced = {int(context): trace for context, trace in step.get("traced", {}).items()}
        while done.first < len(events):
            item = BatchItem(position, f"{position}-", 1_700_000_000_000_000, len(events), body, done, count)
            named = [
                Named(f"{position}-{n['index']}", n["node"], n["kind"], n["text"], n["death"])
                for n in step.get("named", [])
            ]
            self._seq += 1
            self._send(
                Work(
                    number, self._epoch, self._seq, [item], [], step.get("careful", False), named, 0, deadlines, traced
                )
            )
            for result in self._results(step.get("wait", 0.0), effects, f"{position}-"):
                for at, progress in result.done:
                    if at != position or progress.first < done.first:
                        raise Failed(f"progress {progress} of the batch {at}, after {done} of {position}")
                    done = progress
                self._take(result, number, effects)
        return effects

    def _results(self, wait: float, effects: Effects, prefix: str) -> Iterator[Result]:
        """Those of the last work, up to its end. ``wait``: seconds until it gets a turn that it asks for."""
        for slot in list(self._leases):  # of a work that it has given back
            self._grant(slot)
        while True:
            message = self._next(Result, Announce, Lease)
            match message:
                case Announce():
                    effects.announced.append([message.id.removeprefix(prefix), message.node])
                case Lease():
                    slot = self._asked(message)
                    if wait:
                        self._hold(slot, wait, effects)
                    self._grant(slot)
                    effects.turns += 1
                case Result():
                    yield message
                    if self._seq in message.ended:
                        return

    def _asked(self, lease: Lease, wanted: tuple[str, str] | None = None) -> tuple[str, str]:
        """It asks for turns."""
        slot = lease.event, lease.node
        if not any((s.event, s.node) == slot and s.rate for s in self.topology.slots) or (wanted or slot) != slot:
            raise Failed(f"it asks for the turn of {slot}")
        if slot in self._leases or not 1 <= lease.count <= MOST_LEASED:
            raise Failed(f"it asks for {lease.count} turns of {slot}, or before it was answered")
        self._leases[slot] = lease.count
        return slot

    def _grant(self, slot: tuple[str, str]) -> None:
        """One of them."""
        del self._leases[slot]
        self._send(Leased(*slot, 1))

    def _hold(self, slot: tuple[str, str], seconds: float, effects: Effects) -> None:
        """It gets no turn for so long: it has to hand in what had one, and nothing else may begin."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._read(until)
        name = ">".join(slot)
        over = effects.counts.get(name, 0)
        for message in self._inbox:
            if isinstance(message, Beat) and not message.running:
                raise Failed("it says that nothing runs, while an event waits for its turn")
            if isinstance(message, Announce):
                raise Failed(f"it announces {message.id}, which waits for its turn")
            if isinstance(message, Result):
                over += message.counts.get(name, 0)
        if over != effects.turns:
            raise Failed(f"it has handed in {over} events of {name}, of {effects.turns} that had their turn")

    def _silence(self, otherwise: str, *, waits: bool = False) -> None:
        """
        Raises:
            Failed: it does something meanwhile, or says that nothing runs although an event ``waits``.
        """
        until = time.monotonic() + _SILENCE
        while time.monotonic() < until:
            self._read(until)
            if any(not isinstance(message, Beat) or (waits and not message.running) for message in self._inbox):
                raise Failed(f"{otherwise}: {self._inbox!r:.500}")

    def _retry(self, held: dict[str, Any]) -> Effects:
        number, effects = held.get("partition", 0), Effects()
        name, key, data = held["event"]
        self._seq += 1
        item = RetryItem(
            held["hold"],
            held["node"],
            held.get("id", "held-1"),
            held.get("attempt", 2),
            0,
            1_700_000_000_000_000,
            codec.one(name, key, data),
            held.get("rest", False),
            -1,
            self._answers(held),
        )
        self._send(Work(number, self._epoch, self._seq, [], [item]))
        for result in self._results(held.get("wait", 0.0), effects, ""):
            self._take(result, number, effects)
        return effects

    def _answers(self, held: dict[str, Any]) -> list[Answer]:
        given = held.get("answers", [])
        if len(given) > len(self._digests):
            raise Failed(f"it has made {len(self._digests)} calls; this case has answers to {len(given)}")
        digests = [b"other"] * len(given) if held.get("other") else self._digests
        return [
            Answer(digest, codec.encode(answer.get("data", answer)), "error" in answer)
            for digest, answer in zip(digests, given, strict=False)
        ]

    def _stale(self, events: list[list[Any]], step: dict[str, Any]) -> None:
        body = _body(events, None, 0)
        self._seq += 1
        item = BatchItem(999, "999-", 0, len(events), body)
        self._send(Work(step.get("partition", 0), step["epoch"], self._seq, [item]))
        self._silence("it answers what is not its own")

    def _take(self, result: Result, number: int, effects: Effects) -> None:
        self._objects.take(result.objects)
        if (result.partition, result.epoch) != (number, self._epoch):
            raise Failed(f"a result of partition {result.partition} in epoch {result.epoch}")
        for emitted in result.emitted:
            for event, key, data in self._events(emitted, number):
                effects.emits[emitted.target].append([event, key, data])
        for timer in result.timers:
            name = _shown(timer.name)
            if timer.emitted is None:
                effects.timers.append(["cancelled", *name])
                continue
            for event, key, data in self._events(timer.emitted, number):
                effects.timers.append([timer.delay, event, key, data, *name])
        for changes in result.states:
            for key_bytes, record in zip(changes.keys, changes.values, strict=True):
                if record is None:
                    self._store.pop((changes.node, number, key_bytes), None)
                else:
                    self._store[changes.node, number, key_bytes] = record
                effects.states[changes.node][key_bytes.decode()] = None if record is None else _decode(record)
        for failure in result.failures:
            said = {name: getattr(failure, name) for name in _OF_A_FAILURE}
            effects.failures.append({**said, "call": self._called(failure.call, number)})
        effects.replies += [[reply.context, _decode(reply.data), reply.final] for reply in result.replies]
        effects.retried += result.retried
        for slot, count in result.counts.items():
            effects.counts[slot] = effects.counts.get(slot, 0) + count

    def _called(self, call: Call | None, number: int) -> dict[str, Any] | None:
        if call is None:
            return None
        if not 1 <= len(call.digest) <= 64:
            raise Failed(f"a call with a digest of {len(call.digest)} bytes")
        self._digests.append(call.digest)
        requests = []
        for request in call.requests:
            if request.contexts:
                raise Failed("a call with contexts of its own")
            requests += [[request.target, *event] for event in self._events(request, number, contexts=1)]
            (meta,) = [run.meta for run in codec.runs_of(request.body)]
            if meta.contexts != [0] or codec.hops_of(meta, 0) != 1:
                raise Failed(f"a call is one hop behind its event, and has context 0: {meta}")
        return {"event": call.event, "timeout": call.timeout, "requests": requests}

    def _events(self, emitted: Emitted, number: int, contexts: int = 0) -> list[tuple[str, str | None, Any]]:
        """The events of a body, which has to be what the engine takes."""
        try:
            codec.check_body(emitted.body, emitted.events, contexts or len(emitted.contexts))
        except ProtocolError as e:
            raise Failed(f"the body of an emit: {e}") from None
        found = []
        for run in codec.runs_of(emitted.body):
            names, keys, data = codec.names_of(run), codec.keys_of(run), codec.data_of(run)
            for i, name in enumerate(names):
                key = None if keys is None else keys[i]
                found.append((name, key, None if data is None else data[i]))
                place = number if key is None or emitted.target.startswith(OUTPUT) else partition_of(key, PARTITIONS)
                if emitted.partition != place:
                    raise Failed(f"an event with the key {key!r} for partition {emitted.partition}, not {place}")
        return found

    # ------------------------------------------------------------------ what should come of it

    def _check(self, effects: Effects, gives: dict[str, Any]) -> None:
        self._objects.check(gives)
        for target, wanted in gives.get("emits", {}).items():
            found = effects.emits.get(target, [])
            if not same(in_order_of_key(found), in_order_of_key(wanted)):
                raise Failed(f"to {target!r} it emits {found!r:.600}, not {wanted!r:.600}")
        if "emits" in gives and effects.emits.keys() - gives["emits"].keys():
            raise Failed(f"it emits to {sorted(effects.emits)}, not only to {sorted(gives['emits'])}")
        for what in ("states", "replies", "timers", "retried", "announced", "counts", "turns"):
            if what in gives and not same(_plain(getattr(effects, what)), gives[what]):
                raise Failed(f"{what}: {_plain(getattr(effects, what))!r:.600}, not {gives[what]!r:.600}")
        if len(effects.failures) != len(gives.get("failures", [])):
            raise Failed(f"failures: {effects.failures!r:.800}, not {gives.get('failures', [])}")
        for failure, fields in zip(effects.failures, gives.get("failures", []), strict=True):
            for name, value in fields.items():
                said = failure[name]
                if not (value in said if name in ("text", "trace") else same(said, value)):
                    raise Failed(f"a failure with {name}={said!r:.300}, not {value!r}: {failure!r:.600}")


def _shown(name: TimerName | None) -> list[str]:
    return [] if name is None else [name.node, name.key.decode(), name.name]


def _body(
    events: list[list[Any]], contexts: list[int] | None, hops: int, only: list[str] | None = None, mixed: bool = False
) -> bytes:
    """Consecutive events of one name are a run; all events, if they are ``mixed``."""
    parts: list[bytes] = []
    start = 0
    while start < len(events):
        end = start
        while end < len(events) and (mixed or events[end][0] == events[start][0]):
            end += 1
        run = events[start:end]
        names = list(dict.fromkeys(name for name, _, _ in run))
        index = bytes(names.index(name) for name, _, _ in run) if len(names) > 1 else None
        meta = codec.RunMeta(names, index, hops, only, contexts=None if contexts is None else contexts[start:end])
        keys, data = [key for _, key, _ in run], [value for _, _, value in run]
        parts.append(
            codec.encode_run(
                meta, len(run), None if set(keys) == {None} else keys, None if all(v is None for v in data) else data
            )
        )
        start = end
    return b"".join(parts)


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, defaultdict) else value
