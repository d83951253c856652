"""Objects in a worker: what handlers write is part of what they emit; what they read is asked for, unless it was
written here and the engine does not know of it yet."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from itertools import chain, count
from typing import Any, Final, Literal, Protocol

from grape.errors import EventOver, HandlerError, ProtocolError
from grape.model.names import may_be_key
from grape.model.near import did_you_mean
from grape.model.objects import INLINE, About, ObjectWrite, Stored, place_key
from grape.protocol.messages import Fetch, Fetched, FromWorker, Keep
from grape.worker.together import Together

OBJECT_COSTS: Final = 512
"""About how many bytes a write takes in memory beside its data."""
_MANY: Final = 1_000
_AHEAD: Final = 8 << 20
"""Bytes of objects that were asked for ahead, which a worker keeps."""
_AT_ONCE: Final = 8
"""Questions of coroutines that are under way, and objects that they bring: each has a chunk in memory."""


class Written:
    """Stands in the column of names for an object that is written. ``is_undone``: its event has failed."""

    __slots__ = ("is_undone", "write")

    def __init__(self, write: ObjectWrite) -> None:
        self.write = write
        self.is_undone = False


class Part(Protocol):
    """The partition that an event is of. ``written``: in it, and the engine does not know of it yet; by place."""

    number: int
    epoch: int
    written: dict[bytes, list[Written]]


class Running(Protocol):
    """See `grape.worker.calls.Running`."""

    @property
    def part(self) -> Part: ...

    @property
    def together(self) -> Together | None: ...

    def keys_ahead(self) -> Sequence[str | None]: ...


class Columns(Protocol):
    """Of what a handler emits."""

    data: list[Any]

    def go_on_as(self, name: Any) -> None: ...

    def weigh(self, size: int) -> None: ...


class Access:
    """Of one worker process.

    Args:
        send: puts a message on its way. wait: returns when something new may have come; None: it cannot be waited for.

    Attributes:
        namespaces: what is granted: the app's own first.
    """

    def __init__(self, send: Callable[[FromWorker], None], wait: Callable[[], None]) -> None:
        self.namespaces: Mapping[str, str] = {}
        self._send = send
        self._wait = wait
        self._ids = count(1)
        self._answers: dict[int, Fetched] = {}
        self._waiting: dict[int, asyncio.Future[Fetched]] = {}
        self._unheard: set[int] = set()
        self._uploads = count(1)
        self._at_once: asyncio.Semaphore | None = None
        self._bringing: asyncio.Semaphore | None = None

    def bringing(self) -> asyncio.Semaphore:
        """Coroutines bring some objects at a time."""
        if self._bringing is None:
            self._bringing = asyncio.Semaphore(_AT_ONCE)
        return self._bringing

    def new_upload(self) -> int:
        """Its number."""
        return next(self._uploads)

    @property
    def own(self) -> str:
        """The app's own namespace."""
        return next(iter(self.namespaces), "app")

    def fetched(self, message: Fetched) -> None:
        """
        Raises:
            ProtocolError: nobody has asked for it.
        """
        if message.id in self._unheard:
            self._unheard.discard(message.id)
            return
        future = self._waiting.pop(message.id, None)
        if future is not None:
            if not future.done():
                future.set_result(message)
            return
        if message.id not in self._answers:
            raise ProtocolError("an object that nobody has asked for")
        self._answers[message.id] = message

    def tell(self, question: Callable[[int], Keep]) -> None:
        """Nobody waits for the answer."""
        number = next(self._ids)
        self._unheard.add(number)
        self._send(question(number))

    def ask(self, question: Callable[[int], Fetch | Keep]) -> Fetched:
        """
        Raises:
            HandlerError: it cannot be had, and why.
        """
        number = next(self._ids)
        self._answers[number] = _NONE
        try:
            self._send(question(number))
            while self._answers[number] is _NONE:
                self._wait()
            return _checked(self._answers[number])
        finally:
            del self._answers[number]

    async def aask(self, question: Callable[[int], Fetch | Keep]) -> Fetched:
        """The same for coroutines."""
        if self._at_once is None:
            self._at_once = asyncio.Semaphore(_AT_ONCE)
        async with self._at_once:
            number = next(self._ids)
            # It stays there if this is cancelled: the answer comes all the same.
            future = self._waiting[number] = asyncio.get_running_loop().create_future()
            self._send(question(number))
            return _checked(await future)


