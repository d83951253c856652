"""`grape state`, `grape dead` and `grape doctor` as an operator runs them, on directories made by real runs."""

from __future__ import annotations

import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.command import GRAPE, grape

from grape.abc.transport import Commit
from grape.errors import StorageFailed
from grape.model.address import CATALOG, PartitionId
from grape.store.files import holder
from grape.store.reader import Reader
from grape.tools.directory import Checkup
from grape.tools.repair import Repair

BROKEN = """
from grape import Node, State, Topology

class Check(Node):
    seen = State(int, default=0)
    last = State(str, default="", ttl=3600.0)
    def process(self, event):
        if event.data["n"] % 10 == 3:
            raise ValueError(f"bad \\x1b[31mnumber {event.data['n']}")
        self.seen += 1
        self.last = event.id
        self.emit("ok", {"n": event.data["n"], "attempt": event.attempt}, key=event.key)

class Other(Node):
    total = State(int, default=0)
    def process(self, event):
        self.total += 1

def topology(config):
    t = Topology("orders")
    t.add_slot("order", Check(), retries=0)
    t.add_slot("order", Other())
    t.add_output("ok")
    return t
"""
FIXED = BROKEN.replace("% 10 == 3", "< 0")
STOPS = BROKEN.replace("retries=0", 'retries=0, on_fail="stop"')
STOPS_FIXED = STOPS.replace("% 10 == 3", "< 0")
SLOW = """
import time
from grape import Node, Topology

class Slow(Node):
    def process(self, event):
        time.sleep(0.1)

def topology(config):
    t = Topology("orders")
    t.add_slot("order", Slow())
    return t
"""


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


