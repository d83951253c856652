"""Images from whoever made them: nothing is written outside, nothing is taken that is not what it says it is."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import io
import json
import lzma
import os
import stat
import tarfile
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grape.errors import Unsupported
from grape.isolates.image import unpack

FILE, LINK, HARD, DIRECTORY = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
CONFIG = b'{"config": {}}'
Entry = tuple[str, bytes, str]
"""Name, kind, and what is in it or where it leads."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def layer(*entries: Entry, mode: int = 0o644) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind, content in entries:
            member = tarfile.TarInfo(name)
            member.type = kind
            member.mode = mode
            if kind == FILE:
                member.size = len(content.encode())
                tar.addfile(member, io.BytesIO(content.encode()))
            else:
                member.linkname = content
                tar.addfile(member)
    return file.getvalue()


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def saved(path: Path, *layers: bytes, **config: Any) -> Path:
    content = json.dumps({"rootfs": {"diff_ids": [f"sha256:{sha256(one)}" for one in layers]}, **config}).encode()
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = [{"Config": f"{sha256(content)}.json", "Layers": names}]
    files = {f"{sha256(content)}.json": content, "manifest.json": json.dumps(manifest).encode()}
    return archive(path, {**files, **dict(zip(names, layers, strict=True))})


def layout(path: Path, *layers: bytes, **changed: bytes) -> Path:
    blobs: dict[str, bytes] = {}

    def blob(data: bytes) -> dict[str, Any]:
        blobs[f"blobs/sha256/{sha256(data)}"] = data
        return {"digest": f"sha256:{sha256(data)}"}

    described = [blob(one) for one in layers]
    manifest = blob(json.dumps({"config": blob(CONFIG), "layers": described}).encode())
    files = {"oci-layout": b"{}", "index.json": json.dumps({"manifests": [manifest]}).encode(), **blobs, **changed}
    return archive(path, files)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


def names(path: Path) -> list[str]:
    return sorted(str(one.relative_to(path)) for one in path.rglob("*"))


def test_layers_lie_one_over_the_other(tmp_path: Path, target: Path) -> None:
    first = layer(
        ("./a/", DIRECTORY, ""),
        ("./a/one", FILE, "1"),
        ("a/two", FILE, "2"),
        ("b/old", FILE, "old"),
        ("b/deep/old", FILE, "old"),
        ("c", FILE, "a file"),
        ("d/x", FILE, "a directory"),
        ("link", LINK, "a/one"),
    )
    second = layer(
        ("a/.wh.one", FILE, ""),
        ("a/.wh.never", FILE, ""),
        ("b/.wh..wh..opq", FILE, ""),
        ("b/new", FILE, "new"),
        ("c/inside", FILE, "a directory now"),
        ("d", FILE, "a file now"),
        ("hard", HARD, "./a/two"),
        ("a/.wh..wh.plnk", FILE, ""),
    )
    third = layer(("c", FILE, "again"))
    for save in (saved, layout):
        path = save(tmp_path / f"{save.__name__}.tar", first, layer((".wh.c", FILE, "")), second, third)
        place = target / save.__name__
        place.mkdir()
        unpack(str(path), str(place))
        assert names(place) == ["a", "a/two", "b", "b/new", "c", "d", "hard", "link"]
        assert (place / "c").read_text() == "again"
        assert (place / "hard").samefile(place / "a/two")
        assert os.readlink(place / "link") == "a/one"


def test_compressed_layers(tmp_path: Path, target: Path) -> None:
    unpack(str(layout(tmp_path / "i.tar", gzip.compress(layer(("f", FILE, "x"))))), str(target))
    assert names(target) == ["f"]


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([("../escape", FILE, "")], "leads out of it"),
        ([("a/../../escape", FILE, "")], "leads out of it"),
        ([("a/.wh...", FILE, "")], "leads out of it"),
        ([("a/.wh..", FILE, "")], "leads out of it"),
        ([(".wh.", FILE, "")], "leads out of it"),
        ([("link", LINK, "/"), ("link/tmp/escape", FILE, "")], "below what is no directory"),
        ([("link", LINK, ".."), ("link/escape", FILE, "")], "below what is no directory"),
        ([("link", LINK, ".."), ("link/escape/", DIRECTORY, "")], "below what is no directory"),
        ([("link", LINK, "/etc"), ("stolen", HARD, "link/passwd")], "below what is no directory"),
        ([("link", LINK, ".."), ("link/.wh..wh..opq", FILE, "")], "below what is no directory"),
        ([("stolen", HARD, "../../etc/passwd")], "leads out of it"),
        ([("stolen", HARD, "nothing")], "to what is not there"),
        ([("stolen", HARD, "/")], "a hard link to nothing"),
        ([("file", FILE, ""), ("file/below", FILE, "")], "below what is no directory"),
    ],
)
def test_what_leads_out_is_refused(tmp_path: Path, target: Path, entries: list[Entry], text: str) -> None:
    before = set(names(tmp_path))
    path = saved(tmp_path / "image.tar", layer(*entries))
    with pytest.raises(Unsupported, match=text):
        unpack(str(path), str(target))
    outside = {name for name in names(tmp_path) if not name.startswith("target/")}
    assert outside == before | {"image.tar"}


