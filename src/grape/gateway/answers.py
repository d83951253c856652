"""What the gateway answers, in the forms that it has."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from starlette.responses import Response

from grape.client.calls import decoded_reply, failure_in
from grape.errors import CallFailed
from grape.gateway.bodies import JSON, MSGPACK
from grape.gateway.problems import MEDIA, Problem, problem_of

STREAM: Final = "text/event-stream"
json_of: Final = msgspec.json.Encoder(enc_hook=repr).encode


def as_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json_of(value), status, headers, JSON)


def as_problem(problem: Problem) -> Response:
    return Response(json_of(problem.document), problem.status, problem.headers, MEDIA)


def as_reply(packed: bytes, accepts: str) -> Response:
    """The answer to a call, in the form that is asked for.

    Raises:
        CallFailed: what should have answered failed.
    """
    data = decoded_reply(packed)
    failed: CallFailed | None = failure_in(data)
    if failed is not None:
        raise failed
    if any(media in accepts for media in MSGPACK):
        return Response(packed, 200, None, "application/msgpack")
    return as_json(data)


def sent_reply(packed: bytes, final: bool) -> bytes:
    """A reply as a server-sent event."""
    data = decoded_reply(packed)
    failed = failure_in(data) if final else None
    if failed is not None:
        return sent_problem(problem_of(failed))
    return b"event: %s\ndata: %s\n\n" % (b"final" if final else b"part", json_of(data))


def sent_problem(problem: Problem) -> bytes:
    return b"event: error\ndata: %s\n\n" % json_of(problem.document)
