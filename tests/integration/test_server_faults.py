"""What a server has to survive, by the rows of the catalogue of faults."""

from __future__ import annotations

import json
import os
import pickle
import socket
import struct
import subprocess
from pathlib import Path

import pytest

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
