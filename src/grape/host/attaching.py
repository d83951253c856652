"""Streams and readers come to an engine: each has a log of its own, for ever, under a number of the catalog."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from grape.engine.app import App
from grape.engine.catalog import CatalogStore, with_logs
from grape.engine.engine import Engine
from grape.engine.feed import Feed
from grape.engine.ids import Ids
from grape.engine.outlet import DeadOutputs, Take, dead_log
from grape.model.address import CATALOG
from grape.model.stored import OUTPUT, REPLIES, SOURCE, TAKER


class TakenBy(NamedTuple):
    """``event``: an output, None: replies. ``name``: of who takes it, which tells it from all others for ever."""

    event: str | None
    name: str

    @property
    def log(self) -> str:
        return REPLIES if self.event is None else OUTPUT + self.event

    @property
    def dead_event(self) -> str:
        """By which the dead letters of what it takes are known."""
        return self.event or "reply"


class Attaching:
    """Of one engine. Whoever comes again finds what there was.

    Attributes:
        calls: events of streams that come from now on are calls: somebody takes replies.
    """

    def __init__(self, app: App, engine: Engine, catalog: CatalogStore) -> None:
        self.calls = False
        self._app = app
        self._engine = engine
        self._catalog = catalog
        self._ids = Ids(app, engine.transport, engine.clock)
        self._feeds: dict[str, Feed] = {}
        self._takes: dict[TakenBy, Take] = {}
        self._dead: dict[str, DeadOutputs] = {}
        self._waiting: list[tuple[set[str], Callable[[], None]]] = []
        engine.own(CATALOG, catalog.done)

    def feed(self, name: str, *, in_order: bool, then: Callable[[Feed], None]) -> None:
        """The feed of a stream; ``then`` gets it, now or when its log has a number."""

        def there() -> None:
            feed = self._feeds.get(name)
            if feed is None:
                engine = self._engine
                feed = Feed(
                    self._app, name, engine.transport, engine.clock, self._ids, in_order=in_order, calls=self.calls
                )
                self._feeds[name] = feed
                engine.own(feed.id, feed.done)
            then(feed)

        self._with_logs([SOURCE + name], there)

    def take(self, taken: TakenBy, then: Callable[[Take, DeadOutputs], None]) -> None:
        """The position of a reader, and where what it cannot read goes."""

        def there() -> None:
            take = self._takes.get(taken)
            if take is None:
                take = self._takes[taken] = self._make_take(taken)
            then(take, self._dead[taken.dead_event])

        self._with_logs([TAKER + taken.name, dead_log(taken.dead_event)], there)

    def _make_take(self, taken: TakenBy) -> Take:
        app, engine = self._app, self._engine
        take = Take(app, taken.name, taken.log, engine.transport, engine.clock)
        peers = [other for by, other in self._takes.items() if by.log == taken.log]
        take.peers = peers[0].peers if peers else []
        take.peers.append(take)
        engine.own(take.id, take.done)
        for number in take.logs:
            engine.on_arrival(app.log(taken.log, number), partial(take.arrived, number))
        if taken.dead_event not in self._dead:
            self._dead[taken.dead_event] = DeadOutputs(app, taken.dead_event, engine.transport, engine.own)
        return take

    # ------------------------------------------------------------------ the catalog

    def _with_logs(self, names: Iterable[str], then: Callable[[], None]) -> None:
        """``then`` once each of these logs has a number that is durable."""
        missing = {name for name in names if name not in self._app.record.logs}
        if missing or self._waiting:  # in the order in which they came
            self._waiting.append((missing, then))
            self._save()
        else:
            then()

    def _save(self) -> None:
        if not self._catalog.is_saved:
            return
        record = with_logs(self._app.record, sorted({name for missing, _ in self._waiting for name in missing}))
        ready, self._waiting = self._waiting, []
        if record == self._app.record:
            for _, then in ready:
                then()
            return

        def saved() -> None:
            self._app.record = record
            for _, then in ready:
                then()
            if self._waiting:
                self._save()

        self._catalog.save(record, saved)
