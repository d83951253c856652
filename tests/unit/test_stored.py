"""Keys of rows, and when state expires."""

from __future__ import annotations

from typing import Any

import pytest

from grape.model.stored import (
    TIMER_NAME,
    HeldCall,
    HoldEntry,
    encode,
    expiry_of,
    row_key,
    state_key,
    timer_key,
    timer_name_key,
)


def test_rows_sort_by_their_numbers_and_times() -> None:
    numbers = [0, 1, 255, 256, 1 << 40]
    assert [row_key(n) for n in numbers] == sorted(map(row_key, numbers))
    assert len(row_key(0)) == 8
    timers = [(0, 0), (0, 1), (1, 0), (256, 0), (256, 1 << 32), (1 << 60, 0)]
    assert [timer_key(*timer) for timer in timers] == sorted(timer_key(*timer) for timer in timers)
    assert len(timer_key(0, 0)) == 16
    assert int.from_bytes(timer_key(77, 1)[:8], "big") == 77


def test_the_state_of_a_node_is_together() -> None:
    assert state_key(1, b"key") == b"\x00\x01key"
    assert state_key(0x1234, b"") == b"\x12\x34"


def test_the_name_of_a_timer_has_a_key_of_its_own() -> None:
    """It stands in directories: it never changes."""
    key = timer_name_key(1, b"ann", "end")
    assert key == TIMER_NAME + b"\x00\x01" + bytes.fromhex("5d441b89d656f1bb589bf4519df618a4")
    assert key.startswith(timer_name_key(1))
    assert timer_name_key(1) == TIMER_NAME + b"\x00\x01"


def test_key_and_name_of_a_timer_do_not_run_into_each_other() -> None:
    keys = [timer_name_key(1, *of) for of in ((b"ab", "c"), (b"a", "bc"), (b"", "abc"), (b"abc", "d"))]
    keys.append(timer_name_key(2, b"ab", "c"))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("record", "due"),
    [
        ({"a": 1, "": {"a": 5}}, 5),
        ({"a": 1, "b": 2, "": {"a": 5, "b": 9}}, 9),
        ({"a": 1, "b": 2, "": {"a": 9, "b": 5}}, 9),
        ({"a": 1, "b": 2, "": {"a": 5}}, 0),  # one of them stays
        ({"a": 1}, 0),
        ({"a": 1, "": None}, 0),
        ({"a": 1, "": {}}, 0),
        ({"": {"a": 5}}, 0),
        ({}, 0),
        ({"a": 1, "": "odd"}, 0),
    ],
)
def test_when_all_of_a_record_has_expired(record: dict[str, Any], due: int) -> None:
    assert expiry_of(encode(record)) == due


@pytest.mark.parametrize(
    "packed", [b"", b"\xc1", b"\x90", b"\x81\xa1\xff\x01", b"\x81\xa1a" + b"\x91" * 100_000 + b"\xc0"]
)
def test_a_record_that_cannot_be_read_never_expires(packed: bytes) -> None:
    assert expiry_of(packed) == 0


def test_an_entry_waits_for_the_answer_to_its_last_call() -> None:
    def entry(*answers: bytes | None) -> HoldEntry:
        return HoldEntry("n", "e", "1", None, 0, b"", calls=[HeldCall("c", b"d", answer) for answer in answers])

    assert not entry().is_suspended
    assert entry(None).is_suspended
    assert not entry(b"").is_suspended
    assert entry(b"x", None).is_suspended
