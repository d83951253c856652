"""The loops that run once per event: in C where `grape._hot` was built, else in Python. `grape.hot.pure` says what they
do, and does it; tests compare the two on any input.

``GRAPE_PURE=1`` in the environment chooses Python; workers see it, too.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from grape.hot import pure

PURE: Final = "GRAPE_PURE"

NAMES: Final = (
    "Sorter",
    "Tip",
    "count_events",
    "is_deeper",
    "make_emit",
    "make_emit_many",
    "map_texts",
    "run_events",
    "scatter",
    "slice_values",
)

_module: Any = pure
if os.environ.get(PURE, "") not in ("", "0"):
    _WHY = f"{PURE} is set"
elif not getattr(sys, "_is_gil_enabled", lambda: True)():
    _WHY = "grape._hot is not for a Python without a global lock"
else:
    try:
        _found = import_module("grape._hot")
    except ModuleNotFoundError:
        _WHY = "grape._hot is not built: that takes a C compiler and Python.h when Grape is installed"
    except ImportError as e:
        _WHY = f"grape._hot cannot be loaded: {e}"
    else:
        if all(hasattr(_found, name) for name in NAMES):
            _module, _WHY = _found, "grape._hot"
        else:
            _WHY = "grape._hot was built from another version: install Grape again"

IS_C: Final = _module is not pure

if TYPE_CHECKING:
    from grape.hot.pure import Sorter as Sorter
    from grape.hot.pure import Tip as Tip
    from grape.hot.pure import count_events as count_events
    from grape.hot.pure import is_deeper as is_deeper
    from grape.hot.pure import make_emit as make_emit
    from grape.hot.pure import make_emit_many as make_emit_many
    from grape.hot.pure import map_texts as map_texts
    from grape.hot.pure import run_events as run_events
    from grape.hot.pure import scatter as scatter
    from grape.hot.pure import slice_values as slice_values
else:
    globals().update({name: getattr(_module, name) for name in NAMES})


def describe() -> str:
    """Which of the two is in use, and why."""
    return f"in {'C' if IS_C else 'Python'} ({_WHY})"
