"""The topologies of the benchmark rows, as a user would write them."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

from grape import Event, Node, State, Topology


class Count(Node):
    seen = State(int, default=0)

    def process(self, event: Event) -> None:
        self.seen += 1


class Split(Node):
    def process(self, event: Event) -> None:
        self.emit_many("word", keys=event.data.split())


class Echo(Node):
    def process(self, event: Event) -> None:
        self.emit("out", event.data)


class Spin(Node):
    """A millisecond of work for each event."""

    def process(self, event: Event) -> None:
        until = time.perf_counter() + 0.001
        while time.perf_counter() < until:
            pass


class Fill(Node):
    def process(self, event: Event) -> None:
        self.emit_many("spin", keys=[f"k{i % 1000}" for i in range(event.data)])


class Rotate(Node):
    def __init__(self, to: str) -> None:
        self.to = to
        self.name = f"rotate_{to}"

    def process(self, event: Event) -> None:
        text = event.data
        self.emit(self.to, text[1:] + text[0])


def rotate(text: str) -> str:
    return text[1:] + text[0]


def keyed() -> Topology:
    t = Topology("keyed")
    t.add_slot("word", Count())
    return t


def wordcount() -> Topology:
    t = Topology("wordcount")
    t.add_slot("line", Split())
    t.add_slot("word", Count())
    return t


STEPS = ("s0", "s1", "s2", "s3", "s4", "out")


def chain_functions() -> Topology:
    t = Topology("chain")
    for here, there in pairwise(STEPS):
        t.add_slot(here, rotate_to(there), emits=there, name=f"rotate_{there}")
    t.add_output("out")
    return t


def rotate_to(there: str) -> Any:
    def step(text: str) -> str:
        return text[1:] + text[0]

    step.__name__ = f"rotate_{there}"
    return step


def chain_nodes() -> Topology:
    t = Topology("chain_nodes")
    for here, there in pairwise(STEPS):
        t.add_slot(here, Rotate(there), emits=there)
    t.add_output("out")
    return t


def echo() -> Topology:
    t = Topology("echo")
    t.add_slot("in", Echo())
    t.add_output("out")
    return t


def echo_eager() -> Topology:
    t = Topology("echo", eager=True)
    t.add_slot("in", Echo())
    t.add_output("out")
    return t


def echo_beside() -> Topology:
    """Another pool has more to do than it can."""
    t = echo()
    t.add_slot("fill", Fill())
    t.add_slot("spin", Spin(), pool="other")
    return t
