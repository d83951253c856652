"""Records as others have them, and the ways to them: real sockets, which are slow, full, or away."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import otlp
from grape.errors import UsageError
from grape.logs import journald, syslog
from grape.logs.otlp import request_of
from grape.logs.record import Entry, Record, fields_of, line_of, time_of
from grape.logs.sending import MOST, Sender
from grape.logs.sinks import KINDS, Places, sinks_of
from grape.logs.wires import Collector, Console, Journal, Syslog
from grape.traces.settings import LOGS, Settings, settings_of
from serving import until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
AT = 1_700_000_000_123_456_789
FULL = Record(
    time_of(AT),
    "warning",
    "app",
    'said "so" ]\\ ü',
    "orders",
    "main.0",
    "Count",
    "e 17",
    TRACE,
    "1 (abc)",
    {"n": 5, "who": 'a"nn]', "late": True, "half": 0.5, "none": None, "a b=": "x"},
)


def entry(text: str, level: str = "info") -> Entry:
    return Entry(AT, Record(time_of(AT), level, "app", text, "orders"))


# ------------------------------------------------------------------ as others have them


def test_a_message_of_syslog_is_as_rfc_5424_says() -> None:
    message = syslog.message_of(FULL, "my host")
    found = re.fullmatch(
        rb'<(\d+)>1 (\S+) (\S+) (\S+) (\S+) (\S+) ((?:\[[^ ]+(?: [^ =\]"]+="(?:\\["\\\]]|[^"\\\]])*")*\])+) (.*)',
        message,
    )
    assert found is not None, message
    assert found.groups()[:6] == (b"28", b"2023-11-14T22:13:20.123Z", b"my_host", b"grape.orders", b"main.0", b"Count")
    assert f'trace="{TRACE}"'.encode() in found[7]
    assert b'event="e 17"' in found[7]
    assert b'who="a\\"nn\\]"' in found[7]
    assert b'late="true"' in found[7]
    assert b'a_b_="x"' in found[7]
    assert found[8].decode() == 'said "so" ]\\ ü'
    assert syslog.framed(b"abc") == b"3 abc"
    long = syslog.message_of(Record(time_of(AT), "info", "server", "ü" * 20_000), "")
    assert len(long) <= syslog.MAX_DATAGRAM
    long.decode()


def test_the_journal_gets_fields() -> None:
    message = journald.message_of(FULL)
    found = dict(line.split(b"=", 1) for line in message.splitlines())
    assert found[b"PRIORITY"] == b"4"
    assert found[b"MESSAGE"].decode() == 'said "so" ]\\ ü'
    assert (found[b"GRAPE_APP"], found[b"GRAPE_SLOT"], found[b"GRAPE_EVENT"]) == (b"orders", b"Count", b"e 17")
    assert (found[b"TRACE_ID"], found[b"FIELD_N"], found[b"FIELD_A_B_"]) == (TRACE.encode(), b"5", b"x")
    two = journald.message_of(Record(time_of(AT), "info", "server", "a\nb"))
    assert two.startswith(b"MESSAGE\n" + (3).to_bytes(8, "little") + b"a\nb\n")


texts = st.text(max_size=30) | st.sampled_from(["\udc80", "\x1b[31m\n", '"]\\', "ü", "\x00"])
values = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats() | texts
records = st.builds(
    Record,
    st.just(time_of(AT)),
    st.sampled_from(["debug", "info", "warning", "error", "critical", "stdout", "stderr"]),
    st.sampled_from(["app", "server", "engine"]),
    texts,
    texts,
    texts,
    texts,
    texts,
    st.sampled_from(["", TRACE, "0" * 32, "not one"]) | texts,
    texts,
    st.dictionaries(texts, values, max_size=5),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(records, max_size=5))
def test_whatever_a_record_holds_can_be_said(found: list[Record]) -> None:
    for record in found:
        message = syslog.message_of(record, "h")
        assert message.decode().isprintable() or "\t" in message.decode()
        journald.message_of(record)
        for is_json in (False, True):
            line = line_of(record, is_json=is_json)
            assert "\n" not in line
            assert "\x1b" not in line
        assert json.loads(line_of(record, is_json=True))["level"] == record.level
    collector = otlp.Strict.__new__(otlp.Strict)
    collector.records, collector.resources, collector.problems = [], [], []
    body = request_of([Entry(AT, record) for record in found], {"service.name": "grape"}, "1")
    assert collector.take("/v1/logs", "application/json", body) == 200, collector.problems
    assert len(collector.records) == len(found)


def test_fields_of_a_worker_are_plain_and_bounded() -> None:
    assert fields_of('{"a": 1, "b": null, "c": "x", "d": 1.5, "e": true}') == {
        "a": 1,
        "b": None,
        "c": "x",
        "d": 1.5,
        "e": True,
    }
    for text in ("", "{", "[]", '{"a": []}', '{"a": {}}', "\udc80", "[" * 5_000):
        assert fields_of(text) == {}
    assert len(fields_of(json.dumps({str(i): i for i in range(100)}))) == 32
    assert fields_of(f'{{"a": {1 << 63}}}') == {"a": str(1 << 63)}


# ------------------------------------------------------------------ the ways


class Heard(list[tuple[str, str]]):
    """What people hear."""

    def __call__(self, text: str, level: str = "info") -> None:
        self.append((level, text))


@pytest.fixture
def heard() -> Heard:
    return Heard()


def datagrams(path: Path) -> socket.socket:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    found.bind(str(path))
    found.settimeout(20)
    return found


def test_a_journal_that_is_away_gets_what_waits_once_it_is_there(tmp_path: Path, heard: Heard) -> None:
    sender = Sender("journald", Journal(str(tmp_path / "socket")), heard)
    for i in range(3):
        sender.put(entry(f"text {i}"))
    until(lambda: heard)
    assert heard[0][0] == "warning"
    assert "takes no records" in heard[0][1]
    with datagrams(tmp_path / "socket") as journal:
        for i in range(3):
            assert f"MESSAGE=text {i}\n".encode() in journal.recv(1 << 16)
        until(lambda: len(heard) == 2)
        assert "takes records again" in heard[1][1]
        sender.put(Entry(AT, FULL))
        assert b"GRAPE_APP=orders\n" in journal.recv(1 << 16)
    sender.close()


def test_one_who_does_not_read_costs_records_and_nothing_else(tmp_path: Path, heard: Heard) -> None:
    with datagrams(tmp_path / "log") as slow:
        sender = Sender("syslog", Syslog(syslog.address_of(f"unix://{tmp_path / 'log'}")), heard)
        started = time.monotonic()
        for i in range(3 * MOST):
            sender.put(entry(f"text {i}"))
        assert time.monotonic() - started < 5  # nobody waits
        slow.settimeout(0.5)
        got: list[bytes] = []
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline and not any("were dropped" in text for _, text in heard):
            try:
                got.append(slow.recv(1 << 16))
            except TimeoutError:
                sender.put(entry("more"))
        dropped = [text for level, text in heard if "were dropped" in text and level == "warning"]
        assert dropped, heard
        count = int(dropped[0].split()[0].replace(",", ""))
        assert MOST <= count <= 2 * MOST
        numbers = [int(found[1]) for message in got if (found := re.search(rb"text (\d+)$", message))]
        assert numbers == list(range(len(numbers)))  # in their order, none twice
        started = time.monotonic()
        sender.close()
        assert time.monotonic() - started < 4


class Lines:
    """A server of syslog over TCP: what it has read."""

    def __init__(self, port: int = 0) -> None:
        self.listening = socket.create_server(("127.0.0.1", port))
        self.port = self.listening.getsockname()[1]
        self.data = b""
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                found, _ = self.listening.accept()
            except OSError:
                return
            self.connections.append(found)
            threading.Thread(target=self._read, args=(found,), daemon=True).start()

    def _read(self, found: socket.socket) -> None:
        while data := found.recv(1 << 16):
            self.data += data

    def messages(self) -> list[bytes]:
        found, rest = [], self.data
        while rest:
            size, _, rest = rest.partition(b" ")
            found.append(rest[: int(size)])
            rest = rest[int(size) :]
        return found

    def close(self) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)  # whoever waits for the next one lets go of it
        self.listening.close()
        for connection in self.connections:
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def test_syslog_over_tcp_is_connected_again(heard: Heard) -> None:
    first = Lines()
    sender = Sender("syslog", Syslog(syslog.address_of(f"tcp://127.0.0.1:{first.port}")), heard)
    sender.put(entry("one"))
    until(lambda: len(first.messages()) == 1)
    first.close()
    time.sleep(0.2)
    sender.put(entry("two"))
    until(lambda: heard)
    second = Lines(first.port)
    sender.put(entry("three"))
    until(lambda: len(second.messages()) == 2)
    assert [message.rpartition(b" ")[2] for message in second.messages()] == [b"two", b"three"]
    sender.close()
    second.close()


def test_syslog_over_udp_and_over_a_stream_of_unix(tmp_path: Path, heard: Heard) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind(("127.0.0.1", 0))
        found.settimeout(20)
        sender = Sender("syslog", Syslog(syslog.address_of(f"udp://127.0.0.1:{found.getsockname()[1]}")), heard)
        sender.put(entry("one", "error"))
        assert found.recv(1 << 16).startswith(b"<27>1 2023-")
        sender.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.bind(str(tmp_path / "stream"))
        stream.listen()
        sender = Sender("syslog", Syslog(syslog.address_of(f"unix://{tmp_path / 'stream'}")), heard)
        sender.put(entry("one"))
        sender.put(entry("two"))
        connection, _ = stream.accept()
        data = b""
        while data.count(b"\n") < 2:
            data += connection.recv(1 << 16)
        assert [line.rpartition(b" ")[2] for line in data.splitlines()] == [b"one", b"two"]
        sender.close()
        connection.close()
    assert heard == []


def test_the_console_does_not_block_either(heard: Heard) -> None:
    read, write = os.pipe()
    sender = Sender("standard error", Console(is_json=True, descriptor=write), heard)
    started = time.monotonic()
    for i in range(5_000):
        sender.put(entry(f"text {i} {'x' * 100}"))
    assert time.monotonic() - started < 5
    data = b""
    while data.count(b"\n") < 5_000:
        data += os.read(read, 1 << 16)
    assert json.loads(data.splitlines()[-1])["text"].startswith("text 4999 ")
    sender.close()
    os.close(read)
    os.close(write)


def test_a_collector_that_is_away_or_refuses(heard: Heard) -> None:
    with otlp.strict() as collector:
        collector.status = 503
        address = settings_of({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "here"}, LOGS)
        assert address is not None
        sender = Sender("the collector", Collector(address, "1"), heard)
        sender.put(Entry(AT, FULL))
        until(lambda: heard)
        assert "503" in heard[0][1]
        collector.status = 0
        until(lambda: collector.records)
        (record,) = collector.records
        assert collector.problems == []
        assert (record.body.string_value, record.severity_number, record.severity_text) == (FULL.text, 13, "WARNING")
        assert (record.trace_id.hex(), record.time_unix_nano) == (TRACE, AT)
        about = {each.key: each.value for each in record.attributes}
        assert (about["grape.app"].string_value, about["grape.node"].string_value) == ("orders", "Count")
        assert (about["n"].int_value, about["late"].bool_value, about["half"].double_value) == (5, True, 0.5)
        assert collector.resources[-1]["service.name"] == "here"
        collector.status = 400
        sender.put(entry("refused"))
        until(lambda: any("refuses 1 records" in text for _, text in heard))
        collector.status = 0
        sender.put(entry("taken"))
        until(lambda: any(each.body.string_value == "taken" for each in collector.records))
        sender.close()


def test_where_logs_go_is_checked() -> None:
    assert settings_of({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://c:1/own"}, LOGS) == Settings(
        "http://c:1/own", {}, {"service.name": "grape"}
    )
    assert settings_of({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1", "OTEL_LOGS_EXPORTER": "none"}, LOGS) is None
    for url in ("", "udp://h", "tcp://h:601", "unix:///run/log"):
        syslog.address_of(url)
    for url in ("h:514", "udp://", "udp://h:0x", "tcp://h/path", "unix://log", "http://h"):
        with pytest.raises(UsageError, match="no address of syslog"):
            syslog.address_of(url)
    with pytest.raises(UsageError, match="OTEL_EXPORTER_OTLP_ENDPOINT"):
        sinks_of(Places(("otlp",)), {}, print)
    assert sinks_of(Places(("otlp",)), {"OTEL_SDK_DISABLED": "true"}, print) == []
    assert sinks_of(Places(("file",)), {}, print) == []
    assert set(KINDS) == {"file", "console", "syslog", "journald", "otlp"}


@pytest.fixture(scope="session")
def program() -> Path:
    built = otlp.build()
    if built is None:
        pytest.skip("the OpenTelemetry collector cannot be built here: it takes go, and its modules")
    return built


@pytest.mark.timeout(900)  # it is built first
@pytest.mark.slow
def test_the_collector_of_opentelemetry_takes_them(tmp_path: Path, program: Path, heard: Heard) -> None:
    with otlp.collector(program, tmp_path) as (url, said):
        address = settings_of({"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}, LOGS)
        assert address is not None
        sender = Sender("the collector", Collector(address, "1"), heard)
        sender.put(Entry(AT, FULL))
        sender.put(entry("second"))
        until(lambda: "second" in said.read_text())
        text = said.read_text()
        sender.close()
    assert heard == []
    for part in (
        f"Trace ID: {TRACE}",
        "SeverityNumber: Warn(13)",
        "grape.node: Str(Count)",
        "n: Int(5)",
        "late: Bool(true)",
    ):
        assert part in text, text
