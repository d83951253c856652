"""Emulators of Google's and Azure's storage, for tests: fake-gcs-server behind a door that speaks Google's XML
(tests/gcs), which is built once, and Azurite, which npm installs once.

One of each per process of tests, on a free port of this machine alone. It ends with the process that started it,
whatever becomes of that.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import email.utils
import fcntl
import functools
import hashlib
import hmac
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

import psutil
import pytest

from contract.weed import until

BUCKET: Final = "grape-tests"
TOKEN: Final = "secret-token-of-the-tests"
ACCOUNT: Final = "devstoreaccount1"
KEY: Final = base64.b64encode(b"secret key of the tests".ljust(64, b".")).decode()
AZURITE: Final = "3.35.0"
_ROOT: Final = Path(__file__).parents[2]
_READY: Final = 60.0

os.environ["GOOGLE_BEARER_TOKEN"] = TOKEN
os.environ["AZURE_STORAGE_ACCOUNT_NAME"], os.environ["AZURE_STORAGE_ACCOUNT_KEY"] = ACCOUNT, KEY


class Answer(NamedTuple):
    """``headers``: names in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes


class Emulator(ABC):
    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="grape-cloud-"))
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]: ...

    @abstractmethod
    def ask(
        self, method: str, path: str, query: str = "", headers: Mapping[str, str] = {}, body: bytes = b""
    ) -> Answer:
        """As another program does; ``path`` and ``query`` are encoded. Status 0: nobody answers."""

    @abstractmethod
    def is_ready(self) -> bool:
        """It has the bucket, which this makes."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it takes writes."""
        environment = {**os.environ, "HOME": str(self.root), "TMPDIR": str(self.root)}
        with open(self.root / "log", "ab") as log:
            self._process = subprocess.Popen(
                # It dies with this process, or thread, whatever becomes of that.
                ["setpriv", "--pdeathsig", "KILL", *self.command()],
                cwd=self.root,
                env={**environment, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        def is_ready() -> bool:
            if self._running.poll() is not None:
                raise RuntimeError(f"the emulator has ended:\n{self.log()}")
            return self.is_ready()

        until(is_ready, _READY, self.log)

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def kill(self) -> None:
        """Without a word, as if the machine had gone."""
        self._running.send_signal(signal.SIGKILL)
        self._running.wait()
        self._process = None

    def stall(self) -> None:
        """It answers nothing, and takes no connection back."""
        self._running.send_signal(signal.SIGSTOP)
        process = psutil.Process(self._running.pid)
        until(lambda: process.status() == psutil.STATUS_STOPPED, 10)

    def go_on(self) -> None:
        self._running.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None:
            self.kill()
        shutil.rmtree(self.root, ignore_errors=True)

    def log(self) -> str:
        return (self.root / "log").read_text(errors="replace")[-3000:]

    def _request(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, target, body, dict(headers))
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        except OSError:
            return Answer(0, {}, b"")
        finally:
            connection.close()


class Google(Emulator):
    def command(self) -> list[str]:
        (self.root / "data").mkdir(exist_ok=True)
        listen = f"127.0.0.1:{self.port}"
        return [str(google()), "-listen", listen, "-directory", str(self.root / "data"), "-token", TOKEN]

    def ask(
        self, method: str, path: str, query: str = "", headers: Mapping[str, str] = {}, body: bytes = b""
    ) -> Answer:
        target = f"/{BUCKET}/{path}?{query}" if query else f"/{BUCKET}/{path}"
        return self._request(method, target, {"authorization": f"Bearer {TOKEN}", **headers}, body)

    def is_ready(self) -> bool:
        made = {"content-type": "application/json"}, json.dumps({"name": BUCKET}).encode()
        return self._request("POST", "/storage/v1/b", *made).status in (200, 409)


class GoogleInMemory(Google):
    def command(self) -> list[str]:
        return [str(google()), "-listen", f"127.0.0.1:{self.port}", "-token", TOKEN]


class Azure(Emulator):
    def command(self) -> list[str]:
        program = ["node", str(azurite()), "--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--silent"]
        return [*program, "--location", str(self.root / "data"), "--disableTelemetry", "--skipApiVersionCheck"]

    @property
    def endpoint(self) -> str:
        return f"{super().endpoint}/{ACCOUNT}"

    def ask(
        self, method: str, path: str, query: str = "", headers: Mapping[str, str] = {}, body: bytes = b""
    ) -> Answer:
        where = f"/{ACCOUNT}/{BUCKET}/{path}" if path else f"/{ACCOUNT}/{BUCKET}"
        own = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
        told = {**own, **{name.lower(): value for name, value in headers.items()}}
        length = str(len(body)) if body else ""
        asked = "".join(f"\n{name}:{value}" for name, value in sorted(parse_qsl(query, keep_blank_values=True)))
        signed = "\n".join(
            [method, "", "", length, "", told.get("content-type", ""), *[""] * 6]
            + [f"{name}:{value}" for name, value in sorted(told.items()) if name.startswith("x-ms-")]
            + [f"/{ACCOUNT}{where}{asked}"]
        )
        sign = base64.b64encode(hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()).decode()
        told |= {"authorization": f"SharedKey {ACCOUNT}:{sign}", "content-length": str(len(body))}
        return self._request(method, f"{where}?{query}" if query else where, told, body)

    def is_ready(self) -> bool:
        return self.ask("PUT", "", "restype=container").status in (201, 409)


def shared_access(right: str) -> str:
    """A signature by which Azure lets one into the container, to do this alone: "rl" reads and lists."""
    expires, version = "2100-01-01T00:00:00Z", "2020-12-06"
    signed = [right, "", expires, f"/blob/{ACCOUNT}/{BUCKET}", "", "", "", version, "c", *[""] * 7]
    sign = base64.b64encode(hmac.new(base64.b64decode(KEY), "\n".join(signed).encode(), hashlib.sha256).digest())
    return urlencode({"sp": right, "se": expires, "sv": version, "sr": "c", "sig": sign.decode()})


def there(path: str) -> str:
    return quote(path, safe="/")


def google() -> Path:
    """Built, if it is not there yet. Skips the test if it cannot be had."""
    source, program = _ROOT / "tests" / "gcs", _ROOT / ".cache" / "gcs" / "gcs"
    with _alone(program.parent):
        if program.exists() and program.stat().st_mtime > max(path.stat().st_mtime for path in source.iterdir()):
            return program
        if shutil.which("go") is None:
            pytest.skip("there is no go to build the emulator of Google's storage")
        new = program.with_suffix(".new")
        build = ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", str(new), "."]
        if subprocess.run(build, cwd=source, check=False, timeout=1500).returncode:
            pytest.skip("the emulator of Google's storage cannot be built: it takes its modules")
        new.rename(program)
    return program


def azurite() -> Path:
    """Installed, if it is not there yet. Skips the test if it cannot be had."""
    place = _ROOT / ".cache" / f"azurite-{AZURITE}"
    program = place / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    with _alone(place):
        if (place / "ready").exists():
            return program
        if shutil.which("npm") is None:
            pytest.skip("there is no npm to install Azurite")
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(place)]
        if subprocess.run([*install, f"azurite@{AZURITE}"], check=False, timeout=600).returncode:
            pytest.skip("Azurite cannot be installed: it takes its packages")
        (place / "ready").touch()
    return program


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One of several processes of tests."""
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


E = TypeVar("E", bound=Emulator)


@functools.cache
def shared(kind: Callable[[], E]) -> E:
    """The one of this process of tests, running."""
    emulator = kind()
    atexit.register(emulator.stop)
    emulator.start()
    return emulator


@contextlib.contextmanager
def own(kind: Callable[[], E]) -> Iterator[E]:
    """One that a test may kill."""
    emulator = kind()
    try:
        emulator.start()
        yield emulator
    finally:
        emulator.stop()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        found: int = one.getsockname()[1]
        return found
