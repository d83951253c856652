"""The servers that storages are tested against, built before the tests begin, which have no minutes for it:

python -m contract.ready
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from contract import clouds, mongo


def main() -> None:
    builds: list[Callable[[], object]] = [clouds.google, clouds.azurite]
    if shutil.which("mongod") is None:
        builds.append(mongo.ferret)
    for build in builds:
        try:
            build()
        except pytest.skip.Exception as e:  # its tests say so, too
            print(e)


if __name__ == "__main__":
    main()
