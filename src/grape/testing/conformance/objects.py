"""The objects of the engine that a case plays."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from msgspec import structs

from grape.errors import BadArgument
from grape.model.names import check_key, check_prefix, check_write
from grape.model.objects import ObjectWrite, Stored
from grape.protocol.messages import Fetch, Fetched, Keep
from grape.testing.conformance.cases import same
from grape.testing.conformance.peer import Failed

_PIECE: Final = 65_536
_NOW: Final = 1_700_000_000_000_000
_PLACES: Final = ("conformance", "photos", "videos")


class Shelf:
    """What is committed, as soon as it is handed in; what was brought; and what was asked since a step has begun."""

    def __init__(self) -> None:
        self._there: dict[tuple[str, str], tuple[Stored, bytes]] = {}
        self._brought: dict[bytes, bytes] = {}
        self._coming: dict[int, bytes] = {}
        self._number = 0
        self.begin({})

    def begin(self, step: dict[str, Any]) -> None:
        held = step.get("retry", {})
        options = {**step, **held} if isinstance(held, dict) else step
        self._piece = options.get("piece", _PIECE)
        self._refused = options.get("refused")
        self._changing = options.get("changing", False)
        self._committing = options.get("committing", False)
        self._flipped = options.get("flipped", False)
        self._cut = options.get("cut")
        self._written: list[list[Any]] = []
        self._fetched: list[list[str]] = []
        self._kept = self._given_up = 0

    def fill(self, objects: dict[str, dict[str, Any]]) -> None:
        for namespace, found in objects.items():
            for key, what in found.items():
                text, tags = what if isinstance(what, list) else (what, [])
                if text is None:
                    self._there.pop((namespace, key), None)
                else:
                    data = text.encode()
                    digest = hashlib.sha256(data).digest()
                    self._put(ObjectWrite(namespace, key, len(data), digest, 0, "text/plain", tuple(tags)), data)

    def _put(self, write: ObjectWrite, data: bytes) -> None:
        self._number += 1
        self._there[write.namespace, write.key] = (
            Stored(
                self._number,
                write.size,
                write.checksum,
                write.time or _NOW,
                write.content_type,
                tuple(write.tags),
                write.user,
                write.expires,
                write.blob,
            ),
            data,
        )

    # ------------------------------------------------------------------ what it asks

    def answer(self, message: Fetch | Keep) -> Fetched:
        """
        Raises:
            Failed: it must not ask that.
        """
        if isinstance(message, Keep):
            return self._keep(message)
        if message.namespace not in _PLACES:
            raise Failed(f"it asks for objects of {message.namespace!r}")
        try:
            (check_prefix if message.what == "page" else check_key)(message.key)
        except BadArgument as e:
            raise Failed(f"it asks for what cannot be: {e}") from None
        asked = [message.what, message.namespace, message.key]
        if not self._fetched or self._fetched[-1] != asked:
            self._fetched.append(asked)
        if self._refused:
            return Fetched(message.id, error=tuple(self._refused))
        if message.what == "page":
            return self._page(message)
        return self._read(message)

    def _page(self, message: Fetch) -> Fetched:
        keys = sorted(
            key
            for namespace, key in self._there
            if namespace == message.namespace and key.startswith(message.key) and key > message.position
        )
        page = keys[:2]  # a page may hold the first ones only
        items = [(key, self._there[message.namespace, key][0]) for key in page]
        return Fetched(message.id, items=items, position=page[-1] if len(keys) > 2 else "")

    def _read(self, message: Fetch) -> Fetched:
        if message.position:
            digest = bytes.fromhex(message.position)
            data = self._brought.get(digest)
            if data is None:
                raise Failed(f"it asks for the bytes {message.position}, which it has not brought")
            found = Stored(0, len(data), digest, blob=True), data
        elif (message.namespace, message.key) in self._there:
            found = self._there[message.namespace, message.key]
        else:
            return Fetched(message.id)
        stored, data = found
        if self._changing or self._committing:
            self._number += 1
            checksum = str(self._number).rjust(32).encode() if self._changing else stored.checksum
            stored = structs.replace(stored, number=self._number, checksum=checksum)
        if message.what == "stat":
            return Fetched(message.id, stored)
        if self._flipped:
            data = data[:-1] + b"?"
        data = data[: self._cut]
        end = len(data) if message.end < 0 else message.end
        return Fetched(message.id, stored, data[message.start : end][: self._piece])

    def _keep(self, message: Keep) -> Fetched:
        if message.given_up:
            self._given_up += 1
            self._coming.pop(message.upload, None)
            return Fetched(message.id)
        if self._refused:
            return Fetched(message.id, error=tuple(self._refused))
        if len(message.data) > 4 << 20:
            raise Failed(f"a part of {len(message.data)} bytes: memory has to stay flat")
        whole = self._coming.pop(message.upload, b"") + message.data
        if not message.last:
            self._coming[message.upload] = whole
            return Fetched(message.id)
        self._kept += 1
        digest = hashlib.sha256(whole).digest()
        self._brought[digest] = whole
        return Fetched(message.id, data=digest)

    # ------------------------------------------------------------------ what it writes

    def take(self, writes: Sequence[ObjectWrite]) -> None:
        """They are committed.

        Raises:
            Failed: they cannot be.
        """
        for write in writes:
            try:
                check_write(write)
            except BadArgument as e:
                raise Failed(f"an object that cannot be written: {e}") from None
            if write.namespace not in ("conformance", "videos"):
                raise Failed(f"it writes into the namespace {write.namespace!r}")
            if write.size < 0:
                self._there.pop((write.namespace, write.key), None)
                self._written.append([write.namespace, write.key, None])
                continue
            data = self._brought.get(write.checksum) if write.blob else write.data
            if data is None or len(data) != write.size or hashlib.sha256(data).digest() != write.checksum:
                raise Failed(f"object {write.key!r} of {write.size} bytes, which are not there")
            self._put(write, data)
            self._written.append([write.namespace, write.key, data.decode("latin-1")])

    def check(self, gives: dict[str, Any]) -> None:
        """
        Raises:
            Failed: something else was done.
        """
        found = {
            "objects": self._written,
            "fetched": self._fetched,
            "brought": self._kept,
            "given_up": self._given_up,
        }
        for what, said in found.items():
            if what in gives and not same(said, gives[what]):
                raise Failed(f"{what}: {said!r:.600}, not {gives[what]!r:.600}")
        if self._coming and "begun" not in gives:
            raise Failed(f"it has begun to bring {len(self._coming)} objects, and neither ended nor given up")
