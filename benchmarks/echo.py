"""The limit of one event a request: the same HTTP server, and an app that reads the body and answers."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def _echo(request: Request) -> Response:
    await request.body()
    return Response(b'{"accepted":1}', 202, None, "application/json")


app = Starlette(routes=[Route("/apps/{app}/events/{event:path}", _echo, methods=["POST"])])
