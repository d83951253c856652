"""What a worker says, checked: everything that the engine acts on, before it takes anything of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from operator import itemgetter
from typing import Final, cast

import msgspec

from grape.engine.app import App
from grape.errors import ProtocolError, TopologyError
from grape.hot import is_deeper
from grape.model import batch as codec
from grape.model.address import MAX_KEY_BYTES, check_timer_name
from grape.model.batch import Context
from grape.model.cursor import Progress
from grape.model.depth import LET_IN
from grape.model.foreign import MAX_FOREIGN, app_of, is_foreign, log_to
from grape.model.names import check_write
from grape.model.near import did_you_mean
from grape.model.objects import ObjectWrite
from grape.model.stored import NO_POOLS, OUTPUT
from grape.model.topology import MAX_NAMES, TopologySpec
from grape.model.tracing import MAX_TEXT, SPANS, Span, read_context
from grape.protocol.messages import DERIVED, Call, Emitted, Failure, Reply, StateChanges, Timer, TimerName

MAX_TIME: Final = 1 << 62
"""Largest delay or expiry in microseconds: 146,000 years."""
MAX_HOPS: Final = 1 << 31
MAX_SECONDS: Final = 1e12
MAX_NAME_BYTES: Final = 255
MAX_EDGES: Final = 1_000_000
"""Pairs of nodes between which an emit is declared: each is looked at for chaining."""
MAX_COUNT: Final = 1 << 31
MAX_SPAN_TEXT: Final = 16_384
_TRACE: Final = re.compile(r"[0-9a-f]{32}")
_SPAN: Final = re.compile(r"[0-9a-f]{16}")
_MAPS: Final = frozenset((*range(0x80, 0x90), 0xDE, 0xDF))
"""How maps begin in msgpack."""
BESIDE_DATA: Final = 128 << 10
"""What one event may have beside its data: its key, and the names of its run."""

_first = itemgetter(0)
_decode_value = msgspec.msgpack.Decoder(msgspec.Raw).decode
_decode_record = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_decode_expiries = msgspec.msgpack.Decoder(dict[str, int]).decode


def check_topology(spec: TopologySpec) -> None:
    """What a worker tells about its app has to hang together, whoever wrote the worker.

    Raises:
        TopologyError: it does not.
    """
    nodes = {node.name: node for node in spec.nodes}
    pools = {pool.name for pool in spec.pools}
    slots = {(slot.event, slot.node) for slot in spec.slots}
    events = {slot.event for slot in spec.slots}
    problems = [
        *(f"name {name!r:.300}" for name in _names(spec) if not 1 <= len(name.encode()) <= MAX_NAME_BYTES),
        *(f"pool {name!r}" for name in pools if name.startswith(NO_POOLS)),
        *(f"node {node.name!r} in pool {node.pool!r}" for node in spec.nodes if node.pool not in pools),
        *(f"slot {slot.event!r} of node {slot.node!r}" for slot in spec.slots if slot.node not in nodes),
        *(f"output {name!r}, which is a slot" for name in spec.outputs if name in events),
        *(f"output {name!r}, which is the engine's own" for name in spec.outputs if name == SPANS),
        *(f"state {state.name!r} of {node.name!r}" for node in spec.nodes for state in node.states if state.ttl == 0),
    ]
    for slot in spec.slots:
        times = slot.backoff, slot.backoff_max, slot.timeout
        if not (all(0 <= t <= MAX_SECONDS for t in times) and slot.retries >= 0 and slot.concurrency > 0 < slot.batch):
            problems.append(f"the options of slot {slot.event!r} of node {slot.node!r}")
    heard = Counter(slot.event for slot in spec.slots)
    edges = sum(heard[event] for slot in spec.slots for event in slot.emits)
    if edges > MAX_EDGES:
        problems.append(f"{edges:,} declared edges between nodes; at most {MAX_EDGES:,}")
    twice = len(nodes) < len(spec.nodes) or len(pools) < len(spec.pools) or len(slots) < len(spec.slots)
    if twice or len(set(spec.outputs)) < len(spec.outputs):
        problems.append("a node, pool, slot or output that stands there twice")
    if problems or not slots:
        what = ", ".join(problems) or "no slots"
        raise TopologyError(f"the worker describes a topology {spec.name!r:.300} that cannot be: {what:.1000}")


def check_emits(spec: TopologySpec) -> None:
    """What slots say they emit has to lead somewhere, now that all of the app is known.

    Raises:
        TopologyError: it does not.
    """
    known = {*spec.events, *spec.outputs}
    for slot in spec.slots:
        for event in slot.emits:
            if event not in known and "@" not in event:
                hint = did_you_mean(event, known, f"known are {sorted(known)}")
                raise TopologyError(
                    f"slot {slot.event!r} of node {slot.node!r} says that it emits {event!r}, which is neither a slot "
                    f"nor an output of {spec.name!r}; {hint}"
                )


def _names(spec: TopologySpec) -> list[str]:
    slots = [slot.event for slot in spec.slots]
    return [spec.name, *(n.name for n in spec.nodes), *slots, *spec.outputs, *(p.name for p in spec.pools)]


def once(numbers: Iterable[int], what: str) -> None:
    """
    Raises:
        ProtocolError: a number stands there twice.
    """
    seen: set[int] = set()
    for number in numbers:
        if number in seen:
            raise ProtocolError(f"{what} {number} twice in one result")
        seen.add(number)


def check_progress(position: int, events: int, before: Progress, now: Progress) -> None:
    """A batch of ``events`` at ``position`` goes from ``before`` to ``now``.

    Raises:
        ProtocolError: it goes back, or beyond the end.
    """
    if not before.first <= now.first <= events:
        raise ProtocolError(f"progress {now.first} of {events} events at {position}, after {before.first}")
    room = max(0, events - now.first - 1)
    if len(now.behind) > room // 8 + 1 or now.bits >> room:
        raise ProtocolError(f"progress behind the end of the batch at {position}")
    if before.behind and _marks(before) & ~_marks(now):
        raise ProtocolError(f"progress at {position} that takes finished events back")


def _marks(progress: Progress) -> int:
    return (1 << progress.first) - 1 | progress.bits << (progress.first + 1)


class Checker:
    """Of the workers of one pool. ``contexts``: how many the works of the partition have.

    Every method raises ProtocolError, saying what cannot be true.
    """

    def __init__(self, app: App, pool: str) -> None:
        self._app = app
        self._pool = pool
        self._largest = app.limits.max_event + BESIDE_DATA
        self._counted = frozenset(f"{slot.event}>{slot.node}" for slot in app.topology.slots)
        self._names = frozenset((*app.topology.events, *app.topology.outputs))
        self._of_others: set[str] = set()
        self._derived = 0
        self._nodes: dict[tuple[str, str], tuple[str, ...]] = {
            (listener.pool, event): listener.nodes
            for event, listeners in app.routing.listeners.items()
            for listener in listeners
        }

    def emitted(self, emitted: Emitted, contexts: int) -> None:
        target, own = emitted.target, emitted.contexts
        names = self._app.names_of(target)
        if names is None:
            raise ProtocolError(f"an emit to {target!r:.300}, which is neither a pool nor an output")
        if not 0 <= emitted.partition < self._app.partitions:
            raise ProtocolError(f"an emit to partition {emitted.partition} of {self._app.partitions}")
        if own and not (min(own) >= 0 and (max(own) < contexts or self._are_there(own, contexts))):
            raise ProtocolError("an emit with a context that this work does not have")
        largest = self._largest if emitted.events == 1 else self._app.limits.batch_max
        if len(emitted.body) > largest:
            raise ProtocolError(f"an emit of {emitted.events} events in {len(emitted.body)} bytes, over {largest}")
        for meta in codec.check_body(emitted.body, emitted.events, len(own), is_deeper=is_deeper):
            strange = {name for name in meta.names if name not in names}
            if strange:
                raise ProtocolError(f"an emit of {sorted(strange)!r:.300} to {target!r}, where nothing listens to it")
            self._run(target, meta)

    def _run(self, target: str, meta: codec.RunMeta) -> None:
        nodes = self._nodes.get((target, meta.names[0]), ())
        if any(self._nodes.get((target, name), ()) != nodes for name in meta.names):
            raise ProtocolError(f"a run of {meta.names!r:.300}, which do not have the same listeners in {target!r}")
        if meta.only is not None and not (meta.only and set(meta.only) <= set(nodes)):
            raise ProtocolError(f"a run only for {meta.only!r:.300}, which do not listen to {meta.names[0]!r}")
        if meta.ids is not None:
            raise ProtocolError("an emit that names its own ids")
        hops = meta.hops if isinstance(meta.hops, list) else [meta.hops]
        if not 0 <= min(hops) <= max(hops) <= MAX_HOPS:
            raise ProtocolError(f"an emit with hops outside of 0 to {MAX_HOPS}")

    def derives(self, derived: list[tuple[int, str]], contexts: list[Context]) -> None:
        """Contexts that a result adds; what is checked from now on may name them."""
        self._derived = len(derived)
        for i, (number, span) in enumerate(derived):
            is_known = 0 <= number < len(contexts) or DERIVED <= number < DERIVED + i
            if not is_known or (number < DERIVED and read_context(contexts[number].trace) is None):
                raise ProtocolError("a context derived from one that is not traced, or that this work does not have")
            if not _SPAN.fullmatch(span):
                raise ProtocolError(f"a context with a parent {span!r:.100}, which is no span")

    def _are_there(self, numbers: list[int], contexts: int) -> bool:
        return all(0 <= n < contexts or DERIVED <= n < DERIVED + self._derived for n in numbers)

    def spans(self, spans: list[Span]) -> None:
        for span in spans:
            if not (_TRACE.fullmatch(span.trace) and _SPAN.fullmatch(span.span) and _SPAN.fullmatch(span.parent)):
                raise ProtocolError("a span whose ids are none")
            names = span.event, span.node, span.outcome, span.kind, span.worker, *span.state
            if len(span.state) > MAX_NAMES or max(map(len, names)) > MAX_NAME_BYTES + 1 or span.code:
                raise ProtocolError(f"a span of {span.event!r:.300} with a name that cannot be one")
            if max(len(span.id), len(span.key or "")) > MAX_SPAN_TEXT or len(span.text) > MAX_TEXT:
                raise ProtocolError(f"a span of {span.event!r:.300} with texts of over {MAX_SPAN_TEXT} characters")
            if not (0 <= span.start <= span.end <= 1 << 63 and 0 <= span.attempt <= MAX_COUNT):
                raise ProtocolError(f"a span of {span.event!r:.300} with times that cannot be")

    def timer(self, timer: Timer, contexts: int) -> None:
        if timer.name is not None:
            self._timer_name(timer.name)
        if timer.emitted is None:
            if timer.name is None:
                raise ProtocolError("a timer without an event and without a name")
            return
        if timer.emitted.events != 1 or len(timer.emitted.contexts) > 1:
            raise ProtocolError(f"a timer with {timer.emitted.events} events; it holds one")
        if not 0 <= timer.delay <= MAX_TIME:
            raise ProtocolError(f"a timer with a delay of {timer.delay} us")
        self.emitted(timer.emitted, contexts)

    def _timer_name(self, name: TimerName) -> None:
        node = self._app.node(name.node)
        if node is None or node.pool != self._pool:
            raise ProtocolError(f"a timer of {name.node!r:.300}, which is not in pool {self._pool!r}")
        try:
            check_timer_name(name.name)
            name.key.decode()
        except ValueError as e:
            raise ProtocolError(f"a timer whose name cannot be: {e}") from None
        if not 1 <= len(name.key) <= MAX_KEY_BYTES:
            raise ProtocolError(f"a timer of a key of 0 or over {MAX_KEY_BYTES} bytes")

    def state(self, changes: StateChanges) -> None:
        node = self._app.node(changes.node)
        if node is None or node.pool != self._pool or not node.states:
            raise ProtocolError(f"state of {changes.node!r:.300}, which has none in pool {self._pool!r}")
        keys, values, expires = changes.keys, changes.values, changes.expires
        if len(values) != len(keys) or (expires is not None and len(expires) != len(keys)):
            raise ProtocolError(f"state of {changes.node!r} in columns of different length")
        if not keys:
            return
        if not min(map(len, keys)) >= 1 or max(map(len, keys)) > MAX_KEY_BYTES:
            raise ProtocolError(f"a key of 0 or over {MAX_KEY_BYTES} bytes in the state of {changes.node!r}")
        try:
            b"\n".join(keys).decode()
        except UnicodeDecodeError:
            raise ProtocolError(f"a key in the state of {changes.node!r} is not UTF-8") from None
        present = [value for value in values if value is not None] if None in values else values
        self._records(changes.node, cast("list[bytes]", present))
        if expires is not None:
            self._expiring(changes.node, values, expires)

    def _records(self, node: str, values: list[bytes]) -> None:
        """Maps of states; what the states are is not looked at. All are read at once, which costs a tenth: what is
        broken so that it fits to its neighbours gets through, and is the failure of the event that reads it."""
        if not values:
            return
        largest = max(map(len, values))
        if largest > self._app.limits.max_result:
            raise ProtocolError(f"a state of {largest} bytes of {node!r}")
        if b"" in values or not set(map(_first, values)) <= _MAPS:
            raise ProtocolError(f"a state of {node!r} that is no map of states")
        try:
            _decode_value(b"".join((b"\xdd", len(values).to_bytes(4, "big"), *values)))
        except (msgspec.MsgspecError, RecursionError):
            raise ProtocolError(f"a state of {node!r} that cannot be read") from None
        if largest > LET_IN and any(is_deeper(value, LET_IN) for value in values):
            raise ProtocolError(f"a state of {node!r} that cannot be read: it has over {LET_IN} levels")

    def _expiring(self, node: str, values: list[bytes | None], expires: list[int]) -> None:
        """The engine reads expiry times itself, so these records have to be readable."""
        if not 0 <= min(expires) <= max(expires) <= MAX_TIME:
            raise ProtocolError(f"a state of {node!r} with an expiry outside of 0 to {MAX_TIME}")
        for value, due in zip(values, expires, strict=True):
            if due and value is not None:
                try:
                    times = _decode_record(value).get("")
                    if times is not None:
                        _decode_expiries(times)
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                    raise ProtocolError(f"a state of {node!r} that expires and is no map of states") from None

    def failure(self, failure: Failure, contexts: int, held: dict[int, tuple[str, str]]) -> None:
        """``held``: (event, node) of the entries that these works retry."""
        slot = self._app.slot(failure.event, failure.node)
        node = self._app.node(failure.node)
        if slot is None or node is None or node.pool != self._pool:
            raise ProtocolError(
                f"a failure of {failure.event!r:.300} at {failure.node!r:.300}, which is no slot of pool {self._pool!r}"
            )
        if failure.hold >= 0 and failure.hold not in held:
            raise ProtocolError(f"a failure of entry {failure.hold}, which is not in this work")
        if failure.hold >= 0 and held[failure.hold] != (failure.event, failure.node):
            raise ProtocolError(f"a failure of entry {failure.hold}, which is another event or of another node")
        if not (-1 <= failure.context < contexts or self._are_there([failure.context], contexts)):
            raise ProtocolError("a failure with a context that this work does not have")
        if failure.key is not None and not 1 <= len(failure.key.encode()) <= MAX_KEY_BYTES:
            raise ProtocolError(f"a failure with a key of 0 or over {MAX_KEY_BYTES} bytes")
        if not 0 <= failure.created <= MAX_TIME:
            raise ProtocolError(f"a failure of an event created at {failure.created}")
        if len(failure.body) > self._largest:
            raise ProtocolError(f"a failed event of {len(failure.body)} bytes, over {self._largest}")
        (meta,) = codec.check_body(failure.body, 1, is_deeper=is_deeper)
        if meta.names != [failure.event]:
            raise ProtocolError(f"a failure of {failure.event!r} whose body is {meta.names!r:.300}")
        if meta.ids is not None or meta.only is not None or not 0 <= codec.hops_of(meta, 0) <= MAX_HOPS:
            raise ProtocolError("a failure whose body has ids, nodes or hops of its own")
        if failure.call is not None:
            self._call(failure.call)

    def _call(self, call: Call) -> None:
        if not (0 < call.timeout <= MAX_TIME // 2 and 1 <= len(call.digest) <= 64):
            raise ProtocolError(f"a call with a time-out of {call.timeout} us, or a digest of {len(call.digest)} bytes")
        to_other = is_foreign(call.event)
        if not (self._app.knows_other(app_of(call.event)) if to_other else call.event in self._app.routing.listeners):
            raise ProtocolError(f"a call of {call.event!r:.300}, which nothing listens to")
        for request in call.requests:
            is_output = request.target.startswith(OUTPUT) and not (
                to_other and request.target == log_to(app_of(call.event))
            )
            if request.events != 1 or request.contexts or is_output:
                raise ProtocolError("a call is one event for each pool that listens, without contexts of its own")
            self.emitted(msgspec.structs.replace(request, contexts=[0]), 1)

    def _is_of_other(self, name: str) -> bool:
        """An event of another app; there are as many names of such as there may be, or fewer."""
        if not is_foreign(name) or not self._app.knows_other(app_of(name)) or len(name.encode()) > 2 * MAX_NAME_BYTES:
            return False
        self._of_others.add(name)
        return len(self._of_others) <= MAX_FOREIGN

    def reply(self, reply: Reply, contexts: int) -> None:
        if not (0 <= reply.context < contexts or self._are_there([reply.context], contexts)):
            raise ProtocolError("a reply to a context that this work does not have")
        if len(reply.data) > self._app.limits.max_event:
            raise ProtocolError(f"a reply of {len(reply.data)} bytes, over {self._app.limits.max_event}")
        try:
            _decode_value(reply.data)
        except (msgspec.MsgspecError, RecursionError):
            raise ProtocolError("a reply that is not one msgpack value") from None
        if is_deeper(reply.data, LET_IN):
            raise ProtocolError(f"a reply that is not one msgpack value of at most {LET_IN} levels")

    def object(self, write: ObjectWrite) -> None:
        what = f"an object {write.namespace!r:.100}/{write.key!r:.200}"
        if self._app.namespaces.get(write.namespace) != "write":
            raise ProtocolError(f"{what}, whose namespace the app may not write")
        try:
            check_write(write)
        except (TypeError, ValueError) as e:
            raise ProtocolError(f"{what}: {e}") from None
        if write.blob and self._app.pins.size_of(write.checksum) != write.size:
            raise ProtocolError(f"{what} of bytes that the worker has not brought")

    def counts(self, processed: dict[str, int], emitted: dict[str, int]) -> None:
        others = {name for name in emitted.keys() - self._names if self._is_of_other(name)}
        strange = (processed.keys() - self._counted) | (emitted.keys() - self._names - others)
        if strange:
            raise ProtocolError(f"counts of {sorted(strange)!r:.300}, which this topology does not have")
        # (What was counted before may be taken back: an event that turns out to wait behind another one.)
        if not all(abs(count) <= MAX_COUNT for counts in (processed, emitted) for count in counts.values()):
            raise ProtocolError(f"a count over {MAX_COUNT}")
