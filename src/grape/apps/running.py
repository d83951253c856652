"""What an app's directory means for a run of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grape.apps.manifest import NAME, Manifest, hook_secrets, manifest_of, secrets_of, target_of
from grape.drivers.spec import HookDriver
from grape.errors import UsageError
from grape.host.options import Options, check_options
from grape.model.retention import Keeping
from grape.processes.profile_file import load_profiles
from grape.store.store import MAX_SIZE


def is_app(target: str) -> bool:
    """Whether it is the directory of an app with a manifest."""
    return (Path(target) / NAME).is_file()


def share_of(environment: Mapping[str, str]) -> float:
    """The share of events that are to be traced, as OpenTelemetry's variables say it of all programs.

    Raises:
        UsageError: they say what cannot be.
    """
    sampler = environment.get("OTEL_TRACES_SAMPLER", "").strip().removeprefix("parentbased_")
    argument = environment.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or "1"
    if sampler in ("", "always_off"):
        return 0.0
    if sampler == "always_on":
        return 1.0
    if sampler != "traceidratio":
        raise UsageError(f"$OTEL_TRACES_SAMPLER is always_on, always_off, or traceidratio, not {sampler!r:.60}")
    try:
        share = float(argument)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"$OTEL_TRACES_SAMPLER_ARG is a share from 0 to 1, not {argument!r:.60}")
    return share


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
        code=f"version {manifest.version}",
        namespaces=manifest.namespaces,
        levels=manifest.log.levels,
        traced=share_of(environment) if manifest.trace is None else manifest.trace,
        spans=Keeping(age=manifest.trace_age, size=manifest.trace_size),
        max_size=MAX_SIZE if manifest.max_size is None else int(manifest.max_size),
    )
    return manifest, check_options(options)
