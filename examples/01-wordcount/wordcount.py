"""Count words: every line is split, every word counted by itself, durable and exactly once."""

from typing import Any

from grape import Event, Node, State, Topology


class Split(Node):
    def process(self, event: Event) -> None:
        self.emit_many("word", keys=event.data.split())


class Count(Node):
    seen = State(int, default=0)

    def process(self, event: Event) -> None:
        self.seen += 1
        self.emit("total", {"word": event.key, "count": self.seen})


def topology(config: dict[str, Any]) -> Topology:
    t = Topology("wordcount")
    t.add_slot("line", Split())
    t.add_slot("word", Count())
    t.add_output("total")
    return t
