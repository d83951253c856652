"""Objects as workers and clients ask for them: what is committed, and for a worker what its partition has handed in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from msgspec import structs

from grape.abc.transport import Commit, Outcome
from grape.engine.app import App
from grape.engine.partition.partition import Partition
from grape.engine.shipping import Shipping
from grape.engine.surroundings import Surroundings
from grape.engine.turns import Turns
from grape.engine.worker import Worker
from grape.errors import BadArgument, Corrupt, GrapeError, ProtocolError, Unsupported
from grape.model.names import check_key, check_namespace, check_prefix
from grape.model.objects import (
    OBJECTS,
    REMOVED,
    WAITING,
    Done,
    ObjectWrite,
    Stored,
    Wanted,
    as_stored,
    decode_stored,
    expiring,
    is_unused,
    place_key,
    place_of,
    split_place,
    waiting_place,
)
from grape.protocol.messages import Fetch, Fetched, Keep

CHUNK: Final = 1 << 20
"""Bytes of an answer."""
_PAGE: Final = 1_000
_TOGETHER: Final = 64
"""Rows that are read at a time, of many that are asked for."""
_UPLOADS: Final = 64
"""Objects that a worker brings at a time."""
_OFTEN: Final = 10_000_000
"""Microseconds between two looks for what has expired."""
_LEAST: Final = 300_000_000
"""Microseconds between two looks for bytes that nobody has."""
_STEP: Final = 500
"""Rows and files of such a look at a time."""
_PAUSE: Final = 1_000
"""Microseconds until it goes on."""


_NONE: Final = Stored(0, REMOVED)


class AppObjects:
    """Of one app. ``blobs`` None: there is no place for what is too large for a row.

    Attributes:
        shipping: what is written to other storages; None: there are none.
    """

    def __init__(self, app: App, around: Surroundings) -> None:
        self._app = app
        self._transport = around.transport
        self._blobs = around.blobs
        self._clock = around.clock
        self._elsewhere = around.elsewhere
        self._notice = around.notice
        self._turns = Turns()
        self.shipping: Shipping | None = None
        if around.elsewhere is not None:
            self.shipping = Shipping(app, around.transport, around.elsewhere, around.clock, around.notice)
        self._uploads: dict[Worker, set[int]] = {}
        self._coming: set[tuple[Worker, int]] = set()
        """Of which a part is under way."""
        self._looked = 0
        self._swept = 0
        self._is_sweeping = False
        self._is_in_doubt = False
        self._after: bytes | None = None
        """How far a look through all rows is; None: there is none."""
        self._unused: set[bytes] = set()
        """What it has found."""
        self._were_unused: set[bytes] = set()
        """At the last look. Only at the next one they go: who reads them has so long."""
        self._lying: list[bytes] = []
        """Files of which it is not known whether a row names them, nor whether one ever has."""
        self._workers: dict[Worker, tuple[set[tuple[int, int]], list[bytes]]] = {}
        """At the last look: the works that each had, and what it had brought."""
        self._were_loose: set[bytes] = set()
        """The same of what was brought and never had a row: of events that failed, of writes whose condition was not
        so."""

    # ------------------------------------------------------------------ workers

    def ask(self, worker: Worker, partition: Partition | None, message: Fetch | Keep) -> None:
        """Answer now or later. ``partition`` None: it is no longer the worker's."""

        def say(answer: Fetched) -> None:
            if worker.is_heard:
                worker.link.send(answer)

        if isinstance(message, Keep) and message.given_up:
            self._give_up(worker, message.upload)
            say(Fetched(message.id))
        elif partition is None:
            say(Fetched(message.id, error=("stale", "the partition is another worker's by now")))
        elif isinstance(message, Keep):
            self._keep(worker, message, say)
        else:
            self._fetch(worker, partition, message, say)

    def _keep(self, worker: Worker, message: Keep, say: Callable[[Fetched], None]) -> None:
        if self._blobs is None:
            error = Unsupported("there is no place for objects of over 64 KiB here")
            say(Fetched(message.id, error=(error.code, str(error))))
            return

        token = worker, message.upload
        if token in self._coming:
            raise ProtocolError("a part of an object before the last one was answered")
        uploads = self._uploads.setdefault(worker, set())
        uploads.add(message.upload)
        if len(uploads) > _UPLOADS:
            raise ProtocolError(f"parts of over {_UPLOADS} objects at a time")
        if message.last:
            uploads.discard(message.upload)

        def kept(found: tuple[bytes, int] | GrapeError | None) -> None:
            self._coming.discard(token)
            if isinstance(found, GrapeError):
                uploads.discard(message.upload)
                say(Fetched(message.id, error=(found.code, str(found))))
            elif found is None:
                say(Fetched(message.id))
            else:
                self._app.pins.bring(worker, *found)
                if not worker.is_heard:
                    self._app.pins.gone(worker)
                say(Fetched(message.id, data=found[0]))

        self._coming.add(token)
        self._blobs.part(token, message.data, message.last, kept)

    def _give_up(self, worker: Worker, upload: int) -> None:
        self._uploads.get(worker, set()).discard(upload)
        if self._blobs is not None:
            self._blobs.forget((worker, upload))

    def gone(self, worker: Worker) -> None:
        """It brings nothing any more, and names nothing."""
        self._app.pins.gone(worker)
        self._turns.gone(worker)
        self._workers.pop(worker, None)
        for upload in list(self._uploads.pop(worker, ())):
            self._give_up(worker, upload)

    def _fetch(self, worker: Worker, partition: Partition, message: Fetch, say: Callable[[Fetched], None]) -> None:
        def answered(answer: Fetched) -> None:
            say(answer)
            self._turns.over(worker)

        namespace, is_elsewhere = message.namespace, message.namespace in self._app.elsewhere
        try:
            if namespace not in self._app.namespaces:
                raise ProtocolError(f"objects of the namespace {namespace!r:.100}, which is not granted")
            if message.what == "many":
                say(Fetched(message.id, items=self._many(partition, message)))
                return
            if message.what == "page":
                check_prefix(message.key)
                if is_elsewhere:
                    self._turns.ask(worker, lambda: self._page_elsewhere(message, answered))
                else:
                    items, position = self.page(namespace, message.key, message.position, message.limit)
                    say(Fetched(message.id, items=items, position=position))
                return
            place = place_key(namespace, check_key(message.key))
        except BadArgument as e:
            raise ProtocolError(f"a question for an object: {e}") from None
        stored = self._written(partition, place, message.position)
        if stored is None and is_elsewhere:  # what waits to be written there is as good as written
            (packed,) = self._transport.get(self._app.objects, "object", [waiting_place(namespace, message.key)])
            stored = None if packed is None else decode_stored(packed)
        elif stored is None:
            stored = self.stored(place)
        if stored is None and is_elsewhere:
            self._turns.ask(worker, lambda: self._ask_elsewhere(message, answered))
        elif stored is not None and stored.blob and message.what == "read":
            self._turns.ask(worker, lambda: self._tell(message, stored, answered))
        else:
            self._tell(message, stored, say)

    def _many(self, partition: Partition, message: Fetch) -> list[tuple[str, Stored]]:
        """The first ones, with the bytes of those that are at hand; behind the last of them nothing was looked at."""
        keys = message.keys
        if len(keys) > _PAGE:
            raise ProtocolError(f"a question for {len(keys)} objects; at most {_PAGE}")
        if message.namespace in self._app.elsewhere:
            return []
        places = [place_key(message.namespace, check_key(key)) for key in keys]
        found: list[tuple[str, Stored]] = []
        left = CHUNK
        for begin in range(0, len(keys), _TOGETHER):
            some = slice(begin, begin + _TOGETHER)
            rows = self._transport.get(self._app.objects, "object", places[some])
            for key, place, packed in zip(keys[some], places[some], rows, strict=True):
                stored = self._written(partition, place, "")
                if stored is None and packed is not None:
                    stored = self._there(decode_stored(packed))
                if stored is None or not stored.is_there:
                    found.append((key, _NONE))
                elif not stored.blob:
                    left -= stored.size
                    if left < 0:
                        return found
                    found.append((key, stored))
        return found

    def _tell(self, message: Fetch, stored: Stored | None, say: Callable[[Fetched], None]) -> None:
        if stored is None or not stored.is_there:
            say(Fetched(message.id))
        elif message.what == "stat":
            say(Fetched(message.id, _without_data(stored)))
        else:
            self.chunk(stored, message.start, message.end, lambda found: say(_read(message.id, stored, found)))

    def _ask_elsewhere(self, message: Fetch, say: Callable[[Fetched], None]) -> None:
        def told(found: Stored | tuple[Stored, bytes] | GrapeError | None) -> None:
            stored, data = found if isinstance(found, tuple) else (found, b"")
            if isinstance(stored, GrapeError):
                say(Fetched(message.id, error=(stored.code, str(stored))))
            elif stored is None or self._there(stored) is None:
                say(Fetched(message.id))
            else:
                say(Fetched(message.id, stored, data))

        assert self._elsewhere is not None
        if message.what == "stat":
            self._elsewhere.stat(message.namespace, message.key, told)
        else:
            size = CHUNK if message.end < 0 else max(0, min(message.end - message.start, CHUNK))
            self._elsewhere.read(message.namespace, message.key, message.start, size, told)

    def _page_elsewhere(self, message: Fetch, say: Callable[[Fetched], None]) -> None:
        """What has arrived."""

        def listed(found: tuple[list[tuple[str, Stored]], str] | GrapeError) -> None:
            if isinstance(found, GrapeError):
                say(Fetched(message.id, error=(found.code, str(found))))
            else:
                items = [(key, stored) for key, stored in found[0] if self._there(stored) is not None]
                say(Fetched(message.id, items=items, position=found[1]))

        assert self._elsewhere is not None
        limit = max(1, min(message.limit, _PAGE))
        self._elsewhere.page(message.namespace, message.key, message.position, limit, listed)

    def _written(self, partition: Partition, place: bytes, digest: str) -> Stored | None:
        """What the partition has written and is not committed. ``digest``: of what the handler itself has written, and
        nobody knows of yet."""
        if digest:
            try:
                size = self._app.pins.size_of(bytes.fromhex(digest))
            except ValueError:
                raise ProtocolError("an object by a digest that is none") from None
            return Stored(0, REMOVED) if size is None else Stored(0, size, bytes.fromhex(digest), blob=True)
        write = partition.object_write(place)
        return None if write is None else as_stored(write, 0)

    # ------------------------------------------------------------------ what is committed

    def stored(self, place: bytes) -> Stored | None:
        """An object; None: there is none, or it has expired.

        Raises:
            Corrupt: its row fails its checksum.
        """
        (packed,) = self._transport.get(self._app.objects, "object", [place])
        return None if packed is None else self._there(decode_stored(packed))

    def _there(self, stored: Stored) -> Stored | None:
        is_over = 0 < stored.expires <= self._clock.now()
        return stored if stored.is_there and not is_over else None

    def page(self, namespace: str, prefix: str, position: str, limit: int) -> tuple[list[tuple[str, Stored]], str]:
        """In the order of keys, without their bytes."""
        begin = check_namespace(namespace).encode() + b"\0" + check_prefix(prefix).encode()
        after = begin if not position else place_key(namespace, position) + b"\0"
        limit = max(1, min(limit, _PAGE))
        rows = self._transport.scan(self._app.objects, "object", max(begin, after), limit, _behind(begin))
        items = []
        for place, packed in rows:
            stored = self._there(decode_stored(packed))
            if stored is not None:
                items.append((split_place(place)[1], _without_data(stored)))
        return items, split_place(rows[-1][0])[1] if len(rows) == limit else ""

    def chunk(self, stored: Stored, start: int, end: int, then: Callable[[bytes | GrapeError], None]) -> None:
        """Its bytes from ``start`` up to ``end`` (-1: to its end), at most `CHUNK` of them."""
        last = stored.size if end < 0 else min(end, stored.size)
        size = max(0, min(last - start, CHUNK))
        if not stored.blob:
            then(stored.data[start : start + size])
        elif not size:
            then(b"")
        elif self._blobs is None:
            then(Unsupported("there is no place for objects of over 64 KiB here"))
        else:

            def told(found: bytes | GrapeError) -> None:
                is_short = not isinstance(found, GrapeError) and len(found) != size
                then(Corrupt("the file of an object is shorter than it was") if is_short else found)

            self._blobs.read(stored.checksum, start, size, told)

    # ------------------------------------------------------------------ clients

    def write(
        self, writes: Sequence[tuple[ObjectWrite, Wanted]], then: Callable[[Sequence[Done] | None], None]
    ) -> None:
        """Each if what it wants is so. What they have in files is held meanwhile; None: it is not there (any more)."""
        now = self._clock.now()
        timed = [(structs.replace(w, time=now) if not w.time and w.size >= 0 else w, wanted) for w, wanted in writes]
        blobs = [write for write, _ in writes if write.blob]
        for write in blobs:
            self._app.pins.hold(write.checksum, write.size)

        def done(found: Sequence[Done] | None) -> None:
            for write in blobs:
                self._app.pins.let_go(write.checksum)
            then(found)

        def sized(sizes: Sequence[int | None]) -> None:
            if [write.size for write in blobs] == list(sizes):
                self._transport.write_objects(self._app.objects, timed, done)
            else:
                done(None)

        if not blobs:
            sized([])
        elif self._blobs is None:
            done(None)
        else:
            self._blobs.sizes([write.checksum for write in blobs], sized)

    def holding(self, write: ObjectWrite, then: Callable[[bool], None]) -> None:
        """Whether the bytes of ``write`` are there; held while ``then`` is called."""
        if not write.blob or self._blobs is None:
            then(not write.blob)
            return
        self._app.pins.hold(write.checksum, write.size)

        def sized(sizes: Sequence[int | None]) -> None:
            try:
                then(list(sizes) == [write.size])
            finally:
                self._app.pins.let_go(write.checksum)

        self._blobs.sizes([write.checksum], sized)

    # ------------------------------------------------------------------ what nobody has

    def tick(self, now: int) -> int | None:
        """Look now and then for bytes that no object has any more. Returns when to look again at the latest."""
        if now - self._swept >= _OFTEN and not self._is_sweeping and OBJECTS in self._app.record.logs:
            self._swept = now
            self._remove_expired(now)
        if self._blobs is not None:
            if now - self._looked >= _LEAST and self._after is None:
                self._looked, self._after = now, b""
                self._look_at_loose()
            self._look_on()
        self._turns.tick()
        at = None if self.shipping is None else self.shipping.tick(now)
        return now + _PAUSE if self._after is not None or self._lying else at

    def done(self, commit: Commit, outcome: Outcome) -> None:
        """Handlers have written something; of an unknown outcome it is found out after the next claim."""
        if self.shipping is None or commit.objects is None:
            return
        if outcome == "committed":
            self.shipping.committed(commit.objects.writes)
        self._is_in_doubt = self._is_in_doubt or outcome == "unknown"

    def claimed(self) -> None:
        """What was in doubt is not any more."""
        if self._is_in_doubt and self.shipping is not None:
            self.shipping.start()
        self._is_in_doubt = False

    @property
    def is_shipped(self) -> bool:
        """All that was written for other storages is there, or refused by them."""
        return self.shipping is None or self.shipping.is_done

    def start(self) -> None:
        """Ship what was left; files that no row names are of writes that never were."""
        if self._blobs is not None:
            self._blobs.all(self._lying.extend)
            self._after = b""
        if self.shipping is not None:
            self.shipping.start()
        elif self._transport.scan(self._app.objects, "object", WAITING.encode(), 1, _behind(WAITING.encode())):
            self._notice(
                "objects wait for another storage, and this run was told of none (--storage, storages=, or [storages] "
                "of a server): they stay until one is"
            )

    def _remove_expired(self, now: int) -> None:
        """What nobody sees any more."""
        rows = self._transport.scan(self._app.objects, "change", expiring(0), _PAGE, expiring(now))
        places = [place_of(key) for key, _ in rows]
        found = self._transport.get(self._app.objects, "object", places) if places else []
        over = [
            (ObjectWrite(*split_place(place), REMOVED), Wanted(stored.number))
            for place, packed in zip(places, found, strict=True)
            if packed is not None and 0 < (stored := decode_stored(packed)).expires <= now
        ]
        if over:
            self._is_sweeping = True
            self._transport.write_objects(self._app.objects, over, lambda _: self._has_swept(len(rows) == _PAGE))

    def _has_swept(self, is_more: bool) -> None:
        self._is_sweeping = False
        if is_more:
            self._swept = 0

    def _look_on(self) -> None:
        """A step, as there may be millions."""
        some = self._lying[-_STEP:]
        del self._lying[-_STEP:]
        named = self._transport.get(self._app.objects, "blob", some) if some else []
        self._remove([digest for digest, row in zip(some, named, strict=True) if row is None])
        if self._after is None:
            return
        rows = self._transport.scan(self._app.objects, "blob", self._after, _STEP)
        unused = [d for d, packed in rows if is_unused(packed) and self._app.pins.size_of(d) is None]
        found = [each for each in unused if each in self._were_unused]
        if found:
            self._transport.drop_blobs(self._app.objects, found, self._remove)
        self._unused.update(unused)
        self._after = rows[-1][0] + b"\0" if len(rows) == _STEP else None
        if self._after is None:
            self._were_unused, self._unused = self._unused, set()

    def _look_at_loose(self) -> None:
        """Files that no row has ever named; those of rows are counted there."""
        pins = self._app.pins
        for worker in self._uploads:
            works, brought = self._workers.get(worker, (set(), []))
            if works.isdisjoint(worker.outstanding):  # whatever it brought these for is over
                pins.unused(worker, brought)
            self._workers[worker] = set(worker.outstanding), pins.brought_by(worker)
        self._lying.extend(self._were_loose)
        self._were_loose, pins.loose = pins.loose, set()

    def _remove(self, digests: Sequence[bytes]) -> None:
        assert self._blobs is not None
        pins = self._app.pins
        nobodys = [digest for digest in digests if pins.size_of(digest) is None]
        if nobodys:
            pins.loose.update(self._blobs.remove(nobodys))


def _without_data(stored: Stored) -> Stored:
    return Stored(
        stored.number,
        stored.size,
        stored.checksum,
        stored.time,
        stored.content_type,
        stored.tags,
        stored.user,
        stored.expires,
        stored.blob,
    )


def _read(number: int, stored: Stored, found: bytes | GrapeError) -> Fetched:
    if isinstance(found, GrapeError):
        return Fetched(number, error=(found.code, str(found)))
    return Fetched(number, _without_data(stored), found)


def _behind(begin: bytes) -> bytes | None:
    """The first key behind all that begin so."""
    cut = begin.rstrip(b"\xff")
    return cut[:-1] + bytes([cut[-1] + 1]) if cut else None
