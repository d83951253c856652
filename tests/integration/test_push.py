"""What is handed in under the name of an output goes into it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command import grape
from serving import Server, serving, until, write_app

APP = """
from msgspec import Struct
from grape import Topology

class Order(Struct):
    item: str
    count: int = 1

t = Topology("shop")
t.add_output("found")

@t.slot("order", emits="found")
def order(order: Order) -> Order:
    return order
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", write_app(tmp_path / "shop", APP))
        yield server


def taken(server: Server, count: int) -> list[Any]:
    """In order of what is in them."""
    found: list[Any] = []
    while len(found) < count:
        answer = server.post("/apps/shop/outputs/found/pop", {"count": 1000, "wait": 20})
        assert answer.status_code == 200, answer.text
        assert answer.json()["events"], found
        found += [(event["key"], event["data"]) for event in answer.json()["events"]]
    return sorted(found, key=str)


def test_events_are_pushed_one_by_one_and_many_at_once(server: Server) -> None:
    assert server.post("/apps/shop/events/found", 1, params={"key": "a"}).status_code == 202
    for _ in range(2):  # one, by its id
        answer = server.post("/apps/shop/events/found", 2, headers={"idempotency-key": "two"})
        assert answer.status_code == 202
    assert server.post("/apps/shop/events/found", 3, headers={"idempotency-key": "two"}).status_code == 409
    several = [{"event": "found", "data": n, "key": f"k{n}"} for n in range(10, 15)]
    several.append({"event": "order", "data": {"item": "nails"}})
    assert server.post("/apps/shop/events", several).status_code == 202
    with_ids = [{"event": "found", "data": n, "id": f"id{n}"} for n in (20, 21, 20)]
    assert server.post("/apps/shop/events", with_ids).status_code == 202
    lines = b"".join(b'{"k": "l%d"}\n' % n for n in range(1000))
    answer = server.http.post(
        "/apps/shop/events/found?key-field=k", content=lines, headers={"content-type": "application/x-ndjson"}
    )
    assert answer.json() == {"accepted": 1000}
    done = grape("push", "shop@found", "--home", str(server.home), stdin=b"7\n8\n")
    assert done.returncode == 0, done.stderr
    found = taken(server, 1 + 1 + 5 + 1 + 2 + 1000 + 2)
    assert [each for each in found if not (isinstance(each[1], dict) and "k" in each[1])] == sorted(
        [
            ("a", 1),
            (None, 2),
            *((f"k{n}", n) for n in range(10, 15)),
            (None, {"item": "nails", "count": 1}),
            (None, 20),
            (None, 21),
            (None, 7),
            (None, 8),
        ],
        key=str,
    )
    assert server.post("/apps/shop/outputs/found/pop", {"count": 10}).json()["events"] == []


def test_an_output_answers_no_call(server: Server) -> None:
    answer = server.post("/apps/shop/events/found?wait=5", 1)
    assert answer.status_code == 404
    assert "is an output" in answer.json()["detail"]
    assert "did you mean 'found'" in server.post("/apps/shop/events", [{"event": "foumd"}]).json()["detail"]


def test_what_was_pushed_survives_the_engine(server: Server) -> None:
    """F1: and nothing is there twice, though it is pushed again."""
    for n in range(20):
        headers = {"idempotency-key": f"n{n}"}
        until(lambda: server.post("/apps/shop/events/found", n, headers=headers).status_code == 202)  # noqa: B023
        if n % 5 == 2:
            os.kill(server.engine("shop"), signal.SIGKILL)
        server.post("/apps/shop/events/found", n, headers=headers)
    assert [data for _, data in taken(server, 20)] == sorted(range(20), key=lambda n: str((None, n)))
    assert server.post("/apps/shop/outputs/found/pop", {"count": 10}).json()["events"] == []


def test_what_payloads_look_like_is_told(server: Server) -> None:
    told = server.get("/openapi.json").json()
    order = {"$ref": "#/components/schemas/shop.Order"}
    for name in ("order", "found"):
        body = told["paths"][f"/apps/shop/events/{name}"]["post"]["requestBody"]
        assert body["content"]["application/json"]["schema"] == order
    assert told["components"]["schemas"]["shop.Order"]["required"] == ["item"]
    asynchronous = server.get("/asyncapi.json").json()
    assert asynchronous["asyncapi"] == "3.0.0"
    assert asynchronous["servers"]["http"]["host"] == server.url.removeprefix("http://")
    actions = {name: one["action"] for name, one in asynchronous["operations"].items()}
    assert actions == {"shop.order.receive": "receive", "shop.found.send": "send"}
    assert json.dumps(asynchronous).count(order["$ref"]) == 2
