"""What the app is: the first workers tell, or the app itself if it runs in this process."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from grape.authoring.loading import load
from grape.authoring.topology import Topology
from grape.engine.check import check_emits
from grape.errors import UsageError
from grape.host.options import Options
from grape.model.profile import Profile
from grape.model.section import Duration
from grape.model.topology import DEFAULT_POOL, TopologySpec, with_pool
from grape.processes.profiles import Profiles
from grape.processes.workers import Workers


class OwnCode:
    """The app in this process, loaded when somebody asks for it."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._topology = options.topology

    def topology(self) -> Topology:
        """
        Raises:
            UserError: it cannot be loaded.
        """
        if self._topology is None:
            self._topology = load(self._options.target, self._options.config)
        return self._topology


class Described(Struct, frozen=True):
    """``parts``: what the workers of each pool describe, if that is not the whole. ``inline``: the pools whose nodes
    run in this process."""

    topology: TopologySpec
    inline: frozenset[str]
    parts: dict[str, TopologySpec] = {}

    @property
    def apart(self) -> list[str]:
        """The pools that have worker processes."""
        return [pool.name for pool in self.topology.pools if pool.name not in self.inline]


async def describe(options: Options, kept: Profiles, code: OwnCode, workers: Workers) -> Described:
    """The whole app, with its pools in other languages.

    Raises:
        UserError: wrong use, or an app that cannot be loaded.
    """
    refuse_inline(options.inline, kept)
    is_inline = options.inline or kept.of(DEFAULT_POOL).is_inline
    own = code.topology().spec() if is_inline else await workers.describe()
    others = [pool for pool in own.pools if pool.runtime != "python"]
    foreign = {pool.name for pool in others}
    inline = frozenset(
        pool.name for pool in own.pools if pool.name not in foreign and (options.inline or kept.of(pool.name).is_inline)
    )
    if not others:
        return Described(own, inline)
    told = await workers.describe_pools(others)
    whole = own
    for name, part in told.items():
        whole = with_pool(whole, name, part)
    check_emits(whole)
    return Described(whole, inline, {pool.name: told.get(pool.name, own) for pool in own.pools})


def refuse_inline(inline: bool, kept: Profiles) -> None:
    """
    Raises:
        UsageError: everything is to run in this process, and to be confined.
    """
    if inline and kept.guarded is not None:
        raise UsageError(
            f"--inline runs all slots in the engine's own process, which is not confined, but "
            f"[pool.{kept.guarded}.isolate] says how they are to be; leave one of them out"
        )


def profiles_of(described: Described, kept: Profiles) -> dict[str, Profile]:
    """Of each pool."""
    profiles = {pool.name: kept.of(pool.name) for pool in described.topology.pools}
    for name in described.inline:
        # There is one set of nodes in this process, and no watchdog.
        profiles[name] = msgspec.structs.replace(
            profiles[name],
            pool_limit=1,
            pool_min=None,
            max_events=0,
            idle_timeout=Duration(0),
            heartbeat_timeout=Duration(1e12),
        )
    return profiles
