"""What Google and Azure refuse, as one error that says what, where, and what to do. No secret gets into a text: of what
came nothing is told but its code and message."""

from __future__ import annotations

from typing import Final

from msgspec import Struct, structs

from grape.errors import BadArgument, GrapeError, StorageFailed, TooLarge, UsageError
from grape.storage.s3errors import Refusal, refusal_in

NOT_HEARD: Final = frozenset({"refused", "connect"})
"""Why nothing was done: nobody took the request."""
_NO_BUCKET: Final = frozenset({"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"})
_WRONG_KEYS: Final = frozenset(
    {
        "AuthenticationFailed",
        "AuthenticationRequired",
        "AuthorizationFailure",
        "InvalidAuthenticationInfo",
        "InvalidSecurity",
    }
)
_METADATA: Final = frozenset({"InvalidMetadata", "EmptyMetadataKey", "MetadataTooLarge"})
_TOKEN: Final = ("token request", "credential error", "Error requesting token")


def refusal_of(error: BaseException) -> Refusal:
    """In an error of obstore."""
    said = str(error).partition("\n")[0]
    if any(each in said for each in _TOKEN):
        return Refusal(why="token")
    if "empty path segment" in said or type(error).__name__ == "InvalidPathError":
        return Refusal(why="path")
    if "Wanted range starting at" in said:  # a server that answers a range behind the end by none
        return Refusal(416, "InvalidRange")
    refusal = refusal_in(error)
    return structs.replace(refusal, message=refusal.message.partition("\n")[0].strip())


def is_gone(refusal: Refusal) -> bool:
    return refusal.status == 404 and refusal.code not in _NO_BUCKET


class Cloud(Struct, frozen=True):
    """What the texts name.

    Args:
        kind: of what objects lie in. keys: the variables of the environment that have them.
    """

    scheme: str
    kind: str
    bucket: str
    endpoint: str
    keys: str
    timeout: float

    def unmade(self, error: BaseException) -> UsageError:
        """Nothing was asked yet: what is in the environment cannot be."""
        said = str(error).partition("\n")[0]
        if "Account must be specified" in said:
            return UsageError(f"{self.scheme}://{self.bucket}: of which account? Set AZURE_STORAGE_ACCOUNT_NAME")
        if "Access Key" in said:
            return UsageError(f"{self.scheme}://{self.bucket}: the key is not base64: look at {self.keys}")
        return UsageError(f"{self.scheme}://{self.bucket}: the keys cannot be read: look at {self.keys}")

    def error(self, refusal: Refusal, what: str) -> GrapeError:
        """``what``: was to be done, and with which object."""
        code, status, why = refusal.code, refusal.status, refusal.why
        said = f" ({code}: {refusal.message})" if refusal.message else f" ({code})" if code else ""
        there = f"{self.kind} {self.bucket!r} at {self.endpoint}"
        if code in _NO_BUCKET:
            return UsageError(f"{what}: there is no {there}: make it, or name another one")
        if why == "token":
            return UsageError(f"{what}: there are no keys, or nobody takes them: look at {self.keys}")
        if code in _WRONG_KEYS or status == 401:
            return UsageError(f"{what}: {self.endpoint} does not take the keys: look at {self.keys}{said}")
        if status == 403:
            return StorageFailed(f"{what}: the keys may not do that in {there}: allow it, or use other keys{said}")
        if code in _METADATA:
            return BadArgument(f"{what}: tags and user metadata of an object have 8,192 bytes{said}")
        if status == 413:
            return TooLarge(f"{what}: it is larger than {self.endpoint} takes{said}")
        if status in (429, 500, 502, 503, 504):
            return StorageFailed(f"{what}: {self.endpoint} has answered {status} several times: try later{said}")
        if status:
            return StorageFailed(f"{what}: {there} answers {status}{said}")
        if why == "path":
            return StorageFailed(
                f"{what}: another program has written what no key can be, such as a//b: remove it, or use another "
                f"prefix"
            )
        if why == "timeout":
            return StorageFailed(
                f"{what}: {self.endpoint} has not answered for {self.timeout:g} s: look how it is, or set timeout"
            )
        if why in ("refused", "connect"):
            return StorageFailed(
                f"{what}: nobody answers at {self.endpoint}: look whether it runs and can be reached from here, and "
                f"whether endpoint is right"
            )
        return StorageFailed(f"{what}: the connection to {self.endpoint} broke: try again, look how it is")
