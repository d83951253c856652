"""What is decided of clouds' storages without asking one."""

from __future__ import annotations

import _thread
import asyncio
import time
from random import Random

import pytest

from contract.weed import until
from grape.abc.storage import Put
from grape.errors import BadArgument, GrapeError, StorageFailed, TooLarge, UsageError
from grape.storage.bucketerrors import Cloud, is_gone, refusal_of
from grape.storage.bucketnames import AZURE, GOOGLE, Names, asked
from grape.storage.buckets import AzureConfig, AzureStorage, GoogleConfig, GoogleStorage
from grape.storage.s3about import metadata_of, stored_key, written_by
from grape.storage.s3errors import Refusal

CLOUD = Cloud("gs", "bucket", "photos", "https://there", "KEYS", 30.0)


@pytest.mark.parametrize("names", [GOOGLE, AZURE], ids=["google", "azure"])
def test_keys_are_found_again(names: Names) -> None:
    random = Random(3)
    pieces = ["a", "b", "%", "%2", "25", "5C", "2E", "\\", ".", "..a", "/", " ", "é", "日", "\U0001f347", "!", "0", "~"]
    for _ in range(5000):
        key = "".join(random.choice(pieces) for _ in range(random.randint(1, 6)))
        stored = names.stored("p/n/", key)
        assert "\\" not in stored
        assert names.key("p/n/", stored) == key
        prefix = key[: random.randint(0, len(key))]
        common = names.common("p/n/", prefix)
        assert stored.startswith(common), (key, prefix, common)
        directory, after = asked(common, "")
        assert stored.startswith(f"{directory}/")
        assert after is None or after.encode() < stored.encode()


def test_keys_lie_as_in_s3() -> None:
    for key in ("a", "a\\b", "100%", "%41", "%25", "%5C.", "ä/ö"):
        assert GOOGLE.stored("p/n/", key) == stored_key("p/n/", key)
        assert AZURE.stored("p/n/", f"{key}/x.y") == stored_key("p/n/", f"{key}/x.y").replace("./", "%2E/")
    assert AZURE.stored("n/", "a./b..") == "n/a%2E/b.%2E"


def test_a_list_begins_near_what_is_asked_for() -> None:
    for common, position, expected in (
        ("p/n/", "", ("p/n", None)),
        ("p/n/", "p/n/k", ("p/n", "p/n/k")),
        ("p/n/b/c", "", ("p/n/b", "p/n/b/b\U0010fffd")),
        ("p/n/b/c", "p/n/b/c1", ("p/n/b", "p/n/b/c1")),
        ("p/n/0", "", ("p/n", "p/n/.\U0010fffd")),
        ("p/n/ ", "", ("p/n", None)),
        ("p/n/\ue000", "", ("p/n", "p/n/\ud7ff\U0010fffd")),
    ):
        assert asked(common, position) == expected


def test_metadata_has_names_that_azure_takes() -> None:
    user = {"2-a_b.c": "ä b", "grape": "1", "__": "x", "a__b": "", "a-b": "1", "_2d": "2"}
    put = Put(user=user, tags=("x", "y"))
    metadata = metadata_of(put, "sha256:00", 5, "w")
    told = AZURE.told(metadata)
    assert all(name.isidentifier() and name.isascii() and name == name.lower() for name in told)
    assert len(told) == len(metadata)
    assert AZURE.heard({"Content-Type": "a/b", **told}) == {"Content-Type": "a/b", **metadata}
    assert written_by(AZURE.heard(told)) == "w"
    assert AZURE.heard({"a__b": "1"}) == {"a__b": "1"}  # another program's
    assert GOOGLE.heard(GOOGLE.told(metadata)) == metadata


def test_a_key_that_is_too_long() -> None:
    with pytest.raises(BadArgument, match="at most 1,024 bytes at Azure"):
        AZURE.stored("n/", "k" * 1023)


