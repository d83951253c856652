"""Whether anything may come in from outside, and why not: the one place that can refuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from grape.engine.app import App
from grape.engine.room import RoomWatch
from grape.errors import Runaway, StorageFailed
from grape.model.profile import Profile
from grape.model.section import show_size

_NO_LIMIT: Final = 1 << 62


class Gate:
    """
    Args:
        room: bytes that disk and map can still take.
        reserve: bytes of it at which nothing is taken in any more.
    """

    def __init__(self, app: App, profiles: Mapping[str, Profile], room: Callable[[], int], reserve: int) -> None:
        self._app = app
        self._profiles = profiles
        self._room = room
        self._watch = RoomWatch(reserve)

    def is_open(self, pools: Iterable[str], *, is_of_other: bool = False) -> bool:
        """Whether these pools take more. ``is_of_other``: of what comes from another app. For that it counts not what
        waits for others: two apps that wait for one another would do so for ever, while what waits here is worked
        off."""
        return not self.is_full and (self._is_worked_off(pools) if is_of_other else self.over_limit(pools) is None)

    def _is_worked_off(self, pools: Iterable[str]) -> bool:
        app, profiles = self._app, [self._profiles[name] for name in pools]
        return all(app.backlog_events < p.queue_limit and app.backlog_bytes < p.queue_bytes for p in profiles)

    def over_limit(self, pools: Iterable[str]) -> str | None:
        """In words, what keeps these pools from taking more: the app's backlog is over the limit of one of them."""
        app = self._app
        for name in pools:
            profile = self._profiles[name]
            if app.waiting_events >= profile.queue_limit:
                waiting = f"{app.waiting_events:,} events wait{self._elsewhere()}"
                return f"{waiting}; pool {name!r} takes none over {profile.queue_limit:,}"
            if app.waiting_bytes >= profile.queue_bytes:
                waiting, limit = show_size(app.waiting_bytes), show_size(profile.queue_bytes)
                return f"{waiting} of events wait{self._elsewhere()}; pool {name!r} takes none over {limit}"
        return None

    def room_for(self, pools: Iterable[str]) -> tuple[int, int]:
        """How many events and bytes more these pools take until one is over its limit."""
        app, profiles = self._app, [self._profiles[name] for name in pools]
        events = min((profile.queue_limit for profile in profiles), default=_NO_LIMIT)
        size = min((profile.queue_bytes for profile in profiles), default=_NO_LIMIT)
        return events - app.waiting_events, size - app.waiting_bytes

    def _elsewhere(self) -> str:
        outgoing, unshipped = self._app.outgoing_events, self._app.unshipped_objects
        apps = f", {outgoing:,} of them for other apps" if outgoing else ""
        return apps + (f", {unshipped:,} of them objects for other storages" if unshipped else "")

    @property
    def is_full(self) -> bool:
        """Only the reserve is left of what disk and map can take."""
        return self._watch.is_full(self._room())

    def no_room(self) -> str:
        """Why nothing is taken in, in words."""
        room, reserve = show_size(self._room()), show_size(self._watch.reserve)
        return f"disk and max-size have room for {room}, of which {reserve} are kept in reserve"

    def stalled(self) -> StorageFailed:
        """Why a run has to end that is full although nothing is left to be worked off."""
        room, reserve = self._room() >> 20, self._watch.reserve >> 20
        return StorageFailed(
            f"there is room for {room:,} MiB, and {reserve:,} MiB are kept in reserve: nothing can be taken in, and "
            f"nothing is left to be worked off. Free disk space (or raise max-size) and start the same command again: "
            f"it goes on where it was"
        )

    def check_room(self) -> None:
        """
        Raises:
            Runaway: the reserve is being eaten: commits must always have pages.
        """
        if self._watch.is_eaten(self._room()):
            raise Runaway(self._runaway())

    def _runaway(self) -> str:
        """Names the event that has become more and more."""
        app, stats = self._app, self._app.stats
        handled: Counter[str] = Counter()
        for slot, count in stats.processed.items():
            handled[slot.partition(">")[0]] += count
        waiting = {
            name: count - handled[name] for name, count in stats.emitted.items() if name in app.routing.listeners
        }
        text = f"app {app.record.name!r} eats the reserve of the disk: {app.backlog_events:,} events wait"
        if waiting and max(waiting.values()) > 0:
            name = max(waiting, key=waiting.__getitem__)
            nodes = ", ".join(node for each in app.routing.listeners[name] for node in each.nodes)
            text += (
                f". Event {name!r} was emitted {stats.emitted[name]:,} times in this run and handled {handled[name]:,} "
                f"times (by {nodes}): does its slot, or whoever emits it, emit more than it gets"
            )
        return (
            f"{text}. Nothing accepted is lost. With mended code start the same command again: what waits is worked "
            f"off in what is left. Or give more room (a larger disk, --max-size), or give a slot up: --discard-slot "
            f"(which needs none)"
        )
