"""What payloads look like: told by workers, and put into documents."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pydantic
import pytest
from msgspec import Struct

from grape import Topology
from grape.authoring.schemas import schema_of
from grape.gateway import asyncapi, openapi
from grape.gateway.shapes import Shapes
from grape.model.topology import MAX_SCHEMA, SlotSpec, TopologySpec, without_schemas


class Item(Struct):
    name: str
    count: int = 1


class Order(Struct):
    id: str
    items: list[Item]


class Model(pydantic.BaseModel):
    price: float
    items: list[Inner] = []


class Inner(pydantic.BaseModel):
    name: str


@dataclass
class Plain:
    at: datetime.datetime


def topology() -> TopologySpec:
    t = Topology("shop")
    t.add_output("accepted")
    t.add_output("anything")

    @t.slot("order", emits="accepted")
    def check(order: Order) -> Item | None: ...

    @t.slot("model", emits="accepted")
    def lines(model: Model) -> Iterator[Plain]:
        yield from ()

    @t.slot("batch", emits="accepted", batch=10)
    def many(items: list[Item]) -> list[Plain]:
        return []

    @t.slot("later", emits="accepted")
    async def later(item: Item) -> AsyncIterator[Plain]:
        yield Plain(datetime.datetime.now())

    @t.slot("any", emits="anything")
    def free(value): ...

    return t.spec()


def test_slots_tell_what_they_take_and_give() -> None:
    told = {slot.event: slot for slot in topology().slots}
    assert set(msgspec.json.decode(told["order"].takes)["$defs"]) == {"Order", "Item"}
    assert msgspec.json.decode(told["order"].gives)["$ref"] == "#/$defs/Item"  # without None
    assert msgspec.json.decode(told["model"].takes)["properties"]["price"]["type"] == "number"
    assert [msgspec.json.decode(told[name].gives)["$ref"] for name in ("model", "batch", "later")] == [
        "#/$defs/Plain"
    ] * 3
    assert msgspec.json.decode(told["batch"].takes)["$ref"] == "#/$defs/Item"
    assert (told["any"].takes, told["any"].gives) == ("", "")


@pytest.mark.parametrize("kind", [Any, object, lambda: None])
def test_of_what_nothing_can_be_said_nothing_is(kind: Any) -> None:
    assert schema_of(kind) == ""


def test_a_schema_that_is_too_long_is_not_told() -> None:
    large = msgspec.defstruct("Large", [(f"field_{i}_{'x' * 100}", int) for i in range(200)])
    assert len(msgspec.json.encode(msgspec.json.schema(large))) > MAX_SCHEMA
    assert schema_of(large) == ""


def test_schemas_do_not_count_when_topologies_are_compared() -> None:
    """A default that is worked out at import is another one in every worker."""

    def spec(default: int) -> TopologySpec:
        t = Topology("t")
        kind = msgspec.defstruct("Timed", [("at", int, default)])

        def handle(value): ...

        handle.__annotations__["value"] = kind
        t.add_slot("in", handle)
        return t.spec()

    assert spec(1) != spec(2)
    assert without_schemas(spec(1)) == without_schemas(spec(2))


def test_documents_have_all_schemas_and_every_reference_leads_somewhere() -> None:
    other = TopologySpec("other", slots=(SlotSpec("order", "n", takes=schema_of(Plain), emits=("shop@order",)),))
    apps = {"shop": topology(), "other": other}
    for document in (openapi.document(apps, "1"), asyncapi.document(apps, "1", "host", False)):
        schemas = document["components"]["schemas"]
        assert {"shop.Order", "shop.Item", "shop.Plain", "other.Plain", "shop.Inner"} <= set(schemas)
        for place in references(document):
            found: Any = document
            for part in place.removeprefix("#/").split("/"):
                found = found[part]
    assert {} in openapi.document(apps, "1")["security"]
    assert openapi.document(apps, "1", asks_nobody=False)["security"] == [{"token": []}]
    body = openapi.document(apps, "1")["paths"]["/apps/shop/events/order"]["post"]["requestBody"]
    assert body["required"]
    assert body["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/shop.Order"}
    found = asyncapi.document(apps, "1", "host", True)
    assert found["operations"]["other.sends.shop.order"]["channel"] == {"$ref": "#/channels/shop.order"}
    assert found["channels"]["shop.accepted"]["messages"]["event"]["payload"] == {
        "anyOf": [{"$ref": "#/components/schemas/shop.Item"}, {"$ref": "#/components/schemas/shop.Plain"}]
    }
    assert found["servers"]["http"]["protocol"] == "https"


def references(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for part in value:
            yield from references(part)
    elif isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for part in value.values():
            yield from references(part)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "7",
        "{",
        '{"a": ' + "[" * 5_000,
        '{"$defs": 3}',
        '{"$defs": {"A": {"$ref": "#/$defs/B"}}, "$ref": "http://evil/x"}',
        '{"$ref": "#/components/schemas/Problem"}',
        '{"discriminator": {"mapping": {"a": "file:///etc/passwd"}}}',
        '{"$id": "http://evil", "$defs": {"../../x": {"type": "string"}}}',
    ],
)
def test_what_a_worker_lies_about_its_types_leads_nowhere(text: str) -> None:
    app = TopologySpec("evil", slots=(SlotSpec("in", "n", takes=text),))
    shapes = Shapes()
    found = shapes.of_event(app, "in")
    text = msgspec.json.encode([found, shapes.schemas]).decode()
    assert "http:" not in text
    assert "file:" not in text
    assert list(references(found)) == []
    assert all(name.startswith("evil.") for name in shapes.schemas)


def test_two_types_of_one_name_are_two() -> None:
    one = msgspec.defstruct("Same", [("a", int)])
    two = msgspec.defstruct("Same", [("b", str)])
    app = TopologySpec(
        "app", slots=(SlotSpec("x", "x", takes=schema_of(one)), SlotSpec("y", "y", takes=schema_of(two)))
    )
    shapes = Shapes()
    assert shapes.of_event(app, "x") != shapes.of_event(app, "y")
    assert set(shapes.schemas) == {"app.Same", "app.Same-2"}
    assert shapes.of_event(app, "x") == shapes.of_event(app, "x")
