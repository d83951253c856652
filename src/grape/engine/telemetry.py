"""How what is measured is counted: rates, loads, latencies."""

from __future__ import annotations

import math
from collections import Counter
from typing import Final


class Latencies:
    """Quantiles of the last one to two minutes, from counts in buckets that are an eighth wide at most, as an HDR
    histogram has them (Gil Tene's; here without its library: these are ten lines). Times are microseconds."""

    _KEPT: Final = 60_000_000

    def __init__(self) -> None:
        self._now: Counter[int] = Counter()
        self._before: Counter[int] = Counter()
        self._since = 0

    def add(self, latency: int, count: int) -> None:
        if latency < 8:
            bucket = max(latency, 0)
        else:
            shift = latency.bit_length() - 4
            bucket = (shift << 3) + (latency >> shift)  # its first four bits, of which the first is 1
        self._now[bucket] += count

    def turn(self, now: int) -> None:
        """Forget what is too old."""
        if now - self._since >= self._KEPT:
            self._before, self._now, self._since = self._now, Counter(), now

    def quantiles(self, wanted: tuple[float, ...]) -> dict[str, float]:
        """Seconds; empty if nothing was counted."""
        both = sorted((self._before + self._now).items())
        total = sum(count for _, count in both)
        found: dict[str, float] = {}
        for quantile in wanted if total else ():
            left = math.ceil(quantile * total)
            for bucket, count in both:
                left -= count
                if left <= 0:
                    found[f"{quantile:g}"] = self._middle(bucket) / 1e6
                    break
        return found

    @staticmethod
    def _middle(bucket: int) -> float:
        if bucket < 16:
            return float(bucket)
        shift = (bucket >> 3) - 1
        return ((bucket - (shift << 3)) + 0.5) * (1 << shift)


class Rate:
    """Of a counter, over some minutes: averages that forget exponentially, as a load average does."""

    _STEP: Final = 5_000_000

    def __init__(self, minutes: tuple[int, ...] = (1, 5, 15)) -> None:
        self._minutes = minutes
        self._rates = dict.fromkeys(minutes, 0.0)
        self._at = 0
        self._total = 0
        self._started = 0

    def look(self, now: int, total: int) -> None:
        """The counter stands at ``total``."""
        if not self._at:
            self._at = self._started = now
            self._total = total
        elapsed = now - self._at
        if elapsed < self._STEP:
            return
        rate = (total - self._total) * 1e6 / elapsed
        for minutes in self._minutes:
            # In the beginning it is the plain average: a young one is not pulled towards nothing.
            span = min(minutes * 60e6, now - self._started)
            self._rates[minutes] += (rate - self._rates[minutes]) * (1 - math.exp(-elapsed / span))
        self._at, self._total = now, total

    def rates(self, now: int, total: int) -> dict[str, float]:
        if self._at == self._started:  # nothing but the beginning is known
            elapsed = now - self._started
            return dict.fromkeys(map(str, self._minutes), (total - self._total) * 1e6 / elapsed if elapsed else 0.0)
        return {str(minutes): rate for minutes, rate in self._rates.items()}


class PoolStats:
    """What is counted in one pool."""

    def __init__(self) -> None:
        self.finished = 0
        self.duplicates = 0
        self.latencies = Latencies()
        self.rate = Rate()
        self.load = 0.0
        self._looked = 0

    def look(self, now: int, active: int, workers: int) -> None:
        """Now and then, some times a second."""
        self.latencies.turn(now)
        self.rate.look(now, self.finished)
        share = active / workers if workers else 0.0
        weight = 1.0 if not self._looked else 1 - math.exp(-(now - self._looked) / 60e6)
        self.load += (share - self.load) * weight
        self._looked = now
