"""Objects and what must be survived, by the rows of the catalogue of faults, on the real thing."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import grape as engine
from command import GRAPE, grape
from grape.storage import beside
from grape.storage.connect import opened
from grape.storage.objects import Objects
from serving import serving, until, write_app

APP = """
from grape import Node, State, Topology

class Store(Node):
    n: int = State(int, default=0)

    def process(self, event):
        what = event.data
        self.n += 1
        if "put" in what:
            self.storage[what["in"]].put(event.key, what["put"].encode() * what.get("times", 1))
        if "many" in what:
            for i in range(what["many"]):
                self.storage.put(f"{event.key}/{i}", b"x" * what["size"])
        if "read" in what:
            data = self.storage[what["in"]].get(what["read"])
            self.emit("got", [event.key, None if data is None else len(data)])
        if "part" in what:
            data = self.storage[what["in"]].get(what["part"], 0, 10)
            self.emit("got", [event.key, None if data is None else data.decode()])

t = Topology("store")
t.add_slot("do", Store(), retries=0)
t.add_output("got")
"""
GRANTS = '[namespaces]\nthere = "write"\n'


def written(directory: Path) -> Path:
    app = write_app(directory, APP, name="store")
    with open(app / "grape.toml", "a") as manifest:
        manifest.write(GRANTS)
    return app


def lines(path: Path, events: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def objects_in(url: str, namespace: str = "there") -> dict[str, bytes]:
    async def read() -> dict[str, bytes]:
        async with opened(url) as storage:
            objects = Objects(storage, namespace)
            keys = [about.key async for about in objects.list()]
            return {key: one.data for key, one in (await objects.get_many(keys)).items()}

    return asyncio.run(read())


@contextmanager
def hanging(root: Path) -> Iterator[None]:
    """A storage of files in which nothing can be written: another program holds its locks, and does not let go."""
    (root / ".grape" / "locks").mkdir(parents=True, exist_ok=True)
    held = [os.open(root / ".grape" / "locks" / f"{n:02x}", os.O_RDWR | os.O_CREAT, 0o666) for n in range(256)]
    try:
        for fd in held:
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        for fd in held:
            os.close(fd)


def below(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


# ------------------------------------------------------------------ a storage that does not answer


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_storage_that_hangs_for_ever(tmp_path: Path, number: signal.Signals) -> None:
    """F8, F29: the run can be ended, or killed after the commit and before anything is there; nothing is lost of it,
    and whoever goes on without that storage is told that something waits for it."""
    app, root = written(tmp_path / "store"), tmp_path / "there"
    events = lines(tmp_path / "in.jsonl", [{"k": f"k{n}", "in": "there", "put": f"{n}"} for n in range(200)])
    command = ["run", app, "--feed", f"do={events},key=k", "--data", tmp_path / "d"]
    with hanging(root):
        process = subprocess.Popen(
            [GRAPE, *map(str, command), "--storage", f"there=file://{root}"], stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        until(lambda: len(list((root / ".grape" / "incoming").iterdir())) >= 16)
        until(lambda: len(grape("state", "list", "--data", tmp_path / "d").stdout.splitlines()) == 200)
        all_of_it = below(process.pid)
        if number == signal.SIGKILL:
            for each in all_of_it:
                with suppress(psutil.NoSuchProcess):  # it went with the one before
                    each.kill()
        else:
            process.send_signal(number)
        begun = time.monotonic()
        _, said = process.communicate(timeout=60)
        _, alive = psutil.wait_procs(all_of_it, 30)
        assert not alive, (said, alive)
        assert time.monotonic() - begun < 20
        assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), said
    assert not objects_in(f"file://{root}")
    without = grape(*command)
    assert without.returncode == 0, without.stderr
    assert "objects wait for another storage" in without.stderr
    done = grape(*command, "--storage", f"there=file://{root}")
    assert done.returncode == 0, done.stderr
    assert objects_in(f"file://{root}") == {f"k{n}": str(n).encode() for n in range(200)}


def test_an_app_whose_storage_hangs_stops_in_time(tmp_path: Path) -> None:
    home, root = tmp_path / "home", tmp_path / "there"
    home.mkdir()
    (home / "grape-server.toml").write_text(f'[storages.there]\nurl = "file://{root}"\napps = ["store"]\n')
    with serving(home) as server, hanging(root):
        server.grape("app", "deploy", written(tmp_path / "store"))
        for n in range(40):
            server.post("/apps/store/events/do", {"in": "there", "put": "x"}, params={"key": f"k{n}"})
        until(lambda: len(list((root / ".grape" / "incoming").iterdir())) >= 16)
        begun = time.monotonic()
        server.grape("app", "stop", "store")
        assert time.monotonic() - begun < 20
        server.grape("app", "start", "store")
        server.post("/apps/store/events/do", {"in": "there", "put": "x"}, params={"key": "more"})
        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < 30
    with serving(home) as server:
        until(lambda: len(objects_in(f"file://{root}")) == 41)


def test_what_a_storage_refuses_is_told_and_the_run_ends(tmp_path: Path) -> None:
    """No time will change it, so it is not tried for ever."""
    app, root = written(tmp_path / "store"), tmp_path / "there"
    (tmp_path / "secret").mkdir()
    (root / "there").mkdir(parents=True)
    os.symlink(tmp_path / "secret", root / "there" / "out")
    events = lines(tmp_path / "in.jsonl", [{"k": k, "in": "there", "put": "1"} for k in ("out/x", "good")])
    command = [
        "run",
        app,
        "--feed",
        f"do={events},key=k",
        "--data",
        tmp_path / "d",
        "--storage",
        f"there=file://{root}",
    ]
    done = grape(*command, timeout=60)
    assert "there/out/x is refused by its storage, and stays here" in done.stderr
    assert done.returncode in (0, 1), done.stderr
    assert objects_in(f"file://{root}") == {"good": b"1"}
    assert not list((tmp_path / "secret").iterdir())
    (root / "there" / "out").unlink()
    again = grape(*command, timeout=60)
    assert again.returncode == 0, again.stderr
    assert objects_in(f"file://{root}") == {"good": b"1", "out/x": b"1"}


# ------------------------------------------------------------------ disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_objects_that_fill_the_disk(tmp_path: Path, small_disk: Path) -> None:
    """F17: what is in reserve is not taken by objects; with more room it goes on, and nothing is half."""
    app = written(tmp_path / "store")
    events = [{"k": f"k{n}", "in": "store", "put": f"{n:04}", "times": 500_000} for n in range(220)]
    path = lines(tmp_path / "in.jsonl", events)
    command = ["run", app, "--feed", f"do={path},key=k", "--data", small_disk / "d"]
    full = grape(*command, timeout=200)
    assert full.returncode == 3, full.stderr
    assert "reserve" in full.stderr
    assert "Traceback" not in full.stderr
    assert shutil.disk_usage(small_disk).free > 100 << 20
    put = [GRAPE, "storage", "get", "store/k0", "--data", str(small_disk / "d")]
    assert len(subprocess.run(put, capture_output=True, check=True).stdout) == 2_000_000
    subprocess.run(["mount", "-o", "remount,size=1g", small_disk], check=True)
    done = grape(*command, timeout=200)
    assert done.returncode == 0, done.stderr
    verified = grape("storage", "verify", "store/", "--data", small_disk / "d")
    assert "220 objects are as they were written" in verified.stdout + verified.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_backup_that_does_not_fit(tmp_path: Path, small_disk: Path) -> None:
    """F18: the disk it goes to is full in the middle of the objects: told, nothing of it stays, and where there is more
    room it is whole; what it was made of is as it was."""
    app, data = written(tmp_path / "store"), tmp_path / "d"
    events = [{"k": f"k{n}", "in": "store", "put": f"{n:04}", "times": 500_000} for n in range(10)]
    path = lines(tmp_path / "in.jsonl", events)
    assert grape("run", app, "--feed", f"do={path},key=k", "--data", data).returncode == 0
    subprocess.run(["mount", "-o", "remount,size=12m", small_disk], check=True)
    full = grape("backup", small_disk / "backup", "--data", data)
    assert full.returncode == 3, full.stderr
    assert "No space left on device" in full.stderr
    assert "Traceback" not in full.stderr
    assert list(small_disk.iterdir()) == []
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    assert grape("backup", small_disk / "backup", "--data", data).returncode == 0
    assert grape("restore", small_disk / "backup", "--data", tmp_path / "restored").returncode == 0
    for place in (data, tmp_path / "restored"):
        verified = grape("storage", "verify", "store/", "--data", place)
        assert "10 objects are as they were written" in verified.stdout + verified.stderr, verified.stderr


def test_a_put_that_the_system_cuts_short(tmp_path: Path) -> None:
    """F19, F21: the limit of its files is reached in the middle of a write; what was there stays, nothing is left."""
    app, data = written(tmp_path / "store") / "app.py", tmp_path / "d"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    with engine.open(str(app), data=str(data), workers=1):
        put = [GRAPE, "storage", "put", "store/x", "--data", str(data)]
        subprocess.run(put, input=b"before", check=True, stdout=subprocess.DEVNULL)
        cut = subprocess.run(put, input=b"y" * 3_000_000, capture_output=True, preexec_fn=limited, check=False)
        assert cut.returncode != 0
        assert b"File too large" in cut.stderr
        assert b"Traceback" not in cut.stderr
        assert not [path for path in (data / "blobs").rglob("*") if path.is_file()]
        got = subprocess.run([GRAPE, "storage", "get", "store/x", "--data", str(data)], capture_output=True, check=True)
        assert got.stdout == b"before"


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    path.chmod(0o600)
    if how == "flipped":
        content[150_000] ^= 1
        path.write_bytes(content)
    elif how == "cut":
        path.write_bytes(content[:150_000])
    elif how == "swapped":
        path.write_bytes(bytes(len(content)))
    elif how == "unreadable":
        path.unlink()
        path.mkdir()
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["flipped", "cut", "swapped", "unreadable", "gone"])
def test_bytes_that_are_not_what_was_written(tmp_path: Path, how: str) -> None:
    """F22, F23, F25, F26: found by whoever reads them whole, and never served; other objects and events go on."""
    app, data = written(tmp_path / "store"), tmp_path / "d"
    puts = [{"k": k, "in": "store", "put": k, "times": 2_500_000} for k in ("a", "b")]
    command = ["run", app, "--data", data, "--max-dead", 10]
    done = grape(*command, "--feed", f"do={lines(tmp_path / 'in.jsonl', puts)},key=k")
    assert done.returncode == 0, done.stderr
    about = json.loads(grape("storage", "stat", "store/a", "--data", data).stdout)
    name = about["checksum"].removeprefix("sha256:")
    damaged(data / "blobs" / name[:2] / name, how)
    reads = [{"k": f"r{k}", "in": "store", "read": k} for k in ("a", "b")]
    read = grape(
        *command, "--feed", f"do={lines(tmp_path / 'r.jsonl', reads)},key=k", "--take", f"got={tmp_path}/got.jsonl"
    )
    got = [json.loads(line)["data"] for line in (tmp_path / "got.jsonl").read_text().splitlines()]
    assert got == [["rb", 2_500_000]], read.stderr
    dead = grape("dead", "list", "--json", "--data", data).stdout
    says = {
        "flipped": "checksum",
        "swapped": "checksum",
        "cut": "shorter",
        "unreadable": "directory",
        "gone": "not there",
    }
    assert says[how] in dead
    assert '"ra"' in dead
    fetched = subprocess.run(
        [GRAPE, "storage", "get", "store/a", "--data", str(data)], capture_output=True, check=False
    )
    assert fetched.returncode != 0
    verified = grape("storage", "verify", "store/", "--data", data)
    assert verified.returncode != 0
    assert "1 object" in verified.stdout + verified.stderr


@pytest.mark.slow
def test_an_engine_that_is_killed_in_its_start_again_and_again(tmp_path: Path) -> None:
    """F12: fifty times, with files that nobody has and objects that wait for another storage."""
    app, data, root = written(tmp_path / "store"), tmp_path / "d", tmp_path / "there"
    events = [{"k": f"k{n}", "in": ("store", "there")[n % 2], "put": f"{n % 10}", "times": 100_000} for n in range(300)]
    command = ["run", app, "--feed", f"do={lines(tmp_path / 'in.jsonl', events)},key=k", "--data", data]
    command += ["--storage", f"there=file://{root}"]
    rng = random.Random(1)
    for _ in range(50):
        process = subprocess.Popen([GRAPE, *map(str, command)], stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(rng.uniform(0.2, 1.2))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = grape(*command, timeout=120)
    assert done.returncode == 0, done.stderr
    assert objects_in(f"file://{root}") == {f"k{n}": str(n % 10).encode() * 100_000 for n in range(1, 300, 2)}
    assert objects_in(f"embedded://{data}", "store") == {
        f"k{n}": str(n % 10).encode() * 100_000 for n in range(0, 300, 2)
    }
    assert grape("doctor", "--data", data).returncode == 0


# ------------------------------------------------------------------ too much


def test_one_event_writes_more_than_a_result_may_hold(tmp_path: Path) -> None:
    """F39: it says so, and what it wrote is not there; one that stays below is one commit."""
    app, data = written(tmp_path / "store"), tmp_path / "d"
    events = [{"k": "large", "many": 1_000_000, "size": 1000}, {"k": "small", "many": 10_000, "size": 10}]
    path = lines(tmp_path / "in.jsonl", events)
    done = grape("run", app, "--feed", f"do={path},key=k", "--data", data, "--max-dead", 5, "--workers", 1, timeout=200)
    assert "replaced" not in done.stderr
    dead = [json.loads(line) for line in grape("dead", "list", "--json", "--data", data).stdout.splitlines()]
    assert [each["key"] for each in dead] == ["large"], (done.stderr, dead)
    assert "max-result" in json.dumps(dead) or "too-large" in json.dumps(dead), dead
    keys = [line.split()[-1] for line in grape("storage", "ls", "store/", "--data", data).stdout.splitlines()]
    assert len(keys) == 10_000


def test_bodies_that_never_come_take_nothing(tmp_path: Path) -> None:
    """F40, F42: an upload that says that it has 2 GB or more than there is, and breaks off; one part that stays out."""
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", written(tmp_path / "store"))
        server.post("/apps/store/events/do", {"in": "store", "put": "x"}, params={"key": "x"})
        until(lambda: server.get("/apps/store/objects/store/x").status_code == 200)
        blobs = tmp_path / "home" / "apps" / "store" / "data" / "blobs"
        host, port = server.url.removeprefix("http://").split(":")
        before = sum(psutil.Process(pid).memory_info().rss for pid in server.pids())
        clients = []
        for length in (2 << 30, 1 << 40, 1 << 62):
            client = socket.create_connection((host, int(port)), 20)
            head = f"PUT /apps/store/objects/store/x HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n"
            client.sendall(head.encode() + bytes(300_000))
            clients.append(client)
        until(lambda: len(list((blobs / "incoming").iterdir())) == 3)
        assert sum(psutil.Process(pid).memory_info().rss for pid in server.pids()) - before < 100 << 20
        for client in clients:
            client.close()
        until(lambda: not list((blobs / "incoming").iterdir()))
        assert server.get("/apps/store/objects/store/x").content == b"x"


def test_uploads_whose_parts_are_forged(tmp_path: Path) -> None:
    """By who may write objects, so also those of which parts are made."""
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", written(tmp_path / "store"))
        server.post("/apps/store/events/do", {"in": "store", "put": "x"}, params={"key": "x"})
        until(lambda: server.get("/apps/store/objects/store/x").status_code == 200)
        place = "/apps/store/objects/store/film"
        upload = server.http.post(f"{place}?uploads").json()["upload"]
        for number in ("0", "10001", "000000001999999", "1e3", "-1", "٣", "99999", ""):
            answer = server.http.put(
                f"{place}?upload={upload}", params={"part": number, "upload": upload}, content=b"p"
            )
            assert answer.status_code == 400, (number, answer.text)
        assert server.http.put(f"{place}?upload={upload}&part=1", content=b"one").status_code == 200
        server.http.put(f"/apps/store/objects/uploads/{upload}/other", content=b"not a part")
        done = server.http.post(f"{place}?upload={upload}")
        assert done.status_code == 200, done.text
        assert server.get(place).content == b"one"
        server.http.put(f"/apps/store/objects/uploads/{'0' * 32}/begun", content=b"{")
        assert server.http.post(f"{place}?upload={'0' * 32}").status_code == 404


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_run_in_one_process_has_large_objects_and_other_storages(tmp_path: Path, elsewhere: bool) -> None:
    """Its handlers wait on the engine's thread, where an answer that comes later ended the engine."""
    app, data, url = written(tmp_path / "store"), tmp_path / "d", f"file://{tmp_path}/there"
    events = [{"in": "store", "read": "a"}, {"in": "store", "part": "a"}, {"in": "store", "part": "none"}]
    storages = {"store": url} if elsewhere else {}
    with engine.open(f"{app}/app.py:t", data=data, inline=True, storages=storages) as running:
        running.emit("do", {"in": "store", "put": "a", "times": 300_000}, key="a")
        if elsewhere:
            until(lambda: objects_in(url, "store") == {"a": b"a" * 300_000})
        for number, event in enumerate(events):
            running.emit("do", event, key=f"{number}")
        got = sorted(event.data for _, event in zip(events, running.outputs("got"), strict=False))
    assert got == [["0", 300_000], ["1", "a" * 10], ["2", None]]
    stored = objects_in(url if elsewhere else f"embedded://{data}", "store")
    assert stored == {"a": b"a" * 300_000}


def test_a_storage_that_hangs_is_told_of_and_takes_everything_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """F8: in no time does an object wait without a word; of each the last version is there in the end."""
    monkeypatch.setattr(beside, "_PATIENCE", 0.5)
    app, root = written(tmp_path / "store"), tmp_path / "there"
    storages = {"store": f"file://{root}"}
    said: list[str] = []

    def has_said(text: str) -> bool:
        said.append(capfd.readouterr().err)
        return text in "".join(said)

    with engine.open(f"{app}/app.py:t", data=tmp_path / "d", inline=True, storages=storages) as running:
        with hanging(root):
            for n in range(3):
                for key in "abc":
                    running.emit("do", {"in": "store", "put": f"{n}"}, key=key)
            until(lambda: has_said("waits for its storage, and is tried again"))
            running.emit("do", {"in": "store", "put": "last"}, key="a")
        until(lambda: has_said("takes objects again"))
        until(lambda: objects_in(storages["store"], "store") == {"a": b"last", "b": b"2", "c": b"2"})
    text = "".join(said) + capfd.readouterr().err
    assert text.count("waits for its storage") == 1, text
    assert "has not gone on for 0.5 s" in text
    assert "start this anew" in text
