"""The moments of a calendar: a cron expression in a time zone.

Where clocks are changed it is as with Debian's cron. One that names its hour and minute comes once a day: of an hour
that there is not, at the end of the gap; of one that there is twice, in the first. One with ``*`` for its minute or its
hour (or with seconds) comes by time as it passes, so in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from grape.model.near import did_you_mean

try:
    from cronsim import CronSim, CronSimError
except ImportError:
    CronSim = None  # type: ignore[assignment,misc]

_FIELDS: Final = "minute hour day-of-month month day-of-week"
_WORDS: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_ANY_TIME: Final = datetime(2024, 1, 1, tzinfo=UTC)


class Cron:
    """Times are milliseconds since 1970.

    Args:
        schedule: five fields, or six that begin with the second, or a word as ``@daily``.
        zone: of the IANA database.

    Attributes:
        text: says the same of two that come at the same moments.

    Raises:
        ValueError: there is no such zone, or the schedule is none, and why.
    """

    def __init__(self, schedule: str, zone: str) -> None:
        self._zone = zone_of(zone)
        self.zone: ZoneInfo | None = self._zone
        self._expression = _WORDS.get(schedule.strip().lower(), schedule)
        self.text = f"cron {' '.join(self._expression.split())} {zone}"
        if CronSim is None:
            raise ValueError("schedule: cron needs cronsim: pip install 'grape-engine[server]'")
        try:
            next(CronSim(self._expression, _ANY_TIME))
        except CronSimError as e:
            raise ValueError(f"schedule: {schedule!r:.100}: {_why(str(e), self._expression)}") from None
        except StopIteration:
            raise ValueError(f"schedule: {schedule!r:.100} never comes: there is no such day") from None

    def after(self, at: int, low: int) -> int | None:
        """The first moment behind ``at`` and ``low``; None: there is none."""
        last = max(at, low)
        for moment in self._moments(last, step=0, reverse=False):
            if moment > last:
                return moment
        return None

    def back(self, at: int, high: int) -> Iterator[int]:
        """Those behind ``at``, up to ``high``, the newest first."""
        for moment in self._moments(high, step=1, reverse=True):
            if moment <= at:
                return
            if moment <= high:
                yield moment

    def _moments(self, at: int, *, step: int, reverse: bool) -> Iterator[int]:
        try:
            start = datetime.fromtimestamp(at // 1000 + step, self._zone)
            for moment in CronSim(self._expression, start, reverse=reverse):
                yield int(moment.timestamp()) * 1000
        except (OverflowError, ValueError):  # the calendar is over
            return


class Every:
    """Moments that are so many milliseconds apart, counted from the last one that there was."""

    zone: ZoneInfo | None = None

    def __init__(self, every: int) -> None:
        self._every = every
        self.text = f"every {every}"

    def after(self, at: int, low: int) -> int | None:
        """As of `Cron`."""
        return at + self._every * (max(0, low - at) // self._every + 1)

    def back(self, at: int, high: int) -> Iterator[int]:
        """As of `Cron`."""
        for count in range((high - at) // self._every, 0, -1):
            yield at + self._every * count


def zone_of(name: str) -> ZoneInfo:
    """
    Raises:
        ValueError: there is none.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        known = available_timezones()
        last = {zone.rpartition("/")[2]: zone for zone in sorted(known, reverse=True)}
        near = last.get(name.replace(" ", "_").title())
        hint = f"did you mean {near!r}?" if near else did_you_mean(name, known, "one is 'Europe/Berlin'")
        raise ValueError(f"zone: there is no time zone {name!r:.80}; {hint}") from None


def text_of(moment: int, zone: ZoneInfo | None) -> str:
    """As ISO 8601 writes it."""
    when = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=moment)
    return when.astimezone(zone or UTC).isoformat(timespec="milliseconds" if moment % 1000 else "seconds")


def _why(said: str, expression: str) -> str:
    fields = expression.split()
    if said.startswith("Wrong number"):
        return f"it has {len(fields)} fields, not 5: {_FIELDS}"
    name = said.removeprefix("Bad ")
    names = _FIELDS.split() if len(fields) == 5 else ["second", *_FIELDS.split()]
    value = fields[names.index(name)] if name in names else ""
    return f"{value!r:.40} cannot be its {name}"
