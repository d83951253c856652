"""Large objects and what must be survived: a process stores some as an engine does, with a shim under its files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from shutil import copytree, rmtree

import pytest

from grape.model.objects import decode_stored, is_unused, split_place
from unit.blobbing import HOME, Process, content

ROUNDS = 3
TESTS = Path(__file__).parents[1]


def assert_whole(directory: Path, confirmed: int, submitted: int) -> int:
    """Every object has its bytes, and after a start nothing is there that none has."""
    process = Process(directory)
    count = int(process.claim.head or b"0")
    assert confirmed <= count <= submitted
    expected = {f"{n}": sha256(content(n)).digest() for n in range(max(1, count - 1), count + 1)}
    rows = {
        split_place(place)[1]: stored
        for place, packed in process.transport.scan(HOME, "object", b"", 1000)
        if (stored := decode_stored(packed)).is_there
    }
    assert {key: stored.checksum for key, stored in rows.items()} == expected
    blobs = dict(process.transport.scan(HOME, "blob", b"", 1000))
    assert {digest for digest, packed in blobs.items() if not is_unused(packed)} == set(expected.values())
    files = list((directory / "blobs").glob("??/*"))
    assert {path.name for path in files} >= {digest.hex() for digest in expected.values()}
    for path in files:
        if bytes.fromhex(path.name) in expected.values():
            assert sha256(path.read_bytes()).hexdigest() == path.name
    assert list(process.store.verify()) == []
    process.looks()
    process.close()
    files = [path for path in (directory / "blobs").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {digest.hex() for digest in expected.values()}
    return count


def faulty(shim: Path, directory: Path, deed: str, at: int) -> tuple[int, str]:
    """``at``: which of its writes and syncs."""
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); from unit.blobbing import main"
    code += f"; sys.exit(main({str(directory)!r}, {ROUNDS}))"
    env = {"LD_PRELOAD": str(shim), "FAULTIO_DO": deed, "FAULTIO_AT": str(at), "FAULTIO_SEED": str(at)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


def _confirmed(output: str) -> int:
    numbers = [int(line.split()[1]) for line in output.splitlines() if line.startswith(("committed", "claimed"))]
    return max(numbers, default=0)


@pytest.mark.parametrize("deed", ["kill", "torn", "powercut"])
def test_f14_killed_at_every_write_and_sync(tmp_path: Path, shim: Path, deed: str) -> None:
    """F2, F3, F7, F14: before each write and sync of data and files, in the middle of each write, with pages and names
    lost that were not synced: what is confirmed has its bytes, and bytes that nobody has are gone after a start."""
    found: set[int] = set()
    for at in range(1, 200):
        directory = tmp_path / f"{at}"
        code, output = faulty(shim, directory, deed, at)
        found.add(assert_whole(directory, _confirmed(output), ROUNDS))
        if code == 0:
            break
        assert code == -signal.SIGKILL, output
        rmtree(directory)
    assert 8 * ROUNDS < at < 199
    assert found == set(range(ROUNDS + 1))


@pytest.mark.parametrize("deed", ["eio", "enospc"])
def test_f20_an_error_of_the_disk_is_told(tmp_path: Path, shim: Path, deed: str) -> None:
    """F20, F17: at any write or sync; nothing is confirmed of what it was for, nor after it."""
    assert_whole(tmp_path / "0", 0, 0)
    for at in range(1, 200):
        directory = tmp_path / f"{at}"
        copytree(tmp_path / "0", directory)
        code, output = faulty(shim, directory, deed, at)
        assert "Traceback" not in output, output
        if code == 0:
            break
        assert code == 3, output
        told = [line for line in output.splitlines() if line.startswith("failed")]
        assert output.splitlines()[-1] == told[0]
        assert_whole(directory, _confirmed(output), ROUNDS)
        rmtree(directory)
    assert 6 * ROUNDS < at < 199
