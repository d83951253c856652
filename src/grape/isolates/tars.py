"""Reading a tar that nobody vouches for: whatever is read into memory is bounded before it is read."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable
from typing import IO, Final, NoReturn

MOST_BYTES: Final = 16 << 30
EXTENSIONS: Final = 4 << 20
"""Bytes of what stands before headers, long names and attributes, that are kept together."""
GZIP: Final = b"\x1f\x8b"
_EXTENSION: Final = 256 << 10
"""Of one."""
_IN_A_ROW: Final = 8
_OTHERS: Final = {b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2"}
"""Compressions that are not taken; those of xz may ask for gigabytes of memory."""
_PAX: Final = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


def open_tar(file: IO[bytes], refuse: Callable[[str], NoReturn], kept: int) -> tarfile.TarFile:
    """A tar, compressed or not.

    Args:
        refuse: called with what is wrong in it; raises.
        kept: so many bytes of long names and attributes may be kept while it is open.
    """
    head = file.read(6)
    file.seek(0)
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            refuse(f"is compressed with {name}, which is not understood here; export it with gzip")
    plain = gzip.GzipFile(fileobj=file) if head.startswith(GZIP) else file
    return tarfile.open(fileobj=plain, mode="r:", tarinfo=_bounded(refuse, kept))


def _bounded(refuse: Callable[[str], NoReturn], kept: int) -> type[tarfile.TarInfo]:
    """Headers of one archive. What stands before a header is read into memory as a whole, so its size is looked at as
    soon as it is known."""
    extensions = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *_PAX)
    in_a_row = total = 0

    class Header(tarfile.TarInfo):
        def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
            """What `tarfile` does with every header before it reads on, and means to be overridden: who calls `frombuf`
            differs from version to version."""
            nonlocal in_a_row, total
            if self.type == tarfile.GNUTYPE_SPARSE:
                refuse("has a file with holes, which nobody needs")
            in_a_row = in_a_row + 1 if self.type in extensions else 0
            if in_a_row:
                total += self.size if kept < MOST_BYTES or self.type == tarfile.XGLTYPE else 0
                if not 0 <= self.size <= _EXTENSION or total > min(kept, EXTENSIONS) or in_a_row > _IN_A_ROW:
                    refuse("has names or attributes that are too long, or too many")
            elif self.size < 0:
                refuse("is damaged: a file has a negative size")
            return super()._proc_member(archive)  # type: ignore[misc, no-any-return]

        def _no_holes(self, *_: object) -> NoReturn:
            refuse("has a file with holes, which nobody needs")

        # How `tarfile` reads the maps of files with holes, which may be of any size.
        _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _no_holes

    return Header
