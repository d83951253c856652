"""Traces on real processes: through apps, languages, calls, retries and deaths, as `grape why` tells them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import otlp
from command import grape
from grape import Client
from grape.errors import BadArgument
from grape.model.tracing import Span
from grape.tools.why import Apps
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
        said = [
            line for log in (server.home / "apps" / "shop" / "log").iterdir() for line in log.read_text().splitlines()
        ]
        assert any(line.endswith("[Order main.0] an order") for line in said)
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


# ------------------------------------------------------------------ one app

ONE = """
from grape import Node, Topology


class Greet(Node):
    def process(self, event):
        if event.data == "no":
            raise ValueError("no")
        self.emit("again", event.data, delay=0.01)
        self.reply(event.id)


class Again(Node):
    def process(self, event):
        pass


def topology(config):
    t = Topology("one")
    t.add_slot("greet", Greet(), retries=0)
    t.add_slot("again", Again())
    return t
"""


def one(tmp_path: Path, server: Server, **manifest: Any) -> None:
    server.grape("app", "deploy", write_app(tmp_path / "one", ONE, **manifest))


def kept(server: Server) -> list[Span]:
    """All spans of the app."""
    return [span for _, span in Apps({"one": server.home / "apps" / "one" / "data"}).spans()]


def test_what_is_not_to_be_traced_is_not(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        one(tmp_path, server)
        own = server.call("one", "greet", "you")
        for header in (f"00-{TRACE}-{SENDER}-00", "no", f"ff-{TRACE}-{SENDER}-01", f"00-{'0' * 32}-{SENDER}-01"):
            server.call("one", "greet", "you", headers={"traceparent": header})
        assert kept(server) == []
        told = server.grape("why", own, "one", code=1)
        assert "no trace of" in told
        assert "traceparent" in told
        about = grape("why", own, "one", "--home", server.home).stdout
        assert "one: a handler of, or a client at, pool 'main'" in about
        failed = server.post("/apps/one/events/greet?wait=10", "no")
        assert failed.status_code == 502 or failed.status_code >= 400
        letters = json.loads(server.grape_data("dead", "list", "one").splitlines()[0])
        dead = json.loads(server.grape_data("dead", "show", letters["id"], "one"))
        about = grape("why", dead["event_id"], "one", "--home", server.home, "--json").stdout
        assert "a dead letter, main." in json.loads(about)["known"][-1]["text"]


OUTPUTS = """
from grape import Node, Topology


class Pack(Node):
    def process(self, event):
        for i in range(event.data):
            self.emit("packed", i, key=event.key)


def topology(config):
    t = Topology("packing")
    t.add_slot("pack", Pack(), emits="packed")
    t.add_output("packed")
    return t
"""


def test_what_lies_in_an_output_is_traced_to_what_made_it(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", write_app(tmp_path / "packing", OUTPUTS))
        for headers in ({}, TRACED):
            server.post("/apps/packing/events/pack?key=a", 3, headers=headers)

        def lie() -> list[Any]:
            asked = {"count": 10, "looks": True, "wait": 1}
            events: list[Any] = server.post("/apps/packing/outputs/packed/peek", asked).json()["events"]
            return events

        until(lambda: len(lie()) == 6)
        found = lie()
        told = [grape("why", each["id"], "--json", "--home", server.home) for each in found]
        plain, traced = ([json.loads(one.stdout) for one in told if one.returncode == code] for code in (1, 0))
        assert (len(plain), len(traced)) == (3, 3)
        assert all("made it" in each["known"][0]["text"] for each in plain)
        for each in traced:
            assert each["trace"] == TRACE
            assert [(step["node"], step["asked"]) for step in each["steps"]] == [
                ("", False),
                ("Pack", False),
                ("", True),
            ]
            assert each["steps"][2]["cause"] == 1
            assert each["steps"][2]["attempts"][0]["outcome"] == "out"
        own = each["steps"][2]["id"]
        assert f"packed went out key 'a'  {own}  <== asked for" in server.grape("why", own)
        of_dir = grape("why", own, "--data", server.home / "apps" / "packing" / "data").stdout
        assert "packing: pack > Pack key 'a'" in of_dir
        for other in (own[:-1] + "99", own.replace("-", "-9", 1), f"{own}.0", f"{own[:8]}-1.0-{'9' * 30}.1-0-0"):
            assert grape("why", other, "--home", server.home).returncode == 1, other
        assert len(server.post("/apps/packing/outputs/packed/pop", {"count": 10}).json()["events"]) == 6
        until(lambda: grape("why", own, "--home", server.home).returncode == 1)  # it has gone


def test_a_share_is_traced_by_itself(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        one(tmp_path, server, trace=0.25)
        for _ in range(300):
            assert server.post("/apps/one/events/greet", "you").status_code == 202
        came = [span for span in kept(server) if not span.node]
        assert 30 <= len(came) <= 130
        until(lambda: len(kept(server)) == 3 * len(came))
        assert all(span.parent == "" for span in came)


def test_what_is_printed_for_a_traced_event_carries_its_ids(tmp_path: Path) -> None:
    """In logs that are JSON."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "grape-server.toml").write_text('log-format = "json"\n')
    with serving(home) as server:
        code = ONE.replace("self.reply(event.id)", 'print("hello")\n        self.reply(event.id)')
        server.grape("app", "deploy", write_app(tmp_path / "one", code))
        own = server.call("one", "greet", "you", headers=TRACED)
        server.call("one", "greet", "nobody")

        def said() -> list[dict[str, str]]:
            lines = [line for log in (home / "apps" / "one" / "log").iterdir() for line in log.read_text().splitlines()]
            return [record for record in map(json.loads, lines) if record["text"] == "hello"]

        until(lambda: len(said()) == 2)
        traced, other = said()
        assert (traced["app"], traced["slot"], traced["event"], traced["trace"]) == ("one", "Greet", own, TRACE)
        assert "trace" not in other


