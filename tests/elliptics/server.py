"""A cluster of Elliptics in memory: nodes, backends, groups, with the oddities of the real one. It has layouts of its
own, so that what the client packs wrong is not unpacked wrong here.

    python -m elliptics.server PORT        one node, groups 1 and 2, until it is killed
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
import sys
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

HEADER = struct.Struct("<64sIQiiiQQQQ")
IO = struct.Struct("<64s64sQQQQQQQIIQQ")
INFO = struct.Struct("<32sI64s4xQQQQQ")
ITERATOR = struct.Struct("<QIQ16s16sIQII32x")
ITEM = struct.Struct("<Q64siQQQQQQQ8x")
VERSION = struct.pack("<iiii48x", 3, 0, 0, 1)
ACK, MORE, DIRECT, NO_LOCK, CHECKSUM, BACKEND, REPLY = 1, 2, 8, 16, 32, 128, 512
APPEND, PREPARE, COMMIT, UNVERIFIED, PLAIN = 0x2, 0x10, 0x20, 0x100, 0x200
CACHE, CACHE_ONLY, SWAP, IO_CHECKSUM, NOT_OLDER = 0x400, 0x800, 0x2000, 0x4000, 0x8000
LOOKUP, HELLO, JOIN, WRITE, READ, ROUTE_LIST, REMOVE, STATUS, AUTH = 1, 2, 3, 4, 5, 8, 11, 13, 16
BULK_READ, ITERATE, ROUTES, CONTROL, BACKEND_STATUS = 17, 19, 24, 25, 26
NODE_COMMANDS = (HELLO, JOIN, ROUTE_LIST, STATUS, AUTH, CONTROL, BACKEND_STATUS)
RUBBISH = b"\xee"
SYNC = 1.0


def sha(data: bytes) -> bytes:
    return hashlib.sha512(data).digest()


class Record:
    """``buffer`` may have old bytes behind ``size``."""

    __slots__ = ("buffer", "expires", "flags", "is_committed", "is_rotten", "reserved", "size", "stamp", "user")

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.size = 0
        self.reserved = 0
        self.stamp = (0, 0)
        self.user = 0
        self.flags = 0x140
        self.is_committed = True
        self.is_rotten = False
        self.expires = 0.0

    @property
    def data(self) -> bytes:
        return bytes(self.buffer[: self.size])


class Backend:
    def __init__(self, number: int, group: int, names: Iterable[str], path: str = "") -> None:
        self.number, self.group = number, group
        self.ids = [sha(name.encode()) for name in names]
        self.path = path or f"/mnt/b{number}/data-0.0"
        self.disk: dict[bytes, Record] = {}
        self.cache: dict[bytes, Record] = {}
        self.dead = 0
        self.is_off = self.is_read_only = False
        self.delay = 0.0

    def rot(self, id: bytes) -> None:
        """Its bytes on the disk are other ones now."""
        self.disk[id].buffer[0] ^= 0xFF
        self.disk[id].is_rotten = True

    def cached(self, id: bytes) -> Record | None:
        found = self.cache.get(id)
        if found is not None and found.expires and found.expires <= time.monotonic():
            del self.cache[id]
            return None
        return found

    def there(self, id: bytes) -> Record | None:
        found = self.cached(id) or self.disk.get(id)
        return found if found is not None and found.is_committed else None


class Cluster:
    """
    Attributes:
        rings: who has what; to be cleared when that changes.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.rings: dict[int, tuple[list[bytes], list[tuple[Node, Backend]]]] = {}

    @property
    def alive(self) -> list[Node]:
        return [node for node in self.nodes if node.is_up]

    async def add(self, backends: list[Backend], port: int = 0) -> Node:
        """A node joins."""
        node = Node(self, backends, port)
        self.nodes.append(node)
        await node.start()
        return node

    async def stop(self) -> None:
        for node in self.nodes:
            await node.stop()

    def owner(self, group: int, id: bytes) -> tuple[Node, Backend] | None:
        ring = self.rings.get(group)
        if ring is None:
            claims = [
                (id, node, backend)
                for node in self.alive
                for backend in node.backends
                if backend.group == group and not backend.is_off
                for id in backend.ids
            ]
            claims.sort(key=lambda each: each[0])
            ring = self.rings[group] = ([each[0] for each in claims], [each[1:] for each in claims])
        return ring[1][bisect_right(ring[0], id) - 1] if ring[0] else None

    def backends(self, group: int) -> list[Backend]:
        return [backend for node in self.nodes for backend in node.backends if backend.group == group]


