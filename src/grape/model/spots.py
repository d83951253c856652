"""Ids of what lies in a data directory: of dead letters, of held events, and of events that wait in a log."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from grape.errors import UsageError
from grape.model.address import PartitionId
from grape.model.near import did_you_mean
from grape.model.stored import NO_POOLS, SOURCE, AppRecord

_DEAD: Final = re.compile(r"(?P<log>.+)\.(?P<partition>\d{1,5})-(?P<stopped>h?)(?P<number>\d{1,19})", re.DOTALL)
_BAD_INPUT: Final = re.compile(r"(?P<event>.+):(?P<log>\d{1,5})-(?P<number>\d{1,19})", re.DOTALL)
_SPOT: Final = re.compile(r"(?P<log>.+)\.(?P<partition>\d{1,5}):(?P<position>\d{1,18})(\.(?P<index>\d{1,9}))?", re.S)


class Place(Struct, frozen=True, order=True):
    """Where a letter lies. ``log``: its name in the catalog; ``stopped``: among the held events, not the dead letters.

    ``id``: ``main.3-17`` is letter 17 of partition 3 of pool ``main``, ``main.3-h17`` a stopped event, ``line:7-0`` an
    input for ``line`` that never became an event, of the source whose log has number 7.
    """

    log: str
    partition: PartitionId
    stopped: bool
    number: int

    @property
    def id(self) -> str:
        if self.log.startswith(SOURCE):
            event = self.log[1:].partition("=")[0]
            return f"{event}:{self.partition.pool}-{self.number}"
        return f"{self.log}.{self.partition.number}-{'h' if self.stopped else ''}{self.number}"


class Spot(Struct, frozen=True, order=True):
    """``main.3:17.2`` is event 2 of the batch at position 17 of partition 3 of pool ``main``; without the last number
    it is the whole batch, which cannot be read (index -1)."""

    log: str
    partition: PartitionId
    position: int
    index: int

    @property
    def id(self) -> str:
        return f"{self.log}.{self.partition.number}:{self.position}{f'.{self.index}' if self.index >= 0 else ''}"


def parse_places(record: AppRecord, texts: Iterable[str]) -> Iterator[Place]:
    """The places that each `Place.id` names.

    Raises:
        UsageError: one is no id of a letter, or of a log or partition that the app does not have.
    """
    logs = {number: log for log, number in record.logs.items()}
    for text in texts:
        yield _place(record, logs, text)


def parse_place(record: AppRecord, text: str) -> Place:
    """As `parse_places`, of one."""
    return next(parse_places(record, [text]))


def _place(record: AppRecord, logs: dict[int, str], text: str) -> Place:
    if (found := _BAD_INPUT.fullmatch(text)) is not None:
        pool = int(found["log"])
        if (log := logs.get(pool, "")).startswith(f"{SOURCE}{found['event']}="):
            return Place(log, PartitionId(record.id, pool, 0), False, _row(text, found["number"]))
        raise UsageError(f"{text}: app {record.name!r} has no source of {found['event']!r} with number {pool}")
    if (found := _DEAD.fullmatch(text)) is None:
        raise UsageError(f"{text!r} is no id of a dead letter, such as main.3-17; `grape dead list` shows them")
    log, n = found["log"], int(found["partition"])
    if log not in record.logs or log.startswith(NO_POOLS):
        pools = [name for name in record.logs if not name.startswith(NO_POOLS)]
        raise UsageError(f"{text}: app {record.name!r} has no pool {log!r}; its pools: {', '.join(pools)}")
    if n >= record.partitions:
        raise UsageError(f"{text}: app {record.name!r} has partitions 0 to {record.partitions - 1}, not {n}")
    return Place(log, PartitionId(record.id, record.logs[log], n), bool(found["stopped"]), _row(text, found["number"]))


def _row(text: str, digits: str) -> int:
    number = int(digits)
    if number >= 1 << 63:
        raise UsageError(f"{text}: there is no letter with such a number")
    return number


def parse_spot(record: AppRecord, text: str) -> Spot:
    """The place that a `Spot.id` names.

    Raises:
        UsageError: it is none of this app.
    """
    found = _SPOT.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is no id of a waiting event, such as main.3:17.2; `grape log list` shows them")
    log, n = found["log"], int(found["partition"])
    if log not in record.logs or log.startswith(NO_POOLS):
        pools = [name for name in record.logs if not name.startswith(NO_POOLS)]
        hint = did_you_mean(log, pools, f"its pools: {', '.join(pools)}")
        raise UsageError(f"{text}: app {record.name!r} has no pool {log!r}; {hint}")
    if n >= record.partitions:
        raise UsageError(f"{text}: app {record.name!r} has partitions 0 to {record.partitions - 1}, not {n}")
    index = -1 if found["index"] is None else int(found["index"])
    return Spot(log, PartitionId(record.id, record.logs[log], n), int(found["position"]), index)


def near(name: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?", or nothing."""
    hint = did_you_mean(name, known)
    return f"; {hint}" if hint else ""
