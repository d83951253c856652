"""What an exception says of itself: its name, its text, its trace. Whatever it is, this cannot raise, and is bounded.

An exception is code of others: its text may raise, be no text, have 100 MB, or hold bytes of a file name that no
encoding has (surrogates). Everybody who tells of one asks here.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from traceback import StackSummary, TracebackException
from typing import Any, Final

MAX_NAME: Final = 200
MAX_TEXT: Final = 4_000
MAX_TRACE: Final = 16_000
_MAX_LINKS: Final = 100
"""Exceptions of a chain or a group whose frames are looked through."""
_MAX_NOTES: Final = 20

IsHidden = Callable[[str], bool]
"""Whether the frames of a file are not shown."""


def name_of(error: BaseException) -> str:
    """The name of its class."""
    name: str = type.__dict__["__name__"].__get__(type(error))  # not what a metaclass makes of it
    return shown(name, MAX_NAME)


def text_of(error: BaseException) -> str:
    """``str(error)``."""
    try:
        return shown(str(error), MAX_TEXT)
    except BaseException as e:
        return f"<its text cannot be had: {name_of(e)}>"


def line_of(error: BaseException) -> str:
    """Its class and text, as the last line of a traceback has them."""
    name, text = name_of(error), text_of(error)
    return shown(f"{name}: {text}" if text else name, MAX_TEXT)


def trace_of(error: BaseException, is_hidden: IsHidden) -> str:
    """Its traceback as Python prints it, without the frames that are hidden."""
    try:
        whole = TracebackException.from_exception(error, compact=True)
        _bound(whole, is_hidden)
        return bounded(shown("".join(whole.format())))
    except BaseException:
        return _plain_trace(error, is_hidden)


def shown(text: str, most: int | None = None) -> str:
    """``text`` as an exact `str` that can be encoded, of at most ``most`` characters."""
    part = str.__getitem__(text, slice(most))
    return str.encode(part, "utf-8", "backslashreplace").decode()[:most]


def bounded(text: str, most: int = MAX_TRACE) -> str:
    """``text``, without its middle if it is longer than ``most``: where it begins and what it ends with say most."""
    if len(text) <= most:
        return text
    half = (most - 40) // 2
    return f"{text[:half]}\n  ... {len(text) - 2 * half:,} characters ...\n{text[-half:]}"


def _bound(whole: TracebackException, is_hidden: IsHidden) -> None:
    """Take the frames of a chain or a group that are hidden, and what is too long, out of it."""
    todo, seen = [whole], 0
    while todo and seen < _MAX_LINKS:
        part = todo.pop()
        seen += 1
        part.stack = StackSummary.from_list([frame for frame in part.stack if not is_hidden(frame.filename)])
        said: Any = part
        if isinstance(said._str, str):
            said._str = said._str[:MAX_TEXT]
        notes = said.__notes__
        if isinstance(notes, list | tuple):
            said.__notes__ = [note[:MAX_TEXT] if type(note) is str else note for note in notes[:_MAX_NOTES]]
        todo += [link for link in (part.__cause__, part.__context__, *(part.exceptions or ())) if link is not None]


def _plain_trace(error: BaseException, is_hidden: IsHidden) -> str:
    """For one that `traceback` cannot deal with: its frames, and its text."""
    try:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_hidden(f.filename)]
        lines = "".join(StackSummary.from_list(frames).format())
        return bounded(shown(f"Traceback (most recent call last):\n{lines}{line_of(error)}\n"))
    except BaseException as e:
        return f"<no traceback: {name_of(e)}>"
