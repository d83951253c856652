"""Sources: what is read, from where it goes on, and what is refused."""

from __future__ import annotations

import array
import fcntl
import itertools
import os
import socket
import tempfile
import termios
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grape.abc.source import Bad, Chunk, Columns, Source, Values
from grape.connectors.callables import CallableSource
from grape.connectors.feeds import parse_feed
from grape.connectors.files import JsonLinesFile, TextFile
from grape.connectors.streams import Stream as Stdin
from grape.errors import UsageError
from grape.model.event import Event

Found = list[tuple[str | None, Any]]


class Odd:
    """Nothing of it can be had."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


def plain(value: Any) -> Any:
    return msgspec.msgpack.decode(value) if isinstance(value, msgspec.Raw) else value


def events_of(chunk: Chunk) -> Found:
    return [
        (key, plain(value))
        for c in chunk.columns
        for key, value in zip(c.keys or [None] * len(c.data), c.data, strict=True)
    ]


def sifted(chunk: Chunk) -> Chunk:
    """With columns for values and pairs that nobody has looked at."""
    columns: list[Columns] = []
    bad = list(chunk.bad)
    for part in chunk.columns:
        found, unfit = part.sift() if isinstance(part, Values) else ([part], [])
        columns += found
        bad += unfit
    return msgspec.structs.replace(chunk, columns=columns, bad=bad)


def chunks_of(source: Source, position: bytes = b"") -> Iterator[Chunk]:
    source.open(position)
    try:
        while (chunk := source.read(position)) is not None:
            assert chunk.position != position or isinstance(source, Stdin)
            position = chunk.position
            yield sifted(chunk)
    finally:
        source.close()


def drain(source: Source, position: bytes = b"") -> tuple[Found, list[Bad], bytes]:
    events: Found = []
    bad: list[Bad] = []
    for chunk in chunks_of(source, position):
        events += events_of(chunk)
        bad += chunk.bad
        position = chunk.position
    return events, bad, position


def complete(source: Source) -> Source:
    """Its input is complete: a last line without a line end is a line."""
    source.is_final = True
    return source


def refusal(source: Source, position: bytes = b"") -> str:
    with pytest.raises(UsageError) as refused:
        source.open(position)
    return str(refused.value)


# ------------------------------------------------------------------ text files


def straight(content: bytes, max_event: int) -> tuple[list[str], list[tuple[int, str, bytes]]]:
    """What a text file means, the slow way: texts, and (line, kind, raw) of what is bad."""
    texts, bad = [], []
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        if number == len(lines):
            if not line:
                break
        elif line.endswith(b"\r"):
            line = line[:-1]
        if len(line) > max_event:
            bad.append((number, "too-large", line[:1024]))
            continue
        try:
            texts.append(line.decode())
        except UnicodeDecodeError:
            bad.append((number, "not-utf8", line))
    return texts, bad


GROWING = [b'{"id":"a","n":[1]}', b'{"id":7} ', b'{"id":"\xc3\xa4\\n"}\r']
LINES = st.lists(
    st.one_of(
        st.binary(max_size=8),
        st.text(max_size=8).map(lambda t: t.encode()),
        st.sampled_from([b"", b"\r", b"a\r\n", b"\n", b"x" * 30, b"\xff", "ü".encode()]),
    ),
    max_size=12,
).flatmap(lambda parts: st.sampled_from([b"\n", b"\r\n", b""]).map(lambda end: end.join(parts) + end[:0]))
MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
CONTENT = st.one_of(LINES, LINES.map(lambda c: c + b"\n")).filter(lambda c: not c.startswith(MARKS))


def as_bad(bad: list[Bad]) -> list[tuple[int, str, bytes]]:
    return [(int(b.place.rpartition(":")[2]), b.kind, b.raw) for b in bad]


@settings(max_examples=300, deadline=None)
@given(CONTENT, st.integers(1, 40), st.integers(1, 20))
@example(b"a\r\nb\r", 2, 1)
@example(b"abcdefgh\r\n", 4, 8)
def test_whatever_the_blocks_and_restarts_the_lines_are_those_of_a_straight_read(
    content: bytes, block: int, max_event: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.txt")
        path.write_bytes(content)
        texts, wrong = straight(content, max_event)
        chunks = list(chunks_of(complete(TextFile("line", path, max_event, block=block))))
        assert [data for chunk in chunks for _, data in events_of(chunk)] == texts
        assert sum(chunk.size for chunk in chunks) == len(content)
        found = as_bad([bad for chunk in chunks for bad in chunk.bad])
        assert [b[:2] for b in found] == [b[:2] for b in wrong]
        for (_, _, ours), (_, _, theirs) in zip(found, wrong, strict=True):
            assert theirs.startswith(ours.rstrip(b"\r"))
        for i, chunk in enumerate(chunks, 1):
            events, bad, _ = drain(complete(TextFile("line", path, max_event, block=block)), chunk.position)
            assert events == [event for later in chunks[i:] for event in events_of(later)]
            assert as_bad(bad) == as_bad([b for later in chunks[i:] for b in later.bad])


@settings(max_examples=300, deadline=None)
@given(CONTENT, st.data(), st.integers(1, 40), st.integers(1, 20))
def test_a_file_that_is_cut_anywhere_between_runs_is_read_as_the_whole(
    content: bytes, data: st.DataObject, block: int, max_event: int
) -> None:
    """Whatever the last line was at the time: growth is no mistake, and each line is one event."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=4)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.txt")
        events: Found = []
        wrong_ones: list[Bad] = []
        position = b""
        for cut in cuts:
            path.write_bytes(content[:cut])
            found, bad, position = drain(TextFile("line", path, max_event, block=block), position)
            events += found
            wrong_ones += bad
        path.write_bytes(content)
        found, bad, _ = drain(complete(TextFile("line", path, max_event, block=block)), position)
        texts, wrong = straight(content, max_event)
        assert [text for _, text in events + found] == texts
        assert [b[:2] for b in as_bad(wrong_ones + bad)] == [b[:2] for b in wrong]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([b'{"id":"a","n":[1]}', b'{"id":7} ', b'{"id":"\xc3\xa4\\n"}\r', b"", b'{"id":']), max_size=8
    ),
    st.data(),
    st.integers(1, 60),
)
def test_json_lines_that_are_cut_anywhere_between_runs_are_read_as_the_whole(
    lines: list[bytes], data: st.DataObject, block: int
) -> None:
    content = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=4)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.jsonl")
        events: Found = []
        wrong: list[Bad] = []
        position = b""
        for cut in [*cuts, len(content)]:
            path.write_bytes(content[:cut])
            found, bad, position = drain(JsonLinesFile("o", path, key="id", block=block), position)
            events += found
            wrong += bad
        path.write_bytes(content)
        whole, bad, _ = drain(JsonLinesFile("o", path, key="id"))
        assert events == whole
        assert as_bad(wrong) == as_bad(bad)


