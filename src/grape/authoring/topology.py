"""The topology as an author builds it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import Any, Final, Never, TypedDict, TypeVar, Unpack, get_args

from msgspec import Struct, structs

from grape.authoring.emitter import Node
from grape.authoring.external import External
from grape.authoring.handler import Handler, Key, KeyOf, compile_handler, function_of, key_of, where_of
from grape.authoring.options import refuse_unknown
from grape.authoring.places import caller, place
from grape.authoring.schemas import schema_of
from grape.errors import TopologyError
from grape.model.near import did_you_mean
from grape.model.rate import rate_of
from grape.model.routing import eager_events
from grape.model.topology import (
    DEFAULT_POOL,
    NodeSpec,
    OnFail,
    PoolSpec,
    Runtime,
    SlotSpec,
    StateSpec,
    TopologySpec,
)
from grape.model.values import seconds

Function = TypeVar("Function", bound=Callable[..., Any])

MAX_NAME_BYTES: Final = 255
MAX_BATCH: Final = 8192
MAX_BURST: Final = 1_000_000
MAX_COUNT: Final = 1_000_000
_TIMEOUT: Final = 60.0


class SlotOptions(TypedDict, total=False):
    """The options of a slot, see ``Topology.add_slot``."""

    emits: str | Iterable[str]
    key: Key | None
    retries: int
    backoff: float | timedelta
    backoff_max: float | timedelta
    timeout: float | timedelta | None
    on_fail: OnFail
    ordered: bool
    chain: bool
    concurrency: int
    batch: int
    eager: bool | None
    rate: str | float | None
    burst: int
    long: bool
    pool: str | None
    name: str | None


class _Slot(Struct, frozen=True):
    """One ``add_slot``: its spec and what is needed to compile and to blame it. ``pool`` None: not said. ``is_eager``:
    said of this slot, not of all."""

    spec: SlotSpec
    target: Any
    pool: str | None
    declared_at: str
    scope: dict[str, Any]
    is_long: bool
    is_eager: bool
    key: KeyOf | None = None


class _Pool(Struct, frozen=True):
    """One ``add_pool``."""

    spec: PoolSpec
    declared_at: str


class _Built(Struct, frozen=True):
    spec: TopologySpec
    handlers: dict[str, Handler]


class Topology:
    """The slots of one application: which node gets which event.

    What can be said about one declaration alone is checked there; the rest by ``spec()``, so that ``emits=`` may
    name what is declared later.
    """

    def __init__(self, name: str, *, eager: bool = False) -> None:
        """
        Args:
            eager: of all slots that do not say it themselves, where it is possible.

        Raises:
            TopologyError: the name is empty, too long or has an "@".
        """
        where = _Site().where
        self.name = _checked_name(name, "a topology", where)
        self._eager = _one_of(eager, "eager", (True, False), where)
        self._slots: list[_Slot] = []
        self._outputs: dict[str, str] = {}
        self._pools: dict[str, _Pool] = {}
        self._built: _Built | None = None

    def __repr__(self) -> str:
        return f"<Topology {self.name!r}: {len(self._slots)} slots, {len(self._outputs)} outputs>"

    def add_slot(
        self,
        event: str,
        node: Node | External | Callable[..., Any],
        *,
        emits: str | Iterable[str] = (),
        key: Key | None = None,
        retries: int = 3,
        backoff: float | timedelta = 1.0,
        backoff_max: float | timedelta = 60.0,
        timeout: float | timedelta | None = None,
        on_fail: OnFail = "dead",
        ordered: bool = True,
        chain: bool = True,
        concurrency: int = 100,
        batch: int = 1,
        eager: bool | None = None,
        rate: str | float | None = None,
        burst: int = 1,
        long: bool = False,
        pool: str | None = None,
        name: str | None = None,
        **unknown: Never,
    ) -> None:
        """Hand every ``event`` to ``node``. Times are seconds or timedeltas.

        Args:
            event: name of the event.
            node: an instance of a Node class, a function, or what else can be called (a bound method, a partial, an
                object with ``__call__``); `External` in a pool of lines. It may own many slots.
            emits: names of events that it emits. Declared names are checked when the topology is built, and may chain.
                What a function returns or yields is emitted if there is exactly one.
            key: what it returns or yields gets a key of its own, not that of its event: the name of a field of it, or
                a function of it. None there: no key.
            retries: attempts after the first one.
            backoff: wait before the second attempt; doubles with every further one, with full jitter.
            backoff_max: the longest wait.
            timeout: longest run of one event, 60 s; 0: none.
            on_fail: after the last attempt, "dead" frees the key, "stop" keeps it until an operator acts.
            ordered: later events of the same key wait while one is retried.
            chain: may run at once after the emitting node, in its worker; False: its input is committed before.
            concurrency: events that an async handler works on at once.
            batch: above 1, the handler gets lists of up to that many payloads and returns a list of that length.
            eager: an event that a program sends or calls runs at once, while it is being accepted, so that it is
                answered sooner: the event, and all that came of it, are confirmed by one write to the disk instead of
                two. A handler may then have run for an event that was never accepted, as the machine failed before; so
                what it does outside of Grape must bear that. Every slot of the event has to say so, in one pool. By
                default as the topology.
            rate: events that its handler gets at most, over all workers: "100/s", "20/min", "500/h", or a number a
                second. The rest waits. For handlers that call services of others.
            burst: events of them that it may get at once, after a pause.
            long: its handler may run for minutes or hours: the node gets a pool of its own, named as the node unless
                ``pool`` is given, whose workers take one event at a time, without a timeout unless one is given.
            pool: worker processes to run in; "main" unless given here or at another slot of the node.
            name: the node's name; else its own, else that of its class or function.

        Raises:
            TopologyError: an argument does not fit, or the node has this slot already.
        """
        site = _Site()
        where = site.where
        refuse_unknown("a slot", unknown, SlotOptions.__annotations__)
        _checked_name(event, "an event", where)
        node_name = self._node_name(node, name, where)
        if _one_of(long, "long", (True, False), where):
            pool = node_name if pool is None else pool
            if batch != 1:
                raise TopologyError(
                    f"{where}: a slot with long=True takes one event at a time, not batch={batch!r:.60}"
                )
        if timeout is None:
            timeout = 0.0 if long else _TIMEOUT
        spec = SlotSpec(
            event=event,
            node=node_name,
            emits=tuple(dict.fromkeys((*_names(emits, where), *_names(getattr(node, "emits", ()), where)))),
            retries=_whole(retries, "retries", 0, MAX_COUNT, where),
            backoff=_seconds(backoff, "backoff", where),
            backoff_max=_seconds(backoff_max, "backoff_max", where),
            timeout=_seconds(timeout, "timeout", where),
            on_fail=_one_of(on_fail, "on_fail", get_args(OnFail), where),
            ordered=_one_of(ordered, "ordered", (True, False), where),
            chain=_one_of(chain, "chain", (True, False), where),
            concurrency=_whole(concurrency, "concurrency", 1, MAX_COUNT, where),
            batch=_whole(batch, "batch", 1, MAX_BATCH, where),
            where=node.where if isinstance(node, External) else where_of(node),
            eager=self._eager if eager is None else _one_of(eager, "eager", (True, False), where),
            rate=0.0 if rate is None else _rate(rate, where),
            burst=_whole(burst, "burst", 1, MAX_BURST, where),
        )
        if burst != 1 and rate is None:
            raise TopologyError(f"{where}: burst={burst} belongs to a rate=, and there is none")
        if spec.backoff_max < spec.backoff:
            raise TopologyError(f"{where}: backoff_max ({spec.backoff_max:g} s) is below backoff ({spec.backoff:g} s)")
        if pool is not None:
            _checked_name(pool, "a pool", where)
        self._check_node(spec, node, pool, where)
        checked = _checked_key(key, spec, node, where)
        self._slots.append(_Slot(spec, node, pool, where, site.scope, long, bool(eager), checked))
        self._built = None

    def slot(self, event: str, **options: Unpack[SlotOptions]) -> Callable[[Function], Function]:
        """Decorator: a function becomes a slot; the options are those of ``add_slot``. Returns the function itself.

        The function gets the payload, decoded to its annotation, and what it annotates as Event, Context or State.

        Raises:
            TopologyError: as ``add_slot``.
        """

        def declare(function: Function) -> Function:
            self.add_slot(event, function, **options)
            return function

        return declare

    def add_output(self, name: str) -> None:
        """Events called ``name`` leave the topology: nothing listens to them inside, the outside takes them.

        Raises:
            TopologyError: the name does not fit, or is an output already.
        """
        where = _Site().where
        _checked_name(name, "an output", where)
        if name in self._outputs:
            raise TopologyError(f"{where}: {name!r} is an output already, from {self._outputs[name]}")
        self._outputs[name] = where
        self._built = None

    def add_pool(
        self, name: str, *, runtime: Runtime = "python", entry: str | Iterable[str] = (), **unknown: Never
    ) -> None:
        """Declare a pool: worker processes and event logs of its own. ``pool="x"`` at a slot does so too.

        Args:
            runtime: what runs its workers. Those of "node", "perl" and "exec" (any executable that speaks the worker
                protocol) tell their slots themselves. The nodes of "lines" (any executable that reads and writes
                lines) are declared here: ``add_slot("word", External("count"), pool=name)``.
            entry: the file that it runs, relative to the app's directory; or a list of it and further arguments.

        Raises:
            TopologyError: the name does not fit, or is a pool already; another runtime than Python lacks its entry.
        """
        where = _Site().where
        refuse_unknown("add_pool", unknown, ("runtime", "entry"))
        _checked_name(name, "a pool", where)
        if name in self._pools:
            raise TopologyError(f"{where}: {name!r} is a pool already, from {self._pools[name].declared_at}")
        _one_of(runtime, "runtime", get_args(Runtime), where)
        words = (entry,) if isinstance(entry, str) else tuple(entry)
        if not all(isinstance(word, str) and word for word in words):
            raise TopologyError(f"{where}: entry= is a file, or a list of it and arguments, not {entry!r:.60}")
        if runtime != "python" and not words:
            raise TopologyError(f"{where}: a pool with runtime={runtime!r} needs entry=: the file that it runs")
        if runtime == "python" and words:
            raise TopologyError(
                f"{where}: entry= is for other runtimes; what a pool of Python runs are the nodes with pool={name!r}"
            )
        self._pools[name] = _Pool(PoolSpec(name, runtime=runtime, entry=words), where)
        self._built = None

    def spec(self) -> TopologySpec:
        """The topology as plain data.

        Raises:
            TopologyError: it cannot be built as written; the text says what, where, why and what to do.
        """
        return self._build().spec

    @property
    def handlers(self) -> dict[str, Handler]:
        """What a worker calls, by node name.

        Raises:
            TopologyError: as ``spec``.
        """
        return self._build().handlers

    def _node_name(self, node: Any, name: str | None, where: str) -> str:
        """The name of the node, and whether it can be one at all."""
        _check_target(node, where)
        if name is None:
            known = next((slot.spec.node for slot in self._slots if _same(slot.target, node)), None)
            name = known or _own_name(node)
        if name == "<lambda>":
            raise TopologyError(f"{where}: a lambda has no name; pass name=, or write a function")
        return _checked_name(name, "a node", where)

    def _check_node(self, spec: SlotSpec, node: Any, pool: str | None, where: str) -> None:
        """Check a new slot against those of the same node."""
        for other in self._slots:
            same = _same(other.target, node)
            if same and isinstance(node, Node) and other.spec.node != spec.node:
                raise TopologyError(
                    f"{where}: this node is called {other.spec.node!r} at {other.declared_at} and {spec.node!r} here; "
                    f"one instance has one name, make a second one: {type(node).__qualname__}(...)"
                )
            if other.spec.node != spec.node:
                continue
            if not same:
                raise TopologyError(
                    f"{where}: two nodes are called {spec.node!r}: {other.spec.where} (slot {other.spec.event!r}) and "
                    f"{spec.where} (slot {spec.event!r}). Pass name= to one of them, or one instance to both slots"
                )
            if other.spec.event == spec.event:
                raise TopologyError(
                    f"{where}: node {spec.node!r} listens to {spec.event!r} already, from {other.declared_at}"
                )
            if pool is not None and other.pool is not None and pool != other.pool:
                raise TopologyError(
                    f"{where}: node {spec.node!r} cannot be in two pools: {other.pool!r} at {other.declared_at}, "
                    f"{pool!r} here. Use a second node with another name="
                )
            if other.spec.batch != spec.batch:
                raise TopologyError(
                    f"{where}: node {spec.node!r} has batch={other.spec.batch} at {other.declared_at} and "
                    f"batch={spec.batch} here; all slots of a node have the same"
                )

    def _build(self) -> _Built:
        if self._built is None:
            if not self._slots and not self._describe_themselves:
                raise TopologyError(f"topology {self.name!r} has no slots; declare one with add_slot(event, node)")
            self._check_outputs()
            self._check_emits()
            self._check_runtimes()
            handlers = self._compile()
            spec = self._specify(handlers)
            self._check_eager(spec)
            self._built = _Built(spec, handlers)
        return self._built

    @property
    def _describe_themselves(self) -> list[str]:
        """Pools whose slots only their workers know."""
        return [name for name, pool in self._pools.items() if pool.spec.describes_itself]

    def _check_runtimes(self) -> None:
        """Nodes are in pools that can run them."""
        said = {slot.spec.node: slot.pool for slot in self._slots if slot.pool is not None}
        for slot in self._slots:
            pool = said.get(slot.spec.node, DEFAULT_POOL)
            runtime = self._pools[pool].spec.runtime if pool in self._pools else "python"
            if runtime == "lines" and not isinstance(slot.target, External):
                raise TopologyError(
                    f"{slot.declared_at}: {slot.spec.node!r} is Python, but pool {pool!r} has runtime='lines'; its "
                    f"nodes are declared with External: add_slot({slot.spec.event!r}, External({slot.spec.node!r}), "
                    f"pool={pool!r})"
                )
            if runtime not in ("python", "lines"):
                raise TopologyError(
                    f"{slot.declared_at}: the workers of pool {pool!r} (runtime={runtime!r}) declare their slots "
                    f"themselves, in {self._pools[pool].spec.entry[0]}; node {slot.spec.node!r} cannot be put there"
                )
            if runtime == "python" and isinstance(slot.target, External):
                raise TopologyError(
                    f"{slot.declared_at}: External({slot.spec.node!r}) is a node of a pool with runtime='lines': "
                    f"declare one with add_pool(NAME, runtime='lines', entry=...), and say pool=NAME here"
                )

    def _check_outputs(self) -> None:
        for slot in self._slots:
            if slot.spec.event in self._outputs:
                raise TopologyError(
                    f"{self._outputs[slot.spec.event]}: {slot.spec.event!r} cannot be an output: node "
                    f"{slot.spec.node!r} listens to it ({slot.declared_at}). Emit another name for the outside"
                )

    def _check_emits(self) -> None:
        known = {slot.spec.event for slot in self._slots} | self._outputs.keys()
        for slot in self._slots:
            for event in slot.spec.emits:
                if event.startswith(f"{self.name}@"):
                    raise TopologyError(
                        f"{slot.declared_at}: slot {slot.spec.event!r} ({slot.spec.node}) declares emits={event!r}; "
                        f"an event of the own topology is written without it: {event.partition('@')[2]!r}"
                    )
                if event not in known and "@" not in event and not self._describe_themselves:
                    raise TopologyError(
                        f"{slot.declared_at}: slot {slot.spec.event!r} ({slot.spec.node}) declares emits={event!r}, "
                        f"which is neither a slot nor an output of {self.name!r}. {_hint(event, known)}"
                        f"Declare it with add_slot({event!r}, ...) or add_output({event!r})"
                    )

    def _check_eager(self, spec: TopologySpec) -> None:
        can_be = eager_events(spec)
        for slot in self._slots:
            event, node = slot.spec.event, slot.spec.node
            if slot.is_eager and event not in can_be:
                other = next(o for o in self._slots if o.spec.event == event and _differs(o, slot, spec))
                raise TopologyError(
                    f"{slot.declared_at}: slot {event!r} ({node}) has eager=True, and so must all that listen to "
                    f"{event!r}, in one pool; see {other.spec.node!r} at {other.declared_at}. Say it there too, or let "
                    f"{node!r} emit another event for it"
                )

    def _compile(self) -> dict[str, Handler]:
        handlers: dict[str, Handler] = {}
        for slot in self._slots:
            name = slot.spec.node
            if name not in handlers and not isinstance(slot.target, External):
                handlers[name] = compile_handler(
                    name, slot.target, batch=slot.spec.batch, scope=slot.scope, keys=self._keys_of(name)
                )
        return handlers

    def _keys_of(self, node: str) -> dict[str, KeyOf]:
        """What gives results their keys, by event."""
        return {s.spec.event: s.key for s in self._slots if s.spec.node == node and s.key is not None}

    def _specify(self, handlers: dict[str, Handler]) -> TopologySpec:
        said = {slot.spec.node: slot.pool for slot in self._slots if slot.pool is not None}
        targets = {slot.spec.node: slot.target for slot in self._slots}
        nodes = tuple(
            NodeSpec(
                name=name,
                pool=said.get(name, DEFAULT_POOL),
                states=target.states if isinstance(target, External) else _states_of(handlers[name]),
                is_async=name in handlers and handlers[name].is_async,
                objects=isinstance(target, External) and target.objects,
            )
            for name, target in targets.items()
        )
        pools = dict.fromkeys((*self._pools, *(node.pool for node in nodes)))
        long = {slot.spec.node: slot for slot in self._slots if slot.is_long}
        long_pools = {node.pool: long[node.name] for node in nodes if node.name in long}
        for node in nodes:
            if node.pool in long_pools and node.name not in long:
                slot = long_pools[node.pool]
                raise TopologyError(
                    f"{slot.declared_at}: slot {slot.spec.event!r} ({slot.spec.node}) has long=True, so that only such "
                    f"nodes can be in pool {node.pool!r}; {node.name!r} has to go to another one (pool=)"
                )
        known = {pool: self._pools[pool].spec if pool in self._pools else PoolSpec(pool) for pool in pools}
        return TopologySpec(
            name=self.name,
            nodes=nodes,
            slots=_with_schemas(self._slots, handlers),
            outputs=tuple(self._outputs),
            pools=tuple(
                structs.replace(known[pool], long=pool in long_pools)
                for pool in sorted(pools, key=lambda pool: pool != DEFAULT_POOL)
            ),
        )


class _Site:
    """The user's line that is being executed, and the local names that annotations there may use."""

    def __init__(self) -> None:
        frame = caller()
        self.where = place(frame.f_code.co_filename, frame.f_lineno)
        self.scope = {} if frame.f_locals is frame.f_globals else dict(frame.f_locals)


