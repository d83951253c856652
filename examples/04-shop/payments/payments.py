"""What customers have, by customer."""

from grape import Event, Node, State, Topology

PRICE = 3


class Account(Node):
    balance = State(int, default=500)

    def process(self, event: Event) -> None:
        order = event.data
        price = PRICE * order["count"]
        if price > self.balance:
            self.emit("orders@refused", order, key=order["item"])  # back to where it came from: a cycle of two apps
            self.emit("notices@told", {**order, "status": "refused"})
        else:
            self.balance -= price
            self.emit("notices@told", {**order, "status": "paid"})


def topology(config: dict[str, object]) -> Topology:
    t = Topology("payments")
    t.add_slot("charge", Account(), emits=("orders@refused", "notices@told"))
    return t
