"""Objects on the real thing: handlers in worker processes, an engine that dies, `grape storage` and `grape exec`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from command import GRAPE, grape
from grape.storage.connect import opened
from grape.storage.objects import Objects
from serving import Server, serving, until, write_app

APP = """
from grape import Event, Node, State, Topology

class Store(Node):
    seen: int = State(int, default=0)

    def process(self, event):
        self.seen += 1
        old = self.storage.get("log/" + event.key) or b""
        self.storage.put("log/" + event.key, old + event.data["text"].encode() + b"\\n", tags=["log"])
        if event.data.get("large"):
            self.storage.put("large/" + event.key, bytes([self.seen % 256]) * event.data["large"])
        if event.data.get("fail"):
            raise ValueError("no")
        self.reply(self.seen)

class Measure(Node):
    count: int = State(int, default=0)

    def process(self, event):
        self.count += 1
        if event.key.endswith("7"):
            raise ValueError("seven")
        data = self.storage.get(event.key)
        self.emit("measured", [event.key, len(data), self.count])

t = Topology("shop")
t.add_slot("store", Store(), retries=0)
t.add_slot("measure", Measure(), retries=0)
t.add_output("measured")
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", write_app(tmp_path / "shop", APP))
        yield server


def storage(server: Server, *words: Any, code: int = 0, stdin: bytes = b"") -> str:
    done = grape("storage", *words, "--app", "shop", "--home", server.home, stdin=stdin)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def test_what_handlers_write_others_read(server: Server, tmp_path: Path) -> None:
    for n in range(3):
        assert server.call("shop", "store", {"text": f"{n}", "large": 200_000}, params={"key": "k"}) == n + 1
    server.post("/apps/shop/events/store", {"text": "lost", "fail": True}, params={"key": "k"})
    until(lambda: "ValueError" in grape("dead", "list", "--app", "shop", "--home", server.home).stdout)
    assert storage(server, "get", "shop/log/k") == "0\n1\n2\n"
    about = json.loads(storage(server, "stat", "shop/log/k"))
    assert (about["size"], about["tags"]) == (6, ["log"])
    assert about["checksum"] == "sha256:" + hashlib.sha256(b"0\n1\n2\n").hexdigest()
    storage(server, "get", "shop/large/k", tmp_path / "large")
    assert (tmp_path / "large").read_bytes() == bytes([3]) * 200_000
    assert storage(server, "du", "shop/").startswith("2 objects, 200,006 bytes")
    blobs = server.home / "apps" / "shop" / "data" / "blobs"
    names = {path.name for path in blobs.rglob("*") if path.is_file()}
    assert hashlib.sha256(bytes([3]) * 200_000).hexdigest() in names
    assert "there is no object" in storage(server, "get", "shop/nothing", code=1)
    assert "NAMESPACE/KEY" in storage(server, "get", "shop", code=2)


