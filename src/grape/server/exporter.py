"""The process that hands traces to a collector: it runs if the server's environment says which."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final

from grape.errors import UsageError
from grape.server.beside import SideProcess
from grape.server.home import Home
from grape.server.hosted import Hosted
from grape.server.log import Say
from grape.traces.settings import PREFIX, settings_of

_BESIDE: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR")


class TraceExport:
    """Everything belongs to the server's loop.

    Args:
        apps: of the server. say: a line for people. changed: called when there may be something to do.
    """

    def __init__(self, home: Home, apps: Mapping[str, Hosted], say: Say, changed: Callable[[], None]) -> None:
        self._apps = apps
        self._is_wanted = False
        try:
            self._is_wanted = settings_of(os.environ) is not None
        except UsageError as e:
            say(f"no traces are exported: {e}", "warning")
        told = {name: value for name, value in os.environ.items() if name.startswith(PREFIX) or name in _BESIDE}
        what = "what exports traces", "traces.process", {"home": str(home.path)}
        self._process = SideProcess(*what, say, changed, env=told)

    def step(self) -> None:
        """Do what is to be done now."""
        self._process.want(runs=self._is_wanted and bool(self._apps))
        self._process.step()

    def dues(self) -> list[float]:
        """When there will be something to do though nothing has happened."""
        due = self._process.due()
        return [] if due is None else [due]

    async def close(self) -> None:
        """It ends; what the collector does not have, the next one sends."""
        await self._process.close()
