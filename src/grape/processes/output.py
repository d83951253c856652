"""What a worker prints, line by line: where it comes from, and how much of it is shown."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from grape.model.levels import LEVELS

OUTPUT_RATE: Final = 1_000_000
"""Bytes a second that a worker may print; what is over it is cut, with a count. As many at once."""
LAST_READS: Final = 64
"""Of what a dead worker has said or printed: more than its socket and pipes hold. Somebody it started may go on."""
_LINE: Final = 64 << 10
_MARK: Final = "\x1e"
_FIELD: Final = "\x1f"
_LINE_COSTS: Final = 256
"""What a line costs beside its bytes: to show very many short ones would keep everybody waiting."""
_PAUSE: Final = 0.005
"""Seconds between two looks at what is cut anyway."""
MAX_FIELDS: Final = 8 << 10
"""Characters of the fields of a record; more of them are none."""
_MAX_ID: Final = 2_048
_MAX_TRACE: Final = 64


class Line(NamedTuple):
    """A line that a worker printed. ``level``: "stdout" or "stderr", or that of a log record ("warning"). ``slot``: the
    node that ran, "" if none did. ``event``, ``trace``: ids of the event that it handled, and of the trace if that is
    traced. ``fields``: of a record, a JSON object as the worker wrote it."""

    level: str
    slot: str
    text: str
    event: str = ""
    trace: str = ""
    fields: str = ""


class Output:
    """The two pipes of one worker, as lines.

    Args:
        kept: how many of the last lines are kept.
        tell: gets every line that is shown.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, kept: int, tell: Callable[[Line], None]) -> None:
        self.last_lines: deque[Line] = deque(maxlen=kept)
        self._loop = loop
        self._listen = tell
        self._levels: dict[int, str] = {}
        self._lines: dict[int, bytes] = {}
        self._ended = False
        self._allowance = _Allowance()

    def attach(self, stdout: int, stderr: int) -> None:
        """Read these pipes."""
        self._levels = {stdout: "stdout", stderr: "stderr"}
        self._lines = {stdout: b"", stderr: b""}
        for pipe in self._lines:
            self._loop.add_reader(pipe, self._printed, pipe)

    def finish(self) -> None:
        """The worker has ended: the rest, and no more."""
        self._ended = True
        for pipe in list(self._lines):
            self._loop.remove_reader(pipe)
            with contextlib.suppress(OSError):
                for _ in range(LAST_READS):
                    data = os.read(pipe, _LINE)
                    if not data:
                        break
                    self._take_output(pipe, data)
            self._tell(pipe, self._lines[pipe])
        if self._allowance.cut:
            self._say(Line("stderr", "", f"({self._allowance.cut:,} lines were cut at its end)"))

    def _printed(self, pipe: int) -> None:
        try:
            data = os.read(pipe, _LINE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data and self._allowance.is_spent(time.monotonic()):
            self._allowance.cut += data.count(b"\n")
            self._lines[pipe] = data.rpartition(b"\n")[2]
            self._loop.remove_reader(pipe)
            self._loop.call_later(_PAUSE, self._look_again, pipe)
        elif data:
            self._take_output(pipe, data)
        else:
            self._loop.remove_reader(pipe)
            self._tell(pipe, self._lines[pipe])
            self._lines[pipe] = b""

    def _look_again(self, pipe: int) -> None:
        if not self._ended:
            self._loop.add_reader(pipe, self._printed, pipe)

    def _take_output(self, pipe: int, data: bytes) -> None:
        *lines, rest = (self._lines[pipe] + data).split(b"\n")
        if len(rest) > _LINE:
            lines.append(rest)
            rest = b""
        for line in lines:
            self._tell(pipe, line)
        self._lines[pipe] = rest

    def _tell(self, pipe: int, raw: bytes) -> None:
        if not raw:
            return
        may, cut = self._allowance.take(len(raw) + _LINE_COSTS, time.monotonic())
        if cut:
            self._say(Line("stderr", "", f"({cut:,} lines were cut: over {OUTPUT_RATE / 1e6:g} MB a second)"))
        if not may:
            return
        text, level, slot = raw.decode("utf-8", "replace"), "", ""
        if text.startswith(_MARK) and text.count(_MARK) >= 3:
            _, level, slot, text = text.split(_MARK, 3)
            level = level if level in LEVELS else ""
        slot, event, trace, fields, *_ = *slot.split(_FIELD, 3), "", "", ""
        fields = fields if level and len(fields) <= MAX_FIELDS else ""
        self._say(Line(level or self._levels[pipe], slot, text, event[:_MAX_ID], trace[:_MAX_TRACE], fields))

    def _say(self, line: Line) -> None:
        self.last_lines.append(line)
        self._listen(line)


class _Allowance:
    """How much may be printed: `OUTPUT_RATE` bytes a second, and as many at once. ``cut``: lines since the last one
    that was let through."""

    def __init__(self) -> None:
        self._left = float(OUTPUT_RATE)
        self._at = time.monotonic()
        self.cut = 0

    def _refill(self, now: float) -> None:
        self._left = min(OUTPUT_RATE, self._left + (now - self._at) * OUTPUT_RATE)
        self._at = now

    def is_spent(self, now: float) -> bool:
        """Whether nothing may be shown now."""
        self._refill(now)
        return bool(self.cut) and self._left < OUTPUT_RATE / 4

    def take(self, size: int, now: float) -> tuple[bool, int]:
        """Whether a line may be shown, and how many before it were not."""
        self._refill(now)
        # Once something is cut, a good part of a second has to be free again: not one line in three, but a gap.
        if self._left < (OUTPUT_RATE / 4 if self.cut else size):
            self.cut += 1
            return False, 0
        self._left -= size
        cut, self.cut = self.cut, 0
        return True, cut
