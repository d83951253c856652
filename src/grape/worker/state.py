"""Keyed state in the worker: a cache of committed values, and what this work has changed.

A record is what one (node, key) stores: a msgpack map {state name: value}; with ttl, expiry times (microseconds of wall
time) stand under the empty name, and so do versions above 1, of the name behind an "@". Plain values are kept as
objects, all others encoded, so that a handler that changes an object in place changes nothing until its event has
succeeded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from grape.authoring.raised import line_of
from grape.authoring.state import State
from grape.errors import HandlerError
from grape.model import own
from grape.model.stored import VERSION
from grape.model.values import PLAIN, Raw, decode, encode, to_value
from grape.protocol.messages import StateChanges
from grape.worker.blame import user_traceback

MISSING: Final = object()
_ENTRY_OVERHEAD: Final = 150
"""Bytes that a cached entry costs beside its encoded value: text key, dict slots, object headers. Measured with keys of
ten characters and integers."""

_SIZED: Final = frozenset({str, bytes, Raw})

_decode_record = msgspec.msgpack.Decoder(dict[str, Raw]).decode


_decode_unfit = msgspec.msgpack.Decoder(tuple[int, Raw, str]).decode
_UNFIT: Final = b"\xc1"
"""Begins the cached form of what could not be upgraded: no msgpack begins so."""


class BadState(HandlerError):
    code = "bad-state"


class StateType:
    """How one `State` is read from and written to its cached form."""

    def __init__(self, name: str, state: State[Any]) -> None:
        self.name = name
        self.ttl_us = None if state.ttl is None else int(state.ttl * 1e6)
        self.plain = state.is_plain
        self.version = state.version
        self.make_default: Callable[[], Any] = state.make_default
        self._upgrade = state.upgrade
        self._decoder = own.decoder(state.value_type)
        default = state.make_default()
        self.default = default if type(default) in PLAIN else MISSING
        """The default itself if it is immutable, else MISSING: then it is made anew for each event."""

    def read(self, cached: Any) -> Any:
        """The value a handler sees, from its cached form (MISSING: the default)."""
        if cached is MISSING:
            return self.default if self.default is not MISSING else self.make_default()
        if type(cached) is not Raw:
            return cached
        try:
            return self._decoder(cached)
        except msgspec.DecodeError as e:
            unfit = _unfit(cached)
            if unfit is not None:
                raise BadState(unfit[2]) from None
            raise BadState(f"the stored value of state {self.name!r} does not fit its type: {e}") from None

    def load(self, raw: Raw, version: int) -> Any:
        """The cached form of what is stored, in the form of ``version``."""
        if version != self.version:
            try:
                raw = self._upgraded(raw, version)
            except Exception as e:
                where = f"{line_of(e)}\n{trace}" if (trace := user_traceback(e)) else line_of(e)
                text = f"state {self.name!r} of version {version} cannot be read as version {self.version}: {where}"
                return Raw(_UNFIT + encode([version, raw, text]))
        if self.plain:
            try:
                value = self._decoder(raw)
            except msgspec.ValidationError:
                return Raw(bytes(raw))
            if type(value) in PLAIN:
                return value
        return Raw(bytes(raw))

    def _upgraded(self, raw: Raw, version: int) -> Raw:
        if version > self.version or self._upgrade is None:
            raise BadState("it was written by newer code; run that, or delete it")
        packed = Raw(own.encode(self._upgrade(decode(raw), version)))
        self._decoder(packed)
        return packed


def _apart(beside: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """(versions, expiry times) of a record, by name of the state."""
    versions = {name[1:]: number for name, number in beside.items() if name.startswith(VERSION)}
    return versions, beside if not versions else {n: at for n, at in beside.items() if not n.startswith(VERSION)}


def _as_stored(cached: Any, version: int) -> tuple[int, Any]:
    """What could not be read stays what it was."""
    unfit = _unfit(cached) if type(cached) is Raw else None
    return (version, cached) if unfit is None else unfit[:2]


def _unfit(cached: Raw) -> tuple[int, Raw, str] | None:
    """(version, what is stored, why) of what could not be upgraded."""
    view = memoryview(cached)
    return _decode_unfit(view[1:]) if view[0] == _UNFIT[0] else None


class StateTable:
    """The records of one node in one partition.

    ``values``: key -> cached form; a bare value for a node with one State, else a dict of them. A key that is known to
    have no record is cached as MISSING.
    """

    def __init__(self, node: str, states: dict[str, State[Any]], max_event: int, complete: bool) -> None:
        self.node = node
        self.types = {name: StateType(name, state) for name, state in states.items()}
        self.single = next(iter(self.types.values())) if len(self.types) == 1 else None
        self.has_ttl = any(t.ttl_us is not None for t in self.types.values())
        self.has_versions = any(t.version > 1 for t in self.types.values())
        self.values: dict[str, Any] = {}
        self.dirty: dict[str, None] = {}
        self.in_use: set[str] = set()
        """Keys whose event is running while others may be evicted."""
        self.expires: dict[str, dict[str, int]] = {}
        self.extras: dict[str, dict[str, Raw]] = {}
        """By key: values of states that this program does not have; they stay what they were."""
        self._beside_extras: dict[str, dict[str, int]] = {}
        """Their versions and expiry times, as they stand in the record."""
        self._unscheduled: set[str] = set()
        """Keys whose record the engine will not look at when it expires."""
        self.complete = complete
        self._written = 0
        self._max_event = max_event
        self._average = 0.0

    # -------------------------------------------------------------- reading

    def missing(self, keys: Iterable[str | None]) -> list[str]:
        """Keys that have to be asked for, sorted: the store finds neighbours faster."""
        known = self.values
        unknown = [key for key in set(keys) if key not in known and key is not None]
        if self.complete:
            known.update(dict.fromkeys(unknown, MISSING))
            return []
        return sorted(unknown)

    def fill(self, keys: list[str], records: list[bytes | None]) -> None:
        """Take the answer to what `missing` returned."""
        for key, record in zip(keys, records, strict=True):
            if record is None:
                self.values[key] = MISSING
            else:
                self.values[key] = self._unpack(key, record)
                self._note_size(len(record), 1)

    def _unpack(self, key: str, record: bytes) -> Any:
        fields = _decode_record(record)
        beside = fields.pop("", None)
        versions: dict[str, int] = {}
        if beside is not None:
            known_beside: dict[str, int] = decode(beside)
            versions, expiries = _apart(known_beside)
            gone = {name: at for name, at in known_beside.items() if name.removeprefix(VERSION) not in self.types}
            if gone:
                self._beside_extras[key] = gone
            self.has_versions = self.has_versions or bool(versions)
            if expiries:
                self.expires[key] = expiries
                if len(expiries) < len(fields):
                    self._unscheduled.add(key)
        if self.single is not None and len(fields) == 1 and self.single.name in fields:
            return self.single.load(fields[self.single.name], versions.get(self.single.name, 1))
        known: dict[str, Any] = {}
        for name, raw in fields.items():
            if name in self.types:
                known[name] = self.types[name].load(raw, versions.get(name, 1))
            else:
                self.extras.setdefault(key, {})[name] = Raw(bytes(raw))
        if self.single is not None:
            return known.get(self.single.name, MISSING)
        return known or MISSING

    def try_records(self, records: list[bytes]) -> list[tuple[int, str]]:
        """(index, why) of those that no event could read."""
        found = []
        for i, record in enumerate(records):
            try:
                self.fill(["?"], [record])
                for name, known in self.types.items():
                    known.read(self.cached("?", name, 0))
            except (BadState, msgspec.MsgspecError, ValueError) as e:
                found.append((i, str(e)))
        return found

    def cached(self, key: str, name: str, now_us: int) -> Any:
        """The cached form of one state of a key; MISSING if unset or expired."""
        record = self.values.get(key, MISSING)
        if record is not MISSING and self.single is None:
            record = record.get(name, MISSING)
        if record is not MISSING and self.has_ttl:
            due = self.expires.get(key, {}).get(name)
            if due is not None and due <= now_us:
                return MISSING
        return record

    def records(self, keys: Iterable[str | None], now_us: int) -> dict[str, dict[str, Any]]:
        """What is stored of these keys, by state name; a key without anything is left out."""
        out: dict[str, dict[str, Any]] = {}
        values, single = self.values, self.single
        for key in set(keys):
            if key is None or values[key] is MISSING:
                continue
            if single is not None and not self.has_ttl:
                out[key] = {single.name: values[key]}
            else:
                found = {name: self.cached(key, name, now_us) for name in self.types}
                out[key] = {name: value for name, value in found.items() if value is not MISSING}
        return out

    # -------------------------------------------------------------- writing

    def encode_value(self, name: str, value: Any) -> Any:
        """The cached form of a new value.

        Raises:
            BadValue, TooLarge: it cannot be stored.
        """
        if type(value) is State:
            raise BadState(f"state {name!r} was assigned a State; assign a value")
        stored = to_value(value, self._max_event)
        if type(stored) in _SIZED:
            self._written += len(stored)
        return stored

    def store(self, key: str, changes: dict[str, Any], now_us: int) -> None:
        """Apply an event's changes {name: cached form, MISSING deletes}. The event has succeeded."""
        if self.single is not None:
            self.values[key] = changes[self.single.name]
        else:
            record = self.values.get(key, MISSING)
            record = {} if record is MISSING else dict(record)
            for name, value in changes.items():
                if value is MISSING:
                    record.pop(name, None)
                else:
                    record[name] = value
            self.values[key] = record or MISSING
        self.dirty[key] = None
        if self.has_ttl:
            due = dict(self.expires.get(key, ()))
            if max(due.values(), default=0) <= now_us or MISSING in changes.values():
                self._unscheduled.add(key)  # what had kept the record from expiring may be gone
            for name, value in changes.items():
                ttl = self.types[name].ttl_us
                if value is MISSING:
                    due.pop(name, None)
                elif ttl is not None:
                    due[name] = now_us + ttl
            self.expires[key] = due

    def note_written(self, size: int) -> None:
        """So many bytes of values were stored."""
        self._written += size

    def take_written(self) -> int:
        """Bytes of text, bytes and encoded values that were stored since the last time this was asked."""
        written, self._written = self._written, 0
        return written

    def _record(self, key: str) -> bytes | None:
        value = self.values[key]
        if self.single is not None:
            fields = {} if value is MISSING else {self.single.name: value}
        else:
            fields = {} if value is MISSING else dict(value)
        extras = self.extras.get(key)
        if extras:
            fields = {**fields, **extras}
        if not fields:
            self.expires.pop(key, None)
            return None
        beside = dict(self._beside_extras.get(key, ()))
        if self.has_ttl:
            beside |= {name: at for name, at in self.expires.get(key, {}).items() if name in fields}
        if self.has_versions:
            for name in self.types.keys() & fields.keys():
                version, fields[name] = _as_stored(fields[name], self.types[name].version)
                if version > 1:
                    beside[VERSION + name] = version
        return encode({**fields, "": beside} if beside else fields)

    def _expiry(self, key: str) -> int:
        """When the whole record may go: the latest expiry if every field has one, else 0."""
        due = self.expires.get(key, {})
        value = self.values[key]
        if value is MISSING or key in self.extras:
            return 0
        names = [self.single.name] if self.single is not None else list(value)
        return max((due[n] for n in names), default=0) if all(n in due for n in names) else 0

    def _schedule(self, key: str) -> int:
        """When the engine should look at the record, unless it will do so already."""
        due = self._expiry(key) if key in self._unscheduled else 0
        if due:
            self._unscheduled.discard(key)
        return due

    def take_changes(self) -> StateChanges | None:
        """What this work changed, for its result; the values stay cached and count as committed with the next work."""
        if not self.dirty:
            return None
        keys = list(self.dirty)
        single = self.single
        if single is not None and not (self.has_ttl or self.has_versions or self.extras):
            head = b"\x81" + encode(single.name)
            values = self.values
            records: list[bytes | None] = [None if (v := values[k]) is MISSING else head + encode(v) for k in keys]
        else:
            records = [self._record(k) for k in keys]
        expires = [self._schedule(k) for k in keys] if self.has_ttl else None
        self._note_size(sum(map(len, filter(None, records))), len(records))
        self.dirty = {}
        return StateChanges(self.node, [k.encode() for k in keys], records, expires)

    # -------------------------------------------------------------- memory

    def _note_size(self, size: int, records: int) -> None:
        weight = min(1.0, records / 1000)
        self._average += weight * (size / records - self._average)

    @property
    def size(self) -> int:
        """Estimated bytes: entries times what a record took on average lately."""
        return int(len(self.values) * (_ENTRY_OVERHEAD + self._average))

    def evict(self, share: float) -> None:
        """Forget the oldest ``share`` of the committed entries. Only called when nothing is dirty."""
        if self.dirty:
            return
        count = int(len(self.values) * share) + 1
        for key in [key for key in self.values if key not in self.in_use][:count]:
            del self.values[key]
            self.expires.pop(key, None)
            self.extras.pop(key, None)
            self._beside_extras.pop(key, None)
            self._unscheduled.discard(key)
        self.complete = False
