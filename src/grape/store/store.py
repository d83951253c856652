"""The data directory in the hands of its one engine: one LMDB environment, one writer thread, one lock."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple, TypeVar

import lmdb

from grape.abc.transport import Post
from grape.errors import Corrupt, StorageFailed, UsageError
from grape.model.address import PartitionId
from grape.store import large
from grape.store.files import (
    FORMAT,
    check_file,
    close_to_others,
    fsync_directory,
    is_unfinished,
    lock,
    make_directory,
    say_format,
    stored_format,
    write_durably,
)
from grape.store.late import LATE_BYTES, Change, Late
from grape.store.pace import LIGHT_BYTES, Pace
from grape.store.reader import MAP_SIZE, Reader, open_error
from grape.store.rows import BASE, CHANGES, KEY_BYTES, LARGE, changed_rows, is_intact, position_of_row
from grape.store.writing import Known, Writing

MAX_SIZE: Final = 64 << 30
_MANY: Final = 64
"""Of what could wait, in a transaction for which the engine's thread waits."""
LAZY_SECONDS: Final = 0.5
"""So long what can wait waits for a transaction in which it costs no fsync."""
GROUP_PAGES: Final = 24 << 10
"""A transaction takes no further commit beyond so many dirty pages (96 MiB), which LMDB holds in memory."""

R = TypeVar("R")
A = TypeVar("A")


class _Job(NamedTuple):
    apply: Callable[[Writing, Any], Any]
    argument: Any
    reply: Callable[[list[Any]], None]


_WAKE: Final = "wake"
"""Something can wait, and the store's thread does not know yet."""
_STOP: Final = "stop"