def test_what_is_kept_of_traces_is_bounded(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        one(tmp_path, server, trace=1.0, trace_size="1 KiB", trace_age="1 h")
        for _ in range(20):
            assert server.post("/apps/one/events/greet", "you").status_code == 202
        assert kept(server)
        until(lambda: kept(server) == [])


def test_commands_and_clients_trace(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        one(tmp_path, server)
        done = grape("call", "one@greet", '"you"', "--trace", "--home", server.home)
        trace = done.stderr.split()[1]
        until(lambda: len([span for span in kept(server) if span.trace == trace]) == 3)
        with Client(server.url, traceparent=TRACED["traceparent"]) as client:
            client.call("one@greet", "you")
        with Client(f"door:{server.home / 'apps' / 'one' / 'data'}", traceparent=TRACED["traceparent"]) as client:
            client.call("one@greet", "you")
        until(lambda: len([span for span in kept(server) if span.trace == TRACE]) == 6)
        assert ways(why(server, TRACE)).count("one:in/one:Greet/one:Again") == 2
        with pytest.raises(BadArgument, match="as W3C trace context says it"):
            Client(server.url, traceparent="no")


def test_a_dead_letter_is_told(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        one(tmp_path, server)
        assert server.post("/apps/one/events/greet?wait=10", "no", headers=TRACED).status_code >= 400
        text = server.grape("why", TRACE)
        assert "failed: ValueError: no" in text
        assert "now a dead letter, main." in text
        server.grape_data("dead", "retry", "--all", "one")
        until(lambda: server.grape("why", TRACE).count("failed: ValueError: no") == 2)
        assert len({span.span for span in kept(server)}) == 3


# ------------------------------------------------------------------ export


def test_traces_go_to_a_collector_once_it_is_there(tmp_path: Path) -> None:
    with otlp.strict() as collector:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20sesame",
            "OTEL_SERVICE_NAME": "orders",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        }
        collector.status = 503
        with serving(tmp_path / "home", env=env) as server:
            one(tmp_path, server)
            server.call("one", "greet", "you", headers=TRACED)
            until(lambda: collector.asked >= 2)
            collector.status = 0
            until(lambda: len(collector.spans) == 3)
            assert collector.problems == []
            assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
            names = {span.name: span for span in collector.spans}
            assert names.keys() == {"one@greet", "greet > Greet", "again > Again"}
            assert names["one@greet"].parent_span_id.hex() == SENDER
            assert names["greet > Greet"].parent_span_id == names["one@greet"].span_id
            assert collector.resources[-1] == {"service.name": "orders", "deployment.environment": "test"}
            assert collector.headers[-1]["authorization"] == "Bearer sesame"
            assert "takes no traces: it answers 503" in server.said.read_text()
            server.grape("app", "restart", "one")
            server.call("one", "greet", "no more", headers=TRACED)
            until(lambda: len(collector.spans) == 6)  # what it has taken does not come again
            assert len(kept(server)) == 6  # and stays for `grape why`


@pytest.fixture(scope="session")
def program() -> Path:
    built = otlp.build()
    if built is None:
        pytest.skip("the OpenTelemetry collector cannot be built here: it takes go, and its modules")
    return built


@pytest.mark.timeout(900)
def test_the_collector_of_opentelemetry_takes_them(tmp_path: Path, program: Path) -> None:
    with otlp.collector(program, tmp_path) as (url, said):
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_SERVICE_NAME": "orders"}
        with serving(tmp_path / "home", env=env) as server:
            one(tmp_path, server)
            server.call("one", "greet", "you", headers=TRACED)
            until(lambda: said.read_text().count("Span #") == 3)
        text = said.read_text()
        assert text.count(f"Trace ID       : {TRACE}") == 3
        assert "service.name: Str(orders)" in text
        assert "Name           : greet > Greet" in text
        assert f"Parent ID      : {SENDER}" in text
        assert "grape.node: Str(Greet)" in text
        assert "Status code    : Ok" in text