_NONE: Final = Fetched(0)


def _checked(message: Fetched) -> Fetched:
    if message.error is not None:
        raise HandlerError(f"{message.error[0]}: {message.error[1]}")
    return message


class HandlerObjects:
    """What `grape.authoring.objects` asks of a worker, for one emitter.

    Args:
        running: the event that runs.
    """

    def __init__(self, access: Access, columns: Columns, node: str, running: Running) -> None:
        self._access = access
        self._columns = columns
        self._node = node
        self._running = running
        self._together: Together | None = None
        """The work for which something was asked."""
        self._ahead: dict[tuple[str, str], Stored] = {}
        """What the events of this stage, or work, were found to ask for, with its bytes."""
        self._ahead_size = 0
        self._alone: set[tuple[str, str]] = set()
        """Those that do not come so: they are large, or in another storage."""
        self._patterns: dict[str, tuple[str, str]] = {}
        """By namespace: what stood around the key of the event in the key of an object that was read last."""
        self.is_open = True
        """An event is handled."""

    def begin_stage(self) -> None:
        """Events are handled from now on. What was read for others than those of one work may be otherwise by now."""
        self.is_open = True
        together = self._running.together
        if together is None or together is not self._together:
            self._together = together
            self._forget_ahead()
            self._alone.clear()

    def _forget_ahead(self) -> None:
        self._ahead.clear()
        self._ahead_size = 0

    def may(self, namespace: str, what: str) -> None:
        if not self.is_open:
            raise EventOver(f"node {self._node!r} used storage outside of the handling of an event")
        granted = self._access.namespaces.get(namespace)
        if granted is None:
            known = list(self._access.namespaces)
            hint = did_you_mean(namespace, known, f"it may use {', '.join(map(repr, known))}")
            raise HandlerError(
                f"node {self._node!r} uses the namespace {namespace!r} of objects, which its app is not granted "
                f"([namespaces] in grape.toml); {hint}"
            )
        if what == "write" and granted != "write":
            raise HandlerError(
                f"node {self._node!r} writes into the namespace {namespace!r}, which its app may only read"
            )

    # ------------------------------------------------------------------ write

    def write(self, write: ObjectWrite) -> None:
        written = Written(write)
        self._columns.go_on_as(written)
        self._columns.data.append(None)
        self._columns.weigh(write.weight)
        self._running.part.written.setdefault(write.place, []).append(written)

    def upload(self, chunks: Iterator[bytes]) -> tuple[bytes, int]:
        size, part, upload = 0, self._running.part, self._access.new_upload()
        try:
            ahead = next(chunks, None)
            while ahead is not None:
                chunk, ahead = ahead, next(chunks, None)
                size += len(chunk)
                answer = self._access.ask(_keep(part, upload, chunk, last=ahead is None))
        except BaseException:
            self.give_up(upload, size)
            raise
        return answer.data, size

    async def aupload(self, chunks: Iterator[bytes]) -> tuple[bytes, int]:
        async with self._access.bringing():
            size, part, upload = 0, self._running.part, self._access.new_upload()
            try:
                ahead = next(chunks, None)
                while ahead is not None:
                    chunk, ahead = ahead, next(chunks, None)
                    size += len(chunk)
                    answer = await self._access.aask(_keep(part, upload, chunk, last=ahead is None))
            except BaseException:
                self.give_up(upload, size)
                raise
            return answer.data, size

    def bring(self, upload: int, chunk: bytes, *, last: bool) -> bytes:
        """One part of an object; with the last one its digest."""
        return self._access.ask(_keep(self._running.part, upload, chunk, last=last)).data

    def give_up(self, upload: int, sent: int) -> None:
        """No more of it comes."""
        if sent:
            part = self._running.part
            self._access.tell(lambda number: Keep(part.number, part.epoch, number, b"", True, upload, True))

    # ------------------------------------------------------------------ read

    def _own(self, namespace: str, key: str) -> ObjectWrite | None:
        """What was written here and nobody else knows of yet; None: nothing was."""
        found = self._running.part.written.get(place_key(namespace, key))
        while found:
            if not found[-1].is_undone:
                return found[-1].write
            found.pop()
        return None

    def stat(self, namespace: str, key: str) -> About | None:
        own = self._own(namespace, key)
        if own is not None:
            return _about(own)
        stored = self._ahead.get((namespace, key))
        if stored is not None:
            return stored.about(key) if stored.is_there else None
        return _told(self._access.ask(self._fetch("stat", namespace, key)), key)

    async def astat(self, namespace: str, key: str) -> About | None:
        own = self._own(namespace, key)
        if own is not None:
            return _about(own)
        return _told(await self._access.aask(self._fetch("stat", namespace, key)), key)

    def read(self, namespace: str, key: str, start: int, end: int | None) -> Iterator[bytes] | None:
        own = self._own(namespace, key)
        if own is not None and not own.blob:
            return None if own.size < 0 else iter([own.data[start:end]])
        if own is None:
            stored = self._found_ahead(namespace, key)
            if stored is not None:
                return None if not stored.is_there else iter([stored.data[start:end]])
        first = self._access.ask(self._fetch("read", namespace, key, start, end, own))
        return None if first.stored is None else self._rest(first, namespace, key, start, end, own)

    def _found_ahead(self, namespace: str, key: str) -> Stored | None:
        """An object, or that there is none, if it is known. A handler that reads objects named by the keys of its
        events will do so again: those of all that follow in this work are asked for at once."""
        found = self._ahead.get((namespace, key))
        if found is not None:
            return found
        keys = self._running.keys_ahead()
        own = keys[0] if keys else None
        if not own or own not in key or (namespace, key) in self._alone:
            return None
        before, _, behind = key.partition(own)
        if self._patterns.get(namespace) != (before, behind):
            self._patterns[namespace] = before, behind
            return None
        more = () if self._together is None else self._together.keys_of(self._node)
        all_of_them = dict.fromkeys(f"{before}{each}{behind}" for each in chain(keys, more) if each)
        wanted = [each for each in all_of_them if each == key or self._may_come(namespace, each)][:_MANY]
        if len(wanted) < 2:
            return None
        answer = self._access.ask(self._fetch("many", namespace, "", keys=wanted))
        came = {each for each, _ in answer.items}
        looked_at = wanted.index(answer.items[-1][0]) if answer.items else len(wanted)
        self._alone.update((namespace, each) for each in wanted[:looked_at] if each not in came)
        if self._ahead_size > _AHEAD:
            self._forget_ahead()
        self._ahead.update(((namespace, each), stored) for each, stored in answer.items)
        self._ahead_size += sum(len(stored.data) + OBJECT_COSTS for _, stored in answer.items)
        return self._ahead.get((namespace, key))

    def _may_come(self, namespace: str, key: str) -> bool:
        place = namespace, key
        return place not in self._ahead and place not in self._alone and may_be_key(key)

    def _rest(
        self, answer: Fetched, namespace: str, key: str, start: int, end: int | None, own: ObjectWrite | None
    ) -> Iterator[bytes]:
        first = answer.stored
        assert first is not None
        left, whole = _left(first, start, end), _Whole(first, key, start, end)
        while left > 0:
            whole.add(answer.data)
            yield answer.data
            start, left = start + len(answer.data), left - len(answer.data)
            if left > 0:
                answer = self._access.ask(self._fetch("read", namespace, key, start, end, own))
                _check_same(first, answer, key)
        whole.check()

    async def aread(self, namespace: str, key: str, start: int, end: int | None) -> AsyncIterator[bytes] | None:
        own = self._own(namespace, key)
        if own is not None and not own.blob:
            return None if own.size < 0 else _once(own.data[start:end])
        first = await self._access.aask(self._fetch("read", namespace, key, start, end, own))
        return None if first.stored is None else self._arest(first, namespace, key, start, end, own)

    async def _arest(
        self, answer: Fetched, namespace: str, key: str, start: int, end: int | None, own: ObjectWrite | None
    ) -> AsyncIterator[bytes]:
        first = answer.stored
        assert first is not None
        left, whole = _left(first, start, end), _Whole(first, key, start, end)
        while left > 0:
            whole.add(answer.data)
            yield answer.data
            start, left = start + len(answer.data), left - len(answer.data)
            if left > 0:
                answer = await self._access.aask(self._fetch("read", namespace, key, start, end, own))
                _check_same(first, answer, key)
        whole.check()

    def part(self, namespace: str, key: str, start: int, end: int | None) -> tuple[About, bytes] | None:
        own = self._own(namespace, key)
        if own is not None and not own.blob:
            about = _about(own)
            return None if about is None else (about, own.data[start:end])
        answer = self._access.ask(self._fetch("read", namespace, key, start, end, own))
        return None if answer.stored is None else (answer.stored.about(key), answer.data)

    def page(self, namespace: str, prefix: str, position: str) -> tuple[list[About], str]:
        return _listed(self._access.ask(self._fetch("page", namespace, prefix, position=position)))

    async def apage(self, namespace: str, prefix: str, position: str) -> tuple[list[About], str]:
        return _listed(await self._access.aask(self._fetch("page", namespace, prefix, position=position)))

    def _fetch(
        self,
        what: Literal["stat", "read", "page", "many"],
        namespace: str,
        key: str,
        start: int = 0,
        end: int | None = None,
        own: ObjectWrite | None = None,
        position: str = "",
        keys: list[str] | None = None,
    ) -> Callable[[int], Fetch]:
        part = self._running.part
        # One of its own that lies in a file: the file has the name of its digest already.
        digest = own.checksum.hex() if own is not None else position

        def question(number: int) -> Fetch:
            last = -1 if end is None else end
            return Fetch(part.number, part.epoch, number, what, namespace, key, start, last, digest, keys=keys or [])

        return question


