"""Whether a hook was called by whoever knows the secret: pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

Hash = Literal["sha256", "sha512"]
Encoding = Literal["hex", "base64"]

GITHUB: Final = "x-hub-signature-256"
GITHUB_ID: Final = "x-github-delivery"
STRIPE: Final = "stripe-signature"


class BadSignature(ValueError):
    """Nobody who knows the secret has said that, or not now."""


def check_plain(
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[bytes],
    header: str,
    *,
    hash: Hash = "sha256",
    encoding: Encoding = "hex",
    prefix: str = "",
) -> None:
    """A header holds the HMAC of the body, as GitHub's ``X-Hub-Signature-256: sha256=...``.

    Args:
        headers: their names in small letters. secrets: any of them will do.

    Raises:
        BadSignature: it does not.
    """
    said = _said(headers, header)
    if not said.startswith(prefix):
        raise BadSignature(f"the header {header} does not begin with {prefix!r}")
    _compare([said.removeprefix(prefix)], secrets, body, hash, _ENCODINGS[encoding], header)


def check_stripe(
    headers: Mapping[str, str], body: bytes, secrets: Sequence[bytes], tolerance: float, now: float
) -> None:
    """``Stripe-Signature: t=SECONDS,v1=HEX``, of the time and the body.

    Args:
        tolerance: seconds that it may be old, or ahead.

    Raises:
        BadSignature: it is not, or too old: somebody may be saying again what he has heard.
    """
    pairs = [part.strip().partition("=") for part in _said(headers, STRIPE).split(",")]
    time = next((value for key, _, value in pairs if key == "t"), "")
    marks = [value for key, _, value in pairs if key == "v1"]
    if not (time.isascii() and time.isdecimal() and len(time) < 16) or not marks:
        raise BadSignature(f"the header {STRIPE} has no t= and v1= as Stripe writes them")
    _compare(marks, secrets, b"%s.%s" % (time.encode(), body), "sha256", _ENCODINGS["hex"], STRIPE)
    away = now - int(time)
    if abs(away) > tolerance:
        how = f"{away:.0f} s old" if away > 0 else f"{-away:.0f} s ahead"
        raise BadSignature(f"the signature is {how}; {tolerance:g} s are allowed; is a clock wrong?")


def at_path(value: Any, path: str) -> str:
    """The text at a path such as ``repository.full_name`` or ``items.0.id`` in a value of JSON.

    Raises:
        ValueError: there is none.
    """
    found = value
    for step in path.split("."):
        if isinstance(found, dict) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isascii() and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        else:
            raise ValueError(f"the body has no {path!r:.200}: there is no {step!r:.100}")
    if isinstance(found, str) and found:
        return found
    if isinstance(found, int | float) and not isinstance(found, bool):
        return str(found)
    raise ValueError(f"{path!r:.200} in the body is neither text nor a number")


def _said(headers: Mapping[str, str], name: str) -> str:
    found = headers.get(name.lower())
    if not found:
        raise BadSignature(f"there is no header {name}, which has the signature")
    return found


def _compare(
    marks: Sequence[str],
    secrets: Sequence[bytes],
    signed: bytes,
    hash: Hash,
    encoded: Callable[[bytes], bytes],
    header: str,
) -> None:
    """In a time that says nothing of how much of it is right."""
    fits = False
    for secret in secrets:
        wanted = encoded(hmac.digest(secret, signed, getattr(hashlib, hash)))
        for mark in marks[:8]:
            fits |= hmac.compare_digest(wanted, mark.encode())
    if not fits:
        raise BadSignature(f"the signature in the header {header} is not one of this body with the secret of this hook")


_ENCODINGS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "hex": lambda mark: mark.hex().encode(),
    "base64": base64.b64encode,
}
