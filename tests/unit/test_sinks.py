"""Sinks: lines exactly once over a crash, one writer, and events as JSON."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from grape.connectors.json_lines import event_lines
from grape.connectors.json_lines import reply_lines as lines_of_replies
from grape.connectors.outputs import parts_of
from grape.connectors.sinks import JsonLinesSink, StdoutSink
from grape.connectors.takes import parse_take
from grape.errors import UsageError
from grape.model.address import PartitionId
from grape.model.batch import RunMeta, encode_run, one, seal

ORIGIN = PartitionId(1, 2, 3)
TARGET = PartitionId(1, 5, 4)


def sealed(*runs: bytes, events: int) -> bytes:
    return seal(b"".join(runs), events, ORIGIN, TARGET, 0xABC, 7, 0)


def json_lines(batch: bytes) -> list[bytes]:
    return [line for part in parts_of(batch) for line in event_lines(part)[0]]


def reply_lines(batch: bytes) -> list[bytes]:
    return [line for part in parts_of(batch) for line in lines_of_replies(part)[0]]


def refusal(sink: JsonLinesSink | StdoutSink, length: int = 0, tail: bytes = b"") -> str:
    with pytest.raises(UsageError) as refused:
        sink.open(length, tail)
    return str(refused.value)


# ------------------------------------------------------------------ a file


def test_lines_are_appended_and_go_on_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sink = JsonLinesSink(path, "total")
    committed = sink.open(0, b"")
    assert path.read_bytes() == b""
    assert sink.write([]) == committed
    committed = sink.write([b"1", b"2"])
    assert committed[0] == 4
    committed = sink.write([b"3"])
    sink.close()
    assert path.read_bytes() == b"1\n2\n3\n"
    sink = JsonLinesSink(path, "total")
    assert sink.open(*committed) == committed
    sink.write([b"4"])
    sink.close()
    assert path.read_bytes() == b"1\n2\n3\n4\n"


@pytest.mark.parametrize("size", [1, 100, 4095, 4096, 10_000])
def test_what_was_written_but_not_committed_is_cut_off(tmp_path: Path, size: int) -> None:
    path = tmp_path / "out.jsonl"
    sink = JsonLinesSink(path, "total")
    sink.open(0, b"")
    committed = sink.write([b"x" * size])
    before = path.read_bytes()
    sink.write([b"lost" * size])
    sink.close()  # without a commit
    sink = JsonLinesSink(path, "total")
    assert sink.open(*committed) == committed
    assert path.read_bytes() == before
    committed = sink.write([b"again"])
    sink.close()
    assert path.read_bytes() == before + b"again\n"
    JsonLinesSink(path, "total").open(*committed)


def test_a_crash_before_the_first_commit_is_cut_back_to_nothing(tmp_path: Path) -> None:
    """What open returned was committed, so the content is known to be ours."""
    path = tmp_path / "out.jsonl"
    sink = JsonLinesSink(path, "total")
    opened = sink.open(0, b"")
    assert opened != (0, b"")
    sink.write([b"lost"])
    sink.close()
    sink = JsonLinesSink(path, "total")
    assert sink.open(*opened) == opened
    assert path.read_bytes() == b""
    sink.close()
    path.unlink()
    sink.open(*opened)
    assert path.read_bytes() == b""
    sink.close()


def test_somebody_elses_content_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"precious\n")
    text = refusal(JsonLinesSink(path, "total"))
    assert str(path) in text
    assert "has 9 bytes already" in text
    assert "name another file" in text
    assert path.read_bytes() == b"precious\n"


def test_a_shorter_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sink = JsonLinesSink(path, "total")
    sink.open(0, b"")
    committed = sink.write([b"12345"])
    sink.close()
    path.write_bytes(b"123\n")
    text = refusal(sink, *committed)
    assert "has 4 bytes, but 6 bytes were written" in text
    assert str(path) in text
    path.unlink()
    assert "is not there any more, but 6 bytes" in refusal(sink, *committed)
    assert not path.exists()


def test_another_content_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sink = JsonLinesSink(path, "total")
    sink.open(0, b"")
    committed = sink.write([b"x" * 5000])
    sink.close()
    content = b"x" * 4999 + b"y\n" + b"more\n"
    path.write_bytes(content)
    text = refusal(sink, *committed)
    assert "4096 bytes before byte 5001" in text
    assert committed[1].hex() in text
    assert path.read_bytes() == content
    path.write_bytes(b"x" * 5000 + b"\n")
    sink.open(*committed)  # the refusal kept no lock
    sink.close()


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    assert "is a directory" in refusal(JsonLinesSink(tmp_path, "t"))
    assert "there is no directory" in refusal(JsonLinesSink(tmp_path / "no" / "out", "t"))
    assert "regular file" in refusal(JsonLinesSink("/dev/null", "t"))
    os.mkfifo(tmp_path / "pipe")
    assert "standard output" in refusal(JsonLinesSink(tmp_path / "pipe", "t"))


WRITER = """
import sys
from grape.connectors.sinks import JsonLinesSink
JsonLinesSink(sys.argv[1], "t").open(0, b"")
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_second_writer_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"ready\n"
        text = refusal(JsonLinesSink(path, "t"))
        assert str(path) in text
        assert f"process {first.pid} writes it" in text
        first.kill()
    sink = JsonLinesSink(path, "t")
    sink.open(0, b"")
    assert "this process writes it" in refusal(JsonLinesSink(path, "t"))
    sink.close()


