"""The hold list of a partition: failed events until their next attempt, and what queues up behind them."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable

from msgspec import Struct

from grape.model.stored import HoldEntry

Line = tuple[str, str]
"""(node, key)"""


class Held(Struct):
    """What is kept in memory of an entry; the rest stays in its row."""

    number: int
    line: Line | None
    due: int
    size: int
    stopped: bool
    careful: bool
    suspended: bool = False
    in_work: bool = False


class HoldList:
    """Pure bookkeeping. An entry stands in a *line* if it locks its (node, key) or waits behind one that does; only the
    head of a line is ever due. Entries without a line are on their own.
    """

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}
        self._lines: dict[Line, deque[int]] = {}
        self._sizes: dict[Line, int] = {}
        self._asking: set[Line] = set()
        """Lines whose head waits for an answer."""
        self._due: list[tuple[int, int]] = []
        self.size = 0
        self.stopped = 0
        self.asking = 0
        self.asking_size = 0
        """Of ``len`` and ``size`` what waits for answers, and behind events that do."""

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, number: int) -> bool:
        return number in self._held

    def held(self, number: int) -> Held | None:
        """The entry, if there is one."""
        return self._held.get(number)

    def add(self, number: int, entry: HoldEntry, size: int) -> None:
        """A new entry; in a line it stands last. Numbers grow."""
        line = (entry.node, entry.key) if entry.key is not None and (entry.locks or entry.behind) else None
        held = Held(number, line, entry.due, size, entry.stopped, entry.careful, entry.is_suspended)
        self._held[number] = held
        self.size += size
        self.stopped += entry.stopped
        if line is not None:
            queue = self._lines.setdefault(line, deque())
            queue.append(number)
        self._weigh(held, 1, size)
        if self._is_head(held):
            self._schedule(held)

    def change(self, number: int, entry: HoldEntry, size: int) -> None:
        """The entry failed again."""
        held = self._held[number]
        self.size += size - held.size
        self.stopped += entry.stopped - held.stopped
        was_suspended, grown = held.suspended, size - held.size
        held.due, held.size, held.stopped, held.careful = entry.due, size, entry.stopped, entry.careful
        held.suspended, held.in_work = entry.is_suspended, False
        self._asks(held, was_suspended, grown)
        self._schedule(held)

    def gave_up(self, number: int, size: int) -> None:
        """The entry, which is in work, waits for its answer no more."""
        held = self._held[number]
        was_suspended, grown = held.suspended, size - held.size
        self.size += grown
        held.size, held.suspended = size, False
        self._asks(held, was_suspended, grown)

    def _asks(self, held: Held, was_suspended: bool, grown: int) -> None:
        """It has begun or ended to wait for an answer, or its size has changed."""
        if held.line is not None:
            self._weigh(held, 0, grown)
            return
        if was_suspended:
            self.asking -= 1
            self.asking_size -= held.size - grown
        if held.suspended:
            self.asking += 1
            self.asking_size += held.size

    def _weigh(self, held: Held, count: int, size: int) -> None:
        """So many more entries and bytes stand where ``held`` does (or did), whose head may have changed."""
        line = held.line
        if line is None:
            if held.suspended:
                self.asking += count
                self.asking_size += size
            return
        queue = self._lines.get(line)
        if line in self._asking:  # it is taken out as it was, and put in as it is
            self._asking.discard(line)
            self.asking -= (0 if queue is None else len(queue)) - count
            self.asking_size -= self._sizes.get(line, 0)
        self._sizes[line] = self._sizes.get(line, 0) + size
        if queue is None:
            del self._sizes[line]
        elif self._held[queue[0]].suspended:
            self._asking.add(line)
            self.asking += len(queue)
            self.asking_size += self._sizes[line]

    def remove(self, number: int, now: int) -> None:
        """The entry is done with; what stands behind it is due."""
        held = self._held.pop(number)
        self.size -= held.size
        self.stopped -= held.stopped
        if held.line is None:
            self._weigh(held, -1, -held.size)
            return
        queue = self._lines[held.line]
        was_head = queue[0] == number
        queue.remove(number)
        if not queue:
            del self._lines[held.line]
        self._weigh(held, -1, -held.size)
        if queue and was_head:
            head = self._held[queue[0]]
            if not head.stopped:
                head.due = min(head.due, now)
            self._schedule(head)

    def _schedule(self, held: Held) -> None:
        if not held.stopped:
            heapq.heappush(self._due, (held.due, held.number))

    def next_due(self) -> int | None:
        """When the next entry is due (microseconds of wall time); None: nothing waits for time."""
        while self._due:
            due, number = self._due[0]
            held = self._held.get(number)
            if held is not None and held.due == due and not held.stopped and not held.in_work and self._is_head(held):
                return due
            heapq.heappop(self._due)
        return None

    def _is_head(self, held: Held) -> bool:
        return held.line is None or self._lines[held.line][0] == held.number

    def take_due(self, now: int, limit: int, most: int) -> list[tuple[Held, bool]]:
        """Entries to try now, a due line's followers right behind its head, at most about ``limit`` and of about
        ``most`` bytes, at least one; each with whether more of its line stay. They count as in work until changed,
        removed or given back."""
        out: list[tuple[Held, bool]] = []
        size = 0
        while len(out) < limit and (not out or size < most):
            due = self.next_due()
            if due is None or due > now:
                break
            held = self._held[heapq.heappop(self._due)[1]]
            if held.line is None:
                held.in_work = True
                out.append((held, False))
                size += held.size
                continue
            queue = self._lines[held.line]
            taken = 0
            for number in queue:
                entry = self._held[number]
                is_enough = len(out) >= limit or (taken and size >= most)
                if entry.stopped or entry.in_work or is_enough or (entry.careful and taken):
                    break
                entry.in_work = True
                out.append((entry, False))
                size += entry.size
                taken += 1
                if entry.careful:
                    break
            out[-taken:] = [(entry, taken < len(queue)) for entry, _ in out[-taken:]]
        return out

    def give_back(self, numbers: Iterable[int]) -> None:
        """No worker has these entries any more."""
        for number in numbers:
            held = self._held.get(number)
            if held is not None and held.in_work:
                held.in_work = False
                if self._is_head(held):
                    self._schedule(held)

    def locked(self) -> list[Line]:
        """The (node, key) whose events line up."""
        return list(self._lines)

    def numbers(self) -> list[int]:
        return list(self._held)
