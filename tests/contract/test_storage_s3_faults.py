"""Objects in S3 when the server, or what lies between, does not do what it should."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from contract import weed
from contract.between import Between, Fault, answered, count_through
from contract.between import first as first_of
from contract.faulty import HANG, RESET, Answer, Faulty, Request, refusal
from grape.abc.storage import Place, Put
from grape.errors import BadArgument, Conflict, Corrupt, GrapeError, StorageFailed, Unsupported, UsageError
from grape.storage.objects import Objects
from grape.storage.s3 import S3Config, S3Storage
from grape.storage.streams import chunks_of

PART = 5 << 20
PLACE = Place("n", "key")


def run(test: Callable[[Faulty, Objects], Awaitable[None]], faulty: Faulty | None = None, **settings: object) -> None:
    """On a server that behaves until the storage is open."""

    async def all_of_it() -> None:
        async with (faulty or Faulty()).running() as server, opened(server.endpoint, **settings) as objects:
            server.asked.clear()
            await test(server, objects)

    asyncio.run(all_of_it())


@contextlib.asynccontextmanager
async def opened(endpoint: str, **settings: object) -> AsyncIterator[Objects]:
    given = {"bucket": weed.BUCKET, "prefix": "p", "variables": weed.VARIABLES, "part": PART, "timeout": 5.0}
    storage = S3Storage(S3Config(endpoint=endpoint, **{**given, **settings}))  # type: ignore[arg-type]
    try:
        await storage.open()
        yield Objects(storage, "n")
    finally:
        await storage.close()


def first(count: int, answer: Answer, *kinds: str) -> Callable[[Request], Answer | None]:
    """So many requests of these kinds (all, if none is named) are answered so."""
    left = [count]

    def fault(request: Request) -> Answer | None:
        if (kinds and request.kind not in kinds) or left[0] == 0:
            return None
        left[0] -= 1
        return answer

    return fault


# ---------------------------------------------------------------------- bursts, silence, breaks


def test_what_may_be_repeated_is_repeated() -> None:
    async def test(server: Faulty, objects: Objects) -> None:
        large = os.urandom(2 * PART + 5)
        for fault in (Answer(503), RESET, refusal(429, "SlowDown")):
            for kind, doing in (
                ("put", lambda: objects.put("key", b"1")),
                ("get", lambda: objects.get("key")),
                ("head", lambda: objects.stat("key")),
                ("list", objects.page),
                ("delete", lambda: objects.remove("key")),
                ("begin", lambda: objects.put("large", large)),
                ("part", lambda: objects.put("large", large)),
                ("complete", lambda: objects.put("large", large)),
            ):
                if fault.status == 429 and kind not in ("put", "part"):
                    continue
                server.asked.clear()
                server.faults = first(2, fault, kind)
                await doing()
                assert server.kinds().count(kind) >= 3, (fault, kind)
        assert server.objects["p/n/large"][0] == large
        assert server.uploads == {}

    run(test)


@pytest.fixture
def few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grape.storage.s3.TRIES", 2)


@pytest.mark.usefixtures("few_tries")
def test_a_server_that_is_not_well_is_told() -> None:
    async def test(server: Faulty, objects: Objects) -> None:
        server.faults = lambda request: Answer(503)
        for doing in (objects.put("key", b"1"), objects.remove("key"), objects.page()):
            with pytest.raises(StorageFailed, match=r"127\.0\.0\.1:\d+ has answered 503 several times: try later"):
                await doing
        assert len(server.asked) < 30

    run(test)


@pytest.mark.usefixtures("few_tries")
def test_a_server_that_says_nothing_is_told_in_time() -> None:
    async def test(server: Faulty, objects: Objects) -> None:
        server.faults = lambda request: HANG
        for doing in (objects.put("key", b"1"), objects.put("key", b"1", if_absent=True), objects.get("key")):
            begun = time.monotonic()
            with pytest.raises(StorageFailed, match=r"has not answered for 0\.2 s: look how it is, or set timeout"):
                await doing
            assert time.monotonic() - begun < 20
        with pytest.raises(StorageFailed, match="has not answered"):
            await objects.page()
        server.faults = lambda request: None
        await objects.put("key", b"2")
        assert (await objects.get("key")) is not None

    run(test, timeout=0.2)


@pytest.mark.parametrize("size", [3 << 20, 9 << 20])
def test_a_body_that_breaks_is_read_on(size: int) -> None:
    async def test(server: Faulty, objects: Objects) -> None:
        data = os.urandom(size)
        await objects.put("key", data)
        server.after = lambda request, answer: (
            Answer(answer.status, answer.headers, answer.body, cut=len(answer.body) // 2)
            if request.kind == "get" and len(answer.body) > 400_000
            else answer
        )
        found = await objects.get("key")
        assert found is not None
        assert found.data == data
        assert server.kinds().count("get") > 1

    run(test)


def test_a_body_that_breaks_every_time_is_told() -> None:
    async def test(server: Faulty, objects: Objects) -> None:
        await objects.put("key", os.urandom(1 << 20))
        server.after = lambda request, answer: (
            Answer(answer.status, answer.headers, answer.body, cut=0) if request.kind == "get" else answer
        )
        with pytest.raises(StorageFailed, match=r"read n/key, of which 0 bytes came, .*the connection to .* broke"):
            await objects.get("key")

    run(test)


def test_a_body_that_is_too_short_is_corrupt() -> None:
    """F25"""
    """What lies there is less than was written, and the server does not notice."""

    async def test(server: Faulty, objects: Objects) -> None:
        await objects.put("key", b"all of it")
        body, headers = server.objects["p/n/key"]
        server.objects["p/n/key"] = body[:-1], headers
        with pytest.raises(Corrupt, match="n/key: what is stored is not what was written"):
            await objects.get("key")
        server.objects["p/n/key"] = b"all of iX", headers
        for read in (objects.get, objects.verify):
            with pytest.raises(Corrupt):
                await read("key")
        (name,) = (name for name in headers if name.lower() == "x-amz-meta-grape-sum")
        server.objects["p/n/key"] = body, {**headers, name: "sha256:00"}
        found = await objects.get("key")  # for which its other sum is good enough
        assert found is not None
        assert found.data == body
        with pytest.raises(Corrupt):
            await objects.verify("key")

    run(test)


def test_what_is_written_over_while_it_is_read_is_not_mixed() -> None:
    async def test(server: Faulty, objects: Objects) -> None:
        await objects.put("key", b"a" * (2 << 20))
        server.after = lambda request, answer: (
            Answer(answer.status, answer.headers, answer.body, cut=1 << 20)
            if request.kind == "get" and "range" not in request.headers
            else answer
        )

        def other(request: Request) -> Answer | None:
            if "range" in request.headers:
                server._keep("p/n/key", b"b" * (2 << 20), {})
                if request.headers.get("if-match") != server.objects["p/n/key"][1]["etag"]:
                    return refusal(412, "PreconditionFailed")
            return None

        server.faults = other
        with pytest.raises(StorageFailed):
            await objects.get("key")

    run(test)


# ---------------------------------------------------------------------- done, but not answered


def test_connections_that_the_server_closes_are_not_noticed() -> None:
    async def test(server: Faulty, objects: Objects) -> None:
        server.closes = True
        about = await objects.put("key", b"0")
        for i in range(40):
            about = await objects.put("key", f"{i}".encode(), if_version=about.version)
            await objects.put(f"new{i}", b"1", if_absent=True)
            await objects.remove(f"new{i}", if_version=(await objects.page("new")).items[0].version)
        found = await objects.get("key")
        assert found is not None
        assert found.data == b"39"

    run(test)


@pytest.mark.parametrize(("is_amazon", "kind"), [(False, "put"), (True, "complete")])
def test_a_write_that_was_done_but_not_answered_is_known_as_ones_own(
    is_amazon: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(server: Faulty, objects: Objects) -> None:
        data, lost = os.urandom(PART + 1), [1]

        def after(request: Request, answer: Answer) -> Answer:
            if request.kind == kind and lost[0]:
                lost[0] -= 1
                return RESET
            return answer

        server.after = after
        about = await objects.put("key", data, if_absent=True)
        assert lost == [0]
        assert await objects.stat("key") == about
        with pytest.raises(Conflict):
            await objects.put("key", data, if_absent=True)
        lost[0] = 1
        other = await objects.put("key", os.urandom(PART + 1), if_version=about.version)
        assert lost == [0]
        assert await objects.stat("key") == other
        assert server.uploads == {}

    if is_amazon:
        monkeypatch.setattr("grape.storage.s3._AMAZON", re.compile(".*"))
    run(test)


def test_a_removal_that_was_done_but_not_answered_is_not_called_a_conflict() -> None:
    async def test(server: Faulty, objects: Objects) -> None:
        about = await objects.put("key", b"1")
        lost = [1]

        def after(request: Request, answer: Answer) -> Answer:
            if request.kind == "delete" and lost[0]:
                lost[0] -= 1
                return RESET
            return answer

        server.after = after
        with pytest.raises(StorageFailed, match="whether this has removed it is not known"):
            await objects.remove("key", if_version=about.version)

    run(test)


# ---------------------------------------------------------------------- conditions


def test_what_a_server_does_not_keep_is_found_out_and_refused() -> None:
    async def blind(server: Faulty, objects: Objects) -> None:
        features = objects.storage.features
        assert (features.swaps, features.removes, features.conditions) == (False, False, frozenset())
        await objects.put("key", b"1")
        for doing in (
            objects.put("key", b"2", if_absent=True),
            objects.put("key", b"2", if_newer=True),
            objects.swap("key", lambda there: b"2"),
            objects.append("key", b"2"),
            objects.remove("key", if_version="x"),
        ):
            with pytest.raises(Unsupported):
                await doing
        assert await objects.cap(objects=0) == 1

    async def half(server: Faulty, objects: Objects) -> None:
        features = objects.storage.features
        assert (features.swaps, features.removes, features.conditions) == (False, True, frozenset({"absent"}))
        await objects.put("key", b"1", if_absent=True)
        with pytest.raises(Conflict):
            await objects.put("key", b"1", if_absent=True)
        with pytest.raises(Unsupported):
            await objects.put("key", b"2", if_version="x")

    async def keeps(server: Faulty, objects: Objects) -> None:
        features = objects.storage.features
        assert (features.swaps, features.removes, features.in_order) == (True, False, True)
        await objects.swap("key", lambda there: b"2")
        with pytest.raises(Unsupported, match="look and remove as one step"):
            await objects.swap("key", lambda there: None)
        assert await objects.remove("key") is True

    for ignored, test in (
        ({"if-match", "if-none-match"}, blind),
        ({"put if-match"}, half),
        ({"delete if-match"}, keeps),
    ):
        faulty = Faulty()
        faulty.ignored = ignored
        run(test, faulty)
        assert [key for key in faulty.objects if ".grape-probe" in key] == []


def test_a_server_that_looks_first_and_writes_then_is_found_out() -> None:
    """As SeaweedFS did before 4.17: each condition is refused when it does not hold, but of several that come together
    all are let through."""

    class Slow(Faulty):
        async def between(self, request: Request) -> None:
            if request.method == "PUT" and ("if-match" in request.headers or "if-none-match" in request.headers):
                await asyncio.sleep(0.05)

    async def test(server: Faulty, objects: Objects) -> None:
        assert objects.storage.features.swaps is False
        assert objects.storage.features.conditions == frozenset()
        with pytest.raises(Unsupported, match="look and write as one step"):
            await objects.put("key", b"1", if_absent=True)

    run(test, Slow())


def test_who_may_only_read_opens_it_and_is_refused_a_write() -> None:
    async def test() -> None:
        server = weed.shared()
        async with opened(server.endpoint, prefix="reader") as objects:
            await objects.put("key", b"1")
        async with opened(server.endpoint, prefix="reader", variables=weed.READER) as objects:
            found = await objects.get("key")
            assert found is not None
            assert [about.key async for about in objects.list()] == ["key"]
            with pytest.raises(StorageFailed, match="the keys may not do that in bucket"):
                await objects.put("key", b"2")

    asyncio.run(test())


def test_writers_who_race_by_time_leave_the_newest() -> None:
    async def test(server: Faulty, objects: Objects) -> None:
        async def put(moment: int) -> None:
            with contextlib.suppress(Conflict):
                await objects.put("key", str(moment).encode(), time=moment, if_newer=True)

        await asyncio.gather(*map(put, (3, 9, 1, 7, 5, 2, 8)))
        assert server.objects["p/n/key"][0] == b"9"

    run(test)


# ---------------------------------------------------------------------- uploads in parts


def test_of_an_upload_that_fails_nothing_stays() -> None:
    async def test(server: Faulty, objects: Objects) -> None:
        data = os.urandom(3 * PART)
        server.faults = lambda request: refusal(403, "AccessDenied", "no") if request.kind == "part" else None
        with pytest.raises(StorageFailed, match="the keys may not do that"):
            await objects.put("key", data)
        assert (server.uploads, server.objects) == ({}, {})
        assert server.kinds()[-1] == "abort"

        async def broken() -> AsyncIterator[bytes]:
            yield data
            raise LookupError("the writer's own fault")

        server.faults = lambda request: None
        put = Put(size=len(data) + 1, checksum=f"sha256:{hashlib.sha256(data).hexdigest()}")
        with pytest.raises(LookupError):
            await objects.storage.write(PLACE, broken(), put)
        with pytest.raises(BadArgument):  # it said one more
            await objects.storage.write(PLACE, chunks_of(data), put)
        assert "begin" in server.kinds()
        assert (server.uploads, server.objects) == ({}, {})

    run(test)


def test_what_cannot_be_taken_back_now_is_taken_back_later() -> None:
    async def test(server: Faulty, objects: Objects) -> None:
        data = os.urandom(2 * PART)
        server.faults = lambda request: refusal(400, "Broken", "no") if request.kind in ("part", "abort") else None
        with pytest.raises(StorageFailed):
            await objects.put("key", data)
        assert len(server.uploads) == 1
        server.faults = lambda request: None
        await objects.put("key", data)
        assert server.uploads == {}

    run(test)


def test_an_upload_that_is_given_up_is_taken_back() -> None:
    faulty = Faulty()

    async def test(server: Faulty, objects: Objects) -> None:
        gate = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield os.urandom(PART)
            gate.set()
            await asyncio.sleep(100)

        put = Put(size=2 * PART, checksum=f"sha256:{'0' * 64}")
        task = asyncio.create_task(objects.storage.write(PLACE, slow(), put))
        await gate.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(test, faulty)
    assert "begin" in faulty.kinds()
    assert (faulty.uploads, faulty.objects) == ({}, {})


def test_uploads_that_nobody_ends_are_removed_when_it_is_opened() -> None:
    faulty = Faulty()
    faulty.uploads = {
        "mine": ("p/n/key", {}, {}, "2026-01-01T00:00:00.000Z"),
        "new": ("p/n/new", {}, {}, "2999-01-01T00:00:00.000Z"),
        "theirs": ("photos/key", {}, {}, "2026-01-01T00:00:00.000Z"),
    }

    async def test(server: Faulty, objects: Objects) -> None:
        assert sorted(server.uploads) == ["new", "theirs"]

    run(test, faulty)


def test_what_says_before_what_it_is_goes_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(server: Faulty, objects: Objects) -> None:
        def never(*args: object) -> None:
            raise AssertionError("a temporary file")

        monkeypatch.setattr("tempfile.TemporaryFile", never)
        data = os.urandom(2 * PART + 7)
        path = Path(os.environ.get("TMPDIR", "/tmp"))
        assert path.is_dir()
        put = Put(size=len(data), checksum=f"sha256:{hashlib.sha256(data).hexdigest()}")
        about = await objects.storage.write(PLACE, chunks_of(data), put)
        assert server.objects["p/n/key"][0] == data
        assert await objects.verify("key") == about

    run(test)


# ---------------------------------------------------------------------- set up wrongly


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (refusal(404, "NoSuchBucket", "none"), UsageError, "there is no bucket 'grape-tests' at .*: make it, or name"),
        (refusal(403, "SignatureDoesNotMatch", "no"), UsageError, "does not take the keys: look at GRAPE_WEED_ACCESS"),
        (refusal(403, "InvalidAccessKeyId", "no"), UsageError, "does not take the keys"),
        (refusal(403, "AccessDenied", "no"), UsageError, "the keys may not do that in bucket"),
        (refusal(403, "RequestTimeTooSkewed", "no"), UsageError, "the clock of this machine"),
        (Answer(301, {"x-amz-bucket-region": "eu-west-1"}), UsageError, "is in region 'eu-west-1', not in 'us-east-1'"),
        (
            refusal(400, "AuthorizationHeaderMalformed", "expecting", "<Region>eu-west-1</Region>"),
            UsageError,
            "is in region 'eu-west-1', not in 'us-east-1': set region",
        ),
        (RESET, StorageFailed, "the connection to .* broke"),
        (Answer(503), StorageFailed, "has answered 503"),
        (Answer(200, {}, b"<html>hello</html>"), UsageError, "does not speak S3: look at endpoint"),
        (Answer(200, {}, b"hello"), UsageError, "does not speak S3"),
    ],
)
def test_one_clear_error(answer: Answer, error: type[GrapeError], text: str) -> None:
    async def test() -> None:
        async with Faulty().running() as server:
            server.faults = lambda request: answer
            storage = S3Storage(
                S3Config(bucket=weed.BUCKET, endpoint=server.endpoint, variables=weed.VARIABLES, region="us-east-1")
            )
            with pytest.raises(error, match=text) as found:
                async with opened(server.endpoint, region="us-east-1") as objects:
                    await objects.page()
            assert weed.SECRET not in str(found.value)
            assert weed.SECRET not in repr(storage)
            await storage.close()

    asyncio.run(test())


def test_errors_of_a_bucket_that_goes_or_keys_that_are_taken_back() -> None:
    """F87"""

    async def test(server: Faulty, objects: Objects) -> None:
        for answer, text in (
            (refusal(404, "NoSuchBucket", "none"), "there is no bucket"),
            (refusal(403, "InvalidAccessKeyId", "no"), "does not take the keys"),
            (Answer(301), "in another region"),
        ):
            server.faults = lambda request, answer=answer: answer  # type: ignore[misc]
            for doing in (
                objects.get("key"),
                objects.put("key", b"1"),
                objects.page(),
                objects.put("key", b"1" * PART),
            ):
                with pytest.raises(GrapeError, match=text):
                    await doing

    run(test)


def test_nobody_is_there() -> None:
    async def test() -> None:
        with pytest.raises(StorageFailed, match=r"nobody answers at http://127\.0\.0\.1:1: look whether it runs"):
            async with opened("http://127.0.0.1:1"):
                pass
        with pytest.raises(StorageFailed, match=r"nobody answers at http://grape\.invalid"):
            async with opened("http://grape.invalid"):
                pass

    asyncio.run(test())


def test_a_server_that_goes_is_told_and_found_again() -> None:
    async def test() -> None:
        async with Faulty().running() as server, opened(server.endpoint, timeout=0.5) as objects:
            await objects.put("key", b"1")
            server.faults = lambda request: RESET
            with pytest.raises(StorageFailed, match="broke"):
                await objects.put("key", b"2")
            server.faults = lambda request: None
            found = await objects.get("key")
            assert found is not None
            assert found.data == b"1"

    asyncio.run(test())


def through(test: Callable[[Between, Objects], Awaitable[None]]) -> None:
    async def run() -> None:
        server = weed.shared()
        port = urlsplit(server.endpoint).port
        assert port is not None
        async with Between(port).running() as between:
            endpoint = server.endpoint.replace(f":{port}", f":{between.port}")
            settings: dict[str, Any] = {"bucket": weed.BUCKET, "variables": weed.VARIABLES, "part": 5 << 20}
            storage = S3Storage(S3Config(endpoint=endpoint, prefix=f"between{secrets.token_hex(6)}", **settings))
            await storage.open()
            try:
                await test(between, Objects(storage, "photos"))
            finally:
                await storage.close()

    asyncio.run(run())


@pytest.mark.parametrize("fault", ["unheard", "unanswered", answered(503, "SlowDown")])
def test_a_write_that_was_not_answered_is_done_once(fault: Fault) -> None:
    async def test(between: Between, objects: Objects) -> None:
        between.faults = first_of(1, fault, "PUT")
        made = await objects.put("key", b"1", if_absent=True)
        assert await objects.stat("key") == made
        between.faults = first_of(1, fault, "PUT")
        changed = await objects.put("key", b"2", if_version=made.version)
        assert await objects.stat("key") == changed
        between.faults = first_of(1, fault, "PUT")
        again = await objects.put("key", b"3")
        assert await objects.stat("key") == again
        between.faults = first_of(1, fault, "PUT")
        with pytest.raises((StorageFailed, Conflict)):
            await objects.put("key", b"4", if_version=made.version)

    through(test)


def test_who_counts_through_what_loses_answers_loses_nothing() -> None:
    """What is told as done is done once; what is not known is told so, never as a conflict that asks to try again."""

    async def test(between: Between, objects: Objects) -> None:
        await count_through(between, objects, 60)

    through(test)
