"""What can be asked, as OpenAPI 3.1 says it: what is the same for every app, and the events and outputs of each."""

from __future__ import annotations

from typing import Any

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
    for name, topology in apps.items():
        paths |= _paths_of(name, topology)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Grape",
            "version": version,
            "description": "Events are durable when they are accepted. Errors are application/problem+json (RFC 9457).",
        },
        "paths": paths,
        "components": {
            "schemas": {"Problem": _PROBLEM_SCHEMA, "Delivery": _DELIVERY},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _paths_of(app: str, topology: TopologySpec) -> dict[str, Any]:
    found: dict[str, Any] = {
        f"/apps/{app}/events": {
            "post": _operation(
                "Several events",
                app,
                {"202": _json("All are durable", _ACCEPTED)},
                {"type": "array", "items": _item(sorted(topology.events))},
            )
        }
    }
    for event in sorted(topology.events):
        found[f"/apps/{app}/events/{event}"] = {
            "parameters": [_query("key", "The event's key"), _query("deadline", "Seconds", "number"), _WAIT, _ID],
            "post": _operation(
                f"Hand in {event!r}, or call it with wait",
                app,
                {"200": _json("The answer", _ANY), "202": _json("It is durable", _ACCEPTED)},
                _ANY,
            ),
        }
    for output in topology.outputs:
        place = f"/apps/{app}/outputs/{output}"
        deliveries = {"type": "object", "properties": {"events": {"type": "array", "items": _REFERENCE}}}
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


def _item(events: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["event"],
        "additionalProperties": False,
        "properties": {
            "event": {"type": "string", "enum": events},
            "data": _ANY,
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
_WHICH = {"type": "object", "additionalProperties": False, "properties": {"consumer": _CONSUMER}}
