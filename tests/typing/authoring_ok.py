"""Everything an author may write type-checks under ``mypy --strict``. Run by ``tests/unit/test_typing.py``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, assert_type

from msgspec import Struct

from grape import Context, Event, Node, State, Topology


class Split(Node):
    def process(self, event: Event) -> None:
        for word in event.data.split():
            self.emit("word", key=word)


class Count(Node):
    seen = State(int, default=0)  # durable, one per key

    def process(self, event: Event) -> None:
        self.seen += 1
        self.emit("total", {"word": event.key, "count": self.seen}, key=event.key)


def topology(config: dict[str, Any]) -> Topology:
    t = Topology("wordcount")
    t.add_slot("line", Split())
    t.add_slot("word", Count())
    t.add_output("total")
    return t


t = Topology("orders")
t.add_output("accepted")


class Order(Struct):
    id: str
    amount: float


@dataclass
class Item:
    price: float


@t.slot("order", emits="accepted", retries=3)
def check(order: Order) -> dict[str, str] | None:  # None: nothing is emitted
    return {"id": order.id} if order.amount < 1000 else None


assert_type(check(Order("1", 2.0)), dict[str, str] | None)


class Memory(Node):
    emits = "accepted"
    count = State(int)
    last = State(str, default="", ttl=timedelta(days=1))
    seen = State(list[str])
    totals = State(dict[str, float], default={})
    order = State(Order)
    item = State(Item, default=Item(0.0))

    def __init__(self, size: int) -> None:
        self.size = size

    def setup(self) -> None:
        self.size += 1

    async def process(self, event: Event) -> dict[str, float] | None:
        assert_type(self.count, int | None)
        assert_type(self.last, str)
        assert_type(self.seen, list[str])
        assert_type(self.order, Order | None)
        assert_type(Memory.count, State[int | None])
        self.count = (self.count or 0) + 1
        self.seen.append(event.id)
        self.totals["sum"] = self.totals.get("sum", 0.0) + self.item.price
        del self.last
        self.emit_many("order", keys=["a", None], data=[1, 2])
        self.emit("order", delay=1.5, key=None)
        return self.totals


class Batched(Node):
    def process(self, events: list[Event]) -> list[Any]:
        return [event.data for event in events]


class Spread(Node):
    def process(self, event: Event) -> Iterator[str]:
        yield from event.data.split()


@t.slot("item", emits=("accepted",), timeout=timedelta(minutes=1), backoff=0.5, on_fail="stop", ordered=False)
def spread(item: Item, event: Event, context: Context, seen: State[int] = State(int, default=0)) -> Iterator[float]:
    seen.value += 1
    del seen.value
    context.emit("order", {"id": event.key}, key=event.key, delay=timedelta(seconds=5))
    context.reply(item, final=False)
    event.progress()
    yield item.price


@t.slot("fetch", emits="accepted", concurrency=10)
async def fetch(url: str) -> str:
    return url


@t.slot("stream", emits="accepted", pool="slow")
async def stream(url: str) -> AsyncIterator[str]:
    yield url


@t.slot("bulk", emits="accepted", batch=100)
def bulk(orders: list[Order]) -> list[str | Exception | None]:
    return [order.id for order in orders]


@t.slot("tally")
def tally(word: str, last: State[int | None] = State(int), all_: State[list[str]] = State(list[str])) -> None:
    last.value = (last.value or 0) + 1
    all_.value.append(word)


t.add_pool("slow")
t.add_slot("memory", Memory(3), chain=False)
t.add_slot("several", Batched(name="several"), batch=10)
t.add_slot("spread", Spread(), emits="accepted")
