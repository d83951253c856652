"""The loops in Python: what `grape._hot` has to do, and what runs where it was not built."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct

from grape.model.address import check_key, partition_of
from grape.model.depth import is_too_deep
from grape.model.plain import MAX_INT, MIN_INT, PLAIN

MEASURE_EMITS: Final = 32_768
MEASURE_BYTES: Final = 4 << 20
"""After so many emits, or bytes in large ones, it is measured how much a stage has emitted."""


class Tip:
    """Columns that grow emit by emit: ``data`` one an emit, ``keys`` shorter than it while what follows all inherits.
    ``name``: of the last emit. ``big``: bytes of keys and large values since the first ``measured`` emits."""

    __slots__ = ("big", "data", "keys", "measured", "name")

    data: list[Any]
    keys: list[Any]
    name: Any
    big: int
    measured: int

    def __init__(self) -> None:
        self.data = []
        self.keys = []
        self.name = None
        self.big = 0
        self.measured = 0

    def measure(self) -> None:
        """There is much in it by now."""
        raise NotImplementedError


def map_texts(function: Callable[[Any], Any], column: list[Any], out: list[Any], largest: int) -> int:
    """Append what ``function`` returns for each value to ``out``. Returns how many bytes of UTF-8 that were if all are
    valid text of at most ``largest`` bytes each, else -1. Whatever it raises is raised as it is (in Python a
    StopIteration loses its text, if there are several values), and what it returned before is in ``out``. It ends early
    if ``column`` becomes shorter.
    """
    before = len(out)
    if len(column) == 1:
        out.append(function(column[0]))
    else:
        out.extend(map(function, column))
    if len(out) - before < len(column):  # a StopIteration is the end of a map, and gone
        raise StopIteration("raised by the function")
    texts = out if not before else out[before:]
    return _text_size(texts, largest) if set(map(type, texts)) <= {str} else -1


def _text_size(texts: list[str], largest: int) -> int:
    """Bytes of UTF-8 of all, or -1: one has none, or over ``largest``. Looked at as one text, which costs a tenth of
    looking at each."""
    together = "".join(texts)
    try:
        size = len(together) if together.isascii() else len(together.encode())
    except UnicodeEncodeError:
        return -1
    return -1 if size > largest and max(len(text.encode()) for text in texts) > largest else size


class Stage(Protocol):
    """Events in columns: ``names`` one for all or one an event, ``keys`` None: all keyless."""

    names: str | list[str]
    keys: list[str | None] | None


class Cells(Struct, frozen=True):
    """The one state of each key of a node, and where its handler finds that of its event.

    Args:
        attributes: of the handler; ``name``: the attribute.
        values: by key; ``dirty``: keys that were written.
        missing: stands for no value, which is ``default`` for the handler.
        packed: type of values that ``read`` has to be asked for.
        checked: makes a value of whatever is no int of 64 bits, or raises; of ``missing`` where nothing stands.
    """

    attributes: dict[str, Any]
    name: str
    values: dict[str, Any]
    dirty: dict[str, None]
    missing: Any
    default: Any
    packed: type
    read: Callable[[Any], Any]
    checked: Callable[[Any], Any]


def _events(make: Callable[..., Any], stage: Stage, data: list[Any] | None, indexes: list[int]) -> list[Any]:
    """All at once, which costs less than one by one."""
    names = repeat(stage.names) if isinstance(stage.names, str) else stage.names
    keys = repeat(None) if stage.keys is None else stage.keys
    return list(map(make, names, keys, repeat(None) if data is None else data, repeat(stage), indexes))


def run_events(
    process: Callable[[Any], Any],
    make: Callable[..., Any],
    stage: Stage,
    data: list[Any] | None,
    indexes: list[int],
    marks: list[int],
    emitted: list[Any],
    returned: Callable[[str, Any], None],
) -> None:
    """Give ``process`` an event of ``stage`` for each of ``indexes``, which count from 0, made by ``make`` (name, key,
    data, stage, index), and note in ``marks`` how many were ``emitted`` by then. What it returns goes to ``returned``,
    unless it is None. It ends early if ``indexes`` becomes shorter. An event that nobody keeps may be used again for
    the next. ``data`` None: all None.
    """
    names = stage.names
    mark = marks.append
    events = _events(make, stage, data, indexes)
    for at in indexes:
        result = process(events[at])
        if result is not None:
            returned(names if isinstance(names, str) else names[at], result)
        mark(len(emitted))


def count_events(
    process: Callable[[Any], Any],
    make: Callable[..., Any],
    stage: Stage,
    data: list[Any] | None,
    indexes: list[int],
    marks: list[int],
    emitted: list[Any],
    returned: Callable[[str, Any], None],
    cells: Cells,
) -> None:
    """`run_events` of events that all have keys: before each the value of its key is put where the handler finds it,
    and what stands there after it, if it is another object, becomes the value.
    """
    names, keys = stage.names, stage.keys
    assert keys is not None
    attributes, name, values, dirty = cells.attributes, cells.name, cells.values, cells.dirty
    missing, default, packed = cells.missing, cells.default, cells.packed
    mark = marks.append
    events = _events(make, stage, data, indexes)
    for at in indexes:
        key: str = keys[at]  # type: ignore[assignment]
        old = values[key]
        if old is missing:
            old = default
        elif type(old) is packed:
            old = cells.read(old)
        attributes[name] = old
        result = process(events[at])
        if result is not None:
            returned(names if isinstance(names, str) else names[at], result)
        new = attributes.get(name, missing)
        if new is not old:
            if type(new) is not int or not MIN_INT <= new <= MAX_INT:
                new = cells.checked(new)
            values[key] = new
            dirty[key] = None
        mark(len(emitted))


def make_emit(tip: Tip, slow: Callable[..., None], inherit: object, partitions: dict[str, int], small: int) -> Any:
    """The function that handlers call: ``slow`` (event, data, key=, delay=, timer=), with a short way to ``tip`` for
    the usual emits, which does what ``slow`` would: those under the name of the last one (the same object), of short
    text with the key of their event (``inherit``); in C also of other plain data, and with a key that ``partitions``
    knows.
    """
    data_of = tip.data
    put_data = data_of.append

    def emit(event: str, data: Any = None, *, key: Any = inherit, delay: Any = None, timer: str | None = None) -> None:
        if (
            event is tip.name
            and key is inherit
            and delay is None
            and timer is None
            and type(data) is str
            and data.isascii()
            and len(data) <= small
        ):
            put_data(data)
            if len(data_of) >= MEASURE_EMITS and len(data_of) - tip.measured >= MEASURE_EMITS:
                tip.measure()
            return
        slow(event, data, key=key, delay=delay, timer=timer)

    return emit


def make_emit_many(tip: Tip, slow: Callable[..., None], partitions: dict[str, int]) -> Any:
    """As `make_emit`, for ``slow`` (event, keys=, data=); in C with a short way for lists and tuples of keys alone."""
    return slow


def scatter(
    keys: list[str | None], data: list[Any] | None, partitions: dict[str, int], own: int
) -> list[tuple[int, list[str | None], list[Any] | None]]:
    """Keys, and what belongs to them, by the partition where each key lives; without one it is ``own``. In the order of
    the first of each.
    """
    if None in keys:
        numbers = [own if key is None else partitions[key] for key in keys]
    else:
        numbers = list(map(partitions.__getitem__, keys))  # type: ignore[arg-type]
    by_key: dict[int, list[str | None]] = {number: [] for number in dict.fromkeys(numbers)}
    if data is None:
        put = {number: column.append for number, column in by_key.items()}
        for number, key in zip(numbers, keys, strict=True):
            put[number](key)
        return [(number, column, None) for number, column in by_key.items()]
    by_data: dict[int, list[Any]] = {number: [] for number in by_key}
    for number, key, value in zip(numbers, keys, data, strict=True):
        by_key[number].append(key)
        by_data[number].append(value)
    return [(number, column, by_data[number]) for number, column in by_key.items()]


_CACHED_KEYS: Final = 65_536
_SLICE: Final = 2_048

_encode: Final = msgspec.msgpack.Encoder().encode
_Put = Callable[[Any], None]


class _Unusual(Exception):
    """Something that has to be looked at one by one."""


class _Lanes(dict[str, tuple[_Put, _Put]]):
    """``rows[n]``: keys and values of partition n. The dictionary has what appends to them for every key (of the last
    65,536): one look-up an event."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.rows: list[tuple[list[str], list[Any]]] = [([], []) for _ in range(count)]
        self._put = [(keys.append, values.append) for keys, values in self.rows]

    def __missing__(self, key: str) -> tuple[_Put, _Put]:
        if len(self) >= _CACHED_KEYS:
            self.clear()
        put = self[key] = self._put[partition_of(check_key(key), len(self.rows))]
        return put

    def add(self, pairs: list[tuple[str, Any]]) -> None:
        """In slices, so that the second look finds in the cache what the first one has fetched."""
        for at in range(0, len(pairs), _SLICE):
            part = pairs[at : at + _SLICE]
            if set(map(type, part)) != {tuple}:
                raise _Unusual
            for key, value in part:
                put_key, put_value = self[key]
                put_key(key)
                put_value(value)

    def forget(self) -> None:
        """Of the pairs nothing is left."""
        for keys, values in self.rows:
            keys.clear()
            values.clear()