@pytest.mark.parametrize(
    ("refusal", "kind", "text"),
    [
        (
            Refusal(404, "NoSuchBucket"),
            UsageError,
            "do: there is no bucket 'photos' at https://there: make it, or name",
        ),
        (Refusal(404, "ContainerNotFound", "gone"), UsageError, r"or name another one"),
        (Refusal(403, "AuthenticationFailed"), UsageError, r"does not take the keys: look at KEYS \(Auth"),
        (Refusal(403, "AccessDenied"), StorageFailed, "the keys may not do that in bucket 'photos'"),
        (Refusal(401), UsageError, "does not take the keys"),
        (Refusal(400, "MetadataTooLarge"), BadArgument, "tags and user metadata of an object have 8,192 bytes"),
        (Refusal(413), TooLarge, "it is larger than https://there takes"),
        (Refusal(429), StorageFailed, "has answered 429 several times: try later"),
        (Refusal(400, "Odd", "it is"), StorageFailed, r"answers 400 \(Odd: it is\)"),
        (Refusal(why="token"), UsageError, "there are no keys, or nobody takes them: look at KEYS"),
        (Refusal(why="path"), StorageFailed, "another program has written what no key can be"),
        (Refusal(why="timeout"), StorageFailed, "has not answered for 30 s"),
        (Refusal(why="refused"), StorageFailed, "nobody answers at https://there"),
        (Refusal(why="broken"), StorageFailed, "the connection to https://there broke"),
    ],
)
def test_what_is_told_of_a_refusal(refusal: Refusal, kind: type[GrapeError], text: str) -> None:
    with pytest.raises(kind, match=text):
        raise CLOUD.error(refusal, "do")


def test_what_obstore_tells() -> None:
    body = "<Error><Code>AuthenticationFailed</Code><Message>No.\nRequestId:1</Message><Detail>secret</Detail></Error>"
    found = refusal_of(Exception(f"Error: Server returned non-2xx status code: 403 Forbidden: {body}"))
    assert found == Refusal(403, "AuthenticationFailed", "No.")
    assert refusal_of(Exception("Generic GCS error: Error performing token request: secret")) == Refusal(why="token")
    assert refusal_of(Exception("Wanted range starting at 3, but")).status == 416
    assert refusal_of(Exception('Path "a//b" contained empty path segment')).why == "path"
    assert is_gone(Refusal(404))
    assert is_gone(Refusal(404, "BlobNotFound"))
    assert not is_gone(Refusal(404, "ContainerNotFound"))


def test_what_a_url_says() -> None:
    assert GoogleStorage.settings_of("photos") == {"bucket": "photos", "prefix": ""}
    assert GoogleStorage.settings_of("my_photos.org/live/a%20b") == {"bucket": "my_photos.org", "prefix": "live/a b"}
    assert AzureStorage.settings_of("photos-2/live") == {"container": "photos-2", "prefix": "live"}
    assert AzureStorage.settings_of("$web") == {"container": "$web", "prefix": ""}
    for place in ("my_photos", "a--b", "-ab", "ab", "a" * 64):
        with pytest.raises(UsageError, match="az://photos/live"):
            AzureStorage.settings_of(place)


def test_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_BASE_URL", "http://there:1/")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "http://there:2/account")
    assert GoogleStorage(GoogleConfig(bucket="photos"))._cloud.endpoint == "http://there:1"
    assert AzureStorage(AzureConfig(container="photos"))._cloud.endpoint == "http://there:2/account"
    monkeypatch.delenv("GOOGLE_BASE_URL")
    monkeypatch.delenv("AZURE_STORAGE_ENDPOINT")
    assert GoogleStorage(GoogleConfig(bucket="photos"))._cloud.endpoint == "https://storage.googleapis.com"
    azure = AzureStorage(AzureConfig(container="photos", account="ann"))
    assert azure._cloud.endpoint == "https://ann.blob.core.windows.net"


def test_it_is_closed_when_the_threads_of_obstore_have_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that wakes the loop while Python ends aborts the process."""
    away = 0.05
    begun: list[bool] = []
    ended: list[bool] = []

    def wake() -> None:
        begun.append(True)
        time.sleep(away)
        ended.append(True)

    _thread.start_new_thread(wake, ())  # no thread of Python's, as those are not
    until(lambda: len(begun) == 1, 10)
    storage = GoogleStorage(GoogleConfig(bucket="photos"))
    asyncio.run(storage.close())
    assert ended == [True]
    monkeypatch.setattr("grape.storage.obstored._SETTLES", 0.01)
    _thread.start_new_thread(wake, ())
    asyncio.run(storage.close())
    until(lambda: len(ended) == 2, 10)
