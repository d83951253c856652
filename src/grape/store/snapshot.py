"""One moment of a data directory, also while an engine works on it: held, and written elsewhere as a whole."""

from __future__ import annotations

import os
from pathlib import Path

import lmdb

from grape.errors import StorageFailed
from grape.store.keeping import keep
from grape.store.reader import Reader, open_error


class Snapshot(Reader):
    """The moment is the one at which this was made: the commits before it are in it, and nothing else.

    As long as it is held, the engine's file grows with what is written, as pages of that moment are not used again, and
    files stay that nobody has any more, of rows and of objects.

    Args:
        directory: of a complete data directory.

    Raises:
        UsageError, Corrupt: as `Reader`.
        StorageFailed: the disk refused.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        super().__init__(directory)
        self._kept: int | None = None
        try:
            self._kept = keep(self.directory)  # first: what the moment names has its file
            self._moment = self._begin()
        except (lmdb.Error, OSError) as e:
            self._close()
            if isinstance(e, lmdb.Error):
                raise open_error(self.directory, e) from e
            raise StorageFailed(f"{e.filename or self.directory}: {e.strerror or e}") from e

    def _begin(self) -> lmdb.Transaction[bytes]:
        try:
            return self._env.begin()
        except lmdb.MapResizedError:  # the engine, another process, has let the map grow
            self._env.set_mapsize(0)
            return self._env.begin()

    @property
    def has_its_files(self) -> bool:
        """All that it names are there, unless they were lost before; else only those that nobody has removed since."""
        return self._kept is not None

    @property
    def size(self) -> int:
        """Bytes that it has at most."""
        return int(self._env.info()["last_pgno"] + 1) * int(self._env.stat()["psize"])

    def write(self, target: Path) -> None:
        """As a ``data.mdb`` in ``target``, an empty directory; without the pages that hold nothing. Durable when it
        returns.

        Raises:
            Corrupt: a page cannot be what it should be.
            StorageFailed: the disk refused.
        """
        try:
            self._env.copy(str(target), compact=True, txn=self._moment)
            fd = os.open(target / "data.mdb", os.O_RDWR | os.O_CLOEXEC)
            try:
                os.fchmod(fd, 0o600)
                os.fsync(fd)
            finally:
                os.close(fd)
        except lmdb.Error as e:
            found = open_error(self.directory, e)
            if isinstance(found, StorageFailed):
                found = StorageFailed(f"{self.directory} cannot be copied to {target}: {e}")
            raise found from e
        except OSError as e:
            raise StorageFailed(f"{e.filename or target}: {e.strerror or e}") from e

    def close(self) -> None:
        if not self.closed:
            self._moment.abort()
        self._close()

    def _close(self) -> None:
        super().close()
        if self._kept is not None:
            os.close(self._kept)
            self._kept = None