def _with_schemas(slots: list[_Slot], handlers: dict[str, Handler]) -> tuple[SlotSpec, ...]:
    told = {
        name: (schema_of(handler.payload_type), schema_of(handler.result_type)) for name, handler in handlers.items()
    }
    specs = []
    for slot in slots:
        takes, gives = told.get(slot.spec.node, ("", ""))
        specs.append(structs.replace(slot.spec, takes=takes, gives=gives) if takes or gives else slot.spec)
    return tuple(specs)


def _differs(one: _Slot, other: _Slot, spec: TopologySpec) -> bool:
    """They hear the same event, and cannot both be eager."""
    return not one.spec.eager or spec.node(one.spec.node).pool != spec.node(other.spec.node).pool


def _states_of(handler: Handler) -> tuple[StateSpec, ...]:
    return tuple(StateSpec(state, declared.ttl) for state, declared in handler.states.items())


def _same(one: Any, other: Any) -> bool:
    """Are these the same node? Every access of a bound method makes a new object, so those are compared by parts."""
    if inspect.ismethod(one) and inspect.ismethod(other):
        return one.__self__ is other.__self__ and one.__func__ is other.__func__
    return one is other


def _own_name(node: Any) -> Any:
    if isinstance(node, External):
        return node.name
    if isinstance(node, partial):
        return _own_name(node.func)
    if not isinstance(node, Node):
        has_name = inspect.isroutine(node) or hasattr(node, "__wrapped__")
        return node.__name__ if has_name else type(node).__name__
    name = getattr(node, "name", None)
    return type(node).__name__ if name is None else name


