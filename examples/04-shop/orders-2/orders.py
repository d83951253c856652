"""The next version: what was sold is counted, too. What is stored becomes the new form when it is read."""

from typing import Any

import msgspec

from grape import Event, Node, State, Topology

STOCK = 1_000


class Shelf(msgspec.Struct):
    left: int = STOCK
    sold: int = 0


def to_shelf(left: Any, version: int) -> Shelf:
    return Shelf(left, STOCK - left)


class Stock(Node):
    left = State(Shelf, default=Shelf(), version=2, upgrade=to_shelf)

    def process(self, event: Event) -> None:
        order, shelf = event.data, self.left
        if event.name == "refused":
            shelf.left += order["count"]
            shelf.sold -= order["count"]
        elif order["count"] > shelf.left:
            self.reply({"status": "sold out"})
        else:
            shelf.left -= order["count"]
            shelf.sold += order["count"]
            self.emit("payments@charge", {**order, "item": event.key}, key=order["customer"])


def topology(config: dict[str, object]) -> Topology:
    t = Topology("orders")
    stock = Stock()
    t.add_slot("order", stock, emits="payments@charge")
    t.add_slot("refused", stock)
    return t
