"""A cycle with timers and retries: every line walks a few hops from key to key; some hops are delayed, some fail."""

from typing import Any
from zlib import crc32

from grape import Event, Node, State, Topology

HOPS = 3
KEYS = 500


def start_of(line: str) -> int:
    return crc32(line.encode()) % KEYS


def step(key: int, line: str) -> int:
    return (key * 31 + crc32(line.encode(), key)) % KEYS


class Enter(Node):
    def process(self, event: Event) -> None:
        line = event.data
        self.emit("walk", [HOPS, line], key=f"k{start_of(line)}")


class Walk(Node):
    visits = State(int, default=0)

    def process(self, event: Event) -> None:
        hops, line = event.data
        key = int((event.key or "k0")[1:])
        number = crc32(line.encode(), hops)
        self.visits += 1
        if number % 97 == 0 and event.attempt == 1:
            raise RuntimeError("fails at its first attempt")
        if hops > 0:
            delay = 0.05 if number % 211 == 0 else None
            self.emit("walk", [hops - 1, line], key=f"k{step(key, line)}", delay=delay)
        else:
            self.emit("done", line)


def topology(config: dict[str, Any]) -> Topology:
    t = Topology("cycle")
    t.add_slot("line", Enter())
    t.add_slot("walk", Walk(), retries=8, backoff=0.02)
    t.add_output("done")
    return t