def test_a_last_line_without_a_line_end_waits_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntw")
    source = TextFile("line", path)
    events, _, position = drain(source)
    assert [text for _, text in events] == ["one"]
    (said,) = source.news()
    assert f"{path}:2: the last line (2 bytes) has no line end yet" in said
    assert ",complete" in said
    assert source.news() == []
    path.write_bytes(b"one\ntwo\n")
    assert drain(TextFile("line", path), position)[0] == [(None, "two")]


def test_what_grows_behind_a_line_that_was_complete_is_a_dead_letter_and_the_file_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo")
    _, _, position = drain(complete(TextFile("line", path)))
    path.write_bytes(b"one\ntwo and more\nthree\n")
    events, bad, _ = drain(TextFile("line", path), position)
    assert [text for _, text in events] == ["three"]
    assert [(b.place, b.kind, b.raw) for b in bad] == [(f"{path}:2", "grown-line", b" and more")]
    path.write_bytes(b'{"a":1}')
    _, _, position = drain(JsonLinesFile("o", path))
    path.write_bytes(b'{"a":1} x\n2\n')
    events, bad, _ = drain(JsonLinesFile("o", path), position)
    assert events == [(None, 2)]
    assert [(b.place, b.kind, b.raw) for b in bad] == [(f"{path}:1", "grown-line", b" x")]


