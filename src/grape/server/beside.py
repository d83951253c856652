"""Processes that a server keeps beside its engines: each does one thing for all apps, holds nothing that would be lost
with it, and is started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from grape.server.keeper import Keeper
from grape.server.log import Say
from grape.server.telling import listen

_CODE: Final = (
    "import sys; sys.path[:0] = [sys.argv.pop(1)]; sys.path += sys.argv[2:]; from grape.{} import main; main()"
)
_KEPT: Final = ("PATH", "LANG", "LC_ALL", "TZ")
"""Of the server's environment, in which there may be secrets of apps."""
_GRACE: Final = 30.0
_LAST_WORDS: Final = 1.0


class Beside(Protocol):
    """What a server has of such processes, of one kind."""

    def step(self) -> None:
        """Do what is to be done now."""

    def dues(self) -> list[float]:
        """When there will be something to do though nothing has happened."""

    async def close(self) -> None:
        """They finish what is under way, and end."""


class SideProcess:
    """One of them. Everything belongs to the server's loop.

    Args:
        name: for people. module: below ``grape``, whose ``main`` it runs. options: its argument, as JSON.
        say: a line for people; so is what it logs. changed: called when there may be something to do.
        fds: descriptors that it inherits, under the same numbers. env: variables that it gets beside the usual ones.
    """

    def __init__(
        self,
        name: str,
        module: str,
        options: Any,
        say: Say,
        changed: Callable[[], None],
        fds: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._name = name
        own = str(Path(__file__).parents[2])
        others = [path for path in sys.path if path and path != own]
        argument = msgspec.json.encode(options).decode()
        self._command = [sys.executable, "-I", "-c", _CODE.format(module), own, argument, *others]
        self._say = say
        self._changed = changed
        self._fds = tuple(fds)
        self._env = dict(env or {})
        self._keeper = Keeper(time.monotonic())
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    def want(self, *, runs: bool) -> None:
        """It is to be there, or not; asked for the same again nothing changes."""
        if runs != self._keeper.is_wanted:
            self._keeper.want(time.monotonic(), runs=runs)

    def step(self) -> None:
        """Do what is to be done now."""
        match self._keeper.step(time.monotonic()):
            case "start":
                self._task = asyncio.ensure_future(self._run())
            case "stop" if self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.terminate()

    async def gone(self) -> None:
        """When it has ended, after it was told to; at once if it does not run."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def due(self) -> float | None:
        """When to ask again, if nothing happens before."""
        return self._keeper.due()

    async def _run(self) -> None:
        keeper = self._keeper
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=self._fds,
                env={**{name: os.environ[name] for name in _KEPT if name in os.environ}, **self._env},
                start_new_session=True,
            )
        except OSError as e:  # no process more, say
            why = f"{self._name} cannot be started: {e.strerror or e}"
        else:
            keeper.begun(time.monotonic())
            if keeper.state != "running":  # it was told to end before there was a process to tell
                self._process.terminate()
            assert self._process.stderr is not None
            heard = asyncio.ensure_future(listen(self._process.stderr, self._heard))
            why = f"{self._name} has ended with code {await self._process.wait()}"
            await asyncio.wait([heard], timeout=_LAST_WORDS)
            heard.cancel()
            self._process = None
        if keeper.is_wanted:
            self._say(f"{why}; it is started again", "warning")
        keeper.ended(time.monotonic(), why)
        self._changed()

    def _heard(self, text: str, level: str) -> None:
        self._say(text, level, self._name)

    async def close(self) -> None:
        """It finishes what is under way, and ends."""
        self.want(runs=False)
        self.step()
        if self._task is not None:
            _, late = await asyncio.wait([self._task], timeout=_GRACE)
            if late and self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
