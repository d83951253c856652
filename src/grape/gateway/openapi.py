"""What can be asked, as OpenAPI 3.1 says it: what is the same for every app, and the events and outputs of each."""

from __future__ import annotations

from typing import Any

from grape.gateway.shapes import Shapes
from grape.model.topology import TopologySpec

_JSON = "application/json"
_PROBLEM = {
    "description": "A problem",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_ANY: dict[str, Any] = {}


def document(apps: dict[str, TopologySpec], version: str) -> dict[str, Any]:
    """``apps``: those that run, by name."""
    paths: dict[str, Any] = {
        "/healthz": {"get": _operation("The gateway lives", "server", {"200": _json("It does", {"type": "object"})})},
        "/readyz": {"get": _operation("The server answers", "server", {"200": _json("It does", {"type": "object"})})},
        "/metrics": {"get": _operation("What is measured, for Prometheus", "server", {"200": {"description": "Text"}})},
        "/apps": {"get": _operation("All apps", "apps", {"200": _json("They are", {"type": "array", "items": _APP})})},
        "/apps/{app}": {
            "parameters": [_path("app")],
            "get": _operation("One app", "apps", {"200": _json("It is", _APP)}),
        },
        "/apps/{app}/answers/{id}": {
            "parameters": [_path("app"), _path("id"), _WAIT],
            "get": _operation(
                "The answer to a call that has an id",
                "calls",
                {"200": _json("The answer", _ANY), "202": _json("Not yet", {"type": "object"})},
            ),
        },
    }
    paths["/apps/{app}/hooks/{hook}"] = {
        "parameters": [_path("app"), _path("hook")],
        "post": _operation(
            "Call a hook, signed as its driver says",
            "hooks",
            {"200": _json("It was there before", _ACCEPTED), "202": _json("It is durable", _ACCEPTED)},
            _ANY,
        ),
    }
    for verb in ("start", "stop", "restart", "upgrade", "rollback"):
        parameters = [_path("app")]
        if verb in ("upgrade", "rollback"):
            parameters += [_query("version", "Its name, or how its digest begins"), _query("drop-slot", "EVENT>NODE")]
        paths[f"/apps/{{app}}/{verb}"] = {
            "parameters": parameters,
            "post": _operation(f"{verb.capitalize()} an app", "apps", {"200": _json("So it is now", _APP)}),
        }
    paths |= _looking()
    shapes = Shapes()
    for name, topology in apps.items():
        paths |= _paths_of(name, topology, shapes)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Grape",
            "version": version,
            "description": (
                "Events are durable when they are accepted; what does not fit its schema becomes a dead letter. "
                "Errors are application/problem+json (RFC 9457)."
            ),
        },
        "paths": paths,
        "components": {
            "schemas": {"Problem": _PROBLEM_SCHEMA, "Delivery": _DELIVERY, **shapes.schemas},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _looking() -> dict[str, Any]:
    """What people ask who look into an app."""
    app, limit = _path("app"), _query("limit", "How many at most", "integer")
    some = {"200": _json("So", {"type": "object"})}
    found: dict[str, Any] = {
        "/overview": {"get": _operation("All apps, as the dashboard shows them", "server", some)},
        "/packages": {
            "post": _operation(
                "Upload a package, made by grape app pack", "server", {"200": _json("It is there", {"type": "object"})}
            )
            | {
                "requestBody": {
                    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
                }
            }
        },
    }
    told: tuple[tuple[str, str, list[dict[str, Any]]], ...] = (
        ("readyz", "Whether it takes events", []),
        ("topology", "What it is made of", []),
        ("processes", "Its processes, with memory and load", []),
        ("backlog", "What waits, by slot", []),
        ("state", "State by node and key", [_query("node", "Of this node"), _query("prefix", "Of its keys"), limit]),
        ("crashes", "Workers that died", [_query("number", "This one, with what it said last")]),
        ("log", "What it printed last", [limit]),
    )
    for name, text, asked in told:
        found[f"/apps/{{app}}/{name}"] = {"parameters": [app, *asked], "get": _operation(text, "apps", some)}
    chosen = [_query(name, f"Of this {name}") for name in ("node", "event", "kind", "key")]
    for name, what in (("dead", "Dead letters"), ("held", "Held events")):
        place = f"/apps/{{app}}/{name}"
        asked = [app, *chosen, _query("after", "The id of the last one that is known"), limit]
        found[place] = {"parameters": asked, "get": _operation(what, "failures", some)}
        found[f"{place}/kinds"] = {"parameters": [app], "get": _operation(f"{what} counted by kind", "failures", some)}
        found[f"{place}/letter"] = {
            "parameters": [app, _query("id", "Of which")],
            "get": _operation("One of them, whole", "failures", some),
        }
        for verb, text in (("retry", "Try again"), ("drop", "Drop")):
            found[f"{place}/{verb}"] = {"parameters": [app], "post": _operation(text, "failures", some, _LETTERS)}
    return found


def _paths_of(app: str, topology: TopologySpec, shapes: Shapes) -> dict[str, Any]:
    events = {event: shapes.of_event(topology, event) for event in sorted(topology.events)}
    outputs = {output: shapes.of_output(topology, output) for output in topology.outputs}
    found: dict[str, Any] = {
        f"/apps/{app}/events": {
            "post": _operation(
                "Several events",
                app,
                {"202": _json("All are durable", _ACCEPTED)},
                {"type": "array", "items": {"anyOf": [_item(*each) for each in (events | outputs).items()]}},
            )
        }
    }
    for event, schema in events.items():
        found[f"/apps/{app}/events/{event}"] = {
            "parameters": [_query("key", "The event's key"), _query("deadline", "Seconds", "number"), _WAIT, _ID],
            "post": _operation(
                f"Hand in {event!r}, or call it with wait",
                app,
                {"200": _json("The answer", _ANY), "202": _json("It is durable", _ACCEPTED)},
                schema,
            ),
        }
    for output, schema in outputs.items():
        found[f"/apps/{app}/events/{output}"] = {
            "parameters": [_query("key", "The event's key"), _ID],
            "post": _operation(
                f"Push into the output {output!r}", app, {"202": _json("It is durable", _ACCEPTED)}, schema
            ),
        }
        place = f"/apps/{app}/outputs/{output}"
        delivery = {"allOf": [_REFERENCE, {"properties": {"data": schema}}]} if schema else _REFERENCE
        deliveries = {"type": "object", "properties": {"events": {"type": "array", "items": delivery}}}
        found[place] = {
            "get": _operation("Who takes it, and how far he is", app, {"200": _json("So", {"type": "object"})})
        }
        tail = {"200": {"description": "Events as they come", "content": {"text/event-stream": {"schema": _ANY}}}}
        found[f"{place}/tail"] = {"get": _operation("Look on", app, tail)}
        for verb, text in (("peek", "Lend events"), ("pop", "Take events out")):
            found[f"{place}/{verb}"] = {"post": _operation(text, app, {"200": _json("Some", deliveries)}, _PEEK)}
        for verb, text, asked in (
            ("ack", "These are done with", _TOKENS),
            ("nack", "These come again", _TOKENS),
            ("clear", "All are done with", _WHICH),
            ("forget", "Keep nothing more for a consumer", _WHICH),
        ):
            done = {"200": _json("How many", {"type": "object"})}
            found[f"{place}/{verb}"] = {"post": _operation(text, app, done, asked)}
    return found


def _operation(summary: str, tag: str, responses: dict[str, Any], body: dict[str, Any] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": summary, "tags": [tag], "responses": {**responses, "default": _PROBLEM}}
    if body is not None:
        found["requestBody"] = {"content": {_JSON: {"schema": body}}}
    return found


def _json(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {_JSON: {"schema": schema}}}


def _path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query(name: str, text: str, kind: str = "string") -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "schema": {"type": kind}}


def _item(event: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["event"],
        "additionalProperties": False,
        "properties": {
            "event": {"const": event},
            "data": schema,
            "key": {"type": ["string", "null"]},
            "id": {"type": ["string", "null"]},
        },
    }


_WAIT = _query("wait", "Seconds to wait for the answer", "number")
_ID = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The event's own id: the same one is accepted once",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}
_ACCEPTED = {"type": "object", "required": ["accepted"], "properties": {"accepted": {"type": "integer"}}}
_APP = {
    "type": "object",
    "required": ["name", "state"],
    "properties": {"name": {"type": "string"}, "state": {"type": "string"}, "version": {"type": "string"}},
}
_PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "retriable": {"type": "boolean"},
    },
}
_DELIVERY = {
    "type": "object",
    "properties": {
        "token": {"type": "string"},
        "id": {"type": "string"},
        "event": {"type": "string"},
        "key": {"type": ["string", "null"]},
        "data": _ANY,
        "attempt": {"type": "integer"},
        "created": {"type": "number"},
    },
}
_REFERENCE = {"$ref": "#/components/schemas/Delivery"}
_CONSUMER = {"type": "string", "pattern": "^[A-Za-z0-9_.:@-]+$", "maxLength": 200}
_PEEK = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "consumer": _CONSUMER,
        "count": {"type": "integer", "minimum": 1, "maximum": 10_000},
        "lease": {"type": "number", "exclusiveMinimum": 0, "maximum": 86_400},
        "wait": {"type": "number", "minimum": 0, "maximum": 300},
    },
}
_TOKENS = {
    "type": "object",
    "required": ["tokens"],
    "additionalProperties": False,
    "properties": {"tokens": {"type": "array", "items": {"type": "string"}, "maxItems": 10_000}, "consumer": _CONSUMER},
}
_LETTERS = {
    "type": "object",
    "description": "These ids, or those that fit, or all",
    "additionalProperties": False,
    "properties": {
        "ids": {"type": "array", "items": {"type": "string"}},
        "all": {"type": "boolean"},
        **{name: {"type": ["string", "null"]} for name in ("node", "event", "kind", "key")},
    },
}
_WHICH = {"type": "object", "additionalProperties": False, "properties": {"consumer": _CONSUMER}}
