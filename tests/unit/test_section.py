"""Sections of configuration files: sizes, durations, and what is said of mistakes."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Struct

from grape.model.section import Duration, Size, read_section, show_size


class Inner(Struct, frozen=True, rename="kebab"):
    most: Size = Size(1)


class Section(Struct, rename="kebab"):
    max_size: Size = Size(7)
    idle_timeout: Duration = Duration(1.5)
    name: str = ""
    inner: Inner = Inner()


def size(value: Any) -> int:
    return read_section(Section, {"max-size": value}, "here").max_size


def duration(value: Any) -> float:
    return read_section(Section, {"idle-timeout": value}, "here").idle_timeout


@pytest.mark.parametrize(
    ("value", "bytes_"),
    [
        (0, 0),
        (12, 12),
        ("12", 12),
        ("12 B", 12),
        ("1.5 kB", 1_500),
        ("2kb", 2_000),
        ("3 MB", 3_000_000),
        ("1 GB", 10**9),
        ("1 TB", 10**12),
        (" 4  KiB ", 4096),
        ("0.5 KiB", 512),
        ("512 MiB", 512 << 20),
        ("1 GiB", 1 << 30),
        ("3 tib", 3 << 40),
        ("9007199254740993", 9_007_199_254_740_993),  # no float has it
        (2**63 - 1, 2**63 - 1),
    ],
)
def test_sizes(value: Any, bytes_: int) -> None:
    assert size(value) == bytes_


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (1.5, 1.5),
        ("2", 2.0),
        ("250 ms", 0.25),
        ("1.5 s", 1.5),
        ("10 min", 600.0),
        ("1.5h", 5_400.0),
        ("2 D", 172_800.0),
    ],
)
def test_durations(value: Any, seconds: float) -> None:
    assert duration(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", [-1, True, "", "MiB", "1 MiB 2", "-1 kB", "1 s", "1 x", "1..5 kB", 2**63, "9223372036854775808", "1e5"]
)
def test_what_is_no_size_is_said(value: Any) -> None:
    with pytest.raises(
        ValueError, match=r'^here: max-size: .* is no size: a number, or one with a unit as in "512 MiB"'
    ):
        size(value)


@pytest.mark.parametrize("value", [-0.5, False, "1 kB", "soon", float("nan"), float("inf"), 2.0**63, None, [1]])
def test_what_is_no_duration_is_said(value: Any) -> None:
    with pytest.raises(
        ValueError, match=r'^here: idle-timeout: .* is no time: a number, or one with a unit as in "30 s"'
    ):
        duration(value)


def test_an_unknown_key_is_said_with_what_it_may_be() -> None:
    for key in ("max-sise", "max_size", "maxsize"):
        with pytest.raises(ValueError, match=rf"here: there is no key '{key}'; did you mean 'max-size'\?"):
            read_section(Section, {key: 1}, "here")
    with pytest.raises(ValueError, match="; known are: idle-timeout, inner, max-size, name"):
        read_section(Section, {"xyz": 1}, "here")


def test_what_does_not_fit_is_said_with_its_place() -> None:
    with pytest.raises(ValueError, match=r"^here: name: expected `str`, got `int`$"):
        read_section(Section, {"name": 1}, "here")
    with pytest.raises(ValueError, match=r"^here: inner\.most: '7 x' is no size"):
        read_section(Section, {"inner": {"most": "7 x"}}, "here")


@pytest.mark.parametrize(
    ("bytes_", "text"),
    [
        (0, "0 bytes"),
        (1_023, "1023 bytes"),
        (1 << 10, "1 KiB"),
        (1_536, "1.5 KiB"),
        ((1 << 20) - 1, "1024.0 KiB"),
        (1 << 20, "1 MiB"),
        (512 << 20, "512 MiB"),
        (1 << 30, "1 GiB"),
        ((1 << 30) + (1 << 29), "1.5 GiB"),
        (3 << 40, "3072 GiB"),
    ],
)
def test_a_size_as_people_write_it(bytes_: int, text: str) -> None:
    assert show_size(bytes_) == text
