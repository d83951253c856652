"""The apps of a server that run, each with a task of its own as long as it does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

from grape.server.neighbours import Running


class RunningApps:
    """
    Args:
        running: asks the server which apps run, once that is something else than what the argument says.
        serve: what is done for an app; it ends once the app is no more in `now`.

    Attributes:
        now: as the server said last.
    """

    def __init__(
        self,
        running: Callable[[Running], Awaitable[Running]],
        serve: Callable[[str], Coroutine[object, object, None]],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.now = Running()
        self._running = running
        self._serve = serve
        self._changed = changed
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def follow(self) -> None:
        """For ever.

        Raises:
            GrapeError: the server is gone.
        """
        while True:
            self.now = await self._running(self.now)
            for name in self.now.apps:
                if name not in self._tasks:
                    task = self._tasks[name] = asyncio.ensure_future(self._serve(name))
                    task.add_done_callback(lambda _, name=name: self._tasks.pop(name, None))  # type: ignore[misc]
            self._changed()
