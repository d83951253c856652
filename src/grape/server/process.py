"""The engine process of one app, as the server sees it: asked to describe itself, to open, to begin, to stop.

Its connection has a thread of its own; everything here belongs to the loop of the server.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, Final

from grape.client.connection import Connection
from grape.client.launching import spawn_engine
from grape.client.waiting import here
from grape.host.options import Options
from grape.model.topology import TopologySpec
from grape.processes.output import Line
from grape.protocol.door import Begin, Open, Stop
from grape.protocol.outcomes import Outcomes
from grape.server.log import AppLog

_PATIENT_STOPS: Final = 2
_READ: Final = 64 << 10


class EngineProcess:
    """Started when it is made.

    Args:
        log: gets lines for people, those of the engine on the connection's thread.
    """

    def __init__(self, options: Options, log: AppLog) -> None:
        self._log = log
        self._stderr, stderr = os.pipe()
        os.set_blocking(self._stderr, False)
        try:
            self._launched = spawn_engine(options, stderr)
        except BaseException:
            os.close(self._stderr)
            raise
        finally:
            os.close(stderr)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._stderr, self._printed)
        self._connection = Connection(self._launched.end, self._launched.how_it_ended)
        self._code = options.code.removeprefix("version ")
        self._connection.said = lambda said: log.said(said, self._code)
        self._stops = 0
        self._connection.start()

    async def described(self) -> TopologySpec:
        """
        Raises:
            UserError: the app cannot be loaded.
            EngineError: it died.
        """
        return (await here(self._connection.described)).topology

    async def begin(self) -> None:
        """Open the directory, and serve.

        Raises:
            GrapeError: it cannot.
        """
        self._connection.send(Open())
        await here(self._connection.opened)
        self._connection.send(Begin())
        await here(self._connection.begun)

    async def ask(self, verb: str, argument: Any = None) -> Any:
        """The answer as it is packed.

        Raises:
            GrapeError: there is none.
        """
        return await here(self._connection.ask_verb(verb, argument))

    def stop(self) -> None:
        """What runs is committed, the rest stays. Again: at once. Once more: it is killed."""
        self._stops += 1
        self._connection.send(Stop())
        if self._stops > _PATIENT_STOPS:
            self._launched.kill()

    def kill(self) -> None:
        self._launched.kill()

    async def ended(self) -> Outcomes:
        """When nothing is left of it.

        Raises:
            GrapeError: it could not begin, or not go on.
        """
        try:
            return await here(self._connection.ended)
        finally:
            await self._loop.run_in_executor(None, self._bury)
            self._close_stderr()

    def _printed(self) -> None:
        """By its interpreter, or a library: of what it means to say it hands in records."""
        try:
            data = os.read(self._stderr, _READ)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._stderr)
        for line in data.decode("utf-8", "replace").splitlines():
            if line.strip():
                self._log.add("engine", Line("stderr", "", line), self._code)

    def _close_stderr(self) -> None:
        if self._stderr >= 0:
            self._printed()
            self._loop.remove_reader(self._stderr)
            os.close(self._stderr)
            self._stderr = -1

    def _bury(self) -> None:
        self._connection.close()
        self._launched.join()