def test_objects_from_outside_and_between_storages(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    about = json.loads(storage(server, "put", "photos/a.txt", tmp_path / "a.txt", "--tag", "x", "--set", "by=me"))
    assert (about["content_type"], about["tags"], about["user"]) == ("text/plain", ["x"], {"by": "me"})
    (tmp_path / "b").write_bytes(b"b" * 100_000)
    storage(server, "put", "photos/b", tmp_path / "b")
    assert "is there already" in storage(server, "put", "photos/b", "--if-absent", code=1, stdin=b"c")
    assert storage(server, "ls", "photos/", "--tag", "x").split()[-1] == "a.txt"
    url = f"file://{tmp_path}/copy"
    done = grape("storage", "cp", "photos/", url, "--app", "shop", "--home", server.home)
    assert "2 objects copied" in done.stderr, done.stderr
    assert (tmp_path / "copy/photos/a.txt").read_text() == "hello"
    done = grape("storage", "cp", "photos/", url, "--app", "shop", "--home", server.home)
    assert "0 objects copied" in done.stderr
    assert "2 were there already" in done.stderr
    done = grape("storage", "stat", "photos/a.txt", "--storage", url)
    assert json.loads(done.stdout)["user"] == {"by": "me"}
    assert grape("storage", "verify", "photos/", "--storage", url).returncode == 0
    (tmp_path / "copy/photos/b").chmod(0o644)
    mtime = os.stat(tmp_path / "copy/photos/b").st_mtime_ns
    (tmp_path / "copy/photos/b").write_bytes(b"x" * 100_000)
    os.utime(tmp_path / "copy/photos/b", ns=(mtime, mtime))  # damage, not another program's writing
    done = grape("storage", "verify", "photos/", "--storage", url)
    assert done.returncode == 1
    assert "photos/b" in done.stderr
    storage(server, "rm", "photos/", "-r")
    assert storage(server, "ls", "photos/") == ""
    server.grape("app", "stop", "shop")
    storage(server, "put", "photos/rest", stdin=b"written at rest")
    assert storage(server, "get", "photos/rest") == "written at rest"


def test_an_event_for_each_object_once_although_everything_dies(server: Server) -> None:
    """`grape exec` is killed, and so is the engine: none is missing, none is twice."""
    count = 300
    asyncio.run(put_raw(server.home / "apps" / "shop" / "data", count))
    command = ["exec", "shop@measure", "--over", "shop/raw/", "--home", str(server.home), "--rate", "150/s"]
    assert "300 objects" in grape(*command, "--dry-run").stderr
    for _ in range(2):
        process = subprocess.Popen([GRAPE, *command], stderr=subprocess.PIPE)
        until(lambda process=process: measured(server) > 0 or process.poll() is not None)  # type: ignore[misc]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
        os.kill(server.engine("shop"), signal.SIGKILL)
        until(lambda: server.info("shop")["state"] == "running" and server.info("shop")["numbers"] is not None)
    last = grape(*command)
    assert last.returncode in (0, 1), last.stderr
    failed = {f"raw/{i:04}" for i in range(count) if i % 10 == 7}
    until(lambda: len(taken(server)) == count - len(failed))
    found = taken(server)
    assert sorted(key for key, _, _ in found) == sorted({f"raw/{i:04}" for i in range(count)} - failed)
    assert {n for _, _, n in found} == {1}
    dead = grape("dead", "list", "--app", "shop", "--home", server.home).stdout
    assert {json.loads(line)["key"] for line in dead.splitlines()} == failed
    assert "handed in before" in grape(*command).stderr
    assert "300 events handed in" in grape(*command, "--again").stderr


async def put_raw(data: Path, count: int) -> None:
    async with opened(f"embedded://{data}") as one:
        objects = Objects(one, "shop")
        await asyncio.gather(*(objects.put(f"raw/{i:04}", f"{i}") for i in range(count)))


def measured(server: Server) -> int:
    numbers = server.info("shop")["numbers"]
    return 0 if numbers is None else sum(numbers["processed"].values())


def taken(server: Server) -> list[Any]:
    """Looked at, not taken."""
    answer = server.post("/apps/shop/outputs/measured/peek", {"count": 1000, "looks": True})
    return [event["data"] for event in answer.json()["events"]]


TRIGGERED = """
from grape import Node, State, Topology

class Thumb(Node):
    seen: int = State(int, default=0)

    def process(self, event):
        self.seen += 1
        data = self.storage.get(event.key)
        self.storage.put("thumbs/" + event.key, data[:3])
        self.emit("made", [event.key, event.data["version"], self.seen])

t = Topology("shop")
t.add_slot("photo", Thumb(), retries=0)
t.add_output("made")
"""
DRIVER = """
[driver.photos]
kind = "objects"
event = "photo"
prefix = "raw/"
existing = true
"""


def made(server: Server) -> list[Any]:
    answer = server.post("/apps/shop/outputs/made/peek", {"count": 1000, "looks": True})
    return [event["data"] for event in answer.json()["events"]]


def test_an_object_that_is_written_is_an_event_once_although_everything_dies(tmp_path: Path) -> None:
    app = write_app(tmp_path / "shop", TRIGGERED)
    with open(app / "grape.toml", "a") as manifest:
        manifest.write(DRIVER)
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", app)
        data = server.home / "apps" / "shop" / "data"
        asyncio.run(put_raw(data, 20))
        until(lambda: len(made(server)) == 20)
        os.kill(server.engine("shop"), signal.SIGKILL)
        until(lambda: server.info("shop")["state"] == "running")
        for pid in server.pids():
            if b"grape.drivers.process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        asyncio.run(put_raw(data, 5))  # written anew: another version of each
        until(lambda: len(made(server)) == 25)
    with serving(tmp_path / "home") as server:
        asyncio.run(put_raw(data, 1))
        until(lambda: len(made(server)) == 26)
        found = made(server)
        assert len({(key, version) for key, version, _ in found}) == 26
        assert max(seen for key, _, seen in found if key == "raw/0000") == 3
        assert storage(server, "get", "shop/thumbs/raw/0019") == "19"
        assert "photos" in str(server.get("/apps/shop/drivers").json())


GRANTED = """
from grape import Context, Topology
t = Topology("shop")

@t.slot("do", retries=0)
def do(what: list, context: Context) -> None:
    verb, namespace, key = what
    objects = context.storage[namespace]
    if verb == "put":
        objects.put(key, "granted")
    context.reply((objects.get(key) or b"").decode())
"""


def test_namespaces_are_granted_by_the_manifest(tmp_path: Path) -> None:
    app = write_app(tmp_path / "shop", GRANTED)
    with open(app / "grape.toml", "a") as manifest:
        manifest.write('[namespaces]\nphotos = "read"\nthumbs = "write"\n')
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", app)
        storage(server, "put", "photos/x", stdin=b"theirs")
        assert server.call("shop", "do", ["get", "photos", "x"]) == "theirs"
        assert server.call("shop", "do", ["put", "thumbs", "x"]) == "granted"
        for what, says in ((["put", "photos", "x"], "may only read"), (["get", "other", "x"], "not granted")):
            answer = server.post("/apps/shop/events/do?wait=20", what)
            assert answer.status_code == 502, answer.text
            assert says in answer.json()["detail"]
        with open(app / "grape.toml", "a") as manifest:
            manifest.write('UPPER = "read"\n')
        assert "a namespace is" in server.grape("app", "deploy", app, code=2)


def test_objects_over_http(server: Server) -> None:
    place = "/apps/shop/objects/photos/a/b c.png"
    body = bytes(range(256)) * 2_000
    headers = {"content-type": "image/png", "x-grape-tags": "x,%C3%A4", "x-grape-user-by": "me"}
    put = server.http.put(place, content=body, headers={**headers, "if-none-match": "*"})
    assert put.status_code == 200, put.text
    assert put.json()["checksum"] == "sha256:" + hashlib.sha256(body).hexdigest()
    again = server.http.put(place, content=b"x", headers={"if-none-match": "*"})
    assert (again.status_code, again.json()["code"]) == (412, "conflict")
    got = server.http.get(place)
    assert got.content == body
    assert (got.headers["content-type"], got.headers["x-grape-tags"]) == ("image/png", "x,%C3%A4")
    assert got.headers["etag"] == put.headers["etag"]
    assert server.http.get(place, headers={"if-none-match": got.headers["etag"]}).status_code == 304
    for wanted, expected in (("bytes=0-9", body[:10]), ("bytes=100-", body[100:]), ("bytes=-5", body[-5:])):
        part = server.http.get(place, headers={"range": wanted})
        assert (part.status_code, part.content) == (206, expected)
    assert server.http.get(place, headers={"range": f"bytes={len(body)}-"}).status_code == 416
    head = server.http.head(place)
    assert (head.headers["content-length"], head.content) == (str(len(body)), b"")
    listed = server.get("/apps/shop/objects/photos", params={"tag": "x"}).json()
    assert [each["key"] for each in listed["objects"]] == ["a/b c.png"]
    assert server.http.delete(place, headers={"if-match": '"0"'}).status_code == 412
    assert server.http.delete(place).status_code == 204
    assert server.http.get(place).status_code == 404
    assert server.http.put("/apps/shop/objects/photos/..%2Fx", content=b"").status_code in (400, 404, 422)
    assert server.http.get("/apps/shop/objects/UPPER/x").status_code == 400
    assert server.get("/apps/nothing/objects/photos").status_code == 404


def test_an_object_and_the_event_that_tells_of_it_are_one(tmp_path: Path) -> None:
    app = write_app(tmp_path / "shop", TRIGGERED)
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", app)
        (tmp_path / "a").write_bytes(b"abcdef")
        (tmp_path / "large").write_bytes(b"l" * 300_000)
        about = json.loads(server.grape("storage", "put", "shop/raw/a", tmp_path / "a", "--emit", "shop@photo"))
        assert (about["key"], about["size"]) == ("raw/a", 6)
        server.grape("storage", "put", "shop/raw/large", tmp_path / "large", "--emit", "shop@photo")
        until(lambda: len(made(server)) == 2)
        assert storage(server, "get", "shop/thumbs/raw/a") == "abc"
        answer = server.http.put("/apps/shop/objects/shop/raw/web?emit=photo", content=b"xyzabc")
        assert answer.status_code == 200, answer.text
        until(lambda: len(made(server)) == 3)
        assert storage(server, "get", "shop/thumbs/raw/web") == "xyz"
        for words, says in (
            (("--emit", "shop@phto"), "did you mean 'photo'"),
            (("--emit", "shop@photo", "--if-absent"), "without a condition"),
        ):
            done = grape("storage", "put", "shop/raw/b", tmp_path / "a", *words, "--home", server.home)
            assert done.returncode == 2
            assert says in done.stderr
        assert server.http.put("/apps/shop/objects/shop/raw/b?emit=phto", content=b"x").status_code == 404
        assert storage(server, "ls", "shop/raw/b") == ""
        for _ in range(3):  # the engine dies in the middle: both, or neither, and once
            os.kill(server.engine("shop"), signal.SIGKILL)
            server.grape("storage", "put", f"shop/raw/{_}", tmp_path / "a", "--emit", "shop@photo")
        until(lambda: len(made(server)) == 6)
        assert sorted(key for key, _, _ in made(server))[:3] == ["raw/0", "raw/1", "raw/2"]
    done = grape(
        "storage", "put", "shop/raw/b", tmp_path / "a", "--emit", "photo", "--data", server.home / "apps/shop/data"
    )
    assert done.returncode == 2
    assert "only one takes events" in done.stderr


def test_objects_get_other_names(server: Server, tmp_path: Path) -> None:
    for n in range(5):
        storage(server, "put", f"shop/old/{n}", "--tag", "t", stdin=b"%d" % n)
    storage(server, "mv", "shop/old/", "photos/new/")
    assert storage(server, "ls", "shop/old/") == ""
    assert len(storage(server, "ls", "photos/new/", "--tag", "t").splitlines()) == 5
    storage(server, "mv", "photos/new/3", "photos/three")
    assert storage(server, "get", "photos/three") == "3"
    assert "there is no object" in storage(server, "mv", "photos/new/3", "photos/four", code=1)
    assert "both end with /" in storage(server, "mv", "photos/new/", "photos/x", code=2)
    assert "lies below" in storage(server, "mv", "photos/new/", "photos/new/er/", code=2)


def test_an_object_over_http_in_parts(server: Server) -> None:
    place = "/apps/shop/objects/shop/film/a"
    begun = server.http.post(f"{place}?uploads", headers={"content-type": "video/mp4"})
    assert begun.status_code == 201, begun.text
    upload = begun.json()["upload"]
    parts = [bytes([n]) * 200_000 for n in range(1, 6)]
    assert server.http.post(f"{place}?upload={upload}").status_code == 409
    for n in (5, 1, 3, 4):
        answer = server.http.put(f"{place}?upload={upload}&part={n}", content=parts[n - 1])
        assert answer.json()["checksum"] == "sha256:" + hashlib.sha256(parts[n - 1]).hexdigest()
    missing = server.http.post(f"{place}?upload={upload}")
    assert (missing.status_code, "part 2" in missing.text) == (409, True)
    os.kill(server.engine("shop"), signal.SIGKILL)
    until(lambda: server.info("shop")["state"] == "running")
    server.http.put(f"{place}?upload={upload}&part=2", content=b"cut off before")
    server.http.put(f"{place}?upload={upload}&part=2", content=parts[1])  # again: the last one counts
    done = server.http.post(f"{place}?upload={upload}")
    assert done.status_code == 200, done.text
    got = server.http.get(place)
    assert (got.content, got.headers["content-type"]) == (b"".join(parts), "video/mp4")
    assert storage(server, "ls", "uploads/") == ""
    assert server.http.post(f"{place}?upload={upload}").status_code == 404
    other = server.http.post(f"{place}?uploads").json()["upload"]
    server.http.put(f"{place}?upload={other}&part=1", content=b"x")
    assert server.http.put(f"/apps/shop/objects/shop/film/b?upload={other}&part=1", content=b"x").status_code == 404
    assert server.http.put(f"{place}?upload={other}&part=0", content=b"x").status_code == 400
    assert server.http.delete(f"{place}?upload={other}").status_code == 204
    assert storage(server, "ls", "uploads/") == ""


def test_what_has_expired_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"l" * 300_000)
    storage(server, "put", "shop/brief", tmp_path / "large", "--ttl", "1")
    storage(server, "put", "shop/long", tmp_path / "large", "--ttl", "3600")
    storage(server, "put", "shop/again", "--ttl", "1", stdin=b"x")
    storage(server, "put", "shop/again", stdin=b"for ever")
    data = server.home / "apps" / "shop" / "data"

    def rows() -> set[str]:
        async def read() -> set[str]:
            async with opened(f"embedded://{data}") as one:
                return {about.key for about in (await one.page("shop")).items}

        return asyncio.run(read())

    until(lambda: rows() == {"long", "again"})
    assert storage(server, "get", "shop/again") == "for ever"
    assert server.grape("doctor", "shop") is not None


