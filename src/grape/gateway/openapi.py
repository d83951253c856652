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


def document(apps: dict[str, TopologySpec], version: str, *, asks_nobody: bool = True) -> dict[str, Any]:
    """``apps``: those that run, by name. ``asks_nobody``: no token is needed."""
    some = {"200": _json("So", {"type": "object"})}
    paths: dict[str, Any] = {
        "/healthz": {"get": _operation("The gateway lives", "server", some) | _FREE},
        "/readyz": {"get": _operation("The server answers", "server", some) | _FREE},
        "/metrics": {"get": _operation("What is measured, for Prometheus", "server", {"200": _METRICS})},
        "/openapi.json": {"get": _operation("This document", "server", some)},
        "/asyncapi.json": {"get": _operation("Events and outputs, as AsyncAPI 3.0", "server", some)},
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
        )
        | _FREE,
    }
    paths |= _orders() | _looking() | _objects()
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
        "security": [{}, {"token": []}] if asks_nobody else [{"token": []}],
    }


def _orders() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for verb in ("start", "stop", "restart", "pause", "resume", "upgrade", "rollback"):
        parameters = [_path("app")]
        if verb in ("upgrade", "rollback"):
            parameters += [_query("version", "Its name, or how its digest begins"), _query("drop-slot", "EVENT>NODE")]
        paths[f"/apps/{{app}}/{verb}"] = {
            "parameters": parameters,
            "post": _operation(f"{verb.capitalize()} an app", "apps", {"200": _json("So it is now", _APP)}),
        }
    return paths


def _looking() -> dict[str, Any]:
    """What people ask who look into an app."""
    app, limit = _path("app"), _most(500)
    some = {"200": _json("So", {"type": "object"})}
    found: dict[str, Any] = {
        "/overview": {"get": _operation("All apps, as the dashboard shows them", "server", some)},
        "/packages": {
            "post": _operation(
                "Upload a package, made by grape app pack",
                "server",
                {"200": _json("It was there", {"type": "object"}), "201": _json("It is there", {"type": "object"})},
            )
            | {"requestBody": {"required": True, "content": {"application/gzip": _BYTES}}}
        },
    }
    told: tuple[tuple[str, str, list[dict[str, Any]]], ...] = (
        ("readyz", "Whether it takes events", []),
        ("topology", "What it is made of", []),
        ("processes", "Its processes, with memory and load", []),
        ("backlog", "What waits, by slot", []),
        ("state", "State by node and key", [_query("node", "Of this node"), _query("prefix", "Of its keys"), limit]),
        ("crashes", "Workers that died", [_query("number", "This one, with what it said last")]),
        ("log", "What it printed last", [_most(5_000)]),
        ("drivers", "What makes events of it by itself", []),
        ("traces", "The newest traces", [limit]),
        ("why", "What led to an event, and what came of it", [_needed("id", "Of the event, or of a trace", 4_000)]),
    )
    for name, text, asked in told:
        found[f"/apps/{{app}}/{name}"] = {"parameters": [app, *asked], "get": _operation(text, "apps", some)}
    found["/apps/{app}/readyz"]["get"] |= _FREE
    chosen = [_query(name, f"Of this {name}") for name in ("node", "event", "kind", "key")]
    for name, what in (("dead", "Dead letters"), ("held", "Held events")):
        place = f"/apps/{{app}}/{name}"
        asked = [app, *chosen, _query("after", "The id of the last one that is known"), limit]
        found[place] = {"parameters": asked, "get": _operation(what, "failures", some)}
        found[f"{place}/kinds"] = {"parameters": [app], "get": _operation(f"{what} counted by kind", "failures", some)}
        found[f"{place}/letter"] = {
            "parameters": [app, _needed("id", "Of which")],
            "get": _operation("One of them, whole", "failures", some),
        }
        for verb, text in (("retry", "Try again"), ("drop", "Drop")):
            found[f"{place}/{verb}"] = {"parameters": [app], "post": _letters(text, some)}
    return found


_NAMESPACES: dict[str, Any] = {
    "type": "object",
    "required": ["namespaces"],
    "properties": {
        "namespaces": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "storage"],
                "properties": {"name": {"type": "string"}, "storage": {"type": "string"}},
            },
        }
    },
}


