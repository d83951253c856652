"""Builds `grape._hot` where there is a C compiler and Python.h; elsewhere Grape runs its loops in Python, and says so
(``grape --version``, ``grape doctor``). ``GRAPE_HOT`` in the environment: "no" leaves it out, "yes" fails without it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ["-std=c11", "-O3", "-fPIC", "-shared", "-Wall", "-Wextra"]
QUIET = ["-Wno-unused-parameter", "-Wno-missing-field-initializers", "-Wno-cast-function-type"]


class HotBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles one file."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        wanted = os.environ.get("GRAPE_HOT", "")
        package = Path(self.root, "src", "grape")
        name = "_hot" + sysconfig.get_config_var("EXT_SUFFIX")
        self._directory = tempfile.TemporaryDirectory()
        built = (package if version == "editable" else Path(self._directory.name)) / name
        if wanted == "no":
            built.unlink(missing_ok=True)
            return
        try:
            compile_hot(package / "_hot.c", built)
        except (OSError, subprocess.CalledProcessError) as e:
            said = getattr(e, "stderr", "") or str(e)
            if wanted == "yes":
                raise RuntimeError(f"grape._hot cannot be built: {said}") from e
            built.unlink(missing_ok=True)
            self.app.display_warning(f"grape._hot is not built, loops run in Python: {said.strip().splitlines()[-1]}")
            return
        if version != "editable":
            build_data["force_include"][str(built)] = f"grape/{name}"
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self.target_name == "wheel":
            self._directory.cleanup()


def compile_hot(source: Path, target: Path, *flags: str) -> None:
    """
    Raises:
        OSError: there is no compiler.
        CalledProcessError: it fails; its ``stderr`` says why.
    """
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    include = "-I" + sysconfig.get_paths()["include"]
    new = target.with_name(target.name + ".new")
    command = [*compiler, *FLAGS, *QUIET, *flags, include, str(source), "-o", str(new)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    new.replace(target)  # whoever has loaded the one before keeps it
