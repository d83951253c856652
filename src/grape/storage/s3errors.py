"""What a server of S3 refuses, as one error that says what, where, and what to do. No secret gets into a text: of what
came nothing is told but its code and message."""

from __future__ import annotations

import html
import re
from typing import Final

from msgspec import Struct

from grape.errors import BadArgument, GrapeError, StorageFailed, TooLarge, UsageError

NO_ANSWER: Final = 0
AGAIN: Final = frozenset({429, 500, 502, 503, 504})
"""What a server answers that may answer otherwise soon."""
_CODE: Final = re.compile(r"<Code>([^<]{1,200})</Code>")
_MESSAGE: Final = re.compile(r"<Message>([^<]{1,1000})</Message>")
_REGION: Final = re.compile(r"<Region>([^<]{1,100})</Region>")
_KINDS: Final = re.compile(r"kind: (\w+)")
_STATUS: Final = re.compile(r"status: (\d{3})|status code: (\d{3})")
_REDIRECTED: Final = "incorrectly configured region"
_WRONG_KEYS: Final = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired"}
)
_WRONG_REGION: Final = frozenset(
    {"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)


class Refusal(Struct, frozen=True):
    """What came instead of what was asked for.

    Args:
        status: of HTTP; 0: no answer came. code, message: as S3 says. region: where the bucket is, if it says so.
        why: of no answer.
    """

    status: int = NO_ANSWER
    code: str = ""
    message: str = ""
    region: str = ""
    why: str = ""

    @property
    def was_unmet(self) -> bool:
        """A condition does not hold, or did not while another writer was at it."""
        return self.status in (409, 412) or self.code in ("PreconditionFailed", "ConditionalRequestConflict")

    @property
    def may_be_done(self) -> bool:
        """Of a write: it, or an earlier try of it."""
        return self.was_unmet or self.status in (NO_ANSWER, 200, 404, 500, 502, 503, 504)

    @property
    def is_passing(self) -> bool:
        """It may be so for a moment only."""
        return self.status in AGAIN or self.why == "broken" or self.was_unheard

    @property
    def was_unheard(self) -> bool:
        """Nobody was there to hear it."""
        return self.why in ("refused", "connect")

    @property
    def is_gone(self) -> bool:
        return self.status == 404 and self.code != "NoSuchBucket"


class Refused(Exception):
    """``unsure``: it may have happened all the same."""

    def __init__(self, refusal: Refusal, unsure: bool = False) -> None:
        super().__init__(refusal.code or str(refusal.status))
        self.refusal = refusal
        self.unsure = unsure


def refusal_of(status: int, body: str, region: str = "") -> Refusal:
    """Of what a server has answered."""
    code, message, told = _CODE.search(body), _MESSAGE.search(body), _REGION.search(body)
    return Refusal(
        status,
        html.unescape(code[1]) if code else "",
        html.unescape(message[1]) if message else "",
        region or (told[1] if told else ""),
    )


def refusal_in(error: BaseException) -> Refusal:
    """In an error of obstore, which tells it as a text."""
    text = str(error)
    status = _STATUS.search(text)
    if status is not None:
        return refusal_of(int(status[1] or status[2]), text)
    if _REDIRECTED in text:
        return Refusal(301, "PermanentRedirect")
    kinds = _KINDS.findall(text)
    if "Timeout" in kinds or "TimedOut" in kinds:
        return Refusal(why="timeout")
    if "Connect" in kinds:
        return Refusal(why="refused" if "ConnectionRefused" in kinds else "connect")
    return Refusal(why="broken")


class Where(Struct, frozen=True):
    """What the texts name."""

    endpoint: str
    bucket: str
    region: str
    variables: str
    timeout: float

    def error(self, refusal: Refusal, what: str) -> GrapeError:
        """``what``: was to be done, and with which object."""
        code, status = refusal.code, refusal.status
        said = f" ({code}: {refusal.message})" if refusal.message else f" ({code})" if code else ""
        there = f"bucket {self.bucket!r} at {self.endpoint}"
        if code == "NoSuchBucket":
            return UsageError(f"{what}: there is no {there}: make it, or name another one")
        if code in _WRONG_REGION or status in (301, 307):
            region = f"region {refusal.region!r}" if refusal.region else "another region"
            return UsageError(f"{what}: {there} is in {region}, not in {self.region!r}: set region{said}")
        if code in _WRONG_KEYS:
            return UsageError(
                f"{what}: {self.endpoint} does not take the keys: look at {self.variables}_ACCESS_KEY_ID, "
                f"{self.variables}_SECRET_ACCESS_KEY and {self.variables}_SESSION_TOKEN{said}"
            )
        if code == "RequestTimeTooSkewed":
            return UsageError(f"{what}: the clock of this machine, or that of {self.endpoint}, is wrong: set it{said}")
        if status in (401, 403):
            return StorageFailed(f"{what}: the keys may not do that in {there}: allow it, or use other keys{said}")
        if code == "KeyTooLongError":
            return BadArgument(f"{what}: {self.endpoint} takes no such long key, or part of one{said}")
        if code == "MetadataTooLarge":
            return BadArgument(f"{what}: tags and user metadata of an object have 2,048 bytes in S3{said}")
        if code in ("EntityTooLarge", "MaxMessageLengthExceeded"):
            return TooLarge(f"{what}: it is larger than {self.endpoint} takes{said}")
        if status in (429, 500, 502, 503, 504):
            return StorageFailed(f"{what}: {self.endpoint} has answered {status} several times: try later{said}")
        if status:
            return StorageFailed(f"{what}: {there} answers {status}{said}")
        if refusal.why == "timeout":
            return StorageFailed(
                f"{what}: {self.endpoint} has not answered for {self.timeout:g} s: look how it is, or set timeout"
            )
        if refusal.why in ("refused", "connect"):
            return StorageFailed(
                f"{what}: nobody answers at {self.endpoint}: look whether it runs and can be reached from here, and "
                f"whether endpoint is right"
            )
        return StorageFailed(f"{what}: the connection to {self.endpoint} broke: try again, look how it is")
