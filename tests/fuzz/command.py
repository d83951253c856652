"""The command of a fuzzer: for how long, from which seed, and what it says at its end."""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol


class Fuzzing(Protocol):
    """``found``: what is wrong, each with how it came about."""

    found: list[str]

    def run(self, seconds: float) -> None: ...

    def totals(self) -> str: ...


def fuzz(text: str | None, make: Callable[[Path, int], Fuzzing]) -> None:
    """``text``: of its help. ``make``: from a directory of its own and a seed."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", nargs="?", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    base = Path(tempfile.mkdtemp(prefix="grape-fuzz-"))
    fuzzing = make(base, options.seed)
    fuzzing.run(options.seconds)
    print(fuzzing.totals())
    if fuzzing.found:
        raise SystemExit("\n\n".join(fuzzing.found))
    shutil.rmtree(base)
