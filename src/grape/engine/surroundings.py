"""What an engine is put into, and what it hands on to its parts."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from grape.abc.blobs import Blobs
from grape.abc.elsewhere import Elsewhere
from grape.abc.transport import Transport
from grape.engine.clock import Clock
from grape.engine.worker import Spawner
from grape.errors import GrapeError
from grape.model.profile import Profile


class Surroundings(NamedTuple):
    """``notice``: is told what an operator should know, some lines. ``failed``: called when it cannot go on; the engine
    calls it once, and commits nothing afterwards."""

    transport: Transport
    spawner: Spawner
    clock: Clock
    rng: random.Random
    failed: Callable[[GrapeError], None]
    notice: Callable[[str], None] = lambda text: None
    blobs: Blobs | None = None
    elsewhere: Elsewhere | None = None


class Sizes(NamedTuple):
    """How many workers there are. ``profiles``: of pools that are not kept as usual. ``workers``: of a pool whose
    profile does not say. ``starts_at_once``: that may be on their way, in all pools together."""

    profiles: dict[str, Profile]
    workers: int
    starts_at_once: int = 64
