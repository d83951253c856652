"""The keys with which requests to S3 are signed: where they are found, and how they are renewed. Blocking.

They are looked for as every program for S3 does: in the environment, as a role with a token of the web, in the file of
profiles, at the service of the container, at that of the machine.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from msgspec import Struct

from grape.errors import StorageFailed, UsageError

OWN: Final = "AWS"
"""How the variables begin that other programs know too."""
_EARLY: Final = 300.0
"""Seconds before keys expire from which on new ones are asked for."""
_ASKED: Final = 5.0
_MACHINE: Final = "http://169.254.169.254"
_CONTAINER: Final = "http://169.254.170.2"


class Keys(Struct, frozen=True):
    """``expires``: seconds since 1970; 0: never."""

    key: str
    secret: str
    token: str = ""
    expires: float = 0.0

    def __repr__(self) -> str:
        return f"Keys({self.key!r})"  # no secret gets into a text


class KeyRing:
    """The keys to use now.

    Args:
        variables: how the names of variables begin ("AWS": AWS_ACCESS_KEY_ID ..); of others than "AWS" nothing else is
            looked at.
    """

    def __init__(
        self,
        variables: str = OWN,
        region: str = "us-east-1",
        environment: Mapping[str, str] = os.environ,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._variables = variables
        self._region = region
        self._environment = environment
        self._now = now
        self._lock = threading.Lock()
        self._keys: Keys | None = None

    def keys(self) -> Keys:
        """
        Raises:
            UsageError: there are none.
            StorageFailed: who has them does not answer.
        """
        with self._lock:
            there = self._keys
            if there is None or 0 < there.expires <= self._now() + _EARLY:
                there = self._keys = self._find()
            return there

    def _find(self) -> Keys:
        found = self._of_variables()
        if found is None and self._variables == OWN:
            found = self._of_role() or self._of_profile() or self._of_container() or self._of_machine()
        if found is None:
            raise UsageError(
                f"there are no keys to sign requests to S3 with: set {self._variables}_ACCESS_KEY_ID and "
                f"{self._variables}_SECRET_ACCESS_KEY, or anonymous if the bucket asks for none"
            )
        return found

    def _get(self, name: str) -> str:
        return self._environment.get(f"{self._variables}_{name}", "")

    def _of_variables(self) -> Keys | None:
        key, secret = self._get("ACCESS_KEY_ID"), self._get("SECRET_ACCESS_KEY")
        if bool(key) != bool(secret):
            missing = "SECRET_ACCESS_KEY" if key else "ACCESS_KEY_ID"
            raise UsageError(f"{self._variables}_{missing} is not set, and the other one of the two is: set it as well")
        return Keys(key, secret, self._get("SESSION_TOKEN")) if key else None

    def _of_profile(self) -> Keys | None:
        path = Path(self._get("SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
        name = self._get("PROFILE")
        file = configparser.RawConfigParser()
        try:
            file.read_string(path.read_text())
        except (OSError, UnicodeDecodeError):
            file.clear()
        except configparser.Error:  # its text may tell lines of the file
            raise UsageError(f"{path}: it is no file of profiles ([default], aws_access_key_id = ..)") from None
        section = name or "default"
        if not file.has_option(section, "aws_access_key_id") or not file.has_option(section, "aws_secret_access_key"):
            if name:
                raise UsageError(f"{path} has no keys of the profile {name!r}, which {self._variables}_PROFILE names")
            return None
        return Keys(
            file.get(section, "aws_access_key_id"),
            file.get(section, "aws_secret_access_key"),
            file.get(section, "aws_session_token", fallback=""),
        )

    def _of_role(self) -> Keys | None:
        path, role = self._get("WEB_IDENTITY_TOKEN_FILE"), self._get("ROLE_ARN")
        if not path or not role:
            return None
        try:
            token = Path(path).read_text().strip()
        except OSError as e:
            raise UsageError(f"{path}: {e.strerror}; {self._variables}_WEB_IDENTITY_TOKEN_FILE names it") from None
        query = {
            "Action": "AssumeRoleWithWebIdentity",
            "Version": "2011-06-15",
            "RoleArn": role,
            "RoleSessionName": self._get("ROLE_SESSION_NAME") or "grape",
            "WebIdentityToken": token,
        }
        service = self._get("ENDPOINT_URL_STS") or f"https://sts.{self._region}.amazonaws.com"
        text = _asked(service.rstrip("/") + "/", data=urlencode(query).encode())
        found = dict(re.findall(r"<(\w+)>([^<]+)</\1>", text))
        return _told({**found, "Token": found.get("SessionToken", "")}, service)

    def _of_container(self) -> Keys | None:
        relative = self._get("CONTAINER_CREDENTIALS_RELATIVE_URI")
        url = _CONTAINER + relative if relative else self._get("CONTAINER_CREDENTIALS_FULL_URI")
        if not url:
            return None
        token = self._get("CONTAINER_AUTHORIZATION_TOKEN")
        if path := self._get("CONTAINER_AUTHORIZATION_TOKEN_FILE"):
            try:
                token = Path(path).read_text().strip()
            except OSError as e:
                raise UsageError(f"{path}: {e.strerror}; the environment names it for the keys of S3") from None
        return _told(_json(_asked(url, {"Authorization": token} if token else {})), url)

    def _of_machine(self) -> Keys | None:
        if self._get("EC2_METADATA_DISABLED").lower() == "true":
            return None
        base = (self._get("EC2_METADATA_SERVICE_ENDPOINT") or _MACHINE).rstrip("/")
        try:
            token = _asked(
                f"{base}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}, method="PUT", seconds=1
            )
            headers = {"X-aws-ec2-metadata-token": token}
            roles = f"{base}/latest/meta-data/iam/security-credentials/"
            role = _asked(roles, headers, seconds=1).split("\n")[0]
            return _told(_json(_asked(roles + role, headers)), base)
        except StorageFailed:  # no such machine, or it has no role
            if self._keys is not None:
                raise
            return None


def _asked(
    url: str,
    headers: Mapping[str, str] | None = None,
    *,
    data: bytes | None = None,
    method: str | None = None,
    seconds: float = _ASKED,
) -> str:
    if not url.startswith(("http://", "https://")):
        raise UsageError("the address at which keys of S3 are to be asked for is no http:// or https://")
    request = urllib.request.Request(url, data, dict(headers or {}), method=method)
    # What is beside the machine is not asked through a proxy, which would be another machine.
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if "://169.254." in url else []))
    try:
        with opener.open(request, timeout=seconds) as answer:
            text: str = answer.read(1 << 20).decode("utf-8", "replace")
            return text
    except (OSError, ValueError) as e:
        why = f"it answers {e.code}" if isinstance(e, urllib.error.HTTPError) else "it does not answer"
        raise StorageFailed(f"{url.partition('?')[0]}, which has the keys of S3: {why}") from None


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _told(found: Mapping[str, Any], who: str) -> Keys:
    key, secret = found.get("AccessKeyId"), found.get("SecretAccessKey")
    try:
        expires = datetime.fromisoformat(found["Expiration"]).timestamp() if found.get("Expiration") else 0.0
    except (TypeError, ValueError):
        expires = 0.0
    if not isinstance(key, str) or not isinstance(secret, str):
        raise StorageFailed(f"{who}, which has the keys of S3, answers something else")
    return Keys(key, secret, str(found.get("Token") or ""), expires)