def test_an_absolute_path_is_one_inside(tmp_path: Path, target: Path) -> None:
    unpack(str(saved(tmp_path / "i.tar", layer(("/etc/passwd", FILE, "x"), ("/h", HARD, "/etc/passwd")))), str(target))
    assert names(target) == ["etc", "etc/passwd", "h"]


def test_links_stay_links(tmp_path: Path, target: Path) -> None:
    """What they lead to is a matter of the container, not of who unpacks."""
    entries = [("a", LINK, "/etc/passwd"), ("b", LINK, "../../.."), ("c", HARD, "a")]
    unpack(str(saved(tmp_path / "i.tar", layer(*entries), layer(("a", FILE, "mine")))), str(target))
    assert (target / "a").read_text() == "mine"
    assert os.readlink(target / "b") == "../../.."
    assert os.readlink(target / "c") == "/etc/passwd"


def test_privileges_and_devices_are_not_taken_over(tmp_path: Path, target: Path) -> None:
    devices = [(f"device{kind!r}", kind, "") for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)]
    entries = [("su", FILE, "x"), *devices]
    image = saved(tmp_path / "i.tar", layer(*entries, mode=0o6777), layer(("private", FILE, ""), mode=0))
    unpack(str(image), str(target))
    assert names(target) == ["private", "su"]
    assert stat.S_IMODE((target / "su").stat().st_mode) == 0o755
    assert stat.S_IMODE((target / "private").stat().st_mode) == 0o444
    assert (target / "su").stat().st_uid == os.geteuid()


def test_what_does_not_have_its_digest_is_refused(tmp_path: Path, target: Path) -> None:
    good = layer(("f", FILE, "x"))
    evil = layer(("f", FILE, "y"))
    for path in (
        layout(tmp_path / "1.tar", good, **{f"blobs/sha256/{sha256(good)}": evil}),
        layout(tmp_path / "2.tar", good, **{f"blobs/sha256/{sha256(CONFIG)}": b"{}"}),
    ):
        with pytest.raises(Unsupported, match="is damaged: blobs/sha256/"):
            unpack(str(path), str(target))
    config = json.dumps({"rootfs": {"diff_ids": [f"sha256:{sha256(good)}"]}}).encode()
    name = f"{sha256(config)}.json"
    manifest = json.dumps([{"Config": name, "Layers": ["l"]}]).encode()
    for files, text in (
        (
            {"manifest.json": manifest, name: config, "l": evil},
            "a layer does not have the digest",
        ),
        (
            {"manifest.json": manifest, name: config + b" ", "l": good},
            "is damaged: .* has the digest",
        ),
        ({"manifest.json": manifest, "l": good}, "of which it speaks"),
        ({"manifest.json": b"[]"}, "has 0 images in it, not one"),
        ({"manifest.json": b"{"}, "cannot be read"),
        ({"manifest.json": b'[{"Config": "l", "Layers": 5}]', "l": b"{}"}, "cannot be read"),
        ({"hello": b""}, "is neither of `docker save` nor an OCI layout"),
        ({"oci-layout": b"", "index.json": b'{"manifests": []}'}, "has 0 images for"),
        ({"oci-layout": b"", "index.json": b'{"manifests": [{"digest": "../../etc/passwd"}]}'}, "is no digest"),
    ):
        with pytest.raises(Unsupported, match=text):
            unpack(str(archive(tmp_path / "bad.tar", files)), str(target))
    assert names(target) == []


