"""A server that is used in ways nobody meant: nothing is lost, others do not notice, and one line says why."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from command import grape
from grape.drivers.sources import _files
from grape.drivers.spec import WatchDriver
from integration.test_talks import CODE, Talk
from serving import Server, serving, until, write_app


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("misuse")
    with serving(base / "home") as server:
        server.grape("app", "deploy", write_app(base / "count", CODE))
        yield server


def count(server: Server, key: str) -> int:
    found: list[int] = server.call("count", "add", 1, params={"key": key})
    return found[1]


# ---------------------------------------------------------------------- ids


def test_an_id_of_a_call_is_of_one_event_whatever_its_key(server: Server) -> None:
    headers = {"idempotency-key": "call"}
    assert server.call("count", "add", 1, params={"key": "i"}, headers=headers) == ["i", 1]
    other = server.post("/apps/count/events/add?key=j&wait=20", 1, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "conflict"), other.text
    assert server.call("count", "add", 1, params={"key": "i"}, headers=headers) == ["i", 1]
    assert count(server, "j") == 1


def test_a_call_of_what_was_emitted_is_told_that_nobody_answers(server: Server) -> None:
    headers = {"idempotency-key": "emitted"}
    assert server.post("/apps/count/events/add?key=e", 1, headers=headers).status_code == 202
    asked = server.post("/apps/count/events/add?key=e&wait=20", 1, headers=headers)
    assert (asked.status_code, asked.json()["retriable"]) == (409, False), asked.text
    assert count(server, "e") == 2


def test_several_events_by_one_id_count_once(server: Server) -> None:
    events = [{"event": "add", "data": 1, "key": "batch"}, {"event": "add", "data": 1, "key": "batch"}]
    for _ in range(2):
        answer = server.post("/apps/count/events", events, headers={"idempotency-key": "several"})
        assert (answer.status_code, answer.json()) == (202, {"accepted": 2})
        lines = server.http.post(
            "/apps/count/events/add?key-field=k",
            content=b'{"k": "batch"}\n{"k": "batch"}\n',
            headers={"idempotency-key": "lines", "content-type": "application/x-ndjson"},
        )
        assert (lines.status_code, lines.json()) == (202, {"accepted": 2})
    assert count(server, "batch") == 5
    events[0]["id"] = "own"
    answer = server.post("/apps/count/events", events, headers={"idempotency-key": "both"})
    assert answer.status_code == 400
    assert "either the events have ids" in answer.json()["detail"]


# ---------------------------------------------------------------------- WebSocket


def test_an_end_behind_an_event_leaves_the_event(server: Server) -> None:
    talk = Talk(server.url)
    talk.say(emit="add", key="end", data=1, ref=1)
    talk.say(end=1)
    assert talk.heard() == {"ref": 1, "accepted": 1}
    talk.say(emit="add", key="end", data=1, ref=2, call=True)
    talk.say(end=2)
    until(lambda: talk.ask(emit="add", key="end", call=True, ref=3)["reply"][1] >= 3)
    talk.close()


# ---------------------------------------------------------------------- looking on


def test_many_who_look_on_at_large_events_disturb_nobody(server: Server) -> None:
    """150 times 3 MB over the one connection of a gateway: all get them, and calls are answered meanwhile."""
    got = [0] * 150
    begun = threading.Barrier(len(got) + 1)
    stop = threading.Event()
    failed: list[str] = []

    def look_on(number: int) -> None:
        with server.http.stream("GET", "/apps/count/outputs/counted/tail", timeout=120) as answer:
            begun.wait(60)
            for chunk in answer.iter_raw():
                got[number] += len(chunk)
                if got[number] >= 3_000_000:
                    return

    def call(number: int) -> None:
        while not stop.is_set():
            answer = server.post(f"/apps/count/events/add?key=beside{number}&wait=30", 1, timeout=60)
            if answer.status_code != 200:
                failed.append(answer.text)

    lookers = [threading.Thread(target=look_on, args=(n,)) for n in range(len(got))]
    callers = [threading.Thread(target=call, args=(n,)) for n in range(2)]
    server.http._transport._pool._max_connections = 1_000  # type: ignore[attr-defined]
    for thread in lookers:
        thread.start()
    begun.wait(60)
    for thread in callers:
        thread.start()
    large = [{"event": "counted", "data": "y" * 1_000_000} for _ in range(3)]
    assert server.post("/apps/count/events", large).status_code == 202
    for thread in lookers:
        thread.join(120)
    stop.set()
    for thread in callers:
        thread.join(60)
    assert min(got) >= 3_000_000
    assert failed == []


# ---------------------------------------------------------------------- what is set up wrongly


@pytest.mark.parametrize("size", ["8 MiB", "48 MiB"])
def test_a_small_app_takes_events(tmp_path: Path, size: str) -> None:
    app = write_app(tmp_path / "count", CODE)
    manifest = app / "grape.toml"
    manifest.write_text(f'max-size = "{size}"\n' + manifest.read_text())
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", app)
        for n in range(1, 20):
            assert count(server, "k") == n
        large = [{"event": "add", "data": "z" * 100_000, "key": "k"} for _ in range(10)]
        answers = [server.post("/apps/count/events", large).status_code for _ in range(20 if size == "8 MiB" else 0)]
        assert set(answers) <= {202, 429}
        until(lambda: server.post("/apps/count/events/add?key=k&wait=30", 1).status_code == 200)


def test_a_certificate_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no certificate")
    file = tmp_path / "text"
    done = grape("serve", tmp_path / "home", "--tls-certificate", file, "--tls-key", file, "--listen", "127.0.0.1:0")
    assert done.returncode == 2
    assert f"{file} and {file}: TLS needs a certificate and its key" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_that_is_none(server: Server, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no command")
    for command in ("/none/such", str(tmp_path / "text")):
        done = grape("pump", "count@counted", "--once", "--home", server.home, "--", command)
        assert done.returncode == 2, done.stderr
        assert f"{command}: there is no such command" in done.stderr


def test_links_lead_a_driver_nowhere(tmp_path: Path) -> None:
    root = tmp_path / "in"
    (root / "below" / "deep").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for name in ("a.csv", "below/b.csv", "below/deep/c.csv", ".hidden/d.csv", "below/deep/e.txt"):
        (root / name).write_text(name)
    (root / "below" / "loop").symlink_to(root)
    (root / "elsewhere").symlink_to("/etc")
    (root / "outside.csv").symlink_to("/etc/passwd")
    (root / "inside.csv").symlink_to(root / "a.csv")
    (root / "dangling.csv").symlink_to(root / "nothing")

    def found(pattern: str) -> list[str]:
        return sorted(_files(WatchDriver(event="e", path=str(root), pattern=pattern)))

    deep = ["a.csv", "below/b.csv", "below/deep/c.csv", "inside.csv"]
    assert found("**/*.csv") == deep
    assert found("**") == found("**/*") == sorted([*deep, "below/deep/e.txt"])
    assert found("*.csv") == ["a.csv", "inside.csv"]
    assert found("*/*.csv") == ["below/b.csv"]
    assert found("below/**/*.csv") == ["below/b.csv", "below/deep/c.csv"]
    assert found("elsewhere/*") == found("elsewhere/**") == found("below/loop/**/*.csv") == []
    assert found("*/**/*.csv") == ["below/b.csv", "below/deep/c.csv"]
    os.symlink(root, tmp_path / "link")
    assert sorted(_files(WatchDriver(event="e", path=str(tmp_path / "link"), pattern="**/*.csv"))) == deep
