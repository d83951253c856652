"""Orders that are given at the door: what they say is checked here, and done partition by partition."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import groupby
from typing import Final, TypeVar

import msgspec

from grape.engine.engine import Engine
from grape.engine.orders.order import Action, LetterOrder, Order, StateOrder
from grape.engine.orders.orders import Orders
from grape.engine.orders.waiting import LogOrder
from grape.errors import ProtocolError, UsageError
from grape.host.attaching import Attaching
from grape.host.host import Host
from grape.host.house import Verb
from grape.host.streams import Say, Streams
from grape.model.address import MAX_KEY_BYTES, PartitionId, partition_of
from grape.model.near import no_such
from grape.model.spots import Place, Spot, parse_places, parse_spot
from grape.model.stored import AppRecord, state_key
from grape.protocol.door import Answer, Ask
from grape.protocol.orders import (
    BURY_EVENTS,
    DELETE_STATE,
    DROP,
    DROP_EVENTS,
    MAX_ID,
    MOST,
    RETRY,
    Changes,
    Events,
    Letters,
    States,
)

T = TypeVar("T", Letters, Events, States)

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = {kind: msgspec.msgpack.Decoder(kind).decode for kind in (Letters, Events, States)}


def ordering(engine: Engine, attaching: Attaching, streams: Streams, host: Host) -> dict[str, Verb]:
    """See docs/door.md, section 8."""
    orders = Orders(engine, host.soon, host.later, attaching.own)

    def freed(log: PartitionId) -> None:
        streams.freed(log)
        attaching.freed(log)

    orders.freed = freed
    verbs: dict[str, Callable[[AppRecord, Ask], list[Order]]] = {
        RETRY: partial(_letters, "retry"),
        DROP: partial(_letters, "drop"),
        DROP_EVENTS: partial(_events, False),
        BURY_EVENTS: partial(_events, True),
        DELETE_STATE: _states,
    }

    def verb(make: Callable[[AppRecord, Ask], list[Order]], ask: Ask, say: Say) -> None:
        _Several(orders, make(engine.app.record, ask), ask.number, say).begin()

    return {name: partial(verb, make) for name, make in verbs.items()}


class _Several:
    """The parts of one question, one partition after the other."""

    def __init__(self, orders: Orders, parts: Iterable[Order], number: int, say: Say) -> None:
        self._orders = orders
        self._left = deque(parts)
        self._number = number
        self._say = say
        self._changes = Changes()

    def begin(self) -> None:
        """
        Raises:
            Full: too many are under way.
        """
        self._orders.give(self._left.popleft(), self._done)

    def _done(self, changes: Changes) -> None:
        self._changes.add(changes)
        if self._left:
            self._orders.give(self._left.popleft(), self._done)
        else:
            self._say(Answer(self._number, msgspec.Raw(_encode(self._changes))))


def _letters(action: Action, record: AppRecord, ask: Ask) -> list[Order]:
    argument = _argument(ask, Letters)
    places: list[Place] = sorted(parse_places(record, _ids(argument.ids)))
    return [
        LetterOrder(record, log, partition, group, action, argument.held)
        for (log, partition), group in groupby(places, lambda place: (place.log, place.partition))
    ]


def _events(bury: bool, record: AppRecord, ask: Ask) -> list[Order]:
    spots: list[Spot] = sorted(parse_spot(record, text) for text in _ids(_argument(ask, Events).ids))
    return [
        LogOrder(record, log, partition, group, bury)
        for (log, partition), group in groupby(spots, lambda spot: (spot.log, spot.partition))
    ]


def _states(record: AppRecord, ask: Ask) -> list[Order]:
    argument = _argument(ask, States)
    _check_count(argument.keys, "keys")
    if not all(1 <= len(key) <= MAX_KEY_BYTES for key in argument.keys):
        raise ProtocolError(f"an order for a key of 0 or over {MAX_KEY_BYTES} bytes")
    node = record.nodes.get(argument.node)
    if node is None:
        raise UsageError(no_such("node", argument.node, record.nodes, record.name))
    rows: dict[int, list[tuple[bytes, bytes]]] = {}
    for key in argument.keys:
        number = partition_of(key.decode("utf-8", "replace"), record.partitions)
        rows.setdefault(number, []).append((state_key(node.id, key), key))
    pool = record.logs[node.pool]
    return [StateOrder(node.pool, PartitionId(record.id, pool, number), rows[number]) for number in sorted(rows)]


def _argument(ask: Ask, kind: type[T]) -> T:
    """
    Raises:
        ProtocolError: it is none.
    """
    try:
        return _decode[kind](ask.argument)  # type: ignore[return-value]
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise ProtocolError(f"the argument of {ask.verb!r:.100}: {e}") from None


def _ids(ids: list[str]) -> set[str]:
    _check_count(ids, "ids")
    if any(len(one) > MAX_ID for one in ids):
        raise ProtocolError(f"an order with an id of over {MAX_ID:,} characters")
    return set(ids)


def _check_count(given: list[str] | list[bytes], what: str) -> None:
    if not 1 <= len(given) <= MOST:
        raise ProtocolError(f"an order for {len(given):,} {what}; it has 1 to {MOST:,}")
