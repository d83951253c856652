"""How much the handlers of an app log: what it says itself, and what its operator says, who goes before."""

from __future__ import annotations

import asyncio

import msgspec
from msgspec import Struct, structs

from grape.apps.manifest import manifest_of
from grape.model.levels import NOBODY, Levels, check_level, check_nodes, ordered, with_order
from grape.protocol.outcomes import Logged
from grape.server.home import Home
from grape.server.hosted import Hosted


class LevelInfo(Struct, frozen=True):
    """``levels``: what counts, by node, "" of all others. ``orders``: what of it the operator has said."""

    levels: Levels
    orders: Levels


async def change_level(app: Hosted, home: Home, node: str, level: str) -> LevelInfo:
    """From now on, also after every start and upgrade. ``node`` "": of all. ``level`` `NOBODY`: as the app says.

    Raises:
        Full: it is in the middle of a change.
        UsageError: there is no such level, or node.
    """
    app.check_settled()
    if level != NOBODY:
        check_level(level)
        logged = await _engine(app, None)
        if logged is not None:
            check_nodes([node], logged.nodes)
    app.note(structs.replace(app.installed, levels=with_order(app.installed.levels, node, level)))
    app.log.note(f"{app.name} logs {level}" + (f" at {node}" if node else ""))
    return await _info(app, home, app.installed.levels)


async def level_info(app: Hosted, home: Home) -> LevelInfo:
    """As it is."""
    return await _info(app, home, None)


async def _info(app: Hosted, home: Home, told: Levels | None) -> LevelInfo:
    """``told``: orders that its engine is told, if it runs; else the next one is started so."""
    orders, digest = app.installed.levels, app.installed.current
    logged = await _engine(app, told)
    if logged is not None:
        return LevelInfo(logged.levels, orders)
    own = (await asyncio.to_thread(manifest_of, home.package(digest))).log.levels if digest else {}
    return LevelInfo(ordered(own, orders), orders)


async def _engine(app: Hosted, orders: Levels | None) -> Logged | None:
    packed = await app.ask_engine("levels", orders)
    return None if packed is None else msgspec.msgpack.decode(packed, type=Logged)
