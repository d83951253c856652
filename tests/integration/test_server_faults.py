"""What a server has to survive, by the rows of the catalogue of faults."""

from __future__ import annotations

import json
import os
import pickle
import socket
import ssl
import struct
import subprocess
import time
from pathlib import Path

import msgspec
import pytest

import grape
from command import GRAPE
from door import Client
from grape.errors import GrapeError, Unauthorized
from grape.protocol.door import Ask, Failed, Greeting, Refused
from serving import Server, count_app, serving, until


def raw(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), 20)


def count(server: Server, tmp_path: Path) -> None:
    server.grape("app", "deploy", count_app(tmp_path / "count"))
    assert server.call("count", "add", params={"key": "a"}) == ["1", 1]


def still_serves(server: Server) -> None:
    assert server.call("count", "add", params={"key": "again"})[0] == "1"


def test_lengths_that_nobody_has_memory_for_are_refused_before_it_is_taken(tmp_path: Path) -> None:
    """F40: of a body over HTTP, of a frame at the door and at the control socket."""
    with serving(tmp_path / "home") as server:
        count(server, tmp_path)
        for length in (100 << 20, 2 << 30, 1 << 62):
            with raw(server) as client:
                head = f"POST /apps/count/events/add HTTP/1.1\r\nhost: {server.url[7:]}\r\ncontent-length: {length}\r\n"
                client.sendall(f"{head}content-type: application/json\r\n\r\n[".encode())
                assert client.recv(4096).startswith(b"HTTP/1.1 413 ")
        for place in (server.home / "control", server.home / "apps" / "count" / "data" / "door"):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(place))
                client.settimeout(20)
                client.sendall(struct.pack("<I", 0xFFFFFFFF) + b"x" * 100)
                while client.recv(4096):
                    pass  # it says why, and is gone
        assert memory_of(server) < 600 << 20
        still_serves(server)


def test_a_frame_takes_memory_as_it_comes(tmp_path: Path) -> None:
    """F40: forty that say they have 90 MB, which is allowed, and of which nothing follows."""
    with serving(tmp_path / "home") as server:
        count(server, tmp_path)
        before = memory_of(server)
        waiting = []
        for place in (server.home / "control", server.home / "apps" / "count" / "data" / "door"):
            for _ in range(20):
                client = socket.socket(socket.AF_UNIX)
                client.connect(str(place))
                client.sendall(struct.pack("<I", 90 << 20) + b"\x9a" + bytes(1_000))
                waiting.append(client)
        still_serves(server)
        assert memory_of(server) - before < 150 << 20
        for client in waiting:
            client.close()


def test_an_argument_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """F41: at the control socket."""
    with serving(tmp_path / "home") as server, socket.socket(socket.AF_UNIX) as end:
        end.connect(str(server.home / "control"))
        client = Client(end)
        client.say(Greeting(1), Ask(1, "look", msgspec.Raw(b"\x81\xa4name\xa1\xff")))
        assert client.hear(Refused, number=1).code == "bad-argument"
        client.say(Ask(2, "look", msgspec.Raw(b"\x91" * 900 + b"\xc0")))
        assert client.hear(Refused, number=2).code == "bad-argument"


def memory_of(server: Server) -> int:
    """Resident, of everything that belongs to it, in bytes."""
    pages = 0
    for pid in [server.process.pid, *server.pids()]:
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_half_of_something_and_then_silence_holds_nobody_up(tmp_path: Path) -> None:
    """F42: a request, a frame at the door, at the control socket, a package that ends."""
    with serving(tmp_path / "home") as server:
        count(server, tmp_path)
        waiting = []
        for _ in range(20):
            client = raw(server)
            client.sendall(b"POST /apps/count/events/add HTTP/1.1\r\nhost: x\r\ncontent-le")
            waiting.append(client)
        for place in (server.home / "control", server.home / "apps" / "count" / "data" / "door"):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(place))
            client.sendall(b"\x40\x00\x00\x00\x92\x01")
            waiting.append(client)
        still_serves(server)
        server.grape("app", "restart", "count")
        still_serves(server)
        for client in waiting:
            client.close()


