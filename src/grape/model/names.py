"""What namespaces, keys, tags and metadata of objects may be: one rule, such that every storage can keep them."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from grape.errors import BadArgument
from grape.model.objects import INLINE, OCTETS, REMOVED, ObjectWrite
from grape.model.values import shown

MAX_KEY: Final = 900
"""Bytes of UTF-8: S3 has 1,024, of which a prefix needs some."""
MAX_TAGS: Final = 50
MAX_TAG: Final = 200
MAX_USER: Final = 2_000
"""Bytes of all user metadata of an object, names and values: what S3 takes."""
_LATEST: Final = 1 << 62
_NAMESPACE: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_EASY_KEY: Final = re.compile(r"(?:(?!\.)[ -.0-~]+/)*(?!\.)[ -.0-~]+")
"""What is a key at a glance, if it is not too long."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
_UNPLAIN: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What no tag has: nothing that needs tables of Unicode, as workers of every language have to know it."""
_TYPE: Final = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,100}/[A-Za-z0-9!#$&^_.+-]{1,100}( *; *[\x20-\x7e]{1,200})?")


def check_namespace(name: object) -> str:
    """
    Raises:
        BadArgument: it cannot be one.
    """
    if type(name) is not str or not _is_namespace(name):
        raise BadArgument(
            f"a namespace is 1 to 63 small letters, digits, '-', '_' and '.', the first a letter or digit, without "
            f"'..', not {shown(name)}"
        )
    return name


@lru_cache(maxsize=256)
def _is_namespace(name: str) -> bool:
    return _NAMESPACE.fullmatch(name) is not None and ".." not in name


def check_write(write: ObjectWrite) -> None:
    """What comes from outside, or from a worker. Whether bytes in a file are there is not looked at.

    Raises:
        BadArgument: it cannot be.
    """
    check_namespace(write.namespace)
    check_key(write.key)
    check_type(write.content_type)
    check_user(write.user)
    if write.tags and check_tags(write.tags) != tuple(write.tags):
        raise BadArgument("the tags of an object are sorted, each once")
    if not (0 <= write.time <= _LATEST and 0 <= write.expires <= _LATEST):
        raise BadArgument(f"the times of an object are microseconds since 1970, not {write.time} and {write.expires}")
    if write.size == REMOVED:
        is_right = not (write.data or write.checksum or write.blob)
    elif write.blob:
        is_right = not write.data and len(write.checksum) == 32 and write.size > 0
    else:
        is_right = len(write.data) == write.size <= INLINE and len(write.checksum) == 32
    if not is_right:
        raise BadArgument(f"an object of {write.size} bytes, which it does not have")


def own_namespace(app: str) -> str:
    """The namespace of an app's own objects: its name, if that can be one."""
    if _is_namespace(app):
        return app
    plain = re.sub(r"[^a-z0-9]+", "-", app.lower()).strip("-")[:40] or "app"
    return f"{plain}-{zlib.crc32(app.encode()):08x}"


def check_key(key: object) -> str:
    """
    Raises:
        BadArgument: it cannot be one.
    """
    if type(key) is str and len(key) <= MAX_KEY and _EASY_KEY.fullmatch(key) is not None:
        return key
    if type(key) is not str or not key:
        raise BadArgument(f"the key of an object is text (str) of 1 character at least, not {shown(key)}")
    check_prefix(key)
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise BadArgument(f"the key of an object has no empty part, '.' or '..' between its '/': {key!r:.100}")
    return key


def may_be_key(key: str) -> bool:
    """Whether `check_key` takes it."""
    try:
        check_key(key)
    except BadArgument:
        return False
    return True


def check_prefix(prefix: object) -> str:
    """What keys may begin with.

    Raises:
        BadArgument: none can.
    """
    if type(prefix) is not str:
        raise BadArgument(f"the prefix of keys is text (str), not {shown(prefix)}")
    try:
        size = len(prefix.encode())
    except UnicodeEncodeError:
        raise BadArgument(f"a key cannot be encoded as UTF-8: {prefix!r:.100}") from None
    if size > MAX_KEY:
        raise BadArgument(f"the key of an object has at most {MAX_KEY} bytes of UTF-8; {prefix[:30]!r}... has {size}")
    if any(ord(c) < 32 or ord(c) == 127 for c in prefix):
        raise BadArgument(f"the key of an object has no control characters: {prefix!r:.100}")
    return prefix


def check_tags(tags: object) -> tuple[str, ...]:
    """Sorted, each once.

    Raises:
        BadArgument: one cannot be.
    """
    if tags == ():
        return ()
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise BadArgument(f'tags are a list of text, such as ["raw"], not {shown(tags)}')
    found = list(tags)
    for tag in found:
        if type(tag) is not str or not tag or _UNPLAIN.search(tag) or len(tag.encode()) > MAX_TAG:
            raise BadArgument(f"a tag is printable text of 1 to {MAX_TAG} bytes, not {shown(tag)}")
    if len(set(found)) > MAX_TAGS:
        raise BadArgument(f"an object has at most {MAX_TAGS} tags, not {len(set(found))}")
    return tuple(sorted(set(found)))


def check_user(user: object) -> dict[str, str]:
    """
    Raises:
        BadArgument: it cannot be metadata.
    """
    if type(user) is dict and not user:
        return {}
    if not isinstance(user, Mapping):
        raise BadArgument(f'user metadata is a dictionary of text, such as {{"camera": "b"}}, not {shown(user)}')
    size = 0
    for name, value in user.items():
        if type(name) is not str or _NAME.fullmatch(name) is None:
            raise BadArgument(f"a name of user metadata is small letters, digits, '-', '_' and '.', not {shown(name)}")
        if type(value) is not str or _UNPLAIN.search(value):
            raise BadArgument(f"user metadata {name!r} is printable text, not {shown(value)}")
        size += len(name) + len(value.encode())
    if size > MAX_USER:
        raise BadArgument(f"the user metadata of an object has at most {MAX_USER} bytes, not {size}")
    return dict(user)


def check_type(content_type: object) -> str:
    """
    Raises:
        BadArgument: it is no media type.
    """
    if content_type == OCTETS:
        return OCTETS
    if type(content_type) is not str or _TYPE.fullmatch(content_type) is None:
        raise BadArgument(f"a content type is as image/png, not {shown(content_type)}")
    return content_type
