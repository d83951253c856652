"""Operating a server: who did what (audit), its apps looked at by their names, its home checked, packages over HTTP."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command import grape
from grape.apps.package import pack
from grape.server.audit import FILE, Asker, Audit
from serving import COUNT, Server, count_app, serving, until, write_app


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "home") as server:
        yield server


def audited(server: Server, *options: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.grape("audit", *options).splitlines()]


# ---------------------------------------------------------------------- audit


def test_whoever_changes_something_is_written_down_and_no_secret_with_him(server: Server, tmp_path: Path) -> None:
    server.grape("app", "deploy", count_app(tmp_path / "count"))
    token = server.grape("token", "create", "boss", "--scope", "count:admin").strip()
    server.http.headers["authorization"] = f"Bearer {token}"
    assert server.post("/apps/count/pause").status_code == 200
    assert server.post("/apps/count/resume").status_code == 200
    assert server.post("/apps/count/upgrade?version=9").status_code == 400
    server.post("/apps/count/events/add?key=a&wait=5", "fail", headers={"authorization": "Bearer wrong"})
    server.grape("emit", "count@add", '"fail"', "--key", "a")
    until(lambda: server.get("/apps/count/dead").json().get("letters"))
    assert server.post("/apps/count/dead/retry", {"all": True}).json()["changed"] == 1
    until(lambda: server.get("/apps/count/dead").json().get("letters"))
    server.grape("dead", "drop", "--all", "--app", "count")
    server.grape("app", "stop", "cuont", code=2)
    server.grape("token", "revoke", "boss")
    found = audited(server)
    said = [(entry["who"], entry["by"], entry["verb"], entry.get("app", ""), entry["result"]) for entry in found]
    me = f"uid {os.getuid()}"
    assert said == [
        (me, "socket", "upload", "count", "ok"),
        (me, "socket", "start", "count", "ok"),
        (me, "command", "token create", "", "ok"),
        ("token boss", "http", "pause", "count", "ok"),
        ("token boss", "http", "resume", "count", "ok"),
        ("token boss", "http", "upgrade", "count", "usage"),
        ("token boss", "http", "dead retry", "count", "ok"),
        (me, "command", "dead drop", "count", "ok"),
        (me, "socket", "stop", "cuont", "usage"),
        (me, "command", "token revoke", "", "ok"),
    ]
    assert found[5]["detail"] == "version 9"
    assert "there is no version '9'" in found[5]["why"]
    assert found[3]["address"].startswith("127.0.0.1:")
    text = (server.home / FILE).read_text()
    assert token not in text
    assert (server.home / FILE).stat().st_mode & 0o777 == 0o600
    assert [entry["verb"] for entry in audited(server, "--app", "cuont")] == ["stop"]
    assert audited(server, "--since", "2100-01-01") == []
    assert len(audited(server, "--since", "1 h")) == 10
    assert "--since" in server.grape("audit", "--since", "soon", code=2)


def test_the_audit_log_is_turned_over_and_survives_who_is_cut_off(tmp_path: Path) -> None:
    audit = Audit(tmp_path, 2_000, 3)
    asker = Asker("uid 0", "command")

    def add(name: str) -> None:
        for i in range(20):
            audit.add(asker, "start", f"{name}{i}")

    threads = [threading.Thread(target=add, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(p.name for p in tmp_path.glob(f"{FILE}*")) == [FILE, *(f"{FILE}.{n}" for n in (1, 2, 3))]
    kept = [entry.app for entry in audit.entries()]
    for name in "abc":  # in order, the newest whole
        own = [app for app in kept if app.startswith(name)]
        assert own == [f"{name}{i}" for i in range(20)][-len(own) :]
    with open(audit.path, "ab") as file:
        file.write(b'{"time": "20')
    audit.add(asker, "stop", "last\udc80")
    assert [entry.verb for entry in audit.entries()][-1] == "stop"


def test_a_disk_that_does_not_take_the_audit_log_stops_nobody(server: Server, tmp_path: Path) -> None:
    (server.home / FILE).mkdir()
    server.grape("app", "deploy", count_app(tmp_path / "count"))
    assert server.call("count", "add", params={"key": "a"}) == ["1", 1]
    assert "is not in the audit log" in server.said.read_text()


# ---------------------------------------------------------------------- by the names of apps


def test_what_is_stored_is_looked_at_by_the_name_of_its_app(server: Server, tmp_path: Path) -> None:
    server.grape("app", "deploy", count_app(tmp_path / "count"))
    server.grape("app", "deploy", write_app(tmp_path / "other", f"VERSION = '1'\n{COUNT}", name="other"))
    server.call("count", "add", params={"key": "a"})
    server.grape("emit", "count@add", '"fail"', "--key", "a")
    until(lambda: server.grape("dead", "list", "count"))
    (letter,) = map(json.loads, server.grape("dead", "list", "--app", "count").splitlines())
    assert json.loads(server.grape("dead", "show", letter["id"], "--app", "count"))["data"] == "fail"
    assert json.loads(server.grape("state", "list", "count"))["state"] == {"n": 1}
    assert json.loads(server.grape("state", "get", "a", "--node", "Count", "--app", "count"))["key"] == "a"
    assert server.grape("held", "list", "count") == ""
    assert server.grape("crashes", "list", "count") == ""
    assert server.grape("log", "list", "other") == ""
    assert "whole" in server.grape("doctor", "count")
    server.grape("state", "delete", "a", "--node", "Count", "--app", "count")
    assert server.call("count", "add", params={"key": "a"}) == ["1", 1]
    assert "there is no app 'cuont' in" in server.grape("dead", "list", "cuont", code=2)
    assert "which one? --app APP says which app of the server (count, other" in server.grape("dead", "list", code=2)


def test_a_home_is_checked(server: Server, tmp_path: Path) -> None:
    server.grape("app", "deploy", count_app(tmp_path / "count"))
    server.grape("token", "create", "t", "--scope", "*:*")
    assert "count: 1 partition" in (whole := server.grape("doctor")) or "whole" in whole
    assert server.grape("doctor", "--quiet") == ""
    (server.home / "packages" / ".new-left").mkdir()
    assert "begun and not finished" in server.grape("doctor")
    (server.home / "tokens.json").chmod(0o644)
    code = server.home / "packages" / server.info("count")["digest"] / "app.py"
    code.chmod(0o644)
    code.write_text("evil = 1\n")
    (server.home / "apps" / "lost").mkdir()
    (server.home / "profiles" / "count.toml").write_text("[pool.main]\npool-limt = 1\n")
    (server.home / "grape-server.toml").write_text("listn = 1\n")
    done = grape("doctor", "--home", server.home, "--quiet")
    assert done.returncode == 3
    for text in (
        "tokens.json: others may use it (0644)",
        "has been changed",
        "apps/lost: it has no app.json",
        "pool-limt",
        "grape-server.toml:1: there is no key 'listn'",
    ):
        assert text in done.stdout
    assert "is no home of a server" in grape("doctor", "--home", tmp_path).stderr
    (server.home / "apps" / "count" / "app.json").write_text("{}")
    assert "app.json: it cannot be read" in grape("doctor", "--home", server.home).stdout


# ---------------------------------------------------------------------- packages over HTTP


def test_a_package_comes_over_http_and_is_run_from_afar(tmp_path: Path) -> None:
    app = count_app(tmp_path / "count")
    with serving(tmp_path / "home", "--max-package", "64 KiB") as server:
        token = server.grape("token", "create", "ci", "--scope", "count:admin", "--scope", "other:emit").strip()
        everything = server.grape("token", "create", "all", "--scope", "*:*").strip()
        reader = server.grape("token", "create", "reader", "--scope", "*:read").strip()

        def deploy(source: Path, token: str | None) -> Any:
            return grape("app", "deploy", source, "--server", server.url, *(["--token", token] if token else []))

        done = deploy(app, token)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[::3] == ["count", "running"]
        count_app(app, "2")
        assert deploy(app, token).stdout.split()[::3] == ["count", "running"]
        server.http.headers["authorization"] = f"Bearer {everything}"
        assert server.call("count", "add", params={"key": "a"}) == ["2", 1]
        done = deploy(write_app(tmp_path / "other", COUNT, name="other"), token)
        assert (done.returncode, "a package of other, by who may change count" in done.stderr) == (2, True)
        assert deploy(app, reader).returncode == 2
        assert "a token is needed" in deploy(app, None).stderr

        package = tmp_path / "count.tar.gz"
        digest = pack(app, package)
        gzip = {"content-type": "application/gzip"}
        answer = server.http.post("/packages", content=package.read_bytes(), headers=gzip)
        assert (answer.status_code, answer.json()["digest"], answer.json()["is_known"]) == (200, digest, True)
        assert answer.headers["location"] == "/apps/count"
        (app / "large.bin").write_bytes(os.urandom(100_000))
        done = deploy(app, everything)
        assert "a package of over 64 KiB" in done.stderr
        pieces = (b"x" * 10_000 for _ in range(20))  # of which nobody says how many come
        assert server.http.post("/packages", content=pieces, headers=gzip).status_code == 413
        assert server.http.post("/packages", content=b"no package", headers=gzip).status_code == 400
        assert server.http.post("/packages", content=b"", headers=gzip).status_code == 400
        assert server.http.post("/packages", json={}).status_code == 415
        assert list((server.home / "incoming").iterdir()) == []
        assert len(list((server.home / "packages").iterdir())) == 2
        assert {(e["who"], e["result"]) for e in audited(server) if e["verb"] == "upload"} == {
            ("token ci", "ok"),
            ("token ci", "forbidden"),
            ("token all", "ok"),
            ("token all", "usage"),
        }
        url = server.url
    done = grape("app", "deploy", app, "--server", url)
    assert (done.returncode, "cannot be reached" in done.stderr) == (2, True)
    done = grape("app", "deploy", app, "--server", "there")
    assert "is no url of a server" in done.stderr
