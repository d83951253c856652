"""What handlers log: as much of it as is wanted, with whatever they say beside the text.

Python's own `logging` decides, so a record that is not wanted costs what it costs everywhere. The level is that of the
root logger, as long as the app leaves that alone; what somebody has ordered goes before what the app has set. Only
where nodes of one worker have different levels every record asks which node runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from grape.authoring.raised import shown
from grape.model.levels import DEFAULT, LEVELS, level_of

MAX_FIELDS: Final = 32
MAX_NAME: Final = 64
MAX_VALUE: Final = 1_000
MAX_CHARACTERS: Final = 6 << 10
"""Of all fields of a record."""

_NUMBERS: Final = {level: logging.getLevelName(level.upper()) for level in LEVELS}
_OWN: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""What each record has; whatever else stands in one its author has put there."""
_encode: Final = msgspec.json.Encoder().encode
_MAX_INT: Final = 1 << 63


class Levels:
    """How much is logged in this process.

    Attributes:
        node: that runs right now, "" for none.
    """

    def __init__(self) -> None:
        self.node: Callable[[], str] = str
        self._is_enabled = logging.Logger.isEnabledFor
        self._own: tuple[int, int] | None = None
        """Level of the root logger, and what is disabled, as the app has left them."""
        logging.root.setLevel(_NUMBERS[DEFAULT])

    def set(self, levels: Mapping[str, str], nodes: Iterable[str]) -> None:
        """``nodes``: that run here. No levels: as the app has it."""
        root, manager = logging.root, logging.root.manager
        logging.Logger.isEnabledFor = self._is_enabled  # type: ignore[method-assign]
        if not levels:
            if self._own is not None:
                (level, manager.disable), self._own = self._own, None
                root.setLevel(level)
            return
        if self._own is None:
            self._own = root.level, manager.disable
        numbers = {node: _NUMBERS[level_of(levels, node)] for node in ("", *nodes)}
        least = min(numbers.values())
        manager.disable = least - 1
        root.setLevel(least)  # what loggers remember of either is forgotten by that
        if len(set(numbers.values())) > 1:
            logging.Logger.isEnabledFor = self._by_node(numbers)  # type: ignore[method-assign, assignment]

    def _by_node(self, numbers: dict[str, int]) -> Callable[[logging.Logger, int], bool]:
        is_enabled, node, others = self._is_enabled, self.node, numbers[""]

        def isEnabledFor(logger: logging.Logger, level: int) -> bool:
            return is_enabled(logger, level) and level >= numbers.get(node(), others)

        return isEnabledFor


def fields_of(record: logging.LogRecord) -> str:
    """What its author has said beside its text (`extra=`), as `fields_text`."""
    own = {name: value for name, value in record.__dict__.items() if name not in _OWN}
    return fields_text(own) if own else ""


def fields_text(fields: Mapping[Any, Any]) -> str:
    """A JSON object of one line; "": of nothing. Plain values, and the text of all others."""
    found = {shown(str(name), MAX_NAME): _plain(value) for name, value in list(fields.items())[:MAX_FIELDS]}
    text = _encode(found).decode()
    while len(text) > MAX_CHARACTERS:
        found.popitem()
        text = _encode(found).decode()
    return text if found else ""


def _plain(value: Any) -> Any:
    if type(value) is int:
        return value if -_MAX_INT <= value < _MAX_INT else str(value)[:MAX_VALUE]
    if value is None or type(value) in (bool, float):
        return value
    try:
        return shown(str(value), MAX_VALUE)
    except Exception as e:
        return f"<{type(value).__name__}: {type(e).__name__} in __str__>"[:MAX_VALUE]