class Store(Reader):
    """The data directory in the hands of its one engine.

    A thread writes: it takes what is queued, puts it into one transaction, commits (fsync) and answers with one
    ``post`` for the group. While writes are light (`Pace`), and nothing is with that thread, the engine's thread writes
    itself, when its turn is over, what was submitted in it. Reads happen on the caller's thread.

    Args:
        directory: made if it does not exist.
        post: runs a function on the engine's thread; called from the writer thread.
        soon: runs a function on the engine's thread, called there, when its turn is over. None: it never writes.
        max_size: bytes the map may grow to.
        map_size: bytes it starts with.
        late_bytes: what changes of state take in memory before they are merged (`grape.store.late`).
        inline_limit: rows of more bytes lie in files (`grape.store.large`).
        check_batch: for the verification after an I/O error (`Reader.verify`).

    Raises:
        InUse: another engine holds the directory; names its pid and host.
        UsageError: a directory of another format, or not of Grape.
        Corrupt: the data is damaged.
        StorageFailed: the disk refused.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        post: Post,
        *,
        soon: Post | None = None,
        max_size: int = MAX_SIZE,
        map_size: int = MAP_SIZE,
        late_bytes: int = LATE_BYTES,
        inline_limit: int = large.INLINE_LIMIT,
        check_batch: Callable[[PartitionId, int, bytes], str | None] | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.max_size = max_size
        self.error: BaseException | None = None
        self._post = post
        self._on_failed: list[Callable[[BaseException], None]] = []
        self._known = Known(Late(min(late_bytes, max_size // 16)))  # merging needs room
        self._inline_limit = inline_limit
        self._soon = soon
        self._pace = Pace()
        self._readers_checked = time.monotonic()
        self._writing = threading.Lock()
        self._light: deque[_Job] = deque()
        self._light_bytes = 0
        self._wrote = 0.0
        self._queue: SimpleQueue[_Job | str] = SimpleQueue()
        self._unanswered = 0
        self._lazy: deque[tuple[Callable[[Writing, Any], object], Any]] = deque()
        self._is_asleep = False
        """The store's thread waits for as long as nothing is queued."""
        self._stopping = False
        self._room = (0.0, 0, 0)
        try:
            make_directory(self.directory)
            stored_format(self.directory)
            close_to_others(self.directory)
            self._lock_fd = lock(self.directory)
        except OSError as e:
            raise UsageError(f"the data directory {self.directory} cannot be used: {e}") from e
        try:
            self._open(map_size, check_batch)
        except BaseException:
            if hasattr(self, "_env"):
                self._env.close()
            if hasattr(self, "_files"):
                self._files.close()
            os.close(self._lock_fd)
            raise
        self._thread = threading.Thread(target=self._work, name="grape-store", daemon=True)
        self._thread.start()

    def _open(self, map_size: int, check_batch: Callable[[PartitionId, int, bytes], str | None] | None) -> None:
        complete = stored_format(self.directory)
        data = self.directory / "data.mdb"
        doubtful = (self.directory / "verify").exists()
        try:
            if not complete and is_unfinished(data):
                data.unlink()
            if complete:
                check_file(self.directory)
            if doubtful:
                # After a failed fsync the page cache may hold what the disk does not; verify what the disk has.
                fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)
            self._map_size = min(max(map_size, data.stat().st_size if data.exists() else 0), self.max_size)
            self._env = lmdb.open(str(self.directory), map_size=self._map_size, mode=0o600, max_dbs=16, max_readers=126)
            if self._env.max_key_size() < KEY_BYTES:
                raise UsageError(f"this build of LMDB allows keys of {self._env.max_key_size()} bytes, not {KEY_BYTES}")
            self._map_size = self._env.info()["map_size"]
            self._page = self._env.stat()["psize"]
            self._env.reader_check()
            self._open_databases(create=True)
            if not complete:
                fsync_directory(self.directory)
                close_to_others(self.directory)  # an odd umask takes the owner's rights as well
            if complete != FORMAT:
                say_format(self.directory)
        except lmdb.Error as e:
            raise open_error(self.directory, e) from e
        except OSError as e:
            raise StorageFailed(f"the data directory {self.directory} cannot be opened: {e}") from e
        if doubtful:
            findings = [str(f) for f, _ in zip(self.verify(check_batch), range(10), strict=False)]
            if findings:
                raise Corrupt(
                    f"the last run on {self.directory} ended with an I/O error and left damage: {'; '.join(findings)}"
                )
            (self.directory / "verify").unlink()
            fsync_directory(self.directory)
        self._check_small()
        self._remember()
        self._find_large()

    def _find_large(self) -> None:
        """Rows in files; and files of rows that never were, or went with a process that had no time to remove them."""
        try:
            self._files = large.Files(self.directory)
            found, stale, are_whole = self.large_rows()
            if stale:
                with self._env.begin(write=True) as txn:
                    for entry in stale:
                        txn.delete(entry, db=self.databases[LARGE])
            if are_whole:  # else a file may be somebody's without an entry that could be read
                self._files.sweep([place.name for place in found.values()])
        except OSError as e:
            raise StorageFailed(f"the data directory {self.directory} cannot be opened: {e}") from e
        self._known.large_bytes = sum(place.size for place in found.values())

    def _remember(self) -> None:
        """Changes that are in no tree yet."""
        with self._reading() as txn:
            for key, value in txn.cursor(self.databases[CHANGES]).iternext():
                self._check_numbered(CHANGES, key, value)
                rows = changed_rows(key, value) or ()
                self._known.late.add(Change(key[:6], position_of_row(key), rows, len(value)))

    def _changes(self, txn: lmdb.Transaction[bytes], packed: bytes) -> Sequence[Mapping[bytes, bytes | None]]:
        # Those that are in the tree of this transaction have perhaps left memory, but not while the gate is held.
        return self._known.late.layers(packed)

    def _check_small(self) -> None:
        # A damaged key of these would look as if the partition had never existed.
        with self._reading() as txn:
            for name in ("head", "logs"):
                for key, value in txn.cursor(self.databases[name]).iternext():
                    if not is_intact(BASE[name], key, value):
                        raise self._damage(name, key)

    def on_failed(self, callback: Callable[[BaseException], None]) -> None:
        """``callback(error)`` runs on the engine's thread when a transaction fails; nothing is written after it."""
        self._on_failed.append(callback)

    def submit(
        self,
        apply: Callable[[Writing, A], R],
        argument: A,
        reply: Callable[[list[R]], None],
        size: int = LIGHT_BYTES + 1,
    ) -> None:
        """Queue a write. After a failure (`on_failed`) it is dropped and never answered.

        Args:
            apply: called with the open transaction and ``argument`` on whatever thread writes; again if the transaction
                had to be replayed, so it must change nothing but the transaction. An exception fails the store.
            reply: called on the engine's thread, once per group, with the results of this ``reply``'s writes.
            size: bytes of it, about.
        """
        if self._stopping:
            return
        job = _Job(apply, argument, reply)
        self._light_bytes += size
        if self._soon is None or self._light_bytes > LIGHT_BYTES or not self._may_write:
            self._hand_over()
            self._unanswered += 1
            self._queue.put(job)
            return
        if not self._light:
            self._soon(self._write_light)
        self._light.append(job)

    def lazily(self, apply: Callable[[Writing, A], object], argument: A) -> None:
        """A write that can wait: it is part of the next transaction, or of one of its own if there is none for
        `LAZY_SECONDS`, or of the last one. Never blocks, and is not answered; who dies before that has lost it."""
        if self.error is not None:
            return
        self._lazy.append((apply, argument))
        if self._is_asleep:
            self._is_asleep = False
            self._queue.put(_WAKE)

    @property
    def _may_write(self) -> bool:
        """The engine's thread may: what its own has done has been answered, so nobody hears of things in the wrong
        order."""
        return not self._unanswered and self.error is None and self._pace.is_light and not self._known.late.is_due

    def _write_light(self) -> None:
        if not self._light:
            return
        if not self._may_write:
            self._hand_over()
            return
        jobs = list(self._light)
        self._light.clear()
        self._light_bytes = 0
        try:
            answer = self._write_group(jobs)
        except BaseException as e:
            self._fail(e)
        else:
            answer()

    def _hand_over(self) -> None:
        """What is not written yet, to the thread."""
        self._light_bytes = 0
        while self._light:
            self._unanswered += 1
            self._queue.put(self._light.popleft())

    def room(self) -> int:
        """Bytes that map and disk can still take, from below; cheap enough to ask before every intake."""
        page = self._page
        with self._gate:
            pages = (self._env.info()["last_pgno"] + 1) * page
            used = pages + self._known.large_bytes
        measured, bound, used_then = self._room
        now = time.monotonic()
        if now - measured > 1.0:
            used_then = used
            disk = os.statvfs(self.directory)
            with self._reading() as txn:
                stats = [self._env.stat(), *(txn.stat(db) for db in self.databases.values())]
            taken = sum([s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"] for s in stats])
            # Half of the free pages: the last transactions' are not reusable yet, and large batches need neighbours.
            reusable = max(0, pages // page - 2 - taken) * page // 2
            bound = min(self.max_size - used, disk.f_bavail * disk.f_frsize) + reusable
            self._room = (now, bound, used_then)
        return max(0, bound - max(0, used - used_then))

    def close(self) -> None:
        """Write what is queued, stop the writer, release the directory. Idempotent. No reply comes afterwards."""
        if self._stopping:
            return
        self._stopping = True
        self._hand_over()
        self._queue.put(_STOP)
        self._thread.join()
        super().close()
        self._files.close()
        os.close(self._lock_fd)

    # The thread that writes
    # The engine's does not while it has not answered what this one has done; what could wait has no answer.

    def _work(self) -> None:
        while (job := self._wait()) != _STOP:
            if isinstance(job, str) or self.error is not None:
                continue  # after an error nobody is answered any more
            jobs = [job]
            try:
                answer = self._write_group(jobs, self._take_next)
            except BaseException as e:
                self._fail(e)
            else:
                self._tell(partial(self._answered, len(jobs), answer))
        if self._lazy and self.error is None:
            self._write_lazy()

    def _answered(self, count: int, answer: Callable[[], None]) -> None:
        self._unanswered -= count
        answer()

    def _wait(self) -> _Job | str:
        """The next job; a transaction for what could wait, if nothing else has come for so long."""
        try:  # what can wait comes right behind a transaction, and need not wake anybody
            return self._queue.get(timeout=LAZY_SECONDS)
        except Empty:
            if self._lazy and self.error is None:
                if time.monotonic() - self._wrote >= LAZY_SECONDS:
                    self._write_lazy()
                return _WAKE
        self._is_asleep = True
        # Looked at after that was said: either this is seen here, or whoever adds to it sees that it has to wake.
        job = _WAKE if self._lazy and self.error is None else self._queue.get()
        self._is_asleep = False
        return job

    def _write_lazy(self) -> None:
        try:
            self._write_group([], self._take_next)
        except BaseException as e:
            self._fail(e)

    def _write_group(self, jobs: list[_Job], take: Callable[[list[_Job]], None] | None = None) -> Callable[[], None]:
        """Returns what answers. ``take`` adds what has come meanwhile, if it fits in."""
        with self._writing:
            began = time.monotonic()
            if began - self._readers_checked > 60:
                self._env.reader_check()  # a reader that was killed would hold freed pages for ever
                self._readers_checked = began
            results = self._write(jobs, take)
            self._wrote = time.monotonic()
            self._pace.wrote(began, self._wrote)
        replies: dict[Callable[[list[Any]], None], list[Any]] = {}
        for job, result in zip(jobs, results, strict=True):
            replies.setdefault(job.reply, []).append(result)

        def answer() -> None:
            for reply, results in replies.items():
                if not self._stopping:
                    reply(results)

        return answer

    def _write(self, jobs: list[_Job], take: Callable[[list[_Job]], None] | None) -> list[Any]:
        """In one transaction, with what could wait: some of it if the engine's thread waits (``take`` is None)."""
        lazy: list[tuple[Callable[[Writing, Any], object], Any]] = []
        while True:
            results: list[Any] = []
            try:
                txn = self._env.begin(write=True)
                try:
                    writing = Writing(self, self._known, self._files, self._inline_limit, txn)
                    if take is not None:
                        writing.merge(GROUP_PAGES)
                    for job in jobs:  # grows while it runs
                        results.append(job.apply(writing, job.argument))
                        if take is not None and len(results) == len(jobs) and writing.pages < GROUP_PAGES:
                            take(jobs)
                    while self._lazy and (take is not None or len(lazy) < _MANY):
                        lazy.append(self._lazy.popleft())
                    for apply, argument in lazy:
                        apply(writing, argument)
                    if take is not None:
                        writing.clear()
                    writing.finish()
                except BaseException:
                    txn.abort()
                    raise
                with self._gate:
                    self._known.learn(writing)
                self._files.remove([place.name for place in writing.over])
                return results
            except lmdb.MapFullError:
                # (After another error it is not known for sure that nothing refers to them: the next start looks.)
                self._files.remove([place.name for place in writing.added])
                self._grow()

    def _take_next(self, jobs: list[_Job]) -> None:
        try:
            job = self._queue.get_nowait()
        except Empty:
            return
        if isinstance(job, str):
            self._queue.put(job)  # after this group: nothing can be queued behind the last one
        else:
            jobs.append(job)

    def _grow(self) -> None:
        self._env.reader_check()
        if self._map_size >= self.max_size:
            raise StorageFailed(
                f"the data in {self.directory} has reached its largest size ({self.max_size} bytes);"
                " let it drain or allow more (max-size)"
            )
        self._map_size = min(self._map_size * 2, self.max_size)
        with self._gate:  # LMDB moves the map: no read transaction of this process may be open
            self._env.set_mapsize(self._map_size)

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, lmdb.Error | OSError):
            failure = StorageFailed(f"writing to {self.directory} failed: {error}")
            failure.__cause__ = error
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            full = full or getattr(error, "code", 0) == errno.ENOSPC
            if not full:
                try:
                    write_durably(self.directory / "verify", f"{error}\n")
                except OSError:
                    pass  # a disk that takes nothing; the error itself is reported
            error = failure
        self.error = error
        self._tell(lambda: [None for failed in self._on_failed if not self._stopping and failed(error)])

    def _tell(self, what: Callable[[], object]) -> None:
        def run() -> None:
            what()

        try:
            self._post(run)
        except RuntimeError:
            if not self._stopping:  # the loop is gone: nobody is left who could be told, or submit
                self.error = self.error or StorageFailed("the engine's loop has ended")