def _objects() -> dict[str, Any]:
    page = {
        "type": "object",
        "required": ["objects", "position"],
        "properties": {"objects": {"type": "array", "items": _ABOUT}, "position": {"type": "string"}},
    }
    asked = [
        _query("prefix", "What keys begin with"),
        _query("tag", "That they have"),
        _query("position", "Of the page before"),
        _most(1_000),
    ]
    namespace, key = _path("namespace"), _path("key")
    namespace["schema"] |= {"pattern": "^[a-z0-9](\\.?[a-z0-9_-])*\\.?$", "maxLength": 63}
    key["schema"] |= {"minLength": 1, "maxLength": 900}
    these, one = [_path("app"), namespace], [_path("app"), namespace, key]
    found = {"200": _WHOLE, "206": {**_WHOLE, "description": "The range"}, "304": {"description": "As it was"}}
    gone = {"204": {"description": "It is gone"}}
    headers = [_header("If-Match", "Only if this is its version"), _header("If-None-Match", "Only if it is not")]
    get = _operation("The bytes of an object", "objects", found)
    get["parameters"] = [*headers, _header("Range", "Bytes of it")]
    put = _operation("Write an object", "objects", {"200": _json("It is durable", _ABOUT)})
    put["parameters"] = [
        *headers,
        _header("x-grape-tags", "With commas between them"),
        _query("ttl", "Seconds", "number"),
    ]
    put["parameters"] += [
        _query("emit", "A slot of the app: with an event that tells of it, both or neither"),
        _query("upload", "It is a part of this upload"),
        _query("part", "Which, from 1", "integer"),
    ]
    post = _operation(
        "Begin (uploads) or end (upload) an upload in parts", "objects", {"200": _json("It is durable", _ABOUT)}
    )
    begun = {"type": "object", "required": ["upload"], "properties": {"upload": {"type": "string"}}}
    post["responses"]["201"] = _json("It is begun", begun)
    post["parameters"] = [_query("uploads", "Begin one"), _query("upload", "The one that ends")]
    put["requestBody"] = {"content": {"application/octet-stream": _BYTES}}
    remove = _operation("Remove an object", "objects", gone)
    remove["parameters"] = [headers[0], _query("upload", "That is given up")]
    return {
        "/apps/{app}/objects": {
            "parameters": [_path("app")],
            "get": _operation("Namespaces of objects", "objects", {"200": _json("They", _NAMESPACES)}),
        },
        "/apps/{app}/objects/{namespace}": {
            "parameters": these,
            "get": _operation("Objects of a namespace", "objects", {"200": _json("Some of them", page)})
            | {"parameters": asked},
        },
        "/apps/{app}/objects/{namespace}/{key}": {
            "parameters": one,
            "get": get,
            "put": put,
            "post": post,
            "delete": remove,
        },
    }


def _paths_of(app: str, topology: TopologySpec, shapes: Shapes) -> dict[str, Any]:
    events = {event: shapes.of_event(topology, event) for event in sorted(topology.events)}
    outputs = {output: shapes.of_output(topology, output) for output in topology.outputs}
    found: dict[str, Any] = {
        f"/apps/{app}/events": {
            "post": _operation(
                "Several events",
                app,
                {"202": _json("All are durable", _ACCEPTED)},
                {
                    "type": "array",
                    "maxItems": 100_000,
                    "items": {"anyOf": [_item(*each) for each in (events | outputs).items()]},
                },
                needs_body=True,
            )
        }
    }
    for event, schema in events.items():
        found[f"/apps/{app}/events/{event}"] = {
            "parameters": [_KEY, _DEADLINE, _WAIT, _ID],
            "post": _operation(
                f"Hand in {event!r}, or call it with wait",
                app,
                {"200": _json("The answer", _ANY), "202": _json("It is durable", _ACCEPTED)},
                schema,
                needs_body=bool(schema),
            ),
        }
    for output, schema in outputs.items():
        found |= _output(app, output, schema)
    return found


