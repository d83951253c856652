"""Storages by their URLs: one that cannot be opened says why, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import psutil
import pytest

from grape.errors import GrapeError
from grape.storage.connect import opened


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket?endpoint=http://127.0.0.1:1&timeout=1",
        "gs://bucket?endpoint=http://127.0.0.1:1&timeout=1",
        "az://container?account=a&endpoint=http://127.0.0.1:1&timeout=1",
        "elliptics://127.0.0.1:1?groups=1&timeout=1",
        "mongodb://127.0.0.1:1/db?timeout=1",
        "file://{}/plain/such",
        "embedded://{}/none",
    ],
)
def test_what_cannot_be_opened_leaves_nothing(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GOOGLE_BEARER_TOKEN", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.setenv(name, "a")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "YQ==")

    (tmp_path / "plain").write_bytes(b"")

    async def fails() -> None:
        with pytest.raises(GrapeError) as told:
            async with opened(url.format(tmp_path)):
                pass
        assert "close" not in str(told.value)
        assert told.value.__context__ is None or not isinstance(told.value.__context__, AttributeError)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(fails())  # what is made once for a process, such as a runtime, is made now
    before, files = {thread.ident for thread in threading.enumerate()}, psutil.Process().num_fds()
    asyncio.run(fails())
    for thread in threading.enumerate():
        if thread.ident not in before:
            thread.join(10)
    assert {thread.ident for thread in threading.enumerate()} <= before
    assert psutil.Process().num_fds() <= files