def test_conditions_over_http(server: Server) -> None:
    """As they are written in RFC 9110: lists, any, none of these; and a range of another version is no range."""
    place, http = "/apps/shop/objects/photos/conditions", server.http
    assert http.put(place, content=b"x", headers={"if-match": "*"}).status_code == 412
    assert http.delete(place, headers={"if-none-match": "*"}).status_code == 404
    first = http.put(place, content=b"first", headers={"if-none-match": '"other", "versions"'}).headers["etag"]
    for headers in ({"if-none-match": first}, {"if-none-match": f'"zz", {first}'}, {"if-match": '"zz", "yy"'}):
        assert http.put(place, content=b"lost", headers=headers).status_code == 412, headers
        assert http.delete(place, headers=headers).status_code == 412, headers
    assert http.delete(place, headers={"if-none-match": "*"}).status_code == 412
    second = http.put(place, content=b"second", headers={"if-match": f'"zz", {first}'}).headers["etag"]
    assert second != first
    third = http.put(place, content=b"third!", headers={"if-match": "*"}).headers["etag"]
    for since, status, content in ((third, 206, b"th"), (second, 200, b"third!"), ("Mon, 01 Jan 2024", 200, b"third!")):
        got = http.get(place, headers={"range": "bytes=0-1", "if-range": since})
        assert (got.status_code, got.content) == (status, content)
    assert http.delete(place, headers={"if-match": f"{first}, {third}"}).status_code == 204