def test_a_change_under_the_writer_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sink = JsonLinesSink(path, "t")
    sink.open(0, b"")
    sink.write([b"1"])
    with path.open("ab") as other:
        other.write(b"foreign\n")
    with pytest.raises(UsageError, match="has 10 bytes, but 2 bytes were written"):
        sink.write([b"2"])
    assert path.read_bytes() == b"1\nforeign\n"
    path.unlink()
    with pytest.raises(UsageError, match="was removed"):
        sink.write([b"2"])
    sink.close()


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_half_way_leaves_whole_lines_and_can_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sink = JsonLinesSink(path, "t")
    sink.open(0, b"")
    sink.write([b"1"])
    with file_limit(5), pytest.raises(OSError, match="too large"):
        sink.write([b"123456789"])
    assert path.read_bytes() == b"1\n"
    assert sink.write([b"2"])[0] == 4
    sink.close()
    assert path.read_bytes() == b"1\n2\n"


# ------------------------------------------------------------------ standard output


def test_stdout_writes_all_of_it(tmp_path: Path) -> None:
    out, into = os.pipe()
    os.set_blocking(into, False)
    sink = StdoutSink("total=-", fd=into)
    assert sink.open(0, b"") == (0, b"")
    line = b"x" * 1000
    result: list[Any] = []

    def write() -> None:
        result.append(sink.write([line] * 1000))
        os.close(into)

    thread = threading.Thread(target=write)
    thread.start()
    with open(out, "rb") as reader:
        assert reader.read() == (line + b"\n") * 1000
    thread.join()
    assert result == [(1_001_000, b"")]


def test_stdout_that_is_full_or_closed() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    sink = StdoutSink("total=-", fd=fd)
    sink.open(0, b"")
    with pytest.raises(OSError, match="No space"):
        sink.write([b"x"])
    os.close(fd)
    assert "standard output" in refusal(StdoutSink("total=-", fd=fd))


# ------------------------------------------------------------------ events to lines


def test_ids_are_those_of_the_events() -> None:
    batch = sealed(
        encode_run(RunMeta(["a", "b"], index=bytes([0, 1, 0])), 3, ["k", None, "ü"], [1, [2], {"x": None}]),
        encode_run(RunMeta(["c"], ids={1: "given"}), 2, None, None),
        events=5,
    )
    assert [json.loads(line) for line in json_lines(batch)] == [
        {"event": "a", "key": "k", "data": 1, "id": "00000abc-2.3-5.4-7-0"},
        {"event": "b", "key": None, "data": [2], "id": "00000abc-2.3-5.4-7-1"},
        {"event": "a", "key": "ü", "data": {"x": None}, "id": "00000abc-2.3-5.4-7-2"},
        {"event": "c", "key": None, "data": None, "id": "00000abc-2.3-5.4-7-3"},
        {"event": "c", "key": None, "data": None, "id": "given"},
    ]
    assert json_lines(batch)[0] == b'{"event":"a","key":"k","data":1,"id":"00000abc-2.3-5.4-7-0"}'


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"\x00ab", "AGFi"),
        (float("nan"), None),
        ([float("inf"), -float("inf"), 1.5], [None, None, 1.5]),
        ("two\nlines\u2028 ä", "two\nlines\u2028 ä"),
        ({1: {2.5: 0}, b"ab": 1}, {"1": {"2.5": 0}, "YWI=": 1}),
        ({None: [{True: 1}], (1, "x"): b"ab"}, {"null": [{"true": 1}], '[1,"x"]': "YWI="}),
        (2**64 - 1, 2**64 - 1),
        (msgspec.msgpack.Ext(5, b"ab"), "YWI="),
    ],
)
def test_every_value_has_a_form(data: Any, shown: Any) -> None:
    batch = sealed(encode_run(RunMeta(["e"]), 2, None, [data, "next"]), events=2)
    lines = json_lines(batch)
    assert [json.loads(line)["data"] for line in lines] == [shown, "next"]
    assert all(b"\n" not in line for line in lines)


def test_data_that_is_no_value_of_ours_is_shown_as_its_bytes() -> None:
    packed = b"\x81\x81\x01\x02\x03"  # a map with a map as its key
    batch = sealed(encode_run(RunMeta(["e"]), 2, None, [msgspec.Raw(packed), 1]), events=2)
    assert [json.loads(line)["data"] for line in json_lines(batch)] == ["gYEBAgM=", 1]


def test_replies() -> None:
    batch = sealed(
        encode_run(RunMeta(["part", "final"], index=bytes([0, 1])), 2, ["q1", "q2"], [b"ab", {"x": 1}]),
        one("final", "q3", None),
        events=3,
    )
    assert [json.loads(line) for line in reply_lines(batch)] == [
        {"id": "q1", "final": False, "data": "YWI="},
        {"id": "q2", "final": True, "data": {"x": 1}},
        {"id": "q3", "final": True, "data": None},
    ]


# ------------------------------------------------------------------ --take


def test_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_take("total") == ("total", None)
    assert parse_take("total=-") == ("total", None)
    assert parse_take("total=a=b.jsonl") == ("total", f"{tmp_path.resolve()}/a=b.jsonl")


@pytest.mark.parametrize("text", ["", "=out", "total="])
def test_takes_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="EVENT=FILE"):
        parse_take(text)