def test_a_server_without_descriptors_says_so_and_goes_on(tmp_path: Path) -> None:
    """F19: connections beyond the limit wait or are refused; those that there are go on, and so does all when some are
    closed."""
    with serving(tmp_path / "home", prefix=["prlimit", "--nofile=160:160"]) as server:
        count(server, tmp_path)
        held = []
        try:
            for _ in range(300):
                held.append(raw(server))
        except OSError:
            pass
        for client in held:
            client.close()
        until(lambda: server.get("/apps/count/readyz").status_code == 200)
        still_serves(server)


def test_a_disk_that_cannot_be_written_refuses_what_would_be_kept(tmp_path: Path) -> None:
    """F29: nothing is confirmed that is not stored; what is read goes on; when it can be written again all does."""
    with serving(tmp_path / "home") as server:
        count(server, tmp_path)
        package = count_app(tmp_path / "next" / "count", "2")
        blocked = server.home / "apps" / "count"
        block(blocked)
        try:
            assert "error" in server.grape("app", "stop", "count", code=3)
            assert server.info("count")["state"] == "running"
            still_serves(server)  # its data are open already, and have room
        finally:
            unblock(blocked)
        server.grape("app", "deploy", package)
        assert server.call("count", "add", params={"key": "a"}) == ["2", 2]


