"""Objects in Google's storage, as its emulator is it."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from contract import clouds
from contract.buckets import BucketContract
from grape.abc.storage import Storage
from grape.errors import UsageError
from grape.storage.buckets import GoogleConfig, GoogleStorage
from grape.storage.objects import Objects

pytestmark = pytest.mark.timeout(1800)  # the first one installs the emulator


class TestGoogle(BucketContract):
    kind = clouds.Google
    kind_of = GoogleStorage

    def storage(self, endpoint: str, bucket: str = clouds.BUCKET, **settings: Any) -> Storage:
        return GoogleStorage(GoogleConfig(bucket=bucket, endpoint=endpoint, **settings))

    def shared(self) -> clouds.Emulator:
        return clouds.shared(clouds.GoogleInMemory)

    def written_by_another(self, path: str, data: bytes, user: dict[str, str], content_type: str) -> int:
        headers = {"content-type": content_type, **{f"x-goog-meta-{name}": value for name, value in user.items()}}
        return self.shared().ask("PUT", clouds.there(path), headers=headers, body=data).status

    async def is_back(self, objects: Objects) -> None:
        found = await objects.get("key")
        assert found is not None
        assert found.data == b"1"

    def test_wrong_keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "another secret")
        storage = self.storage(self.shared().endpoint)
        text = "does not take the keys: look at GOOGLE_APPLICATION_CREDENTIALS"
        asyncio.run(self.one_clear_error(storage, UsageError, text))

    @pytest.mark.parametrize("name", ["GOOGLE_SERVICE_ACCOUNT", "GOOGLE_APPLICATION_CREDENTIALS"])
    def test_a_service_account(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make = ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]
        key = subprocess.run(make, check=True, capture_output=True, text=True).stdout
        account = {
            "type": "service_account",
            "project_id": "tests",
            "private_key_id": "1",
            "private_key": key,
            "client_email": "tests@grape.test",
            "client_id": "1",
            "token_uri": "http://127.0.0.1:1/token",
        }
        (tmp_path / "account.json").write_text(json.dumps(account))
        monkeypatch.delenv("GOOGLE_BEARER_TOKEN")
        monkeypatch.setenv(name, str(tmp_path / "account.json"))

        async def test(objects: Objects) -> None:
            about = await objects.put("key", b"1")
            assert await objects.verify("key") == about

        self.run(test)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/secret.json"),
            ("GOOGLE_SERVICE_ACCOUNT", "/nowhere/secret.json"),
            ("GOOGLE_SERVICE_ACCOUNT_KEY", "secret"),
        ],
    )
    def test_keys_that_cannot_be_read(self, name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("GOOGLE_BEARER_TOKEN")
        monkeypatch.setenv(name, value)
        storage = self.storage(self.shared().endpoint)
        text = f"the keys cannot be read: look at .*{name}"
        asyncio.run(self.one_clear_error(storage, UsageError, text))

    def test_as_another_program_sees_it(self) -> None:
        async def test(objects: Objects) -> None:
            about = await objects.put("a\\b.", b"1", content_type="text/plain", user={"camera": "ä b"})
            answer = self.shared().ask("GET", "seen/photos/a%255Cb.")
            assert (answer.body, answer.headers["content-type"]) == (b"1", "text/plain")
            assert answer.headers["x-goog-meta-camera"] == "%C3%A4%20b"
            assert answer.headers["x-goog-meta-grape-sum"] == about.checksum
            assert answer.headers["x-goog-generation"] == about.version

        self.run(test, prefix="seen")
