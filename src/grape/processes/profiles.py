"""Which isolate each pool gets: its own, or else the strictest that the profile names, whatever pools the code has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from grape import builtins
from grape.abc.isolate import Isolate
from grape.errors import GrapeError, UsageError
from grape.model.profile import INLINE, Profile
from grape.model.section import read_section

DEFAULT_ISOLATE: Final = "process"
_LEVELS: Final = (DEFAULT_ISOLATE, "cgroup", "sandbox", "container")
"""Each stricter than those before it. What packages add cannot be compared with them."""
_JAILS: Final = ("sandbox", "container")
_GUARD: Final = "cgroup"
"""From this level on a pool is confined against more than accidents."""


class Profiles:
    """The profiles of a run. A pool that they do not name is confined all the same.

    Code chooses the names of its pools, and how many there are. If a pool that nobody has thought of were kept as
    usual, the code would choose how it is confined. So it gets the strictest level that any pool has, with the
    strictest value of each of its keys. Pools that run in the engine's own process count for themselves alone.

    Args:
        user: of workers that would be the engine's own otherwise; None: they are.
    """

    def __init__(self, named: Mapping[str, Profile], user: int | None = None) -> None:
        self.named: Final = dict(named)
        self._user = user
        self._floor: dict[str, Any] | None = None

    def of(self, pool: str) -> Profile:
        """
        Raises:
            UsageError: the profile does not say how this pool is confined, or has keys that do not fit.
        """
        found = self.named.get(pool, Profile())
        isolate = found.isolate or self.floor(pool)
        if self._user is not None and _level(isolate) == DEFAULT_ISOLATE and not isolate.keys() & {"uid", "gid"}:
            isolate = {**isolate, "uid": self._user, "gid": self._user}
        return structs.replace(found, isolate=isolate)

    def floor(self, pool: str) -> dict[str, Any]:
        """The isolate of a pool that does not have one of its own; empty: none is named.

        Raises:
            UsageError: as `of`.
        """
        if self._floor is None:
            self._floor = _strictest(self._isolates(), pool)
        return self._floor

    @property
    def guarded(self) -> str | None:
        """A pool that is confined against more than accidents, if there is one."""
        for pool, isolate in self._isolates().items():
            if _level(isolate) not in _LEVELS[: _LEVELS.index(_GUARD)] or "uid" in isolate:
                return pool
        return None

    def _isolates(self) -> dict[str, dict[str, Any]]:
        return {
            pool: profile.isolate for pool, profile in self.named.items() if profile.isolate and not profile.is_inline
        }


def is_stricter(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the level of ``one`` is above that of ``other``, or may be."""
    levels = _level(one), _level(other)
    if all(level in _LEVELS for level in levels):
        return _LEVELS.index(levels[0]) > _LEVELS.index(levels[1])
    return levels[0] not in (levels[1], INLINE, DEFAULT_ISOLATE)


def make_isolate(pool: str, profile: Profile) -> Isolate:
    """What confines the workers of ``pool``.

    Raises:
        UsageError: there is no such isolate, or it does not know a key, or a value does not fit.
    """
    kind, config = _read(pool, profile.isolate)
    return kind(pool, config)


def _read(pool: str, isolate: Mapping[str, Any]) -> tuple[type[Isolate], Struct]:
    values = dict(isolate)
    name = values.pop("type", DEFAULT_ISOLATE)
    where = f"[pool.{pool}.isolate]"
    if not isinstance(name, str):
        raise UsageError(f"{where}: type is the name of an isolate, not {name!r}")
    try:
        kind = builtins.isolate(name)
        return kind, read_section(kind.Config, values, where)
    except ValueError as e:
        raise UsageError(str(e)) from None
    except GrapeError as e:
        raise UsageError(f"{where}: {e}") from None


def _level(isolate: Mapping[str, Any]) -> Any:
    return isolate.get("type", DEFAULT_ISOLATE)


def _strictest(isolates: Mapping[str, dict[str, Any]], pool: str) -> dict[str, Any]:
    levels = {name: _level(isolate) for name, isolate in isolates.items()}
    foreign = sorted({str(level) for level in levels.values() if level not in (*_LEVELS, INLINE)})
    if len({*foreign, *map(str, levels.values())}) > 1 and foreign:
        raise UsageError(
            f"[pool.{pool}]: the profile does not say how this pool is confined, and which of the levels that it names "
            f"is the strictest, {', '.join(sorted(set(map(str, levels.values()))))}, is not known; give it an isolate"
        )
    if not levels:
        return {}
    top = foreign[0] if foreign else max(levels.values(), key=_LEVELS.index)
    peers = {name: isolates[name] for name, level in levels.items() if level == top}
    # A user of its own is the stricter choice at the levels whose workers are the engine's user otherwise.
    by_user = sorted(peers, key=lambda name: ("uid" in peers[name]) == (top in _JAILS))
    peers = {name: peers[name] for name in by_user}
    read = [_read(name, isolate)[1] for name, isolate in peers.items()]
    given = list(peers.values())
    merged = dict(given[0])
    for field in structs.fields(read[0]):
        _merge(merged, field, given, [getattr(one, field.name) for one in read])
    return merged


def _merge(
    merged: dict[str, Any], field: msgspec.structs.FieldInfo, given: list[dict[str, Any]], values: list[Any]
) -> None:
    """The strictest value of one key: the smallest limit, what all may read. Names and places stay."""
    name = field.encode_name
    if field.name == "readable":
        merged[name] = [path for path in values[0] if all(path in other for other in values[1:])]
        return
    if field.name == "working_directory":
        merged[name] = "own" if "own" in values else values[0]
        return
    if field.name in ("uid", "gid") or not all(_is_limit(value) for value in values):
        return
    best = _strictest_of(field.name, values)
    merged.pop(name, None)
    if name in given[best]:
        merged[name] = given[best][name]


def _is_limit(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _strictest_of(field: str, values: Iterable[Any]) -> int:
    """Index of the strictest one; None is no limit. Of a umask, the bits that are taken away count."""
    weights = [-value.bit_count() if field == "umask" else float("inf") if value is None else value for value in values]
    return weights.index(min(weights))
