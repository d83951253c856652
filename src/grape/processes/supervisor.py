"""Starts worker processes, and the threads that it takes."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from grape.abc.isolate import Process
from grape.processes.link import Listener, ProcessLink

_REAPERS: Final = 64
"""Threads that clean up after workers, if so many are needed: a full directory of one is not to keep the others."""


class Supervisor:
    """Starts worker processes and ties them to a listener.

    One thread starts all workers of a pool, and lives until `close`: workers die with the thread that started them.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._starters: defaultdict[str, ThreadPoolExecutor] = defaultdict(
            lambda: ThreadPoolExecutor(1, thread_name_prefix="grape-spawn")
        )
        self._reaper = ThreadPoolExecutor(_REAPERS, thread_name_prefix="grape-reap")
        self.links: set[ProcessLink] = set()

    def start(self, pool: str, spawn: Callable[[], Process], kept_lines: int) -> ProcessLink:
        """Start one; ``spawn`` runs on its pool's thread. It ends as any other if it cannot be started."""
        loop = asyncio.get_running_loop()
        link = ProcessLink(loop, self._listener, self._reaper, kept_lines)
        self.links.add(link)

        def started(process: asyncio.Future[Process]) -> None:
            if process.cancelled():
                return
            error = process.exception()
            if error is None:
                link.attach(process.result())
            else:
                link.failed(error)

        loop.run_in_executor(self._starters[pool], spawn).add_done_callback(started)
        return link

    async def on_starter(self, pool: str, function: Callable[[], object]) -> None:
        """Run something on the thread that starts the workers of ``pool``."""
        await asyncio.get_running_loop().run_in_executor(self._starters[pool], function)

    def ended(self, link: ProcessLink) -> None:
        self.links.discard(link)

    def kill_all(self) -> None:
        for link in list(self.links):
            link.kill()

    def close(self) -> None:
        """The threads end, and what they started with them."""
        for starter in self._starters.values():
            starter.shutdown(wait=False, cancel_futures=True)
        self._reaper.shutdown(wait=False)
