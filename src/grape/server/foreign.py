"""What a package may name of the server's machine, if whoever hands it in may change some apps and is nobody else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from grape.apps.manifest import Manifest
from grape.drivers.spec import HookDriver, WatchDriver
from grape.errors import Forbidden
from grape.model.secret import Secret
from grape.server.config import ServerConfig


def check_named(manifest: Manifest, package: Path, config: ServerConfig) -> None:
    """The server reads it with its own rights, so that a token for one app would be one for every file of its user.

    Raises:
        Forbidden: it names what is not for apps.
    """
    for what, secret in _secrets(manifest):
        if secret.env is not None and not secret.env.startswith(config.remote_variables):
            begins = ", ".join(f"{each}.." for each in config.remote_variables) or "none"
            raise Forbidden(f"{what}: the variable {secret.env}; over HTTP by a token for some apps: {begins} {_HINT}")
        if secret.credential is not None and not secret.credential.startswith(f"{manifest.name}."):
            raise Forbidden(
                f"{what}: the credential {secret.credential}; over HTTP by a token for some apps those that begin with "
                f"{manifest.name}. {_HINT}"
            )
        if secret.file is not None:
            _check_path(what, package / secret.file, package, config)
    for name, driver in manifest.driver.items():
        if isinstance(driver, WatchDriver):
            _check_path(f"driver.{name}", Path(driver.path), package, config)


_HINT: Final = "(remote-files and remote-variables in grape-server.toml, or deploy it on the server itself)"


def _secrets(manifest: Manifest) -> Iterator[tuple[str, Secret]]:
    for name, secret in manifest.secrets.items():
        yield f"secrets.{name}", secret
    for name, driver in manifest.driver.items():
        if isinstance(driver, HookDriver):
            for secret in driver.secrets:
                yield f"driver.{name}", secret


def _check_path(what: str, path: Path, package: Path, config: ServerConfig) -> None:
    real = os.path.realpath(path)
    places = [os.path.realpath(package), *(os.path.realpath(each) for each in config.remote_files)]
    if not any(real == place or real.startswith(f"{place}/") for place in places):
        known = ", ".join(config.remote_files) or "none"
        raise Forbidden(f"{what}: {path}; over HTTP by a token for some apps, files below: {known} {_HINT}")
