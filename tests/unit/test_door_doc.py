"""docs/door.md says what the code speaks: its tables are compared with the messages, its vectors are computed."""

from __future__ import annotations

import re
import typing
from typing import Final

import msgspec
import pytest
from msgspec import Struct

from grape.engine.orders.orders import REST
from grape.host import verbs
from grape.host.door import MAX_UNREAD
from grape.protocol import door, queues
from grape.protocol.door import Accepted, Append, Ask, FromClient, FromEngine, Greeting, Named, OpenStream, Part, Stop
from grape.protocol.framing import MAX_FRAME, append_frame, frame
from grape.protocol.orders import (
    BURY_EVENTS,
    DELETE_STATE,
    DROP,
    DROP_EVENTS,
    MAX_ID,
    MOST,
    MOST_ORDERS,
    RETRY,
    Changes,
    Events,
    Letters,
    States,
)
from grape.protocol.place import DOOR
from unit.protocol_tables import (
    DOCS,
    ROW,
    check_table,
    names_of,
    sections_of,
    shown_bytes,
    structs_of,
    tagged,
    type_of,
)

TEXT: Final = (DOCS / "door.md").read_text()
SECTIONS: Final = sections_of(TEXT)
SPOKEN: Final = structs_of(door)


@pytest.mark.parametrize("name", SPOKEN)
def test_a_table_is_what_the_code_speaks(name: str) -> None:
    check_table(SECTIONS, name, SPOKEN[name])


def test_what_has_no_struct_of_its_own() -> None:
    hints = typing.get_type_hints(Named)
    want = [(str(number), field, type_of(hints[field])) for number, field in enumerate(Named._fields)]
    assert [(number, field, kind) for number, field, kind, _ in ROW.findall(SECTIONS["Named"][1])] == want


def test_all_messages_are_described_and_nothing_else() -> None:
    assert SECTIONS.keys() == SPOKEN.keys() | {"Named"}
    assert tagged(SECTIONS) == names_of(FromClient, FromEngine)
    assert all(struct.__struct_config__.array_like for struct in SPOKEN.values())
    assert all(("It has no fields." in SECTIONS[name][1]) != bool(s.__struct_fields__) for name, s in SPOKEN.items())


def test_the_version_and_the_limits() -> None:
    assert TEXT.startswith(f"# The door's protocol, version {door.VERSION}\n")
    assert f"most {MAX_FRAME:,} bytes" in TEXT
    assert f"{door.WINDOW:,} bytes" in TEXT
    assert f"{MAX_UNREAD:,} bytes" in TEXT
    assert f"lists of at most {1 << 18:,}" in TEXT
    assert f"the socket `{DOOR}` in the data directory" in TEXT


def test_the_verbs() -> None:
    never = typing.cast(typing.Any, None)
    rows = re.findall(r"^\| (\w+) \| nil \| a map", TEXT, re.MULTILINE)
    assert rows == [*verbs.telemetry(never, never, never)]
    asked: dict[str, type[Struct]] = {
        **dict.fromkeys((queues.PEEK, queues.POP), queues.Peek),
        **dict.fromkeys((queues.ACK, queues.NACK), queues.Tokens),
        **dict.fromkeys((queues.CLEAR, queues.FORGET, queues.STATS), queues.Which),
        **{queues.CONSUMERS: queues.Output, queues.TAIL: queues.Tail},
        **{RETRY: Letters, DROP: Letters, DROP_EVENTS: Events, BURY_EVENTS: Events, DELETE_STATE: States},
    }
    found = re.findall(r"^\| ([\w-]+) \| `\{([\w, ]+)\}` \|", TEXT, re.MULTILINE)
    assert found == [(verb, ", ".join(kind.__struct_fields__)) for verb, kind in asked.items()]
    assert "| answer | text" in TEXT
    assert all(f"`{field}`" in TEXT for field in Changes.__struct_fields__)
    assert f"over {MOST:,} ids or keys, an id of over {MAX_ID:,}" in TEXT
    assert f"Over {MOST_ORDERS} orders under way" in TEXT
    assert f"for {REST:g} seconds at most" in TEXT


def test_the_bytes() -> None:
    append = Append(0, 1, b"p", [Part("word", 2, 1, memoryview(b"\xab\xcd"))])
    wanted = [bytes(frame(message)) for message in (Greeting(1), Stop(), append, Accepted(0, 1))]
    assert shown_bytes(TEXT) == wanted
    assert b"".join(append_frame(append)) == wanted[2]


def test_what_may_be_left_out() -> None:
    decode = msgspec.msgpack.Decoder(FromClient).decode
    assert decode(msgspec.msgpack.encode([4, 7, "s"])) == OpenStream(7, "s")
    assert decode(msgspec.msgpack.encode([4, 7, "s", True, False, "new"])) == OpenStream(7, "s", True, False)
    assert decode(msgspec.msgpack.encode([13, 1, "numbers"])) == Ask(1, "numbers")
    assert decode(msgspec.msgpack.encode([5, 0, 1, b"", []])) == Append(0, 1, b"", [])
