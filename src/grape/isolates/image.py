"""Images as files: the tar of ``docker save``, or of an OCI layout (``skopeo copy ... oci-archive:FILE``), unpacked.

Formats: github.com/moby/docker-image-spec (spec.md), github.com/opencontainers/image-spec (image-layout.md, layer.md).
An image is not trusted: every blob has to have its digest, no path leaves the directory, no symbolic link is followed,
nothing but files, directories and links is made, without owners, set-id bits or attributes. Everything that is read
into memory is bounded before it is read, and the digest that is asked for is compared before any layer is looked at.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import os
import platform
import re
import shutil
import tarfile
from collections.abc import Callable
from typing import IO, Any, Final, NoReturn

from msgspec import Struct

from grape.errors import Unsupported
from grape.isolates.tars import EXTENSIONS, GZIP, MOST_BYTES, open_tar

_MOST_ENTRIES: Final = 1_000_000
_MOST_MEMBERS: Final = 10_000
"""Of the archive itself, which has a few for each layer; each is kept in mind."""
_MOST_LAYERS: Final = 256
_DOCUMENT: Final = 2 << 20
_DEEPEST: Final = 200
_LONGEST: Final = 4096
"""Directories above one another, which whoever removes them goes down into; and PATH_MAX."""
_NO_TREE: Final = frozenset(
    (errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENOTEMPTY)
)
"""Errors that speak of names in the image, not of the host."""
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Image(Struct, frozen=True):
    """``digests``: of its manifest and of its configuration, which is what docker calls the image's id. ``env``: the
    variables that it wants."""

    digests: tuple[str, ...]
    env: dict[str, str]


class _Layer(Struct, frozen=True):
    """``blob``: name in the archive. ``plain``: digest of what it holds when it is not compressed, if that is known."""

    blob: str
    plain: str = ""


def unpack(path: str, target: str, pinned: str = "") -> Image:
    """Unpack an image into an empty directory. Blocking, seconds for a large one.

    Args:
        pinned: the digest that it has to have.

    Raises:
        Unsupported: it is no image, not the one that was asked for, damaged, or has in it what no image needs.
        OSError: it cannot be read, or there is no space.
    """

    def refuse(text: str) -> NoReturn:
        raise Unsupported(f"the image {path} {text}")

    if pinned and not re.fullmatch(r"sha256:[0-9a-f]{64}", pinned):
        raise Unsupported(f'digest = {pinned!r} is none: "sha256:" and 64 hexadecimal digits')
    try:
        with open(path, "rb") as file, open_tar(file, refuse, EXTENSIONS) as archive:
            blobs = _Blobs(archive, refuse)
            image, layers = _described(blobs, refuse)
            if pinned and pinned not in image.digests:
                refuse(f"is not the one that was asked for, {pinned}: it has the digests {', '.join(image.digests)}")
            if len(layers) > _MOST_LAYERS:
                refuse(f"is too large: it has over {_MOST_LAYERS} layers")
            tree = _Tree(target, refuse)
            try:
                for layer in layers:
                    tree.apply(blobs.read(layer.blob, _digest_of_name(layer.blob)), layer.plain)
            finally:
                tree.close()
            return image
    except Unsupported:
        raise
    except Exception as e:
        # An image is data of others: whatever is wrong in it, it is said in one way. The host's errors are its own.
        if isinstance(e, OSError) and not isinstance(e, gzip.BadGzipFile) and e.errno not in _NO_TREE:
            raise
        raise Unsupported(f"the image {path} cannot be read: {type(e).__name__}: {str(e)[:200]}") from None


class _Blobs:
    """The files of an image's own tar."""

    def __init__(self, archive: tarfile.TarFile, refuse: Callable[[str], NoReturn]) -> None:
        self._archive = archive
        self._refuse = refuse
        self._members = _members(archive, refuse)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def read(self, name: str, digest: str = "") -> IO[bytes]:
        """``digest``: that it has to have."""
        member = self._members.get(name)
        if member is None:
            self._refuse(f"has no {name}, of which it speaks")
        found = self._archive.extractfile(member)
        assert found is not None
        if digest and _digest(found) != digest:
            self._refuse(f"is damaged: {name} does not have the digest {digest}")
        found.seek(0)
        return found

    def document(self, name: str, digest: str = "") -> Any:
        """Its JSON."""
        text = self.read(name, digest).read(_DOCUMENT + 1)
        if len(text) > _DOCUMENT:
            self._refuse(f"is too large: {name} has over {_DOCUMENT >> 20} MiB")
        return json.loads(text)


