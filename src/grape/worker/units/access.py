"""The state of one event, as its handler sees it."""

from __future__ import annotations

from typing import Any

from grape.errors import NoKey
from grape.model.event import Event
from grape.model.values import PLAIN, Raw
from grape.worker.state import MISSING, StateTable


def no_key(node: str, state: str, event: str) -> NoKey:
    return NoKey(
        f"node {node!r} used its state {state!r} in an event {event!r} that has no key; "
        f"emit it with key=..., or feed it with a key"
    )


class Cell:
    """What a function gets for a ``State`` argument: ``value`` reads, writes and deletes."""

    __slots__ = ("_access", "_name")

    def __init__(self, access: StateAccess, name: str) -> None:
        self._access = access
        self._name = name

    @property
    def value(self) -> Any:
        return self._access.read(self._name)

    @value.setter
    def value(self, value: Any) -> None:
        self._access.write(self._name, value)

    @value.deleter
    def value(self) -> None:
        self._access.delete(self._name)


class StateAccess:
    """The state of one event while its handler runs: read on demand, applied only when it has succeeded."""

    def __init__(self, node: str, table: StateTable, event: Event, now_us: int) -> None:
        self._node = node
        self._table = table
        self._event = event
        self._now = now_us
        self._seen: dict[str, Any] = {}
        self._values: dict[str, Any] = {}
        self._prolonged: set[str] = set()

    def _cached(self, name: str) -> Any:
        key = self._event.key
        if key is None:
            raise no_key(self._node, name, self._event.name)
        if name not in self._seen:
            self._seen[name] = self._table.cached(key, name, self._now)
        return self._seen[name]

    def read(self, name: str) -> Any:
        if name in self._values and self._values[name] is not MISSING:
            return self._values[name]
        cached = self._cached(name)
        if name in self._values:
            cached = MISSING
        value = self._table.types[name].read(cached)
        if type(value) not in PLAIN:
            self._values[name] = value
        return value

    def write(self, name: str, value: Any, assigned: bool = True) -> None:
        """``assigned`` prolongs a state with a ttl, whether or not the value is another one."""
        self._cached(name)
        self._values[name] = value
        if assigned and self._table.types[name].ttl_us is not None:
            self._prolonged.add(name)

    def delete(self, name: str) -> None:
        self._cached(name)
        self._values[name] = MISSING

    def apply(self) -> None:
        """The event has succeeded: hand the changes to the table.

        Raises:
            BadValue, TooLarge, BadState: a new value cannot be stored; nothing is changed then.
        """
        changes: dict[str, Any] = {}
        for name, value in self._values.items():
            seen = self._seen[name]
            new = MISSING if value is MISSING else self._table.encode_value(name, value)
            if name in self._prolonged and new is not MISSING:
                pass
            elif new is not seen and not (new is MISSING or seen is MISSING) and type(new) is type(seen):
                if bytes(new) == bytes(seen) if type(new) is Raw else new == seen:
                    continue
            elif new is seen or (seen is MISSING and is_default(self._table, name, new)):
                continue
            changes[name] = new
        if changes:
            key = self._event.key
            assert key is not None
            self._table.store(key, changes, self._now)


def is_default(table: StateTable, name: str, new: Any) -> bool:
    """Whether ``new`` is the cached form of the default: loading it and leaving it alone is no change."""
    default = table.encode_value(name, table.types[name].make_default())
    return type(new) is type(default) and bool(new == default)
