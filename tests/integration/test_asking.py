"""Handlers that call, in real worker processes that die."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import grape
from grape import Event, Node, State, Topology

COUNT = 300


class Asker(Node):
    done = State(int, default=0)

    def process(self, event: Event) -> None:
        number = event.data["number"]
        self.done += 1
        answer = self.call("twice", number, key=f"k{number % 7}")
        self.emit("out", [number, answer, self.done])


class Twice(Node):
    asked = State(int, default=0)

    def process(self, event: Event) -> None:
        self.asked += 1
        victim = Path(os.environ["VICTIMS"]) / f"{event.data}"
        if event.data % 100 == 50 and not victim.exists():
            victim.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        self.reply(2 * event.data)


t = Topology("asking")
t.add_output("out")
t.add_slot("ask", Asker())
t.add_slot("twice", Twice(), pool="other")


@pytest.mark.timeout(120)
def test_every_call_is_answered_though_workers_die(tmp_path: Path) -> None:
    lines = [json.dumps({"key": f"a{n % 10}", "number": n}) for n in range(COUNT)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    taken: list[Any] = []
    grape.run(
        t,
        feed={"ask": grape.feed(tmp_path / "in.jsonl", key="key")},
        take={"out": taken.append},
        data=tmp_path / "d",
        workers=2,
        env={"VICTIMS": str(tmp_path)},
    )
    assert sorted(path.name for path in tmp_path.glob("[0-9]*")) == ["150", "250", "50"]  # so many died
    assert sorted(event.data[:2] for event in taken) == [[n, 2 * n] for n in range(COUNT)]
    for key in range(10):
        own = [event.data for event in taken if event.data[0] % 10 == key]
        assert [row[2] for row in own] == list(range(1, COUNT // 10 + 1))