def test_what_has_expired_is_not_there_over_http(server: Server) -> None:
    place, http = "/apps/shop/objects/photos/short", server.http
    assert http.put(f"{place}?ttl=0.2", content=b"1").status_code == 200
    until(lambda: http.get(place).status_code == 404)
    assert http.put(place, content=b"2", headers={"if-none-match": "*"}).status_code == 200
    assert http.put(place, content=b"3", headers={"if-none-match": "*"}).status_code == 412
    assert http.get(place).content == b"2"


def test_an_upload_has_what_it_was_begun_with_and_its_condition(server: Server) -> None:
    place, http = "/apps/shop/objects/photos/in-parts", server.http
    known = {"content-type": "image/png", "x-grape-tags": "x,%C3%A4", "x-grape-user-by": "me"}

    def begun() -> str:
        upload: str = http.post(f"{place}?uploads&ttl=1000", headers=known).json()["upload"]
        assert http.put(f"{place}?upload={upload}&part=1", content=b"whole").status_code == 200
        return upload

    upload = begun()
    assert http.post(f"{place}?upload={upload}", headers={"if-match": "*"}).status_code == 412
    done = http.post(f"{place}?upload={upload}", headers={"if-none-match": "*"})
    assert done.status_code == 200, done.text
    about = http.get(place)
    assert {name: about.headers[name] for name in known} == known
    assert done.json()["expires"] > 0
    assert http.post(f"{place}?upload={begun()}", headers={"if-none-match": "*"}).status_code == 412
    assert http.post(f"{place}?upload={begun()}", headers={"if-match": done.headers["etag"]}).status_code == 200


