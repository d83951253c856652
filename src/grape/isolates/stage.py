"""Handing an unprivileged user what only root may enter: an interpreter below /root, an app in a private directory.

A mount namespace of its own, in which the paths are mounted once more, in a place that everybody may enter. Nothing of
it is seen outside; it goes away with the descriptor that holds it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import Final

from grape.isolates.launch import find_tool

_BUILD: Final = """
set -eu
mount -t tmpfs -o mode=0755,size=64k,nosuid,nodev grape "$0"
i=0
for path do
    if [ -d "$path" ]; then mkdir "$0/$i"; else : > "$0/$i"; fi
    mount --rbind "$path" "$0/$i"
    i=$((i + 1))
done
echo ready
read rest
"""


class Stage:
    """``enter``: a command that runs the rest inside. ``place``: where a path is found there."""

    def __init__(self, directory: str, paths: Sequence[str]) -> None:
        """Blocking, some ms.

        Args:
            directory: an empty one that nobody else has, to mount on; those above have to be open to everybody.

        Raises:
            OSError: the mounts cannot be made; the text is that of the program that failed.
        """
        self.place = {path: f"{directory}/{i}" for i, path in enumerate(paths)}
        self._namespace = self._build(directory, paths)
        # Not inherited, but opened through /proc: what is inside must not get a descriptor of the host's mounts.
        self.enter = (find_tool("nsenter", "util-linux"), f"--mount=/proc/{os.getpid()}/fd/{self._namespace}", "--")

    def _build(self, directory: str, paths: Sequence[str]) -> int:
        unshare = find_tool("unshare", "util-linux")
        argv = [unshare, "--mount", "--propagation", "private", "--", "/bin/sh", "-c", _BUILD, directory, *paths]
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/"
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            if process.stdout.readline() != b"ready\n":
                said = process.stderr.read().decode("utf-8", "replace").strip()
                raise OSError(1, f"what only root may read cannot be mounted for the sandbox: {said}", paths[0])
            return os.open(f"/proc/{process.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._namespace)
