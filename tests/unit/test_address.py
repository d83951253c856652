"""Keys, names of timers, and where a key lives."""

from __future__ import annotations

from typing import Any

import pytest

from grape.model.address import (
    MAX_KEY_BYTES,
    MAX_TIMER_NAME,
    PartitionId,
    Partitions,
    check_key,
    check_timer_name,
    partition_of,
)


@pytest.mark.parametrize(("check", "most"), [(check_key, MAX_KEY_BYTES), (check_timer_name, MAX_TIMER_NAME)])
class TestText:
    def test_it_has_one_byte_of_utf8_to_as_many_as_may_be(self, check: Any, most: int) -> None:
        for text in ("k", "k" * most, "é" * (most // 2)):
            assert check(text) is text
        for text in ("", "k" * (most + 1), "é" * (most // 2 + 1)):
            with pytest.raises(ValueError, match=f"1 to {most:,} bytes"):
                check(text)

    def test_lone_surrogates_are_no_text(self, check: Any, most: int) -> None:
        with pytest.raises(ValueError, match="valid UTF-8"):
            check("\ud800")

    @pytest.mark.parametrize("value", [None, 1, b"k", ["k"], type("Text", (str,), {})("k")])
    def test_it_is_exactly_text(self, check: Any, most: int, value: object) -> None:
        with pytest.raises(TypeError, match="is text"):
            check(value)


def test_a_key_lives_where_the_crc_of_its_utf8_bytes_says() -> None:
    """Fixed for ever: every directory that there is depends on it, and every language computes it."""
    assert [partition_of(key, 32) for key in ("a", "b", "é", "a longer key")] == [3, 25, 30, 21]
    assert partition_of("a", 1) == 0


def test_partitions_packed_are_in_their_order() -> None:
    ids = [
        PartitionId(0, 0, 0),
        PartitionId(0, 0, 1),
        PartitionId(0, 0, 256),
        PartitionId(0, 1, 0),
        PartitionId(1, 0, 0),
    ]
    packed = [one.packed() for one in ids]
    assert packed == sorted(packed)
    assert [PartitionId.unpack(one) for one in packed] == ids
    assert {len(one) for one in packed} == {6}


def test_many_keys_are_looked_up_as_one_is() -> None:
    partitions = Partitions(7)
    keys = [f"k{i}" for i in range(20)]
    assert [partitions[key] for key in keys * 2] == [partition_of(key, 7) for key in keys] * 2
    assert list(partitions) == keys  # each was worked out once
    with pytest.raises(ValueError, match="1 to"):
        partitions[""]
    with pytest.raises(TypeError):
        partitions[1]
    assert list(partitions) == keys


def test_no_more_keys_are_remembered_than_fit() -> None:
    partitions = Partitions(32)
    for i in range(65_536):
        partitions[str(i)]
    assert len(partitions) == 65_536
    assert partitions["one more"] == partition_of("one more", 32)
    assert list(partitions) == ["one more"]