class Sorter:
    """Pairs by the partition of their keys, packed. ``partitions``: how many there are."""

    def __init__(self, partitions: int) -> None:
        self._lanes = _Lanes(partitions)

    def sort(self, pairs: list[tuple[str, Any]], largest: int, most: int) -> list[tuple[int, int, bytes, bytes]] | None:
        """Returns (partition, how many, their keys, their values), the columns as msgpack arrays of at most ``most``
        bytes together, but for a single event; the pairs of a key in their order. None: not all are (key, plain value
        of at most ``largest`` bytes).
        """
        out: list[tuple[int, int, bytes, bytes]] = []
        try:
            self._lanes.add(pairs)
            for number, (keys, values) in enumerate(self._lanes.rows):
                if keys:
                    if set(map(type, keys)) != {str}:  # one of another type may be equal to one that is known
                        return None
                    _check_plain(values, largest)
                    self._pack(number, keys, values, most, out)
        except (_Unusual, TypeError, ValueError):  # no hash, no pair
            return None
        finally:
            self._lanes.forget()
        return out

    def _pack(
        self, number: int, keys: list[str], values: list[Any], most: int, out: list[tuple[int, int, bytes, bytes]]
    ) -> None:
        packed_keys, packed_values = _encode(keys), _encode(values)
        if len(packed_keys) + len(packed_values) <= most or len(keys) == 1:
            out.append((number, len(keys), packed_keys, packed_values))
            return
        half = len(keys) // 2
        self._pack(number, keys[:half], values[:half], most, out)
        self._pack(number, keys[half:], values[half:], most, out)