def test_a_pinned_digest(tmp_path: Path, target: Path) -> None:
    path = str(saved(tmp_path / "i.tar", layer(("f", FILE, "x"))))
    (found,) = unpack(path, str(target)).digests
    unpack(path, str(target), found)
    with pytest.raises(Unsupported, match=f"is not the one that was asked for.*: it has the digests {found}"):
        unpack(path, str(target), f"sha256:{'0' * 64}")
    for wrong in ("sha256:0", "md5:" + "0" * 32, found[7:]):
        with pytest.raises(Unsupported, match=r"digest = .* is none"):
            unpack(path, str(target), wrong)


def test_what_is_not_understood_is_refused(tmp_path: Path, target: Path) -> None:
    with pytest.raises(Unsupported, match="zstd"):
        unpack(str(layout(tmp_path / "i.tar", b"\x28\xb5\x2f\xfd" + bytes(100))), str(target))


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def pax(**records: str) -> bytes:
    member = tarfile.TarInfo("x")
    member.pax_headers = {name.replace("_", "."): value for name, value in records.items()}
    return member.tobuf(tarfile.PAX_FORMAT)


HUGE = {
    "a long name": header(tarfile.GNUTYPE_LONGNAME, 1 << 28),
    "a long link": header(tarfile.GNUTYPE_LONGLINK, 1 << 28),
    "attributes": header(tarfile.XHDTYPE, 1 << 28),
    "attributes of all": header(tarfile.XGLTYPE, 1 << 28),
    "holes": header(tarfile.GNUTYPE_SPARSE, 1 << 28),
}


@pytest.mark.parametrize("what", HUGE)
@pytest.mark.parametrize("inside", [False, True])
def test_nothing_is_read_into_memory_before_its_size_is_known(
    tmp_path: Path, target: Path, what: str, inside: bool
) -> None:
    bomb = io.BytesIO()
    with gzip.open(bomb, "wb", 1) as file:
        file.write(HUGE[what])
        for _ in range(1 << 8):
            file.write(bytes(1 << 20))
    path = tmp_path / "image"
    if inside:
        layout(path, bomb.getvalue())
    else:
        path.write_bytes(bomb.getvalue())
    tracemalloc.start()
    try:
        with pytest.raises(Unsupported, match=r"too long, or too many|holes"):
            unpack(str(path), str(target), "" if inside else f"sha256:{'0' * 64}")
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (header(tarfile.XHDTYPE, 0) * 100_000 + bytes(1024), "too long, or too many"),
        (header(tarfile.XGLTYPE, 0) * 100_000 + bytes(1024), "too long, or too many"),
        (pax(GNU_sparse_map="0,1", GNU_sparse_size="5") + bytes(1024), "holes"),
        (pax(GNU_sparse_major="1", GNU_sparse_minor="0") + bytes(1024), "holes"),
        (header(FILE, 1 << 50) + bytes(1024), "too large"),
        (header(FILE, 0) * 10_001 + bytes(1024), "too large"),
        (lzma.compress(layer(("f", FILE, "x"))), "xz"),
        (bz2.compress(layer(("f", FILE, "x"))), "bzip2"),
        (gzip.compress(layer(("f", FILE, "x")), mtime=0)[:-20], "cannot be read"),
        (b"", "cannot be read"),
    ],
    ids=["extended", "global", "sparse-map", "sparse-version", "long", "many", "xz", "bzip2", "cut-off", "empty"],
)
def test_what_no_image_has_is_refused(tmp_path: Path, target: Path, data: bytes, text: str) -> None:
    (tmp_path / "image").write_bytes(data)
    with pytest.raises(Unsupported, match=text):
        unpack(str(tmp_path / "image"), str(target))


@pytest.mark.parametrize("deep", [b"[" * 200_000, b'{"a":' * 200_000, b" " * (3 << 20)])
def test_documents_are_bounded(tmp_path: Path, target: Path, deep: bytes) -> None:
    for files in ({"manifest.json": deep}, {"oci-layout": b"{}", "index.json": deep}):
        with pytest.raises(Unsupported):
            unpack(str(archive(tmp_path / "image", files)), str(target))


