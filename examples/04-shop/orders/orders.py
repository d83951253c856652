"""What is in stock, by item. Who orders is answered by another app, once it is known how it ended."""

from grape import Event, Node, State, Topology

STOCK = 1_000


class Stock(Node):
    left = State(int, default=STOCK)

    def process(self, event: Event) -> None:
        order = event.data
        if event.name == "refused":  # by the payments: what was set aside goes back
            self.left += order["count"]
        elif order["count"] > self.left:
            self.reply({"status": "sold out"})
        else:
            self.left -= order["count"]
            self.emit("payments@charge", {**order, "item": event.key}, key=order["customer"])


def topology(config: dict[str, object]) -> Topology:
    t = Topology("orders")
    stock = Stock()
    t.add_slot("order", stock, emits="payments@charge")
    t.add_slot("refused", stock)
    return t
