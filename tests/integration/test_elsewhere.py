"""Namespaces of objects in other storages, on the real thing, killed: `grape run --storage`, `[storages]`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from command import GRAPE, grape
from grape import connect
from grape.errors import GrapeError
from grape.host.objects import PUT_EMIT, PutEmit
from grape.model.objects import ObjectWrite
from grape.storage.connect import opened
from grape.storage.objects import Objects
from serving import serving, until, write_app

APP = """
from grape import Node, State, Topology

class Thumb(Node):
    seen: int = State(int, default=0)

    def process(self, event):
        self.seen += 1
        results, n = self.storage["results"], int(event.key)
        results.put(f"r/{n}", bytes([self.seen]) * (n * 400), tags=["r"])
        if n % 10 == 9:
            raise ValueError("nine")
        if n % 10 == 8:
            results.remove(f"r/{n}")
        self.emit("seen", [n, self.seen, results.stat(f"r/{n}") is not None])

t = Topology("thumbs")
t.add_slot("pic", Thumb(), retries=0)
t.add_output("seen")
"""


def write(directory: Path, right: str = "write") -> Path:
    app = write_app(directory, APP)
    with open(app / "grape.toml", "a") as manifest:
        manifest.write(f'[namespaces]\nresults = "{right}"\n')
    return app


def found_in(url: str, namespace: str = "results") -> dict[str, bytes]:
    async def read() -> dict[str, bytes]:
        async with opened(url) as storage:
            objects = Objects(storage, namespace)
            keys = [about.key async for about in objects.list()]
            return {key: one.data for key, one in (await objects.get_many(keys)).items()}

    return asyncio.run(read())


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))])
def test_a_run_that_is_killed_leaves_every_object_there_once(tmp_path: Path, seed: int) -> None:
    """F6, F8, F9: at any moment, also between the write there and the end of its row."""
    app, count, rng = write(tmp_path / "thumbs"), 400, random.Random(seed)
    (tmp_path / "in.jsonl").write_text("".join(f'{{"k":"{n}"}}\n' for n in range(count)))
    url = f"file://{tmp_path}/out"
    command = ["run", str(app), "--feed", f"pic={tmp_path}/in.jsonl,key=k", "--data", str(tmp_path / "d")]
    command += ["--take", f"seen={tmp_path}/seen.jsonl", "--storage", f"results={url}", "--max-dead", "1000"]
    for _ in range(3):
        process = subprocess.Popen([GRAPE, *command], stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(rng.uniform(0.4, 1.5))  # any moment
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = grape(*command)
    assert done.returncode in (0, 1), done.stderr
    expected = {f"r/{n}": b"\1" * (n * 400) for n in range(count) if n % 10 < 8}
    assert found_in(url) == expected, done.stderr
    seen = [json.loads(line)["data"] for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert sorted(seen) == [[n, 1, n % 10 < 8] for n in range(count) if n % 10 < 9]
    assert grape("doctor", "--data", str(tmp_path / "d")).returncode == 0


def test_a_storage_that_comes_later(tmp_path: Path) -> None:
    """Nothing is refused, and the run ends once all is there."""
    app = write(tmp_path / "thumbs")
    (tmp_path / "in.jsonl").write_text('{"k":"1"}\n{"k":"2"}\n')
    (tmp_path / "out").write_text("a file where a directory should be")
    url = "s3://bucket?endpoint=http://127.0.0.1:9&timeout=1"
    command = ["run", str(app), "--feed", f"pic={tmp_path}/in.jsonl,key=k", "--data", str(tmp_path / "d")]
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    process = subprocess.Popen(
        [GRAPE, *command, "--storage", f"results={url}"], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    said = ""
    while "waits for its storage" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    done = grape(*command, "--storage", f"results=file://{tmp_path}/there")
    assert done.returncode == 0, done.stderr
    assert set(found_in(f"file://{tmp_path}/there")) == {"r/1", "r/2"}


def test_what_a_user_gets_wrong(tmp_path: Path) -> None:
    app = write(tmp_path / "thumbs")
    for storage, says in {
        "results": "NAMESPACE=URL",
        "results=fil:///x": "did you mean 'file'",
        "reslts=file:///x": "did you mean 'results'",
        "Bad=file:///x": "small letters",
    }.items():
        done = grape("run", app, "--storage", storage)
        assert done.returncode == 2
        assert says in done.stderr
        assert "Traceback" not in done.stderr


SERVER = """
[storages.results]
url = "file://{path}/shared"
apps = ["thumbs", "other"]

