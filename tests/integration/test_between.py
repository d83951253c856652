"""Events between the apps of a server, on real processes: ``app@event``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from serving import Server, serving, until, write_app

SHOP = """
from grape import Node, State, Topology


class Order(Node):
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


CYCLE = """
from grape import Node, State, Topology


class Step(Node):
    seen: int = State(int, default=0)

    def process(self, event):
        self.seen += 1
        left = event.data["left"]
        if left:
            self.emit(event.data["way"][left % len(event.data["way"])] + "@step", {**event.data, "left": left - 1})
        else:
            self.reply({"done": event.key, "seen": self.seen})
            self.emit("end", event.key)


class Count(Node):
    def process(self, event):
        self.reply(event.key)


def topology(config):
    t = Topology("NAME")
    t.add_slot("step", Step(), retries=2)
    t.add_output("end")
    return t
"""


def ring(tmp_path: Path, server: Server, names: tuple[str, ...] = ("a", "b", "c")) -> None:
    for name in names:
        server.grape("app", "deploy", write_app(tmp_path / name, CYCLE.replace("NAME", name), workers=1))


def test_cycles_between_apps(tmp_path: Path) -> None:
    """Three apps, 30 steps, a reply to the first caller."""
    with serving(tmp_path / "home") as server:
        ring(tmp_path, server)
        answer = server.call("a", "step", {"left": 30, "way": ["b", "c", "a"]}, params={"key": "k"})
        assert answer["done"] == "k"


