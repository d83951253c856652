"""A relay in four languages: a runner (the key) goes round through Python, JavaScript, Perl and C++, each of which
counts its laps. After the last one it leaves. From the directory of this file:

    export $(../../scripts/sdks)
    grape run app.py --feed start=runners.jsonl,key=name --take finished=- --env NODE_PATH --env PERL5LIB
"""

from __future__ import annotations

from typing import Any

from grape import Event, Node, State, Topology


class Referee(Node):
    """Counts the laps of a runner, and lets it go on or leave."""

    emits = ("javascript", "finished")
    laps = State(int, default=0)

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    def process(self, event: Event) -> None:
        if event.name == "lap":
            self.laps += 1
        if self.laps < self._rounds:
            self.emit("javascript", event.data)
        else:
            self.emit("finished", event.data)


def topology(config: dict[str, Any]) -> Topology:
    t = Topology("relay")
    t.add_pool("js", runtime="node", entry="relay.js")
    t.add_pool("pl", runtime="perl", entry="relay.pl")
    t.add_pool("cpp", runtime="exec", entry=config.get("cpp", "build/relay"))
    referee = Referee(int(config.get("rounds", 3)))
    t.add_slot("start", referee)
    t.add_slot("lap", referee)
    t.add_output("finished")
    return t
