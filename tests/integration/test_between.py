"""Events between the apps of a server, on real processes: ``app@event``."""

from __future__ import annotations

from pathlib import Path

from serving import Server, serving, write_app

SHOP = """
from grape import Node, State, Topology


class Order(Node):
    async_ = None
    def process(self, event):
        self.emit("stock@take", event.data, key=event.key)


class Ask(Node):
    def process(self, event):
        answer = self.call("stock@look", None, key=event.key, timeout=20)
        self.reply({"asked": answer})


class Back(Node):
    seen: int = State(int, default=0)

    def process(self, event):
        self.seen += 1
        self.reply({"left": event.data["left"], "seen": self.seen})


def topology(config):
    t = Topology("shop")
    t.add_slot("order", Order(), retries=0)
    t.add_slot("ask", Ask(), retries=0)
    t.add_slot("back", Back())
    return t
"""

STOCK = """
from grape import Node, State, Topology


class Take(Node):
    left: int = State(int, default=1000)

    def process(self, event):
        self.left -= event.data["count"]
        if event.data.get("back"):
            self.emit("shop@back", {"left": self.left})
        else:
            self.reply({"left": self.left})


class Look(Node):
    def process(self, event):
        self.reply({"key": event.key})


def topology(config):
    t = Topology("stock")
    t.add_slot("take", Take())
    t.add_slot("look", Look())
    return t
"""


def two(tmp_path: Path, server: Server) -> None:
    for name, code in (("stock", STOCK), ("shop", SHOP)):
        server.grape("app", "deploy", write_app(tmp_path / name, code, workers=1))


def test_calls_go_through_another_app_and_back(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        two(tmp_path, server)
        key = {"key": "nails"}
        assert server.call("shop", "order", {"count": 3}, params=key) == {"left": 997}
        assert server.call("shop", "order", {"count": 2, "back": True}, params=key) == {"left": 995, "seen": 1}
        assert server.call("shop", "ask", None, params=key) == {"asked": {"key": "nails"}}