[storages.outbox]
url = "file://{path}/secret"
apps = ["nobody"]
"""
OTHER = """
from grape import Context, Topology
t = Topology("other")

@t.slot("made", retries=0)
def made(what: dict, context: Context) -> None:
    if what["change"] == "written":
        data = context.storage["results"].get(what["key"])
        context.storage["outbox"].put(what["key"], str(len(data)))
"""
DRIVER = """
[namespaces]
results = "read"
outbox = "write"

[driver.made]
kind = "objects"
event = "made"
namespace = "results"
prefix = "r/"
existing = true
"""


def outbox(home: Path) -> dict[str, bytes]:
    return found_in(f"embedded://{home}/apps/other/data", "outbox")


def test_apps_of_a_server_share_a_storage_that_its_operator_names(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "grape-server.toml").write_text(SERVER.format(path=tmp_path))
    other = write_app(tmp_path / "other", OTHER, name="other")
    with open(other / "grape.toml", "a") as manifest:
        manifest.write(DRIVER)
    with serving(home) as server:
        server.grape("app", "deploy", write(tmp_path / "thumbs"))
        server.grape("app", "deploy", other)
        for n in range(20):
            server.post("/apps/thumbs/events/pic", {}, params={"key": str(n)})
            if n == 10:
                os.kill(server.engine("thumbs"), signal.SIGKILL)
        expected = {f"r/{n}": b"\1" * (n * 400) for n in range(20) if n % 10 < 8}
        url = f"file://{tmp_path}/shared"
        until(lambda: found_in(url) == expected)
        until(lambda: outbox(home) == {key: str(len(data)).encode() for key, data in expected.items()})
        assert not (tmp_path / "secret").exists()  # "outbox" of an app that may not is its own
        assert len(server.grape("storage", "ls", "results/", "--app", "thumbs").splitlines()) == len(expected)
        assert server.grape("storage", "stat", "results/r/3", "--app", "other").startswith('{"namespace":"results"')
        done = grape("exec", "other@made", "--over", "results/r/1", "--home", home, "--dry-run")
        assert "9 objects" in done.stderr, done.stderr
        assert server.get("/apps/thumbs/objects/results/r/3").content == expected["r/3"]
        server.http.put("/apps/other/objects/results/r/extern", content=b"four")
        until(lambda: outbox(home).get("r/extern") == b"4")
        settings = server.grape("config", "show")
        assert 'apps = ["thumbs", "other"]' in settings


@pytest.mark.parametrize(
    ("text", "says"),
    {
        'url = "fil:///x"\napps = ["a"]': ":2: storages.results: there is no storage 'fil'",
        'url = "file:///x"': "apps",
        'url = "file:///x"\napps = []': ":3: storages.results: apps",
        'url = "file:///x"\napps = ["a"]\naccess = "all"': "access",
        'url = "file:///x"\napps = ["a"]\nuser = "x"': "user",
    }.items(),
)
def test_a_storage_that_cannot_be(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "grape-server.toml").write_text(f"[storages.results]\n{text}\n")
    done = grape("config", "check", tmp_path / "grape-server.toml")
    assert done.returncode == 2, done.stdout
    assert says in done.stderr


def test_an_app_that_may_only_read(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    text = SERVER.format(path=tmp_path).replace('"other"]', '"other"]\naccess = "read"', 1)
    (home / "grape-server.toml").write_text(text)
    with serving(home) as server:
        failed: Any = grape("app", "deploy", write(tmp_path / "thumbs"), "--home", home)
        assert failed.returncode != 0
        assert "may only read the storage of the namespace 'results'" in failed.stdout + failed.stderr
        assert "thumbs" in server.grape("app", "list")


def test_what_may_only_be_read_is_not_written_beside_an_event(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    text = SERVER.format(path=tmp_path).replace('"other"]', '"other"]\naccess = "read"', 1)
    (home / "grape-server.toml").write_text(text)
    write_one = ObjectWrite("results", "x", 1, hashlib.sha256(b"x").digest(), data=b"x")
    with serving(home) as server:
        server.grape("app", "deploy", write(tmp_path / "thumbs", "read"))
        with connect(home / "apps/thumbs/data") as engine:
            asked = engine.connected().ask_verb(PUT_EMIT, PutEmit(write_one, "pic", "1", b"\xc0"))
            with pytest.raises(GrapeError, match="bound to be read only"):
                asked.result(30)
    assert found_in(f"file://{tmp_path}/shared") == {}
