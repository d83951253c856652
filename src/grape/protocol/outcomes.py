"""What an engine tells of a run: while it goes on, and how it ended."""

from __future__ import annotations

from msgspec import Struct

from grape.model.numbers import AppNumbers


class Counts(Struct, frozen=True):
    """Of one run. ``fed``, ``emitted``, ``taken``: events by name; ``processed``, ``failures``: by "event>node".
    ``dropped``: of outputs that nobody takes."""

    fed: dict[str, int]
    emitted: dict[str, int]
    processed: dict[str, int]
    taken: dict[str, int]
    failures: dict[str, int]
    dropped: dict[str, int]
    finished: int
    commits: int
    worker_deaths: int
    stale_frames: int


class Outcomes(Struct, kw_only=True, frozen=True):
    """How a run ended. ``stopped``: by a signal or an order, with work left. ``feeding_stopped``: before the end of the
    input, as there were too many dead letters. ``due``: when the next timer or retry is (seconds of wall time).
    ``unshipped``: objects that wait for other storages; ``stuck``: that these refuse."""

    counts: Counts
    app: str
    data: str
    kept: bool
    seconds: float
    stopped: bool
    backlog: int
    due: float | None
    dead_stored: int
    stopped_events: int
    feeding_stopped: bool
    numbers: AppNumbers | None = None
    unshipped: int = 0
    stuck: int = 0


class Progress(Struct, frozen=True):
    """A run at one moment. ``workers``: that serve. ``pids``: of the engine and its workers, by name. ``due``: when the
    next timer or retry is (microseconds of wall time). ``outgoing``: what waits for other apps,
    and for other storages."""

    finished: int
    backlog: int
    held: int
    dead: int
    workers: int
    degraded: list[str]
    due: int | None
    streams: int
    fed_bytes: int
    pids: list[tuple[str, int]]
    outgoing: int = 0


class Kept(Struct, frozen=True):
    """What is known of a call whose replies are kept. ``is_known``: an event with its id was accepted, within the
    dedup-horizon. ``replies``: (packed data, final), in order."""

    is_known: bool
    replies: list[tuple[bytes, bool]]


class Logged(Struct, frozen=True):
    """How much handlers log. ``levels``: by node, "" of all others; empty: as nobody has said. ``nodes``: that there
    are."""

    levels: dict[str, str]
    nodes: list[str] = []
