"""What is said when code of the user's fails outside of a handler: in a source or a sink."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from grape.authoring.places import is_engine_file
from grape.authoring.raised import line_of, trace_of
from grape.errors import GrapeError, UserError
from grape.model.trace import last_place

SINK_RETRIES: Final = 3
_BASE: Final = 0.5
_MOST: Final = 30.0


class Told(Struct, frozen=True):
    """Whom a source or a sink tells: lines for people, and why it cannot go on."""

    notice: Callable[[str], None]
    failed: Callable[[GrapeError], None]


def delay(failures: int) -> float:
    """Seconds to wait after so many failures in a row: doubling, with jitter."""
    return min(_MOST, _BASE * 2.0 ** min(failures - 1, 20)) * random.uniform(0.5, 1.0)


def what_failed(error: BaseException) -> str:
    """Its class and text, and where in the user's code it came up."""
    where = last_place(trace_of(error, is_engine_file))
    said = f"sys.exit({error.code!r:.60})" if isinstance(error, SystemExit) else line_of(error)
    return f"{said} at {where}" if where else said


def failure(what: str, error: BaseException, end: str) -> UserError:
    """The last line about it, with the user's frames.

    Args:
        what: what failed, as a sentence begins.
        end: what that means.
    """
    trace = trace_of(error, is_engine_file).rstrip() if error.__traceback__ is not None else ""
    frames = f"\n{trace}" if "\n  File " in trace else ""
    return UserError(f"{what}: {what_failed(error)}; {end}{frames}")
