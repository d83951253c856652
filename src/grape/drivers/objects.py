"""Objects that are written, as events: what a storage tells of changes, or what can be seen of it by looking."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec
from msgspec import Struct, structs

from grape.abc.storage import About, Change, Storage
from grape.client.events import ClientEvent, client_event
from grape.drivers.sources import Step
from grape.drivers.spec import ObjectsDriver
from grape.drivers.watching import MOST, Watching
from grape.errors import GrapeError, UsageError
from grape.model.bound import Bound
from grape.model.names import own_namespace
from grape.model.urls import without_secrets
from grape.storage.connect import storage_of
from grape.storage.source import event_of

_STEP: Final = 500
_MAX_EVENT: Final = 64 << 20


class ChangedAt(Struct, frozen=True, array_like=True, tag="objects"):
    """A position. ``where``: which objects of which storage. ``position``: in what the storage tells; None: it is not
    known yet from where on. ``fired``: when the last event was made, milliseconds since 1970."""

    where: str
    position: str | None = None
    fired: int = 0


class KeysAt(Struct, frozen=True, array_like=True, tag="keys"):
    """A position, of a storage that is compared with what was seen: what tells the version of each object."""

    where: str
    seen: dict[str, int]
    fired: int = 0


class ObjectSource:
    """
    Args:
        app: whose driver it is. data: its directory. bound: the namespaces that it has in other storages.
        told: called when its error has changed.
    """

    def __init__(
        self, driver: ObjectsDriver, app: str, data: str, bound: Mapping[str, Bound], told: Callable[[], None]
    ) -> None:
        self.error = ""
        self._driver = driver
        self._told = told
        namespace = self._named = driver.namespace or own_namespace(app)
        there = bound.get(namespace)
        self._url = f"embedded://{quote(data)}" if there is None else there.url
        self._namespace = namespace if there is None else there.namespace
        self._where = f"{'' if there is None else without_secrets(there.url)}/{self._namespace}/{driver.prefix}"
        self._storage: Storage | None = None
        self._at = ChangedAt(self._where)
        self._watching = Watching(self._where, 0.0)
        self._packed = b""
        self._fired = 0

    @property
    def last(self) -> float | None:
        return max(self._at.fired, self._watching.fired, self._fired) / 1000 or None

    @property
    def next(self) -> float | None:
        return None

    def begin(self, position: bytes) -> None:
        self._packed = position
        self._watching.begin(position)
        try:
            at = msgspec.msgpack.decode(position, type=ChangedAt)
        except msgspec.MsgspecError:
            at = ChangedAt("")
        self._at = at if at.where == self._where else ChangedAt(self._where)
        try:
            self._fired = msgspec.msgpack.decode(position, type=KeysAt).fired
        except msgspec.MsgspecError:
            self._fired = 0

    async def step(self) -> Step:
        while True:
            try:
                storage = await self._opened()
                step = await (self._changed(storage) if storage.features.tells_changes else self._seen(storage))
            except (GrapeError, OSError) as e:
                await self._failed(str(e))
                step = None
            except Exception as e:  # of a storage that is not ours: the drivers of others go on
                await self._failed(f"{type(e).__name__}: {e}")
                step = None
            else:
                self._say("")
            if step is not None:
                return step
            await asyncio.sleep(self._driver.interval)

    def took(self, step: Step) -> None:
        self.begin(step.position)

    # ------------------------------------------------------------------ a storage that tells

    async def _changed(self, storage: Storage) -> Step | None:
        """
        Raises:
            UsageError: something may have been missed.
        """
        at = self._at
        if at.position is None:
            begin = "0" if self._driver.existing else (await storage.changes(self._namespace, "", None)).position
            return Step((), msgspec.msgpack.encode(ChangedAt(self._where, begin, at.fired)), None)
        found = await storage.changes(self._namespace, self._driver.prefix, at.position, _STEP)
        if found.position == at.position:
            return None
        events = [event for change in found.items if (event := self._event(change)) is not None]
        fired = time.time_ns() // 1_000_000 if events else at.fired
        return Step(events, msgspec.msgpack.encode(ChangedAt(self._where, found.position, fired)), None)

    def _event(self, change: Change) -> ClientEvent | None:
        if change.about is None:
            if not self._driver.removed:
                return None
            return self._made(change.key, {"namespace": self._named, "key": change.key, "change": "removed"})
        return self._of(change.about)

    def _of(self, about: About) -> ClientEvent:
        return self._made(about.key, {**structs.asdict(event_of(self._named, about)), "change": "written"})

    def _made(self, key: str, data: dict[str, Any]) -> ClientEvent:
        return client_event(self._driver.event, data, key, None, None, _MAX_EVENT)

    # ------------------------------------------------------------------ one that is looked at

    async def _seen(self, storage: Storage) -> Step | None:
        abouts: dict[str, About] = {}
        position = ""
        while True:
            page = await storage.page(self._namespace, self._driver.prefix, position)
            abouts |= {about.key: about for about in page.items}
            if len(abouts) > MOST:
                raise UsageError(
                    f"over {MOST:,} objects in {self._namespace}/{self._driver.prefix}: this storage does not tell "
                    f"what changes, so all are compared; split them among drivers, or remove those that are done with"
                )
            position = page.position
            if not position:
                break
        if self._driver.removed:
            return self._compared(abouts)
        found = {key: (about.size, _number(about.version)) for key, about in abouts.items()}
        watching = self._watching
        if not watching.is_begun and not (self._driver.existing and found):  # what is there now is not told of
            return Step([], watching.position(watching.all(found), found, watching.fired), None)
        files = watching.look(found, time.monotonic())
        if not files:
            return None
        packed = watching.position(files, found, time.time_ns() // 1_000_000)
        return Step([self._of(abouts[file.path]) for file in files], packed, None)

    def _compared(self, abouts: Mapping[str, About]) -> Step | None:
        """With what was there the last time, by name: only so it can be said what has gone."""
        try:
            before = msgspec.msgpack.decode(self._packed, type=KeysAt)
        except msgspec.MsgspecError:
            before = KeysAt("", {})
        is_first = before.where != self._where
        seen = {} if is_first else dict(before.seen)
        marks = {key: _number(about.version) for key, about in abouts.items()}
        gone = [key for key in seen if key not in marks][:_STEP]
        written = [key for key, mark in marks.items() if seen.get(key) != mark][
            : MOST if is_first else _STEP - len(gone)
        ]
        if not gone and not written and not is_first:
            return None
        for key in gone:
            del seen[key]
        seen |= {key: marks[key] for key in written}
        changes = [Change(key, None) for key in gone] + [Change(key, abouts[key]) for key in written]
        tells = changes if not is_first or self._driver.existing else []
        fired = time.time_ns() // 1_000_000 if tells else before.fired
        events = [event for change in tells if (event := self._event(change)) is not None]
        return Step(events, msgspec.msgpack.encode(KeysAt(self._where, seen, fired)), None)

    # ------------------------------------------------------------------

    async def _opened(self) -> Storage:
        if self._storage is None:
            storage = storage_of(self._url)
            try:
                await storage.open()
            except BaseException:
                await storage.close()
                raise
            self._storage = storage
        return self._storage

    async def _failed(self, text: str) -> None:
        self._say(text)
        if self._storage is not None:
            storage, self._storage = self._storage, None
            await storage.close()

    def _say(self, error: str) -> None:
        if error != self.error:
            self.error = error
            self._told()


def _number(version: str) -> int:
    return int.from_bytes(hashlib.blake2b(version.encode(), digest_size=8).digest(), "big")
