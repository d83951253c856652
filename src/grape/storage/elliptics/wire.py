"""What goes over the wire: messages, records, commands. Nothing here has a socket or a clock.

A message is a header of 120 bytes and as much payload as it says; all numbers are little-endian, but for port and host
within an address. Everything that comes in is checked here before anybody believes it: a size that cannot be, a record
that is shorter than it says, raise `Nonsense`.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Sequence
from enum import IntEnum, IntFlag
from struct import Struct as Layout
from typing import Final, NamedTuple

from msgspec import Struct

from grape.storage.elliptics.failures import Nonsense

Version = tuple[int, int, int, int]
VERSION: Final[Version] = (3, 0, 0, 1)
"""What a hello says of whoever says it. A server refuses one whose first two numbers are not its own."""
ID: Final = 64
NOTHING: Final = bytes(ID)
LARGEST: Final = 1 << 28
"""Bytes of a payload that nobody waits for any more, and that is read over; a larger one ends the connection."""

_HEADER: Final = Layout("<64sIQiiiQQQQ")
_IO: Final = Layout("<64s64sQQQQQQQIIQQ")
_ADDRESS: Final = Layout("<28sHH")
_INFO: Final = Layout("<32sI64s4xQQQQQ")
_COUNTS: Final = Layout("<ii")
_COUNT: Final = Layout("<i")
_BACKEND: Final = Layout("<iiII")
_ITERATOR: Final = Layout("<QIQQQQQIQII32x")
_ITEM: Final = Layout("<Q64siQQQQQQQ8x")
_VERSION: Final = Layout("<iiii48x")
HEADER: Final = _HEADER.size
IO: Final = _IO.size
INFO: Final = _INFO.size
ITEM: Final = _ITEM.size


class Command(IntEnum):
    LOOKUP = 1
    HELLO = 2
    WRITE = 4
    READ = 5
    ROUTE_LIST = 8
    REMOVE = 11
    AUTH = 16
    BULK_READ = 17
    ITERATOR = 19
    ROUTES = 24
    """Sent by servers, unasked."""


class Flag(IntFlag):
    """Of a header."""

    ACK = 0x1
    MORE = 0x2
    DIRECT = 0x8
    """The node that gets it has to serve it itself."""
    NO_LOCK = 0x10
    CHECKSUM = 0x20
    """Of a lookup."""
    BACKEND = 0x80
    """The backend is that of the header, not that of the ring."""
    REPLY = 0x200


class Mode(IntFlag):
    """Of an io attribute: how something is read or written."""

    APPEND = 0x2
    PREPARE = 0x10
    COMMIT = 0x20
    UNVERIFIED = 0x100
    PLAIN = 0x200
    CACHE = 0x400
    CACHE_ONLY = 0x800
    SWAP = 0x2000
    """The parent is the SHA-512 of what has to be there."""
    CHECKSUM = 0x4000
    """Read: the parent is the SHA-512 of what is returned. Write: only that it was done is told."""
    NOT_OLDER = 0x8000


APPENDED: Final = 0x10
"""Of the flags of a record."""

# Plain numbers: what flags are made of is looked at for each message.
_ACK, _MORE, _REPLY = int(Flag.ACK), int(Flag.MORE), int(Flag.REPLY)


class Stamp(NamedTuple):
    """The time of a record."""

    seconds: int
    nanos: int

    @property
    def micros(self) -> int:
        return self.seconds * 1_000_000 + self.nanos // 1000


def stamp(micros: int, nanos: int = 0) -> Stamp:
    return Stamp(micros // 1_000_000, micros % 1_000_000 * 1000 + nanos)


ZERO: Final = Stamp(0, 0)


def id_of(namespace: str, key: str) -> bytes:
    """Where a key lies; "": it has no namespace."""
    text = key.encode()
    return hashlib.sha512(namespace.encode() + b"\0" + text if namespace else text).digest()


class Header(NamedTuple):
    """What stands before a payload."""

    id: bytes
    group: int
    reserved: int
    status: int
    command: int
    backend: int
    trace: int
    flags: int
    transaction: int
    size: int

    @property
    def is_reply(self) -> bool:
        return bool(self.flags & _REPLY)

    @property
    def has_more(self) -> bool:
        return bool(self.flags & _MORE)


class Message(NamedTuple):
    """One that came in; ``payload`` None: nobody wanted it, and it was read over."""

    header: Header
    payload: bytes | None


class Frames:
    """Messages out of the fragments in which they come.

    Args:
        most: bytes of payload that a message with this header may have; -1: nobody waits for it.
    """

    def __init__(self, most: Callable[[Header], int]) -> None:
        self._most = most
        self._start = b""
        self._header: Header | None = None
        self._parts: list[bytes] = []
        self._missing = 0
        self._is_wanted = True

    @property
    def is_between(self) -> bool:
        """Whether no message has begun that is not complete."""
        return self._header is None and not self._start

    def feed(self, data: bytes) -> list[Message]:
        """What is complete now.

        Raises:
            Nonsense: what comes is no message, or one that may not be.
        """
        found: list[Message] = []
        if self._start:
            data = self._start + data
            self._start = b""
        at, end = 0, len(data)
        while True:
            header = self._header
            if header is None:
                if end - at < HEADER:
                    self._start = data[at:]
                    return found
                header = Header._make(_HEADER.unpack_from(data, at))
                at += HEADER
                self._is_wanted = self._check(header)
                size = header.size
                if self._is_wanted and end - at >= size:  # as nearly all do
                    found.append(Message(header, data[at : at + size]))
                    at += size
                    continue
                self._header, self._missing = header, size
            taken = min(self._missing, end - at)
            if self._is_wanted and taken:
                self._parts.append(data[at : at + taken])
            at += taken
            self._missing -= taken
            if self._missing:
                return found
            payload = b"".join(self._parts) if self._is_wanted else None
            self._header, self._parts = None, []
            found.append(Message(header, payload))

    def _check(self, header: Header) -> bool:
        """Whether somebody wants its payload."""
        most = self._most(header)
        if most < 0:
            if header.size > LARGEST:
                raise Nonsense(f"a message of {header.size:,} bytes that nobody has asked for")
            return False
        if header.size > most:
            raise Nonsense(
                f"an answer to {_name(header.command)} says it has {header.size:,} bytes; it can have {most:,}"
            )
        return True


def _name(command: int) -> str:
    try:
        return Command(command).name.lower().replace("_", " ")
    except ValueError:
        return f"command {command}"


# ---------------------------------------------------------------------- requests


class Request(Struct, frozen=True):
    """A message to a server, but for the number of its transaction.

    Args:
        data: stands behind the rest of the payload, and may be large.
        most: bytes that the payload of an answer may have.
        is_same: whether the id of the answer has to be that of the request.
        answer: its command.
        again: whether it may be sent once more if nobody knows what has become of it.
        extra: seconds that it may take beside the time-out.
    """

    command: int
    id: bytes
    group: int = 0
    backend: int = 0
    flags: int = _ACK
    body: bytes = b""
    data: bytes = b""
    trace: int = 0
    most: int = 0
    is_same: bool = True
    again: bool = True
    extra: float = 0.0

    @property
    def name(self) -> str:
        return _name(self.command)

    def head(self, transaction: int) -> bytes:
        """All of the message but ``data``."""
        size = len(self.body) + len(self.data)
        header = _HEADER.pack(
            self.id, self.group, 0, 0, self.command, self.backend, self.trace, self.flags, transaction, size
        )
        return header + self.body if self.body else header


class To(NamedTuple):
    """Whom a request of one key is for, and what stands in its header."""

    group: int
    id: bytes
    backend: int = 0
    flags: int = _ACK
    trace: int = 0


class Writing(NamedTuple):
    """How something is written.

    Args:
        start: seconds that it stays in the cache, 0: for ever. num: what is reserved, or the size in the end.
        parent: with `Mode.SWAP` the SHA-512 of what has to be there; `NOTHING`: nothing may be.
    """

    stamp: Stamp = ZERO
    user_flags: int = 0
    mode: int = 0
    offset: int = 0
    num: int = 0
    start: int = 0
    parent: bytes = NOTHING


_SMALL: Final = 1 << 16
_SENT: Final = 1e6
"""Bytes that go to a server in a second, at least: sending is not waiting."""
_ONCE: Final = int(Mode.APPEND | Mode.SWAP | Mode.COMMIT)
"""What is another thing if it is done twice."""
ROUTES_MOST: Final = 1 << 24
_INFO_MOST: Final = INFO + 4096


def hello(version: Version = VERSION) -> Request:
    """The one command that is not acknowledged, else there are two answers to it."""
    flags = Flag.DIRECT | Flag.NO_LOCK
    return Request(Command.HELLO, _VERSION.pack(*version), 0, 0, int(flags), most=ROUTES_MOST, is_same=False)


def route_list() -> Request:
    flags = Flag.ACK | Flag.DIRECT | Flag.NO_LOCK
    return Request(Command.ROUTE_LIST, NOTHING, 0, 0, int(flags), most=ROUTES_MOST)


def auth(cookie: bytes) -> Request:
    return Request(Command.AUTH, NOTHING, 0, 0, int(Flag.ACK | Flag.DIRECT), cookie.ljust(ID, b"\0"))


def lookup(to: To, extra: float = 0.0) -> Request:
    return Request(Command.LOOKUP, to.id, to.group, 0, to.flags, trace=to.trace, most=_INFO_MOST, extra=extra)


def read(to: To, offset: int, size: int, mode: int = 0) -> Request:
    """``size``: at most so many bytes are asked for (0: all there are)."""
    id = to.id
    io = _IO.pack(id, id, 0, 0, 0, 0, 0, 0, 0, 0, mode, offset, size)
    return Request(Command.READ, id, to.group, to.backend, to.flags, io, b"", to.trace, IO + (size or LARGEST))


def write(to: To, data: bytes, how: Writing) -> Request:
    seconds, nanos = how.stamp
    io = _IO.pack(
        how.parent,
        to.id,
        how.start,
        how.num,
        seconds,
        nanos,
        how.user_flags,
        0,
        0,
        0,
        how.mode,
        how.offset,
        len(data),  # the server believes it
    )
    return Request(
        Command.WRITE,
        to.id,
        to.group,
        to.backend,
        to.flags,
        io,
        data,
        to.trace,
        _INFO_MOST,
        again=not how.mode & _ONCE,
        extra=len(data) / _SENT if len(data) > _SMALL else 0.0,
    )


def remove(to: To) -> Request:
    io = _IO.pack(to.id, to.id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    return Request(Command.REMOVE, to.id, to.group, to.backend, to.flags, io, trace=to.trace, again=False)


def bulk_read(to: To, ids: Sequence[bytes], most: int) -> Request:
    """``to.id`` is one of ``ids``, all of which the same backend has; of each at most ``most`` bytes are wanted."""
    first = _IO.pack(NOTHING, NOTHING, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, IO * len(ids))
    rest = (_IO.pack(NOTHING, id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) for id in ids)
    body = first + b"".join(rest)
    return Request(
        Command.BULK_READ, to.id, to.group, to.backend, to.flags, body, b"", to.trace, IO + most, is_same=False
    )


class Scan(NamedTuple):
    """What an iterator goes over: one backend, or what of it is in ``ranges`` (first and last id)."""

    ranges: tuple[tuple[bytes, bytes], ...] = ()
    begin: Stamp = ZERO
    end: Stamp = ZERO
    has_data: bool = False


_START, _CANCEL, _TO_CLIENT = 1, 4, 2
_WITH_DATA, _RANGES, _TIMES = 1, 2, 4


def iterate(to: To, scan: Scan, most: int = 0) -> Request:
    flags = _WITH_DATA * scan.has_data | _RANGES * bool(scan.ranges) | _TIMES * ((scan.begin, scan.end) != (ZERO, ZERO))
    body = _ITERATOR.pack(0, _START, len(scan.ranges), *scan.begin, *scan.end, _TO_CLIENT, flags, 0, 0)
    body += b"".join(first + last for first, last in scan.ranges)
    return Request(Command.ITERATOR, to.id, to.group, to.backend, to.flags, body, b"", to.trace, ITEM + most)


def cancel(to: To, iterator: int) -> Request:
    body = _ITERATOR.pack(iterator, _CANCEL, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    return Request(Command.ITERATOR, to.id, to.group, to.backend, to.flags, body, b"", to.trace)


# ---------------------------------------------------------------------- answers


class Record(NamedTuple):
    """What a read has found. ``checksum``: of ``data``, if it was asked for; ``total``: bytes of the whole record."""

    id: bytes
    stamp: Stamp
    user_flags: int
    total: int
    flags: int
    offset: int
    data: bytes
    checksum: bytes


def record(payload: bytes, start: int = 0, wanted: int = 0) -> Record:
    """
    Raises:
        Nonsense: it is none, or not the ``wanted`` bytes from ``start`` on (0: all), as far as there are.
    """
    if len(payload) < IO:
        raise Nonsense(f"an answer to read has {len(payload)} bytes, fewer than the {IO} before the data")
    (parent, id, _, _, seconds, nanos, user, total, flags, _, _, offset, size) = _IO.unpack_from(payload)
    due = max(0, total - start)
    if size != len(payload) - IO or offset != start or size != (min(wanted, due) if wanted else due):
        raise Nonsense(
            f"an answer to read says {size:,} bytes at {offset:,} of {total:,}; {len(payload) - IO:,} came, "
            f"{wanted or 'all'} at {start:,} were asked for"
        )
    return Record(id, Stamp(seconds, nanos), user, total, flags, offset, payload[IO:], parent)


class Info(NamedTuple):
    """What a lookup or a write has found. One that is in the cache alone has size 0, and no ``path``."""

    served_by: Address
    path: bytes
    checksum: bytes
    flags: int
    size: int
    offset: int
    stamp: Stamp


def info(payload: bytes) -> Info:
    """
    Raises:
        Nonsense: it is none.
    """
    if len(payload) < INFO:
        raise Nonsense(f"file information has {len(payload)} bytes, fewer than {INFO}")
    packed, length, checksum, flags, size, offset, seconds, nanos = _INFO.unpack_from(payload)
    if len(payload) != INFO + max(length, 1):  # without a name one zero byte follows all the same
        raise Nonsense(f"file information says its name has {length} bytes; {len(payload) - INFO} follow")
    path = payload[INFO:].rstrip(b"\0") if length else b""
    return Info(unpacked(packed), path, checksum, flags, size, offset, Stamp(seconds, nanos))


class Item(NamedTuple):
    """What an iterator has found. ``seen`` of ``total``: how far it is; dead records count in both."""

    id: bytes
    status: int
    stamp: Stamp
    user_flags: int
    size: int
    seen: int
    total: int
    flags: int
    data: bytes


def item(payload: bytes) -> Item:
    """
    Raises:
        Nonsense: it is none.
    """
    if len(payload) < ITEM:
        raise Nonsense(f"an iterator's answer has {len(payload)} bytes, fewer than {ITEM}")
    _, id, status, seconds, nanos, user, size, seen, total, flags = _ITEM.unpack_from(payload)
    return Item(id, status, Stamp(seconds, nanos), user, size, seen, total, flags, payload[ITEM:])


# ---------------------------------------------------------------------- addresses and routes


class Address(NamedTuple):
    """Where a node is: numbers, no names."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_IPV4, _IPV6 = 2, 10