@pytest.mark.parametrize("name", ["n" * 300, "d/" * 300 + "d", "l" * 5000])
def test_names_that_no_file_can_have_are_refused(tmp_path: Path, target: Path, name: str) -> None:
    with pytest.raises(Unsupported):
        unpack(str(layout(tmp_path / "image", layer((name, FILE, "")))), str(target))
    with contextlib.suppress(Unsupported):
        unpack(str(layout(tmp_path / "image", layer(("link", LINK, name)))), str(target))
    assert not {*names(target)} - {"link"}


def test_the_image_for_this_machine_is_taken(tmp_path: Path, target: Path) -> None:
    data = layer(("f", FILE, "x"))
    blobs: dict[str, bytes] = {}

    def blob(content: bytes) -> str:
        blobs[f"blobs/sha256/{sha256(content)}"] = content
        return f"sha256:{sha256(content)}"

    manifest = blob(json.dumps({"config": {"digest": blob(b"{}")}, "layers": [{"digest": blob(data)}]}).encode())
    machines = [{"digest": manifest, "platform": {"architecture": name}} for name in ("amd64", "arm64")]
    attestation = {"digest": manifest, "annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
    index = blob(json.dumps({"manifests": [*machines, attestation]}).encode())
    files = {"oci-layout": b"{}", "index.json": json.dumps({"manifests": [{"digest": index}]}).encode(), **blobs}
    unpack(str(archive(tmp_path / "i.tar", files)), str(target))
    assert names(target) == ["f"]


part = st.sampled_from(["a", "b", "c", "..", ".", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh...", "victim"])
path = st.lists(part, min_size=1, max_size=4).map("/".join)
entry = st.tuples(
    st.one_of(path, path.map(lambda p: f"/{p}")),
    st.sampled_from([FILE, LINK, HARD, DIRECTORY]),
    st.one_of(path, st.sampled_from(["/", "..", "../..", "../victim", "../../victim", "/etc"])),
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(entry, max_size=8), min_size=1, max_size=3))
def test_nothing_outside_changes_whatever_is_in_an_image(layers: list[list[Entry]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        top = Path(place)
        (top / "in" / "target").mkdir(parents=True)
        for where in (top, top / "in"):
            (where / "victim").mkdir()
            (where / "victim" / "a").write_text("precious")
        image = saved(top / "image.tar", *(layer(*entries) for entries in layers))

        def outside() -> dict[str, tuple[int, int]]:
            found = {}
            for where, directories, files in os.walk(top):
                if where == str(top / "in"):
                    directories.remove("target")
                for name in (*directories, *files):
                    status = os.lstat(os.path.join(where, name))
                    found[os.path.join(where, name)] = (status.st_mtime_ns, status.st_nlink)
            return found

        before = outside()
        with contextlib.suppress(Unsupported):
            unpack(str(image), str(top / "in" / "target"))
        assert outside() == before


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 20_000), st.binary(min_size=1, max_size=40))
def test_a_damaged_file_is_refused_or_the_same(at: int, change: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        image = layout(Path(place, "image.tar"), layer(("f", FILE, "content")))
        data = bytearray(image.read_bytes())
        data[at % len(data) : at % len(data) + len(change)] = change
        image.write_bytes(data)
        target = Path(place, "target")
        target.mkdir()
        with contextlib.suppress(Unsupported):
            unpack(str(image), str(target))
            assert (target / "f").read_text() == "content"


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=600)), min_size=1, max_size=3),
    st.sampled_from([saved, layout]),
    st.sampled_from(["plain", "layer", "whole", "both"]),
    st.booleans(),
)
def test_whatever_is_damaged_ends_in_a_refusal(
    changes: list[tuple[float, bytes]], save: Any, compressed: str, cut: bool
) -> None:
    with tempfile.TemporaryDirectory() as place:
        long = "n" * 150 + "/" + "m" * 120
        one = layer(("f", FILE, "content" * 200), (long, FILE, "x"), ("link", LINK, long), ("hard", HARD, "f"))
        if save is layout and compressed in ("layer", "both"):
            one = gzip.compress(one, mtime=0)
        image = save(Path(place, "image.tar"), one)
        whole = image.read_bytes()
        data = bytearray(gzip.compress(whole, mtime=0) if compressed in ("whole", "both") else whole)
        for where, change in changes:
            at = int(where * (len(data) - 1))
            data[at : at + len(change)] = change
        image.write_bytes(data[: int(changes[0][0] * len(data))] if cut else data)
        target = Path(place, "target")
        target.mkdir()
        with contextlib.suppress(Unsupported):
            unpack(str(image), str(target))
