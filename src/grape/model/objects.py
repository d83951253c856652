"""Objects in an app's own store: what is written down of each, and what a write changes. Pure, over rows as any
transport has them.

    object   NAMESPACE \\0 KEY   `Stored`: what is known of it, and its bytes if they are few; or that it was removed
    change   "c" + number       the key of the object that was written so, the last time
             "t" + number       the key of one that was removed so
             "e" + time + key   one that is gone from then on
             ""                 `Ledger`: the next number, and what has been forgotten of removed ones
    blob     digest             how many objects have these bytes, which lie in a file; 0: none any more

An object that is to be written to another storage waits in the row ">" NAMESPACE \\0 KEY of ``object`` until it is
there, also as one that was removed. Nothing else tells of it.

Every write has a number of its own, larger than all before: it is the object's version, and a position in what has
changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, Literal, Protocol

import msgspec
from msgspec import Struct, structs

from grape.model.topology import Names

OCTETS: Final = "application/octet-stream"
INLINE: Final = 64 << 10
"""Bytes of an object that lie in its row; more lie in a file."""
REMOVED: Final = -1
"""The size of an object that is none."""
SHIPPED: Final = -2
"""The size in a write that says: what waits in this row is in the other storage by now."""
WAITING: Final = ">"
"""How the namespaces of rows begin that wait for another storage."""
MOST_REMOVED: Final = 100_000
"""Of so many removed ones it is known that they were."""
OBJECTS: Final = "&objects"
"""The log under whose number the rows lie. There is no batch in it."""

ObjectTable = Literal["object", "change", "blob"]

_WRITTEN: Final = b"c"
_GONE: Final = b"t"
_EXPIRING: Final = b"e"


class About(Struct, frozen=True, gc=False):
    """What is known of an object beside its bytes.

    Args:
        key: within its namespace.
        size: bytes.
        version: text that is another one after every write; told by whoever stores it, and compared alone.
        checksum: "sha256:" and hexadecimal digits, or what the storage keeps of its own ("sha512:..", "md5:.."); "":
            not known without reading it.
        time: microseconds since 1970: as its writer says, else when it was written.
        content_type: a media type.
        tags: sorted, each once. user: whatever its writer wants to be known beside.
        expires: microseconds since 1970 from which on it is gone; 0: never.
    """

    key: str
    size: int
    version: str
    checksum: str = ""
    time: int = 0
    content_type: str = OCTETS
    tags: tuple[str, ...] = ()
    user: dict[str, str] = {}
    expires: int = 0


class ObjectWrite(Struct, frozen=True, array_like=True, gc=False):
    """A handler, or a client, wants an object to be so. ``size`` `REMOVED`: not to be. ``checksum``: SHA-256 of the
    bytes. ``time``, ``expires``: microseconds since 1970; time 0: now. ``blob``: the bytes lie in a file named by their
    checksum."""

    namespace: str
    key: str
    size: int
    checksum: bytes = b""
    time: int = 0
    content_type: str = OCTETS
    tags: Names[str] = ()
    user: dict[str, str] = {}
    expires: int = 0
    blob: bool = False
    data: bytes = b""

    @property
    def place(self) -> bytes:
        return place_key(self.namespace, self.key)

    @property
    def weight(self) -> int:
        """Bytes in a commit, about."""
        tags = sum(map(len, self.tags)) if self.tags else 0
        return 200 + len(self.namespace) + 2 * len(self.key) + len(self.data) + tags + 100 * len(self.user)


class Stored(Struct, frozen=True, array_like=True, gc=False):
    """An object as it lies there. ``number``: of the write that made it so. ``version``, ``told``: of one in another
    storage, its version and checksum as `About` has them; ``number`` is another one after every write there, too. The
    rest as `ObjectWrite`."""

    number: int
    size: int
    checksum: bytes = b""
    time: int = 0
    content_type: str = OCTETS
    tags: tuple[str, ...] = ()
    user: dict[str, str] = {}
    expires: int = 0
    blob: bool = False
    data: bytes = b""
    version: str = ""
    told: str = ""

    @property
    def is_there(self) -> bool:
        return self.size != REMOVED

    def about(self, key: str) -> About:
        checksum = self.told or (f"sha256:{self.checksum.hex()}" if self.checksum else "")
        version = self.version or str(self.number)
        return About(
            key, self.size, version, checksum, self.time, self.content_type, self.tags, self.user, self.expires
        )


class Wanted(Struct, frozen=True, array_like=True):
    """What has to be so for a write to happen: see `grape.abc.storage.If`. ``number`` -1: whatever."""

    number: int = -1
    checksum: bytes = b""
    absent: bool = False
    not_newer_than: int = -1

    def holds(self, there: Stored | None) -> bool:
        if there is None:
            return self.number < 0 and not self.checksum
        return (
            not self.absent
            and self.number in (-1, there.number)
            and self.checksum in (b"", there.checksum)
            and not 0 <= self.not_newer_than < there.time
        )


ALWAYS: Final = Wanted()


class Ledger(Struct, frozen=True, array_like=True):
    """``removed``: how many are known. ``forgotten``: the largest number of a removal that is not known any more."""

    next: int = 1
    removed: int = 0
    forgotten: int = 0


class Done(Struct, frozen=True, array_like=True):
    """What has become of a write. ``now``: what is there. ``holds``: what was wanted was so, else nothing has changed.
    ``was_there``: something was."""

    holds: bool
    was_there: bool
    now: Stored | None = None


class Rows(Protocol):
    """Of the objects of one app, with what this very transaction has written."""

    def get(self, table: ObjectTable, keys: Sequence[bytes]) -> Sequence[bytes | None]: ...

    def put(self, table: ObjectTable, rows: Mapping[bytes, bytes | None]) -> None: ...

    def first(self, table: ObjectTable, begin: bytes) -> bytes | None:
        """The first key that is not before ``begin``."""


encode: Final = msgspec.msgpack.Encoder().encode
decode_stored: Final = msgspec.msgpack.Decoder(Stored).decode
decode_ledger: Final = msgspec.msgpack.Decoder(Ledger).decode
_count: Final = msgspec.msgpack.Decoder(int).decode


def place_key(namespace: str, key: str) -> bytes:
    return namespace.encode() + b"\0" + key.encode()


def split_place(place: bytes) -> tuple[str, str]:
    namespace, _, key = place.partition(b"\0")
    return namespace.decode(), key.decode()


def written(number: int) -> bytes:
    """The key of the row in ``change`` that says what was written so."""
    return _WRITTEN + number.to_bytes(8, "big")


def gone(number: int) -> bytes:
    """The same of a removal."""
    return _GONE + number.to_bytes(8, "big")


def expiring(time: int, place: bytes = b"") -> bytes:
    """The key of the row in ``change`` that says when an object is gone."""
    return _EXPIRING + time.to_bytes(8, "big") + place


def place_of(key: bytes) -> bytes:
    """Of such a key."""
    return key[9:]


def number_of(key: bytes) -> int:
    return int.from_bytes(key[1:], "big")


def apply(rows: Rows, write: ObjectWrite, wanted: Wanted = ALWAYS) -> Done:
    """Do it, if what is wanted is so."""
    applying, place = _Applying(rows), write.place
    done = applying.write(write, place, rows.get("object", [place])[0], wanted)
    applying.finish()
    return done


def apply_all(rows: Rows, writes: Sequence[ObjectWrite]) -> None:
    """Do them, whatever is there. Each is of another object."""
    applying, places = _Applying(rows), [write.place for write in writes]
    for write, place, packed in zip(writes, places, rows.get("object", places), strict=True):
        applying.write(write, place, packed, ALWAYS)
    applying.finish()


class _Applying:
    """Rows are read and written together: one by one each costs more than all that is done with it."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._objects: dict[bytes, bytes | None] = {}
        self._changes: dict[bytes, bytes | None] = {}
        self._blobs: Counter[bytes] = Counter()
        packed = rows.get("change", [b""])[0]
        ledger = self._ledger = Ledger() if packed is None else decode_ledger(packed)
        self._next, self._removed = ledger.next, ledger.removed

    def write(self, write: ObjectWrite, place: bytes, packed: bytes | None, wanted: Wanted) -> Done:
        """``packed``: what is there."""
        row = None if packed is None else decode_stored(packed)
        if write.namespace.startswith(WAITING):
            return self._wait(write, place, row, wanted)
        before = row if row is not None and row.is_there else None
        if not wanted.holds(before):
            return Done(False, before is not None, before)
        if write.size == REMOVED and before is None:
            return Done(True, False)
        number, changes = self._next, self._changes
        self._next += 1
        if row is not None:
            changes[written(row.number) if row.is_there else gone(row.number)] = None
            self._removed -= not row.is_there
            if row.expires:
                changes[expiring(row.expires, place)] = None
        if write.size == REMOVED:
            now = Stored(number, REMOVED)
            changes[gone(number)] = place
            self._removed += 1
        else:
            now = as_stored(write, number)
            changes[written(number)] = place
            if now.expires:
                changes[expiring(now.expires, place)] = b""
        self._replace(place, before, now)
        return Done(True, before is not None, now if now.is_there else None)

    def _wait(self, write: ObjectWrite, place: bytes, row: Stored | None, wanted: Wanted) -> Done:
        """The same for what waits for another storage. Once it is there, it waits no more, if it is still the same."""
        if write.size == SHIPPED:
            if row is None or row.number != wanted.number:
                return Done(False, row is not None, row)
            self._replace(place, row, None)
            return Done(True, True)
        now = as_stored(write, self._next)
        self._next += 1
        self._replace(place, row, now)
        return Done(True, row is not None, now)

    def _replace(self, place: bytes, before: Stored | None, now: Stored | None) -> None:
        self._objects[place] = None if now is None else encode(now)
        if now is not None and now.blob:
            self._blobs[now.checksum] += 1
        if before is not None and before.blob:
            self._blobs[before.checksum] -= 1

    def finish(self) -> None:
        """What was changed is in the rows now."""
        rows = self._rows
        if not self._objects:
            return
        rows.put("object", self._objects)
        rows.put("change", self._changes)
        digests = list(self._blobs)
        if digests:
            counts = [0 if packed is None else _count(packed) for packed in rows.get("blob", digests)]
            left = [max(0, count + self._blobs[each]) for each, count in zip(digests, counts, strict=True)]
            rows.put("blob", dict(zip(digests, map(encode, left), strict=True)))
        forgotten = self._forget()
        if (self._next, self._removed) != (self._ledger.next, self._ledger.removed):
            rows.put("change", {b"": encode(Ledger(self._next, self._removed, forgotten))})

    def _forget(self) -> int:
        """The oldest removals, if too many are known."""
        rows, forgotten = self._rows, self._ledger.forgotten
        while self._removed > MOST_REMOVED:
            oldest = rows.first("change", _GONE)
            if oldest is None or not oldest.startswith(_GONE):
                break
            its = rows.get("change", [oldest])[0]
            rows.put("change", {oldest: None})
            if its is not None:
                rows.put("object", {its: None})
            forgotten, self._removed = number_of(oldest), self._removed - 1
        return forgotten


def as_stored(write: ObjectWrite, number: int) -> Stored:
    return Stored(
        number,
        write.size,
        write.checksum,
        write.time,
        write.content_type,
        tuple(write.tags),
        write.user,
        write.expires,
        write.blob,
        write.data,
    )


def waiting(write: ObjectWrite) -> ObjectWrite:
    """The same, to wait for another storage."""
    return structs.replace(write, namespace=WAITING + write.namespace)


def waiting_place(namespace: str, key: str) -> bytes:
    """Where it waits."""
    return place_key(WAITING + namespace, key)


def is_unused(packed: bytes) -> bool:
    """The row of a blob that no object has."""
    return _count(packed) == 0
