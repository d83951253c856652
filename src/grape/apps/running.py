"""What an app's directory means for a run of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grape.apps.manifest import NAME, Manifest, hook_secrets, manifest_of, secrets_of, target_of
from grape.drivers.spec import HookDriver
from grape.host.options import Options, check_options
from grape.processes.profile_file import load_profiles
from grape.store.store import MAX_SIZE


def is_app(target: str) -> bool:
    """Whether it is the directory of an app with a manifest."""
    return (Path(target) / NAME).is_file()


def options_of(
    directory: str | os.PathLike[str], environment: Mapping[str, str], profile: str | None = None
) -> tuple[Manifest, Options]:
    """The manifest, and what it says of a run. ``environment``: for its secrets. ``profile``: how its operator confines
    it, which goes before what it says itself.

    Raises:
        UsageError: something in it cannot be.
    """
    path = Path(directory)
    manifest = manifest_of(path)
    for name, driver in manifest.driver.items():
        if isinstance(driver, HookDriver):
            hook_secrets(driver, name, path, environment)
    pools: dict[str, Any] = {"grape": {"pool": manifest.pool}}
    options = Options(
        target=target_of(manifest, path),
        config=manifest.config,
        workers=manifest.workers,
        partitions=manifest.partitions,
        profiles=load_profiles(profile, pools),
        env={**manifest.env, **secrets_of(manifest, path, environment)},
        max_size=MAX_SIZE if manifest.max_size is None else int(manifest.max_size),
    )
    return manifest, check_options(options)
