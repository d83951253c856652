"""Heads: what is known of an object beside its bytes, in a record of its own; and where heads and bytes lie. Pure.

    head of a key    2 bytes of shard  "grape1"  8 of namespace  32 of key  16 of SHA-512
    its bytes        8 of chance                 8 of namespace  32 of key  16 of SHA-512

Ids are made by hand, so that heads of keys that begin alike lie side by side, in 64 places of the ring: an iterator
over 64 ranges is a list by prefix. The bytes of each version have an id of their own, all around the ring, which says
whose they are.
"""

from __future__ import annotations

import hashlib
from heapq import nsmallest
from typing import Final, Generic, TypeVar

import msgspec
from msgspec import Struct

from grape.abc.storage import OCTETS, About, Place
from grape.errors import Corrupt
from grape.storage.elliptics.wire import Stamp, stamp

SHARDS: Final = 64
MOST: Final = 1 << 16
"""Bytes that a head may have."""
_MAGIC: Final = b"grape1"
_SPACE, _KEY, _TAIL = 8, 32, 16


class Head(Struct, frozen=True, array_like=True, tag="grape-head-1"):
    """
    Args:
        moment: when it was written, microseconds since 1970; later than that of every head before it. nonce: chance.
        size: bytes of the object; -1: it was removed.
        inline: whether ``data`` are its bytes, else they lie under an id of their own.
    """

    namespace: str
    key: str
    moment: int
    nonce: int
    size: int = -1
    digest: bytes = b""
    time: int = 0
    content_type: str = OCTETS
    tags: tuple[str, ...] = ()
    user: dict[str, str] = {}
    expires: int = 0
    inline: bool = True
    data: bytes = b""

    @property
    def is_gone(self) -> bool:
        return self.size < 0

    @property
    def version(self) -> str:
        return f"{self.moment:x}-{self.nonce:016x}"

    @property
    def order(self) -> tuple[int, int]:
        return self.moment, self.nonce

    @property
    def stamp(self) -> Stamp:
        """As its record has it. Some chance below the microseconds, so that two at the same time have an order."""
        return stamp(self.moment, self.nonce % 1000)

    @property
    def about(self) -> About | None:
        """None: it was removed."""
        if self.is_gone:
            return None
        return About(
            self.key,
            self.size,
            self.version,
            f"sha512:{self.digest.hex()}",
            self.time,
            self.content_type,
            self.tags,
            self.user,
            self.expires,
        )


_DECODER: Final = msgspec.msgpack.Decoder(Head)
_ENCODER: Final = msgspec.msgpack.Encoder()


def encode(head: Head) -> bytes:
    return _ENCODER.encode(head)


def decode(data: bytes, place: Place | None = None) -> Head:
    """
    Raises:
        Corrupt: it is no head, or that of another ``place``.
    """
    try:
        head = _DECODER.decode(data)
    except msgspec.MsgspecError as e:
        raise Corrupt(f"what is known of an object cannot be read ({e}): who else writes there?") from None
    if place is not None and (head.namespace, head.key) != (place.namespace, place.key):
        raise Corrupt(f"{place.namespace}/{place.key}: another object has its id: {head.namespace}/{head.key}")
    return head


def _parts(place: Place) -> bytes:
    """Namespace, key and the rest, as they stand in both ids."""
    key = place.key.encode()
    whole = hashlib.sha512(place.namespace.encode() + b"\0" + key).digest()
    return _space(place.namespace) + key[:_KEY].ljust(_KEY, b"\0") + whole[:_TAIL]


def _space(namespace: str) -> bytes:
    return hashlib.sha512(namespace.encode()).digest()[:_SPACE]


def _shard(number: int, space: bytes) -> bytes:
    """How the ids of a shard begin: evenly around the ring, and elsewhere for another namespace."""
    return (number << 10 | int.from_bytes(space[:2], "big") & 0x3FF).to_bytes(2, "big")


def head_id(place: Place) -> bytes:
    return _head_id(_parts(place))


def _head_id(parts: bytes) -> bytes:
    return _shard(parts[_SPACE + _KEY] % SHARDS, parts[:_SPACE]) + _MAGIC + parts


def data_id(place: Place, nonce: int) -> bytes:
    return nonce.to_bytes(8, "big") + _parts(place)


def head_of_data(id: bytes) -> bytes:
    """The id of the head to which these bytes belong, or belonged."""
    return _head_id(id[8:])


def nonce_of_data(id: bytes) -> int:
    return int.from_bytes(id[:8], "big")


def ranges(namespace: str, prefix: str, after: str) -> list[tuple[bytes, bytes]]:
    """Where the heads of keys lie that begin with ``prefix`` and come after a key ("": all); of each shard the first
    and the last id. Some others may lie there too."""
    space = _space(namespace)
    begin = prefix.encode()[:_KEY]
    low = max(begin.ljust(_KEY, b"\0"), after.encode()[:_KEY].ljust(_KEY, b"\0"))
    high = begin.ljust(_KEY, b"\xff")
    if low > high:
        return []
    starts = [_shard(number, space) + _MAGIC + space for number in range(SHARDS)]
    return [(start + low + bytes(_TAIL), start + high + b"\xff" * _TAIL) for start in starts]


T = TypeVar("T")


class Smallest(Generic[T]):
    """Of what is added the ``most`` with the smallest keys; of those with the same key the greatest by order. Memory is
    that of twice as many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: dict[bytes, tuple[tuple[int, int], T]] = {}
        self._last: bytes | None = None

    def add(self, key: bytes, order: tuple[int, int], value: T) -> None:
        if self._last is not None and key > self._last:
            return
        there = self._found.get(key)
        if there is None or there[0] < order:
            self._found[key] = order, value
        if len(self._found) >= 2 * self._most:
            self._cut()

    def _cut(self) -> None:
        kept = nsmallest(self._most, self._found)
        self._last = kept[-1]
        self._found = {key: self._found[key] for key in kept}

    @property
    def is_cut(self) -> bool:
        """Whether there may be more than `items`."""
        return self._last is not None

    def items(self) -> list[T]:
        """In the order of keys."""
        if len(self._found) > self._most:
            self._cut()
        return [self._found[key][1] for key in sorted(self._found)]
