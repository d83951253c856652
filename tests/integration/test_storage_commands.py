"""`grape storage` where it is used wrongly: nothing is lost, and one line says why."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from command import grape
from grape.abc.storage import Storage
from grape.errors import UsageError
from grape.model.bound import Bound
from grape.storage.connect import opened
from grape.storage.copying import are_same, copy, move
from grape.storage.objects import Objects


@pytest.fixture
def url(tmp_path: Path) -> str:
    put(f"file://{tmp_path}/s", "n/a", b"one")
    return f"file://{tmp_path}/s"


def put(url: str, object: str, data: bytes, **options: Any) -> None:
    async def do() -> None:
        namespace, _, key = object.partition("/")
        async with opened(url) as storage:
            await Objects(storage, namespace).put(key, data, **options)

    asyncio.run(do())


def objects_of(url: str, namespace: str = "n") -> dict[str, bytes]:
    async def do() -> dict[str, bytes]:
        async with opened(url) as storage:
            objects = Objects(storage, namespace)
            keys = [about.key async for about in objects.list()]
            return {key: one.data for key, one in (await objects.get_many(keys)).items()}

    return asyncio.run(do())


def refused(*args: str, says: str) -> None:
    done = grape("storage", *args)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert done.stderr.count("\n") <= 2, done.stderr


def test_mv_onto_itself(url: str) -> None:
    refused("mv", "n/a", "n/a", "--storage", url, says="are one object")
    assert objects_of(url) == {"a": b"one"}


def test_mv_of_all_into_themselves(url: str) -> None:
    refused("mv", "n/", "n/below/", "--storage", url, says="lies below n/")
    assert objects_of(url) == {"a": b"one"}


@pytest.mark.parametrize("end", ["", "/", "/../s", "?timeout=5"])
def test_cp_where_they_lie(url: str, end: str) -> None:
    refused("cp", "n/", f"{url}{end}", "--storage", url, "--move", says="they lie there")
    assert objects_of(url) == {"a": b"one"}


def test_what_is_known_of_an_object_goes_along(url: str, tmp_path: Path) -> None:
    put(url, "n/b", b"two", ttl=3600, tags=["x"], user={"a": "b"}, content_type="image/png")
    there = f"file://{tmp_path}/other"
    put(there, "n/b", b"two", tags=["old"])
    assert grape("storage", "cp", "n/", there, "--storage", url, "--move").returncode == 0
    assert objects_of(url) == {}
    assert grape("storage", "mv", "n/b", "n/c", "--storage", there).returncode == 0
    about = json.loads(grape("storage", "stat", "n/c", "--storage", there).stdout)
    assert (about["tags"], about["user"], about["content_type"]) == (["x"], {"a": "b"}, "image/png")
    assert about["expires"] > about["time"] > 0
    assert objects_of(there) == {"a": b"one", "c": b"two"}


@pytest.mark.parametrize("other", ["file", "memory"])
def test_what_is_written_while_it_is_moved_is_moved_too(url: str, tmp_path: Path, other: str) -> None:
    async def do() -> None:
        target = f"file://{tmp_path}/other" if other == "file" else "memory://"
        async with opened(url) as storage, opened(target) as there:
            source, into = Objects(storage, "n"), Objects(there, "n")
            writes = [b"two", b"three"]
            real = there.write

            async def write(*args: Any) -> Any:
                done = await real(*args)
                if writes:
                    await source.put("a", writes.pop(0))
                return done

            there.write = write  # type: ignore[method-assign]
            assert await move(source, into, "a") is not None
            assert await source.get("a") is None
            found = await into.get("a")
            assert found is not None
            assert found.data == b"three"
            assert await move(source, into, "a") is None
            assert await copy(source, into, "a") is None

    asyncio.run(do())


def test_where_nothing_is_removed_by_its_version_it_is_looked_at(url: str, tmp_path: Path) -> None:
    async def do() -> None:
        async with opened(url) as storage, opened(f"file://{tmp_path}/other") as there:
            limited: Storage = storage
            object.__setattr__(
                limited,
                "features",
                type(storage.features)(
                    **{name: getattr(storage.features, name) for name in storage.features.__struct_fields__}
                    | {"removes": False}
                ),
            )
            source, into = Objects(limited, "n"), Objects(there, "n")
            assert (await move(source, into, "a")) is not None
            assert await source.get("a") is None
            assert await into.get("a") is not None

    asyncio.run(do())


def test_one_storage_by_two_names(url: str, tmp_path: Path) -> None:
    """As a server that is reached by two addresses."""

    async def do() -> None:
        async with opened(url) as one, opened(url) as other:
            with pytest.raises(UsageError, match="n/a would be moved onto itself"):
                await move(Objects(one, "n"), Objects(other, "n"), "a")
            assert await Objects(one, "n").get("a") is not None

    asyncio.run(do())


def test_an_app_of_a_directory_may_be_left_out() -> None:
    one = Bound("embedded:///d?app=a", "n")
    assert are_same(one, Bound("embedded:///d/", "n"))
    assert are_same(one, Bound("embedded:///d?timeout=3&app=a", "n"))
    assert not are_same(one, Bound("embedded:///d?app=b", "n"))
    assert not are_same(one, Bound("embedded:///d", "m"))
    assert not are_same(one, Bound("file:///d", "n"))


@pytest.mark.parametrize("emit", ["shop@", ""])
def test_an_event_without_a_name(emit: str, tmp_path: Path) -> None:
    refused("put", "n/a", "--emit", emit, "--app", "shop", "--home", str(tmp_path), says="--emit")


def test_an_event_of_another_app(tmp_path: Path) -> None:
    refused("put", "n/a", "--emit", "a@e", "--app", "b", "--home", str(tmp_path), says="is of a, and --app says b")


@pytest.mark.parametrize("how", [["--if-absent"], ["--if-version", "1"], []])
def test_mistakes_beside_a_condition(url: str, how: list[str], tmp_path: Path) -> None:
    refused("put", "n/", "--storage", url, *how, says="which one?")
    refused("put", "n/x", str(tmp_path / "nothing"), "--storage", url, *how, says="no such file")
    refused("put", "n/../x", "--storage", url, *how, says="key of an object")


def test_a_condition_that_does_not_hold(url: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"new")
    done = grape("storage", "put", "n/a", str(tmp_path / "f"), "--if-absent", "--storage", url)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)


def test_a_time_that_no_calendar_has(url: str) -> None:
    put(url, "n/late", b"1", time=1 << 60)
    done = grape("storage", "ls", "n/", "--storage", url)
    assert done.returncode == 0, done.stderr
    assert "late" in done.stdout


def test_get_leaves_other_files_alone(url: str, tmp_path: Path) -> None:
    (tmp_path / "keep.part").write_bytes(b"mine")
    (tmp_path / "keep").write_bytes(b"old")
    assert grape("storage", "get", "n/a", str(tmp_path / "keep"), "--storage", url).returncode == 0
    assert (tmp_path / "keep").read_bytes() == b"one"
    assert (tmp_path / "keep.part").read_bytes() == b"mine"
    assert stat.S_IMODE((tmp_path / "keep").stat().st_mode) & 0o600 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keep", "keep.part", "s"]
    assert grape("storage", "get", "n/a", "/dev/null", "--storage", url).returncode == 0
    refused("get", "n/a", "", "--storage", url, says="irectory")
    refused("get", "n/a", str(tmp_path / "no" / "such"), "--storage", url, says="No such file or directory")
