"""What is said of failures while a run goes on: the first of each kind at once, then how many more there were.

Pure: time is an argument. A failure is of the kind (node, event, class, last line of the user's), so that a newcomer
sees the traceback of a failing handler as soon as it fails, and ten thousand events that fail alike are one.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from msgspec import Struct

from grape.model.trace import last_place

AT_ONCE: Final = 5
"""Failures that are told together; then one a second."""
AGAIN: Final = 10_000_000
"""Microseconds between two words about the same kind."""
_MAX_KINDS: Final = 1_000
_MAX_LINES: Final = 30


class Failed(NamedTuple):
    """``due``: when the next attempt is (microseconds), 0: there is none. ``stopped``: it keeps its key."""

    node: str
    event: str
    id: str
    kind: str
    text: str
    trace: str
    due: int = 0
    stopped: bool = False


class _Kind(Struct):
    what: str
    told: int
    more: int = 0


class FirstFailures:
    """See the module."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str, str, str], _Kind] = {}
        self._allowed = float(AT_ONCE)
        self._at = 0
        self._untold = 0

    def tell(self, failed: Failed, now: int) -> list[str]:
        """The lines to show for it; often none."""
        where = last_place(failed.trace)
        key = (failed.node, failed.event, failed.kind, where)
        kind = self._kinds.get(key)
        if kind is not None:
            kind.more += 1
            if now - kind.told < AGAIN or not self._may(now):
                return []
            kind.told = now
            return [_more(kind)]
        if len(self._kinds) >= _MAX_KINDS or not self._may(now):
            self._untold += 1
            return []
        at = f" ({where})" if where else ""
        self._kinds[key] = _Kind(f"{failed.kind} in {failed.node!r}{at}", now)
        return _words(failed, now)

    def rest(self) -> list[str]:
        """What is to be said at the end."""
        lines = [_more(kind) for kind in list(self._kinds.values()) if kind.more][:_MAX_LINES]
        if self._untold:
            lines.append(f"... {self._untold:,} failures of more kinds: grape dead list shows those that were given up")
            self._untold = 0
        return lines

    def _may(self, now: int) -> bool:
        self._allowed = min(AT_ONCE, self._allowed + max(0, now - self._at) / 1e6)
        self._at = now
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True


def _words(failed: Failed, now: int) -> list[str]:
    if failed.stopped:
        fate = 'no further attempt; it keeps its key (on_fail="stop")'
    elif failed.due:
        fate = f"next attempt in {max(0, failed.due - now) / 1e6:.1f} s"
    else:
        fate = "no further attempt: a dead letter"
    head = f"{failed.event!r} failed at event {failed.id}; {fate}"
    trace = failed.trace.rstrip("\n").split("\n") if failed.trace.strip() else failed.text.split("\n")
    if len(trace) > _MAX_LINES:
        half = _MAX_LINES // 2
        trace = [*trace[:half], f"  ... {len(trace) - 2 * half} lines ...", *trace[-half:]]
    return [head, *trace]


def _more(kind: _Kind) -> str:
    count, kind.more = kind.more, 0
    return f"... {count:,} more like this: {kind.what}"
