"""``grape app dev``: an app while it is being written. A server of its own runs what lies in the directory, and the
next version as soon as a file changes."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer

from grape.apps.package import entries_of, pack
from grape.cli.console import complain, put, say
from grape.cli.home import or_exit
from grape.client.connection import dial_server
from grape.errors import GrapeError, UsageError
from grape.model.section import Duration
from grape.protocol.trial import Trial
from grape.server.config import ServerConfig
from grape.server.home import Home
from grape.server.hosted import AppInfo
from grape.server.log import LogKind, ServerLog
from grape.server.supervisor import Change, Named, Supervisor, Upload, Uploaded

T = TypeVar("T")

_LOOK: Final = 0.2
OWN_HOME: Final = ".grape"
"""Hidden, so that it is no part of the app."""


def dev(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="The directory that has the grape.toml.")] = ".",
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where HTTP and the dashboard are served.")] = (
        "127.0.0.1:8080"
    ),
    drop_slots: Annotated[
        bool, typer.Option("--drop-slots", help="Drop what waits for a slot that is no more, without asking.")
    ] = False,
) -> None:
    """Run the app in DIR while you write it: it is deployed anew as soon as a file changes, and what it prints is
    shown. What it has stored stays, in DIR/.grape; a version that cannot run changes nothing.

    \b
    grape app dev ./orders
    grape call orders@order '{"count": 3}' --key nails --home ./orders/.grape     # in another terminal
    """
    place = Path(directory)
    or_exit(lambda: _check(place))
    or_exit(lambda: asyncio.run(_Dev(place, listen, drops=drop_slots).run()))


def _check(place: Path) -> None:
    if not (place / "grape.toml").is_file():
        raise UsageError(f"{place}: there is no grape.toml in it; docs/apps.md says what belongs into it")


class _Dev:
    def __init__(self, directory: Path, listen: str, *, drops: bool) -> None:
        self._directory = directory
        self._home = Home(directory / OWN_HOME)
        self._config = ServerConfig(listen=listen, park_after=Duration(0))
        self._drops = drops

    async def run(self) -> None:
        server = Supervisor(self._home, ServerLog(None, LogKind(), say).say, self._config)
        serving = asyncio.ensure_future(server.serve())
        watching = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait([serving, watching], return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
            await serving
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError, GrapeError):
                await watching

    async def _watch(self) -> None:
        printing: asyncio.Task[None] | None = None
        deployed: object = None
        while True:
            seen = self._seen()
            await asyncio.sleep(_LOOK)
            if seen == deployed or seen != self._seen():  # somebody is writing
                continue
            deployed = seen
            began = time.monotonic()
            try:
                info = await asyncio.to_thread(self._deploy)
            except GrapeError as e:
                complain(str(e))
                continue
            say(f"{info.name} {info.version} {info.digest[:12]} runs ({time.monotonic() - began:.1f} s)", "green")
            if printing is None:
                printing = asyncio.ensure_future(_print(self._home.log(info.name)))

    def _seen(self) -> object:
        """Something else once a file is."""
        try:
            entries = entries_of(self._directory)
        except (GrapeError, OSError) as e:  # whoever deploys hears of it
            return str(e)
        found = []
        for entry in entries:
            with contextlib.suppress(OSError):
                about = entry.place.stat()
                found.append((entry.path, about.st_size, about.st_mtime_ns, about.st_mode))
        return found

    def _deploy(self) -> AppInfo:
        """
        Raises:
            GrapeError: it cannot run, and why.
        """
        with tempfile.TemporaryDirectory(prefix="grape-") as folder:
            file = Path(folder) / "app.tar.gz"
            pack(self._directory, file)
            uploaded = self._ask("upload", Upload(str(file)), Uploaded)
        info = self._ask("app", Named(uploaded.name), AppInfo)
        if not info.serves:
            if info.digest != uploaded.digest:
                self._ask("change", Change(uploaded.name, uploaded.digest), AppInfo)
            return self._ask("start", Named(uploaded.name), AppInfo)
        if info.digest == uploaded.digest:
            return info
        drops = self._gone(uploaded) if self._drops else ()
        return self._ask("change", Change(uploaded.name, uploaded.digest, drops), AppInfo)

    def _gone(self, uploaded: Uploaded) -> tuple[str, ...]:
        return self._ask("trial", Change(uploaded.name, uploaded.digest), Trial).slots_gone

    def _ask(self, verb: str, argument: Any, kind: type[T]) -> T:
        connection = dial_server(str(self._home.path)).start()
        try:
            return msgspec.msgpack.decode(connection.ask_verb(verb, argument).result(), type=kind)
        finally:
            connection.close()


async def _print(path: Path) -> None:
    async for line in _lines(path):
        put(line)


async def _lines(path: Path) -> AsyncIterator[str]:
    """What comes into the log, also when it is turned over."""
    at, number, rest = 0, 0, b""
    while True:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            about = path.stat()
            if about.st_ino != number:
                at, number, rest = 0, about.st_ino, b""
            file.seek(at)
            text = rest + file.read()
            at = file.tell()
            *lines, rest = text.split(b"\n")
            for line in lines:
                yield line.decode("utf-8", "replace")
        await asyncio.sleep(_LOOK)