def _check_target(node: Any, where: str) -> None:
    """Refuse what cannot be a node, with the remedy."""
    if isinstance(node, Node | External):
        return
    if isinstance(node, type):
        raise TopologyError(f"{where}: {node.__qualname__} is a class; pass an instance: {node.__qualname__}()")
    if inspect.ismethod(node) and isinstance(node.__self__, Node):
        raise TopologyError(
            f"{where}: {node.__qualname__} is a method of a node; pass the node itself, its process() is what runs"
        )
    if not callable(node) or not inspect.isfunction(function_of(node)):
        raise TopologyError(
            f"{where}: a node is an instance of a Node class or a function written in Python, not "
            f"{type(node).__name__}: {node!r:.80}"
        )


def _checked_key(key: Any, spec: SlotSpec, node: Any, where: str) -> KeyOf | None:
    """What gives the results of a slot their keys."""
    if key is None:
        return None
    if not isinstance(key, str) and not callable(key):
        raise TopologyError(f"{where}: key= is a field of what is returned, or a function of it, not {key!r:.60}")
    if isinstance(node, External):
        raise TopologyError(f"{where}: key= is for Python; the program of {spec.node!r} says the key itself")
    if len(spec.emits) != 1:
        raise TopologyError(
            f"{where}: key= is for what the handler returns, which is emitted if emits= has exactly one name; "
            f"emit(..., key=) says it otherwise"
        )
    return key_of(key, spec.node)