async def cluster_of(*nodes: list[Backend]) -> Cluster:
    cluster = Cluster()
    for backends in nodes:
        await cluster.add(backends)
    return cluster


class Node:
    """
    Attributes:
        lie: makes of an answer (its bytes) what is sent instead.
        seen: how often which command came.
    """

    def __init__(self, cluster: Cluster, backends: list[Backend], port: int = 0) -> None:
        self.cluster, self.backends, self.port = cluster, backends, port
        self.lie: Callable[[bytes], list[bytes]] | None = None
        self.cookie = b""
        self.version = VERSION
        self.seen: Counter[int] = Counter()
        self.links: set[Link] = set()
        self.locks: dict[bytes, asyncio.Lock] = {}
        self.is_up = False
        self._server: asyncio.Server | None = None
        self._handlers = {
            LOOKUP: self._do_1,
            WRITE: self._do_4,
            READ: self._do_5,
            REMOVE: self._do_11,
            BULK_READ: self._do_17,
            ITERATE: self._do_19,
        }

    @property
    def address(self) -> bytes:
        raw = struct.pack("<H", 2) + struct.pack(">H", self.port) + socket.inet_aton("127.0.0.1")
        return raw.ljust(28, b"\0") + struct.pack("<HH", 16, 2)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Link(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self.is_up = True
        self.cluster.rings.clear()

    async def stop(self) -> None:
        self.is_up = False
        self.cluster.rings.clear()
        if self._server is not None:
            self._server.close()
            for link in list(self.links):
                link.abort()
            await self._server.wait_closed()
            self._server = None

    # ------------------------------------------------------------------ routes

    def told(self, some: Iterable[Backend]) -> bytes:
        parts = []
        for each in some:
            if each.is_off:
                parts.append(struct.pack("<iiII", each.number, 0, 1, 0))
            else:
                parts.append(struct.pack("<iiII", each.number, each.group, 0, len(each.ids)) + b"".join(each.ids))
        return struct.pack("<i", len(parts)) + b"".join(parts)

    def push(self, *some: Backend) -> None:
        payload = self.told(some)
        header = HEADER.pack(bytes(64), 0, 0, 0, ROUTES, 0, 0, DIRECT | NO_LOCK, 0, len(payload))
        for link in self.links:
            if link.is_greeted:
                link.send(header + payload)

    def switch(self, number: int, is_off: bool) -> None:
        backend = self.backend(number)
        assert backend is not None
        backend.is_off = is_off
        self.cluster.rings.clear()
        self.push(backend)

    def backend(self, number: int) -> Backend | None:
        return next((each for each in self.backends if each.number == number), None)

    # ------------------------------------------------------------------ requests

    def take(self, link: Link, fields: tuple[Any, ...], payload: bytes) -> None:
        id, group, _, _, command, number, _, flags, _, _ = fields
        if flags & REPLY:
            return
        self.seen[command] += 1
        if command in NODE_COMMANDS:
            answer = getattr(self, f"_node_{command}", None)
            if answer is not None:
                answer(link, fields, payload)
            return
        where: tuple[Node, Backend] | None
        if flags & DIRECT and flags & BACKEND:
            own = self.backend(number)
            where = None if own is None or own.is_off or own.group != group else (self, own)
        else:
            where = self.cluster.owner(group, id)
            if where is not None and where[0] is not self and flags & DIRECT:
                where = None
        if where is None:
            link.answer(fields, -95, number=-1)
            return
        node, backend = where
        node.serve(link, fields, payload, backend)

    def serve(self, link: Link, fields: tuple[Any, ...], payload: bytes, backend: Backend) -> None:
        handler = self._handlers.get(fields[4])
        if handler is None:
            link.answer(fields, -95, number=backend.number)
        elif backend.delay:
            task = asyncio.ensure_future(self._later(link, fields, payload, backend, handler))
            link.tasks.add(task)
            task.add_done_callback(link.tasks.discard)
        else:
            handler(link, fields, payload, backend)

    async def _later(self, link: Link, fields: Any, payload: bytes, backend: Backend, handler: Any) -> None:
        lock = self.locks.setdefault(fields[0], asyncio.Lock())
        async with lock:
            await asyncio.sleep(backend.delay)
            handler(link, fields, payload, backend)

    def _node_2(self, link: Link, fields: Any, payload: bytes) -> None:
        if fields[0][:8] != self.version[:8]:
            link.abort()
            return
        link.is_greeted = True
        body = struct.pack("<ii", 1, 1) + self.address + self.told(each for each in self.backends if not each.is_off)
        link.answer((self.version, *fields[1:7], fields[7] & ~DIRECT, *fields[8:]), 0, body, number=0)
        if fields[7] & ACK:
            link.answer((self.version, *fields[1:]), 0, number=0)

    def _node_8(self, link: Link, fields: Any, payload: bytes) -> None:
        known = [self, *(node for node in self.cluster.alive if node is not self)]
        body = struct.pack("<ii", 1, len(known)) + b"".join(node.address for node in known)
        flags = fields[7] & ~DIRECT
        link.answer((*fields[:7], flags, *fields[8:]), 0, body, number=0)

    def _node_13(self, link: Link, fields: Any, payload: bytes) -> None:
        link.answer(fields, 0, struct.pack("<III", 5, 0, 2), True, -1)
        link.answer(fields, 0, number=-1)

    def _node_16(self, link: Link, fields: Any, payload: bytes) -> None:
        link.answer(fields, 0 if payload.rstrip(b"\0") == self.cookie else -1, number=-1)

    def _node_25(self, link: Link, fields: Any, payload: bytes) -> None:
        number, action = struct.unpack_from("<II", payload)
        _, delay, _ = struct.unpack_from("<III", payload, 60)
        backend = self.backend(number)
        if backend is None:
            link.answer(fields, -22, number=-1)
            return
        if action in (0, 1):
            if backend.is_off == bool(action):
                link.answer(fields, -114, number=-1)
                return
            self.switch(number, bool(action))
        elif action in (4, 5):
            backend.is_read_only = action == 4
        elif action == 6:
            backend.delay = delay / 1000
        link.answer(fields, 0, struct.pack("<I", 1) + _status(backend), number=-1)

    def _node_26(self, link: Link, fields: Any, payload: bytes) -> None:
        body = struct.pack("<I", len(self.backends)) + b"".join(map(_status, self.backends)) + bytes(96)
        link.answer(fields, 0, body, number=-1)

    # ------------------------------------------------------------------ records

    def _info(
        self, backend: Backend, record: Record, size: int, checksum: bytes = bytes(64), name: bool = True
    ) -> bytes:
        path = backend.path.encode() + b"\0" if name else b""
        packed = INFO.pack(
            self.address, len(path), checksum, record.flags if name else 0, size, 144 if name else 0, *record.stamp
        )
        return packed + (path or b"\0")

    def _do_1(self, link: Link, fields: Any, payload: bytes, backend: Backend) -> None:
        id, flags = fields[0], fields[7]
        found = backend.disk.get(id)
        if found is None or not found.is_committed:
            cached = backend.cached(id)
            if cached is None:
                return link.answer(fields, -2, number=backend.number)
            return link.answer(fields, 0, self._info(backend, cached, 0, name=False), number=backend.number)
        checksum = bytes(64)
        if flags & CHECKSUM:
            if found.is_rotten:
                return link.answer(fields, -84, number=backend.number)
            checksum = sha(found.data)
        link.answer(fields, 0, self._info(backend, found, found.size, checksum), number=backend.number)

    def _do_4(self, link: Link, fields: Any, payload: bytes, backend: Backend) -> None:
        if len(payload) < IO.size:
            return link.answer(fields, -22, number=backend.number)
        parent, id, _, num, seconds, nanos, user, _, _, _, mode, offset, size = IO.unpack_from(payload)
        data = payload[IO.size :][:size]
        data += RUBBISH * (size - len(data))
        status = self._check(backend, id, parent, (seconds, nanos), mode)
        if status:
            return link.answer(fields, status, number=backend.number)
        if mode & CACHE:
            return self._to_cache(link, fields, backend, data)
        record = backend.disk.get(id)
        status, record = _written(record, data, mode, offset, num)
        if status or record is None:
            return link.answer(fields, status, number=backend.number)
        backend.cache.pop(id, None)
        record.stamp, record.user = (seconds, nanos), user
        if record.is_committed:
            record.flags = 0x142 if mode & UNVERIFIED else record.flags
        if id in backend.disk and (not mode & PLAIN or mode & PREPARE):
            backend.dead += 1
            del backend.disk[id]
        backend.disk[id] = record
        told = len(data) if mode & APPEND else record.size if record.is_committed else 0
        answer = b"" if mode & IO_CHECKSUM else self._info(backend, record, told)
        link.answer(fields, 0, answer, number=backend.number)

    def _check(self, backend: Backend, id: bytes, parent: bytes, stamp: tuple[int, int], mode: int) -> int:
        if backend.is_read_only:
            return -30
        there = backend.there(id)
        if there is not None:
            if mode & NOT_OLDER and there.stamp > stamp:
                return -77
            if mode & SWAP and sha(there.data) != parent:
                return -77
        return 0

    def _to_cache(self, link: Link, fields: Any, backend: Backend, data: bytes) -> None:
        payload = fields[-1]
        _, id, start, _, seconds, nanos, user, _, _, _, mode, _, _ = IO.unpack_from(payload)
        record = Record()
        record.buffer, record.size, record.stamp, record.user = bytearray(data), len(data), (seconds, nanos), user
        record.expires = time.monotonic() + start if start else 0.0
        backend.cache[id] = record
        if not mode & CACHE_ONLY:
            asyncio.get_running_loop().call_later(SYNC, backend.disk.__setitem__, id, record)
        link.answer(fields, 0, self._info(backend, record, len(data), name=False), number=backend.number)

    def _do_5(self, link: Link, fields: Any, payload: bytes, backend: Backend) -> None:
        if len(payload) < IO.size:
            return link.answer(fields, -22, number=backend.number)
        io = IO.unpack_from(payload)
        status, answer = self._read(backend, io)
        link.answer(fields, status, answer, number=backend.number)

    def _read(self, backend: Backend, io: tuple[Any, ...]) -> tuple[int, bytes]:
        parent, id, start, num, _, _, _, _, _, _, mode, offset, size = io
        cached = backend.cached(id)
        found = cached if cached is not None or mode & CACHE_ONLY else backend.disk.get(id)
        if found is None or not found.is_committed:
            return -2, b""
        if offset >= found.size:
            return (-7 if cached is None else -22), b""
        if found.is_rotten and not mode & UNVERIFIED:
            return -84, b""
        data = bytes(memoryview(found.buffer)[offset : min(found.size, offset + size) if size else found.size])
        if mode & IO_CHECKSUM:
            parent = sha(data)
        flags = 0 if cached is not None else found.flags
        mode |= CACHE if cached is not None else 0
        head = IO.pack(parent, id, start, num, *found.stamp, found.user, found.size, flags, 0, mode, offset, len(data))
        return 0, head + data

    def _do_11(self, link: Link, fields: Any, payload: bytes, backend: Backend) -> None:
        if len(payload) < IO.size:
            return link.answer(fields, -22, number=backend.number)
        if backend.is_read_only:
            return link.answer(fields, -30, number=backend.number)
        found = backend.disk.pop(fields[0], None)
        backend.dead += found is not None
        cached = backend.cache.pop(fields[0], None)
        link.answer(fields, 0 if found is not None or cached is not None else -2, number=backend.number)

    def _do_17(self, link: Link, fields: Any, payload: bytes, backend: Backend) -> None:
        single = (*fields[:4], READ, *fields[5:])
        for at in range(IO.size, len(payload), IO.size):
            io = IO.unpack_from(payload, at)
            status, answer = self._read(backend, io)
            link.answer(single if status else (io[1], *single[1:]), status, answer, True, backend.number)
        link.answer(fields, 0, number=backend.number)

    def _do_19(self, link: Link, fields: Any, payload: bytes, backend: Backend) -> None:
        if len(payload) < ITERATOR.size:
            return link.answer(fields, -22, number=backend.number)
        _, action, count, begin, end, kind, flags, _, _ = ITERATOR.unpack_from(payload)
        if action == 4:
            return link.answer(fields, -2, number=backend.number)
        if action != 1 or kind != 2:
            return link.answer(fields, -22, number=backend.number)
        at = ITERATOR.size
        ranges = [(payload[i : i + 64], payload[i + 64 : i + 128]) for i in range(at, at + count * 128, 128)]
        if any(low > high for low, high in ranges):
            return link.answer(fields, -34, number=backend.number)
        times = struct.unpack("<QQ", begin), struct.unpack("<QQ", end)
        total, seen = len(backend.disk) + backend.dead, 0
        for id, record in list(backend.disk.items()):
            seen += 1
            if flags & 2 and not any(low <= id <= high for low, high in ranges):
                continue
            if flags & 4 and not times[0] <= record.stamp <= times[1]:
                continue
            data = record.data if flags & 1 else b""
            status = -84 if flags & 1 and record.is_rotten else 0
            item = ITEM.pack(0, id, status, *record.stamp, record.user, record.size, seen, total, record.flags)
            link.answer(fields, 0, item + data, True, backend.number)
        link.answer(fields, 0, number=backend.number)


def _status(backend: Backend) -> bytes:
    packed = struct.pack("<III", backend.number, not backend.is_off, 0) + bytes(20)
    return (packed + struct.pack("<B7xI", backend.is_read_only, int(backend.delay * 1000))).ljust(96, b"\0")


def _written(record: Record | None, data: bytes, mode: int, offset: int, num: int) -> tuple[int, Record | None]:
    """What becomes of a record on the disk."""
    if mode & PREPARE:
        if num >= 1 << 50:
            return -27, None
        record = Record()
        record.reserved, record.is_committed, record.flags = max(num, len(data)), False, 0x1C0
        record.buffer[0 : len(data)] = data
        record.size = len(data)
        if mode & COMMIT:
            record.is_committed, record.flags = True, 0x140
        return 0, record
    if mode & (PLAIN | COMMIT):
        if record is None:
            return -2, None
        if offset + len(data) > max(record.reserved, record.size):
            return -7, None
        _put(record, offset, data)
        if mode & COMMIT:
            record.size = num or record.size
            record.buffer.extend(bytes(max(0, record.size - len(record.buffer))))
            record.is_committed, record.flags = True, 0x140
        return 0, record
    if not data and record is None:
        return -2, None
    if not data:
        return 0, record
    new = Record()
    if record is not None and record.is_committed:
        new.buffer, new.size = bytearray(record.buffer), record.size
    if mode & APPEND:
        offset, new.flags = new.size, 0x150
    elif offset == 0:
        new.size = 0
    _put(new, offset, data)
    return 0, new


def _put(record: Record, offset: int, data: bytes) -> None:
    record.buffer.extend(bytes(max(0, offset + len(data) - len(record.buffer))))
    record.buffer[offset : offset + len(data)] = data
    record.size = max(record.size, offset + len(data))


class Link(asyncio.Protocol):
    """A client's connection."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.is_greeted = False
        self.tasks: set[Any] = set()
        self._transport: Any = None
        self._buffer = bytearray()
        self._out: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.node.links.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.node.links.discard(self)
        for task in self.tasks:
            task.cancel()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= HEADER.size:
            fields = HEADER.unpack_from(buffer, at)
            size = fields[-1]
            if size > 1 << 40:
                return self.abort()
            if len(buffer) - at < HEADER.size + size:
                break
            payload = bytes(buffer[at + HEADER.size : at + HEADER.size + size])
            at += HEADER.size + size
            self.node.take(self, (*fields[:-1], payload), payload)
        if at:
            del buffer[:at]
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out = []

    def answer(
        self, fields: tuple[Any, ...], status: int, payload: bytes = b"", more: bool = False, number: int = 0
    ) -> None:
        id, group, _, _, command, _, trace, flags, transaction, _ = fields
        flags = flags & ~(ACK | MORE) | REPLY | (MORE if more else flags & MORE)
        message = HEADER.pack(id, group, 0, status, command, number, trace, flags, transaction, len(payload)) + payload
        if self.node.lie is None:
            self.send(message)
        else:
            for each in self.node.lie(message):
                self.send(each)

    def send(self, message: bytes) -> None:
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(message)

    def _flush(self) -> None:
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
        self._out = []


async def _main(port: int) -> None:
    backends = [Backend(1, 1, ("A1-0", "A1-1")), Backend(2, 2, ("A2-0", "A2-1"))]
    cluster = Cluster()
    node = await cluster.add(backends, port)
    print(node.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
