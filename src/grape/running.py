"""Run a topology from Python: ``grape.run(...)`` and ``with grape.open(...) as e``."""

from __future__ import annotations

import asyncio


def new_event_loop() -> asyncio.AbstractEventLoop:
    """An event loop of the fast kind where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
