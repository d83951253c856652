"""Objects from one place to another: what is known of them goes along, and nothing is removed that was not copied."""

from __future__ import annotations

import os
from typing import Final

from msgspec import Struct, structs

from grape.abc.storage import If, Place, Put, Storage
from grape.errors import Conflict, UsageError
from grape.model.bound import Bound
from grape.model.objects import About
from grape.storage.connect import config_of
from grape.storage.objects import Objects

_AGAIN: Final = 100
"""Somebody else may write what is being moved, again and again."""


class Copied(Struct, frozen=True):
    """``about``: of what was there to be copied. ``is_new``: it was not there, or something else was. ``is_itself``: it
    was, and is the very one, by whatever other name its storage goes."""

    about: About
    is_new: bool
    is_itself: bool = False


def are_same(one: Bound, other: Bound) -> bool:
    """Both are the same namespace of the same storage, as far as names tell.

    Raises:
        UsageError: one is none.
    """
    (place, app), (other_place, other_app) = _place(one.url), _place(other.url)
    are_apps = app is not None and other_app is not None and app != other_app
    return one.namespace == other.namespace and place == other_place and not are_apps


def _place(url: str) -> tuple[list[str], str | None]:
    """Where it is, not how it is spoken to; and of which app of a directory, which may be left out if it has one."""
    name, config = config_of(url)
    found = structs.asdict(config)
    found.pop("timeout", None)
    app = found.pop("app", None)
    for directory in ("root", "directory"):
        if directory in found:
            found[directory] = os.path.realpath(found[directory])
    return [name, *map(str, found.items())], app


async def copy(source: Objects, into: Objects, key: str, new: str = "") -> Copied | None:
    """Write it there, as ``new``, unless the same is there with all that is known of it. None: there is no such object.

    Raises:
        Corrupt: it is not what was written, so it is not copied.
    """
    async with source.open(key) as found:
        if found is None:
            return None
        about = found.about
        there = await into.stat(new or key)
        if there is not None and _are_alike(about, there, into.storage):
            return Copied(about, False, _is_itself(source, into, about, there))
        put = Put(size=about.size, checksum=about.checksum if about.checksum.startswith("sha256:") else "")
        if into.storage.features.keeps_about:
            put = structs.replace(
                put,
                content_type=about.content_type,
                tags=about.tags,
                user=about.user,
                time=about.time,
                expires=about.expires,
            )
        await into.storage.write(Place(into.namespace, new or key), found.chunks, put)
        return Copied(about, True)


async def move(source: Objects, into: Objects, key: str, new: str = "") -> Copied | None:
    """The same, and what was copied is removed; what is written meanwhile is copied, too.

    Raises:
        UsageError: it would be moved onto itself.
    """
    for _ in range(_AGAIN):
        copied = await copy(source, into, key, new)
        if copied is None:
            return None
        if copied.is_itself:
            raise UsageError(f"{source.namespace}/{key} would be moved onto itself: both storages are one")
        if await _is_removed(source, key, copied.about):
            return copied
    raise Conflict(f"{source.namespace}/{key} is written again and again; it was copied {_AGAIN} times")


def _are_alike(one: About, other: About, storage: Storage) -> bool:
    """``storage``: of the other."""
    if one.size != other.size or not one.checksum or one.checksum != other.checksum:
        return False
    return not storage.features.keeps_about or _known(one) == _known(other)


def _is_itself(source: Objects, into: Objects, one: About, other: About) -> bool:
    """No two objects have one version, but for embedded ones, which are counted, and are told apart by their place."""
    is_counted = source.storage.name == "embedded"
    return source.storage.name == into.storage.name and not is_counted and one.version == other.version


def _known(about: About) -> tuple[object, ...]:
    return about.content_type, about.tags, about.user, about.expires


async def _is_removed(source: Objects, key: str, about: About) -> bool:
    """False: another version is there by now."""
    features = source.storage.features
    if features.swaps and features.removes:
        try:
            await source.storage.remove(Place(source.namespace, key), If(version=about.version))
        except Conflict:
            return await source.stat(key) is None
        return True
    now = await source.stat(key)
    if now is not None and now.version != about.version:
        return False
    await source.remove(key)
    return True
