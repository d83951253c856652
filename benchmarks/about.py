"""What a figure was measured with."""

from __future__ import annotations

import os
import platform
import sysconfig

from grape.hot import describe


def interpreter() -> str:
    """Python, how it was built, and which of Grape's loops run."""
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    flags = [name for name in ("--enable-optimizations", "--with-lto", "--disable-gil") if name in arguments]
    if not any(flag.startswith("--enable") for flag in flags):
        flags.insert(0, "without profile-guided optimization")
    built = ", ".join(flag.removeprefix("--") for flag in flags)
    return f"Python {platform.python_version()} ({built}), {os.cpu_count()} cores, loops {describe()}"
