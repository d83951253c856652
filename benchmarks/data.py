"""Input for all competitors: the same events, made in the same way, within the measured time."""

from __future__ import annotations

import random
from pathlib import Path

PAYLOAD = "abcdefghij" * 10


class KeyedEvents:
    """``count`` events of 100 characters over ``keys`` scattered keys, each key touched equally often."""

    def __init__(self, count: int, keys: int, chunk: int = 20_000) -> None:
        self.count = count
        self.keys = keys
        self.chunk = chunk

    def __call__(self, position: int | None) -> tuple[list[tuple[str, str]], int] | None:
        start = position or 0
        if start >= self.count:
            return None
        end = min(self.count, start + self.chunk)
        return [(key_of(i, self.keys), PAYLOAD) for i in range(start, end)], end


class PlainEvents:
    """``count`` keyless events of 100 characters."""

    def __init__(self, count: int, chunk: int = 20_000) -> None:
        self.count = count
        self.chunk = chunk

    def __call__(self, position: int | None) -> tuple[list[str], int] | None:
        start = position or 0
        if start >= self.count:
            return None
        end = min(self.count, start + self.chunk)
        return [PAYLOAD[i % 10 :] + PAYLOAD[: i % 10] for i in range(start, end)], end


def key_of(i: int, keys: int) -> str:
    """Scattered: neighbours in time are far apart in order."""
    return f"k{i * 7_919_993 % keys}"


def quantiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(seconds)
    return {"p50_ms": 1e3 * ordered[len(ordered) // 2], "p99_ms": 1e3 * ordered[int(len(ordered) * 0.99)]}


def scattered_words(path: Path, megabytes: int, words: int) -> Path:
    """A text of that size in which ``words`` distinct words of 19 characters come round again and again, scattered."""
    with path.open("w") as f:
        at = size = 0
        while size < megabytes * 1_000_000:
            block = [f"word-{(at + i) * 7_919_993 % words:014d}" for i in range(50_000)]
            at += len(block)
            size += f.write("\n".join(" ".join(block[i : i + 10]) for i in range(0, len(block), 10)) + "\n")
    return path


def text_file(path: Path, megabytes: int, words: int = 50_000, seed: int = 1) -> Path:
    """A text with Zipf-like words, about 80 characters a line."""
    if path.exists() and path.stat().st_size >= megabytes * 1_000_000:
        return path
    rng = random.Random(seed)
    vocabulary = [f"word{i}" if i > 500 else f"w{i}" for i in range(words)]
    weights = [1 / (i + 1) for i in range(words)]
    lines = [" ".join(rng.choices(vocabulary, weights, k=13)) for _ in range(20_000)]
    with path.open("w") as f:
        size = 0
        while size < megabytes * 1_000_000:
            for _ in range(5_000):
                size += f.write(rng.choice(lines) + "\n")
    return path
