"""The client says byte for byte what the original one has said, and understands what the real server has answered; the
server of the tests answers what the real one has.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from elliptics.facts import FACTS, answered, asked
from elliptics.server import Backend, Cluster, Node
from grape.storage.elliptics import wire
from grape.storage.elliptics.client import Client, Settings
from grape.storage.elliptics.connection import Connection
from grape.storage.elliptics.failures import Refusal
from grape.storage.elliptics.wire import HEADER, ZERO, Address, Frames, Mode, Request, Scan, Stamp, To, Writing, id_of

K1, K2, K3, K4, K5, MISSING = (id_of("", key) for key in ("k1", "k2", "k3", "k4", "k5", "missing"))
RING = hashlib.sha512(b"A1-0").digest()
NUMBERS = hashlib.sha512(b"0123456789").digest()
OWN = Stamp(1_700_000_000, 123_456_789)


def to(id: bytes, trace: int = 0, backend: int = 1, group: int = 2, flags: int = 1) -> To:
    return To(group, id, backend, flags, trace)


def at(micros: int) -> Stamp:
    return wire.stamp(micros)


def put(id: bytes, trace: int, data: bytes, how: Writing) -> Request:
    return wire.write(to(id, trace), data, how)


C19 = id_of("ns1", "k2")
REQUESTS: list[tuple[str, int, Request]] = [
    ("C1", 0, wire.hello()),
    ("C2", 0, wire.route_list()),
    ("C3", 0, put(K1, 0x1102, b"hello", Writing(at(1795456451_786322)))),
    ("C4", 0, wire.read(to(K1, 0x1103), 0, 0)),
    ("C5", 0, wire.lookup(to(K1, 0x1104))),
    ("C6", 0, wire.read(to(MISSING, 0x1105), 0, 0)),
    ("C7", 0, wire.remove(to(K1, 0x1107))),
    ("C8", 0, wire.remove(to(K1, 0x1108))),
    ("C9", 0, put(K2, 0x110A, b"0123456789", Writing(OWN, 0xDEADBEEFCAFE))),
    ("C10", 0, wire.read(to(K2, 0x110B), 3, 4)),
    ("C11", 0, wire.read(to(K2, 0x110C), 100, 0)),
    ("C12", 0, wire.read(to(K2, 0x110E), 0, 0, Mode.CHECKSUM)),
    ("C13", 0, wire.lookup(to(K2, 0x110F, flags=0x21))),
    ("C14", 0, put(K2, 0x1110, b"cas-new-value", Writing(at(1795456453_899721), 0, Mode.SWAP, 0, 13, 0, NUMBERS))),
    ("C15", 0, put(K2, 0x1111, b"cas-bad", Writing(at(1795456454_050601), 0, Mode.SWAP, 0, 7, 0, NUMBERS))),
    ("C16", 0, put(K2, 0x1112, b"older", Writing(Stamp(1_699_999_990, 123_456_789), 0, Mode.NOT_OLDER))),
    ("C17", 0, put(K2, 0x1114, b"+app", Writing(at(1795456454_503144), 0, Mode.APPEND))),
    ("C18", 0, put(K2, 0x1115, b"nfi", Writing(at(1795456454_654022), 0, Mode.CHECKSUM))),
    ("C19", 0, put(C19, 0x1116, b"namespaced", Writing(at(1795456454_804881)))),
    ("C20", 0, put(K3, 0x1117, b"AAAA", Writing(at(1795456454_955774), 0, Mode.PREPARE | Mode.PLAIN, 0, 32))),
    ("C20", 1, put(K3, 0x1119, b"BBBB", Writing(at(1795456455_257523), 0, Mode.PLAIN, 4, 8))),
    ("C20", 2, put(K3, 0x111A, b"CCCC", Writing(at(1795456455_408459), 0, Mode.COMMIT | Mode.PLAIN, 8, 12))),
    ("C20", 3, wire.read(to(K3, 0x111B), 0, 0)),
    ("C21", 0, put(K4, 0x111C, b"in-cache", Writing(at(1795456455_710229), 0, Mode.CACHE, 0, 0, 3600))),
    ("C22", 0, wire.bulk_read(to(K2, 0x111E), [K2, K3, MISSING], 1 << 20)),
    ("C23", 0, put(K5, 0x111F, b"two-groups", Writing(at(1795456456_162796)))),
    ("C23", 1, wire.write(to(K5, 0x111F, 2, 3), b"two-groups", Writing(at(1795456456_162796)))),
    ("C24", 0, wire.iterate(to(RING, 0x1124, 0, flags=0x11), Scan())),
    (
        "C25",
        0,
        wire.iterate(
            to(RING, 0x1125, 0, flags=0x11), Scan((), Stamp(1_600_000_000, 0), Stamp(1_900_000_000, 0), True), 1 << 16
        ),
    ),
    ("C26", 0, wire.iterate(to(RING, 0x1126, 0, flags=0x11), Scan(((bytes(64), b"\x3f" * 64),)))),
    ("C27", 0, wire.cancel(to(RING, 0x1127, 0, flags=0x11), 77)),
    ("C34", 0, wire.read(to(K1, 0, 0, 77), 0, 0)),
    ("C35", 0, wire.auth(b"qwerty")),
    ("C35", 1, wire.auth(b"nope")),
    ("C36", 0, wire.read(to(id_of("", "csum"), 0, 0), 0, 0)),
    ("C39", 0, wire.write(to(id_of("", "f2"), 0, 0), b"fwd", Writing(Stamp(1_700_000_000, 2), parent=id_of("", "f2")))),
    ("C40", 0, wire.read(to(id_of("", "f2"), 0, 0, flags=9), 0, 0)),
]


@pytest.mark.parametrize(("exchange", "index", "request_"), REQUESTS, ids=[f"{r[0]}-{r[1]}" for r in REQUESTS])
def test_requests_are_those_of_the_original_client(exchange: str, index: int, request_: Request) -> None:
    expected = asked(exchange, index)
    transaction = int.from_bytes(expected[0x68:0x70], "little")
    assert (request_.head(transaction) + request_.data).hex() == expected.hex()


def parsed(exchange: str, index: int = 0) -> wire.Message:
    (message,) = Frames(lambda header: 1 << 30).feed(answered(exchange, index))
    return message


def payload(exchange: str, index: int = 0) -> bytes:
    found = parsed(exchange, index).payload
    assert found is not None
    return found


def test_answers_are_understood() -> None:
    here = Address("127.0.0.1", 21025)
    welcome = wire.welcome(*parsed("C1"))  # type: ignore[arg-type]
    assert welcome.addresses == (here,)
    assert [(each.number, each.group, each.is_going, len(each.ids)) for each in welcome.backends] == [
        (1, 2, False, 2),
        (2, 3, False, 2),
    ]
    assert welcome.backends[0].ids[0] == RING
    assert wire.nodes(payload("C2")) == ((here,),)
    assert wire.nodes(payload("C38")) == ((here,), (Address("127.0.0.1", 21026),))
    info = wire.info(payload("C3"))
    assert (info.served_by, info.path, info.size, info.flags) == (here, b"/mnt/a1/data-0.0", 5, 0x140)
    assert info.stamp == at(1795456451_786322)
    assert wire.info(payload("C13")).checksum == NUMBERS
    cached = wire.info(payload("C21"))
    assert (cached.path, cached.size) == (b"", 8)
    assert wire.info(payload("C39")).served_by.port == 21026
    record = wire.record(payload("C10"), 3, 4)
    assert (record.id, record.data, record.total, record.stamp) == (K2, b"3456", 10, OWN)
    assert record.user_flags == 0xDEADBEEFCAFE
    assert wire.record(payload("C12")).checksum == NUMBERS
    assert wire.record(payload("C21", 1)).flags == 0
    item = wire.item(payload("C25"))
    assert (item.id, item.status, item.size, item.seen, item.total, item.data) == (K2, 0, 3, 1, 4, b"nfi")
    (gone,) = wire.routes(payload("C32"))
    assert (gone.number, gone.is_going, gone.ids) == (2, True, ())
    (back,) = wire.routes(payload("C32", 2))
    assert (back.number, back.group, back.is_going, len(back.ids)) == (2, 3, False, 2)
    assert [parsed(name).header.status for name in ("C6", "C11", "C15", "C31", "C34", "C36", "C40")] == [
        *(-2, -7, -77),
        *(0, -95, -84, -95),
    ]


class Replay(asyncio.Protocol):
    """A server that expects what was asked, byte for byte, and answers what was answered: in crumbs."""

    def __init__(self, exchanges: list[tuple[bytes, list[bytes]]], wrong: list[str]) -> None:
        self.exchanges, self.wrong, self.buffer = exchanges, wrong, b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while self.exchanges and len(self.buffer) >= len(self.exchanges[0][0]):
            expected, answers = self.exchanges.pop(0)
            got, self.buffer = self.buffer[: len(expected)], self.buffer[len(expected) :]
            if got != expected:
                self.wrong.append(f"{got.hex()} instead of {expected.hex()}")
                self.transport.abort()
                return
            for i in range(0, sum(map(len, answers)), 37):
                self.transport.write(b"".join(answers)[i : i + 37])


Do = Callable[[Client], Any]


async def replayed(names: list[tuple[str, int, Do]]) -> list[Any]:
    """What the client makes of exchanges, of which it has to send each request by itself."""
    exchanges = []
    for name in ("C1", "C2"):
        exchanges.append((asked(name), [answered(name)]))
    for name, index, _ in names:
        requests = [i for i, fact in enumerate(FACTS[name]) if fact.direction == ">"]
        begin = requests[index]
        end = requests[index + 1] if index + 1 < len(requests) else len(FACTS[name])
        if name == "C23":  # two that were under way at the same time
            exchanges.append((asked(name) + asked(name, 1), [answered(name), answered(name, 1)]))
        else:
            exchanges.append((FACTS[name][begin].message, [fact.message for fact in FACTS[name][begin + 1 : end]]))
    wrong: list[str] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Replay(exchanges, wrong), "127.0.0.1", 0)
    client = Client(Settings(seeds=(("127.0.0.1", server.sockets[0].getsockname()[1]),), timeout=5.0))
    await client.open()
    found = []
    for name, index, do in names:
        header = asked(name, index)
        client.trace = int.from_bytes(header[0x58:0x60], "little")
        (node,) = client._nodes.values()
        link = node.links[0]
        assert isinstance(link, Connection)
        link._number = int.from_bytes(header[0x68:0x70], "little")
        try:
            found.append(await do(client))
        except Refusal as e:
            found.append(e.status)
    await client.close()
    server.close()
    assert wrong == []
    assert exchanges == []
    return found


def test_a_client_at_work_says_the_same_bytes() -> None:
    """Hello, route list, then all that was captured raw, over a socket; then what was put together of its fields."""

    def write(id: bytes, data: bytes, how: Writing) -> Do:
        return lambda client: client.write(2, id, data, how)

    def swap(micros: int, data: bytes) -> Do:
        return write(K2, data, Writing(at(micros), 0, Mode.SWAP, 0, len(data), 0, NUMBERS))

    async def both(client: Client) -> list[int]:
        how = Writing(at(1795456456_162796))
        return [
            each.size
            for each in await asyncio.gather(*(client.write(group, K5, b"two-groups", how) for group in (2, 3)))
        ]

    found = asyncio.run(
        replayed(
            [
                ("C3", 0, write(K1, b"hello", Writing(at(1795456451_786322)))),
                ("C4", 0, lambda client: client.read(2, K1)),
                ("C5", 0, lambda client: client.lookup(2, K1)),
                ("C6", 0, lambda client: client.read(2, MISSING)),
                ("C7", 0, lambda client: client.remove(2, K1)),
                ("C8", 0, lambda client: client.remove(2, K1)),
                ("C9", 0, write(K2, b"0123456789", Writing(OWN, 0xDEADBEEFCAFE))),
                ("C10", 0, lambda client: client.read(2, K2, 3, 4)),
                ("C11", 0, lambda client: client.read(2, K2, 100)),
                ("C12", 0, lambda client: client.read(2, K2, 0, 0, Mode.CHECKSUM)),
                ("C13", 0, lambda client: client.lookup(2, K2, True)),
                ("C14", 0, swap(1795456453_899721, b"cas-new-value")),
                ("C15", 0, swap(1795456454_050601, b"cas-bad")),
                ("C16", 0, write(K2, b"older", Writing(Stamp(1_699_999_990, 123_456_789), 0, Mode.NOT_OLDER))),
                ("C17", 0, write(K2, b"+app", Writing(at(1795456454_503144), 0, Mode.APPEND))),
                ("C22", 0, lambda client: client.bulk_read(2, [K2, K3, MISSING], 1 << 20)),
                ("C23", 0, both),
            ]
        )
    )
    assert [getattr(each, "data", getattr(each, "size", each)) for each in found[:15]] == [
        *(5, b"hello", 5, -2, True, False),
        *(10, b"3456", -7, b"0123456789", 10),
        *(13, -77, -77, 4),
    ]
    assert [getattr(each, "data", each) for each in found[15]] == [b"nfi", b"AAAABBBBCCCC", -2]
    assert found[16] == [10, 10]


class Heard:
    """A link that keeps what is said to it."""

    def __init__(self) -> None:
        self.is_greeted = False
        self.tasks: set[Any] = set()
        self.said: list[bytes] = []

    def answer(self, fields: Any, status: int, payload: bytes = b"", more: bool = False, number: int = 0) -> None:
        id, group, _, _, command, _, trace, flags, transaction, _ = fields
        flags = flags & ~3 | 0x200 | (2 if more else flags & 2)
        head = wire._HEADER.pack(id, group, 0, status, command, number, trace, flags, transaction, len(payload))
        self.said.append(head + payload)

    def send(self, message: bytes) -> None:
        self.said.append(message)


def test_the_server_of_the_tests_answers_as_the_real_one() -> None:
    """All that was asked of one node in turn; where in a file something lies, and when a backend started, is theirs."""
    cluster = Cluster()
    first = Node(
        cluster,
        [Backend(1, 2, ("A1-0", "A1-1"), "/mnt/a1/data-0.0"), Backend(2, 3, ("A2-0", "A2-1"), "/mnt/a2/data-0.0")],
        21025,
    )
    second = Node(cluster, [Backend(0, 2, ("B1-0", "B1-1"), "/mnt/b1/data-0.0")], 21026)
    cluster.nodes.append(first)
    first.is_up = True
    first.cookie = b"qwerty"
    link: Any = Heard()
    first.links.add(link)
    compared, unseen = 0, []
    for name in FACTS:
        if name in ("C24", "C25", "C26", "C28", "C36", "C37", "C41"):  # of records or commands that are not here
            continue
        if name == "C38":
            cluster.nodes.append(second)
            second.is_up = True
            cluster.rings.clear()
        link.is_greeted = name == "C32"  # routes are told to who has said hello
        first.backends[1].is_read_only = False  # it was made writable in between
        link.said = []
        for fact in FACTS[name]:
            if fact.direction == ">":
                asyncio.run(_take(first, link, fact.message))
                if name == "C21":
                    asyncio.run(_take(first, link, wire.read(To(2, K4, 1, 1, 0x111D), 0, 0).head(0x1D)))
            else:
                while link.said and _masked(link.said[0]) != _masked(fact.message):
                    unseen.append((name, link.said.pop(0)))  # its answer was not written down
                assert link.said, (name, fact.message.hex(), unseen[-1][1].hex())
                link.said.pop(0)
                compared += 1
    assert {name for name, _ in unseen} <= {"C20", "C32"}
    assert compared > 30


async def _take(node: Node, link: Any, message: bytes) -> None:
    fields = wire._HEADER.unpack_from(message)
    node.take(link, (*fields[:-1], message[HEADER:]), message[HEADER:])


def _masked(message: bytes) -> bytes:
    """Without what is only theirs."""
    found = bytearray(message)
    command = int.from_bytes(message[0x50:0x54], "little", signed=True)
    if command in (1, 4) and len(message) >= 0x108:
        found[0xF0:0xF8] = bytes(8)
    if command in (25, 26):
        for at_ in range(0x7C, len(message), 96):
            found[at_ + 12 : at_ + 32] = bytes(20)
        if command == 26:
            del found[0x7C + 2 * 96 :]
            found[0x70:0x78] = bytes(8)
    if message[0x4C:0x50] == bytes(4) and command == 5 and len(message) > HEADER:
        found[0x78:0xB8] = found[0x78:0xB8] if message[0x134:0x138] == b"\0\x40\0\0" else bytes(64)
    return bytes(found)


def test_ids() -> None:
    assert id_of("", "k1").hex().startswith("a6f3d2dffa085236")
    assert id_of("ns1", "k2") == hashlib.sha512(b"ns1\0k2").digest()
    assert ZERO == (0, 0)
