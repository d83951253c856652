"""Outputs as queues: nothing that was not done with is lost, nothing that was comes again, whatever is killed."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from command import grape
from serving import Server, serving, until, write_app

CODE = """
from grape import Node, Topology

class PassOn(Node):
    def process(self, event):
        self.emit("out", event.data)

def topology(config):
    t = Topology("queue")
    t.add_output("out")
    t.add_slot("in", PassOn())
    return t
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", write_app(tmp_path / "queue", CODE))
        yield server


def push(server: Server, numbers: range) -> None:
    """Into one partition: as they come in they come out."""
    answer = server.post(
        "/apps/queue/events", [{"event": "in", "key": "k", "data": i, "id": uuid4().hex} for i in numbers]
    )
    assert answer.json() == {"accepted": len(numbers)}


def ask(server: Server, verb: str, **what: Any) -> Any:
    answer = server.post(f"/apps/queue/outputs/out/{verb}", what)
    assert answer.status_code == 200, answer.text
    return answer.json()


def peek(server: Server, verb: str = "peek", **what: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(server, verb, **{"wait": 10, **what})["events"]
    return found


def data(events: list[dict[str, Any]]) -> list[int]:
    return [event["data"] for event in events]


def tokens(events: list[dict[str, Any]]) -> list[str]:
    return [event["token"] for event in events]


def all_of(server: Server, count: int, **what: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while len(found) < count:
        some = peek(server, count=1_000, **what)
        assert some
        found += some
    return found


# D41
def test_push_peek_ack_pop_and_an_empty_one(server: Server) -> None:
    assert peek(server, wait=0) == []
    push(server, range(3))
    (first,) = peek(server)
    assert (first["event"], first["key"], first["data"], first["attempt"]) == ("out", "k", 0, 1)
    assert ask(server, "ack", tokens=[first["token"]]) == {"acked": 1, "unknown": 0}
    assert data(peek(server, "pop", count=5)) == [1, 2]
    assert peek(server, wait=0) == []


# D42 D44
def test_ten_thousand_in_batches_and_only_what_was_not_done_with_comes_again(server: Server) -> None:
    push(server, range(10_000))
    found = all_of(server, 10_000, lease=2)
    assert sorted(data(found)) == list(range(10_000))
    odd = [event for event in found if event["data"] % 2]
    for start in range(0, len(odd), 2_500):
        assert ask(server, "ack", tokens=tokens(odd[start : start + 2_500]))["acked"] == 2_500
    again = all_of(server, 5_000, lease=60)
    assert sorted(data(again)) == list(range(0, 10_000, 2))
    assert {event["attempt"] for event in again} == {2}
    assert ask(server, "ack", tokens=tokens(again))["acked"] == 5_000
    assert peek(server, wait=0) == []


# D43
def test_what_was_not_done_with_in_time_comes_before_what_is_newer(server: Server) -> None:
    push(server, range(2))
    assert data(peek(server, count=2, lease=0.5)) == [0, 1]
    push(server, range(2, 4))
    until(lambda: data(peek(server, count=1, wait=0, lease=100)) == [2])
    assert data(peek(server, count=1, wait=0, lease=100)) == [3]
    assert data(peek(server, count=4, wait=5)) == [0, 1]


# D43, in the order of the first time
def test_given_back_it_comes_at_once(server: Server) -> None:
    push(server, range(4))
    events = peek(server, count=3, lease=100)
    assert ask(server, "nack", tokens=[*tokens(events[:2]), "0.0.9999", "x"]) == {"returned": 2, "unknown": 2}
    assert data(peek(server, count=4, lease=100)) == [0, 1, 3]


# D51
def test_over_ack_double_ack_foreign_ack_are_safe(server: Server) -> None:
    push(server, range(3))
    (event,) = peek(server)
    strange = ["", "a.b.c", "1", "0.0.0.0", "-1.0.0", "999999.0.0", "0.99999999999999.0", "٣.0.0", "0.0.2", "0.0.1"]
    assert ask(server, "ack", tokens=strange)["acked"] == 0
    assert ask(server, "ack", tokens=[event["token"]] * 3) == {"acked": 1, "unknown": 2}
    assert ask(server, "ack", tokens=[event["token"]]) == {"acked": 0, "unknown": 1}
    assert ask(server, "ack", tokens=[event["token"]], consumer="other") == {"acked": 0, "unknown": 1}
    assert ask(server, "nack", tokens=[event["token"]], consumer="other") == {"returned": 0, "unknown": 1}
    about = server.get("/apps/queue/outputs/out").json()
    assert "other" not in [each["consumer"] for each in about["consumers"]]
    assert data(peek(server, "pop", count=5)) == [1, 2]


def test_each_consumer_has_all_and_competing_ones_share(server: Server) -> None:
    for consumer in ("one", "two"):  # from its first question on a consumer has everything
        assert peek(server, consumer=consumer, wait=0) == []
    push(server, range(100))
    assert data(all_of(server, 100, consumer="one", verb="pop")) == list(range(100))
    found: list[int] = []

    def compete() -> None:
        while events := peek(server, count=7, consumer="two", wait=0.2):
            found.extend(data(events))
            ask(server, "ack", tokens=tokens(events), consumer="two")

    threads = [threading.Thread(target=compete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(100))
    consumers = server.get("/apps/queue/outputs/out").json()["consumers"]
    assert [(one["consumer"], one["acked"]) for one in consumers] == [("one", 100), ("two", 100)]


# D45 D55
@pytest.mark.parametrize(("count", "kills"), [(600, 2), pytest.param(3_000, 5, marks=pytest.mark.slow)])
def test_nothing_is_lost_and_what_is_done_with_never_comes_again_over_kills(
    server: Server, count: int, kills: int
) -> None:
    push(server, range(count))
    done: set[int] = set()
    rng = random.Random(7)
    deaths = 0
    while len(done) < count:
        try:
            events = peek(server, count=rng.randint(1, 400), lease=rng.choice([0.3, 30]), wait=1)
        except AssertionError:
            continue
        assert not done.intersection(data(events)), "what was done with came again"
        some = [event for event in events if rng.random() < 0.8]
        if deaths < kills and rng.random() < 0.3:
            os.kill(server.engine("queue"), signal.SIGKILL)
            deaths += 1
        answer = server.post("/apps/queue/outputs/out/ack", {"tokens": tokens(some)})
        if answer.status_code == 200 and answer.json()["acked"] == len(some):
            done.update(data(some))
        elif answer.status_code != 200 or answer.json()["acked"]:  # some of it may be
            for event in some:
                done.add(event["data"]) if not comes_again(server, event) else None
    assert deaths == kills
    server.kill()


def comes_again(server: Server, event: dict[str, Any]) -> bool:
    """Whether an event whose ack got lost is still to be done with: then it is done now."""
    answer = server.post("/apps/queue/outputs/out/ack", {"tokens": [event["token"]]})
    return not (answer.status_code == 200 and answer.json()["acked"] == 1)


# D46
def test_what_all_have_done_with_is_let_go_of(server: Server) -> None:
    big = "x" * 50_000
    for _ in range(4):
        answer = server.post("/apps/queue/events", [{"event": "in", "key": "k", "data": big}] * 200)
        assert answer.status_code == 202
        found = all_of(server, 200)
        ask(server, "ack", tokens=tokens(found))
    size = (server.home / "apps" / "queue" / "data" / "data.mdb").stat().st_blocks * 512
    assert size < 40 << 20  # of 40 MB that went through, twice


def test_what_is_too_old_or_too_much_goes_whoever_has_not_had_it(tmp_path: Path) -> None:
    app = write_app(tmp_path / "queue", CODE)
    with open(app / "grape.toml", "a") as file:
        file.write('[output.out]\nage = "1 h"\nsize = "1 MB"\n')
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", app)
        assert peek(server, wait=0) == []  # it is a consumer from now on
        for start in range(0, 100, 10):
            values = [{"event": "in", "key": "k", "data": [i, "x" * 50_000]} for i in range(start, start + 10)]
            assert server.post("/apps/queue/events", values).status_code == 202
        until(lambda: server.get("/apps/queue/outputs/out").json()["expired"] > 3_000_000)
        server.grape("app", "restart", "queue")
        found: list[int] = []
        while events := peek(server, "pop", count=100, wait=1):
            found += [event["data"][0] for event in events]
        assert 10 <= len(found) < 40
        assert found == list(range(100 - len(found), 100))


def test_what_nobody_can_do_becomes_a_dead_letter(server: Server) -> None:
    push(server, range(2))
    for _ in range(20):
        (event, *_) = peek(server, count=1, lease=100)
        assert event["data"] == 0
        ask(server, "nack", tokens=[event["token"]])
    assert data(peek(server, "pop", count=5)) == [1]
    letters = server.grape_data("dead", "list", "queue")
    assert "undelivered" in letters
    assert "20 times" in letters


def test_clear_and_forget(server: Server) -> None:
    push(server, range(5_000))
    until(lambda: server.info("queue")["numbers"]["emitted"].get("out") == 5_000)
    peek(server, count=10)
    assert ask(server, "clear") == {"cleared": 5_000}
    assert peek(server, wait=0) == []
    push(server, range(5))
    assert len(peek(server, count=5, consumer="other")) == 5
    ask(server, "forget", consumer="other")
    assert [one["consumer"] for one in server.get("/apps/queue/outputs/out").json()["consumers"]] == ["default"]
    server.grape("app", "restart", "queue")
    assert [one["consumer"] for one in server.get("/apps/queue/outputs/out").json()["consumers"]] == ["default"]


def test_mistakes_are_told(server: Server) -> None:
    for verb, what, says in (
        ("peek", {"count": 0}, "count"),
        ("peek", {"count": "x"}, "count"),
        ("peek", {"lease": -1}, "lease"),
        ("peek", {"consumer": "a b"}, "consumer"),
        ("peek", {"wait": 1e9}, "wait"),
        ("peek", {"cuont": 1}, "cuont"),
        ("ack", {}, "tokens"),
    ):
        answer = server.post(f"/apps/queue/outputs/out/{verb}", what)
        assert answer.status_code == 400, answer.text
        assert says in answer.json()["detail"]
    answer = server.post("/apps/queue/outputs/uot/peek", {})
    assert answer.status_code == 400
    assert "did you mean 'out'" in answer.json()["detail"]


def test_looking_on_goes_on_over_restarts(server: Server) -> None:
    seen: list[int] = []
    places: list[str] = []

    def look() -> None:
        with httpx.stream("GET", f"{server.url}/apps/queue/outputs/out/tail", timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    seen.append(json.loads(line[6:])["data"])
                elif line.startswith("id: "):
                    places.append(line[4:])
                elif line == ": looking on":
                    ready.set()
                if len(seen) == 30:
                    return

    ready = threading.Event()
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    assert ready.wait(20)
    push(server, range(10))
    until(lambda: len(seen) == 10)
    server.grape("app", "restart", "queue")
    push(server, range(10, 20))
    until(lambda: len(seen) == 20)
    os.kill(server.engine("queue"), signal.SIGKILL)
    until(lambda: server.get("/apps/queue/readyz").status_code == 200)
    push(server, range(20, 30))
    thread.join(30)
    assert seen == list(range(30))
    with httpx.stream(
        "GET", f"{server.url}/apps/queue/outputs/out/tail", headers={"last-event-id": places[0]}, timeout=30
    ) as answer:
        again = [json.loads(line[6:])["data"] for line in itertools.islice(_data_lines(answer), 20)]
    assert again == list(range(10, 30))


def _data_lines(answer: httpx.Response) -> Iterator[str]:
    return (line for line in answer.iter_lines() if line.startswith("data: "))


def test_the_commands(server: Server, tmp_path: Path) -> None:
    push(server, range(3))
    until(lambda: len(server.grape("pull", "queue@out", "-n", "5", "--keep").splitlines()) == 3)
    lines = b"".join(b'{"k": "a", "n": %d}\n' % i for i in range(5_000))
    done = grape("push", "queue@in", "--key", "k", "--home", server.home, stdin=lines[:30_000])
    assert done.returncode == 2
    assert "no JSON" in done.stderr  # the last line was cut
    done = grape("push", "queue@in", "--key", "k", "--home", server.home, stdin=lines[:200])
    assert done.returncode == 2
    until(lambda: server.info("queue")["numbers"]["emitted"].get("out", 0) > 1_000)
    took: list[str] = []

    def take() -> bool:  # what was kept comes again in a second
        took.extend(server.grape("pull", "queue@out", "-n", "100000").splitlines())
        return {"0", "1", "2"} <= {str(json.loads(line)["data"]) for line in took}

    until(take)
    assert server.grape("pull", "queue@out") == ""
    push(server, range(10))
    out = tmp_path / "out"
    until(lambda: server.info("queue")["numbers"]["emitted"]["out"] >= len(took) + 10)
    script = f"grep -v '\"data\":7' >> {out}"
    words = ["pump", "queue@out", "--home", server.home, "--once", "-j", "3", "--", "sh", "-c", script]
    done = grape(*words)
    assert done.returncode == 1, done.stderr
    assert "failed 20 times" in done.stderr
    assert sorted(json.loads(line)["data"] for line in out.read_text().splitlines()) == [0, 1, 2, 3, 4, 5, 6, 8, 9]


def test_who_only_looks_changes_nothing_however_often(server: Server) -> None:
    push(server, range(3))
    for _ in range(25):
        assert [event["data"] for event in peek(server, looks=True, count=2)] == [0, 1]
    assert server.grape("pull", "queue@out", "-n", "5", "--keep").count("\n") == 3
    found = peek(server, count=3)
    assert [(event["data"], event["attempt"]) for event in found] == [(0, 1), (1, 1), (2, 1)]
    assert peek(server, looks=True, count=3, wait=0) == []  # they are lent


def test_a_question_that_is_nested_too_deep_is_no_fault_of_the_gateway(server: Server) -> None:
    answer = server.http.post("/apps/queue/outputs/out/peek", content=b'{"a":' * 100_000)
    assert answer.status_code == 400, answer.text


# F3 F5
def test_nothing_is_popped_for_who_waited_and_is_gone(server: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        server.post("/apps/queue/outputs/out/pop", {"wait": 60}, timeout=0.3)
    time.sleep(1.5)
    push(server, range(1))
    assert [event["data"] for event in peek(server, "pop")] == [0]

    def wait() -> None:
        with pytest.raises(httpx.TransportError):
            ask(server, "pop", wait=60)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.3)
    gateway = next(pid for pid in server.pids() if b"grape.gateway" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(gateway, signal.SIGKILL)
    waiting.join()
    push(server, range(1, 2))
    assert [event["data"] for event in peek(server, "pop")] == [1]


def test_who_waits_for_a_queue_that_is_forgotten_brings_it_back_and_has_all(server: Server) -> None:
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.extend(peek(server, wait=20)))
    waiting.start()
    time.sleep(0.5)
    ask(server, "forget")
    push(server, range(2))
    waiting.join()
    assert [event["data"] for event in found] == [0]
    assert [event["data"] for event in peek(server)] == [1]
    assert ask(server, "ack", tokens=[found[0]["token"]]) == {"acked": 1, "unknown": 0}


def test_a_server_ends_at_once_though_somebody_looks_on_or_waits(server: Server) -> None:
    has_ended: list[int] = []

    def look_on() -> None:
        with httpx.stream("GET", f"{server.url}/apps/queue/outputs/out/tail", timeout=60) as stream:
            has_ended.append(stream.status_code)
            for _ in stream.iter_raw():
                pass

    threads = [threading.Thread(target=look_on), threading.Thread(target=lambda: peek(server, wait=60))]
    for thread in threads:
        thread.start()
    until(lambda: has_ended)
    time.sleep(0.3)
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 10
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
