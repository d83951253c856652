"""The frames at the door: bytes that come in any pieces are the messages that were sent; appends are not copied."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grape.errors import ProtocolError
from grape.protocol.door import Append, BadInput, Batch, Batches, CloseStream, FromClient, Named, Part, Stop
from grape.protocol.framing import append_frame, batches_frame, client_frames, frame, joined

parts = st.builds(
    Part,
    st.text(max_size=40),
    st.integers(0, 4_095),
    st.integers(0, 2**31 - 1),
    st.one_of(st.binary(max_size=300), st.sampled_from([bytes(70_000), b"\x90" * 400_000])).map(memoryview),
)
appends = st.builds(
    Append,
    st.integers(0, 100),
    st.integers(1, 2**40),
    st.binary(max_size=50),
    st.lists(parts, max_size=20),
    st.lists(st.builds(BadInput, st.text(), st.text(), st.binary(), st.text(), st.text()), max_size=3),
    st.lists(st.builds(Named, st.text(), st.integers(0, 2**32 - 1), st.none() | st.text()), max_size=3),
    st.integers(0, 2**40),
    st.booleans(),
    st.booleans(),
)
bodies = st.builds(
    lambda size: memoryview(bytes(size)), st.sampled_from([0, 1, 255, 256, 65_535, 65_536]) | st.integers(0, 99)
)
numbers = st.integers(0, 2**40)
items = st.builds(Batch, st.integers(0, 65_535), numbers, bodies, numbers, numbers, st.lists(numbers, max_size=3))
messages = st.one_of(appends, st.builds(CloseStream, st.integers(0, 9), st.booleans()), st.just(Stop()))


@given(appends)
def test_an_append_in_pieces_has_the_bytes_of_its_frame(append: Append) -> None:
    assert b"".join(append_frame(append)) == bytes(frame(append))


@given(st.integers(0, 100), st.integers(1, 2**40), st.lists(items, max_size=20))
def test_batches_in_pieces_have_the_bytes_of_their_frame(reader: int, number: int, items: list[Batch]) -> None:
    message = Batches(reader, number, items)
    pieces = batches_frame(message)
    assert b"".join(pieces) == b"".join(joined(pieces)) == bytes(frame(message))


@settings(deadline=None)
@given(
    st.lists(messages, max_size=6),
    st.lists(st.integers(1_000, 500_000) | st.integers(1, 50_000), min_size=1, max_size=8),
)
def test_what_comes_in_any_pieces_is_what_was_sent(sent: list[FromClient], sizes: list[int]) -> None:
    data = memoryview(b"".join(bytes(frame(message)) for message in sent))
    frames = client_frames()
    got: list[FromClient] = []
    at = turn = 0
    while at < len(data):
        place = frames.buffer()
        size = min(len(place), len(data) - at, sizes[turn % len(sizes)])
        place[:size] = data[at : at + size]
        got += frames.filled(size)
        at, turn = at + size, turn + 1
    assert [bytes(frame(message)) for message in got] == [bytes(frame(message)) for message in sent]


def test_a_frame_over_the_limit_and_bytes_that_are_none_are_refused() -> None:
    for garbage in (b"\xff\xff\xff\xff", b"\x05\x00\x00\x00\xc0", b"\x01\x00\x00\x00\x90"):
        frames = client_frames()
        frames.buffer()[: len(garbage)] = garbage
        with pytest.raises(ProtocolError):
            frames.filled(len(garbage))
