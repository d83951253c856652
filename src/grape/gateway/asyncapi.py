"""What apps take and give, as AsyncAPI 3.0 says it: an app receives what it listens to, and sends its outputs."""

from __future__ import annotations

from typing import Any

from grape.gateway.shapes import Shapes
from grape.model.topology import TopologySpec


def document(apps: dict[str, TopologySpec], version: str, host: str, is_secure: bool) -> dict[str, Any]:
    """
    Args:
        apps: those that run, by name. host: of the server, as whoever asks knows it.
    """
    shapes = Shapes()
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for app, topology in apps.items():
        for event in topology.events:
            _enter(
                channels,
                operations,
                app,
                event,
                f"/apps/{app}/events/{event}",
                "receive",
                shapes.of_event(topology, event),
            )
        for output in topology.outputs:
            place = f"/apps/{app}/outputs/{output}/tail"
            _enter(channels, operations, app, output, place, "send", shapes.of_output(topology, output))
    _tell_of_others(channels, operations, apps)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Grape",
            "version": version,
            "description": (
                "Events are handed in by POST, or over the WebSocket at /apps/APP/ws; outputs come as server-sent "
                "events, or over the same WebSocket. A payload that does not fit becomes a dead letter."
            ),
        },
        "defaultContentType": "application/json",
        "servers": {
            "http": {"host": host, "protocol": "https" if is_secure else "http"},
            "ws": {"host": host, "protocol": "wss" if is_secure else "ws"},
        },
        "channels": channels,
        "operations": operations,
        "components": {"schemas": shapes.schemas},
    }


def _enter(
    channels: dict[str, Any],
    operations: dict[str, Any],
    app: str,
    name: str,
    place: str,
    action: str,
    schema: dict[str, Any],
) -> None:
    channel = _id(app, name)
    channels[channel] = {
        "address": place,
        "title": f"{app}@{name}",
        "messages": {"event": {"name": name, "payload": schema}},
    }
    operations[f"{channel}.{action}"] = {"action": action, "channel": _reference(channel)}


def _tell_of_others(channels: dict[str, Any], operations: dict[str, Any], apps: dict[str, TopologySpec]) -> None:
    """What an app is known to emit to another one that is told of too."""
    for app, topology in apps.items():
        for name in dict.fromkeys(name for slot in topology.slots for name in slot.emits if "@" in name):
            other, _, event = name.partition("@")
            channel = _id(other, event)
            if channel in channels:
                operations[f"{_id(app, 'sends')}.{channel}"] = {"action": "send", "channel": _reference(channel)}


def _id(app: str, name: str) -> str:
    """Of a channel: what a key may hold, and different for different names."""
    return f"{app}." + "".join(c if c.isascii() and (c.isalnum() or c in "_-") else f"_{ord(c):x}_" for c in name)


def _reference(channel: str) -> dict[str, str]:
    return {"$ref": f"#/channels/{channel}"}