def slice_values(values: list[Any], largest: int, most: int, events: int) -> list[tuple[int, bytes]] | None:
    """Pack values as columns of at most ``most`` bytes, but for a single value, and at most so many ``events``. Returns
    (how many, a msgpack array). None: not all are plain, and of at most ``largest`` bytes.
    """
    try:
        _check_plain(values, largest)
    except _Unusual:
        return None
    out: list[tuple[int, bytes]] = []
    if values:
        some = values[:: max(1, len(values) // 256)]
        step = max(1, min(events, most * len(some) // len(_encode(some))))
        for at in range(0, len(values), step):
            _slice(values[at : at + step], most, out)
    return out


def _slice(values: list[Any], most: int, out: list[tuple[int, bytes]]) -> None:
    packed = _encode(values)
    if len(packed) <= most or len(values) == 1:
        out.append((len(values), packed))
        return
    half = len(values) // 2
    _slice(values[:half], most, out)
    _slice(values[half:], most, out)


def _check_plain(values: list[Any], largest: int) -> None:
    """Looked at as a whole, which costs a tenth of looking at each.

    Raises:
        _Unusual: one is not plain, is over ``largest`` bytes, or cannot travel.
    """
    kinds = set(map(type, values))
    if not kinds <= PLAIN:
        raise _Unusual
    if str in kinds:
        texts = values if len(kinds) == 1 else [value for value in values if type(value) is str]
        if _text_size(texts, largest) < 0:
            raise _Unusual
    if bytes in kinds and max(len(value) for value in values if type(value) is bytes) > largest:
        raise _Unusual
    if int in kinds:
        numbers = values if len(kinds) == 1 else [value for value in values if type(value) is int]
        if not MIN_INT <= min(numbers) <= max(numbers) <= MAX_INT:
            raise _Unusual


def is_deeper(packed: bytes, most: int) -> bool:
    """Whether an encoded value is nested deeper than ``most``, as `grape.model.depth` says it."""
    return is_too_deep(packed, most)
