"""How keys, and what is known of objects, lie in S3.

    PREFIX/NAMESPACE/KEY     "\\" as %5C, which some servers take for "/"; so "%5C" and "%25" as %255C and %2525
    x-amz-meta-grape         another one for every write
    x-amz-meta-grape-...     sum, crc, time, tags, expires
    x-amz-meta-NAME          what a user wants to be known beside; a name that begins with "grape" as grape-user-NAME

Values are ASCII, percent-encoded. What has no x-amz-meta-grape was written by another program, and is read as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, unquote

from grape.abc.storage import OCTETS, About, Put
from grape.errors import BadArgument

MAX_KEY: Final = 1024
_WRITE: Final = "grape"
_SUM: Final = "grape-sum"
_CRC: Final = "grape-crc"
_TIME: Final = "grape-time"
_TAGS: Final = "grape-tags"
_EXPIRES: Final = "grape-expires"
_USER: Final = "grape-user-"
_TO_ESCAPE: Final = re.compile(r"\\|%(?=25|5C)")
_ESCAPED: Final = re.compile(r"%(25|5C)")
_HALF_ESCAPED: Final = re.compile(r"%[25]?\Z")
_PLAIN: Final = "!\"#$&'()*+-./:;<=>?@[]^_`{|}~"
_EMPTY: Final = "%"
"""No server keeps a value that is empty."""


def stored_key(begin: str, key: str) -> str:
    """``begin``: PREFIX/NAMESPACE/.

    Raises:
        BadArgument: it is too long.
    """
    full = begin + _TO_ESCAPE.sub(lambda found: f"%{ord(found[0]):02X}", key)
    if len(full.encode()) > MAX_KEY:
        raise BadArgument(
            f"a key has at most {MAX_KEY:,} bytes in S3, with prefix and namespace before it, and '\\' as three of "
            f"them; {key[:30]!r}... has {len(full.encode()):,}"
        )
    return full


def stored_prefix(begin: str, prefix: str) -> str:
    """What all keys that begin with ``prefix`` begin with as they are stored; others may, too."""
    return begin + _HALF_ESCAPED.sub("", _TO_ESCAPE.sub(lambda found: f"%{ord(found[0]):02X}", prefix))


def key_of(begin: str, stored: str) -> str:
    return _ESCAPED.sub(lambda found: "%" if found[1] == "25" else "\\", stored[len(begin) :])


def metadata_of(put: Put, checksum: str, time: int, write: str, check: str = "") -> dict[str, str]:
    """Of an object that is written. ``write``: another one for every write. ``check``: as `Reading` has it."""
    found = {_WRITE: write, _SUM: checksum, _TIME: str(time)}
    if check:
        found[_CRC] = check.removeprefix("crc32:")
    if put.tags:
        found[_TAGS] = ",".join(quote(tag, safe=_PLAIN) for tag in put.tags)
    if put.expires:
        found[_EXPIRES] = str(put.expires)
    for name, value in put.user.items():
        found[_USER + name if name.startswith(_WRITE) else name] = quote(value, safe=_PLAIN + ",") or _EMPTY
    return found


def written_by(metadata: Mapping[Any, str]) -> str:
    """The ``write`` of `metadata_of`; "": another program's."""
    return metadata.get(_WRITE, "")


def check_of(metadata: Mapping[Any, str]) -> str:
    """As `Reading` has it."""
    found = metadata.get(_CRC, "")
    return f"crc32:{found}" if written_by(metadata) and re.fullmatch("[0-9a-f]{8}", found) else ""


def version_of(etag: str, write: str = "") -> str:
    """S3 compares the ETag, which is the same for the same bytes, so it takes both to be another one every time."""
    etag = etag.strip('"')
    return f"{etag}.{write}" if write else etag


def etag_of(version: str) -> str:
    return f'"{version.partition(".")[0]}"'


def about_of(key: str, size: int, etag: str, modified: int, attributes: Mapping[Any, str]) -> About:
    """``attributes``: "Content-Type" and metadata. ``modified``: microseconds since 1970, as the server says."""
    content_type = attributes.get("Content-Type") or OCTETS
    write = written_by(attributes)
    try:
        time, expires = int(attributes[_TIME]), int(attributes.get(_EXPIRES, "0"))
        checksum = attributes[_SUM]
    except (KeyError, ValueError):
        write = ""
    if not write:
        user = {
            name: value for name, value in attributes.items() if name == name.lower() and not name.startswith(_WRITE)
        }
        return About(key, size, version_of(etag), "", modified, content_type, (), user)
    tags = tuple(unquote(tag) for tag in attributes[_TAGS].split(",")) if _TAGS in attributes else ()
    user = {}
    for name, value in attributes.items():
        if name.startswith(_USER):
            name = name.removeprefix(_USER)
        elif name.startswith(_WRITE) or name != name.lower():  # "Content-Type" and its like
            continue
        user[name] = "" if value == _EMPTY else unquote(value)
    return About(key, size, version_of(etag, write), checksum, time, content_type, tags, user, expires)