def block(directory: Path) -> None:
    """No file can be made in it, not even by root."""
    done = subprocess.run(["chattr", "+i", str(directory)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this file system cannot forbid root to write")


def unblock(directory: Path) -> None:
    subprocess.run(["chattr", "-i", str(directory)], check=True)


def test_what_is_sent_is_never_run(tmp_path: Path) -> None:
    """F105: only JSON and msgpack are read; nothing is unpickled, no tag of YAML is followed."""

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    with serving(tmp_path / "home") as server:
        count(server, tmp_path)
        body = pickle.dumps(Evil())
        for kind in ("application/x-pickle", "application/x-python-pickle", "application/yaml", "text/x-yaml"):
            answer = server.http.post("/apps/count/events/add", content=body, headers={"content-type": kind})
            assert answer.status_code == 415, answer.text
        for kind in ("application/json", "application/msgpack"):
            answer = server.http.post("/apps/count/events/add", content=body, headers={"content-type": kind})
            assert answer.status_code == 400, answer.text
        still_serves(server)
    assert not (tmp_path / "owned").exists()


def test_an_id_that_comes_again_later_or_with_something_else(tmp_path: Path) -> None:
    """F43, F44, F46: the same id and body is done once, also among others and after them; another body is refused."""
    with serving(tmp_path / "home") as server:
        count(server, tmp_path)

        def put(own: str, value: object) -> tuple[int, object]:
            headers = {"idempotency-key": own}
            answer = server.post("/apps/count/events/add?key=ids&wait=20", value, headers=headers)
            return answer.status_code, answer.json()

        first = [put(f"e{i}", i) for i in range(5)]
        assert first == [(200, ["1", i + 1]) for i in range(5)]
        for i in (3, 0, 4, 1, 2):
            assert put(f"e{i}", i) == first[i]
        status, problem = put("e2", "another")
        assert status == 409
        assert isinstance(problem, dict)
        assert "another event" in json.dumps(problem)
        assert put("e5", None) == (200, ["1", 6])


def test_callers_cannot_have_the_server_ask_somebody_else(tmp_path: Path) -> None:
    """F106: it takes no address to answer to: what looks like one in a request is ignored or refused, and nothing goes
    out."""
    with serving(tmp_path / "home") as server, socket.create_server(("127.0.0.1", 0)) as trap:
        count(server, tmp_path)
        trap.settimeout(0.5)
        place = f"http://127.0.0.1:{trap.getsockname()[1]}/"
        headers = {
            "prefer": "respond-async",
            "callback-url": place,
            "reply-to": place,
            "link": f'<{place}>; rel="reply"',
        }
        for query in (f"callback={place}", f"url={place}", "key=a"):
            answer = server.post(f"/apps/count/events/add?{query}", None, headers=headers)
            assert answer.status_code in (202, 400), answer.text
            assert place not in answer.headers.get("location", "")
        with pytest.raises(TimeoutError):
            trap.accept()


# ---------------------------------------------------------------------- making, replacing, mixing


@pytest.mark.parametrize("after", [0.0, 0.05, 0.2, 0.5, 0.9, 1.4])
def test_an_app_is_installed_whole_or_not_at_all(tmp_path: Path, after: float) -> None:
    """F13: all that there is of the server is killed while it is being made."""
    package = count_app(tmp_path / "count")
    server = Server(tmp_path / "home")
    with subprocess.Popen(
        [GRAPE, "app", "deploy", package, "--home", server.home], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as deploying:
        until(lambda: any(server.home.joinpath("incoming").glob("*")) or (server.home / "apps" / "count").exists())
        time.sleep(after)
        server.kill()
        server.http.close()
    assert deploying.returncode is not None
    with serving(server.home) as server:
        names = [app["name"] for app in server.get("/apps").json()]
        if names:
            assert names == ["count"]
            until(lambda: server.info("count")["state"] in ("running", "stopped"))
        assert not [path for path in (server.home / "incoming").glob("*") if path.name != "none"]
        server.grape("app", "deploy", package)
        assert server.call("count", "add", params={"key": "a"}) == ["1", 1]


def test_what_is_in_flight_is_done_by_the_server_that_comes_next(tmp_path: Path) -> None:
    """F90: events that wait, and a call that nobody has answered, over a server that ends and one that is killed."""
    with serving(tmp_path / "home") as server:
        count(server, tmp_path)
        server.grape("app", "pause", "count")
        events = [{"event": "add", "key": "b", "data": i} for i in range(500)]
        assert server.post("/apps/count/events", events).json() == {"accepted": 500}
        asked = server.post(
            "/apps/count/events/add?key=b", 1, headers={"idempotency-key": "asked", "prefer": "respond-async"}
        )
        assert asked.status_code == 202
        written = (server.home / "apps" / "count" / "data" / "format").read_text()
        assert server.stop() == 0
        server.http.close()
    server = Server(tmp_path / "home")
    server.kill()
    server.http.close()
    with serving(tmp_path / "home") as server:
        server.grape("app", "resume", "count")
        until(lambda: server.get("/apps/count/answers/asked?wait=30").json() == ["1", 501])
        assert server.call("count", "add", params={"key": "b"}) == ["1", 502]
        assert (server.home / "apps" / "count" / "data" / "format").read_text() == written


def test_data_of_another_grape_are_left_alone_and_say_so(tmp_path: Path) -> None:
    """F91: an app whose directory a newer one has written; the others run."""
    with serving(tmp_path / "home") as server:
        count(server, tmp_path)
        server.grape("app", "deploy", count_app(tmp_path / "other"))
        server.stop()
        server.http.close()
    data = tmp_path / "home" / "apps" / "count" / "data"
    (data / "format").write_text("grape-data 7\n")
    before = (data / "data.mdb").read_bytes()
    with serving(tmp_path / "home") as server:
        until(lambda: server.info("count")["state"] == "broken")
        assert "grape-data 7" in server.info("count")["why"]
        assert server.post("/apps/count/events/add?key=a", 1).status_code == 503
        assert server.call("other", "add", params={"key": "a"}) == ["1", 1]
    assert (data / "data.mdb").read_bytes() == before


def test_who_speaks_another_version_is_told_so(tmp_path: Path) -> None:
    """F96: at the door of an engine, and at the control socket of its server."""
    with serving(tmp_path / "home") as server:
        count(server, tmp_path)
        for place in (server.home / "control", server.home / "apps" / "count" / "data" / "door"):
            for version in (0, 2, 1 << 40):
                with socket.socket(socket.AF_UNIX) as end:
                    end.connect(str(place))
                    client = Client(end)
                    failed = client.ask(Greeting(version), Ask(1, "numbers"), for_=Failed)
                    assert failed.code == "protocol"
                    assert f"a client of version {version}; this " in failed.text
        still_serves(server)


# ---------------------------------------------------------------------- who may ask, over time


def test_a_token_that_is_taken_back_stops_whoever_uses_it(tmp_path: Path) -> None:
    """F87: at once and with the reason, not after tries without end; with another one it goes on."""
    with serving(tmp_path / "home") as server:
        count(server, tmp_path)
        old = server.grape("token", "create", "old", "--scope", "count:emit").strip()
        short = server.grape("token", "create", "short", "--scope", "count:emit", "--days", 3 / 86_400).strip()
        with grape.Client(server.url, token=old) as client, grape.Client(server.url, token=short) as brief:
            assert client.call("count@add", 1, key="a") == ["1", 2]
            assert brief.call("count@add", 1, key="a") == ["1", 3]
            server.grape("token", "revoke", "old")
            for each, why in ((client, "not any more"), (brief, "has expired")):
                until(lambda: is_refused(each, why))  # noqa: B023
                spent = time.process_time()
                began = time.monotonic()
                for _ in range(20):
                    assert is_refused(each, why)
                assert time.monotonic() - began < 5
                assert time.process_time() - spent < 2
        new = server.grape("token", "create", "new", "--scope", "count:emit").strip()
        with grape.Client(server.url, token=new) as client:
            assert client.call("count@add", 1, key="a") == ["1", 4]


def is_refused(client: grape.Client, why: str) -> bool:
    try:
        client.emit("count@add", 1, key="refused")
    except Unauthorized as e:
        return why in str(e)
    return False


def test_a_certificate_that_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F87: who trusts the next one as well goes on; who does not is told so, and what it wanted is not done."""
    places = [certificate(tmp_path / name) for name in ("first", "second")]
    both = tmp_path / "both.pem"
    both.write_text("".join(place[0].read_text() for place in places))
    port = free_port()
    options = [("--tls-certificate", str(place[0]), "--tls-key", str(place[1])) for place in places]
    trust = ssl.create_default_context(cafile=str(both))
    monkeypatch.setenv("SSL_CERT_FILE", str(both))
    trusting = grape.Client(f"https://127.0.0.1:{port}")
    monkeypatch.setenv("SSL_CERT_FILE", str(places[0][0]))
    doubting = grape.Client(f"https://127.0.0.1:{port}", timeout=10)
    listen = ("--listen", f"127.0.0.1:{port}")
    with trusting, doubting:
        with serving(tmp_path / "home", *options[0], *listen, verify=trust) as server:
            count(server, tmp_path)
            assert trusting.call("count@add", 1, key="a") == ["1", 2]
            assert doubting.call("count@add", 1, key="a") == ["1", 3]
        with serving(tmp_path / "home", *options[1], *listen, verify=trust) as server:
            assert trusting.call("count@add", 1, key="a") == ["1", 4]
            began, spent = time.monotonic(), time.process_time()
            with pytest.raises(GrapeError, match="certificate"):
                doubting.call("count@add", 1, key="a")
            assert time.monotonic() - began < 20
            assert time.process_time() - spent < 5
            assert trusting.call("count@add", 1, key="a") == ["1", 5]


def certificate(place: Path) -> tuple[Path, Path]:
    """Of this machine, and its key."""
    paths = place.with_suffix(".pem"), place.with_suffix(".key")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(paths[1]), "-out", str(paths[0])]
    subprocess.run(command, check=True, capture_output=True)
    return paths


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
