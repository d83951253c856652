"""Hooks: what others call over HTTP when something has happened there, signed with a secret that both know."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from grape.apps.manifest import manifest_of
from grape.client.events import client_event
from grape.drivers.signing import GITHUB, BadSignature, at_path, check_plain, check_stripe
from grape.drivers.spec import HookDriver
from grape.drivers.told import AskHook, DriverState, Hook, Told
from grape.errors import Conflict, GrapeError
from grape.gateway.access import Verb
from grape.gateway.answers import as_json
from grape.gateway.bodies import JSON, media_of, value_of
from grape.gateway.doors import AppDoor, Doors
from grape.gateway.problems import Problem
from grape.gateway.reading import read_body

_FORM: Final = "application/x-www-form-urlencoded"
_KNOWN: Final = 1.0
"""Seconds after which secrets are asked for again."""
_TOLD: Final = 1.0
"""Seconds between two words to the server about one hook."""


class Hooks:
    """
    Args:
        may: raises a `Problem` unless whoever asks may do that with the app.
    """

    def __init__(self, doors: Doors, may: Callable[[Request, str, Verb], None]) -> None:
        self._doors = doors
        self._may = may
        self._hooks: dict[tuple[str, str], tuple[float, HookDriver, tuple[bytes, ...]]] = {}
        self._told: dict[tuple[str, str], float] = {}

    def routes(self) -> list[Route]:
        return [Route("/apps/{app}/hooks/{hook}", self._called, methods=["POST"])]

    async def _called(self, request: Request) -> Response:
        """Answered when the event is durable. One that comes again, by its id, is answered so as well."""
        name, own = request.path_params["app"], request.path_params["hook"]
        app = self._doors.app(name)
        hook, secrets = await self._hook(name, own)
        try:
            answer = await self._take(request, app, own, hook, secrets)
        except (Problem, GrapeError) as e:
            await self._tell(name, own, DriverState(error=str(e)))
            raise
        await self._tell(name, own, DriverState(time.time()))
        return answer

    async def _take(
        self, request: Request, app: AppDoor, own: str, hook: HookDriver, secrets: tuple[bytes, ...]
    ) -> Response:
        headers = dict(request.headers)
        if hook.scheme is None:
            self._may(request, app.name, "emit")
        length = request.headers.get("content-length", "").encode("latin-1")
        body = await read_body(request.receive, {b"content-length": length}, hook.max_body)  # packed as it was signed
        _check(hook, headers, body, secrets)
        found = _content(body, headers, hook)
        id_header, id_path = hook.id_of
        own_id = None
        if id_header:
            own_id = headers.get(id_header.lower())
            if not own_id:
                raise Problem(400, "bad-argument", f"there is no header {id_header}, which has the delivery's id")
        elif id_path:
            own_id = _at(found, id_path)
        data = found
        if hook.headers or not _is_json(headers, hook):
            shown = {header.lower() for header in hook.headers} | {"content-type"}
            data = {"body": found, "headers": {key: headers[key] for key in sorted(shown & headers.keys())}}
        door = await app.door()
        event = client_event(
            hook.event,
            data,
            _at(found, hook.key) if hook.key else None,
            None if own_id is None else f"{own}:{own_id}",
            None,
            door.limits.max_event,
        )
        try:
            await app.hand_in(event)
        except Conflict:  # as it was told again something beside it has changed, how often it was told, say
            return as_json({"accepted": 0}, 200)
        return as_json({"accepted": 1}, 202)

    async def _hook(self, name: str, own: str) -> tuple[HookDriver, tuple[bytes, ...]]:
        """
        Raises:
            Problem: there is none of that name.
        """
        now = time.monotonic()
        since, known, secrets = self._hooks.get((name, own), (0.0, None, ()))
        if known is not None and now - since < _KNOWN:
            return known, secrets
        found = await self._doors.ask("hook", AskHook(name, own), Hook | None)  # type: ignore[arg-type]
        driver = None if found is None else manifest_of(self._doors.home.package(found.digest)).driver.get(own)
        if found is None or not isinstance(driver, HookDriver):
            self._hooks.pop((name, own), None)
            raise Problem(404, "no-hook", f"app {name!r:.100} has no hook {own!r:.100}")
        secrets = tuple(secret.encode() for secret in found.secrets)
        self._hooks[name, own] = now, driver, secrets
        return driver, secrets

    async def _tell(self, name: str, own: str, state: DriverState) -> None:
        """The server, for people; now and then."""
        now = time.monotonic()
        if now - self._told.get((name, own), 0.0) < _TOLD:
            return
        self._told[name, own] = now
        try:
            await self._doors.ask("driven", Told(name, {own: state}), type(None))
        except (Problem, GrapeError):
            pass


def _check(hook: HookDriver, headers: Mapping[str, str], body: bytes, secrets: tuple[bytes, ...]) -> None:
    """
    Raises:
        Problem: it is not signed by whoever knows the secret.
    """
    try:
        match hook.scheme:
            case "github":
                check_plain(headers, body, secrets, GITHUB, prefix="sha256=")
            case "stripe":
                check_stripe(headers, body, secrets, hook.tolerance, time.time())
            case "hmac":
                check_plain(
                    headers,
                    body,
                    secrets,
                    hook.header,
                    hash=hook.hash,
                    encoding=hook.encoding,
                    prefix=hook.prefix,
                )
    except BadSignature as e:
        raise Problem(401, "bad-signature", str(e)) from None


def _is_json(headers: Mapping[str, str], hook: HookDriver) -> bool:
    media = media_of(headers.get("content-type", "").encode("latin-1"))
    return media in ("", JSON) or media.endswith("+json") or (media == _FORM and hook.scheme == "github")


def _content(body: bytes, headers: Mapping[str, str], hook: HookDriver) -> Any:
    """What the body says: JSON as it is, also where GitHub puts it into a form; else text, or bytes.

    Raises:
        Problem: it says that it is JSON, and is none.
    """
    if not _is_json(headers, hook):
        try:
            return body.decode()
        except UnicodeDecodeError:
            return body
    if media_of(headers.get("content-type", "").encode("latin-1")) == _FORM:
        try:
            body = parse_qs(body.decode(), max_num_fields=10).get("payload", [""])[0].encode()
        except ValueError as e:
            raise Problem(400, "bad-argument", f"the body is no form: {e}") from None
    return value_of(body, JSON)


def _at(found: Any, path: str) -> str:
    try:
        return at_path(found, path)
    except ValueError as e:
        raise Problem(422, "bad-payload", str(e)) from None