def test_a_number_at_the_end_waits_and_an_object_does_not(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for content, wanted in [(b"12", []), (b'{"a":1}', [(None, {"a": 1})]), (b'{"a":', []), (b"null", [(None, None)])]:
        path.write_bytes(content)
        assert drain(JsonLinesFile("o", path))[0] == wanted


def test_byte_order_marks_of_text_are_dropped_and_utf16_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfhello\nhello\n")
    for block in (2, 5, 1 << 20):
        assert [text for _, text in drain(TextFile("line", path, block=block))[0]] == ["hello", "hello"]
    path.write_bytes(b"\xef\xbb\xbf")
    assert drain(complete(TextFile("line", path)))[0] == [(None, "")]
    path.write_bytes("hello\n".encode("utf-16"))
    with pytest.raises(UsageError, match="UTF-16"):
        drain(TextFile("line", path))


def test_bad_lines_are_handed_on_some_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{\n" * 2_500 + b"1\n")
    chunks = list(chunks_of(JsonLinesFile("o", path)))
    assert [len(chunk.bad) for chunk in chunks] == [1_000, 1_000, 500]
    assert [b.place for chunk in chunks for b in chunk.bad] == [f"{path}:{n}" for n in range(1, 2_501)]
    assert events_of(chunks[-1]) == [(None, 1)]


def test_an_event_a_line_empty_ones_too_and_the_last_without_newline(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("one\n\nzwei ä\r\nin\rside\n  last".encode())
    events, bad, _ = drain(complete(TextFile("line", path)))
    assert [text for _, text in events] == ["one", "", "zwei ä", "in\rside", "  last"]
    assert not bad


def test_an_empty_file_has_no_events_and_may_grow(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"")
    assert drain(TextFile("line", path)) == ([], [], b"")
    path.write_bytes(b"\n")
    assert drain(TextFile("line", path))[0] == [(None, "")]


def test_keyless_and_named_by_event_and_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("x\n")
    monkeypatch.chdir(tmp_path)
    source = TextFile("line", "a.txt")
    assert source.name == f"line={tmp_path.resolve()}/a.txt"
    (chunk,) = chunks_of(source)
    assert chunk.columns[0].name == "line"
    assert chunk.columns[0].keys is None


def test_a_grown_file_goes_on_with_the_right_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo")
    _, _, position = drain(complete(TextFile("line", path)))
    path.write_bytes(b"one\ntwo\n\xff\nfour\n")
    source = TextFile("line", path)
    events, bad, _ = drain(source, position)
    assert [text for _, text in events] == ["four"]
    assert [(b.place, b.kind, b.raw) for b in bad] == [(f"{path}:3", "not-utf8", b"\xff")]
    assert "byte 0" in bad[0].text
    assert source.total() == len(b"\n\xff\nfour\n")


def test_a_shorter_file_is_refused_with_both_lengths(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\n")
    _, _, position = drain(TextFile("line", path))
    path.write_bytes(b"one\n")
    text = refusal(TextFile("line", path), position)
    assert str(path) in text
    assert "4 bytes" in text
    assert "8 bytes (2 lines)" in text
    assert "--data" in text


def test_another_content_is_refused_with_both_hashes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 10_000 + b"\n")
    _, _, position = drain(TextFile("line", path))
    path.write_bytes(b"x" * 9_999 + b"y\n" + b"more\n")
    text = refusal(TextFile("line", path), position)
    assert str(path) in text
    assert "4096 bytes before byte 10001 (line 1)" in text
    assert text.count("hash") == 1
    assert "but when they were read it was" in text
    path.write_bytes(b"y" * 5_000 + b"x" * 5_000 + b"\nmore\n")
    assert drain(TextFile("line", path), position)[0] == [(None, "more")]  # 4 KiB are looked at, not all


def test_a_damaged_position_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x\n")
    assert "position" in refusal(TextFile("line", tmp_path / "a.txt"), b"\x01")


def test_a_line_over_max_event_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.write(b"first\nlong")
        file.truncate(200 << 20)
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast\n")
    source = TextFile("line", path, 1 << 20)
    tracemalloc.start()
    events, bad, position = drain(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 << 20
    assert [text for _, text in events] == ["first", "last"]
    (b,) = bad
    assert (b.place, b.kind, b.raw) == (f"{path}:2", "too-large", b"long" + bytes(1020))
    assert f"{(200 << 20) - 6} bytes" in b.text
    assert "max-event (1048576" in b.text
    assert drain(TextFile("line", path), position)[0] == []


def test_a_line_over_a_block_but_not_over_max_event_is_an_event(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * 3_000_000 + b"\nb\n")
    assert [len(text) for _, text in drain(TextFile("line", path, 3_000_000))[0]] == [3_000_000, 1]


def test_a_missing_file_is_refused_with_near_misses(tmp_path: Path) -> None:
    (tmp_path / "orders.txt").write_text("")
    text = refusal(TextFile("line", tmp_path / "order.txt"))
    assert "no such file" in text
    assert "'orders.txt'" in text
    assert "directory" in refusal(TextFile("line", tmp_path / "no" / "order.txt"))


def test_directories_and_pipes_are_refused_with_a_remedy(tmp_path: Path) -> None:
    assert "is a directory" in refusal(TextFile("line", tmp_path))
    with pytest.raises(UsageError, match="is a directory"):
        parse_feed(f"line={tmp_path}")
    os.mkfifo(tmp_path / "pipe")
    assert "--feed line=-" in refusal(TextFile("line", tmp_path / "pipe"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.txt").chmod(0)
    assert "Permission denied" in refusal(TextFile("line", tmp_path / "a.txt"))


def test_reading_after_close_is_the_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    source = TextFile("line", tmp_path / "a.txt")
    source.open(b"")
    source.close()
    source.close()
    assert source.read(b"") is None


# ------------------------------------------------------------------ JSON lines

GOOD_JSON = [b'{"id":"a","n":1}', b'{"id":7}', b' {"id": 2.5, "x": [1, null]} ', b'{"id":"\xc3\xa4"}\r']
BAD_JSON = [b"{", b"nope", b'{"id":1} {"id":2}', b'{"id":1},{"id":2}', b'{"id":', b"2}", b'{"id":"\xff"}', b"NaN"]
BAD_KEYS = [b'{"di":1}', b"[1]", b'"id"', b"5", b'{"id":null}', b'{"id":true}', b'{"id":""}', b'{"id":[1]}']
BAD_INTS = [b'{"id":1,"n":18446744073709551616}', b'{"id":1,"n":-9223372036854775809}']
BLANK = [b"", b"  ", b"\r"]


def straight_json(lines: list[bytes], key_field: str | None) -> tuple[Found, list[int]]:
    events: Found = []
    bad = []
    for number, line in enumerate(lines, 1):
        if line in BLANK:
            continue
        if line in BAD_JSON or line in BAD_INTS or (key_field and line in BAD_KEYS):
            bad.append(number)
            continue
        value = msgspec.json.decode(line)
        events.append((str(value[key_field]) if key_field else None, value))
    return events, bad


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.lists(st.sampled_from(GOOD_JSON), max_size=10),
        st.lists(st.sampled_from(GOOD_JSON + BLANK), max_size=10),
        st.lists(st.sampled_from(GOOD_JSON + BAD_JSON + BAD_KEYS + BAD_INTS + BLANK), max_size=10),
    ),
    st.sampled_from(["id", None]),
    st.integers(1, 100),
    st.booleans(),
)
@example([b'{"id":', b"2}"], None, 100, True)
def test_json_lines_are_those_of_a_straight_read(
    lines: list[bytes], field: str | None, block: int, newline: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.jsonl")
        path.write_bytes(b"\n".join(lines) + (b"\n" if newline else b""))
        wanted, wrong = straight_json(lines, field)
        chunks = list(chunks_of(complete(JsonLinesFile("order", path, key=field, block=block))))
        assert [event for chunk in chunks for event in events_of(chunk)] == wanted
        assert [line for chunk in chunks for line, _, _ in as_bad(chunk.bad)] == wrong
        for i, chunk in enumerate(chunks, 1):
            events, bad, _ = drain(complete(JsonLinesFile("order", path, key=field, block=block)), chunk.position)
            assert events == [event for later in chunks[i:] for event in events_of(later)]
            assert as_bad(bad) == as_bad([b for later in chunks[i:] for b in later.bad])


@pytest.mark.parametrize(
    ("line", "kind", "says"),
    [
        (b"{", "bad-json", "not JSON"),
        (b'{"id":"\xff"}', "not-utf8", "byte 7"),
        (b"[" * 100_000, "bad-json", "deep"),
        (b'{"id":"a\\ud800b"}', "bad-json", "a lone surrogate (\\ud800) at byte 8"),
        (b'{"id":"\\ude00"}', "bad-json", "lone surrogate"),
        (b'{"id":1,"n":18446744073709551616}', "bad-value", "cannot travel"),
        (b"9223372036854775808", "bad-value", "2^63-1"),
        (b'{"idd":1}', "bad-key", "no field 'id' to take the key from; did you mean 'idd'?"),
        (b"[1]", "bad-key", "an array"),
        (b"1", "bad-key", "a number"),
        (b'{"id":false}', "bad-key", "true or false"),
        (b'{"id":""}', "bad-key", "1 to 4,096 bytes"),
        (b'{"id":"%s"}' % ("ä" * 2049).encode(), "bad-key", "4,098"),
    ],
)
def test_a_bad_json_line_says_what_is_wrong(tmp_path: Path, line: bytes, kind: str, says: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"id":"before"}\n' + line + b'\n{"id":"after"}\n')
    events, bad, _ = drain(JsonLinesFile("order", path, key="id"))
    assert [key for key, _ in events] == ["before", "after"]
    (b,) = bad
    assert (b.place, b.name, b.kind, b.raw) == (f"{path}:2", "order", kind, line)
    assert says in b.text


def test_numbers_as_keys_become_their_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"id":1}\n{"id":-20}\n')
    assert [key for key, _ in drain(JsonLinesFile("o", path, key="id"))[0]] == ["1", "-20"]
    path.write_bytes(b'{"id":1}\n{"id":1.5}\n{"id":"x"}\n')
    assert [key for key, _ in drain(JsonLinesFile("o", path, key="id"))[0]] == ["1", "1.5", "x"]


def test_integers_of_64_bits_travel(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'9223372036854775807\n-9223372036854775808\n{"n":18446744073709551615}\n')
    events, bad, _ = drain(JsonLinesFile("o", path))
    assert [value for _, value in events] == [2**63 - 1, -(2**63), {"n": 2**64 - 1}]
    assert not bad


def test_a_byte_order_mark_before_json_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf1\n2\n")
    assert [value for _, value in drain(JsonLinesFile("o", path))[0]] == [1, 2]


def test_json_that_is_larger_as_msgpack_than_max_event_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"[1e9,1e9,1e9]\n[1]\n")
    events, bad, _ = drain(JsonLinesFile("o", path, 20))
    assert [value for _, value in events] == [[1]]
    assert [b.kind for b in bad] == ["too-large"]


# ------------------------------------------------------------------ standard input


class Pipe:
    def __init__(self) -> None:
        self.out, self.into = os.pipe()

    def write(self, data: bytes) -> None:
        assert os.write(self.into, data) == len(data)

    def end(self) -> None:
        os.close(self.into)
        self.into = -1

    def close(self) -> None:
        os.close(self.out)
        if self.into >= 0:
            os.close(self.into)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_stdin_hands_on_what_is_there_and_keeps_what_is_not_a_line(pipe: Pipe) -> None:
    source = Stdin("line", fd=pipe.out)
    assert source.name == "line=-"
    source.open(b"")
    assert not source.restarted
    pipe.write(b"one\ntwo\nthr")
    chunk = source.read(b"")
    assert chunk is not None
    assert events_of(chunk) == [(None, "one"), (None, "two")]
    pipe.write(b"ee\n\xff\n")
    chunk = source.read(chunk.position)
    assert chunk is not None
    assert events_of(chunk) == [(None, "three")]
    assert [b.place for b in chunk.bad] == ["<stdin>:4"]
    pipe.write(b"last")
    pipe.end()
    chunk = source.read(chunk.position)
    assert chunk is not None
    assert events_of(chunk) == [(None, "last")]
    assert source.read(chunk.position) is None
    source.close()
    os.fstat(pipe.out)  # it was not ours to close


def test_stdin_starts_from_the_start_and_says_so(pipe: Pipe) -> None:
    pipe.write(b"one\n")
    pipe.end()
    _, _, position = drain(Stdin("line", fd=pipe.out))
    other = Pipe()
    other.write(b"two\n")
    other.end()
    source = Stdin("line", fd=other.out)
    assert drain(source, position)[0] == [(None, "two")]
    assert source.restarted
    other.close()


def test_stdin_as_json_lines_with_keys(pipe: Pipe) -> None:
    pipe.write(b'{"id":1}\n\nx\n{"id":"b"}')
    pipe.end()
    events, bad, _ = drain(Stdin("order", "jsonl", key="id", fd=pipe.out))
    assert events == [("1", {"id": 1}), ("b", {"id": "b"})]
    assert [b.place for b in bad] == ["<stdin>:3"]


def feed_in_background(pipe: Pipe, content: bytes) -> threading.Thread:
    def write() -> None:
        view = memoryview(content)
        while view:
            view = view[os.write(pipe.into, view) :]
        pipe.end()

    thread = threading.Thread(target=write)
    thread.start()
    return thread


@settings(max_examples=100, deadline=None)
@given(CONTENT, st.integers(1, 40), st.integers(1, 20))
def test_stdin_gives_the_lines_of_a_straight_read(content: bytes, block: int, max_event: int) -> None:
    pipe = Pipe()
    thread = feed_in_background(pipe, content)
    events, bad, _ = drain(Stdin("line", max_event=max_event, fd=pipe.out, block=block))
    thread.join()
    pipe.close()
    texts, wrong = straight(content, max_event)
    assert [text for _, text in events] == texts
    assert [b[:2] for b in as_bad(bad)] == [b[:2] for b in wrong]


def test_a_line_of_stdin_over_max_event_is_not_held_in_memory(pipe: Pipe) -> None:
    def write() -> None:
        os.write(pipe.into, b"first\n")
        for _ in range(50):
            view = memoryview(bytes(1 << 20))
            while view:
                view = view[os.write(pipe.into, view) :]
        os.write(pipe.into, b"\nlast\n")
        pipe.end()

    tracemalloc.start()
    thread = threading.Thread(target=write)
    thread.start()
    events, bad, _ = drain(Stdin("line", max_event=1 << 20, fd=pipe.out))
    thread.join()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 << 20
    assert [text for _, text in events] == ["first", "last"]
    assert [(b.place, b.kind, len(b.raw)) for b in bad] == [("<stdin>:2", "too-large", 1024)]


def test_close_interrupts_a_read_that_blocks(pipe: Pipe) -> None:
    """Whenever it comes: before, while or after the reader begins to wait."""
    for _ in range(200):
        source = Stdin("line", fd=pipe.out)
        source.open(b"")
        results: list[Chunk | None] = []
        both = threading.Barrier(2)

        def read(source: Stdin = source, results: list[Any] = results, both: threading.Barrier = both) -> None:
            both.wait()
            results.append(source.read(b""))

        thread = threading.Thread(target=read)
        thread.start()
        both.wait()
        source.close()
        thread.join(30)
        assert results == [None]


def test_close_interrupts_a_read_that_has_blocked_for_sure(pipe: Pipe) -> None:
    """A reader that took half a line is behind its first wait, and the next can only end by the close."""
    source = Stdin("line", fd=pipe.out)
    source.open(b"")
    results: list[Chunk | None] = []
    thread = threading.Thread(target=lambda: results.append(source.read(b"")))
    thread.start()
    pipe.write(b"half")
    waiting = array.array("i", [1])
    while waiting[0]:  # until the reader has taken it
        fcntl.ioctl(pipe.out, termios.FIONREAD, waiting)
    source.close()
    thread.join(30)
    assert results == [None]


def test_a_closed_stdin_and_a_directory_are_refused(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    assert "directory" in refusal(Stdin("line", fd=fd))
    os.close(fd)
    assert "standard input cannot be read" in refusal(Stdin("line", fd=fd))


def test_a_file_as_stdin_tells_its_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\ntwo")
    with (tmp_path / "a").open("rb") as file:
        source = Stdin("line", fd=file.fileno())
        assert source.total() == 7
        assert [text for _, text in drain(source)[0]] == ["one", "two"]


# ------------------------------------------------------------------ written in Python


class Numbers:
    """Pairs from 0 to ``end``, some at a time."""

    def __init__(self, end: int, step: int) -> None:
        self.end, self.step = end, step
        self.closed = False

    def read(self, position: Any) -> tuple[Any, Any]:
        start = position or 0
        end = min(self.end, start + self.step)
        return [(str(n % 3), {"n": n}) for n in range(start, end)], end

    def close(self) -> None:
        self.closed = True


@given(st.integers(0, 20), st.integers(1, 7))
def test_a_custom_source_goes_on_from_every_position(end: int, step: int) -> None:
    chunks = list(chunks_of(CallableSource("n", Numbers(end, step), "numbers")))
    wanted = [(str(n % 3), {"n": n}) for n in range(end)]
    assert [event for chunk in chunks for event in events_of(chunk)] == wanted
    for i, chunk in enumerate(chunks, 1):
        rest = drain(CallableSource("n", Numbers(end, step), "numbers"), chunk.position)[0]
        assert rest == [event for later in chunks[i:] for event in events_of(later)]


def once(*results: Any) -> CallableSource:
    """A source whose reads give ``results``, then None."""
    left = iter(results)
    return CallableSource("n", lambda position: next(left, None), "mine", 100)


def test_what_may_be_an_event() -> None:
    chunks = list(
        chunks_of(
            once(
                (["bare", 1, None, [1, 2]], 1),
                ([("k", 1), (None, 2)], 2),
                ((n for n in (("k", "x"), "y", Event("other", "z", {"a": 1}))), 3),
                ([(None, 1)], 4),
                ([], 5),
                (None, 6),
            )
        )
    )
    assert [[(c.name, c.keys, [plain(v) for v in c.data]) for c in chunk.columns] for chunk in chunks] == [
        [("n", None, ["bare", 1, None, [1, 2]])],
        [("n", ["k", None], [1, 2])],
        [("n", ["k", None], ["x", "y"]), ("other", ["z"], [{"a": 1}])],
        [("n", None, [1])],
        [],
        [],
    ]


def test_the_first_position_is_none_and_the_rest_are_what_msgpack_keeps() -> None:
    seen = []

    def read(position: Any) -> Any:
        seen.append(position)
        return ([1], ("part", 7)) if len(seen) == 1 else None

    drain(CallableSource("n", read, "mine"))
    assert seen == [None, ["part", 7]]


@pytest.mark.parametrize("end", [None, ([], None), ((), None), (None, None)])
def test_the_end(end: Any) -> None:
    assert drain(CallableSource("n", lambda position: end, "mine")) == ([], [], b"")


def test_later_changes_of_data_change_nothing() -> None:
    data = {"n": 1}
    source = once(([data], 1))
    source.open(b"")
    read = source.read(b"")
    assert read is not None
    chunk = sifted(read)  # as whoever packs it does, before the next read
    data["n"] = 2
    assert events_of(chunk) == [(None, {"n": 1})]


def test_what_cannot_travel_is_bad_and_names_source_and_index() -> None:
    items = [
        ("a", 1),
        ("", 2),
        (3, 3),
        ("b", object()),
        ("c", 2**63),
        ("d", "x" * 200),
        ("e\ud800", 1),
        ("f", "\ud800"),
    ]
    events, bad, _ = drain(once((items, 1)))
    assert events == [("a", 1)]
    assert [(b.place, b.kind) for b in bad] == [
        ("mine[1]", "bad-key"),
        ("mine[2]", "bad-key"),
        ("mine[3]", "bad-value"),
        ("mine[4]", "bad-value"),
        ("mine[5]", "too-large"),
        ("mine[6]", "bad-key"),
        ("mine[7]", "bad-value"),
    ]
    assert "source 'mine', event 2: a key is text (str), not int" in bad[1].text
    assert drain(once(([1, object()], 1)))[1][0].place == "mine[1]"
    assert drain(once(([Event("a", "k", 1), Event("b", "k", object())], 1)))[1][0].place == "mine[1]"


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ([1, 2, 3], "must return (events, position)"),
        (("text", 1), "not str: 'text'"),
        (({"a": 1}, 1), "not dict"),
        ((5, 1), "not int"),
        (([(1, 2, 3)], 1), "event 0: a tuple is (key, data), this one has 3"),
        (([1], object()), "position cannot be stored"),
        (([1], {1: {2: [object()]}}), "position cannot be stored"),
        (([1], "x" * (2 << 20)), "its position has 2,097,157 bytes"),
        ((n for n in range(2)), "it cannot yield"),
        ((Odd(), 1), "not Odd"),
        ((itertools.count(), 1), "more than 1,000,000 events"),
        (([Event("")], 1), "event 0: its name"),
    ],
)
def test_a_source_that_breaks_the_contract_is_refused(result: Any, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        drain(once(result))
    assert "source 'mine'" in str(refused.value)
    assert says in str(refused.value)


def test_what_read_raises_is_its_own_and_what_cannot_be_asked_again_is_refused() -> None:
    def read(position: Any) -> Any:
        raise KeyError("no-such-topic")

    with pytest.raises(KeyError):
        drain(CallableSource("n", read, "mine"))
    with pytest.raises(UsageError, match="int has no read"):
        CallableSource("n", 5, "mine")
    with pytest.raises(UsageError, match="a generator cannot be asked again"):
        CallableSource("n", (n for n in range(3)), "mine")


def test_items_that_raise_when_they_are_looked_at_are_bad(tmp_path: Path) -> None:
    events, bad, _ = drain(once(([("a", Odd()), ("b", 1)], 1)))
    assert events == [("b", 1)]
    assert "cannot be shown" in bad[0].raw.decode()


def test_keys_and_ids_of_a_custom_source() -> None:
    left = iter([([{"k": "a", "i": 1}, {"k": "", "i": 2}, ("x", {"k": "b", "i": 3})], 1)])
    source = CallableSource("n", lambda position: next(left, None), "mine", key="k", id=lambda data: data["i"])
    (chunk,) = chunks_of(source)
    (columns,) = chunk.columns
    assert isinstance(columns, Columns)
    assert columns.keys == ["a", "b"]
    assert columns.ids == ["1", "3"]
    assert [(b.place, b.kind) for b in chunk.bad] == [("mine[1]", "bad-key")]


def test_close_reaches_the_source() -> None:
    numbers = Numbers(3, 1)
    source = CallableSource("n", numbers, "mine")
    source.open(b"")
    source.close()
    assert numbers.closed
    assert source.read(b"") is None


# ------------------------------------------------------------------ --feed


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("line=book.txt", TextFile, "line={}/book.txt"),
        ("line=a=b,c.txt", TextFile, "line={}/a=b,c.txt"),
        ("line=a, b and c", TextFile, "line={}/a, b and c"),
        ("order=a.jsonl", JsonLinesFile, "order={}/a.jsonl"),
        ("order=a,b.jsonl,key=id", JsonLinesFile, "order={}/a,b.jsonl"),
        ("order=a.log,jsonl,key=the id", JsonLinesFile, "order={}/a.log"),
        ("order=a.jsonl,text", TextFile, "order={}/a.jsonl"),
        ("line=-", Stdin, "line=-"),
        ("order=-,jsonl", Stdin, "order=-"),
        ("order=-,key=id", Stdin, "order=-"),
    ],
)
def test_feeds_that_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, kind: type[Source], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = parse_feed(text, 100)
    assert type(source) is kind
    assert source.name == name.format(tmp_path.resolve())


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        (r"key=/^(\S+)/", ["ann", "bob"]),
        (r"key=/\w+/,retries=2", ["ann", "bob"]),
        (r"key=/id=(\d,\d)/,id=/^\w/", ["1,2", "3,4"]),
        (r"id=/,/,key=/=(\d),/,retries=0", ["1", "3"]),
        (r"key=/a?\w+ (id=.,key=/,.)/", None),
        ("key=builtins:len", ["10", "10"]),
    ],
)
def test_keys_of_text(tmp_path: Path, options: str, keys: list[str] | None) -> None:
    path = tmp_path / "a,key=b,c.log"
    path.write_text("ann id=1,2\nbob id=3,4\n")
    events, bad, _ = drain(parse_feed(f"line={path},{options}"))
    if keys is None:
        assert [b.kind for b in bad] == ["bad-key"] * 2
    else:
        assert [key for key, _ in events] == keys


