"""Packages: the same app gives the same bytes and name, and nothing but what a package has comes out of one."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grape.apps.package import check, digest_of, pack, unpack
from grape.errors import Corrupt, UsageError

MANIFEST = 'name = "orders"\nversion = "1"\napp = "orders.py"\n'


def make(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "grape.toml").write_text(MANIFEST)
    (directory / "orders.py").write_text("topology = None\n")
    (directory / "lib").mkdir(exist_ok=True)
    (directory / "lib" / "more.py").write_text("x = 1\n")
    return directory


def member(name: str, content: bytes = b"x", **about: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in about.items():
        setattr(info, key, value)
    return info, content


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def taken_out(path: Path, target: Path) -> None:
    target.mkdir()
    with open(path, "rb") as file:
        unpack(file, "it", target)


def test_the_same_app_gives_the_same_bytes_and_name(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one"), make(tmp_path / "other")
    os.utime(other / "orders.py", (1, 1))
    names = pack(one, tmp_path / "a.tar.gz"), pack(other, tmp_path / "b.tar.gz")
    assert names[0] == names[1]
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    (other / "orders.py").chmod(0o755)
    assert pack(other, tmp_path / "c.tar.gz") != names[0]


def test_what_comes_out_is_what_went_in(tmp_path: Path) -> None:
    app = make(tmp_path / "app")
    (app / "run.sh").write_text("#!/bin/sh\n")
    (app / "run.sh").chmod(0o755)
    name = pack(app, tmp_path / "a.tar.gz")
    taken_out(tmp_path / "a.tar.gz", tmp_path / "out")
    assert digest_of(tmp_path / "out", whole=True) == name
    assert (tmp_path / "out" / "lib" / "more.py").read_text() == "x = 1\n"
    assert os.access(tmp_path / "out" / "run.sh", os.X_OK)


def test_what_is_hidden_and_what_others_made_is_left_out(tmp_path: Path) -> None:
    app = make(tmp_path / "app")
    name = digest_of(app)
    for path in (".git/config", "__pycache__/orders.pyc", "lib/node_modules/x.js", ".env"):
        (app / path).parent.mkdir(parents=True, exist_ok=True)
        (app / path).write_text("secret")
    assert pack(app, tmp_path / "a.tar.gz") == name


@pytest.mark.parametrize(
    ("path", "says"),
    [("link", "symbolic link"), ("pipe", "no plain file"), ("bad\nname", "characters"), ("back\\slash", "characters")],
)
def test_what_cannot_be_packed_is_said(tmp_path: Path, path: str, says: str) -> None:
    app = make(tmp_path / "app")
    if path == "link":
        (app / path).symlink_to("/etc/passwd")
    elif path == "pipe":
        os.mkfifo(app / path)
    else:
        (app / path).write_text("x")
    with pytest.raises(UsageError, match=says):
        pack(app, tmp_path / "a.tar.gz")
    assert not (tmp_path / "a.tar.gz").exists()


# F102
@pytest.mark.parametrize(
    "bad",
    [
        member("../out"),
        member("a/../../out"),
        member("/etc/out"),
        member("a//b"),
        member("./../out"),
        member("a\\b"),
        member("x", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("x", b"", type=tarfile.LNKTYPE, linkname="grape.toml"),
        member("x", b"", type=tarfile.CHRTYPE),
        member("x", b"", type=tarfile.BLKTYPE),
        member("x", b"", type=tarfile.FIFOTYPE),
        member("GRAPE.toml"),
        member("grape.toml"),
        member("grape.toml/x"),
        member(".hidden"),
        member("lib/.git/x"),
        member("__pycache__/orders.pyc"),
        member("a\x1b[31m"),
        member("/".join(["d"] * 60)),
        member("x" * 300),
    ],
    ids=lambda bad: repr(bad[0].name[:20]) + bad[0].type.decode(),
)
def test_an_archive_that_leads_out_is_refused_as_a_whole(tmp_path: Path, bad: tuple[tarfile.TarInfo, bytes]) -> None:
    path = archive(tmp_path / "a.tar.gz", member("grape.toml", MANIFEST.encode()), bad)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="the package it has"):
        taken_out(path, tmp_path / "out")
    outside = {place for place in tmp_path.rglob("*") if not place.is_relative_to(tmp_path / "out")}
    assert outside == before


# F102: a link first, then a file through it
def test_a_file_through_a_link_is_refused(tmp_path: Path) -> None:
    link = member("d", b"", type=tarfile.SYMTYPE, linkname=str(tmp_path))
    path = archive(tmp_path / "a.tar.gz", link, member("d/out"))
    with pytest.raises(UsageError):
        taken_out(path, tmp_path / "out")
    assert not (tmp_path / "out" / "d").is_symlink()
    assert sorted(place.name for place in tmp_path.iterdir()) == ["a.tar.gz", "out"]


# F103
def test_a_bomb_stops_by_what_it_really_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grape.apps.package.MAX_BYTES", 1 << 20)
    big = archive(tmp_path / "a.tar.gz", *(member(f"f{i}", b"\0" * (300 << 10)) for i in range(4)))
    assert big.stat().st_size < 10_000
    with pytest.raises(UsageError, match="too large"):
        taken_out(big, tmp_path / "out")
    assert sum(place.stat().st_size for place in (tmp_path / "out").rglob("*")) <= 1 << 20


# F103
def test_too_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grape.apps.package.MAX_FILES", 1_000)
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for i in range(1_001):
            tar.addfile(tarfile.TarInfo(f"f{i}"))
    with pytest.raises(UsageError, match="too large: over 1,000 files"):
        taken_out(path, tmp_path / "out")


def test_what_is_cut_or_no_package_is_said(tmp_path: Path) -> None:
    whole = pack(make(tmp_path / "app"), tmp_path / "a.tar.gz") and (tmp_path / "a.tar.gz").read_bytes()
    for i, data in enumerate(
        (b"", b"no tar", whole[:100], whole[:-30], b"\x28\xb5\x2f\xfd123", gzip.compress(b"x" * 512))
    ):
        (tmp_path / "cut").write_bytes(data)
        with pytest.raises(UsageError, match="the package it"):
            taken_out(tmp_path / "cut", tmp_path / f"out{i}")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_is_changed_in_an_archive_nothing_comes_out_elsewhere(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    base = tmp_path_factory.mktemp("fuzz")
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for info, content in (member("grape.toml", MANIFEST.encode()), member("lib/x.py"), member("lib/y.py")):
            tar.addfile(info, io.BytesIO(content))
    raw = bytearray(plain.getvalue()[:5120])
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (base / "out").mkdir()
    try:
        unpack(io.BytesIO(bytes(raw)), "it", base / "out")
    except UsageError:
        pass
    assert [place.name for place in base.iterdir()] == ["out"]
    assert not any(place.is_symlink() for place in base.rglob("*"))


# F104
@pytest.mark.parametrize("how", ["content", "new file", "hidden file", "gone", "link", "executable"])
def test_a_package_that_was_changed_is_found(tmp_path: Path, how: str) -> None:
    place = make(tmp_path / "app")
    name = digest_of(place, whole=True)
    check(place, name)
    match how:
        case "content":
            (place / "orders.py").write_text("evil\n")
        case "new file":
            (place / "sitecustomize.py").write_text("evil\n")
        case "hidden file":
            (place / ".x").write_text("evil\n")
        case "gone":
            (place / "orders.py").unlink()
        case "link":
            (place / "lib" / "more.py").unlink()
            (place / "lib" / "more.py").symlink_to("/etc/passwd")
        case "executable":
            (place / "orders.py").chmod(0o755)
    with pytest.raises(Corrupt, match="upload it again"):
        check(place, name)


# F104
def test_what_interpreters_left_beside_the_code_is_not_trusted(tmp_path: Path) -> None:
    place = make(tmp_path / "app")
    name = digest_of(place, whole=True)
    (place / "lib" / "__pycache__").mkdir()
    (place / "lib" / "__pycache__" / "more.cpython-311.pyc").write_bytes(b"evil")
    check(place, name)
    assert not (place / "lib" / "__pycache__").exists()


def test_one_that_was_damaged_on_its_way_is_refused(tmp_path: Path) -> None:
    """Also if what came out of it could be: it would be another version, which nobody has made."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "grape.toml").write_text('name = "a"\napp = "app.py"\n')
    (tmp_path / "app" / "app.py").write_bytes(bytes(range(256)) * 40)
    pack(tmp_path / "app", tmp_path / "packed")
    packed = (tmp_path / "packed").read_bytes()
    damaged = packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]  # the checksum
    (tmp_path / "new").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        unpack(io.BytesIO(damaged), "packed", tmp_path / "new")
