"""What S3 needs and no server has to be there for: signatures, keys to sign with, how things are named and told."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grape.abc.storage import Put
from grape.errors import BadArgument, StorageFailed, TooLarge, UsageError
from grape.storage import spool
from grape.storage.s3 import S3Config, S3Storage
from grape.storage.s3about import about_of, check_of, key_of, metadata_of, stored_key, stored_prefix, version_of
from grape.storage.s3calls import signed
from grape.storage.s3errors import Refusal, Where, refusal_in, refusal_of
from grape.storage.s3keys import KeyRing, Keys

EXAMPLE = Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
MAY_2013 = datetime(2013, 5, 24, tzinfo=UTC).timestamp()


# ---------------------------------------------------------------------- signatures


@pytest.mark.parametrize(
    ("method", "target", "headers", "body", "signature"),
    [
        (
            "GET",
            "/test.txt",
            {"Range": "bytes=0-9"},
            b"",
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            "PUT",
            "/test%24file.text",
            {"Date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
            b"Welcome to Amazon S3.",
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        ("GET", "/?lifecycle", {}, b"", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        (
            "GET",
            "/?max-keys=2&prefix=J",
            {},
            b"",
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ],
)
def test_signatures_are_those_of_amazons_examples(
    method: str, target: str, headers: dict[str, str], body: bytes, signature: str
) -> None:
    url = f"https://examplebucket.s3.amazonaws.com{target}"
    full = signed(method, url, headers, body, EXAMPLE, "us-east-1", MAY_2013)
    assert full["authorization"].endswith(f"Signature={signature}")


def test_a_token_is_signed_and_nothing_without_keys() -> None:
    full = signed("GET", "https://x/y", {}, b"", Keys("k", "s", "t"), "us-east-1", 0)
    assert full["x-amz-security-token"] == "t"
    assert "x-amz-security-token" in full["authorization"]
    assert signed("GET", "https://x/y", {"A": "b"}, b"", None, "us-east-1", 0) == {"a": "b"}


# ---------------------------------------------------------------------- keys to sign with


@contextmanager
def answering(answer: Callable[[str, str, dict[str, str], str], str | None]) -> Iterator[str]:
    """A server; None: 404."""

    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            said = answer(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            data = (said or "").encode()
            self.send_response(404 if said is None else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ring(environment: dict[str, str], **more: Any) -> KeyRing:
    nowhere = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": "/nowhere"}
    return KeyRing(environment={**nowhere, **environment}, **more)


def test_keys_of_variables() -> None:
    environment = {
        **{"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "c"},
        **{"OTHER_ACCESS_KEY_ID": "d", "OTHER_SECRET_ACCESS_KEY": "e"},
    }
    assert ring(environment).keys() == Keys("a", "b", "c")
    assert ring(environment, variables="OTHER").keys() == Keys("d", "e")
    with pytest.raises(UsageError, match="set THIRD_ACCESS_KEY_ID and THIRD_SECRET_ACCESS_KEY, or anonymous"):
        ring(environment, variables="THIRD").keys()
    with pytest.raises(UsageError, match="AWS_SECRET_ACCESS_KEY is not set"):
        ring({"AWS_ACCESS_KEY_ID": "a"}).keys()
    assert "b" not in repr(Keys("a", "b", "c"))


def test_keys_of_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    path.write_text(
        "[default]\naws_access_key_id = a\naws_secret_access_key = b%c\n"
        "[work]\naws_access_key_id=d\naws_secret_access_key=e\naws_session_token=f\n[empty]\n"
    )
    assert ring({"AWS_SHARED_CREDENTIALS_FILE": str(path)}).keys() == Keys("a", "b%c")
    assert ring({"AWS_SHARED_CREDENTIALS_FILE": str(path), "AWS_PROFILE": "work"}).keys() == Keys("d", "e", "f")
    with pytest.raises(UsageError, match="no keys of the profile 'empty', which AWS_PROFILE names"):
        ring({"AWS_SHARED_CREDENTIALS_FILE": str(path), "AWS_PROFILE": "empty"}).keys()
    path.write_text("aws_secret_access_key=secret")
    with pytest.raises(UsageError, match="no file of profiles") as found:
        ring({"AWS_SHARED_CREDENTIALS_FILE": str(path)}).keys()
    assert "=secret" not in str(found.value)


def test_keys_of_a_container_are_renewed_before_they_expire(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("letmein\n")
    clock = [time.time()]
    asked = []

    def answer(method: str, path: str, headers: dict[str, str], body: str) -> str:
        asked.append(headers["authorization"])
        expires = datetime.fromtimestamp(clock[0] + 3600, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return json.dumps(
            {"AccessKeyId": f"k{len(asked)}", "SecretAccessKey": "s", "Token": "t", "Expiration": expires}
        )

    with answering(answer) as url:
        found = ring(
            {
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{url}/keys",
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(tmp_path / "token"),
            },
            now=lambda: clock[0],
        )
        assert (found.keys().key, found.keys().key) == ("k1", "k1")
        clock[0] += 3400
        assert found.keys().key == "k2"
        assert asked == ["letmein"] * 2
    clock[0] += 3600
    with pytest.raises(StorageFailed, match="which has the keys of S3: it does not answer"):
        found.keys()


def test_keys_of_a_machine() -> None:
    def answer(method: str, path: str, headers: dict[str, str], body: str) -> str | None:
        if (method, path) == ("PUT", "/latest/api/token"):
            return "token"
        assert headers["x-aws-ec2-metadata-token"] == "token"
        if path.endswith("security-credentials/"):
            return "role"
        return json.dumps(
            {"AccessKeyId": "k", "SecretAccessKey": "s", "Token": "t", "Expiration": "2999-01-01T00:00:00Z"}
        )

    with answering(answer) as url:
        environment = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url, "AWS_EC2_METADATA_DISABLED": ""}
        assert ring(environment).keys() == Keys("k", "s", "t", 32472144000.0)
    with answering(lambda *args: None) as url:
        environment["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = url
        with pytest.raises(UsageError, match="there are no keys"):
            ring(environment).keys()


def test_keys_of_a_role(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("web token")
    asked = []

    def answer(method: str, path: str, headers: dict[str, str], body: str) -> str:
        asked.append(body)
        return (
            "<A><Credentials><AccessKeyId>k</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
            "<SessionToken>t</SessionToken><Expiration>2999-01-01T00:00:00Z</Expiration></Credentials></A>"
        )

    with answering(answer) as url:
        environment = {
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
            "AWS_ROLE_ARN": "arn:role",
            "AWS_ENDPOINT_URL_STS": url,
        }
        assert ring(environment).keys() == Keys("k", "s", "t", 32472144000.0)
        assert "WebIdentityToken=web+token" in asked[0]
    with pytest.raises(StorageFailed) as found:
        ring(environment).keys()
    assert "web token" not in str(found.value)


# ---------------------------------------------------------------------- names

KEYS = st.text(st.sampled_from("ab\\%25C/ä "), min_size=1, max_size=12)


@given(KEYS, KEYS)
def test_keys_are_stored_each_as_another_one_and_found_again(key: str, other: str) -> None:
    begin = "p/n/"
    assert key_of(begin, stored_key(begin, key)) == key
    assert (stored_key(begin, key) == stored_key(begin, other)) == (key == other)
    assert "\\" not in stored_key(begin, key)


@given(KEYS, KEYS)
def test_what_begins_with_a_prefix_is_stored_so(prefix: str, rest: str) -> None:
    assert stored_key("n/", prefix + rest).startswith(stored_prefix("n/", prefix))
    assert stored_key("n/", prefix).startswith(stored_prefix("n/", prefix))


def test_keys_of_others_are_taken_as_they_are() -> None:
    for key in ("100%", "%41", "a%2Fb", "%5c"):
        assert stored_key("", key) == key_of("", key) == key
    with pytest.raises(BadArgument, match=r"at most 1,024 bytes in S3"):
        stored_key("x" * 125 + "/", "k" * 900)


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20), max_size=5),
    st.dictionaries(
        st.from_regex(r"(grape|[a-z0-9])[a-z0-9_.-]{0,10}", fullmatch=True),
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30),
        max_size=5,
    ),
    st.integers(0, 1 << 60),
    st.integers(0, 1 << 60),
)
def test_what_is_known_beside_is_found_again(tags: list[str], user: dict[str, str], moment: int, expires: int) -> None:
    put = Put("image/png", tuple(sorted(set(tags))), user, moment, expires)
    metadata = metadata_of(put, "sha256:00", moment, "w")
    for name, text in metadata.items():
        assert text
        assert f"{name}{text}".isascii()
        assert f"{name}{text}".isprintable()
        assert " " not in text
    about = about_of("key", 7, '"e"', 5, {"Content-Type": "image/png", **metadata})
    assert (about.tags, about.user, about.time, about.expires) == (put.tags, user, moment, expires)
    assert (about.version, about.checksum, about.content_type) == ("e.w", "sha256:00", "image/png")


def test_what_others_have_made_of_metadata_is_no_error() -> None:
    about = about_of("key", 7, '"e"', 5, {"grape": "w", "grape-time": "soon", "grape-sum": "x", "a": "%41"})
    assert (about.time, about.version, about.checksum, about.user) == (5, version_of('"e"'), "", {"a": "%41"})
    for text in ("", "0000000", "ABCDEF00", "000000000", "0x000000"):
        assert check_of({"grape": "w", "grape-crc": text}) == ""
    assert check_of({"grape-crc": "00000000"}) == ""
    assert check_of(metadata_of(Put(), "sha256:00", 0, "w", "crc32:00000000")) == "crc32:00000000"


# ---------------------------------------------------------------------- settings


def test_what_a_url_says() -> None:
    assert S3Storage.settings_of("photos") == {"bucket": "photos", "prefix": ""}
    assert S3Storage.settings_of("photos/live/a%20b") == {"bucket": "photos", "prefix": "live/a b"}
    for place in ("", "/x", "a", "a b"):
        with pytest.raises(UsageError, match="s3://photos/live"):
            S3Storage.settings_of(place)
    with pytest.raises(UsageError, match="never by keys") as found:
        S3Storage.settings_of("AKIA:secret@photos/live")
    assert "secret" not in str(found.value)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:8333", "ftp://x", "http://", "http://u:secret@x", "http://x?secret=1"])
def test_what_is_no_endpoint(endpoint: str) -> None:
    with pytest.raises(UsageError, match=r"endpoint is as in http://127\.0\.0\.1:8333") as found:
        S3Storage(S3Config(bucket="photos", endpoint=endpoint))
    assert "secret" not in str(found.value)


def test_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def where(**settings: str) -> tuple[str, str]:
        found = S3Storage(S3Config(bucket="photos", **settings))._where  # type: ignore[arg-type]
        return found.endpoint, found.region

    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    assert where() == ("https://s3.us-east-1.amazonaws.com", "us-east-1")
    assert where(region="eu-west-1") == ("https://s3.eu-west-1.amazonaws.com", "eu-west-1")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://there:1/")
    assert where() == ("http://there:1", "eu-north-1")
    assert where(endpoint="https://here") == ("https://here", "eu-north-1")
    assert where(variables="OTHER")[0] == "https://s3.eu-north-1.amazonaws.com"


def test_without_keys_it_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = S3Storage(S3Config(bucket="photos", endpoint="http://127.0.0.1:1", variables="NONE"))
    with pytest.raises(UsageError, match="set NONE_ACCESS_KEY_ID and NONE_SECRET_ACCESS_KEY, or anonymous"):
        asyncio.run(storage.open())
    asyncio.run(storage.close())


# ---------------------------------------------------------------------- what is refused

WHERE = Where("http://there", "photos", "us-east-1", "AWS", 30.0)


def test_what_is_told_of_a_refusal() -> None:
    refusal = refusal_of(
        403, "<Error><Code>AccessDenied</Code><Message>a &lt; b</Message><StringToSign>s</StringToSign>"
    )
    assert refusal == Refusal(403, "AccessDenied", "a < b")
    text = str(WHERE.error(refusal, "write n/k"))
    assert text == (
        "write n/k: the keys may not do that in bucket 'photos' at http://there: allow it, or use other keys "
        "(AccessDenied: a < b)"
    )
    assert isinstance(WHERE.error(refusal_of(400, "<Code>EntityTooLarge</Code>"), "x"), TooLarge)
    assert isinstance(WHERE.error(refusal_of(400, "<Code>MetadataTooLarge</Code>"), "x"), BadArgument)
    assert "answers 418" in str(WHERE.error(Refusal(418), "x"))


def test_what_is_found_in_an_error_of_the_library() -> None:
    def found(text: str) -> Refusal:
        return refusal_in(Exception(text))

    assert found("inner: Status { status: 404, body: <Code>NoSuchBucket</Code>") == Refusal(404, "NoSuchBucket")
    assert found("Received redirect without LOCATION, an incorrectly configured region").code == "PermanentRedirect"
    assert found("kind: Connect, kind: Request, kind: ConnectionRefused").why == "refused"
    assert found("kind: Timeout, source: TimedOut").why == "timeout"
    assert found("something").why == "broken"


# ---------------------------------------------------------------------- what is had whole


def test_what_is_large_waits_in_a_file_that_nobody_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def chunks(*some: bytes) -> AsyncIterator[bytes]:
        for each in some:
            yield each

    async def run() -> None:
        for some, is_held in (((), True), ((b"ab", b"c"), True), ((b"abc", b"def", b"ghi"), False)):
            async with spool.spooled(chunks(*some), small=4) as view:
                assert bytes(view) == b"".join(some)
                assert isinstance(view.obj, bytes) == is_held
                assert list(tmp_path.iterdir()) == []

    asyncio.run(run())
