"""What drives the apps of a server: each moment once, whatever is killed; files; hooks with signatures."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import signal
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from command import grape
from serving import Server, serving, until, write_app

LOG = """
from grape import Node, State, Topology

class Log(Node):
    seen: list = State(list, default=[])

    def process(self, event):
        if event.data != "all":
            self.seen = [*self.seen, event.data]
        self.reply(self.seen)

def topology(config):
    t = Topology("log")
    t.add_slot("note", Log(), retries=0)
    t.add_output("out")
    t.add_slot("raw", lambda data: data, emits="out", name="raw")
    return t
"""
"""Remembers by key what came; replies with all of it."""

CRON = """
[driver.second]
kind = "cron"
event = "note"
schedule = "* * * * * *"
key = "second"
"""
EVERY = 200
"""Milliseconds."""


def log_app(directory: Path, drivers: str, version: str = "1") -> Path:
    write_app(directory, LOG, version=version)
    with open(directory / "grape.toml", "a") as manifest:
        manifest.write(drivers)
    return directory


def timer(name: str = "often", **more: Any) -> str:
    keys = {"kind": "timer", "event": "note", "every": f"{EVERY} ms", "key": name, **more}
    lines = [f"{key.replace('_', '-')} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join([f"[driver.{name}]", *lines, ""])


def seen(server: Server, key: str) -> list[Any]:
    own = {"idempotency-key": uuid.uuid4().hex}  # with which it is asked again if an engine dies
    found: list[Any] = server.call("log", "note", "all", params={"key": key}, headers=own)
    return found


def moments(server: Server, key: str = "often") -> list[int]:
    """Milliseconds."""
    return [round(datetime.fromisoformat(each["due"]).timestamp() * 1000) for each in seen(server, key)]


def are_dense(found: list[int], every: int = EVERY) -> bool:
    return found == list(range(found[0], found[-1] + 1, every))


def driving(server: Server) -> int:
    """The process that drives the server's apps."""
    (found,) = drivings(server)
    return found


