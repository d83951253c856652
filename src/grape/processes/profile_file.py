"""Where profiles come from: a file of their own, and the app's configuration."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grape.errors import UsageError
from grape.model.profile import Profile, read_profiles
from grape.processes.profiles import Profiles, is_stricter

OWN_SECTION = "grape"
"""The table of an app's configuration that is for the engine."""


def load_profiles(
    profile: str | os.PathLike[str] | Mapping[str, Any] | None, config: Mapping[str, Any]
) -> dict[str, Profile]:
    """The profiles of an app's pools. What ``profile`` says goes before what the app's own configuration says.

    Once ``profile`` names an isolate, it alone says how the run is confined: see `_without_isolates`.

    Args:
        profile: a TOML file with tables ``[pool.NAME]``; or pool -> the keys of its table.
        config: the app's configuration; its tables ``[grape.pool.NAME]`` count.

    Raises:
        UsageError: what is in it cannot be a profile; the text says where.
    """
    own = config.get(OWN_SECTION, {})
    if not isinstance(own, dict):
        raise UsageError(f"config: [{OWN_SECTION}] is a table for the engine, not {own!r:.60}")
    given, where = _given(profile)
    try:
        base = own.get("pool", {})
        read_profiles(base, "config")
        return read_profiles(given, where, _without_isolates(base, read_profiles(given, where)))
    except ValueError as e:
        raise UsageError(str(e)) from None


def _without_isolates(base: dict[str, dict[str, Any]], given: dict[str, Profile]) -> dict[str, dict[str, Any]]:
    """The tables of the app's configuration, without what they say of isolates, if the profile names any.

    It comes with the app, so it must not loosen what the profile says of other pools. What it says is left out where
    the profile's level is as strict; to leave out more would be to confine a pool less than was asked for.

    Raises:
        UsageError: it asks for a stricter level than the profile does.
    """
    profiles = Profiles(given)
    if all(profile.is_inline or not profile.isolate for profile in given.values()):
        return base
    for pool, table in base.items():
        asked = table.get("isolate")
        if asked and not given.get(pool, Profile()).isolate and is_stricter(asked, profiles.floor(pool)):
            raise UsageError(
                f"config [{OWN_SECTION}.pool.{pool}.isolate] asks for a stricter level than the profile has; as the "
                f"profile says how this run is confined, put it in there, as [pool.{pool}.isolate]"
            )
    return {pool: {key: value for key, value in table.items() if key != "isolate"} for pool, table in base.items()}


def _given(profile: str | os.PathLike[str] | Mapping[str, Any] | None) -> tuple[Any, str]:
    if profile is None:
        return {}, "config"
    if isinstance(profile, Mapping):
        return dict(profile), "profile"
    where = f"--profile {os.fspath(profile)}"
    try:
        found = tomllib.loads(Path(profile).read_text())
    except OSError as e:
        raise UsageError(f"{where}: {e.strerror}") from None
    except (ValueError, UnicodeDecodeError) as e:
        raise UsageError(f"{where}: {e}") from None
    strange = [key for key in found if key != "pool"]
    if strange:
        raise UsageError(f"{where}: there is nothing but tables [pool.NAME] in a profile; this one has {strange[0]!r}")
    return found.get("pool", {}), where