def _described(blobs: _Blobs, refuse: Callable[[str], NoReturn]) -> tuple[Image, list[_Layer]]:
    """What it says of itself."""
    if "oci-layout" in blobs:
        return _read_layout(blobs.document, refuse)
    if "manifest.json" in blobs:
        return _read_saved(blobs.document, refuse, lambda name: _digest(blobs.read(name)))
    refuse("is neither of `docker save` nor an OCI layout in a tar")


def _members(archive: tarfile.TarFile, refuse: Callable[[str], NoReturn]) -> dict[str, tarfile.TarInfo]:
    """The files of the archive itself, by name."""
    found: dict[str, tarfile.TarInfo] = {}
    entries = size = 0
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]
        entries += 1
        size += max(0, member.size)
        if entries > _MOST_MEMBERS or size > MOST_BYTES:
            refuse(f"is too large: over {_MOST_MEMBERS} files, or {MOST_BYTES >> 30} GiB")
        if member.isfile():
            found[_plain(member.name)] = member
    return found


def _read_layout(document: Callable[..., Any], refuse: Callable[[str], NoReturn]) -> tuple[Image, list[_Layer]]:
    """Of an OCI layout: the index leads to a manifest, or to another index with one for each platform."""
    manifests = document("index.json")["manifests"]
    for _ in range(4):
        machine = _MACHINES.get(platform.machine(), platform.machine())
        fitting = [
            one
            for one in manifests
            if one.get("platform", {}).get("architecture", machine) == machine
            and "attestation" not in str(one.get("annotations", {}))
        ]
        if len(fitting) != 1:
            refuse(f"has {len(fitting)} images for {machine}, not one; export just that one")
        digest = str(fitting[0]["digest"])
        manifest = document(_blob(digest), digest)
        if "manifests" not in manifest:
            break
        manifests = manifest["manifests"]
    config = manifest["config"]["digest"]
    layers = [_Layer(_blob(layer["digest"])) for layer in manifest["layers"]]
    return Image((digest, config), _env(document(_blob(config), config))), layers


def _read_saved(
    document: Callable[..., Any], refuse: Callable[[str], NoReturn], digest: Callable[[str], str]
) -> tuple[Image, list[_Layer]]:
    """Of ``docker save`` before version 25: layers are known by what the configuration says of them."""
    manifest = document("manifest.json")
    if len(manifest) != 1:
        refuse(f"has {len(manifest)} images in it, not one; save just that one")
    name = str(manifest[0]["Config"])
    config = document(name)
    found = digest(name)
    named = re.search(r"[0-9a-f]{64}", name)
    if named is not None and found != f"sha256:{named[0]}":
        refuse(f"is damaged: {name} has the digest {found}")
    plain = config["rootfs"]["diff_ids"]
    blobs = manifest[0]["Layers"]
    if len(plain) != len(blobs):
        refuse(f"is damaged: its configuration speaks of {len(plain)} layers, and there are {len(blobs)}")
    return Image((found,), _env(config)), [_Layer(*pair) for pair in zip(blobs, plain, strict=True)]


def _env(config: dict[str, Any]) -> dict[str, str]:
    pairs = (str(line).partition("=") for line in config.get("config", {}).get("Env") or ())
    return {name: value for name, _, value in pairs}


def _blob(digest: str) -> str:
    kind, _, number = str(digest).partition(":")
    if not re.fullmatch(r"[a-z0-9]+", kind) or not re.fullmatch(r"[0-9a-f]+", number):
        raise ValueError(f"{digest!r} is no digest")
    return f"blobs/{kind}/{number}"


def _digest_of_name(blob: str) -> str:
    named = re.fullmatch(r"blobs/sha256/([0-9a-f]{64})", blob)
    return f"sha256:{named[1]}" if named else ""


def _digest(file: IO[bytes] | gzip.GzipFile) -> str:
    """
    Raises:
        ValueError: there is more than any image has.
    """
    found = hashlib.sha256()
    size = 0
    while data := file.read(1 << 20):
        size += len(data)
        if size > MOST_BYTES:
            raise ValueError(f"over {MOST_BYTES >> 30} GiB in one file")
        found.update(data)
    return f"sha256:{found.hexdigest()}"


