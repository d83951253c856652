"""A profile: how the worker processes of a pool are kept. ``[pool.NAME]`` of a TOML file.

The names are those of Cocaine's profiles, which the first Grape ran on.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from grape.model.section import Duration, Size, read_section

INLINE = "inline"

_SMALLEST = {
    "pool_limit": 1,
    "concurrency": 1,
    "queue_limit": 1,
    "queue_bytes": 1,
    "heartbeat_timeout": 0.5,  # the watchdog looks every 50 ms, and speaks six times in this time
    "startup_timeout": 0.1,
}


class Profile(Struct, frozen=True, kw_only=True, rename="kebab"):
    """How a pool is kept.

    Args:
        pool_limit: workers at most; default: ``--workers``, else one a core.
        pool_min: workers that are always there, and how many a run starts with. Not given: it starts with
            ``pool-limit`` of them, and all may leave when they are idle.
        queue_limit: intake into this pool stops when so many events wait in the app, over all its pools.
        queue_bytes: or so many bytes.
        grow_threshold: another worker starts when the oldest waiting event is older than this.
        concurrency: events of async slots that one worker runs at once, over all its slots.
        idle_timeout: a worker that had nothing to do for so long ends; 0: never.
        heartbeat_timeout: a worker that is silent for so long is killed. Its watchdog speaks while handlers run.
        startup_timeout: a worker has to have loaded the app and set it up after so long.
        termination_timeout: so long a worker that was asked to end may take, before SIGTERM; SIGKILL follows 2 s later.
        crashlog_limit: lines of a crashed worker's output that are kept; see ``grape crashes``.
        max_events: a worker is replaced after so many events; 0: never.
        isolate: how its workers are confined: ``type`` and the keys of that level.
    """

    pool_limit: int | None = None
    pool_min: int | None = None
    queue_limit: int = 1_000_000
    queue_bytes: Size = Size(1 << 30)
    grow_threshold: Duration = Duration(1.0)
    concurrency: int = 1_000
    idle_timeout: Duration = Duration(600.0)
    heartbeat_timeout: Duration = Duration(30.0)
    startup_timeout: Duration = Duration(60.0)
    termination_timeout: Duration = Duration(5.0)
    crashlog_limit: int = 50
    max_events: int = 0
    isolate: dict[str, Any] = {}

    @property
    def is_inline(self) -> bool:
        """Its nodes run in the engine's own process: for a debugger."""
        return self.isolate.get("type") == INLINE

    def limit(self, default: int) -> int:
        """Workers at most, ``default`` if the profile does not say."""
        return self.pool_limit or max(default, self.pool_min or 0)

    def at_start(self, default: int) -> int:
        """Workers that a run starts with."""
        return self.limit(default) if self.pool_min is None else self.pool_min


def read_profiles(pools: Any, where: str, base: dict[str, dict[str, Any]] | None = None) -> dict[str, Profile]:
    """The profiles in the table ``pool``; ``base``: the same, with lower precedence.

    Raises:
        ValueError: a key that is unknown, or a value that does not fit; the text says where.
    """
    if not isinstance(pools, dict) or not all(isinstance(section, dict) for section in pools.values()):
        raise ValueError(f"{where}: `pool` holds one table for each pool: [pool.main]")
    profiles: dict[str, Profile] = {}
    for name in {**(base or {}), **pools}:
        values = {**(base or {}).get(name, {}), **pools.get(name, {})}
        here = f"{where} [pool.{name}]"
        profile = read_section(Profile, values, here)
        for field in msgspec.structs.fields(Profile):
            value, least = getattr(profile, field.name), _SMALLEST.get(field.name, 0)
            if isinstance(value, int | float) and value < least:
                raise ValueError(f"{here}: {field.encode_name} is at least {least}, not {value}")
        if profile.is_inline and len(profile.isolate) > 1:
            raise ValueError(f'{here}: an isolate of type "{INLINE}" confines nothing, and has no further keys')
        if profile.pool_limit is not None and (profile.pool_min or 0) > profile.pool_limit:
            raise ValueError(f"{here}: pool-min = {profile.pool_min} is over pool-limit = {profile.pool_limit}")
        profiles[name] = profile
    return profiles
