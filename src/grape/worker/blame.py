"""Errors in the author's words: the user's lines of a traceback, without the engine's."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from types import FrameType
from typing import Final

from grape.errors import GrapeError

_OURS: Final = str(Path(__file__).resolve().parents[1]) + os.sep
_MAX_TEXT: Final = 4_000
_MAX_TRACE: Final = 16_000


def blame(error: BaseException) -> tuple[str, str, str]:
    """What went wrong as (kind, one line, traceback of the user's code).

    ``kind`` is the code of a Grape error, else the name of the exception's class.
    """
    kind = error.code if isinstance(error, GrapeError) else type(error).__name__
    try:
        text = str(error)
    except Exception as e:
        text = f"<its text cannot be had: {type(e).__name__}>"
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return kind, line[:_MAX_TEXT], user_traceback(error)[:_MAX_TRACE]


def user_stack(frame: FrameType | None) -> str:
    """Where the user's code is, from its first line on."""
    lines = traceback.extract_stack(frame) if frame is not None else []
    first = next((i for i, line in enumerate(lines) if line.filename.startswith(_OURS)), 0)
    mine = [line for line in lines[first:] if not line.filename.startswith(_OURS)]
    return "Running (most recent call last):\n" + "".join(traceback.StackSummary.from_list(mine).format())


def user_traceback(error: BaseException) -> str:
    """The traceback from the user's first line on, as Python prints it."""
    try:
        whole = traceback.TracebackException.from_exception(error, compact=True)
        part: traceback.TracebackException | None = whole
        seen = 0
        while part is not None and seen < 10:
            part.stack = traceback.StackSummary.from_list(
                [frame for frame in part.stack if not frame.filename.startswith(_OURS)]
            )
            part = part.__cause__ or part.__context__
            seen += 1
        return "".join(whole.format())
    except Exception as e:
        return f"<no traceback: {type(e).__name__}>"
