"""The thread that a run lives on: its loop, who wakes it, and why it ends."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Callable
from typing import Any, Final

from grape.errors import EngineError, GrapeError, Interrupted

_SOON: Final = 0.005
_TOO_EARLY: Final = "stopped before the app was loaded"


class Host:
    """Everything but ``stop`` and ``call`` happens on the thread that called ``begin``.

    Args:
        abandon: called with the reason when what is still awaited at the start is not to be awaited any more.

    Attributes:
        is_stopping: what runs is committed, the rest stays. is_aborting: not even that.
        fatal: what cannot be gone on from.
    """

    def __init__(self, abandon: Callable[[GrapeError], None]) -> None:
        self.is_stopping = False
        self.is_aborting = False
        self.fatal: GrapeError | None = None
        self._abandon = abandon
        self._has_happened = False
        self._is_stirred = False
        self._waiting: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beginning = threading.Lock()

    def begin(self) -> None:
        """On the loop that it will be.

        Raises:
            Interrupted: it was stopped before.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._bug)
        with self._beginning:
            self._loop = loop
        self.check_begun()

    def _bug(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something failed that nobody expected: an engine in an unknown state must not go on."""
        error = context.get("exception")
        trace = "".join(traceback.format_exception(error)) if error is not None else ""
        self.stop_with(EngineError(f"the engine failed, which is a bug in it: {context.get('message')}\n{trace}"))

    @property
    def is_draining(self) -> bool:
        """It ends in order: what is under way is still committed."""
        return self.is_stopping and not self.is_aborting and self.fatal is None

    # ------------------------------------------------------------------ from other threads

    def stop(self) -> None:
        """Sources stop, what runs is committed, the rest stays. Called again: stop at once."""
        with self._beginning:
            if self._loop is None:
                self.is_stopping = True
                return
        self.call(self._stop)

    def call(self, function: Callable[[], None]) -> None:
        """Run on the host's thread.

        Raises:
            RuntimeError: its loop is closed.
        """
        assert self._loop is not None
        self._loop.call_soon_threadsafe(function)

    # ------------------------------------------------------------------ on its own

    def _stop(self) -> None:
        self.is_aborting = self.is_aborting or self.is_stopping
        self.is_stopping = True
        self._abandon(Interrupted(_TOO_EARLY))
        self.wake()

    def check_begun(self) -> None:
        """At the start.

        Raises:
            Interrupted: it is to stop.
        """
        if self.is_stopping:
            raise Interrupted(_TOO_EARLY)

    def stop_with(self, error: GrapeError) -> None:
        """It cannot be gone on; the first reason counts."""
        if self.fatal is None:
            self.fatal = error
        self._abandon(error)
        self.wake()

    def check(self) -> None:
        """
        Raises:
            GrapeError: it cannot be gone on.
        """
        if self.fatal is not None:
            raise self.fatal

    def later(self, delay: float, function: Callable[[], None]) -> None:
        """Run in ``delay`` seconds."""
        assert self._loop is not None
        self._loop.call_later(delay, function)

    def soon(self, function: Callable[[], None]) -> None:
        """Run when what is being done is done."""
        assert self._loop is not None
        self._loop.call_soon(function)

    def stir(self) -> None:
        """Something has happened that is looked at soon, with all that happens meanwhile: it happens with every
        message, and each look is a turn of the loop."""
        if not self._is_stirred and self._loop is not None:
            self._is_stirred = True
            self._loop.call_later(_SOON, self.wake)

    def wake(self) -> None:
        """Something has happened that is looked at now."""
        self._is_stirred = False
        self._has_happened = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def look_anew(self) -> None:
        """What happened up to here has been seen; what happens from now on wakes it."""
        self._has_happened = False

    async def wait(self, seconds: float) -> None:
        """Until something happens, or so long; all others have their turn in any case."""
        if self._has_happened:
            await asyncio.sleep(0)
            return
        assert self._loop is not None
        self._waiting = self._loop.create_future()
        timer = self._loop.call_later(seconds, self.wake)
        try:
            await self._waiting
        finally:
            timer.cancel()
            self._waiting = None
