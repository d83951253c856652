"""Where things stand in the user's code: every error of the authoring layer names it."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
from types import CodeType, FrameType
from typing import Final

HIDDEN: Final = "<grape>"
"""File name of frames of Grape that a traceback of the user's has to have."""

_ENGINE: Final = (
    HIDDEN,
    os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), ""),
    os.path.join(os.path.dirname(importlib.__file__), ""),
    "<frozen importlib",
)
_LIBRARIES: Final = tuple(
    os.path.join(sysconfig.get_path(kind), "") for kind in ("stdlib", "platstdlib", "purelib", "platlib")
)


def is_engine_file(filename: str) -> bool:
    """Is ``filename`` a part of Grape, or of Python's import machinery?"""
    return filename.startswith(_ENGINE)


def is_library_file(filename: str) -> bool:
    """Is ``filename`` a part of Python, or of an installed distribution?"""
    return filename.startswith((*_LIBRARIES, "<frozen "))


def caller() -> FrameType:
    """The innermost frame that is not Grape's."""
    frame: FrameType | None = sys._getframe(1)
    outermost = sys._getframe(1)
    while frame is not None:
        if not is_engine_file(frame.f_code.co_filename):
            return frame
        outermost, frame = frame, frame.f_back
    return outermost


def place(filename: str, line: int) -> str:
    """``file:line``; the file relative to the working directory if it is below it."""
    relative = os.path.relpath(filename) if os.path.isabs(filename) else filename
    return f"{filename if relative.startswith('..') else relative}:{line}"


def place_of_caller() -> str:
    """``file:line`` of the innermost frame that is not Grape's."""
    frame = caller()
    return place(frame.f_code.co_filename, frame.f_lineno)


def place_of_code(code: CodeType) -> str:
    """``file:line`` where ``code`` begins."""
    return place(code.co_filename, code.co_firstlineno)
