"""Objects in Azure's storage, as its emulator is it."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from contract import clouds
from contract.buckets import BucketContract
from grape.abc.storage import Storage
from grape.errors import StorageFailed, UsageError
from grape.storage.buckets import AzureConfig, AzureStorage
from grape.storage.objects import Objects

pytestmark = pytest.mark.timeout(1800)  # the first one installs the emulator


class TestAzure(BucketContract):
    kind = clouds.Azure
    kind_of = AzureStorage

    def storage(self, endpoint: str, bucket: str = clouds.BUCKET, **settings: Any) -> Storage:
        return AzureStorage(AzureConfig(container=bucket, endpoint=endpoint, **settings))

    def written_by_another(self, path: str, data: bytes, user: dict[str, str], content_type: str) -> int:
        headers = {"content-type": content_type, "x-ms-blob-type": "BlockBlob"}
        headers |= {f"x-ms-meta-{name}": value for name, value in user.items()}
        return self.shared().ask("PUT", clouds.there(path), headers=headers, body=data).status

    def test_wrong_keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(b"another secret").decode())
        storage = self.storage(self.shared().endpoint)
        text = "does not take the keys: look at AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
        asyncio.run(self.one_clear_error(storage, UsageError, text))

    def test_keys_that_cannot_be(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "no secret!")
        storage = self.storage(self.shared().endpoint)
        asyncio.run(self.one_clear_error(storage, UsageError, "is not base64: look at .*AZURE_STORAGE_ACCOUNT_KEY"))
        monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
        storage = self.storage(self.shared().endpoint)
        asyncio.run(self.one_clear_error(storage, UsageError, "of which account"))

    def test_a_signature_instead_of_a_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also one that may only read: what it may not do is told."""

        async def test(objects: Objects) -> None:
            assert await objects.get("nothing") is None
            assert [about async for about in objects.list()] == []
            with pytest.raises(StorageFailed, match="the keys may not do that in container") as found:
                await objects.put("key", b"1")
            assert "sig=" not in str(found.value)

        async def all_of_it(objects: Objects) -> None:
            about = await objects.put("key", b"1")
            assert await objects.verify("key") == about
            assert await objects.remove("key")

        monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
        monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", clouds.shared_access("rl"))
        self.run(test)
        monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", clouds.shared_access("rcwdl"))
        self.run(all_of_it)

    def test_as_another_program_sees_it(self) -> None:
        async def test(objects: Objects) -> None:
            about = await objects.put("a\\b.", b"1", content_type="text/plain", user={"2-camera_b": "ä b"})
            answer = self.shared().ask("GET", "seen/photos/a%255Cb%252E")
            assert (answer.body, answer.headers["content-type"]) == (b"1", "text/plain")
            assert answer.headers["x-ms-meta-_32__camera_5fb"] == "%C3%A4%20b"
            assert answer.headers["x-ms-meta-grape__sum"] == about.checksum
            assert answer.headers["etag"] == f'"{about.version}"'

        self.run(test, prefix="seen")