class Bench:
    """An app, its input and its directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.app = path / "app.py"
        self.data = path / "data"
        self.input = path / "in.jsonl"
        self.output = path / "ok.jsonl"

    def feed(self, rows: list[dict[str, Any]]) -> None:
        with self.input.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def run(self, body: str, *options: object) -> subprocess.CompletedProcess[str]:
        self.app.write_text(body)
        shutil.rmtree(self.path / "__pycache__", ignore_errors=True)
        return grape("run", self.app, "--data", self.data, "--take", f"ok={self.output}", "--workers", 1, *options)

    def run_fed(self, body: str, *options: object) -> subprocess.CompletedProcess[str]:
        return self.run(body, "--feed", f"order={self.input},key=k", "--partitions", 4, *options)

    def run_until(self, body: str, outputs: int) -> None:
        """Run until something was stopped and so many outputs were taken; then interrupt it, if it has not ended."""
        self.app.write_text(body)
        command = [GRAPE, "run", self.app, "--data", self.data, "--take", f"ok={self.output}", "--workers", "1"]
        engine = subprocess.Popen([*command, "--feed", f"order={self.input},key=k", "--partitions", "4"])
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and engine.poll() is None:
            taken = self.output.read_bytes().count(b"\n") if self.output.exists() else 0
            if taken >= outputs and grape("dead", "list", "--data", self.data).stdout:
                engine.send_signal(signal.SIGINT)
                break
            time.sleep(0.1)
        engine.wait(30)

    def dead(self) -> list[dict[str, Any]]:
        done = grape("dead", "list", "--data", self.data)
        assert done.returncode == 0, done.stderr
        return lines(done.stdout)

    def numbers(self) -> list[int]:
        return [row["data"]["n"] for row in lines(self.output.read_text())]

    def seen(self, node: str = "Check", name: str = "seen") -> dict[str, int]:
        done = grape("state", "list", "--data", self.data, "--node", node)
        assert done.returncode == 0, done.stderr
        return {row["key"]: row["state"][name] for row in lines(done.stdout)}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.feed([{"n": n, "k": f"k{n % 5}"} for n in range(40)])
    return bench


@pytest.fixture
def broken(bench: Bench) -> Bench:
    done = bench.run_fed(BROKEN)
    assert done.returncode == 1, done.stderr
    return bench


def test_state(broken: Bench) -> None:
    assert broken.seen() == {"k0": 8, "k1": 8, "k2": 8, "k3": 4, "k4": 8}
    assert broken.seen("Other", "total") == dict.fromkeys(("k0", "k1", "k2", "k3", "k4"), 8)
    got = grape("state", "get", "--data", broken.data, "--node", "Check", "k3", "nobody")
    assert got.returncode == 0
    (row,) = lines(got.stdout)
    assert row["node"] == "Check"
    assert row["key"] == "k3"
    assert row["state"].keys() == {"seen", "last"}
    assert "no state of key nobody" in got.stderr
    both = grape("state", "list", "--data", broken.data, "--prefix", "k3")
    assert [(row["node"], row["key"]) for row in lines(both.stdout)] == [("Check", "k3"), ("Other", "k3")]
    none = grape("state", "get", "--data", broken.data, "--node", "Check", "nobody")
    assert (none.returncode, none.stdout) == (1, "")
    near = grape("state", "get", "--data", broken.data, "--node", "chek", "k3")
    assert near.returncode == 1
    assert "did you mean 'Check'?" in near.stderr


def test_expired_state_is_not_shown(bench: Bench) -> None:
    assert bench.run_fed(FIXED.replace("3600.0", "0.2"), "--no-wait").returncode == 0
    time.sleep(0.3)
    got = grape("state", "get", "--data", bench.data, "--node", "Check", "k0")
    assert [row["state"] for row in lines(got.stdout)] == [{"seen": 8}]


def test_a_directory_of_several_apps_asks_which_one(broken: Bench) -> None:
    broken.app.write_text(FIXED.replace('Topology("orders")', 'Topology("second")'))
    assert grape("run", broken.app, "--data", broken.data).returncode == 0
    asked = grape("state", "list", "--data", broken.data)
    assert asked.returncode == 2
    assert "--app (orders, second)" in asked.stderr
    assert len(lines(grape("state", "list", "--data", broken.data, "--app", "orders").stdout)) == 10
    assert grape("state", "list", "--data", broken.data, "--app", "second").stdout == ""
    wrong = grape("dead", "list", "--data", broken.data, "--app", "order")
    assert wrong.returncode == 2
    assert "did you mean 'orders'?" in wrong.stderr


@pytest.mark.parametrize("command", [["state", "list"], ["dead", "list"], ["dead", "retry", "--all"], ["doctor"]])
def test_what_is_no_data_directory_is_refused(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thing").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("missing", "empty", "other", "file"):
        done = grape(*command, "--data", tmp_path / name)
        assert done.returncode == 2, (name, done.stderr)
        assert str(tmp_path / name) in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "missing").exists()
    assert not list((tmp_path / "empty").iterdir())


def test_dead_letters_are_listed_and_shown(broken: Bench) -> None:
    rows = broken.dead()
    assert len(rows) == 4
    assert len({row["id"] for row in rows}) == 4
    for row in rows:
        assert row.keys() >= {"id", "event", "node", "key", "attempts", "kind", "text", "when", "origin"}
        assert (row["event"], row["node"], row["key"], row["attempts"]) == ("order", "Check", "k3", 1)
        assert (row["status"], row["kind"]) == ("dead", "ValueError")
    shown = grape("dead", "show", rows[1]["id"], "--data", broken.data)
    assert shown.returncode == 0
    (whole,) = lines(shown.stdout)
    assert whole["data"] == {"n": 13, "k": "k3"}
    assert "ValueError: bad" in whole["traceback"]
    assert "app.py" in whole["traceback"]
    for wrong, code in (("main.0-99", 1), ("other.0-1", 2), ("main.77-1", 2), ("x", 2)):
        assert grape("dead", "show", wrong, "--data", broken.data).returncode == code


def on_terminal(*arguments: object) -> str:
    """What a command prints on a terminal."""
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", COLUMNS="160")
        os.execv(GRAPE, [GRAPE, *map(str, arguments)])
    out = b""
    try:
        while chunk := os.read(fd, 65536):
            out += chunk
    except OSError:
        pass
    os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, out
    return out.decode()


def test_a_terminal_gets_a_table_without_the_control_characters_of_users(broken: Bench) -> None:
    first = broken.dead()[0]["id"]
    table = on_terminal("dead", "list", "--data", broken.data)
    shown = on_terminal("dead", "show", first, "--data", broken.data)
    assert first in table
    assert "4 in all" in table
    assert "Traceback" in shown
    for text in (table, shown):
        assert "\x1b[31mnumber" not in text
        assert "\\u001b[31mnumber" in text
    assert "whole" in on_terminal("doctor", "--data", broken.data)


def test_retry_processes_each_letter_exactly_once(broken: Bench) -> None:
    before = broken.seen("Other", "total")
    first = broken.dead()[0]["id"]
    one = grape("dead", "retry", first, "--data", broken.data)
    assert one.returncode == 0, one.stderr
    assert "1 dead letter put back" in one.stderr
    assert len(broken.dead()) == 3
    twice = grape("dead", "retry", first, "--data", broken.data)
    assert twice.returncode == 1
    assert "no such letter" in twice.stderr
    rest = grape("dead", "retry", "--all", "--data", broken.data)
    assert "3 dead letters put back" in rest.stderr
    assert broken.dead() == []
    done = broken.run(FIXED)
    assert done.returncode == 0, done.stderr
    assert sorted(broken.numbers()) == list(range(40))
    assert [n for n in broken.numbers() if n % 10 == 3] == [3, 13, 23, 33]
    assert broken.seen()["k3"] == 8
    assert broken.seen("Other", "total") == before, "only the node that failed is meant"
    assert broken.run(FIXED).returncode == 0
    assert len(broken.numbers()) == 40
    ids = {row["data"]["n"]: row["id"] for row in lines(broken.output.read_text())}
    assert len(set(ids.values())) == 40


def test_what_fails_again_is_a_dead_letter_again(broken: Bench) -> None:
    before = [grape("dead", "show", row["id"], "--data", broken.data).stdout for row in broken.dead()]
    assert grape("dead", "retry", "--all", "--data", broken.data).returncode == 0
    assert broken.run(BROKEN).returncode == 1
    after = [grape("dead", "show", row["id"], "--data", broken.data).stdout for row in broken.dead()]
    for old, new in zip(before, after, strict=True):
        (a,), (b,) = lines(old), lines(new)
        assert a["id"] != b["id"]
        same = ("event_id", "created", "data", "key", "node", "attempts")
        assert [a[name] for name in same] == [b[name] for name in same]


def test_drop(broken: Bench) -> None:
    ids = [row["id"] for row in broken.dead()]
    assert grape("dead", "drop", "--data", broken.data).returncode == 2
    done = grape("dead", "drop", *ids[:2], "--data", broken.data)
    assert (done.returncode, "2 dead letters dropped" in done.stderr) == (0, True)
    assert [row["id"] for row in broken.dead()] == ids[2:]
    assert grape("dead", "drop", "--all", "--data", broken.data).returncode == 0
    assert broken.run(FIXED).returncode == 0
    assert len(broken.numbers()) == 36


def test_a_letter_whose_node_or_slot_is_gone_is_refused(broken: Bench) -> None:
    renamed = FIXED.replace("Check", "Checks").replace('add_slot("order", Checks', 'add_slot("other", Checks')
    done = broken.run(renamed, "--drop-node", "Check")
    assert done.returncode == 1, done.stderr
    refused = grape("dead", "retry", "--all", "--data", broken.data)
    assert refused.returncode == 1
    assert "node 'Check' is gone from app 'orders'; did you mean 'Checks'?" in refused.stderr
    assert "nothing put back; 4 refused" in refused.stderr
    assert len(broken.dead()) == 4
    assert grape("dead", "drop", "--all", "--data", broken.data).returncode == 0


def test_bad_input_can_only_be_dropped(bench: Bench) -> None:
    with bench.input.open("a") as file:
        file.write("{no json\n")
    assert bench.run_fed(FIXED).returncode == 1
    (row,) = bench.dead()
    assert (row["node"], row["event"], row["origin"]) == ("", "order", f"{bench.input}:41")
    (whole,) = lines(grape("dead", "show", row["id"], "--data", bench.data).stdout)
    assert whole["data"]
    refused = grape("dead", "retry", row["id"], "--data", bench.data)
    assert refused.returncode == 1
    assert "never became an event" in refused.stderr
    assert grape("dead", "drop", row["id"], "--data", bench.data).returncode == 0
    assert bench.dead() == []
    bench.feed([{"n": 100, "k": "k"}])
    assert bench.run_fed(FIXED).returncode == 0
    assert len(bench.numbers()) == 41


@pytest.mark.parametrize("action", ["retry", "drop"])
def test_stopped_events(bench: Bench, action: str) -> None:
    bench.run_until(STOPS, 32)
    assert sorted(bench.numbers()) == [n for n in range(40) if n % 5 != 3]
    (row,) = bench.dead()
    assert (row["status"], row["key"], row["node"]) == ("stopped", "k3", "Check")
    assert "-h" in row["id"]
    (whole,) = lines(grape("dead", "show", row["id"], "--data", bench.data).stdout)
    assert whole["data"]["n"] == 3
    assert "ValueError" in whole["traceback"]
    done = grape("dead", action, row["id"], "--data", bench.data)
    assert done.returncode == 0, done.stderr
    assert "1 stopped event" in done.stderr
    assert bench.dead() == []
    assert bench.run(STOPS_FIXED).returncode == 0
    late = [n for n in bench.numbers() if n % 5 == 3]
    assert late == [3, 8, 13, 18, 23, 28, 33, 38][action == "drop" :]
    assert bench.run(STOPS_FIXED).returncode == 0
    assert len(bench.numbers()) == 40 - (action == "drop")


def test_beside_a_running_engine(bench: Bench) -> None:
    assert bench.run_fed(BROKEN).returncode == 1
    bench.app.write_text(SLOW)
    shutil.rmtree(bench.path / "__pycache__", ignore_errors=True)
    bench.feed([{"n": n, "k": f"k{n % 5}"} for n in range(40, 400)])
    command = [GRAPE, "run", bench.app, "--data", bench.data, "--feed", f"order={bench.input},key=k"]
    command += ["--drop-node", "Check", "--drop-node", "Other"]
    engine = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 20
        while (found := holder(bench.data)) is None or not found.pid:
            assert engine.poll() is None
            assert time.monotonic() < deadline
        assert grape("dead", "list", "--data", bench.data).returncode == 0
        doctor = grape("doctor", "--data", bench.data)
        assert doctor.returncode == 0, doctor.stdout
        assert f"in use by process {found.pid}" in doctor.stdout
        assert engine.poll() is None
    finally:
        engine.send_signal(signal.SIGINT)
        engine.communicate(timeout=30)


def test_doctor_counts(broken: Bench) -> None:
    done = grape("doctor", "--data", broken.data)
    assert done.returncode == 0, done.stderr
    assert "app orders: 4 partitions; nodes Check, Other" in done.stdout
    assert "pool main: 0 events waiting" in done.stdout
    assert "4 dead" in done.stdout
    assert "40 events fed" in done.stdout
    assert "36 events taken" in done.stdout
    grape("dead", "retry", "--all", "--data", broken.data)
    assert "pool main: 4 events waiting in 4 batches" in grape("doctor", "--data", broken.data).stdout


def test_doctor_finds_flipped_bytes(broken: Bench) -> None:
    assert grape("dead", "retry", broken.dead()[0]["id"], "--data", broken.data).returncode == 0
    whole = (broken.data / "data.mdb").read_bytes()
    at = [i for i in range(len(whole)) if whole.startswith(b"\xa4seen", i)]
    assert at
    found = 0
    for place in at:
        damaged = bytearray(whole)
        damaged[place + 2] ^= 0x04
        (broken.data / "data.mdb").write_bytes(damaged)
        done = grape("doctor", "--data", broken.data)
        if done.returncode == 3:
            found += 1
            assert "fails its checksum" in done.stdout
            assert "what to do" in done.stdout
        else:
            assert done.returncode == 0  # a page that was freed and is not in use any more
    assert found


def test_doctor_survives_any_damage(broken: Bench) -> None:
    data = broken.data / "data.mdb"
    whole = data.read_bytes()
    rng = random.Random(7)
    for _ in range(8):
        damaged = bytearray(whole)
        start = rng.randrange(2, len(whole) // 4096) * 4096
        damaged[start : start + 4096] = rng.randbytes(4096)
        data.write_bytes(damaged)
        done = grape("doctor", "--data", broken.data)
        assert done.returncode in (0, 3), (start, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr, done.stderr
    data.write_bytes(whole[: len(whole) // 2 & ~4095])
    cut = grape("doctor", "--data", broken.data)
    assert cut.returncode == 3, cut.stdout
    data.write_bytes(b"no data at all" * 1000)
    assert grape("doctor", "--data", broken.data).returncode == 3


def test_a_kill_before_the_commit_leaves_the_letter(broken: Bench) -> None:
    """Killed anywhere around its commit, a retry has happened as a whole or not at all."""
    code = (
        "import os, sys\n"
        "from grape.store import writing as store\n"
        "from grape.tools import repair\n"
        "when = sys.argv[2]\n"
        "finish, append = store.Writing.finish, store.Writing.append\n"
        "sent = []\n"
        "def noted(self, *send):\n"
        "    sent.append(send)\n"
        "    return append(self, *send)\n"
        "def dying(self):\n"
        "    if when == 'before' and sent: os._exit(9)\n"
        "    finish(self)\n"
        "    if when == 'after' and sent: os._exit(9)\n"
        "store.Writing.finish, store.Writing.append = dying, noted\n"
        "with repair.Repair(sys.argv[1]) as r:\n"
        "    record = r.directory.app(None)\n"
        "    r.retry(record, [letter.place for letter in r.directory.letters(record)])\n"
    )
    for when, left in (("before", 4), ("after", 0)):
        done = subprocess.run([sys.executable, "-c", code, broken.data, when], check=False, timeout=60)
        assert done.returncode == 9
        assert len(broken.dead()) == left
    assert broken.run(FIXED).returncode == 0
    assert sorted(broken.numbers()) == list(range(40))


def test_many_letters_are_moved_in_several_commits(broken: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grape.tools.repair._COMMIT_LETTERS", 3)
    with Repair(broken.data) as repair:
        record = repair.directory.app(None)
        changes = repair.retry(record, [letter.place for letter in repair.directory.letters(record)])
    assert (changes.dead, changes.stopped, changes.refused) == (4, 0, {})
    assert broken.run(FIXED).returncode == 0
    assert sorted(broken.numbers()) == list(range(40))


HELD = BROKEN.replace("retries=0", "retries=3, backoff=3600.0, backoff_max=3600.0")


@pytest.fixture
def held(bench: Bench) -> Bench:
    """Four events failed (3, 13, 23, 33, of key k3), later ones of the key wait behind the first."""
    done = bench.run_fed(HELD, "--no-wait")
    assert done.returncode == 0, done.stderr
    return bench


def held_list(bench: Bench, *options: object) -> list[dict[str, Any]]:
    done = grape("held", "list", "--data", bench.data, *options)
    assert done.returncode == 0, done.stderr
    return lines(done.stdout)


def test_held_events_are_listed_and_shown(held: Bench) -> None:
    first, *behind = held_list(held)
    assert (first["status"], first["event"], first["node"], first["key"]) == ("held", "order", "Check", "k3")
    assert (first["kind"], first["attempts"], first["waiting"]) == ("ValueError", 1, len(behind))
    assert first["next"]
    assert "bad" in first["text"]
    assert behind
    assert {row["behind"] for row in behind} == {first["id"]}
    assert {row["status"] for row in behind} == {"behind"}
    (shown,) = lines(grape("held", "show", first["id"], "--data", held.data).stdout)
    assert shown["data"] == {"n": 3, "k": "k3"}
    assert "Traceback" in shown["traceback"]
    assert shown["waiting"] == len(behind)
    assert grape("held", "show", "main.0-h99999", "--data", held.data).returncode == 1
    assert "next 20" in on_terminal("held", "list", "--data", held.data)


def test_held_events_are_filtered(held: Bench) -> None:
    rows = held_list(held)
    assert held_list(held, "--limit", 2) == rows[:2]
    assert held_list(held, "--kind", "ValueError") == [row for row in rows if row["kind"] == "ValueError"]
    assert held_list(held, "--node", "Other") == held_list(held, "--key", "k1") == []
    assert held_list(held, "--event", "order", "--key", "k3", "--node", "Check") == rows


def test_held_events_are_tried_at_once(held: Bench) -> None:
    first = held_list(held)[0]["id"]
    done = grape("held", "retry", first, "--data", held.data)
    assert (done.returncode, "1 held event put back" in done.stderr) == (0, True)
    assert held_list(held)[0]["next"] is None
    assert held.run(FIXED.replace("retries=0", "retries=3")).returncode == 0
    assert held_list(held) == held.dead() == []
    assert [n for n in held.numbers() if n % 5 == 3] == [3, 8, 13, 18, 23, 28, 33, 38]


def test_what_waits_behind_a_dropped_event_goes_on(held: Bench) -> None:
    done = grape("held", "drop", "--kind", "ValueError", "--data", held.data)
    assert (done.returncode, "1 held event dropped" in done.stderr) == (0, True)
    assert held.run(FIXED.replace("retries=0", "retries=3")).returncode == 0
    assert [n for n in held.numbers() if n % 5 == 3] == [8, 13, 18, 23, 28, 33, 38]


def test_dead_letters_are_chosen_by_filters(broken: Bench) -> None:
    def found(*options: object) -> int:
        return len(lines(grape("dead", "list", "--data", broken.data, *options).stdout))

    assert (found(), found("--limit", 3), found("--key", "k3"), found("--kind", "timeout")) == (4, 3, 4, 0)
    for how in ([], ["--all", "--node", "Check"], ["main.0-0", "--node", "Check"]):
        done = grape("dead", "drop", "--data", broken.data, *how)
        assert (done.returncode, "say which ones" in done.stderr) == (2, True)
    assert "nothing put back" in grape("dead", "retry", "--key", "k1", "--data", broken.data).stderr
    assert "4 dead letters put back" in grape("dead", "retry", "--node", "Check", "--data", broken.data).stderr


def test_state_is_sorted_limited_and_removed(broken: Bench) -> None:
    def rows(*options: object) -> list[dict[str, Any]]:
        return lines(grape("state", "list", "--data", broken.data, *options).stdout)

    every = [(row["node"], row["key"]) for row in rows()]
    assert every == sorted(every)
    assert len(every) == 10
    assert [row["key"] for row in rows("--node", "Other", "--limit", 2)] == ["k0", "k1"]
    done = grape("state", "delete", "k1", "none", "--node", "Other", "--data", broken.data)
    assert done.returncode == 1
    assert "no state of key none" in done.stderr
    assert "state of 1 key removed" in done.stderr
    assert [row["key"] for row in rows("--node", "Other")] == ["k0", "k2", "k3", "k4"]
    assert "did you mean 'Other'" in grape("state", "delete", "k", "--node", "other", "--data", broken.data).stderr


def test_state_that_is_no_record_is_shown_as_such(broken: Bench) -> None:
    with Repair(broken.data) as repair:
        record = repair.directory.app(None)
        home, place = repair.directory.state_place(record, "Other", "k2")
        claim = repair._claim(home)
        for i, garbage in enumerate((b"", b"\xc1", b"\x81\xa1a", b"\x81\xa1\xff\x01", b"\x81\xa0\x81\xa1a\xa1b")):
            rows = [("state", [(place + bytes(str(i), "ascii"), garbage)])]
            repair._submit(Commit(home, claim.term, i + 1, claim.head, (), rows))  # type: ignore[arg-type]
    done = grape("state", "list", "--node", "Other", "--data", broken.data)
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["key"] for row in lines(done.stdout) if "problem" in row] == ["k20", "k21", "k22", "k23"]


def test_doctor_goes_on_where_heads_cannot_be_read(broken: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Reader.head

    def head(self: Reader, partition: PartitionId) -> object:
        if partition == CATALOG:
            return read(self, partition)
        raise StorageFailed("this page is gone")

    monkeypatch.setattr(Reader, "head", head)
    with Checkup(broken.data) as checkup:
        assert "this page is gone" in checkup.run(None)
        assert any(report.is_pool for report in checkup.logs)
