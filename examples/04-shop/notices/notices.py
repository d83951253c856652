"""Tells customers how their orders ended: the answer to a call that began two apps before, and a mail for a queue."""

from collections import Counter

from grape import Event, Node, State, Topology


class Tell(Node):
    told = State(dict[str, int])

    def process(self, event: Event) -> None:
        order = event.data
        self.told = dict(Counter(self.told) + Counter({order["status"]: 1}))
        self.reply({"status": order["status"]})
        self.emit("mail", f"{order['count']} {order['item']}: {order['status']}")


def topology(config: dict[str, object]) -> Topology:
    t = Topology("notices")
    t.add_slot("told", Tell(), emits="mail")
    t.add_output("mail")
    return t