@pytest.mark.slow
def test_the_own_app_is_not_another_one(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        ring(tmp_path, server, ("a", "b"))
        server.post("/apps/a/events/step?key=k", {"left": 1, "way": ["a"]})
        until(lambda: "is written without it: 'step'" in server.grape_data("dead", "list", "a"))


@pytest.mark.slow
def test_what_is_not_installed_is_the_failure_of_the_event(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        ring(tmp_path, server, ("orders", "stock"))
        server.post("/apps/stock/events/step?key=k", {"left": 1, "way": ["order"]})
        until(lambda: "did you mean 'orders'?" in server.grape_data("dead", "list", "stock"))
        assert "no-such-app" in server.grape_data("dead", "list", "stock")


@pytest.mark.slow
def test_what_is_stopped_gets_it_later_and_a_parked_one_is_woken(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        ring(tmp_path, server, ("a", "b"))
        server.grape("app", "stop", "b")
        for i in range(20):
            assert server.post(f"/apps/a/events/step?key=k{i}", {"left": 1, "way": ["b", "b"]}).status_code == 202
        until(lambda: server.info("a")["numbers"]["outgoing_events"] == 20)
        server.grape("app", "restart", "a")
        assert server.info("a")["numbers"]["outgoing_events"] == 20
        server.grape("app", "start", "b")
        until(lambda: server.info("a")["numbers"]["outgoing_events"] == 0)
        got = server.grape("pull", "b@end", "-n", "100")
        assert len(set(got.splitlines())) == 20


@pytest.mark.slow
def test_what_has_gone_is_counted_once_however_it_came(tmp_path: Path) -> None:
    """What is counted as waiting keeps an app from being parked, and in the end from taking anything."""
    with serving(tmp_path / "home") as server:
        ring(tmp_path, server, ("a", "b"))
        server.grape("app", "stop", "b")
        lines = "".join(f'{{"left": 1, "way": ["b", "b"], "k": "k{i}"}}\n' for i in range(10))
        for _ in range(5):
            path, media = "/apps/a/events/step?key-field=k", {"content-type": "application/x-ndjson"}
            assert server.http.post(path, content=lines, headers=media).status_code < 300
        until(lambda: server.info("a")["numbers"]["outgoing_events"] >= 50)
        server.grape("app", "start", "b")
        until(lambda: server.info("a")["numbers"]["outgoing_events"] == 0, 20)


MANY = """
from grape import External, Topology

t = Topology("many")
t.add_pool("js", runtime="node", entry="work.js")
t.add_pool("cpp", runtime="exec", entry="work")
t.add_pool("pl", runtime="perl", entry="work.pl")
t.add_pool("sh", runtime="lines", entry="work.py")
t.add_slot("sh", External("Sh"), pool="sh")
"""
JS = """
const { Worker } = require("grape-worker");
const worker = new Worker();
worker.slot("js", { node: "Js", retries: 0 }, (event) => {
  if (event.data === "call") event.reply({ js: event.call("sink@got", "js", { key: "other" }) });
  else event.emit(event.data === "wrong" ? "sinks@got" : "sink@got", "js");
});
worker.slot("jsmany", { node: "JsMany" }, (event) =>
  event.emitMany("sink@got", { keys: ["a", "b", "c"], data: [1, 2, 3] }));
worker.run();
"""
CPP = """
#include <grape/worker.hpp>

int main(int argc, char** argv) {
  grape::Worker worker(argc, argv);
  worker.slot("cpp", grape::Slot("Cpp").retries(0), [](grape::Event& event) {
    const auto what = event.as<std::string>();
    if (what == "call") {
      event.reply(event.call("sink@got", "cpp", grape::Ask().key("other")).as<std::string>());
    } else {
      event.emit(what == "wrong" ? "sink@gto" : "sink@got", "cpp");
    }
  });
  return worker.run();
}
"""
PERL = """
use strict; use warnings; use Grape::Worker;
my $worker = Grape::Worker->new;
$worker->slot(pl => { node => 'Pl', retries => 0 }, sub {
    my ($event) = @_;
    my $what = $event->data;
    return $event->reply({ pl => $event->call('sink@got', 'pl', key => 'other') }) if $what eq 'call';
    $event->emit($what eq 'wrong' ? 'sink@gott' : 'sink@got', 'pl');
});
exit $worker->run;
"""
LINES = """#!/usr/bin/env python3
import json, sys
for line in sys.stdin:
    event = json.loads(line)
    print(json.dumps({"emit": [{"event": "sink@got", "data": "sh"}]}), flush=True)
"""
SINK = """
from typing import Any
from grape import Event, Node, Topology

class Got(Node):
    def process(self, event):
        self.reply(f"{event.data} {event.key}")

t = Topology("sink")
t.add_slot("got", Got())
"""


@pytest.mark.slow
def test_other_languages_emit_to_other_apps(tmp_path: Path, sdk_env: dict[str, str]) -> None:
    """JavaScript, C++, Perl and lines; also in a call, of several at once, and to what there is not."""
    place = tmp_path / "many"
    write_app(place, MANY, workers=1)
    manifest = place / "grape.toml"
    env = "".join(f"{key} = {value!r}\n" for key, value in sdk_env.items())
    manifest.write_text(f"{manifest.read_text()}[env]\n{env}")
    for name, code in (("work.js", JS), ("work.py", LINES), ("work.cpp", CPP), ("work.pl", PERL)):
        (place / name).write_text(code)
    (place / "work.py").chmod(0o755)
    include = Path(__file__).parents[2] / "sdks" / "cpp" / "include"
    build = ["g++", "-std=c++17", f"-I{include}", place / "work.cpp", "-o", place / "work", "-pthread"]
    subprocess.run(build, check=True)
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", place)
        server.grape("app", "deploy", write_app(tmp_path / "sink", SINK, workers=1))  # workers hear of it
        for name in ("js", "cpp", "pl", "sh"):
            assert server.call("many", name, "emit", params={"key": "k"}) == f"{name} k", name
        assert server.call("many", "js", "call", params={"key": "k"}) == {"js": "js other"}
        assert server.call("many", "cpp", "call", params={"key": "k"}) == "cpp other"
        assert server.call("many", "pl", "call", params={"key": "k"}) == {"pl": "pl other"}
        assert server.call("many", "jsmany", None, params={"key": "k"}) in ("1 a", "2 b", "3 c")
        for name in ("js", "cpp", "pl"):
            server.post(f"/apps/many/events/{name}?key=k", "wrong")
        until(lambda: len(server.grape_data("dead", "list", "many").splitlines()) == 3)
        letters = server.grape_data("dead", "list", "many")
        assert "did you mean 'sink'?" in letters
        assert "did you mean 'got'?" in letters
