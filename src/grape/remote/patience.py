"""What is tried again, when, and what is said when that comes to its end.

Whatever is handed in has an id, so it is safe to try again whatever has happened to it: it is done once. What is not
worth it is refused for good: the user's mistakes, a handler that failed, a token that is not for that.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

from grape.client.programs import UNKNOWN
from grape.errors import GrapeError, NoAnswer
from grape.remote.asked import Heard

FIRST: Final = 0.05
LONGEST: Final = 1.0
"""Seconds between two tries, at first and at most, unless the server says when."""
STRANGER: Final = 5.0
"""Seconds that a server may take to be there if it never was: longer, and the address is likely wrong."""


class Patience:
    """Of one question.

    Args:
        timeout: seconds for all tries together; None: without an end. retries: tries after the first; None: any number.
    """

    def __init__(
        self,
        timeout: float | None,
        retries: int | None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._timeout = timeout
        self._retries = retries
        self._clock = clock
        self._chance = chance
        self._began = self._since = clock()
        self._tries = 0
        self._is_open = False

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._began

    @property
    def left(self) -> float | None:
        """Seconds; None: without an end."""
        return None if self._timeout is None else max(0.0, self._since + self._timeout - self._clock())

    def renew(self, *, is_accepted: bool = False) -> None:
        """It goes on: what comes has all the time again. ``is_accepted``: all that was asked for has been taken."""
        self._since = self._clock()
        self._tries = 0
        self._is_open = self._is_open and not is_accepted

    def after(self, heard: Heard) -> float:
        """Seconds to wait before the next try.

        Raises:
            GrapeError: there is none.
        """
        assert heard.error is not None
        if not heard.again:
            raise heard.error
        self._is_open = self._is_open or heard.is_open
        if self._retries is not None and self._tries >= self._retries:
            raise self._last(heard)
        if heard.is_stranger and self._clock() - self._since > STRANGER:
            raise self._last(heard)
        # All that were refused at the same moment are not to come again at the same moment.
        pause = min(LONGEST, FIRST * 2.0 ** min(self._tries, 10)) * self._chance(0.5, 1.0)
        if heard.pause is not None:
            pause = max(pause, heard.pause * self._chance(1.0, 1.25))
        if self.left is not None and pause >= self.left:
            raise self._last(heard)
        self._tries += 1
        return pause

    def _last(self, heard: Heard) -> GrapeError:
        assert heard.error is not None
        if self._is_open and not isinstance(heard.error, NoAnswer):
            # What refuses now says nothing of the try before it.
            return NoAnswer(f"{heard.error}; {UNKNOWN}")
        return heard.error
