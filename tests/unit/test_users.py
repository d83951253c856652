"""Users of workers: no two at one time, whoever asks, and however the last one ended."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

import pytest

from grape.errors import Unsupported
from grape.isolates import users
from grape.isolates.users import Users

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has others")
FIRST: Final = 0x7F000000
"""Of a range that no engine gives out."""

ENGINE: Final = f"""
import sys, time
from grape.isolates.users import Users
users = Users({FIRST}, 3)
print(users.take(), users.take(), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(users, "PLACES", (str(tmp_path),))
    return tmp_path


def engine(place: Path) -> tuple[subprocess.Popen[str], set[int]]:
    code = f"from grape.isolates import users\nusers.PLACES = ({str(place)!r},)\n" + ENGINE
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, set(map(int, process.stdout.readline().split()))


def test_two_pools_of_an_engine_never_have_the_same() -> None:
    pools = [Users(FIRST, 6), Users(FIRST, 6)]
    taken = [pool.take() for pool in pools for _ in range(3)]
    assert len(set(taken)) == 6
    for pool in pools:
        with pytest.raises(OSError, match="all 6 users"):
            pool.take()
    pools[0].give_back(taken[3])  # it has not got it
    with pytest.raises(OSError, match="all 6 users"):
        pools[0].take()
    pools[1].give_back(taken[3])
    pools[1].give_back(taken[3])
    assert pools[0].take() == taken[3]
    for pool in pools:
        pool.close()


def test_those_of_an_engine_that_was_killed_are_free_again(place: Path) -> None:
    process, its = engine(place)
    mine = Users(FIRST, 3)
    try:
        assert len(its | {mine.take()}) == 3
        with pytest.raises(OSError, match="all 3 users"):
            mine.take()
        process.kill()
        process.wait()
        assert {mine.take(), mine.take()} == its
    finally:
        process.kill()
        process.communicate()
        mine.close()


def test_one_that_is_given_back_is_not_the_next() -> None:
    pool = Users(FIRST, 100)
    seen = []
    for _ in range(100):
        seen.append(pool.take())
        pool.give_back(seen[-1])
    assert len(set(seen)) == 100
    pool.close()


def test_who_has_processes_is_passed_over() -> None:
    pool = Users(FIRST, 2)
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, user=FIRST, group=FIRST, extra_groups=[]) as process:
        assert pool.take() == FIRST + 1
        with pytest.raises(OSError, match="all 2 users"):
            pool.take()
        process.kill()
    assert pool.take() == FIRST
    pool.close()


def test_threads_of_one_engine_do_not_get_the_same() -> None:
    pools = [Users(FIRST, 200) for _ in range(4)]
    taken: list[int] = []
    threads = [
        threading.Thread(target=lambda pool=pool: taken.extend(pool.take() for _ in range(50))) for pool in pools
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == 200
    for pool in pools:
        pool.close()


def test_a_place_that_others_have_made_is_not_used(place: Path) -> None:
    (place / "grape").mkdir(mode=0o700)
    os.chown(place / "grape", 65534, 65534)
    with pytest.raises(Unsupported, match="somebody else has made or may write to it"):
        Users(FIRST, 2)
    (place / "grape").rmdir()
    (place / "elsewhere").mkdir()
    (place / "grape").symlink_to("elsewhere")
    with pytest.raises(Unsupported, match="somebody else has made"):
        Users(FIRST, 2)
