"""A real server that speaks as MongoDB does, for tests: `mongod` where a machine has it ($GRAPE_MONGOD, or on the
PATH), as a replica set of one, so that it tells what changes; else FerretDB 1.24, which is built once (tests/ferret).

One `Mongo` per process of tests, on a free port of this machine alone, with its data in a directory of its own. It ends
with the process that started it, whatever becomes of that.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import pymongo
import pytest
from pymongo.errors import PyMongoError

from contract.weed import until

DATABASE: Final = "grape-tests"
_ROOT: Final = Path(__file__).parents[2]
_READY: Final = 60.0


class Mongo:
    """
    Attributes:
        is_mongod: whether it is the real one.
    """

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="grape-mongo-"))
        self.port = _free_port()
        mongod = os.environ.get("GRAPE_MONGOD") or shutil.which("mongod")
        self.is_mongod = mongod is not None
        self._process: subprocess.Popen[bytes] | None = None
        (self.root / "data").mkdir()
        data = str(self.root / "data")
        if mongod is not None:
            self._command = [mongod, "--dbpath", data, "--port", str(self.port), "--bind_ip", "127.0.0.1"]
            self._command += ["--replSet", "grape", "--nounixsocket", "--wiredTigerCacheSizeGB", "0.5"]
        else:
            self._command = [str(ferret()), "-directory", data, "-listen", f"127.0.0.1:{self.port}"]

    @property
    def hosts(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, collection: str = "objects", **more: object) -> str:
        settings = {"collection": collection, "directConnection": "true", **more}
        return f"mongodb://{self.hosts}/{DATABASE}?" + "&".join(f"{name}={value}" for name, value in settings.items())

    def start(self) -> None:
        """Returns when it takes writes."""
        with open(self.root / "log", "ab") as log:
            self._process = subprocess.Popen(
                # It dies with this process, or thread, whatever becomes of that.
                ["setpriv", "--pdeathsig", "KILL", *self._command],
                cwd=self.root,
                env={**os.environ, "HOME": str(self.root), "TMPDIR": str(self.root)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self._is_ready, _READY, self.log)

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"the server has ended:\n{self.log()}")
        client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
            f"mongodb://{self.hosts}/?directConnection=true", serverSelectionTimeoutMS=500
        )
        try:
            if client.admin.command("hello").get("isWritablePrimary"):
                return True
            if self.is_mongod:
                client.admin.command("replSetInitiate", {"_id": "grape", "members": [{"_id": 0, "host": self.hosts}]})
        except PyMongoError:
            pass
        finally:
            client.close()
        return False

    def kill(self) -> None:
        """Without a word, as if the machine had gone."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()
        self._process = None

    def stall(self) -> None:
        """It answers nothing, and takes no connection back."""
        self._signal(signal.SIGSTOP)
        assert self._process is not None
        process = psutil.Process(self._process.pid)
        until(lambda: process.status() == psutil.STATUS_STOPPED, 10)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, which: int) -> None:
        assert self._process is not None
        self._process.send_signal(which)

    def stop(self) -> None:
        if self._process is not None:
            self.kill()
        shutil.rmtree(self.root, ignore_errors=True)

    def log(self) -> str:
        return (self.root / "log").read_text(errors="replace")[-3000:]

    def database(self) -> pymongo.database.Database[dict[str, Any]]:
        """As another program sees it."""
        client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
            f"mongodb://{self.hosts}/?directConnection=true", tz_aware=True
        )
        return client[DATABASE]


@functools.cache
def ferret() -> Path:
    """Built, if it is not there yet. Skips the test if it cannot be had."""
    program, source = _ROOT / ".cache" / "ferret" / "ferretdb", _ROOT / "tests" / "ferret"
    program.parent.mkdir(parents=True, exist_ok=True)
    with open(program.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of several processes of tests builds it
        if program.exists() and program.stat().st_mtime > max(path.stat().st_mtime for path in source.iterdir()):
            return program
        if shutil.which("go") is None:
            pytest.skip("there is no mongod here, and no go to build FerretDB")
        new = program.with_suffix(".new")
        build = ["go", "build", "-trimpath", "-ldflags=-s -w", "-tags=ferretdb_no_postgresql", "-o", new, "."]
        if subprocess.run(build, cwd=source, check=False, timeout=1500).returncode:
            pytest.skip("there is no mongod here, and FerretDB cannot be built: it takes its modules")
        new.rename(program)
    return program


@functools.cache
def shared() -> Mongo:
    """The one of this process of tests, running."""
    mongo = Mongo()
    atexit.register(mongo.stop)
    mongo.start()
    return mongo


@contextlib.contextmanager
def own() -> Iterator[Mongo]:
    """One that a test may kill."""
    mongo = Mongo()
    try:
        mongo.start()
        yield mongo
    finally:
        mongo.stop()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        found: int = one.getsockname()[1]
        return found
