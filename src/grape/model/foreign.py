"""Events of other apps of a server, ``app@event``: how they, their logs and the answers to them are called.

What an app emits to another one waits in a log of its own for each such app, an output that nobody but the bridge of
the server takes; so do the replies to what came from another app.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from grape.model.near import did_you_mean
from grape.model.stored import OUTPUT, REPLIES

AT: Final = "@"
MAX_FOREIGN: Final = 10_000
"""Names of events of other apps that an app may ever emit."""
_MAX_NAME_BYTES: Final = 255

Peers = dict[str, list[str] | None]
"""The other apps of a server, with the events that they listen to; None: that is not known yet."""


def is_foreign(event: str) -> bool:
    return AT in event


def app_of(event: str) -> str:
    """``orders`` of ``orders@order``."""
    return event.partition(AT)[0]


def output_to(app: str) -> str:
    """The output in which lies what goes to another app."""
    return AT + app


def log_to(app: str) -> str:
    """Its log."""
    return OUTPUT + output_to(app)


def replies_to(app: str) -> str:
    """The output in which lie replies to what came from another app. They have one of their own: whoever waits for them
    may be what keeps the events before them from being taken in."""
    return output_to(app) + REPLIES


def logs_to(app: str) -> tuple[str, str]:
    """Both logs."""
    return log_to(app), OUTPUT + replies_to(app)


def log_of(log: str) -> str | None:
    """The app whose events lie in a log; None: it is no such log."""
    is_one = log.startswith(OUTPUT + AT) and not log.endswith(REPLIES)
    return log.removeprefix(OUTPUT + AT) if is_one else None


class Foreign:
    """The events of one other app, as a set of names."""

    def __init__(self, app: str) -> None:
        self._prefix = app + AT

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.startswith(self._prefix) and len(name) > len(self._prefix)


def _is_name(name: str) -> bool:
    try:
        return 1 <= len(name.encode()) <= _MAX_NAME_BYTES
    except UnicodeEncodeError:
        return False


def problem_of(event: str, own: str, peers: Peers) -> str:
    """Why nothing can be emitted to ``event``, which has an ``@``; "" if it can be."""
    app, _, name = event.partition(AT)
    if app == own:
        return f"an event of the own app is written without it: {name!r:.300}"
    if app not in peers:
        known = f"there are {', '.join(sorted(peers)[:20])}" if peers else "no other app runs beside this one"
        return f"no app {app!r:.300} is installed here (no-such-app); {did_you_mean(app, peers, known)}"
    if not _is_name(name):
        return f"the name of an event has 1 to {_MAX_NAME_BYTES} bytes of UTF-8, also behind the {AT}: {name!r:.100}"
    events = peers[app]
    if events is not None and name not in events:
        known = f"it has {', '.join(map(repr, events[:20]))}"
        return f"app {app!r:.300} has no slot {name!r:.300}; {did_you_mean(name, events, known)}"
    return ""


# ------------------------------------------------------------------ who waits for an answer

_BETWEEN: Final = "/"


def pool_of_caller(app: str, pool: str) -> str:
    """As a `grape.model.batch.Context` names, in another app, whoever waits in ``pool`` of ``app`` ("": at its
    door)."""
    return f"{AT}{app}{_BETWEEN}{pool}"


def caller_of(pool: str) -> tuple[str, str] | None:
    """(app, pool) of such a name; None: whoever waits does so in this app."""
    if not pool.startswith(AT):
        return None
    app, _, own = pool[1:].partition(_BETWEEN)
    return app, own


class ReplyName(NamedTuple):
    """What a reply is called on its way back to another app. ``word``: as among replies. ``home`` and ``pool``: where
    it is waited for."""

    word: str
    home: int
    pool: str

    def __str__(self) -> str:
        return f"{REPLIES}{self.word}{_BETWEEN}{self.home}{_BETWEEN}{self.pool}"

    @classmethod
    def read(cls, name: str) -> ReplyName | None:
        """None: it is no reply."""
        if not name.startswith(REPLIES):
            return None
        word, _, rest = name[1:].partition(_BETWEEN)
        home, _, pool = rest.partition(_BETWEEN)
        return cls(word, int(home) if home.isdecimal() else 0, pool)
