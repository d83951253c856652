"""Traces on real processes: through apps, languages, calls, retries and deaths, as `grape why` tells them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command import GRAPE, grape
from serving import Server, serving, until, write_app

ROOT = Path(__file__).parents[2]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SENDER = "00f067aa0ba902b7"
TRACED = {"traceparent": f"00-{TRACE}-{SENDER}-01"}

SHOP = """
import os
import signal
from grape import Node, State, Topology


class Order(Node):
    n: int = State(int, default=0)

    def process(self, event):
        self.n += 1
        print("an order")
        self.emit("check", event.data, key=event.key)


class Check(Node):
    def process(self, event):
        if event.attempt == 1 and event.data.get("fails"):
            raise ValueError("not yet")
        if event.data.get("dies") and not os.path.exists(event.data["dies"]):
            open(event.data["dies"], "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        left = self.call("stock@left", None, key=event.key, timeout=20)
        self.emit("mail@send", {"left": left}, key=event.key)
        self.reply(left)


def topology(config):
    t = Topology("shop")
    t.add_slot("order", Order(), emits=("check",))
    t.add_slot("check", Check(), backoff=0.01, backoff_max=0.01)
    return t
"""

STOCK = """
from grape import Node, State, Topology


class Left(Node):
    left: int = State(int, default=7)

    async def process(self, event):
        self.left = self.left - 1
        self.reply(self.left)


def topology(config):
    t = Topology("stock")
    t.add_slot("left", Left())
    return t
"""

MAIL = """
from grape import Node, Topology


class Log(Node):
    def process(self, event):
        pass


def topology(config):
    t = Topology("mail")
    t.add_pool("js", runtime="node", entry="send.js")
    t.add_slot("sent", Log())
    return t
"""

SEND = """
const { Worker } = require("grape-worker");

const worker = new Worker();
worker.slot("send", { node: "Send" }, (event) => event.emit("sent", event.data, { key: event.key }));
worker.run();
"""


@pytest.fixture(scope="session")
def node_path() -> str:
    """Where Node finds the SDK."""
    done = subprocess.run([ROOT / "scripts" / "sdks"], check=True, capture_output=True, text=True)
    return dict(line.split("=", 1) for line in done.stdout.split())["NODE_PATH"]


def three(tmp_path: Path, server: Server, node_path: str) -> None:
    write_app(tmp_path / "mail", MAIL)
    with open(tmp_path / "mail" / "grape.toml", "a") as manifest:
        manifest.write(f'[env]\nNODE_PATH = "{node_path}"\n')
    (tmp_path / "mail" / "send.js").write_text(SEND)
    for name, code in (("stock", STOCK), ("shop", SHOP)):
        write_app(tmp_path / name, code)
    for name in ("mail", "stock", "shop"):
        server.grape("app", "deploy", tmp_path / name)


def why(server: Server, wanted: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(server.grape("why", wanted, "--json"))
    return found


def ways(found: dict[str, Any]) -> list[str]:
    """Every step as the way to it from the top."""
    steps = found["steps"]

    def way(step: dict[str, Any]) -> str:
        own = f"{step['app']}:{step['node'] or 'in'}"
        return own if step["cause"] is None else f"{way(steps[step['cause']])}/{own}"

    return [way(step) for step in steps]


WHOLE = {
    "shop:in",
    "shop:in/shop:Order",
    "shop:in/shop:Order/shop:Check",
    "shop:in/shop:Order/shop:Check/stock:Left",
    "shop:in/shop:Order/shop:Check/mail:Send",
    "shop:in/shop:Order/shop:Check/mail:Send/mail:Log",
}


def is_whole(server: Server) -> bool:
    done = grape("why", TRACE, "--json", "--home", server.home)
    return done.returncode == 0 and set(ways(json.loads(done.stdout))) == WHOLE


def test_a_trace_goes_through_apps_languages_calls_retries_and_deaths(tmp_path: Path, node_path: str) -> None:
    with serving(tmp_path / "home") as server:
        three(tmp_path, server, node_path)
        order = {"fails": True, "dies": str(tmp_path / "died"), "secret": "the payload"}
        assert server.call("shop", "order", order, params={"key": "nails"}, headers=TRACED) == 6
        until(lambda: is_whole(server))
        steps = {f"{step['app']}:{step['node']}": step for step in why(server, TRACE)["steps"]}
        came = steps["shop:"]["attempts"][0]
        assert (came["parent"], came["kind"], came["outcome"]) == (SENDER, "http", "in")
        checks = steps["shop:Check"]
        assert [a["outcome"] for a in checks["attempts"]][-2:] == ["call", "ok"]
        assert "ValueError" in [a["kind"] for a in checks["attempts"]]
        assert checks["attempts"][-1]["attempt"] >= 2
        assert steps["shop:Order"]["attempts"][0]["state"] == ["n!"]
        assert steps["stock:Left"]["attempts"][0]["state"] == ["left!"]
        assert steps["mail:Send"]["attempts"][0]["worker"] == "js.0"
        assert steps["mail:Log"]["key"] == "nails"
        assert all(a["code"].startswith("version 1 (") for s in steps.values() for a in s["attempts"])
        text = server.grape("why", checks["id"], "shop")
        assert f"trace {TRACE}: 5 steps" in text
        assert "shop: check > Check key 'nails'" in text
        assert "<== asked for" in text
        assert "failed: ValueError: not yet" in text
        assert "left, to wait for the answer to 'stock@left'" in text
        assert "order came in by http" in text
        assert "payload" not in text + json.dumps(why(server, TRACE))
        of_one = grape("why", checks["id"], "--data", server.home / "apps" / "shop" / "data")
        assert "shop: check > Check" in of_one.stdout
        assert "stock" not in of_one.stdout.replace("'stock@left'", "")