def packed(address: Address) -> bytes:
    ip = ipaddress.ip_address(address.host)
    port = address.port.to_bytes(2, "big")
    if isinstance(ip, ipaddress.IPv4Address):
        return _ADDRESS.pack(_IPV4.to_bytes(2, "little") + port + ip.packed, 16, _IPV4)
    return _ADDRESS.pack(_IPV6.to_bytes(2, "little") + port + bytes(4) + ip.packed, 28, _IPV6)


def unpacked(data: bytes) -> Address:
    """
    Raises:
        Nonsense: it is no address of IPv4 or IPv6.
    """
    raw, length, family = _ADDRESS.unpack(data)
    if (family, length) == (_IPV4, 16):
        return Address(str(ipaddress.IPv4Address(raw[4:8])), int.from_bytes(raw[2:4], "big"))
    if (family, length) == (_IPV6, 28):
        return Address(str(ipaddress.IPv6Address(raw[8:24])), int.from_bytes(raw[2:4], "big"))
    raise Nonsense(f"an address of family {family} with {length} bytes")


class Backend(NamedTuple):
    """What a node says of one of its backends. Without ids, or if it ``is_going``, it has nothing of the ring."""

    number: int
    group: int
    is_going: bool
    ids: tuple[bytes, ...]


class Welcome(NamedTuple):
    """The answer to a hello: all addresses of that node, and its backends."""

    addresses: tuple[Address, ...]
    backends: tuple[Backend, ...]


