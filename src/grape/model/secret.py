"""Where a secret is found. The value itself stands in no file of an app."""

from __future__ import annotations

from msgspec import Struct


class Secret(Struct, frozen=True, rename="kebab"):
    """Where the value is found when it is needed; one of these, never the value itself.

    ``file``: all that is in it, without the line end. ``env``: a variable of the engine's own environment.
    ``credential``: of systemd, in ``$CREDENTIALS_DIRECTORY``.
    """

    file: str | None = None
    env: str | None = None
    credential: str | None = None
