"""What is to be done with the engine of one app: a state machine that takes the time as an argument and does nothing.

    stopped -> starting -> running -> stopping -> stopped
                  |           |
                  v           v
               broken      waiting (back-off) -> starting

*parked*: it has nothing to do, and needs no process until somebody wants something of it or something is due.
*broken*: it could not begin, and would not the next time either: its code, its manifest or its directory have to be
changed. *waiting*: it died; it is started again, after longer and longer pauses while it keeps dying.
"""

from __future__ import annotations

from typing import Final, Literal

State = Literal["stopped", "starting", "running", "stopping", "waiting", "broken", "parked"]
Step = Literal["start", "stop"]

STABLE: Final = 60.0
"""Seconds after which one that runs has left its crashes behind."""
LONGEST: Final = 32.0


class Keeper:
    """
    Attributes:
        state: of its engine. since: when that began, seconds of any clock that the caller uses.
        why: it does not run, in words.
        crashes: in a row. deaths: of all time.
    """

    def __init__(self, now: float, deaths: int = 0) -> None:
        self.state: State = "stopped"
        self.since = now
        self.why = ""
        self.crashes = 0
        self.deaths = deaths
        self.is_wanted = False
        self._until: float | None = 0.0
        self._again = False
        self._parks = False

    def want(self, now: float, *, runs: bool, again: bool = False) -> None:
        """The operator says so. What is broken is tried again. ``again``: one that runs is stopped first."""
        self.is_wanted = runs
        self._again = again and runs and self.state in ("starting", "running")
        self._parks = self._parks and runs
        if self.state in ("broken", "waiting", "parked"):
            self.crashes = 0
            self._be("stopped", now)

    def park(self, now: float) -> None:
        """One that runs has nothing to do: it is stopped, and parked then."""
        if self.state == "running" and self.is_wanted:
            self._parks = True

    def parked(self, now: float, due: float | None) -> None:
        """It is, from the beginning or as it has ended. ``due``: when it has something to do again."""
        self._parks = False
        self._be("parked", now)
        self._until = due

    @property
    def is_parking(self) -> bool:
        """It is being stopped for that."""
        return self._parks

    def wake(self, now: float) -> None:
        """Somebody wants something of it."""
        self._parks = False
        if self.state == "parked":
            self._be("stopped", now)

    @property
    def is_to_stop_first(self) -> bool:
        """It runs, and is asked to stop and start."""
        return self._again

    def step(self, now: float) -> Step | None:
        """What is to be done now; it counts as begun."""
        if self.state in ("waiting", "parked"):
            is_due = self._until is not None and now >= self._until
            if not self.is_wanted or is_due:
                self._be("stopped", now)
        if self.state == "stopped" and self.is_wanted:
            self._be("starting", now)
            return "start"
        if self.state in ("starting", "running") and (not self.is_wanted or self._again or self._parks):
            self._again = False
            self._be("stopping", now)
            return "stop"
        return None

    def due(self) -> float | None:
        """When to ask again, if nothing happens before."""
        return self._until if self.state in ("waiting", "parked") else None

    def begun(self, now: float) -> None:
        """Its engine takes events."""
        if self.state == "starting":
            self._be("running", now)

    def ended(self, now: float, why: str = "", *, is_hopeless: bool = False) -> None:
        """Its engine is gone. ``why``: if nobody had asked for it. ``is_hopeless``: the same would happen again."""
        self._parks = False
        if self.state == "stopping" or not why:
            self._be("stopped", now, why)
            return
        self.deaths += 1
        if is_hopeless:
            self._be("broken", now, why)
            return
        if self.state == "running" and now - self.since >= STABLE:
            self.crashes = 0
        self.crashes += 1
        self._be("waiting", now, why)
        self._until = now + (0.0 if self.crashes == 1 else min(LONGEST, 2.0 ** min(self.crashes - 2, 10)))

    def _be(self, state: State, now: float, why: str = "") -> None:
        self.why = why
        self.state = state
        self.since = now