def drivings(server: Server) -> list[int]:
    return [pid for pid in server.pids() if b"grape.drivers.process" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def driver(server: Server, name: str = "often", app: str = "log") -> dict[str, Any]:
    (found,) = [each for each in server.info(app)["drivers"] if each["name"] == name]
    return dict(found)


# ---------------------------------------------------------------------- moments


def test_each_moment_comes_once_whatever_is_killed(tmp_path: Path) -> None:
    """F32: as the server, its engine and its drivers have it."""
    home = tmp_path / "home"
    with serving(home) as server:
        drivers = timer() + CRON
        server.grape("app", "deploy", log_app(tmp_path / "log", drivers))
        for round in range(3):
            count = len(moments(server))
            until(lambda count=count: len(moments(server)) > count + 2)  # type: ignore[misc]
            if round == 0:
                os.kill(driving(server), signal.SIGKILL)
            elif round == 1:
                os.kill(server.engine("log"), signal.SIGKILL)
            else:  # both at once
                os.kill(driving(server), signal.SIGKILL)
                os.kill(server.engine("log"), signal.SIGKILL)
        server.kill()
    with serving(home) as server:
        count = len(moments(server))
        until(lambda: len(moments(server)) > count + 10)
        until(lambda: len(seen(server, "second")) > 5)
        assert are_dense(moments(server))
        assert are_dense(moments(server, "second"), 1000)


def test_what_an_app_that_was_stopped_has_missed(tmp_path: Path) -> None:
    policies = ("none", "last", "all")
    with serving(tmp_path / "home") as server:
        drivers = "".join(timer(policy, catch_up=policy, grace="1 s") for policy in policies)
        server.grape("app", "deploy", log_app(tmp_path / "log", drivers))
        for policy in policies:
            until(lambda policy=policy: moments(server, policy))  # type: ignore[misc]
        server.grape("app", "stop", "log")
        stopped = time.time() * 1000
        assert driver(server, "all")["next"] is None
        until(lambda: time.time() * 1000 > stopped + 2_500)
        started = time.time() * 1000
        server.grape("app", "start", "log")
        for policy in policies:
            until(lambda policy=policy: moments(server, policy)[-1] > started)  # type: ignore[misc]
        assert are_dense(moments(server, "all"))
        for policy in ("none", "last"):
            found = moments(server, policy)
            assert found == sorted(set(found))
            assert {(moment - found[0]) % EVERY for moment in found} == {0}
            assert not [moment for moment in found if stopped < moment < started - 1_000], "they were missed"
            assert [moment for moment in found if moment < stopped]


def test_a_parked_app_is_woken_by_a_moment(tmp_path: Path) -> None:
    with serving(tmp_path / "home", "--park-after", "0.5") as server:
        server.grape("app", "deploy", log_app(tmp_path / "log", timer(every="3 s")))
        until(lambda: server.info("log")["state"] == "parked")
        first = driver(server)["next"]
        assert first > time.time()
        until(lambda: (driver(server)["last"] or 0) >= first)
        assert are_dense(moments(server), 3_000)


def test_an_upgrade_changes_drivers_with_the_version(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        app = tmp_path / "log"
        server.grape("app", "deploy", log_app(app, timer() + timer("gone")))
        until(lambda: moments(server) and moments(server, "gone"))
        server.grape("app", "deploy", log_app(app, timer(data="fixed"), "2"))
        until(lambda: "fixed" in seen(server, "often"))
        found = seen(server, "often")
        first = found.index("fixed")
        assert set(found[first:]) == {"fixed"}, "none of the version before comes behind one of the next"
        left = len(moments(server, "gone"))
        until(lambda: len(seen(server, "often")) > len(found) + 5)
        assert len(moments(server, "gone")) == left
        assert [each["name"] for each in server.info("log")["drivers"]] == ["often"]
        said = server.grape("app", "deploy", log_app(app, timer(event="note-it"), "3"), code=2)
        assert "driver often: the app has no slot 'note-it'; did you mean 'note'" in said
        assert server.info("log")["version"] == "2"
        server.grape("app", "deploy", log_app(app, "", "4"))
        until(
            lambda: (
                not [pid for pid in server.pids() if b"drivers.process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            )
        )


# ---------------------------------------------------------------------- files


def test_each_file_is_told_of_once_whatever_is_killed(tmp_path: Path) -> None:
    place = tmp_path / "in"
    with serving(tmp_path / "home") as server:
        watch = f"""[driver.files]
kind = "watch"
event = "note"
path = "{place}"
pattern = "**/*.csv"
interval = "100 ms"
settle = "100 ms"
key = "files"
"""
        server.grape("app", "deploy", log_app(tmp_path / "log", watch))
        until(lambda: "No such file" in driver(server, "files")["error"])
        (place / "deep").mkdir(parents=True)
        expected = []
        for round in range(3):
            for name in (f"{round}.csv", f"deep/{round}.csv", f"{round}.txt"):
                (place / name).write_text("x" * round)
            expected += [f"deep/{round}.csv", f"{round}.csv"]
            if round == 1:
                os.kill(driving(server), signal.SIGKILL)
            if round == 2:
                os.kill(server.engine("log"), signal.SIGKILL)
            until(lambda: len(seen(server, "files")) >= len(expected))  # noqa: B023
        assert driver(server, "files")["error"] == ""
        (place / "0.csv").write_text("more")
        (place / "last.csv").write_text("")
        (place / "\udcff.csv").write_text("a name that is no UTF-8")
        until(lambda: len(seen(server, "files")) >= len(expected) + 3)
        found = seen(server, "files")
        assert sorted(each["path"] for each in found if each["change"] == "created") == sorted(
            f"{place}/{name}" for name in [*expected, "last.csv", "\ufffd.csv"]
        )
        (changed,) = [each for each in found if each["change"] == "changed"]
        assert changed["path"] == f"{place}/0.csv"
        assert changed["size"] == 4
        assert changed["mtime"] == pytest.approx(os.stat(place / "0.csv").st_mtime)


# ---------------------------------------------------------------------- hooks

HOOKS = """
[driver.code]
kind = "webhook"
event = "note"
scheme = "github"
secret = [{ file = "%(secret)s" }, { env = "HOOK_SECRET" }]
key = "repository.full_name"
headers = ["X-GitHub-Event"]

[driver.pay]
kind = "webhook"
event = "note"
scheme = "stripe"
secret = { env = "HOOK_SECRET" }
key = "type"

[driver.any]
kind = "webhook"
event = "raw"
scheme = "hmac"
secret = { env = "HOOK_SECRET" }
header = "X-Sign"
hash = "sha512"
encoding = "base64"
id-header = "X-Delivery"
max-body = "1 KiB"

[driver.plain]
kind = "webhook"
event = "note"
key = "k"
"""
SECRET = b"s3cret"


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("hooks")
    (place / "secret").write_text("of the file\n")
    with serving(place / "home", env={"HOOK_SECRET": SECRET.decode()}) as server:
        server.grape("app", "deploy", log_app(place / "log", HOOKS % {"secret": place / "secret"}))
        yield server


def push(server: Server, body: bytes, secret: bytes = SECRET, **headers: str) -> httpx.Response:
    mark = hmac.new(secret, body, "sha256").hexdigest()
    sent = {
        "content-type": "application/json",
        "x-hub-signature-256": f"sha256={mark}",
        "x-github-event": "push",
        **{key.replace("_", "-"): value for key, value in headers.items()},
    }
    return server.http.post("/apps/log/hooks/code", content=body, headers=sent)


def pull(server: Server) -> list[dict[str, Any]]:
    answer = server.post("/apps/log/outputs/out/pop", {"count": 9, "wait": 5})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["events"]
    return found


def problem(answer: httpx.Response, status: int, code: str) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == code
    return str(answer.json()["detail"])


def test_a_hook_of_github(hooked: Server) -> None:
    body = json.dumps({"repository": {"full_name": "a/b"}, "n": 1}).encode()
    for secret in (SECRET, b"of the file"):
        assert push(hooked, body, secret, x_github_delivery="one").status_code in (202, 200)
    assert seen(hooked, "a/b") == [
        {"body": json.loads(body), "headers": {"content-type": "application/json", "x-github-event": "push"}}
    ], "told twice, processed once"
    assert "is not one of this body" in problem(push(hooked, body, b"no", x_github_delivery="2"), 401, "bad-signature")
    assert "no header" in problem(hooked.http.post("/apps/log/hooks/code", content=body), 401, "bad-signature")
    assert "x-github-delivery" in problem(push(hooked, body), 400, "bad-argument")
    assert "no 'full_name'" in problem(push(hooked, b'{"repository": {}}', x_github_delivery="3"), 422, "bad-payload")
    problem(push(hooked, b"{", x_github_delivery="4"), 400, "bad-argument")
    form = b"payload=%7B%22repository%22%3A%7B%22full_name%22%3A%22form%22%7D%7D"
    answer = push(hooked, form, x_github_delivery="5", content_type="application/x-www-form-urlencoded")
    assert answer.status_code == 202
    assert seen(hooked, "form")[0]["body"] == {"repository": {"full_name": "form"}}
    assert len(seen(hooked, "a/b")) == 1


def test_a_hook_of_stripe(hooked: Server) -> None:
    def pay(when: float, secret: bytes = SECRET, **more: Any) -> httpx.Response:
        body = json.dumps({"id": "evt_1", "type": "paid", **more}).encode()
        mark = hmac.new(secret, b"%d.%s" % (when, body), "sha256").hexdigest()
        return hooked.http.post(
            "/apps/log/hooks/pay", content=body, headers={"stripe-signature": f"t={int(when)},v1={mark}"}
        )

    now = time.time()
    assert "301 s old" in problem(pay(now - 301.5), 401, "bad-signature").replace("302", "301")
    problem(pay(now, b"no"), 401, "bad-signature")
    assert pay(now).status_code == 202
    again = pay(now, pending_webhooks=2)
    assert (again.status_code, again.json()) == (200, {"accepted": 0})
    assert pay(now, id="evt_2").status_code == 202
    assert [each["id"] for each in seen(hooked, "paid")] == ["evt_1", "evt_2"]
    until(lambda: "signature" in driver(hooked, "pay")["error"] or driver(hooked, "pay")["last"])


def test_any_hmac_and_any_body(hooked: Server) -> None:
    def send(body: bytes, media: str, own: str) -> httpx.Response:
        mark = base64.b64encode(hmac.new(SECRET, body, hashlib.sha512).digest()).decode()
        headers = {"x-sign": mark, "content-type": media, "x-delivery": own}
        return hooked.http.post("/apps/log/hooks/any", content=body, headers=headers)

    assert send(b"plain text", "text/plain", "1").status_code == 202
    assert send(b"\xff\x00", "application/octet-stream", "2").status_code == 202
    assert "over 1 KiB" in problem(send(b"x" * 2_000, "text/plain", "3"), 413, "too-large")
    assert send(b"plain text", "text/plain", "1").status_code in (200, 202)
    found: list[Any] = []
    until(lambda: found.extend(pull(hooked)) or len(found) >= 2)
    bodies = [each["data"]["body"] for each in found]
    assert bodies[0] == "plain text"
    assert len(bodies) == 2
    assert found[0]["data"]["headers"] == {"content-type": "text/plain"}
    problem(hooked.post("/apps/log/hooks/none", {}), 404, "no-hook")
    problem(hooked.post("/apps/none/hooks/any", {}), 404, "no-app")


def test_a_hook_without_a_scheme_takes_a_token(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    with serving(tmp_path / "home", env={"HOOK_SECRET": SECRET.decode()}) as server:
        server.grape("app", "deploy", log_app(tmp_path / "log", HOOKS % {"secret": tmp_path / "secret"}))
        token = server.grape("token", "create", "t", "--scope", "log:emit").strip()
        bearer = {"authorization": f"Bearer {token}"}
        problem(server.post("/apps/log/hooks/plain", {"k": "plain"}), 401, "unauthorized")
        assert server.post("/apps/log/hooks/plain", {"k": "plain"}, headers=bearer).status_code == 202
        body = b'{"repository": {"full_name": "signed"}}'
        assert push(server, body, x_github_delivery="1", host="grape.example.org").status_code == 202
        os.kill(server.engine("log"), signal.SIGKILL)
        assert push(server, body, x_github_delivery="1").status_code in (200, 202)
        assert len(server.call("log", "note", "all", params={"key": "signed"}, headers=bearer)) == 1


def test_a_secret_that_is_not_there_is_told(tmp_path: Path) -> None:
    app = log_app(tmp_path / "log", (HOOKS % {"secret": tmp_path / "secret"}).replace("{ env =", "{ file ="))
    app.joinpath("HOOK_SECRET").write_text("x")
    done = grape("app", "check", app)
    assert done.returncode == 2
    assert "grape.toml: secret of driver code" in done.stderr
    (tmp_path / "secret").write_text("\n")
    assert "it is empty" in grape("app", "check", app).stderr
    (tmp_path / "secret").write_text("x")
    assert "4 drivers" in grape("app", "check", app).stdout