def _checked_name(name: Any, what: str, where: str) -> str:
    if not isinstance(name, str):
        raise TopologyError(f"{where}: the name of {what} is text (str), not {type(name).__name__}: {name!r:.60}")
    if not name or not name.isprintable():
        raise TopologyError(
            f"{where}: the name of {what} cannot be {name!r:.60}: it has to be printable, not empty text"
        )
    if "@" in name:
        raise TopologyError(
            f"{where}: the name of {what} cannot contain '@' ({name!r:.60}), which stands between app and event"
        )
    if len(name.encode()) > MAX_NAME_BYTES:
        raise TopologyError(
            f"{where}: the name of {what} has at most {MAX_NAME_BYTES} bytes of UTF-8, "
            f"{name[:30]!r}... has {len(name.encode())}"
        )
    return name


def _names(emits: Any, where: str) -> tuple[str, ...]:
    """The names in an ``emits=``. Those of other apps are written ``app@event``."""
    if isinstance(emits, str):
        emits = (emits,)
    if not isinstance(emits, Iterable):
        raise TopologyError(f"{where}: emits= is a name or several, not {type(emits).__name__}: {emits!r:.60}")
    names = tuple(emits)
    for name in names:
        for part in name.split("@", 1) if isinstance(name, str) else (name,):
            _checked_name(part, "an event in emits=", where)
    return names


def _whole(value: Any, option: str, least: int, most: int, where: str) -> int:
    if type(value) is not int or not least <= value <= most:
        raise TopologyError(f"{where}: {option}= is a whole number from {least} to {most}, not {value!r:.60}")
    return value


def _rate(value: Any, where: str) -> float:
    try:
        return rate_of(value)
    except ValueError as e:
        raise TopologyError(f"{where}: rate=: {e}") from None


def _seconds(value: Any, option: str, where: str) -> float:
    try:
        return seconds(value, f"{option}=")
    except (TypeError, ValueError) as e:
        raise TopologyError(f"{where}: {e}") from None


def _one_of(value: Any, option: str, allowed: tuple[Any, ...], where: str) -> Any:
    if not any(type(value) is type(choice) and value == choice for choice in allowed):
        near = _hint(value, [choice for choice in allowed if isinstance(choice, str)])
        choices = " or ".join(repr(choice) for choice in allowed)
        raise TopologyError(f"{where}: {option}= is {choices}, not {value!r:.60}. {near}".rstrip())
    return value


def _hint(name: Any, known: Iterable[str]) -> str:
    hint = did_you_mean(name, known)
    return f"D{hint[1:]} " if hint else ""
