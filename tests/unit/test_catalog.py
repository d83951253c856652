"""A catalog of another format is refused with the remedy, one that is none as damage."""

from __future__ import annotations

import msgspec
import pytest

from grape.engine.catalog import read_catalog
from grape.errors import Corrupt, UsageError
from grape.model.stored import FORMAT, Catalog, encode


@pytest.mark.parametrize("version", [1, FORMAT + 1])
def test_another_format_is_refused_with_the_remedy(version: int) -> None:
    with pytest.raises(UsageError, match=f"has format {version}; this Grape reads and writes format {FORMAT}: use"):
        read_catalog(encode(Catalog(version)))


@pytest.mark.parametrize("first", [0, -1, "2", None])
def test_what_is_no_format_is_damage(first: object) -> None:
    with pytest.raises(Corrupt):
        read_catalog(msgspec.msgpack.encode([first, {}, 1]))


def test_the_own_format_is_read() -> None:
    assert read_catalog(encode(Catalog())) == Catalog()
