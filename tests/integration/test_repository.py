"""Packages, profiles and the run-list of servers in a storage; who has signed a package."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import shutil
import socket
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from command import grape
from grape.storage.connect import opened
from grape.storage.objects import Objects
from serving import Server, serving, until, write_app

APP = """
from grape import Event, Node, State, Topology

class Count(Node):
    n: int = State(int, default=0)

    def process(self, event):
        self.n += 1
        self.reply("VERSION")

t = Topology("NAME")
t.add_slot("do", Count())
"""


def app(directory: Path, version: str = "1") -> Path:
    text = APP.replace("NAME", directory.name).replace("VERSION", version)
    return write_app(directory, text, version=version)


def settings(home: Path, repository: Path, **more: Any) -> Path:
    home.mkdir(exist_ok=True)
    lines = [f"{key.replace('_', '-')} = {json.dumps(value)}" for key, value in more.items()]
    (home / "grape-server.toml").write_text("\n".join([f'repository = "file://{repository}"', *lines]) + "\n")
    return home


def called(server: Server, name: str) -> Any:
    return server.call(name, "do", params={"key": "k"})


def listed(repository: Path, name: str) -> dict[str, Any]:
    path = repository / "grape" / "lists" / "main" / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def test_a_server_with_an_empty_disk_starts_what_its_repository_says(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (tmp_path / "small.toml").write_text("[pool.main]\npool-limit = 1\n")
    with serving(settings(tmp_path / "first", repository)) as server:
        server.grape("profile", "set", "shop", tmp_path / "small.toml")
        server.grape("app", "deploy", app(tmp_path / "shop"))
        server.grape("app", "deploy", app(tmp_path / "idle"))
        server.grape("app", "stop", "idle")
        server.grape("app", "deploy", app(tmp_path / "shop", "2"))
        assert called(server, "shop") == "2"
        until(lambda: listed(repository, "idle").get("wanted") == "stopped")
        until(lambda: listed(repository, "shop").get("versions", [{}])[-1].get("version") == "2")
    shutil.rmtree(tmp_path / "first")
    with serving(settings(tmp_path / "second", repository)) as server:
        until(lambda: "shop" in server.grape("app", "list") and server.info("shop")["state"] == "running")
        assert called(server, "shop") == "2"
        until(lambda: "idle" in server.grape("app", "list"))
        assert server.info("idle")["state"] == "stopped"
        assert "pool-limit = 1" in server.grape("profile", "show", "shop")
        server.grape("app", "rollback", "shop")
        assert called(server, "shop") == "1"
        until(lambda: listed(repository, "shop")["versions"][-1]["version"] == "2")
        current = {each["digest"]: each["version"] for each in listed(repository, "shop")["versions"]}
        until(lambda: current[listed(repository, "shop")["current"]] == "1")
    shutil.move(repository, tmp_path / "away")
    repository.write_text("no directory")
    with serving(tmp_path / "second") as server:  # from its cache
        assert called(server, "shop") == "1"
        until(lambda: "it is tried again" in server.said.read_text())
        failed = grape("app", "sync", "--home", server.home)
        assert failed.returncode != 0
        failed = grape("app", "upload", app(tmp_path / "late"), "--home", server.home)
        assert failed.returncode != 0
        assert "late" not in server.grape("app", "list")
        repository.unlink()
        shutil.move(tmp_path / "away", repository)
        until(lambda: "answers again" in server.said.read_text())
        server.grape("app", "deploy", app(tmp_path / "late"))
        until(lambda: listed(repository, "late").get("wanted") == "running")
        server.grape("app", "stop", "late")
        server.grape("app", "remove", "late", "--data")
        until(lambda: not listed(repository, "late"))


@pytest.mark.slow
def test_two_servers_with_one_run_list(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    with serving(settings(tmp_path / "a", repository)) as a, serving(settings(tmp_path / "b", repository)) as b:
        a.grape("app", "deploy", app(tmp_path / "shop"))
        until(lambda: listed(repository, "shop").get("wanted") == "running")
        assert "changed: shop" in grape("app", "sync", "--home", b.home).stderr
        until(lambda: b.info("shop")["state"] == "running")
        assert called(b, "shop") == "1"
        a.grape("app", "deploy", app(tmp_path / "shop", "2"))
        until(lambda: len(listed(repository, "shop")["versions"]) == 2)
        grape("app", "sync", "--home", b.home)
        until(lambda: called(b, "shop") == "2")
        assert "all is as" in grape("app", "sync", "--home", b.home).stderr
        b.grape("app", "stop", "shop")
        until(lambda: listed(repository, "shop")["wanted"] == "stopped")
        grape("app", "sync", "--home", a.home)
        assert a.info("shop")["state"] == "stopped"


@pytest.mark.slow
def test_what_was_changed_in_the_repository_by_others_is_not_run(tmp_path: Path) -> None:
    """F102, F104, F105: packages and entries that are forged; and the apps beside them run."""
    repository = tmp_path / "repository"
    with serving(settings(tmp_path / "a", repository)) as a:
        a.grape("app", "deploy", app(tmp_path / "good"))
        a.grape("app", "deploy", app(tmp_path / "bad"))
        a.grape("app", "deploy", app(tmp_path / "odd"))
        for name in ("good", "bad", "odd"):
            until(lambda name=name: listed(repository, name).get("wanted") == "running")  # type: ignore[misc]
    packages = repository / "grape" / "packages"
    bad, good = (packages / f"{listed(repository, name)['current']}.tar.gz" for name in ("bad", "good"))

    async def forge() -> None:
        async with opened(f"file://{repository}") as storage:
            await Objects(storage, "grape").put(f"packages/{bad.name}", good)
            objects = Objects(storage, "grape")
            await objects.put("lists/main/evil.json", '{"name": "../evil", "current": ""}')
            thief = listed(repository, "good") | {"name": "thief"}
            await objects.put("lists/main/thief.json", json.dumps(thief))
            await objects.put("lists/main/path.json", json.dumps(thief | {"name": "path", "current": "../apps/good"}))
            await objects.put("lists/main/large.json", b" " * (2 << 20) + b"{}")
            await objects.put("lists/main/pickle.json", pickle.dumps(Path))
            await objects.put("lists/main/odd.toml", b"\xff\xfe")
            out = "0" * 64
            with tarfile.open(tmp_path / "out.tar.gz", "w:gz") as archive:
                archive.add(tmp_path / "good" / "grape.toml", "grape.toml")
                archive.add(tmp_path / "good" / "grape.toml", "../../../out.toml")
            await objects.put(f"packages/{out}.tar.gz", tmp_path / "out.tar.gz")
            await objects.put("lists/main/out.json", json.dumps({"name": "out", "current": out, "wanted": "running"}))

    asyncio.run(forge())
    with serving(settings(tmp_path / "b", repository)) as b:
        until(lambda: "good" in b.grape("app", "list"))
        until(lambda: b.info("good")["state"] == "running")
        assert called(b, "good") == "1"
        for says in (
            "is of an app '../evil'",
            "something else lies there",
            "entry of thief names a package of good",
            "names a package '../apps/good', which is no digest",
            "large.json has 2,097,154 bytes",
            "pickle.json cannot be read",
            "odd.toml is no text",
            "out: what the repository says of it cannot be done",
        ):
            until(lambda says=says: says in b.said.read_text())  # type: ignore[misc]
        assert [line.split()[0] for line in b.grape("app", "list").splitlines()] == ["good"]
        assert not list(tmp_path.rglob("out.toml"))
        b.grape("app", "deploy", app(tmp_path / "more"))
        until(lambda: listed(repository, "more").get("wanted") == "running")


def test_a_repository_that_never_answers(tmp_path: Path) -> None:
    """What is here runs, an upload is refused, and the server stops in time."""
    home = settings(tmp_path / "home", tmp_path / "repository")
    with serving(home) as server:
        server.grape("app", "deploy", app(tmp_path / "shop"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        url = f"s3://bucket?endpoint=http://127.0.0.1:{port}&timeout=3"
        (home / "grape-server.toml").write_text(f'repository = "{url}"\n')
        with serving(home, env={"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}) as server:
            assert called(server, "shop") == "1"
            failed = grape("app", "upload", app(tmp_path / "late"), "--home", home)
            assert failed.returncode != 0
            assert called(server, "shop") == "1"
            begun = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - begun < 30


# ------------------------------------------------------------------ signatures


def minisign(folder: Path, name: str) -> Path:
    """A key pair; the public one."""
    made = ["minisign", "-G", "-W", "-p", folder / f"{name}.pub", "-s", folder / f"{name}.key"]
    subprocess.run(made, check=True, capture_output=True)
    return folder / f"{name}.pub"


def cosign(folder: Path, name: str) -> Path:
    private, public = folder / f"{name}.key", folder / f"{name}.pem"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private], check=True)
    subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return public


def sign(key: Path, file: Path, *options: str) -> None:
    if key.suffix == ".pub":
        secret = key.with_suffix(".key")
        subprocess.run(["minisign", "-S", *options, "-s", secret, "-m", file], check=True, capture_output=True)
        return
    command = f"openssl dgst -sha256 -sign {key.with_suffix('.key')} {file} | base64 -w0 > {file}.sig"
    subprocess.run(["bash", "-c", command], check=True)


def packed(directory: Path) -> Path:
    file = directory.with_suffix(".tar.gz")
    grape("app", "pack", directory, "--out", file)
    for ending in (".minisig", ".sig"):
        file.with_name(file.name + ending).unlink(missing_ok=True)
    return file


def test_only_what_is_signed_by_who_may_is_taken(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    ours, other, cloud = minisign(keys, "ours"), minisign(keys, "other"), cosign(keys, "cloud")
    home = settings(tmp_path / "home", tmp_path / "repository", signed_by=[str(ours), str(cloud)])
    with serving(home) as server:

        def refused(source: Path, says: str) -> None:
            done = grape("app", "deploy", source, "--home", home)
            assert done.returncode == 2, done.stdout
            assert says in done.stderr
            assert source.name.partition(".")[0] not in server.grape("app", "list")

        refused(app(tmp_path / "shop"), "is not signed")
        file = packed(tmp_path / "shop")
        refused(file, "minisign -Sm FILE")
        sign(other, file)
        refused(file, "is not one by ours.pub, cloud.pem")
        sign(ours, file)
        content = file.read_bytes()
        file.write_bytes(packed(app(tmp_path / "shop", "9")).read_bytes())
        sign(ours, file)
        signature = (tmp_path / "shop.tar.gz.minisig").read_bytes()
        file.write_bytes(content)
        (tmp_path / "shop.tar.gz.minisig").write_bytes(signature)
        refused(file, "of these very bytes")
        for n, options in enumerate(((), ("-l",))):  # as minisign does it, and as it once did
            file = packed(app(tmp_path / f"app{n}"))
            sign(ours, file, *options)
            server.grape("app", "deploy", file)
            assert called(server, f"app{n}") == "1"
        file = packed(app(tmp_path / "app3"))
        sign(cloud, file)
        answer = httpx.post(f"{server.url}/packages", content=file.read_bytes(), timeout=60)
        assert answer.status_code == 403
        assert grape("app", "deploy", file, "--server", server.url).returncode == 0
        assert called(server, "app3") == "1"
        until(lambda: listed(tmp_path / "repository", "app3").get("wanted") == "running")
    second = settings(tmp_path / "second", tmp_path / "repository", signed_by=[str(ours)])
    with serving(second) as server:  # app3 is signed by somebody whom this one does not know
        until(lambda: "app1" in server.grape("app", "list"))
        until(lambda: "app3: what the repository says of it cannot be done" in server.said.read_text())
        assert "app3" not in server.grape("app", "list")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('repository = "fil:///x"', ":1: repository: there is no storage 'fil'; did you mean 'file'"),
        ('run-list = "../x"', ":1: run-list"),
        ('signed-by = "keys.pub"', ":1: signed-by"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "grape-server.toml").write_text(text + "\n")
    done = grape("config", "check", tmp_path / "grape-server.toml")
    assert done.returncode == 2
    assert says in done.stderr


def test_a_key_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "grape-server.toml").write_text('signed-by = ["k.pub"]\n')
    done = grape("serve", tmp_path, "--no-http")
    assert done.returncode == 2
    assert f"{tmp_path}/k.pub: No such file" in done.stderr
    (tmp_path / "k.pub").write_text("nonsense\n")
    done = grape("serve", tmp_path, "--no-http")
    assert "neither a public key of minisign nor one of cosign" in done.stderr
    assert not os.path.exists(tmp_path / "control")