def welcome(header: Header, payload: bytes, version: Version = VERSION) -> Welcome:
    """
    Raises:
        Nonsense: it is none, or that of a server that speaks another version.
    """
    told = _VERSION.unpack(header.id)
    if told[:2] != version[:2]:
        raise Nonsense(f"the server speaks version {told[0]}.{told[1]}, not {version[0]}.{version[1]} (version=)")
    addresses, at = _addresses(payload)
    backends, at = _backends(payload, at)
    if at != len(payload):
        raise Nonsense(f"an answer to hello has {len(payload) - at} bytes too many")
    if not addresses:
        raise Nonsense("an answer to hello without an address")
    return Welcome(tuple(address for node in addresses for address in node), backends)


def nodes(payload: bytes) -> tuple[tuple[Address, ...], ...]:
    """The answer to a route list: of each node all its addresses.

    Raises:
        Nonsense: it is none.
    """
    found, at = _addresses(payload)
    if at != len(payload):
        raise Nonsense(f"a route list has {len(payload) - at} bytes too many")
    return found


def routes(payload: bytes) -> tuple[Backend, ...]:
    """What a server tells unasked: backends of its own that are something else now.

    Raises:
        Nonsense: it is not that.
    """
    found, at = _backends(payload, 0)
    if at != len(payload):
        raise Nonsense(f"a route update has {len(payload) - at} bytes too many")
    return found