def test_a_line_without_a_key_is_a_dead_letter_that_says_why(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("k1 a\n\nk2 b\n" + "k" * 5000 + " c\n")
    events, bad, _ = drain(parse_feed(rf"line={path},key=/^(\S+)/"))
    assert [key for key, _ in events] == ["k1", "k2"]
    assert [(b.place, b.kind) for b in bad] == [(f"{path}:2", "bad-key"), (f"{path}:4", "bad-key")]
    assert "does not match" in bad[0].text
    assert "1 to 4,096 bytes" in bad[1].text


def test_whatever_can_be_read_is_a_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    source = parse_feed(f"line={tmp_path}/pipe")
    assert isinstance(source, Stdin)
    assert not source.is_repeatable

    def write() -> None:
        (tmp_path / "pipe").write_text("one\ntwo")

    thread = threading.Thread(target=write)
    thread.start()
    assert [text for _, text in drain(source)[0]] == ["one", "two"]
    thread.join()
    assert drain(parse_feed("line=/dev/null"))[0] == []
    assert drain(parse_feed("line=/proc/self/stat"))[0]
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        with pytest.raises(UsageError, match="is a socket"):
            parse_feed(f"line={tmp_path}/s")


def test_a_file_of_exactly_that_name_is_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl,key=id").write_text("x")
    assert parse_feed("line=a.jsonl,key=id", 100).name == f"line={tmp_path.resolve()}/a.jsonl,key=id"


def test_the_key_of_a_feed_is_used(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id":"x"}\n')
    assert drain(parse_feed(f"order={tmp_path}/a.jsonl,key=id", 100))[0] == [("x", {"id": "x"})]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("book.txt", "must be EVENT=SOURCE"),
        ("=book.txt", "must be EVENT=SOURCE"),
        ("line=", "must be EVENT=SOURCE"),
        ("line=,key=id", "no file is named"),
        ("order=a.jsonl,kye=id", "unknown option 'kye=id'; did you mean 'key'?"),
        ("order=a.jsonl,key=", "names no field"),
        ("order=a.jsonl,key=a,key=b", "twice"),
        ("order=a.jsonl,text,jsonl", "which is it"),
        ("line=-,csv", "unknown option 'csv'"),
        ("line=book.txt,key=id", "book.txt,jsonl,key=id"),
        ("line=-,text,key=id", "asked for as text"),
        ("line=a.log,key=/(/", "no regular expression"),
        ("line=a.log,key=//", "no expression between the slashes"),
        ("line=a.log,id=nothing_at_all:f", "no module 'nothing_at_all'"),
        ("line=a.log,id=json:dump_s", "did you mean 'dumps'"),
        ("line=a.log,order=sorce", "did you mean 'source'?"),
        ("line=a.log,key=/x/,order=source", "do not go together"),
        ("line=a.log,retries=-1", "retries=-1: a number from 0"),
        ("line=a.log,follow,on_end=done", "follow has no end"),
        ("line=a.log,follow=1", "takes no value"),
        ("line=-,follow", "only a regular file can be followed"),
        ("line=-,order", "order needs a value"),
        ("order=a.jsonl,key=/a/", "an expression is for text"),
    ],
)
def test_feeds_that_are_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_feed(text, 100)
    assert says in str(refused.value)
    assert "--feed" in str(refused.value)


