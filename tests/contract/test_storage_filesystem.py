"""A tree of files as a storage, which other programs change too."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from grape.abc.storage import Storage
from grape.errors import BadArgument, Conflict, StorageFailed, UsageError
from grape.storage.filesystem import FilesystemConfig, FilesystemStorage
from grape.storage.objects import Objects
from grape.testing.contracts.storage import StorageContract


class TestFilesystem(StorageContract):
    @asynccontextmanager
    async def opened(self, count: int = 1) -> AsyncIterator[list[Storage]]:
        with tempfile.TemporaryDirectory() as root:
            storages: list[Storage] = [FilesystemStorage(FilesystemConfig(root=root)) for _ in range(count)]
            for storage in storages:
                await storage.open()
            yield storages
            for storage in storages:
                await storage.close()


@asynccontextmanager
async def objects_in(root: Path) -> AsyncIterator[Objects]:
    storage = FilesystemStorage(FilesystemConfig(root=str(root)))
    await storage.open()
    yield Objects(storage, "photos")
    await storage.close()


def test_other_programs_read_and_write_the_same_tree(tmp_path: Path) -> None:
    async def run() -> None:
        async with objects_in(tmp_path) as objects:
            await objects.put("2026/a.png", b"ours", tags=["raw"])
            assert (tmp_path / "photos/2026/a.png").read_bytes() == b"ours"
            (tmp_path / "photos/2026/50%.png").write_bytes(b"theirs")
            found = await objects.get("2026/50%.png")
            assert found is not None
            assert (found.data, found.about.content_type, found.about.checksum) == (b"theirs", "image/png", "")
            assert [about.key async for about in objects.list()] == ["2026/50%.png", "2026/a.png"]
            # Whoever writes over one of ours: what was known of it is not said of the new one.
            before = await objects.stat("2026/a.png")
            (tmp_path / "photos/2026/a.png").write_bytes(b"theirs!")
            after = await objects.stat("2026/a.png")
            assert before is not None
            assert after is not None
            assert (before.tags, after.tags, after.size) == (("raw",), (), 7)
            with pytest.raises(Conflict):
                await objects.put("2026/a.png", b"lost", if_version=before.version)
            os.rename(tmp_path / "photos/2026", tmp_path / "photos/2027")
            assert await objects.get("2026/a.png") is None
            assert await objects.get("2027/a.png") is not None

    asyncio.run(run())


def test_links_lead_nowhere(tmp_path: Path) -> None:
    """F64: what another program has put there must not let anybody out."""
    secret = tmp_path / "secret"
    secret.write_text("precious")
    (tmp_path / "out").mkdir()

    async def run() -> None:
        async with objects_in(tmp_path / "root") as objects:
            await objects.put("dir/ours", b"1")
            os.symlink(secret, tmp_path / "root/photos/link")
            os.symlink(tmp_path / "out", tmp_path / "root/photos/way")
            os.mkfifo(tmp_path / "root/photos/pipe")
            for key in ("link", "pipe"):
                try:
                    assert await objects.get(key) is None
                except StorageFailed:
                    pass
            with pytest.raises(BadArgument):
                await objects.put("way/file", b"1")
            await objects.put("link", b"2")
            assert secret.read_text() == "precious"
            assert list((tmp_path / "out").iterdir()) == []
            assert [about.key async for about in objects.list()] == ["dir/ours", "link"]

    asyncio.run(run())


def test_directories_go_with_what_was_in_them(tmp_path: Path) -> None:
    async def run() -> None:
        async with objects_in(tmp_path) as objects:
            await asyncio.gather(*(objects.put(f"a/b/{i % 3}/{i}", b"1") for i in range(30)))

            async def churn(n: int) -> None:
                for _ in range(20):
                    await objects.put(f"x/y/z{n}/k", b"1")
                    await objects.remove(f"x/y/z{n}/k")

            await asyncio.gather(*(churn(n) for n in range(6)))
            for i in range(30):
                await objects.remove(f"a/b/{i % 3}/{i}")
            assert [path.name for path in tmp_path.iterdir()] == [".grape"]
            assert [path for path in (tmp_path / ".grape/about").rglob("*") if path.is_file()] == []
            assert list((tmp_path / ".grape/incoming").iterdir()) == []

    asyncio.run(run())


def test_it_is_opened_while_somebody_else_writes(tmp_path: Path) -> None:
    """What is on its way there is seen, and has its place a moment later: here, a name that leads nowhere."""
    (tmp_path / ".grape" / "incoming").mkdir(parents=True)
    os.symlink(tmp_path / "gone", tmp_path / ".grape" / "incoming" / "one")

    async def go() -> None:
        async with objects_in(tmp_path) as objects:
            await objects.put("x", b"1")
            assert (await objects.get("x")).data == b"1"

    asyncio.run(go())


def test_what_cannot_be_a_root(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    storage = FilesystemStorage(FilesystemConfig(root=str(tmp_path / "file")))
    with pytest.raises(UsageError, match="name another directory"):
        asyncio.run(storage.open())
    with pytest.raises(UsageError, match="absolute path"):
        FilesystemStorage.settings_of("relative")


def test_the_last_ones_of_a_directory_go_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is second finds the directory gone: that is no error."""
    real = FilesystemStorage._sync_directory

    def synced(self: FilesystemStorage, path: Path) -> None:
        if path.name == "deep":  # as if the other one were faster
            path.rmdir()
            path.parent.rmdir()
        real(self, path)

    async def run() -> None:
        async with objects_in(tmp_path) as objects:
            about = await objects.put("below/deep/a", b"1")
            monkeypatch.setattr(FilesystemStorage, "_sync_directory", synced)
            assert await objects.remove("below/deep/a", if_version=about.version)
            monkeypatch.undo()
            assert await objects.get("below/deep/a") is None
            for _ in range(20):
                await asyncio.gather(*(objects.put(f"many/{n}", b"1") for n in range(16)))
                assert all(await asyncio.gather(*(objects.remove(f"many/{n}") for n in range(16))))
            assert not (tmp_path / "photos").exists()

    asyncio.run(run())
