"""What programs behind an adapter do with objects: all of it is asked of the adapter, which has the rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final

from grape.authoring.objects import CHUNK, NodeStorage, inline
from grape.errors import BadArgument, GrapeError, HandlerError, ProtocolError
from grape.model.objects import INLINE, About, ObjectWrite
from grape.protocol.base import Got, Want
from grape.worker.objects import Access, HandlerObjects, Part, Written

PAGE: Final = 1_000
_OPTIONS: Final = {"content_type", "tags", "user", "time", "ttl"}
_TRIED: Final = (GrapeError, ValueError, TypeError, OSError)


class RunObjects:
    """Of one node, for the events of a run. ``written``: by whom, by the indexes of the run."""

    def __init__(self, access: Access | None, node: str, part: Callable[[], Part]) -> None:
        self._access = access
        self._backend = None if access is None else _Backend(access, node, part)
        self._coming: dict[int, _Coming] = {}
        self.written: list[tuple[int, Written]] = []

    def storage(self, index: int, namespace: str | None) -> NodeStorage:
        """What an event may do with a namespace; None: the app's own."""
        if self._backend is None or self._access is None:
            raise HandlerError("this app has no objects here")
        self._backend.begin(lambda written: self.written.append((index, written)))
        own = NodeStorage(self._backend, self._access.own)
        return own if namespace is None else own[namespace]

    def answer(self, want: Want) -> Got:
        """
        Raises:
            ProtocolError: it cannot be gone on with.
        """
        try:
            return self._do(want)
        except ProtocolError:
            raise
        except _TRIED as e:
            self.drop(want.upload)
            return Got(kind_of(e), str(e))

    def _do(self, want: Want) -> Got:
        if want.what == "drop":
            self.drop(want.upload)
            return Got()
        if want.what == "put" and want.upload in self._coming:
            return self._more(want)
        storage = self.storage(want.index, want.namespace)
        match want.what:
            case "put":
                return self._begin(storage, want)
            case "stat":
                about = storage.stat(want.key)
                return Got(found=about is not None, about=about)
            case "get":
                return self._get(storage, want)
            case "list":
                items = list(islice(self.listed(storage, want), PAGE))
                return Got(items=items, position=items[-1].key if len(items) == PAGE else "")
            case "remove":
                storage.remove(want.key)
                return Got()
        raise ProtocolError(f"no such question for objects: {want.what!r:.100}")

    def _begin(self, storage: NodeStorage, want: Want) -> Got:
        if len(self._coming) >= 16:
            raise ProtocolError("parts of over 16 objects at a time")
        about = checked_about(storage, want.key, want.about)
        assert self._backend is not None
        assert self._access is not None
        self._coming[want.upload] = _Coming(self._backend, self._access, about)
        return self._more(want)

    def _more(self, want: Want) -> Got:
        assert self._backend is not None
        self._backend.begin(lambda written: self.written.append((want.index, written)))
        self._coming[want.upload].add(want.data, last=want.last)
        if want.last:
            del self._coming[want.upload]
        return Got()

    def _get(self, storage: NodeStorage, want: Want) -> Got:
        found = storage.part(want.key, want.start, want.end)
        if found is None and not want.position:
            return Got(found=False)
        if found is None or want.position not in ("", found[0].checksum):
            raise HandlerError(f"object {want.key!r:.200} was written by somebody else while it was read; try again")
        about, data = found
        end = about.size if want.end is None else min(want.end, about.size)
        return Got(about=about, data=data, more=bool(data) and want.start + len(data) < end)

    def listed(self, storage: NodeStorage, want: Want) -> Iterator[About]:
        """Those behind the position."""
        found = storage.list(want.key, tags=want.about.get("tags", ()))
        return (about for about in found if about.key > want.position)

    def drop(self, upload: int) -> None:
        """No more of it comes."""
        coming = self._coming.pop(upload, None)
        if coming is not None:
            coming.give_up()

    def failed(self, index: int) -> None:
        """The event has written nothing."""
        for at, written in self.written:
            if at == index:
                written.is_undone = True
        self.written = [(at, written) for at, written in self.written if at != index]

    def take(self, done: int) -> list[tuple[int, Written]]:
        """What the first ``done`` events have written, once."""
        taken = [one for one in self.written if one[0] < done]
        self.written = self.written[len(taken) :]
        return taken

    def end(self) -> None:
        """The run is over."""
        for upload in list(self._coming):
            self.drop(upload)


def kind_of(error: BaseException) -> str:
    """The kind of the failure that comes of it."""
    if isinstance(error, GrapeError):
        return error.code
    return BadArgument.code if isinstance(error, ValueError | TypeError) else type(error).__name__


def checked_about(storage: NodeStorage, key: str, about: dict[str, Any]) -> dict[str, Any]:
    """What is put beside its bytes."""
    unknown = about.keys() - _OPTIONS
    if unknown:
        raise BadArgument(f"an object has no {min(unknown)!r:.100}; there are {', '.join(sorted(_OPTIONS))}")
    return storage.checked(key, **about)


class _Columns:
    data: list[Any] = []

    def go_on_as(self, name: Any) -> None: ...

    def weigh(self, size: int) -> None: ...


class _Asking:
    """Nothing is asked for ahead: it is the other side that reads."""

    together = None

    def __init__(self, part: Callable[[], Part]) -> None:
        self._part = part

    @property
    def part(self) -> Part:
        return self._part()

    def keys_ahead(self) -> Sequence[str | None]:
        return ()


class _Backend(HandlerObjects):
    def __init__(self, access: Access, node: str, part: Callable[[], Part]) -> None:
        super().__init__(access, _Columns(), node, _Asking(part))

    def begin(self, note: Callable[[Written], None]) -> None:
        self._note = note

    def write(self, write: ObjectWrite) -> None:
        written = Written(write)
        self._running.part.written.setdefault(write.place, []).append(written)
        self._note(written)


class _Coming:
    """An object that comes in parts."""

    def __init__(self, backend: _Backend, access: Access, about: dict[str, Any]) -> None:
        self._backend = backend
        self._about = about
        self._upload = access.new_upload()
        self._buffer = bytearray()
        self._size = 0

    def add(self, data: bytes, *, last: bool) -> None:
        self._buffer += data
        if last and not self._size and len(self._buffer) <= INLINE:
            self._backend.write(inline(self._about, bytes(self._buffer)))
            return
        if not last and len(self._buffer) < CHUNK:
            return
        chunk = bytes(self._buffer)
        self._buffer.clear()
        self._size += len(chunk)
        digest = self._backend.bring(self._upload, chunk, last=last)
        if last:
            self._backend.write(ObjectWrite(**self._about, size=self._size, checksum=digest, blob=True))

    def give_up(self) -> None:
        if self._size:
            with suppress(HandlerError):
                self._backend.give_up(self._upload, self._size)
