"""A server as its operator starts it, for tests: `grape serve` on a home of its own, at a port of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from command import GRAPE, grape


class Server:
    """Running, once it is made.

    Attributes:
        url: where it listens. http: a client of it. ``prefix``: a command that starts it.
    """

    def __init__(
        self,
        home: Path,
        *options: str,
        env: dict[str, str] | None = None,
        verify: Any = True,
        prefix: Sequence[str] = (),
    ) -> None:
        self.home = home
        self.said = home.parent / f"{home.name}.said"
        self._log = Path(options[options.index("--log-file") + 1]) if "--log-file" in options else None
        with open(self.said, "ab") as said:
            seen = said.tell()
            self.process = subprocess.Popen(
                [*prefix, GRAPE, "serve", str(home), "--listen", "127.0.0.1:0", *options],
                stdout=subprocess.DEVNULL,
                stderr=said,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self.url = ""
        until(lambda: self._has_said(seen) or self.process.poll() is not None)
        assert self.process.poll() is None, self.said.read_text()
        self.http = httpx.Client(base_url=self.url, timeout=60, verify=verify)
        until(lambda: self.get("/readyz").status_code == 200)

    def _has_said(self, seen: int) -> bool:
        text = self.said.read_bytes()[seen:].decode()
        if self._log is not None and self._log.exists():
            text = self._log.read_text()
        found = re.search(r"listening at ([^\s\"]+)[\"\n]", text)
        if found is not None:
            self.url = found[1]
        return found is not None

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.http.get(path, **options)

    def post(self, path: str, value: Any = None, **options: Any) -> httpx.Response:
        return self.http.post(path, json=value, **options)

    def call(self, app: str, event: str, value: Any = None, **options: Any) -> Any:
        """The answer."""
        params = {"wait": "30", **options.pop("params", {})}
        answer = self.http.post(f"/apps/{app}/events/{event}", json=value, params=params, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def grape(self, *words: object, code: int = 0, said: bool = False) -> str:
        """What a command that speaks to it prints; what it says if it is to fail, unless that is ``said`` as well."""
        done = grape(*words, "--home", self.home)
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 or said else done.stderr

    def grape_data(self, *words: object) -> str:
        """Of a command that looks into the directory of an app, whose name is the last word."""
        done = grape(*words[:-1], "--data", self.home / "apps" / str(words[-1]) / "data")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def info(self, app: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.grape("app", "info", app, "--json"))
        return found

    def pids(self) -> list[int]:
        """Of all processes below it."""
        found = [self.process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*"):
                try:
                    found += map(int, (task / "children").read_text().split())
                except OSError:
                    continue
        return found[1:]

    def engine(self, app: str) -> int:
        """The process that has the app's directory."""
        return int((self.home / "apps" / app / "data" / "lock").read_text().split()[0])

    def kill(self) -> None:
        """As a power loss would: without a word."""
        pids = self.pids()
        self.process.kill()
        self.process.wait()
        until(lambda: not any(map(is_alive, pids)))

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        pids = self.pids()
        self.process.terminate()
        code = self.process.wait(60)
        assert not any(map(is_alive, pids)), "something of it is left"
        return code


@contextmanager
def serving(home: Path, *options: str, **more: Any) -> Iterator[Server]:
    server = Server(home, *options, **more)
    try:
        yield server
    finally:
        server.http.close()
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
            try:
                server.process.wait(60)
            except subprocess.TimeoutExpired:
                server.process.kill()
                raise


def until(is_so: Callable[[], Any], seconds: float = 60) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if is_so():
                return
        except (OSError, ValueError, IndexError, httpx.TransportError):
            pass
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def write_app(directory: Path, code: str, **manifest: Any) -> Path:
    """An app with a manifest: ``name`` is that of the directory unless it is said."""
    directory.mkdir(parents=True, exist_ok=True)
    about = {"name": directory.name, "version": "1", "app": "app.py", "workers": 1, "partitions": 4, **manifest}
    lines = [f"{key.replace('_', '-')} = {json.dumps(value)}" for key, value in about.items()]
    (directory / "grape.toml").write_text("\n".join(lines) + "\n")
    (directory / "app.py").write_text(code)
    return directory


COUNT = """
from grape import Node, State, Topology

class Count(Node):
    n: int = State(int, default=0)

    def process(self, event):
        self.n += 1
        if event.data == "parts":
            for i in range(3):
                self.reply(i, final=False)
        if event.data == "fail":
            raise ValueError("no")
        if event.data == "die":
            import os, signal
            os.kill(os.getppid(), 0)
        self.reply([VERSION, self.n])

def topology(config):
    t = Topology("count")
    t.add_slot("add", Count(), retries=0)
    return t
"""
"""Counts by key; replies with [version, count]."""


def count_app(directory: Path, version: str = "1") -> Path:
    return write_app(directory, f"VERSION = {version!r}\n{COUNT}", version=version)
