"""How far a partition's log is done: finished batches, and the finished events of those that are in work."""

from __future__ import annotations

from msgspec import Struct


class Progress(Struct, frozen=True, array_like=True):
    """Within one batch: everything before ``first`` is finished, and behind it what ``behind`` marks.

    ``behind`` is a bitmap, little-endian, whose bit 0 (lowest of the first byte) is event ``first + 1``.
    """

    first: int = 0
    behind: bytes = b""

    @classmethod
    def of(cls, first: int, bits: int) -> Progress:
        """``bits``: the bitmap as an integer."""
        return cls(first, bits.to_bytes((bits.bit_length() + 7) // 8, "little"))

    @property
    def bits(self) -> int:
        """The bitmap as an integer."""
        return int.from_bytes(self.behind, "little")

    def finished(self) -> int:
        """Number of finished events."""
        return self.first + self.bits.bit_count()

    def with_done(self, index: int) -> Progress:
        """One more finished event."""
        if index < self.first:
            return self
        if index > self.first:
            return Progress.of(self.first, self.bits | 1 << (index - self.first - 1))
        first, bits = self.first + 1, self.bits
        while bits & 1:
            first, bits = first + 1, bits >> 1
        return Progress.of(first, bits >> 1)

    def is_done(self, index: int) -> bool:
        if index <= self.first:
            return index < self.first
        at = index - self.first - 1
        return at >> 3 < len(self.behind) and bool(self.behind[at >> 3] >> (at & 7) & 1)


class Cursor(Struct, array_like=True):
    """``position``: every batch below is finished. ``partial``: progress of batches at or above it that have begun;
    ``finished``: positions above it that are finished as a whole."""

    position: int = 0
    partial: dict[int, Progress] = {}
    finished: set[int] = set()

    def progress(self, position: int) -> Progress:
        return self.partial.get(position, Progress())

    def is_finished(self, position: int) -> bool:
        return position < self.position or position in self.finished

    def finish(self, position: int) -> None:
        """The whole batch is finished. The cursor itself moves in `advance`, which knows what exists."""
        self.partial.pop(position, None)
        if position >= self.position:
            self.finished.add(position)

    def advance(self, next_unfinished: int) -> None:
        """Nothing unfinished lies below ``next_unfinished``, nor where the next ones are finished: they may not have
        been read again since a start that went on with them."""
        self.position = max(self.position, next_unfinished)
        while self.position in self.finished:
            self.position += 1
        self.finished = {p for p in self.finished if p >= self.position}
