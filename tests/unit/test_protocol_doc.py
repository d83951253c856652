"""docs/protocol.md says what the code speaks: its tables are compared with the messages, its vectors are computed."""

from __future__ import annotations

import re
from typing import Final
from zlib import crc32

import msgspec
import pytest

from grape.model import batch as codec
from grape.model import cursor, objects, topology, tracing
from grape.model.address import MAX_KEY_BYTES, partition_of
from grape.protocol import base, messages
from grape.protocol.framing import MAX_FRAME, frame, worker_frames
from grape.protocol.messages import Beat, FromWorker, Revoke, ToWorker
from unit.protocol_tables import DOCS, check_table, names_of, sections_of, shown_bytes, structs_of, tagged

TEXT: Final = (DOCS / "protocol.md").read_text()
SECTIONS: Final = sections_of(TEXT)


SPOKEN: Final = {
    **structs_of(messages),
    **structs_of(base),
    **structs_of(topology),
    "Progress": cursor.Progress,
    "Span": tracing.Span,
    "ObjectWrite": objects.ObjectWrite,
    "Stored": objects.Stored,
    "About": objects.About,
    "RunMeta": codec.RunMeta,
}


@pytest.mark.parametrize("name", SPOKEN)
def test_a_table_is_what_the_code_speaks(name: str) -> None:
    check_table(SECTIONS, name, SPOKEN[name])


def test_maps_and_arrays_are_told_apart() -> None:
    maps = {name for name, struct in SPOKEN.items() if not struct.__struct_config__.array_like}
    assert maps == {"TopologySpec", "NodeSpec", "StateSpec", "SlotSpec", "PoolSpec", "Limits", "RunMeta", "About"}


def test_all_messages_are_described_and_nothing_else() -> None:
    assert SECTIONS.keys() == SPOKEN.keys()
    assert tagged(SECTIONS) == names_of(ToWorker, FromWorker, base.ToSpeaker, base.FromSpeaker)


def test_the_version_and_the_limits() -> None:
    assert TEXT.startswith(f"# The worker protocol, version {messages.VERSION}\n")
    assert f"at most {MAX_FRAME:,} bytes" in TEXT
    assert f"1 to {MAX_KEY_BYTES:,} bytes" in TEXT
    assert codec.MAX_EVENTS == 2**31 - 1


def test_the_partitions() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| (\d+) \| (\d+) \| (\d+) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 5
    for key, crc, of32, of7 in rows:
        assert (crc32(key.encode()), partition_of(key, 32), partition_of(key, 7)) == (int(crc), int(of32), int(of7))


def test_the_bytes() -> None:
    whole = b"".join(shown_bytes(TEXT))
    for wanted in (frame(Beat()), frame(Revoke(3, 1)), codec.one("word", "k", 1)):
        assert bytes(wanted) in whole
    assert worker_frames().feed(bytes(frame(Beat()))) == [Beat()]


def test_what_may_be_left_out() -> None:
    decode = msgspec.msgpack.Decoder(ToWorker).decode
    assert decode(msgspec.msgpack.encode([2, 0, 1])) == messages.Assign(0, 1)
    assert decode(msgspec.msgpack.encode([2, 0, 1, [], True, True, "new"])) == messages.Assign(0, 1, empty=True)
