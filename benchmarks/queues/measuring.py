"""What every peer is asked for, and how it is timed."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from benchmarks import data

KEYS: Final = 1_000
WARM: Final = 50
"""Events before the first that is timed."""
SENDERS: Final = 8
"""Threads that send at once, where that lets a server write several events with one fsync."""
PATIENCE: Final = 120.0
"""Seconds without a change in the count after which events are lost."""
_LOOK_SECONDS: Final = 0.02


def keys(size: int) -> Iterable[str]:
    return (data.key_of(i, KEYS) for i in range(size))


def send_all(send: Callable[[str], object], size: int, senders: int = SENDERS) -> None:
    """Send every event by one call each, which returns when it is accepted."""

    def part(first: int) -> None:
        for i in range(first, size, senders):
            send(data.key_of(i, KEYS))

    with ThreadPoolExecutor(senders) as pool:
        list(pool.map(part, range(senders)))


def wait_for(size: int, counted: Callable[[], int]) -> None:
    """Until that many events have been counted, at a cost that is small beside theirs."""
    seen, changed = -1, time.monotonic()
    while (now := counted()) < size:
        if now != seen:
            seen, changed = now, time.monotonic()
        elif time.monotonic() - changed > PATIENCE:
            raise SystemExit(f"only {now:,} of {size:,} events were counted")
        time.sleep(_LOOK_SECONDS)


def check(size: int, counts: Mapping[str, int]) -> None:
    """Every event once, for its own key."""
    expected = collections.Counter(keys(size))
    if dict(counts) != dict(expected):
        raise SystemExit(f"counted {sum(counts.values()):,} events of {len(counts):,} keys, not {size:,}")


def one_by_one(call: Callable[[str], object], count: int) -> dict[str, float]:
    """Milliseconds from sending an event until its result, its payload, is in the caller's hands; as in
    `benchmarks.rows: latency`."""
    times: list[float] = []
    for i in range(count + WARM):
        began = time.perf_counter()
        result = call(data.PAYLOAD)
        took = time.perf_counter() - began
        if result != data.PAYLOAD:
            raise SystemExit(f"a wrong result: {result!r}")
        if i >= WARM:
            times.append(took)
        time.sleep(0.002)
    return data.quantiles(times)
