"""Other storages beside an engine, which reads from and writes to them, on a thread of their own."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from grape.abc.elsewhere import OtherStorages
from grape.abc.storage import Place, Storage
from grape.abc.transport import Post
from grape.errors import BadArgument, GrapeError, Refused, StorageFailed, UsageError
from grape.model.bound import Bound
from grape.model.objects import Stored
from grape.model.urls import without_secrets
from grape.storage import elsewhere
from grape.storage.connect import storage_of
from grape.store.blobs import path_of

T = TypeVar("T")

_OPENING: Final = 5.0
"""Seconds that a start waits for storages. One that does not answer by then is opened when it does."""
_CLOSING: Final = 2.0
_PATIENCE: Final = 60.0
"""Seconds for an answer to a question; of what is written for some of its bytes, or for all of a small object."""


class _Body(io.FileIO):
    """The bytes of a large object. Tells when some of them go."""

    def __init__(self, path: Path, moves: Callable[[], None]) -> None:
        super().__init__(path, "rb")
        self._moves = moves

    def read(self, size: int | None = -1, /) -> bytes:
        self._moves()
        return super().read(-1 if size is None else size)


class StorageThread(OtherStorages):
    """
    Args:
        bound: by namespace.
        directory: of the data, in which the bytes of large objects lie.
        post: runs a function on the engine's thread, from any.
        at_once: a question has its answer when the call returns.

    Raises:
        UsageError: a URL leads nowhere.
    """

    def __init__(self, bound: Mapping[str, Bound], directory: Path, post: Post, *, at_once: bool = False) -> None:
        self._bound = dict(bound)
        self._directory = directory
        self._post = post
        self._is_at_once = at_once
        self._storages = {url: storage_of(url) for url in dict.fromkeys(each.url for each in bound.values())}
        self._opened: dict[str, asyncio.Task[None]] = {}
        self._shipping: dict[Place, asyncio.Task[None]] = {}
        """What is being written, by URL and namespace, and key. Nothing is cut off: a thread of a storage would do it
        all the same, after the next version."""
        self._is_closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="storages", daemon=True)
        self._thread.start()

    async def open(self) -> None:
        """
        Raises:
            UsageError: one of them cannot be used as it was set up.
        """
        opening = asyncio.run_coroutine_threadsafe(self._open_all(), self._loop)
        await asyncio.wrap_future(opening)

    async def _open_all(self) -> None:
        found = await asyncio.gather(*(self._open_soon(url) for url in self._storages), return_exceptions=True)
        for error in found:
            if isinstance(error, UsageError):
                raise error

    async def _open_soon(self, url: str) -> None:
        await asyncio.wait_for(self._ready(url), _OPENING)

    async def _ready(self, url: str) -> Storage:
        """It, open. Opened anew, if it could not be before."""
        task = self._opened.get(url)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._opened[url] = asyncio.get_running_loop().create_task(self._storages[url].open())
        await asyncio.shield(task)
        return self._storages[url]

    # ------------------------------------------------------------------ what an engine asks

    def _do(
        self,
        namespace: str,
        what: Callable[[Storage, str], Coroutine[Any, Any, T]],
        then: Callable[[T | GrapeError], None],
        *,
        is_question: bool = True,
    ) -> None:
        async def work() -> None:
            answer = await self._answer(self._bound[namespace], what, _PATIENCE if is_question else None)
            if not self._is_closed:
                self._post(lambda: None if self._is_closed else then(answer))

        if self._is_closed:
            return
        if is_question and self._is_at_once:
            asked = self._answer(self._bound[namespace], what, _PATIENCE)
            then(asyncio.run_coroutine_threadsafe(asked, self._loop).result())
        else:
            asyncio.run_coroutine_threadsafe(work(), self._loop)

    async def _answer(
        self, bound: Bound, what: Callable[[Storage, str], Coroutine[Any, Any, T]], patience: float | None
    ) -> T | GrapeError:
        try:
            storage = await asyncio.wait_for(self._ready(bound.url), _PATIENCE)
            return await asyncio.wait_for(what(storage, bound.namespace), patience)
        except BadArgument as e:
            return e
        except UsageError as e:  # it could be used, so it can be again
            return StorageFailed(str(e))
        except Refused as e:
            return StorageFailed(str(e)) if e.retriable else e
        except GrapeError as e:
            return e
        except TimeoutError as e:
            return StorageFailed(f"{without_secrets(bound.url)}: {str(e) or f'no answer within {_PATIENCE:g} s'}")
        except OSError as e:
            return StorageFailed(f"{without_secrets(bound.url)}: {e}")
        except Exception as e:  # of a storage that is not ours
            return StorageFailed(f"{without_secrets(bound.url)}: {type(e).__name__}: {e}")

    def stat(self, namespace: str, key: str, then: Callable[[Stored | GrapeError | None], None]) -> None:
        self._do(namespace, lambda storage, name: elsewhere.stat(storage, Place(name, key)), then)

    def read(
        self,
        namespace: str,
        key: str,
        start: int,
        size: int,
        then: Callable[[tuple[Stored, bytes] | GrapeError | None], None],
    ) -> None:
        self._do(namespace, lambda storage, name: elsewhere.read(storage, Place(name, key), start, size), then)

    def page(
        self,
        namespace: str,
        prefix: str,
        position: str,
        limit: int,
        then: Callable[[tuple[list[tuple[str, Stored]], str] | GrapeError], None],
    ) -> None:
        self._do(namespace, lambda storage, name: elsewhere.page(storage, name, prefix, position, limit), then)

    def ship(self, namespace: str, key: str, stored: Stored, then: Callable[[GrapeError | None], None]) -> None:
        url = self._bound[namespace].url

        async def ship(storage: Storage, name: str) -> None:
            place, here = Place(name, key), Place(f"{url} {name}", key)
            moved = [self._loop.time()]

            def blob(digest: bytes) -> _Body:
                return _Body(path_of(self._directory, digest), lambda: moved.append(self._loop.time()))

            while (before := self._shipping.get(here)) is not None and not before.done():
                await self._until_done(before, moved)  # one version after the other
            task = asyncio.create_task(elsewhere.ship(storage, place, stored, blob))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # also if nobody waits any more
            self._shipping[here] = task
            await self._until_done(task, moved)
            self._shipping.pop(here, None)
            task.result()

        self._do(namespace, ship, then, is_question=False)

    async def _until_done(self, task: asyncio.Task[None], moved: list[float]) -> None:
        """``moved``: when something of it was, last.

        Raises:
            TimeoutError: nothing has for so long.
        """
        while not task.done():
            left = moved[-1] + _PATIENCE - self._loop.time()
            del moved[:-1]
            if left <= 0:
                raise TimeoutError(
                    f"a write has not gone on for {_PATIENCE:g} s, and the next one of the same object waits for its "
                    f"end. See whether the storage hangs; if it stays so when the storage is well, start this anew"
                )
            await asyncio.wait([task], timeout=left)

    # ------------------------------------------------------------------ its end

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        closing = asyncio.run_coroutine_threadsafe(self._close_all(), self._loop)
        try:
            closing.result(_CLOSING)
        except Exception:
            pass  # whatever is under way is done again; how a storage of others closes is its own business
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSING)

    async def _close_all(self) -> None:
        me = asyncio.current_task()
        for task in asyncio.all_tasks():
            if task is not me:
                task.cancel()
        for storage in self._storages.values():
            await storage.close()