def _keep(part: Part, upload: int, chunk: bytes, *, last: bool) -> Callable[[int], Keep]:
    return lambda number: Keep(part.number, part.epoch, number, chunk, last, upload)


def _left(stored: Stored, start: int, end: int | None) -> int:
    return (stored.size if end is None else min(end, stored.size)) - start


class _Whole:
    """What is read of a large object from its beginning to its end is what was written. (A row has a checksum of its
    own, and of a part nobody knows it.)"""

    def __init__(self, stored: Stored, key: str, start: int, end: int | None) -> None:
        is_whole = start == 0 and (end is None or end >= stored.size) and stored.size > INLINE
        self._stored = stored
        self._key = key
        self._sum = hashlib.sha256() if is_whole and stored.checksum else None

    def add(self, data: bytes) -> None:
        """
        Raises:
            HandlerError: there is no more of it.
        """
        if not data:
            raise HandlerError(f"object {self._key!r:.200} is shorter than it says")
        if self._sum is not None:
            self._sum.update(data)

    def check(self) -> None:
        """
        Raises:
            HandlerError: these bytes were not written.
        """
        if self._sum is not None and self._sum.digest() != self._stored.checksum:
            raise HandlerError(
                f"corrupt: object {self._key!r:.200} is not what was written: its checksum is another one"
            )


def _check_same(first: Stored, answer: Fetched, key: str) -> None:
    now = answer.stored
    # Not by its number: it has one when it is committed. Of what others have written there may be a version alone.
    is_same = now is not None and (now.checksum, now.told) == (first.checksum, first.told)
    if now is None or not is_same or (not first.checksum and not first.told and now.version != first.version):
        raise HandlerError(f"object {key!r:.200} was written by somebody else while it was read; try again")


def _about(write: ObjectWrite) -> About | None:
    if write.size < 0:
        return None
    stored = Stored(
        0, write.size, write.checksum, write.time, write.content_type, write.tags, write.user, write.expires
    )
    return stored.about(write.key)


def _told(answer: Fetched, key: str) -> About | None:
    return None if answer.stored is None else answer.stored.about(key)


def _listed(answer: Fetched) -> tuple[list[About], str]:
    return [stored.about(key) for key, stored in answer.items], answer.position


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
