"""The drivers of an app, as they are shown over HTTP: what the manifest says, what the server knows of now, and how far
each is, by the position of its stream."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import UNSET

from grape.drivers.moments import Moments, MomentsAt
from grape.drivers.objects import ChangedAt
from grape.drivers.spec import STREAM, CronDriver, Driver, HookDriver, ObjectsDriver, TimerDriver, WatchDriver
from grape.drivers.told import DriverInfo
from grape.drivers.watching import SeenAt
from grape.gateway.looking import in_text
from grape.model.address import PartitionId
from grape.model.names import own_namespace
from grape.model.stored import SOURCE, AppRecord, SourceHead, decode_source
from grape.tools.directory import Directory, decoded

_COMING: Final = 3
"""Moments that are told of."""


def positions(directory: Directory, record: AppRecord) -> dict[str, SourceHead]:
    """What is stored of the streams of drivers, by name of the driver.

    Raises:
        Corrupt: one cannot be read.
    """
    found: dict[str, SourceHead] = {}
    prefix = SOURCE + STREAM
    for log, number in record.logs.items():
        if log.startswith(prefix):
            head = directory.reader.head(PartitionId(record.id, number, 0))
            if head is not None and head.head:
                found[log.removeprefix(prefix)] = decoded(decode_source, head.head, "head of a source")
    return found


def shown(
    app: str,
    infos: Sequence[DriverInfo],
    drivers: Mapping[str, Driver],
    stored: Mapping[str, SourceHead],
    *,
    runs: bool,
) -> list[dict[str, Any]]:
    """All that can be told of them. ``drivers``: as the manifest says. ``runs``: the app is to run. Blocking."""
    return [
        {
            **msgspec.structs.asdict(info),
            **({} if info.name not in drivers else _of(app, info, drivers[info.name], stored.get(info.name), runs)),
        }
        for info in infos
    ]


def _of(app: str, info: DriverInfo, driver: Driver, stored: SourceHead | None, runs: bool) -> dict[str, Any]:
    """Never a secret, nor where one lies."""
    events = None if isinstance(driver, HookDriver) else 0 if stored is None else stored.fed
    found: dict[str, Any] = {"key": getattr(driver, "key", None) or None, "events": events, "last": info.last}
    position = b"" if stored is None else stored.position
    match driver:
        case CronDriver():
            found |= {"schedule": driver.schedule, "zone": driver.zone, **_moments(driver, position, runs)}
        case TimerDriver():
            found |= {"every": float(driver.every), **_moments(driver, position, runs)}
        case WatchDriver():
            seen = _read(position, SeenAt)
            found |= {
                "path": driver.path,
                "pattern": driver.pattern,
                "interval": float(driver.interval),
                "settle": float(driver.settle),
                "files": 0 if seen is None else len(seen.seen) // 16,
            }
            found["last"] = info.last or (None if seen is None else seen.fired / 1e3 or None)
        case ObjectsDriver():
            at = _read(position, ChangedAt)
            found |= {
                "path": f"{driver.namespace or own_namespace(app)}/{driver.prefix}",
                "position": None if at is None else at.position,
                "interval": float(driver.interval),
            }
            found["last"] = info.last or (None if at is None else at.fired / 1e3 or None)
        case HookDriver():
            header, path = driver.id_of
            found |= {
                "path": f"/apps/{app}/hooks/{info.name}",
                "scheme": driver.scheme,
                "id": f"header {header}" if header else path,
                "headers": driver.headers,
                "max_body": int(driver.max_body),
            }
    return found


def _moments(driver: CronDriver | TimerDriver, position: bytes, runs: bool) -> dict[str, Any]:
    """How far it is, and what comes. A position of another schedule says nothing of this one."""
    moments = driver.moments()
    stored = _read(position, MomentsAt)
    if stored is not None and stored.schedule != moments.schedule.text:
        stored = None
    fired = None if stored is None else stored.fired / 1e3 or None
    return {
        "catch_up": driver.catch_up,
        "grace": float(driver.grace),
        "data": None if driver.data is UNSET else in_text("data", driver.data)["data"],
        "done_up_to": None if stored is None else stored.at / 1e3,
        **({} if fired is None else {"last": fired}),
        "coming": _coming(moments, stored) if runs else [],
    }


def _coming(moments: Moments, stored: MomentsAt | None) -> list[dict[str, Any]]:
    """The next ones: when, and as clocks in the schedule's zone show it."""
    schedule = moments.schedule
    if stored is None and schedule.zone is None:
        return []  # it is counted from when it is first there
    now = time.time_ns() // 1_000_000
    found: list[dict[str, Any]] = []
    at = now if stored is None else stored.at
    low = now
    while len(found) < _COMING and (moment := schedule.after(at, low)) is not None:
        clock = datetime.fromtimestamp(moment // 1_000, schedule.zone) if schedule.zone else None
        found.append(
            {"at": moment / 1e3, "clock": None if clock is None else clock.strftime("%a %Y-%m-%d %H:%M:%S %Z")}
        )
        low = moment
    return found


def _read(position: bytes, kind: type[Any]) -> Any:
    """None: there is none, or it is of another kind of driver."""
    try:
        return msgspec.msgpack.decode(position, type=kind)
    except msgspec.MsgspecError:
        return None
