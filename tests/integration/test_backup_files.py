"""`grape backup` of a directory with files beside its tree, of objects and of large events, while they come and go."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

import grape as engine
from command import grape
from grape.engine import objects as engine_objects
from grape.storage.connect import opened
from grape.storage.objects import Objects
from serving import until

APP = """
from random import Random
from grape import Node, State, Topology

class Store(Node):
    n: int = State(int, default=0)

    def process(self, event):
        self.n += 1
        self.storage.put(f"{event.key}/{self.n}", Random(f"{event.key}/{self.n}").randbytes(100_000))
        if self.n > 2:
            self.storage.remove(f"{event.key}/{self.n - 2}")
        if self.n % 4 == 0:
            self.emit("check", f"{self.n} " + str(self.n) * 400_000, key=event.key)

class Check(Node):
    seen: list = State(list, default=[])

    def process(self, event):
        if event.data == "seen":
            self.reply(self.seen)
            return
        number, _, body = event.data.partition(" ")
        assert body == number * 400_000
        self.seen = [*self.seen, int(number)]
        if number == "8":
            raise ValueError("an unlucky one")

t = Topology("store")
t.add_slot("do", Store())
t.add_slot("check", Check(), pool="other", retries=0)
"""
SLOWLY = """
import sys
from pathlib import Path
from grape.server.saving import back_up_data
from grape.tools import backup

blobs_of = backup._blobs_of

def slowly(place):
    found = blobs_of(place)
    print(" ".join(each.hex() for each in found), flush=True)
    sys.stdin.readline()
    return found

backup._blobs_of = slowly
back_up_data(Path(sys.argv[1]), Path(sys.argv[2]), lambda *_: None, False)
"""


def content(place: str) -> bytes:
    from random import Random

    return Random(place).randbytes(100_000)


@contextmanager
def load(running: engine.RunningEngine, sent: dict[str, int]) -> Iterator[None]:
    """Events without an end; ``sent``: how many are durable, by key."""
    is_over = threading.Event()

    def send(key: str) -> None:
        while not is_over.is_set():
            running.emit("do", 1, key=key)
            sent[key] = sent.get(key, 0) + 1
            is_over.wait(0.01)

    threads = [threading.Thread(target=send, args=(f"k{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(sent) == 3 and min(sent.values()) > 12)
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def restored(backup: Path, target: Path) -> dict[str, int]:
    """Elsewhere, whole, and with every byte; how many events each key had."""
    done = grape("restore", backup, "--data", target)
    assert done.returncode == 0, done.stderr
    whole = grape("doctor", "--data", target)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    rows = map(json.loads, grape("state", "list", "--node", "Store", "--data", target).stdout.splitlines())
    counts = {row["key"]: row["state"]["n"] for row in rows}

    async def read() -> dict[str, bytes]:
        async with opened(f"embedded://{target}") as storage:
            objects = Objects(storage, "store")
            keys = [about.key async for about in objects.list()]
            return {key: one.data for key, one in (await objects.get_many(keys)).items()}

    expected = {f"{key}/{n}": content(f"{key}/{n}") for key, last in counts.items() for n in (last - 1, last)}
    assert asyncio.run(read()) == expected
    verified = grape("storage", "verify", "store/", "--data", target)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    there = {path.name for path in (target / "blobs").glob("??/*")}
    assert there == {sha256(data).hexdigest() for data in expected.values()}
    return counts


def gone_on(app: Path, target: Path, counts: dict[str, int]) -> None:
    """What waited there, large as it was, is done once."""
    with engine.open(app, data=target, workers=1) as running:
        for key, last in counts.items():
            seen = [n for n in range(4, last + 1, 4) if n != 8]
            until(lambda: running.call("check", "seen", key=key)[: len(seen)] == seen)  # noqa: B023 - it is called here
    dead = [json.loads(line) for line in grape("dead", "list", "--json", "--data", target).stdout.splitlines()]
    for letter in dead:
        shown = json.loads(grape("dead", "show", letter["id"], "--data", target).stdout)
        assert shown["data"] == "8 " + "8" * 400_000


def test_f95_objects_and_large_events_that_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F95: a backup that takes longer than a file lives, and one as it is, of a directory under load; restored, all of
    their moment is there."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which an app that runs in this process adds its directory
    monkeypatch.setattr(engine_objects, "_LEAST", 20_000)
    looks = [0]
    look = engine_objects.AppObjects._look_at_loose

    def counted(objects: engine_objects.AppObjects) -> None:
        looks[0] += 1
        look(objects)

    monkeypatch.setattr(engine_objects.AppObjects, "_look_at_loose", counted)
    app, data = tmp_path / "app.py", tmp_path / "d"
    app.write_text(APP)
    sent: dict[str, int] = {}
    with engine.open(f"{app}:t", data=data, inline=True, workers=1) as running, load(running, sent):

        def there() -> set[str]:
            return {path.name for path in (data / "blobs").glob("??/*")}

        before = dict(sent)
        quick = grape("backup", tmp_path / "quick", "--data", data)
        assert quick.returncode == 0, quick.stderr
        with subprocess.Popen(
            [sys.executable, "-c", SLOWLY, data, tmp_path / "slow"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as slow:
            assert slow.stdout is not None
            assert slow.stdin is not None
            of_the_moment = set(slow.stdout.readline().split())
            assert of_the_moment
            since, at = looks[0], dict(sent)
            until(lambda: looks[0] > since + 5 and all(sent[key] > at[key] + 10 for key in at))
            assert of_the_moment <= there()
            slow.stdin.write("\n")
            slow.stdin.flush()
            assert slow.wait(60) == 0, slow.communicate()
        until(lambda: not of_the_moment & there())
    for name in ("quick", "slow"):
        counts = restored(tmp_path / name, tmp_path / f"{name}-restored")
        assert all(before[key] <= counts[key] + 20 for key in before)
        gone_on(app, tmp_path / f"{name}-restored", counts)


def test_a_lost_file_is_told_of_and_no_backup_made(tmp_path: Path) -> None:
    """Nobody removes files meanwhile, so making it again would be of no use."""
    app, data = tmp_path / "app.py", tmp_path / "d"
    app.write_text(APP)
    with engine.open(f"{app}:t", data=data, workers=1) as running:
        running.emit("do", 1, key="k")
        until(lambda: len(list((data / "blobs").glob("??/*"))) == 1)
    (lost,) = (data / "blobs").glob("??/*")
    lost.unlink()
    done = grape("backup", tmp_path / "backup", "--data", data)
    assert done.returncode == 3, done.stderr
    assert "the bytes of an object are lost" in done.stderr
    assert not (tmp_path / "backup").exists()