def _addresses(payload: bytes) -> tuple[tuple[tuple[Address, ...], ...], int]:
    if len(payload) < _COUNTS.size:
        raise Nonsense("a list of addresses that is cut off")
    each, count = _COUNTS.unpack_from(payload)
    at = _COUNTS.size
    if each < 1 or count < 0 or count % each or count > (len(payload) - at) // _ADDRESS.size:
        raise Nonsense(f"a list of {count} addresses, {each} per node, in {len(payload)} bytes")
    size = _ADDRESS.size
    every = [unpacked(payload[at + i * size : at + (i + 1) * size]) for i in range(count)]
    return tuple(tuple(every[i : i + each]) for i in range(0, count, each)), at + count * size


def _backends(payload: bytes, at: int) -> tuple[tuple[Backend, ...], int]:
    if len(payload) - at < _COUNT.size:
        raise Nonsense("a list of backends that is cut off")
    (count,) = _COUNT.unpack_from(payload, at)
    at += _COUNT.size
    if not 0 <= count <= (len(payload) - at) // _BACKEND.size:
        raise Nonsense(f"a list of {count} backends in {len(payload)} bytes")
    found = []
    for _ in range(count):
        if len(payload) - at < _BACKEND.size:
            raise Nonsense("a list of backends that is cut off")
        number, group, flags, ids = _BACKEND.unpack_from(payload, at)
        at += _BACKEND.size
        if ids > (len(payload) - at) // ID:
            raise Nonsense(f"a backend with {ids} ids in {len(payload) - at} bytes")
        found.append(
            Backend(number, group, bool(flags & 1), tuple(payload[at + i * ID : at + (i + 1) * ID] for i in range(ids)))
        )
        at += ids * ID
    return tuple(found), at