def _plain(name: str) -> str:
    return name.removeprefix("./")


class _Tree:
    """A directory that layers are put into, one over the other, by descriptors of directories only."""

    def __init__(self, path: str, refuse: Callable[[str], NoReturn]) -> None:
        self._top = os.open(path, _DIRECTORY)
        self._refuse = refuse
        self._bytes = 0
        self._entries = 0

    def close(self) -> None:
        os.close(self._top)

    def apply(self, blob: IO[bytes], plain: str) -> None:
        """One layer.

        Args:
            plain: the digest that its tar has to have, or "".
        """
        if plain:
            compressed = blob.read(2) == GZIP
            blob.seek(0)
            if _digest(gzip.GzipFile(fileobj=blob) if compressed else blob) != plain:
                self._refuse(f"is damaged: a layer does not have the digest {plain}")
            blob.seek(0)
        with open_tar(blob, self._refuse, MOST_BYTES) as layer:
            while (member := layer.next()) is not None:
                layer.members.clear()  # type: ignore[attr-defined]
                self._entries += 1
                self._bytes += max(0, member.size)
                if self._entries > _MOST_ENTRIES or self._bytes > MOST_BYTES:
                    self._refuse(f"is too large: over {_MOST_ENTRIES} files, or {MOST_BYTES >> 30} GiB")
                self._add(layer, member)

    def _add(self, layer: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = self._parts(member.name)
        if not parts:
            return
        name = parts[-1]
        parent = self._enter(parts[:-1], member.name)
        try:
            if name == ".wh..wh..opq":
                for old in os.listdir(parent):
                    self._remove(parent, old)
                return
            if name.startswith(".wh."):
                gone = name.removeprefix(".wh.")
                if gone in ("", ".", ".."):
                    self._refuse(f"has a file that leads out of it, {member.name!r}")
                if not gone.startswith(".wh."):  # what aufs kept for itself
                    self._remove(parent, gone)
                return
            if member.isdir():
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=parent)
                    return
                if not _is_directory(parent, name):
                    self._remove(parent, name)
                    os.mkdir(name, 0o755, dir_fd=parent)
                return
            self._remove(parent, name)
            if member.isfile():
                fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=parent)
                with open(fd, "wb") as file:
                    content = layer.extractfile(member)
                    assert content is not None
                    shutil.copyfileobj(content, file, 1 << 20)
                    os.fchmod(fd, member.mode & 0o755 | 0o444)
            elif member.issym():
                os.symlink(member.linkname, name, dir_fd=parent)
            elif member.islnk():
                self._link(member, parent, name)
            # devices and pipes: the container has its own, or none
        finally:
            os.close(parent)

    def _link(self, member: tarfile.TarInfo, parent: int, name: str) -> None:
        parts = self._parts(member.linkname)
        if not parts:
            self._refuse(f"has a hard link to nothing, {member.name}")
        there = self._enter(parts[:-1], member.linkname)
        try:
            os.link(parts[-1], name, src_dir_fd=there, dst_dir_fd=parent, follow_symlinks=False)
        except (FileNotFoundError, PermissionError):
            self._refuse(f"has a hard link, {member.name!r}, to what is not there, or is a directory")
        finally:
            os.close(there)

    def _parts(self, name: str) -> list[str]:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in name:
            self._refuse(f"has a file that leads out of it, {name!r:.300}")
        if len(parts) > _DEEPEST or len(name) > _LONGEST:
            self._refuse(f"has a file that is too deep, or whose name is too long, {name!r:.300}")
        return parts

    def _enter(self, parts: list[str], whole: str) -> int:
        """A descriptor of a directory, which is made if it is not there."""
        here = os.dup(self._top)
        for part in parts:
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=here)
                there = os.open(part, _DIRECTORY, dir_fd=here)
            except OSError as e:
                self._refuse(f"has a file below what is no directory, {whole!r}: {part}: {e.strerror}")
            finally:
                os.close(here)
            here = there
        return here

    def _remove(self, parent: int, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if _is_directory(parent, name):
                shutil.rmtree(name, dir_fd=parent)
            else:
                os.unlink(name, dir_fd=parent)


def _is_directory(parent: int, name: str) -> bool:
    try:
        os.close(os.open(name, _DIRECTORY, dir_fd=parent))
    except (NotADirectoryError, OSError):
        return False
    return True
