"""Sections of configuration files: typed, with units, and with errors that help."""

from __future__ import annotations

import re
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from grape.model.near import did_you_mean

T = TypeVar("T", bound=Struct)

_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")
_SIZE_UNITS: Final = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_TIME_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


class Size(int):
    """Bytes; written as a number or with a unit: ``"512 MiB"``, ``"1 GB"``."""


class Duration(float):
    """Seconds; written as a number or with a unit: ``"250 ms"``, ``"30 s"``, ``"10 min"``, ``"24 h"``."""


def read_section(kind: type[T], values: dict[str, Any], where: str) -> T:
    """Decode ``values``, a table of a TOML or JSON file, as a ``kind`` whose fields are renamed to kebab-case.

    Args:
        where: file and table, for the error: ``"profile.toml [pool.main]"``.

    Raises:
        ValueError: a key that is unknown (with the near ones), or a value that does not fit.
    """
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    for key in values:
        if key not in known:
            hint = did_you_mean(key.replace("_", "-"), known, f"known are: {', '.join(sorted(known))}", 0.5)
            raise ValueError(f"{where}: there is no key {key!r}; {hint}")
    try:
        return msgspec.convert(values, kind, dec_hook=_quantity)
    except msgspec.ValidationError as e:
        what, _, path = str(e).partition(" - at `$.")
        key = f"{path.rstrip('`')}: " if path else ""
        raise ValueError(f"{where}: {key}{what[:1].lower()}{what[1:]}") from None


def show_size(size: int) -> str:
    """A number of bytes as people write it: ``512 MiB``."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{size / factor:g} {unit}" if size % factor == 0 else f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def _quantity(kind: type, value: Any) -> Any:
    """`Size` and `Duration` from what TOML has."""
    units: dict[str, Any] = _SIZE_UNITS if kind is Size else _TIME_UNITS
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        unit = match[2].lower() if match else ""
        if match is None or unit not in units:
            raise ValueError(f"{value!r} is no {_WORDS[kind]}: a number, or one with a unit as in {_EXAMPLES[kind]}")
        value = float(match[1]) * units[unit] if "." in match[1] or kind is Duration else int(match[1]) * units[unit]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} is no {_WORDS[kind]}: a number, or one with a unit as in {_EXAMPLES[kind]}")
    return kind(value)


_WORDS: Final[dict[type, str]] = {Size: "size", Duration: "time"}
_EXAMPLES: Final[dict[type, str]] = {Size: '"512 MiB"', Duration: '"30 s"'}
