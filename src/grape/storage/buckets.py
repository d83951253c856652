"""Objects in a bucket of Google's storage, or in a container of Azure's.

Keys come from the environment alone, where obstore looks for them, and are never told.
"""

from __future__ import annotations

import re
from os import environ
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final
from urllib.parse import unquote, urlsplit

from msgspec import Meta

from grape.abc.storage import StorageConfig
from grape.errors import UsageError
from grape.storage.bucketbase import LARGEST, Buckets
from grape.storage.bucketerrors import Cloud
from grape.storage.bucketnames import AZURE, GOOGLE

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutResult
    from obstore.store import AzureStore, ClientConfig, GCSStore, RetryConfig

_PART: Final = 16 << 20
_SMALLEST_PART: Final = 5 << 20
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_CONTAINER: Final = re.compile(r"\$(root|web|logs)|(?=.{3,63}\Z)[a-z0-9]+(-[a-z0-9]+)*")
_GOOGLE_KEYS: Final = "GOOGLE_APPLICATION_CREDENTIALS, GOOGLE_SERVICE_ACCOUNT or GOOGLE_SERVICE_ACCOUNT_KEY"
_AZURE_KEYS: Final = "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN"


class GoogleConfig(StorageConfig, frozen=True, kw_only=True, rename="kebab"):
    """
    bucket, prefix: where the objects lie; the bucket is there already
    endpoint: the server, as in http://127.0.0.1:4443; "": what GOOGLE_BASE_URL says, or Google's
    anonymous: whether no request has a token, for buckets that ask for none
    part: bytes that are sent by one request; larger objects go in parts
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    anonymous: bool = False
    part: Annotated[int, Meta(ge=_SMALLEST_PART, le=1 << 30)] = _PART


class AzureConfig(StorageConfig, frozen=True, kw_only=True, rename="kebab"):
    """
    container, prefix: where the objects lie; the container is there already
    account: whose container it is; "": what AZURE_STORAGE_ACCOUNT_NAME says
    endpoint: the server, as in http://127.0.0.1:10000/devstoreaccount1; "": what AZURE_STORAGE_ENDPOINT says, or that
        of the account
    anonymous: whether no request is signed, for containers that ask for no keys
    part: bytes that are sent by one request; larger objects go in parts
    """

    container: str
    prefix: str = ""
    account: str = ""
    endpoint: str = ""
    anonymous: bool = False
    part: Annotated[int, Meta(ge=_SMALLEST_PART, le=1 << 30)] = _PART


class GoogleStorage(Buckets):
    name: ClassVar[str] = "gs"
    Config: ClassVar[type[StorageConfig]] = GoogleConfig
    names = GOOGLE
    largest_one = LARGEST
    exact = re.compile(r"[1-9][0-9]{0,17}")
    order = "utf-8"
    holds_lists = False
    variables = ("GOOGLE_",)

    def __init__(self, config: GoogleConfig) -> None:
        if _BUCKET.fullmatch(config.bucket) is None:
            raise UsageError("the bucket of a gs:// storage is 3 to 222 small letters, digits, '-', '_' and '.'")
        self._endpoint = _endpoint(config.endpoint, "GOOGLE_BASE_URL")
        shown = self._endpoint or "https://storage.googleapis.com"
        cloud = Cloud("gs", "bucket", config.bucket, shown, _GOOGLE_KEYS, config.timeout)
        super().__init__(cloud, config.prefix, config.part)
        self._anonymous = config.anonymous

    @classmethod
    def settings_of(cls, place: str) -> dict[str, Any]:
        return _settings_of(cls.name, "BUCKET", "bucket", _BUCKET, place)

    def _new(self, client: ClientConfig, retry: RetryConfig) -> GCSStore:
        from obstore.store import GCSStore

        config: Any = {"base_url": self._endpoint} if self._endpoint else {}
        if self._anonymous:
            config["skip_signature"] = True
        return GCSStore(self._cloud.bucket, config=config, client_options=client, retry_config=retry)

    def _version(self, meta: ObjectMeta | PutResult) -> str:
        return meta["version"] or ""

    def _listed(self, meta: ObjectMeta) -> str:
        """A list tells no generation, but the ETag, which is that of the bytes."""
        tag = (meta["e_tag"] or "").strip('"')
        return f"etag-{tag}"

    def _mode(self, version: str) -> Any:
        return {"version": version}


class AzureStorage(Buckets):
    name: ClassVar[str] = "az"
    Config: ClassVar[type[StorageConfig]] = AzureConfig
    names = AZURE
    largest_one = 5000 << 20
    exact = re.compile(r"0x[0-9A-Fa-f]{1,32}")
    order = "utf-16-be"
    holds_lists = True
    variables = ("AZURE_",)

    def __init__(self, config: AzureConfig) -> None:
        if _CONTAINER.fullmatch(config.container) is None:
            raise UsageError("the container of an az:// storage is 3 to 63 small letters, digits and '-' between them")
        account = config.account or environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
        self._endpoint = _endpoint(config.endpoint, "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
        shown = self._endpoint or f"https://{account or 'ACCOUNT'}.blob.core.windows.net"
        cloud = Cloud("az", "container", config.container, shown, _AZURE_KEYS, config.timeout)
        super().__init__(cloud, config.prefix, config.part)
        self._account, self._anonymous = account, config.anonymous

    @classmethod
    def settings_of(cls, place: str) -> dict[str, Any]:
        return _settings_of(cls.name, "CONTAINER", "container", _CONTAINER, place)

    def _new(self, client: ClientConfig, retry: RetryConfig) -> AzureStore:
        from obstore.store import AzureStore

        config: Any = {"account_name": self._account} if self._account else {}
        if self._endpoint:
            config["endpoint"] = self._endpoint
        if self._anonymous:
            config["skip_signature"] = True
        return AzureStore(self._cloud.bucket, config=config, client_options=client, retry_config=retry)

    def _version(self, meta: ObjectMeta | PutResult) -> str:
        return (meta["e_tag"] or "").strip('"')

    def _listed(self, meta: ObjectMeta) -> str:
        return self._version(meta)

    def _mode(self, version: str) -> Any:
        return {"e_tag": f'"{version}"'}


def _settings_of(scheme: str, what: str, setting: str, fits: re.Pattern[str], place: str) -> dict[str, Any]:
    bucket, _, prefix = place.partition("/")
    if "@" in bucket or ":" in bucket:  # perhaps a secret: it is not told
        raise UsageError(f"{scheme}:// is followed by {what}/PREFIX, and never by keys: they are in the environment")
    if fits.fullmatch(bucket) is None:
        raise UsageError(
            f"{scheme}:// is followed by {what}/PREFIX, as in {scheme}://photos/live, not by {place!r:.100}"
        )
    return {setting: bucket, "prefix": unquote(prefix)}


def _endpoint(said: str, *variables: str) -> str:
    """
    Raises:
        UsageError: it cannot be one.
    """
    said = said or next((found for name in variables if (found := environ.get(name))), "")
    try:
        parts = urlsplit(said)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
        has_keys = parts.username is not None or parts.port == 0
    except ValueError:
        is_one, has_keys = False, True
    if said and (not is_one or has_keys):  # it may hold a secret: it is not told
        raise UsageError("endpoint is as in http://127.0.0.1:4443, with http:// or https:// and without keys")
    return said.rstrip("/")
