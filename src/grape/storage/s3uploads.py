"""Uploads in parts: several parts at the same time, one condition at the end, and nothing stays of one that fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from datetime import datetime
from typing import Final
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from msgspec import Struct, structs

from grape.storage.s3calls import TRIES, Answer, Calls, elements, text_in
from grape.storage.s3errors import Refused, refusal_of
from grape.storage.streams import Measured

_PARTS: Final = 10_000
"""Of an object, at most."""
_AT_ONCE: Final = 4
"""Parts of one upload that are under way."""
_TAKING_BACK: Final = 2
"""Tries; what is not taken back now is later."""


class Held(Struct, frozen=True):
    """An object that is had whole, and can be sent again."""

    view: memoryview

    @property
    def size(self) -> int:
        return len(self.view)

    @property
    def can_again(self) -> bool:
        return True

    async def parts(self, size: int) -> AsyncIterator[memoryview]:
        for at in range(0, len(self.view), size):
            yield self.view[at : at + size]

    def check(self) -> None:
        pass


class Streamed(Struct, frozen=True):
    """An object of which is known before what it will be, sent as it comes."""

    measured: Measured
    size: int

    @property
    def can_again(self) -> bool:
        return False

    async def parts(self, size: int) -> AsyncIterator[bytes]:
        held = bytearray()
        async for chunk in self.measured:
            held += chunk
            while len(held) >= size:
                yield bytes(held[:size])
                del held[:size]
        if held:
            yield bytes(held)

    def check(self) -> None:
        self.measured.check()


async def _until_fewer(running: set[asyncio.Future[str]], count: int) -> None:
    """
    Raises:
        Refused: one of them.
    """
    while len(running) >= count:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            each.result()
        running -= done


class Uploads:
    """
    Args:
        threads: in which requests wait for their answers. part: bytes, if they are enough.
    """

    def __init__(self, calls: Calls, threads: Executor, part: int) -> None:
        self._calls = calls
        self._threads = threads
        self._part = part
        self._left: list[tuple[str, str]] = []
        self._ending: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        if self._ending:
            await asyncio.wait(self._ending)
        await self._abort_left()

    async def _call(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        tries: int = TRIES,
    ) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: self._calls.ask(method, key, query, headers, body, tries)
        )

    async def send(
        self,
        key: str,
        body: Held | Streamed,
        metadata: Mapping[str, str],
        condition: Mapping[str, str],
        find_out: Callable[[], Awaitable[str | None]],
    ) -> str:
        """Its ETag.

        Args:
            metadata, condition: headers. find_out: the ETag if it is there, for when no answer tells.

        Raises:
            Refused: it is not done.
        """
        await self._abort_left()
        upload = text_in((await self._call("POST", key, {"uploads": ""}, metadata)).text, "UploadId")
        running: set[asyncio.Future[str]] = set()
        try:
            etags = await self._send_parts(key, upload, body, running)
            body.check()
        except BaseException as e:
            task = asyncio.create_task(self._abort(key, upload, running))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            if not isinstance(e, asyncio.CancelledError):
                await asyncio.shield(task)
            raise
        try:
            return await self._complete(key, upload, etags, condition)
        except Refused as e:
            if not e.unsure:
                await self._abort(key, upload)
                raise
            # What may be about to become an object is not taken away from under it.
            self._left.append((key, upload))
            found = await find_out()
            if found is None:
                raise
            return found
        except asyncio.CancelledError:
            self._left.append((key, upload))
            raise

    async def _send_parts(
        self, key: str, upload: str, body: Held | Streamed, running: set[asyncio.Future[str]]
    ) -> list[str]:
        """Their ETags. ``running``: filled with what is not awaited when this raises."""

        def send(number: int, part: bytes | memoryview) -> str:
            query = {"partNumber": str(number), "uploadId": upload}
            return self._calls.ask("PUT", key, query, body=part).headers.get("etag", "")

        sent: list[asyncio.Future[str]] = []
        async for part in body.parts(max(self._part, -(-body.size // _PARTS))):
            sent.append(asyncio.get_running_loop().run_in_executor(self._threads, send, len(sent) + 1, part))
            running.add(sent[-1])
            await _until_fewer(running, _AT_ONCE)
        await _until_fewer(running, 1)
        return [each.result() for each in sent]

    async def _complete(self, key: str, upload: str, etags: Sequence[str], condition: Mapping[str, str]) -> str:
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
            for number, etag in enumerate(etags, 1)
        )
        text = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        try:
            done = await self._call("POST", key, {"uploadId": upload}, condition, text)
        except Refused as e:
            if condition and e.refusal.code == "NoSuchKey":  # so there is none to match
                raise Refused(structs.replace(e.refusal, status=412), e.unsure) from None
            raise
        if "<Error>" in done.text:  # it begins to answer, well, before it knows
            raise Refused(refusal_of(500, done.text), True)
        return text_in(done.text, "ETag")

    async def _abort(self, key: str, upload: str, running: Iterable[asyncio.Future[str]] = ()) -> None:
        """Nothing of it stays; for now it does if the server is away."""
        # A part that came after the end would stay. Why one failed is known already.
        await asyncio.gather(*running, return_exceptions=True)
        try:
            await self._call("DELETE", key, {"uploadId": upload}, tries=_TAKING_BACK)
        except Refused as e:
            if not e.refusal.is_gone:
                self._left.append((key, upload))

    async def _abort_left(self) -> None:
        left, self._left = self._left, []
        for key, upload in left:
            await self._abort(key, upload)

    async def clean(self, prefix: str, abandoned: float) -> None:
        """Take back uploads below ``prefix`` that were begun so many seconds ago, as nobody will end them. It is no
        error if these keys may not look for them."""
        with suppress(Refused, ElementTree.ParseError, ValueError):
            answer = await self._call("GET", "", {"uploads": "", "prefix": prefix}, tries=1)
            for each in elements(answer.text, "ListMultipartUploadsResult", "Upload"):
                begun = datetime.fromisoformat(each["Initiated"]).timestamp()
                if time.time() - begun > abandoned and each["Key"].startswith(prefix):
                    await self._abort(each["Key"], each["UploadId"])