def _output(app: str, output: str, schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    found[f"/apps/{app}/events/{output}"] = {
        "parameters": [_KEY, _ID],
        "post": _operation(
            f"Push into the output {output!r}",
            app,
            {"202": _json("It is durable", _ACCEPTED)},
            schema,
            needs_body=bool(schema),
        ),
    }
    place = f"/apps/{app}/outputs/{output}"
    delivery = {"allOf": [_REFERENCE, {"properties": {"data": schema}}]} if schema else _REFERENCE
    deliveries = {"type": "object", "properties": {"events": {"type": "array", "items": delivery}}}
    found[place] = {"get": _operation("Who takes it, and how far he is", app, {"200": _json("So", {"type": "object"})})}
    tail = {"200": {"description": "Events as they come", "content": {"text/event-stream": {"schema": _ANY}}}}
    begin = _query("from", "Where to begin")
    begin["schema"]["enum"] = ["now", "start"]
    found[f"{place}/tail"] = {"parameters": [begin, _AFTER], "get": _operation("Look on", app, tail)}
    for verb, text in (("peek", "Lend events"), ("pop", "Take events out")):
        found[f"{place}/{verb}"] = {"post": _operation(text, app, {"200": _json("Some", deliveries)}, _PEEK)}
    for verb, text, asked in (
        ("ack", "These are done with", _TOKENS),
        ("nack", "These come again", _TOKENS),
        ("clear", "All are done with", _WHICH),
        ("forget", "Keep nothing more for a consumer", _WHICH),
    ):
        done = {"200": _json("How many", {"type": "object"})}
        found[f"{place}/{verb}"] = {"post": _operation(text, app, done, asked, needs_body=asked is _TOKENS)}
    return found


def _operation(
    summary: str, tag: str, responses: dict[str, Any], body: dict[str, Any] | None = None, *, needs_body: bool = False
) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": summary, "tags": [tag], "responses": {**responses, "default": _PROBLEM}}
    if body is not None:
        found["requestBody"] = {"required": needs_body, "content": {_JSON: {"schema": body}}}
    return found


def _json(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {_JSON: {"schema": schema}}}


def _path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query(name: str, text: str, kind: str = "string") -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "schema": {"type": kind}}


def _letters(text: str, responses: dict[str, Any]) -> dict[str, Any]:
    return _operation(text, "failures", responses, _LETTERS, needs_body=True)


def _needed(name: str, text: str, most: int = 0) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "minLength": 1}
    return {**_query(name, text), "required": True, "schema": schema | ({"maxLength": most} if most else {})}


def _most(most: int) -> dict[str, Any]:
    found = _query("limit", "How many at most", "integer")
    found["schema"] |= {"minimum": 1, "maximum": most}
    return found


def _header(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}


def _item(event: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["event", "data"] if schema else ["event"],
        "additionalProperties": False,
        "properties": {
            "event": {"const": event},
            "data": schema,
            "key": {"type": ["string", "null"], **_KEYS},
            "id": {"type": ["string", "null"], "minLength": 1},
        },
    }


_FREE: dict[str, Any] = {"security": []}
"""Asks for no token."""
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_WHOLE = {"description": "Its bytes", "content": {"*/*": {}}}
_METRICS = {"description": "Text", "content": {"text/plain": {"schema": {"type": "string"}}}}
_KEYS = {"minLength": 1, "maxLength": 4_096}
_KEY = _query("key", "The event's key")
_KEY["schema"] |= _KEYS
_DEADLINE = _query("deadline", "Seconds after which nobody is interested", "number")
_DEADLINE["schema"] |= {"minimum": 0, "maximum": 3_155_760_000}
_WAIT = _query("wait", "Seconds to wait for the answer", "number")
_WAIT["schema"] |= {"exclusiveMinimum": 0, "maximum": 300}
_ID = _header("Idempotency-Key", "The event's own id: the same one is accepted once")
_ID["schema"] |= {"minLength": 1, "maxLength": 255}
_AFTER = _header("Last-Event-ID", "Where to go on, as a tail before has said")
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
        "looks": {"type": "boolean"},
    },
}
_ABOUT = {
    "type": "object",
    "required": ["key", "size", "version"],
    "properties": {
        "key": {"type": "string"},
        "size": {"type": "integer"},
        "version": {"type": "string"},
        "checksum": {"type": "string"},
        "content_type": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "user": {"type": "object"},
        "expires": {"type": "integer"},
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
