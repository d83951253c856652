"""Errors in the author's words: the user's lines of a traceback, without the engine's."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from types import FrameType
from typing import Final

from grape.authoring.raised import bounded, line_of, name_of, shown, text_of, trace_of
from grape.errors import GrapeError

_OURS: Final = str(Path(__file__).resolve().parents[1]) + os.sep


def blame(error: BaseException) -> tuple[str, str, str]:
    """What went wrong as (kind, one line, traceback of the user's code), whatever was raised; see `authoring.raised`.

    ``kind`` is the code of a Grape error, else the name of the exception's class.
    """
    return kind_of(error) or name_of(error), line_of(error), user_traceback(error)


def kind_of(error: BaseException) -> str:
    """The code of a Grape error; "" for all others."""
    if not issubclass(type(error), GrapeError):
        return ""
    try:
        code = error.code  # type: ignore[attr-defined]
        return shown(code, 200) if isinstance(code, str) else ""
    except BaseException:  # a class of the user's may compute it
        return ""


def refusal_of(error: BaseException) -> tuple[str, str]:
    """Why an app cannot be run, as (kind, text): the text of a Grape error says it all."""
    kind = kind_of(error)
    return (kind, text_of(error)) if kind else ("start", user_traceback(error))


def user_stack(frame: FrameType | None) -> str:
    """Where the user's code is, from its first line on."""
    lines = traceback.extract_stack(frame) if frame is not None else []
    first = next((i for i, line in enumerate(lines) if _is_ours(line.filename)), 0)
    mine = [line for line in lines[first:] if not _is_ours(line.filename)]
    trace = "".join(traceback.StackSummary.from_list(mine).format())
    return bounded(shown(f"Running (most recent call last):\n{trace}"))


def user_traceback(error: BaseException) -> str:
    """The traceback from the user's first line on, as Python prints it."""
    return trace_of(error, _is_ours)


def _is_ours(filename: str) -> bool:
    return filename.startswith(_OURS)
