"""Orders on a directory in use: `grape dead|held|log|state` while an engine runs on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from tests.command import GRAPE, grape

import grape as library
from grape import UsageError
from grape.host.door import listening
from grape.model.topology import Limits, TopologySpec
from grape.protocol.door import Ask, Begun, Described, Opened
from grape.protocol.framing import client_frames, frame
from grape.protocol.outcomes import Progress

APP: Final = """
import os, time
from pathlib import Path
from grape import Event, Node, State, Topology

HERE = Path(__file__).parent
t = Topology("ordered")
t.add_output("done")

def broken(name):
    return (HERE / name).exists()

@t.slot("pay", emits="done", retries=0)
def pay(n: int, event: Event, total: State[int] = State(int, default=0)) -> list:
    if broken("pay-fails"):
        raise ValueError("no money")
    total.value += n
    return ["pay", event.key, n, total.value]

@t.slot("send", emits="done", retries=5, backoff=3600.0, backoff_max=3600.0)
def send(n: int, event: Event) -> list:
    if broken("send-fails") and n % 10 == 0:
        raise ConnectionError("nobody is there")
    return ["send", event.key, n]

@t.slot("ship", emits="done", retries=0, on_fail="stop")
def ship(n: int, event: Event) -> list:
    if broken("ship-fails") and n % 10 == 0:
        raise ValueError("no ship")
    return ["ship", event.key, n]

@t.slot("slow", emits="done", timeout=120.0)
def slow(n: int, event: Event) -> list:
    (HERE / f"begun-{n}").touch()
    while broken(f"hold-{n}"):
        time.sleep(0.005)
    return ["slow", event.key, n]