def test_names_that_are_no_text_are_not_taken_for_others(server: Server) -> None:
    http = server.http
    for path in ("objects/photos/x%ff", "objects/photos/x%C3", "events/do?key=%ff", "objects/photos?prefix=%fe"):
        answer = http.request("PUT" if "photos/" in path else "POST", f"/apps/shop/{path}", content=b"1")
        assert answer.status_code == 400, path
        assert "UTF-8" in answer.json()["detail"]
    assert http.put("/apps/shop/objects/photos/x", content=b"1", headers={"x-grape-tags": "%ff"}).status_code == 400
    assert http.put("/apps/shop/objects/photos/%C3%A4%25ff", content=b"1").status_code == 200
    assert http.get("/apps/shop/objects/photos/%C3%A4%25ff").content == b"1"


def test_a_restart_of_the_engine_leaves_what_is_being_uploaded(server: Server) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def body() -> Iterator[bytes]:
        yield b"a" * 200_000
        begun.set()
        assert go_on.wait(60)
        yield b"b" * 200_000

    answers: list[httpx.Response] = []
    place = "/apps/shop/objects/photos/slowly"
    thread = threading.Thread(target=lambda: answers.append(server.http.put(place, content=body())))
    thread.start()
    assert begun.wait(60)
    incoming = server.home / "apps" / "shop" / "data" / "blobs" / "incoming"
    until(lambda: any(path.stat().st_size for path in incoming.glob("*")))
    server.grape("app", "restart", "shop")
    go_on.set()
    thread.join(60)
    assert [answer.status_code for answer in answers] == [200], answers[0].text
    assert server.http.get(place).content == b"a" * 200_000 + b"b" * 200_000
