"""A storage by its URL: NAME://PLACE?SETTING=VALUE."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qsl

from grape.abc.storage import Storage, StorageConfig
from grape.builtins import storage as find
from grape.errors import UsageError
from grape.model.section import read_section
from grape.model.urls import without_secrets


def storage_of(url: str) -> Storage:
    """A storage that is not open yet.

    Raises:
        UsageError: there is no such storage, or what it is told cannot be.
    """
    name, config = config_of(url)
    return find(name)(config)


def config_of(url: str) -> tuple[str, StorageConfig]:
    """Its name, and what it is told. Errors are those of `storage_of`."""
    try:
        url.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the URL of a storage is text, and {url!r:.100} is none") from None
    name, there_is, rest = url.partition("://")
    if not there_is:
        raise UsageError(
            f"a storage is named by a URL, such as file:///srv/objects, not by {without_secrets(url)!r:.100}"
        )
    place, _, query = rest.partition("?")
    kind = find(name)
    settings = kind.settings_of(place)
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in settings:
            raise UsageError(f"{name}://...: {key} is said twice")
        settings[key] = _value(value)
    try:
        return name, read_section(kind.Config, settings, f"{name}://")
    except ValueError as e:
        raise UsageError(str(e)) from None


def _value(text: str) -> object:
    if text in ("true", "false"):
        return text == "true"
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Storage]:
    """It, open until the block is left.

    Raises:
        UsageError: it cannot be used.
    """
    storage = storage_of(url)
    try:
        await storage.open()
        yield storage
    finally:
        await storage.close()
