"""Where profiles come from: a file of their own, and the app's configuration."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grape.errors import UsageError
from grape.model.profile import Profile, read_profiles

OWN_SECTION = "grape"
"""The table of an app's configuration that is for the engine."""


def load_profiles(
    profile: str | os.PathLike[str] | Mapping[str, Any] | None, config: Mapping[str, Any]
) -> dict[str, Profile]:
    """The profiles of an app's pools. What ``profile`` says goes before what the app's own configuration says.

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
        return read_profiles(given, where, base)
    except ValueError as e:
        raise UsageError(str(e)) from None


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