def test_a_stream_that_is_stopped_takes_nothing_more_and_gives_all_it_has() -> None:
    """Whatever it has taken out of a pipe is seen in hand, or returned; what it has not stays there."""
    out, into = os.pipe()
    stream = Stdin("line", fd=out, block=64)
    stream.open(b"")
    lines = [f"line {n}\n" for n in range(40)]
    os.write(into, "".join(lines).encode())
    first = stream.read(b"")
    assert first is not None
    assert stream.in_hand
    stream.is_stopped = True
    given = [text for columns in first.columns for text in columns.data]
    while (chunk := stream.read(b"")) is not None:
        assert stream.in_hand
        given += [text for columns in chunk.columns for text in columns.data]
    assert not stream.in_hand
    os.close(into)
    rest = os.read(out, 10_000).decode()
    assert 0 < len(given) < 40
    assert "".join(f"{text}\n" for text in given) + rest == "".join(lines)
    stream.close()
    os.close(out)


def test_a_stream_that_waits_takes_nothing_once_it_is_stopped() -> None:
    out, into = os.pipe()
    stream = Stdin("line", fd=out)
    stream.open(b"")
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(stream.read, b"")
        stream.is_stopped = True
        os.write(into, b"late\n")
        assert waiting.result(10) is None
    assert not stream.in_hand
    assert os.read(out, 100) == b"late\n"
    stream.close()
    os.close(into)
    os.close(out)
