"""Clouds' storages as people use them: commands, namespaces of a run, a repository of servers."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
from pathlib import Path

import pytest

from command import grape
from contract import clouds
from grape.storage.connect import opened
from grape.storage.objects import Objects
from serving import serving, until, write_app

pytestmark = pytest.mark.timeout(1800)  # the first one installs the emulators

APP = """
from grape import Event, Node, State, Topology

class Keep(Node):
    seen: int = State(int, default=0)

    def process(self, event):
        self.seen += 1
        if event.data:
            self.storage["pictures"].put("by/" + event.key, f"{self.seen} of {event.key}", tags=["kept"])
        self.reply(self.seen)

t = Topology("keeping")
t.add_slot("keep", Keep())
"""
SCHEMES = ["gs", "az"]


def url_of(scheme: str, **settings: str) -> str:
    emulator = clouds.shared(clouds.GoogleInMemory if scheme == "gs" else clouds.Azure)
    more = "".join(f"&{name}={value}" for name, value in settings.items())
    return f"{scheme}://{clouds.BUCKET}/{secrets.token_hex(4)}?endpoint={emulator.endpoint}{more}"


def keeping(directory: Path) -> Path:
    app = write_app(directory, APP)
    with open(app / "grape.toml", "a") as manifest:
        manifest.write('[namespaces]\npictures = "write"\n')
    return app


def done(*arguments: object, code: int = 0) -> str:
    found = grape(*arguments)
    assert found.returncode == code, found.stderr
    return found.stdout + found.stderr


@pytest.mark.parametrize("scheme", SCHEMES)
def test_commands(tmp_path: Path, scheme: str) -> None:
    url = url_of(scheme)
    (tmp_path / "a.txt").write_text("hello\n")
    done("storage", "put", "photos/2026/a.txt", tmp_path / "a.txt", "--storage", url, "--tag", "raw", "--set", "by=ann")
    assert done("storage", "get", "photos/2026/a.txt", "--storage", url) == "hello\n"
    assert "2026/a.txt" in done("storage", "ls", "photos/", "--storage", url)
    assert "raw" in done("storage", "stat", "photos/2026/a.txt", "--storage", url)
    said = done("storage", "put", "photos/2026/a.txt", tmp_path / "a.txt", "--if-absent", "--storage", url, code=1)
    assert "is there already" in said
    done("storage", "mv", "photos/2026/a.txt", "photos/b.txt", "--storage", url)
    assert "1 object is as it was written" in done("storage", "verify", "photos/", "--storage", url)
    done("storage", "rm", "photos/b.txt", "--storage", url)
    assert "b.txt" not in done("storage", "ls", "photos/", "--storage", url)


def test_objects_go_from_one_to_the_other(tmp_path: Path) -> None:
    """What is known of them too: also from and to files."""
    google, azure = url_of("gs"), url_of("az")

    async def write() -> None:
        async with opened(google) as storage:
            objects = Objects(storage, "photos")
            for i in range(20):
                await objects.put(f"a\\{i}.", b"%d" % i, tags=["t"], user={"camera-b": "ä"}, time=1_000 + i)

    asyncio.run(write())
    assert "20 objects copied" in done("storage", "cp", "photos/", azure, "--storage", google)
    assert "0 objects copied" in done("storage", "cp", "photos/", azure, "--storage", google)
    assert "20 objects copied" in done("storage", "cp", "photos/", f"file://{tmp_path}/files", "--storage", azure)

    async def compare() -> None:
        async with opened(google) as one, opened(azure) as other:
            for i in range(20):
                first = await Objects(one, "photos").get(f"a\\{i}.")
                second = await Objects(other, "photos").get(f"a\\{i}.")
                assert first is not None
                assert second is not None
                assert first.data == second.data
                for name in ("time", "tags", "user", "checksum"):
                    assert getattr(first.about, name) == getattr(second.about, name)

    asyncio.run(compare())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_namespace_of_a_run(tmp_path: Path, scheme: str) -> None:
    url = url_of(scheme)
    (tmp_path / "in.jsonl").write_text("".join(f'{{"k":"{i % 5}"}}\n' for i in range(20)))
    app = keeping(tmp_path / "keeping")
    command = ["run", app, "--feed", f"keep={tmp_path}/in.jsonl,key=k", "--data", tmp_path / "data"]
    done(*command, "--storage", f"pictures={url}")
    for i in range(5):
        assert done("storage", "get", f"pictures/by/{i}", "--storage", url) == f"4 of {i}"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_repository_of_servers(tmp_path: Path, scheme: str) -> None:
    url = url_of(scheme)
    env = {name: value for name, value in os.environ.items() if name.startswith(("GOOGLE_", "AZURE_"))}
    settings = f"repository = {json.dumps(url)}\n"
    pictures = f'[storages.pictures]\nurl = {json.dumps(url)}\naccess = "write"\napps = ["*"]\n'
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "grape-server.toml").write_text(settings + pictures)
    with serving(tmp_path / "first", env=env) as server:
        server.grape("app", "deploy", keeping(tmp_path / "keeping"))
        assert server.call("keeping", "keep", 1, params={"key": "k"}) == 1
        until(lambda: "keeping" in done("storage", "ls", "grape/lists/main/", "--storage", url))
    shutil.rmtree(tmp_path / "first")
    with serving(tmp_path / "second", env=env) as server:
        until(lambda: "keeping" in server.grape("app", "list") and server.info("keeping")["state"] == "running")
        assert done("storage", "get", "pictures/by/k", "--storage", url) == "1 of k"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_wrong_is_told(scheme: str) -> None:
    url = url_of(scheme)
    for wrong, says in (
        (url.replace(clouds.BUCKET, "nobodys"), "'nobodys' at http://127.0.0.1"),
        (url.replace(clouds.BUCKET, f"{clouds.ACCOUNT}:s3cret@x"), "never by keys: they are in the environment"),
        (f"{url}&account-key=s3cret", "account-key"),
        (f"{scheme}://{clouds.BUCKET}?endpoint=http://127.0.0.1:1", "nobody answers at http://127.0.0.1:1: look"),
    ):
        said = done("storage", "ls", "photos/", "--storage", wrong, code=3 if "answers" in says else 2)
        assert says in said
        assert "s3cret" not in said
        assert "Traceback" not in said