"""


class Site:
    """A run that stays open, with one worker. Files beside the app say what fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path / "d"
        self.out = path / "o.jsonl"
        self.process: subprocess.Popen[bytes] | None = None
        (path / "app.py").write_text(APP)

    def start(self, *more: str) -> None:
        command = [GRAPE, "run", "app.py", "--data", "d", "--take", "done=o.jsonl", "--workers", "1", *more]
        if "--feed" not in more:
            command += ["--feed", "pay=-,jsonl"]
        self.process = subprocess.Popen(command, cwd=self.path, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        wait_for(self._is_there)

    def _is_there(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None
        try:
            with library.connect(self.data):
                return True
        except UsageError:
            return False

    def set(self, name: str, there: bool = True) -> None:
        if there:
            (self.path / name).touch()
        else:
            (self.path / name).unlink()

    def emit(self, event: str, *numbers: int, key: str = "k") -> None:
        with library.connect(self.data) as engine:
            for n in numbers:
                engine.emit(event, n, key=key)

    def grape(self, *words: Any, code: int = 0) -> str:
        done = grape(*words, "--data", self.data)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def listed(self, what: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in grape(what, "list", "--data", self.data).stdout.splitlines()]

    def dead(self, count: int) -> list[str]:
        """Ids, when there are so many."""
        wait_for(lambda: len(self.listed("dead")) == count)
        return [letter["id"] for letter in self.listed("dead")]

    def done(self) -> list[Any]:
        return [json.loads(line)["data"] for line in self.out.read_text().splitlines()] if self.out.exists() else []

    def has_done(self, *wanted: Any) -> None:
        wait_for(lambda: len(self.done()) >= len(wanted))
        assert self.done() == [*wanted]

    def kill(self) -> None:
        """The engine and its owner, without a word."""
        with library.connect(self.data) as engine:
            pids = [pid for name, pid in progress(engine) if name == "engine"]
        assert self.process is not None
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=60)


def progress(engine: Any) -> list[tuple[str, int]]:
    return msgspec.msgpack.decode(engine.connected().ask_verb("progress").result(), type=Progress).pids


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    if made.process is not None:
        made.stop()


def test_a_dead_letter_is_retried_and_done_once(site: Site) -> None:
    site.start()
    site.set("pay-fails")
    site.emit("pay", 1, 2)
    ids = site.dead(2)
    site.set("pay-fails", False)
    said = site.grape("dead", "retry", *ids)
    assert "2 dead letters put back" in said
    assert "run the app again" not in said
    site.has_done(["pay", "k", 1, 1], ["pay", "k", 2, 3])
    assert site.listed("dead") == []
    assert "no such letter (any more)" in site.grape("dead", "retry", ids[0], code=1)
    assert "nothing put back" in site.grape("dead", "retry", "--all")


def test_a_killed_engine_has_done_what_it_answered(site: Site) -> None:
    site.start()
    site.set("pay-fails")
    site.emit("pay", 1, 2, 3)
    ids = site.dead(3)
    site.set("pay-fails", False)
    site.set("hold-0")
    site.emit("slow", 0)
    wait_for((site.path / "begun-0").exists)  # its worker does nothing else
    site.grape("dead", "retry", *ids[:2])
    site.grape("dead", "drop", ids[2])
    site.kill()
    assert site.listed("dead") == []
    site.set("hold-0", False)
    site.start()
    wait_for(lambda: len(site.done()) >= 3)
    assert sorted(site.done(), key=str) == [["pay", "k", 1, 1], ["pay", "k", 2, 3], ["slow", "k", 0]]


def test_what_waits_behind_a_held_event_stays_behind_it(site: Site) -> None:
    site.start()
    site.set("send-fails")
    site.emit("send", 10, 11, 12, 20, 13)
    wait_for(lambda: len(site.listed("held")) == 5)
    first, *_ = [one for one in site.listed("held") if one["status"] == "held"]
    site.set("send-fails", False)
    assert "1 held event put back" in site.grape("held", "retry", first["id"])
    site.has_done(*(["send", "k", n] for n in (10, 11, 12, 20, 13)))
    site.emit("send", 14)  # nothing of the key is locked in the worker
    site.has_done(*(["send", "k", n] for n in (10, 11, 12, 20, 13, 14)))


def test_what_waits_behind_a_dropped_event_goes_on(site: Site) -> None:
    site.start()
    site.set("send-fails")
    site.set("ship-fails")
    site.emit("send", 10, 11, 20, 12)
    site.emit("ship", 10, 11)
    wait_for(lambda: len(site.listed("held")) == 6)
    assert "1 held event dropped" in site.grape("held", "drop", "--node", "send", "--kind", "ConnectionError")
    site.has_done(["send", "k", 11])
    assert "1 stopped event dropped" in site.grape("dead", "drop", "--all")
    site.has_done(["send", "k", 11], ["ship", "k", 11])
    site.set("send-fails", False)
    site.grape("held", "retry", "--all")
    site.has_done(["send", "k", 11], ["ship", "k", 11], ["send", "k", 20], ["send", "k", 12])
    site.emit("ship", 12)
    wait_for(lambda: site.done()[-1] == ["ship", "k", 12])


def test_deleted_state_is_gone_for_the_next_event(site: Site) -> None:
    site.start()
    site.emit("pay", 1, 2)
    site.has_done(["pay", "k", 1, 1], ["pay", "k", 2, 3])
    said = site.grape("state", "delete", "--node", "pay", "k", "other", code=1)
    assert "pay has no state of key other" in said
    assert "state of 1 key removed" in said
    site.emit("pay", 4)
    site.has_done(["pay", "k", 1, 1], ["pay", "k", 2, 3], ["pay", "k", 4, 4])
    assert "did you mean 'pay'" in site.grape("state", "delete", "--node", "pax", "k", code=2)


def test_a_waiting_event_is_dropped_though_the_worker_is_busy(site: Site) -> None:
    """What the worker has is waited for, for some seconds."""
    site.start()
    site.set("hold-0")
    site.emit("slow", 0, 1, 2, 3)
    wait_for((site.path / "begun-0").exists)
    waits = site.listed("log")
    assert len(waits) == 4
    running, second, third, fourth = [event["id"] for event in waits]
    assert "1 event dropped" in site.grape("log", "drop", third)
    assert "1 event moved to the dead letters" in site.grape("log", "bury", second)
    refused = site.grape("log", "drop", running, fourth, code=1)
    assert "1 event dropped; 1 refused" in refused
    assert "a worker has had 1 events of partition main/" in refused
    with ThreadPoolExecutor(1) as pool:
        order = pool.submit(site.grape, "log", "drop", running, code=1)
        site.set("hold-0", False)
        assert "no such event waits (any more)" in order.result()
    site.has_done(["slow", "k", 0])
    site.grape("dead", "retry", "--all")
    site.has_done(["slow", "k", 0], ["slow", "k", 1])
    assert site.listed("log") == []


def test_an_order_for_what_is_not_there(site: Site) -> None:
    site.start()
    assert "its pools: main" in site.grape("dead", "retry", "mani.3-17", code=2)
    assert "did you mean 'main'" in site.grape("log", "drop", "mani.3:17.2", code=2)
    assert "no such letter (any more)" in site.grape("dead", "drop", "main.3-17", code=1)
    assert "no such letter (any more)" in site.grape("held", "retry", "main.3-h17", code=1)
    assert "no such event waits (any more)" in site.grape("log", "bury", "main.3:17.2", code=1)
    assert "has partitions 0 to" in site.grape("log", "bury", "main.99:17.2", code=2)
    assert "holds no app 'other'" in site.grape("dead", "drop", "--all", "--app", "other", code=2)


def test_two_give_the_same_order_at_once(site: Site) -> None:
    site.start()
    site.set("pay-fails")
    site.emit("pay", *range(1, 41))
    ids = site.dead(40)
    site.set("pay-fails", False)

    def order(_: int) -> tuple[int, str]:
        done = subprocess.run(
            [GRAPE, "dead", "retry", *ids, "--data", site.data], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr

    with ThreadPoolExecutor(3) as pool:
        codes = sorted(code for code, _ in pool.map(order, range(3)))
    assert codes == [0, 1, 1]
    wait_for(lambda: len(site.done()) >= 40)
    assert sorted(n for _, _, n, _ in site.done()) == list(range(1, 41))


def test_an_input_that_never_became_an_event_is_dropped_while_its_source_feeds(site: Site) -> None:
    (site.path / "in.jsonl").write_text('{"no JSON\n')
    site.start("--feed", "send=in.jsonl,follow")
    (bad,) = site.dead(1)
    assert "it never became an event" in site.grape("dead", "retry", bad, code=1)
    with (site.path / "in.jsonl").open("a") as file:
        for n in range(200):
            file.write(f"{n}\n")
            file.flush()
            if n == 100:
                assert "1 dead letter dropped" in site.grape("dead", "drop", bad)
    wait_for(lambda: len(site.done()) >= 200)
    assert sorted(n for _, _, n in site.done()) == list(range(200))
    assert site.listed("dead") == []


def test_keyed_events_go_on_meanwhile(site: Site) -> None:
    """Retried, dropped and deleted at random beside a steady input: everything is done once."""
    site.start()
    with library.connect(site.data) as engine, ThreadPoolExecutor(1) as pool:
        site.set("send-fails")
        engine.emit("send", 10, key="a")

        def feed() -> None:
            for n in range(1, 600):
                engine.emit("pay", n, key=f"k{n % 7}")

        feeding = pool.submit(feed)
        orders = 0
        while not feeding.done():
            site.grape("state", "delete", "--node", "pay", "unknown", code=1)
            site.grape("held", "retry", "--all")
            orders += 1
        feeding.result()
        assert orders
    wait_for(lambda: len(site.done()) >= 599)
    assert sorted(n for _, _, n, _ in site.done()) == list(range(1, 600))


def test_an_engine_that_is_killed_meanwhile(site: Site) -> None:
    """Each letter is where it was, or it is done: once, in the end."""
    site.start()
    site.set("pay-fails")
    site.emit("pay", *range(1, 41))
    site.dead(40)
    site.set("pay-fails", False)
    for _ in range(4):
        command = [GRAPE, "dead", "retry", "--all", "--data", site.data]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as order:
            site.kill()
            _, said = order.communicate()
        if order.returncode == 3:
            assert b"the engine has ended meanwhile; give the order again" in said
        site.start()
    site.grape("dead", "retry", "--all")
    wait_for(lambda: len(site.done()) >= 40)
    site.stop()
    assert sorted(n for _, _, n, _ in site.done()) == list(range(1, 41))
    assert site.done()[-1][3] == sum(range(1, 41))


def test_an_engine_that_ends_before_it_answers(site: Site) -> None:
    site.start()
    site.set("pay-fails")
    site.emit("pay", 1)
    (letter,) = site.dead(1)
    site.stop()
    with ThreadPoolExecutor(1) as pool, listening(str(site.data)) as door:
        door.settimeout(60)
        order = pool.submit(site.grape, "dead", "retry", letter, code=3)
        end, _ = door.accept()
        frames = client_frames()
        for message in (Described(1, TopologySpec("ordered"), "d"), Opened(32, 1, Limits()), Begun()):
            end.sendall(frame(message))
        while not any(isinstance(message, Ask) for message in frames.filled(end.recv_into(frames.buffer()))):
            pass
        end.close()
        assert "the engine has ended meanwhile; give the order again" in order.result()
