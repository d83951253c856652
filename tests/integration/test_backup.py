"""`grape backup` of what is at work, and what is made of it elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from command import GRAPE, grape
from grape.store.store import Store
from serving import COUNT, Server, count_app, serving, until, write_app

SENDS = """
from grape import Node, State, Topology

class Send(Node):
    n: int = State(int, default=0)

    def process(self, event):
        self.n += 1
        self.emit("count@add", self.n, key=event.key)

def topology(config):
    t = Topology("send")
    t.add_slot("go", Send(), emits="count@add")
    return t
"""


def states(data: Path) -> dict[str, Any]:
    done = grape("state", "list", "--data", data)
    assert done.returncode == 0, done.stderr
    return {row["key"]: row["state"]["n"] for row in map(json.loads, done.stdout.splitlines())}


class Load:
    """Events without an end, by several at once; ``sent``: how many are durable, by key."""

    def __init__(self, server: Server, path: str) -> None:
        self.sent: dict[str, int] = {}
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(server, path, f"k{i}")) for i in range(6)]

    def _send(self, server: Server, path: str, key: str) -> None:
        while not self._is_over.is_set():
            answer = server.post(path, 1, params={"key": key})
            assert answer.status_code == 202, answer.text
            self.sent[key] = self.sent.get(key, 0) + 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        until(lambda: len(self.sent) == 6 and min(self.sent.values()) > 20)
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.slow
def test_apps_under_load_are_copied_at_one_moment_and_go_on_from_there(tmp_path: Path) -> None:
    """F95: and restored elsewhere, where each event was done once."""
    backup = tmp_path / "backup"
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", count_app(tmp_path / "count"))
        server.grape("app", "deploy", write_app(tmp_path / "send", SENDS))
        server.grape("token", "create", "t", "--scope", "count:read")
        token = server.grape("token", "create", "web", "--scope", "*:*").strip()
        server.http.headers["authorization"] = f"Bearer {token}"
        with Load(server, "/apps/send/events/go") as load:
            before = dict(load.sent)
            said = server.grape("backup", "--verify", backup)
            after = dict(load.sent)
        assert "2 apps as of" in said
        assert server.stop() == 0
    made = json.loads((backup / "backup.json").read_text())
    assert set(made["apps"]) == {"count", "send"}
    assert not list(backup.rglob("lock*"))
    assert not list(tmp_path.glob(".backup.partial*"))

    sent = states(backup / "apps/send/data")
    for lock in backup.rglob("lock.mdb"):  # who looks makes it
        lock.unlink()
    home = tmp_path / "restored"
    assert grape("restore", backup, "--home", home).returncode == 0
    with serving(home) as server:
        assert server.get("/apps").status_code == 401  # tokens are as they were
        server.http.headers["authorization"] = f"Bearer {token}"

        def is_quiet() -> bool:
            return all(
                not info["numbers"]["backlog_events"] and not info["numbers"]["outgoing_events"]
                for info in (server.info("send"), server.info("count"))
            )

        until(is_quiet)
        keys = states(home / "apps/send/data")
        for key, n in keys.items():  # all that was durable before it, and nothing that came later
            assert before[key] <= n <= after[key] + 1
            assert sent[key] <= n
            # What one app has sent, the other has: each once.
            assert server.call("count", "add", params={"key": key}) == ["1", n + 1]
        server.post("/apps/send/events/go", 1, params={"key": "k0"})
        until(lambda: states(home / "apps/count/data")["k0"] == keys["k0"] + 2)
        assert server.grape("app", "info", "count").startswith("count 1 ")


def test_one_directory_is_copied_and_equals_its_moment(tmp_path: Path) -> None:
    """F95: with all that was durable, and nothing else."""
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", count_app(tmp_path / "count"))
        data = server.home / "apps/count/data"
        for key in ("a", "a", "b"):
            server.call("count", "add", params={"key": key})
        server.call("count", "add", params={"key": "a", "wait": "5"}, headers={"idempotency-key": "i1"})
        done = grape("backup", tmp_path / "one", "--data", data)
        assert done.returncode == 0, done.stderr
        server.call("count", "add", params={"key": "a"})
        assert server.grape("backup", "count", tmp_path / "two").startswith(str(tmp_path / "two"))
        assert "there is no app 'cuont'; did you mean 'count'" in server.grape(
            "backup", "cuont", tmp_path / "x", code=2
        )
        assert "is there already" in server.grape("backup", tmp_path / "two", code=2)
    for words, where, n in ((["one"], "a", 3), (["two", "count"], "b", 4)):
        target = tmp_path / where
        done = grape("restore", tmp_path / words[0], *words[1:], "--data", target)
        assert done.returncode == 0, done.stderr
        assert states(target) == {"a": n, "b": 1}
        assert grape("doctor", "--data", target, "--quiet").stdout == ""
    assert "is there already" in grape("restore", tmp_path / "one", "--data", tmp_path / "a").stderr
    # Restored over what was lost: a call that it knows is not done again, one that it does not know is.
    shutil.rmtree(tmp_path / "home" / "apps")
    assert grape("restore", tmp_path / "two", "--home", tmp_path / "home", "--stopped").returncode == 0
    with serving(tmp_path / "home") as server:
        assert server.info("count")["state"] == "stopped"
        server.grape("app", "start", "count")
        options = {"params": {"key": "a"}}
        assert server.call("count", "add", **options, headers={"idempotency-key": "i1"}) == ["1", 3]
        assert server.call("count", "add", **options, headers={"idempotency-key": "i2"}) == ["1", 5]
        assert "another server has it" in server.grape("restore", tmp_path / "two", code=2)
    assert "there is an app count" in grape("restore", tmp_path / "two", "--home", tmp_path / "home").stderr


@pytest.mark.slow
def test_an_app_is_not_restored_beside_those_it_has_spoken_to_later(tmp_path: Path) -> None:
    home, backup = tmp_path / "home", tmp_path / "backup"
    with serving(home) as server:
        server.grape("app", "deploy", count_app(tmp_path / "count"))
        server.grape("app", "deploy", write_app(tmp_path / "send", SENDS))
        server.grape("app", "deploy", write_app(tmp_path / "alone", f"VERSION = '1'\n{COUNT}", name="alone"))
        server.grape("emit", "send@go", "--key", "a")
        until(lambda: states(home / "apps/count/data") == {"a": 1})
        server.grape("backup", backup)
        for name in ("send", "alone"):
            server.grape("app", "stop", name)
            server.grape("app", "remove", name, "--data")
    done = grape("restore", backup, "send", "--home", home)
    assert done.returncode == 2
    assert "send has exchanged events with count" in done.stderr
    assert not (home / "apps/send").exists()
    assert grape("restore", backup, "alone", "--home", home).returncode == 0
    assert grape("restore", backup, "send", "--home", home, "--force").returncode == 0
    assert not list(home.glob(".restore-*"))
    (home / "apps" / "send" / "app.json").unlink()  # as if it had been cut off
    assert "is in the way, and no app" in grape("restore", backup, "send", "--home", home).stderr
    assert "is no home of a server" in grape("backup", tmp_path / "x", "--home", tmp_path / "none").stderr


def test_what_is_cut_off_or_changed_is_no_backup(tmp_path: Path) -> None:
    data = tmp_path / "data"
    store = Store(data, lambda run: None)
    try:
        done = grape("backup", tmp_path / "whole", "--data", data)
    finally:
        store.close()
    assert done.returncode == 0, done.stderr
    (tmp_path / ".cut.partial-1").mkdir()
    done = grape("restore", tmp_path / ".cut.partial-1", "--data", tmp_path / "x")
    assert done.returncode == 2
    assert "is no backup: it has no file backup.json" in done.stderr
    file = tmp_path / "whole" / "data" / "data.mdb"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    done = grape("restore", tmp_path / "whole", "--data", tmp_path / "x")
    assert done.returncode == 3
    assert "it is not what was written" in done.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("after", [0.3, 0.6])
def test_who_is_killed_leaves_nothing_of_that_name(tmp_path: Path, after: float) -> None:
    data = tmp_path / "data"
    store = Store(data, lambda run: None, max_size=1 << 30)
    store.close()
    (data / "crashes").mkdir()
    (data / "crashes" / "00000001.json").write_bytes(b"x" * (64 << 20))
    process = subprocess.Popen([GRAPE, "backup", str(tmp_path / "target"), "--data", str(data)])
    time.sleep(after)
    process.kill()
    process.wait()
    time.sleep(0.1)
    assert not (tmp_path / "target").exists() or (tmp_path / "target" / "backup.json").exists()
