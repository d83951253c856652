"""Messages and records: there and back, in any fragments; and nothing that comes can do harm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elliptics.facts import FACTS
from grape.storage.elliptics import wire
from grape.storage.elliptics.failures import Nonsense
from grape.storage.elliptics.wire import IO, LARGEST, Address, Backend, Frames, Header, Mode, Stamp, To, Writing

IDS = st.binary(min_size=64, max_size=64)
U64 = st.integers(0, (1 << 64) - 1)
I32 = st.integers(-(1 << 31), (1 << 31) - 1)
U32 = st.integers(0, (1 << 32) - 1)
HEADERS = st.builds(Header, IDS, U32, U64, I32, I32, I32, U64, U64, U64, st.just(0))


def everything(header: Header) -> int:
    return 1 << 20


def packed(header: Header, payload: bytes) -> bytes:
    return wire._HEADER.pack(*header._replace(size=len(payload))) + payload


@given(st.lists(st.tuples(HEADERS, st.binary(max_size=300)), max_size=6), st.lists(st.integers(1, 400)))
def test_messages_come_in_any_fragments(messages: list[tuple[Header, bytes]], cuts: list[int]) -> None:
    data = b"".join(packed(header, payload) for header, payload in messages)
    frames = Frames(everything)
    found = []
    for cut in [*cuts, len(data)]:
        found += frames.feed(data[:cut])
        data = data[cut:]
    found += frames.feed(data)
    assert found == [(header._replace(size=len(payload)), payload) for header, payload in messages]
    assert frames.is_between


@given(HEADERS, st.binary(min_size=1, max_size=100), st.data())
def test_what_nobody_waits_for_is_read_over(header: Header, payload: bytes, data: st.DataObject) -> None:
    message = packed(header, payload) + packed(header, b"")
    cut = data.draw(st.integers(0, len(message)))
    frames = Frames(lambda header: -1)
    found = [*frames.feed(message[:cut]), *frames.feed(message[cut:])]
    assert [each.payload for each in found] == [None, None]


@given(HEADERS, st.integers(101, (1 << 64) - 1))
def test_a_size_that_lies_is_refused_before_anything_is_kept(header: Header, size: int) -> None:
    message = wire._HEADER.pack(*header._replace(size=size))
    with pytest.raises(Nonsense, match="it can have 100"):
        Frames(lambda header: 100).feed(message)
    if size > LARGEST:
        with pytest.raises(Nonsense, match="nobody has asked for"):
            Frames(lambda header: -1).feed(message)


STAMPS = st.builds(Stamp, U64, U64)


@given(IDS, U32, U32, U64, st.binary(max_size=50), st.builds(Writing, STAMPS, U64, U32, U64, U64, U64, IDS))
def test_what_is_written_is_what_a_read_says(
    id: bytes, group: int, backend: int, trace: int, data: bytes, how: Writing
) -> None:
    """The io attribute of a write has the layout of that of the answer to a read."""
    request = wire.write(To(group, id, backend & 0x7FFF, 1, trace), data, how)
    (message,) = Frames(everything).feed(request.head(7) + request.data)
    header, payload = message
    assert payload is not None
    assert (header.id, header.group, header.trace, header.transaction, header.size) == (
        *(id, group, trace, 7),
        IO + len(data),
    )
    fields = wire._IO.unpack_from(payload)
    assert fields == (
        *(how.parent, id, how.start, how.num, *how.stamp, how.user_flags, 0, 0, 0, how.mode, how.offset, len(data)),
    )
    total = how.offset + len(data)
    if total < 1 << 64:
        answer = wire._IO.pack(*fields[:7], total, *fields[8:]) + data
        found = wire.record(answer, how.offset)
        assert (found.id, found.stamp, found.user_flags, found.data) == (id, how.stamp, how.user_flags, data)


@given(st.binary(max_size=400))
def test_whatever_comes_is_parsed_or_refused(data: bytes) -> None:
    header = Header(bytes(64), 0, 0, 0, 0, 0, 0, 0, 0, 0)
    for parse in (wire.record, wire.info, wire.item, wire.nodes, wire.routes, lambda each: wire.welcome(header, each)):
        try:
            parse(data)
        except Nonsense:
            pass


@given(st.sampled_from(sorted(FACTS)), st.data())
def test_real_answers_that_are_changed_are_parsed_or_refused(exchange: str, data: st.DataObject) -> None:
    fact = data.draw(st.sampled_from(FACTS[exchange]))
    message = bytearray(fact.message)
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    try:
        for header, payload in Frames(everything).feed(bytes(message)):
            for parse in (wire.record, wire.info, wire.item, wire.nodes, wire.routes):
                try:
                    parse(payload or b"")
                except Nonsense:
                    pass
            wire.welcome(header, payload or b"")
    except Nonsense:
        pass


@given(
    st.sampled_from(["127.0.0.1", "10.1.2.3", "::1", "2001:db8::7"]),
    st.integers(1, 65535),
    st.lists(st.tuples(I32, I32, st.booleans(), st.lists(IDS, max_size=3)), max_size=4),
)
def test_addresses_and_routes(host: str, port: int, told: list[tuple[int, int, bool, list[bytes]]]) -> None:
    address = Address(host, port)
    assert wire.unpacked(wire.packed(address)) == address
    backends = tuple(Backend(number, group, going, tuple(ids)) for number, group, going, ids in told)
    payload = len(backends).to_bytes(4, "little") + b"".join(
        wire._BACKEND.pack(each.number, each.group, each.is_going, len(each.ids)) + b"".join(each.ids)
        for each in backends
    )
    assert wire.routes(payload) == backends
    with pytest.raises(Nonsense):
        wire.routes(payload + b"\0")
    if payload:
        with pytest.raises(Nonsense):
            wire.routes(payload[:-1])


def test_a_read_that_is_cut_or_too_long_is_refused() -> None:
    def answer(data: bytes, total: int, offset: int = 0, size: int | None = None) -> bytes:
        size = len(data) if size is None else size
        return wire._IO.pack(bytes(64), bytes(64), 0, 0, 0, 0, 0, total, 0x140, 0, 0, offset, size) + data

    assert wire.record(answer(b"abc", 3)).data == b"abc"
    assert wire.record(answer(b"bc", 3, 1), 1, 5).data == b"bc"
    for payload, start, wanted in (
        (answer(b"ab", 3), 0, 0),  # a part of it, and all was asked for
        (answer(b"ab", 3), 0, 3),
        (answer(b"abc", 3), 0, 2),  # more than was asked for
        (answer(b"abc", 3, 0, 4), 0, 0),  # it says it has more than it has
        (answer(b"abc", 3, 0, 2), 0, 0),
        (answer(b"abc", 2), 0, 0),  # more than there is
        (answer(b"abc", 4, 1), 0, 3),  # from elsewhere
        (b"", 0, 0),
    ):
        with pytest.raises(Nonsense):
            wire.record(payload, start, wanted)


def test_what_is_done_twice_is_another_thing() -> None:
    """So it is not sent again when nobody knows what has become of it."""
    for mode, again in (
        (0, True),
        (Mode.PLAIN, True),
        (Mode.NOT_OLDER, True),
        (Mode.APPEND, False),
        (Mode.SWAP, False),
        (Mode.COMMIT | Mode.PLAIN, False),
    ):
        assert wire.write(To(1, bytes(64)), b"1", Writing(mode=mode)).again is again
    assert not wire.remove(To(1, bytes(64))).again
    assert wire.read(To(1, bytes(64)), 0, 0).again
