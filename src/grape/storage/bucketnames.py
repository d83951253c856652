"""How keys, and the names of metadata, lie at Google and at Azure: as in S3 (`grape.storage.s3about`), so that a bucket
that is copied from one to the other is read there, but for what Azure does not take.

    a key       Azure advises against "." at the end of a part: it is %2E there, and so "%2E" is %252E
    a name      Azure takes letters, digits and "_": "-" is "__", everything else, "_" too, is "_" and two hexadecimal
                digits: grape-sum is grape__sum
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from grape.errors import BadArgument
from grape.storage.s3about import MAX_KEY, written_by

_AZURE_NAME: Final = re.compile(r"__|_([0-9a-f]{2})")
_TO_NAME: Final = re.compile(r"^[0-9]|[^a-z0-9]")
_HALF_ESCAPED: Final = re.compile(r"%[25]?\Z")
_LAST: Final = "\U0010fffd"
"""Nothing that is a key comes after it."""


class Names(Struct, frozen=True):
    """
    Args:
        cloud: for people.
        to_escape: what is stored percent-encoded. escaped: the same as it is stored.
        identifiers: whether names of metadata have to be some.
    """

    cloud: str
    to_escape: re.Pattern[str]
    escaped: re.Pattern[str]
    identifiers: bool

    def stored(self, begin: str, key: str) -> str:
        """``begin``: PREFIX/NAMESPACE/.

        Raises:
            BadArgument: it is too long.
        """
        full = begin + self._escaped(key)
        if len(full.encode()) > MAX_KEY:
            raise BadArgument(
                f"a key has at most {MAX_KEY:,} bytes at {self.cloud}, with prefix and namespace before it, and what "
                f"is escaped as three of them; {key[:30]!r}... has {len(full.encode()):,}"
            )
        return full

    def key(self, begin: str, stored: str) -> str:
        return self.escaped.sub(lambda found: chr(int(found[1], 16)), stored[len(begin) :])

    def common(self, begin: str, prefix: str) -> str:
        """What all keys that begin with ``prefix`` begin with as they are stored; others may, too."""
        if self.to_escape.search("."):
            prefix = prefix.rstrip(".")  # whether a part ends there is not known
        return begin + _HALF_ESCAPED.sub("", self._escaped(prefix))

    def _escaped(self, text: str) -> str:
        return self.to_escape.sub(lambda found: f"%{ord(found[0]):02X}", text)

    def told(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """Metadata, by the names that the cloud takes."""
        if not self.identifiers:
            return dict(metadata)
        return {_TO_NAME.sub(_of_letter, name): value for name, value in metadata.items()}

    def heard(self, attributes: Mapping[str, str]) -> dict[str, str]:
        """The other way round; another program's are as they are."""
        if not self.identifiers or not written_by(attributes):
            return dict(attributes)
        return {
            name if name != name.lower() else _AZURE_NAME.sub(_letter, name): value
            for name, value in attributes.items()
        }


GOOGLE: Final = Names("Google", re.compile(r"\\|%(?=25|5C)"), re.compile(r"%(25|5C)"), False)
AZURE: Final = Names("Azure", re.compile(r"\\|\.(?=/|\Z)|%(?=25|5C|2E)"), re.compile(r"%(25|5C|2E)"), True)


def _of_letter(found: re.Match[str]) -> str:
    return "__" if found[0] == "-" else f"_{ord(found[0]):02x}"


def _letter(found: re.Match[str]) -> str:
    return "-" if found[1] is None else chr(int(found[1], 16))


def asked(common: str, position: str) -> tuple[str, str | None]:
    """How a list is asked for that has what begins with ``common``, after ``position`` ("": from the first on): by a
    directory, since no part of a name is taken, and what it begins after."""
    directory, _, part = common.rpartition("/")
    before = _before(f"{directory}/", part) if part else None
    return directory, max(filter(None, (position, before)), key=str.encode, default=None)


def _before(directory: str, part: str) -> str | None:
    """Comes before all that begins with DIRECTORY/PART, and after nearly all that comes before that."""
    last = ord(part[-1]) - 1
    last -= last == ord("/")
    if last in range(0xD800, 0xE000):
        last = 0xD7FF
    return None if last < ord(" ") else f"{directory}{part[:-1]}{chr(last)}{_LAST}"
