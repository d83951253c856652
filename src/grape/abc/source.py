"""Where events come from: something that can be read from a position, again and again the same.

Feeding is exactly once: the position is committed together with the events that were read before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

from msgspec import Struct


class Columns(Struct, frozen=True):
    """Events of one name. ``keys`` None: all keyless. ``data``: values, `msgspec.Raw` among them if already encoded.
    ``lines``: where each stood in the input, if that tells it from all others for ever. ``ids``: the events' own."""

    name: str
    keys: list[str | None] | None
    data: list[Any]
    lines: Sequence[int] | None = None
    ids: list[str] | None = None


class Bad(Struct, frozen=True):
    """Input that cannot become an event: it goes to the dead letters. ``place``: "file:line"."""

    place: str
    name: str
    raw: bytes
    kind: str
    text: str


class Values(Struct, frozen=True):
    """Keyless events of one name at which nobody has looked: who packs them looks at each anyway, and every further
    look at so many objects costs as much again.

    ``largest``: bytes that a value may have. ``sift``: does it all one by one, if something in ``items`` is not as it
    should be (also pairs, or keys).
    """

    name: str
    items: list[Any]
    largest: int
    sift: Callable[[], tuple[list[Columns], list[Bad]]]


class Pairs(Values, frozen=True):
    """As `Values`; the items are (key, value)."""


class Chunk(Struct, frozen=True):
    """What one read gave. ``position``: from where to go on. ``size``: bytes of input."""

    columns: Sequence[Columns | Values]
    position: bytes
    bad: list[Bad]
    size: int


class Terms(Struct, frozen=True):
    """How a source is fed. ``in_order``: all of it goes to one partition. ``retries``: reads after one that failed,
    with back-off. ``on_end``: the event that says that it has ended; "": none."""

    in_order: bool = False
    retries: int = 3
    on_end: str = ""


class Source(ABC):
    """Called from one thread, which is not the engine's.

    Attributes:
        name: event and absolute path, or whatever else tells it from others for ever: "line=/data/a.txt".
        terms: how it is fed.
        is_keyless: it is known that its events have no keys.
        is_final: its input is complete, or no run will go on from here: nothing that could still grow has to wait.
        is_repeatable: the same position gives the same events again, also in another run.
        restarted: an earlier run has read from it, which this one cannot continue.
        is_stopped: set from outside, while a ``read`` may be under way: nothing more is to be taken out of what cannot
            be read again. in_hand: something was, that no ``read`` has returned, or the last one has; so it is true
            before anything is taken, and whoever sets ``is_stopped`` and then finds it false has lost nothing.
    """

    name: str
    terms: Terms = Terms()
    is_keyless: bool = False
    is_final: bool = False
    is_repeatable: bool = True
    restarted: bool = False
    is_stopped: bool = False
    in_hand: bool = False

    @abstractmethod
    def open(self, position: bytes) -> None:
        """Get ready to read from ``position``, which an earlier run committed (b"": from the start).

        Raises:
            UsageError: the input is not what was read before (shorter, other content), or cannot be read.
        """

    @abstractmethod
    def read(self, position: bytes) -> Chunk | None:
        """About 1 MiB of input from ``position`` on, which is that of the last chunk; None at the end.

        May block (a pipe).

        Raises:
            UsageError: the input has changed where it was read already.
            OSError: it cannot be read.
        """

    def total(self) -> int | None:
        """Bytes of input from where it was opened to its end, if known: for the progress line."""
        return None

    def news(self) -> list[str]:
        """What people should know of the last ``read``, each line once."""
        return []

    def close(self) -> None:  # noqa: B027 - most have nothing to release
        """Release everything; may be called while ``read`` blocks in another thread, which then may return None."""


class Sink(ABC):
    """Where committed outputs go. Called from one thread, which is not the engine's.

    ``length`` and ``tail`` (a hash of the 4 KiB before ``length``) are committed after each write. A write that raises
    is made again, with what ``taken`` does not say was taken of it.

    Attributes:
        name: tells the taker from all others, for ever.
        form: what is written: JSON lines, `Event`s, or sealed batches as they are stored.
        retries: writes after one that failed, with back-off.
        is_shown: what is written is standard output.
        taken: of the write that raised: how many of its lines or events are where they belong, all the same.
    """

    name: str
    form: Literal["lines", "events", "batches"] = "lines"
    retries: int = 3
    is_shown: bool = False
    taken: int = 0

    def is_quick(self, lines: int) -> bool:
        """``write`` of so many would not wait now, so that the engine's thread may call it."""
        return False

    @abstractmethod
    def open(self, length: int, tail: bytes) -> tuple[int, bytes]:
        """Get ready to append at ``length``: what stands behind it was written but never committed, and is cut off.

        (0, b"") is the first use, where content is somebody else's and never cut off. Return (length, tail) as they are
        now; if they differ from what was given, they must be committed before the first write, so that after a kill
        what was written can be told from what was there.

        Raises:
            UsageError: the file is shorter, differs from what was written, has content at its first use, or another
                process writes it.
        """

    @abstractmethod
    def write(self, lines: list[Any]) -> tuple[int, bytes]:
        """Append whole lines without newline, or what ``form`` says; make them durable, return the new (length, tail).

        Raises:
            OSError: it cannot be written.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to release
        """Release everything."""
