"""The level "container" against the contract, and what is particular to it: root file systems and images."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.jails import ROOT, without

from grape.errors import Unsupported
from grape.isolates.cgroups import check
from grape.isolates.container import ContainerConfig, ContainerIsolate, merge
from grape.isolates.jail import Jail
from grape.testing.contracts.isolate import ConfinedContract, IsolateContract

HOST_PYTHON = "/usr/bin/python3"
IN_USR = os.path.realpath(sys.base_prefix) == "/usr"
"""The engine's Python, so it cannot be mounted beside that of a root file system."""
OWN = {"python": "/usr/bin/python"} if IN_USR else {}


def has_cgroups() -> bool:
    try:
        check()
    except Unsupported:
        return False
    return True


def tree(path: Path) -> dict[str, tuple[int, int, str]]:
    """Everything below: mode, size, target of a link."""
    found = {}
    for one in sorted(path.rglob("*")):
        status = one.lstat()
        target = os.readlink(one) if one.is_symlink() else ""
        found[str(one.relative_to(path))] = (status.st_mode, status.st_size, target)
    return found


@pytest.fixture(scope="module")
def rootfs() -> Iterator[Path]:
    """A root file system with a shell, some tools, the libraries of Python, and a Python of its own."""
    place = Path(tempfile.mkdtemp(prefix="grape-rootfs-"))
    place.chmod(0o755)
    try:
        pythons = [os.path.realpath(HOST_PYTHON), os.path.realpath(sys.executable)]
        programs = ["/bin/sh", "/bin/cat", "/bin/ls", pythons[0]]
        for program in programs:
            copy(program, place)
        find = "import _ctypes; print(_ctypes.__file__)"  # for its libraries
        found = [subprocess.run([python, "-c", find], capture_output=True, text=True, check=True) for python in pythons]
        for program in [*programs, *pythons, *(one.stdout.strip() for one in found)]:
            listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
            for library in re.findall(r"(/\S+) \(0x", listed):
                if library.startswith(("/lib", "/usr/lib")):
                    copy(library, place)
        for name in ("bin", "lib", "lib64"):
            (place / name).symlink_to(f"usr/{name}")
        library = Path(os.path.realpath(HOST_PYTHON)).name
        shutil.copytree(
            f"/usr/lib/{library}",
            place / "usr/lib" / library,
            ignore=lambda where, names: [
                n for n in names if n in ("test", "__pycache__", "config-3.11-x86_64-linux-gnu")
            ],
            ignore_dangling_symlinks=True,
        )
        (place / "usr/bin/python").symlink_to(library)
        (place / "etc").mkdir()
        (place / "etc/passwd").write_text("root:x:0:0:of the image:/:/bin/sh\n")
        (place / "private").mkdir()
        (place / "private/file").write_text("in the image")
        for one in place.rglob("*"):
            if not one.is_symlink():
                one.chmod(0o755)
        yield place
    finally:
        shutil.rmtree(place)


def copy(path: str, place: Path) -> None:
    """To the same path there, below /usr."""
    there = place / "usr" / re.sub("^/(usr/)?", "", path)
    there.parent.mkdir(parents=True, exist_ok=True)
    if not there.exists():
        shutil.copy(path, there)


def layer(place: Path) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for one in sorted(place.iterdir()):
            tar.add(one, one.name)
    return file.getvalue()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def save_docker(path: Path, data: bytes, env: list[str]) -> str:
    """As `docker save` did before version 25; returns the digest."""
    config = json.dumps({"config": {"Env": env}, "rootfs": {"diff_ids": [f"sha256:{digest(data)}"]}}).encode()
    with tarfile.open(path, "w") as tar:
        add(tar, "one/layer.tar", data)
        add(tar, f"{digest(config)}.json", config)
        manifest = [{"Config": f"{digest(config)}.json", "RepoTags": ["app:1"], "Layers": ["one/layer.tar"]}]
        add(tar, "manifest.json", json.dumps(manifest).encode())
    return f"sha256:{digest(config)}"


def save_oci(path: Path, data: bytes, env: list[str]) -> str:
    """As an OCI layout; returns the digest of the manifest."""
    blobs = []

    def blob(content: bytes) -> dict[str, Any]:
        blobs.append(content)
        return {"digest": f"sha256:{digest(content)}", "size": len(content)}

    config = blob(json.dumps({"config": {"Env": env}}).encode())
    manifest = blob(json.dumps({"config": config, "layers": [blob(data)]}).encode())
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        add(tar, "./oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        add(tar, "./index.json", json.dumps({"manifests": [manifest]}).encode())
        for content in blobs:
            add(tar, f"./blobs/sha256/{digest(content)}", content)
    return str(manifest["digest"])


class TestContainer(ConfinedContract if has_cgroups() else IsolateContract):  # type: ignore[misc]
    def isolate(self, **fields: Any) -> ContainerIsolate:
        return ContainerIsolate("main", ContainerConfig(**fields))

    @pytest.mark.slow  # 20 s; that nothing is left is asserted after every other test as well
    def test_two_hundred_workers_leave_nothing(self) -> None:
        super().test_two_hundred_workers_leave_nothing()

    @pytest.mark.slow  # the same code as that of a sandbox
    def test_workers_may_be_collected_on_any_thread_while_others_start(self) -> None:
        super().test_workers_may_be_collected_on_any_thread_while_others_start()

    def test_a_directory_as_root_file_system(self, rootfs: Path) -> None:
        before = tree(rootfs)
        code = """
def write(path):
    try:
        open(path, "w").close()
    except OSError as e:
        return e.strerror
say([open("/etc/passwd").read(), open("/private/file").read(), sorted(os.listdir("/usr/bin")), sys.executable,
     write("/private/file"), write("/etc/new"), write("/new"), write("/tmp/new")])
"""
        with self.engine(rootfs=str(rootfs), **OWN) as engine:
            isolate = engine.isolate
            assert isinstance(isolate, ContainerIsolate)
            isolate.layers -= {"landlock"}  # so that it is the file system that refuses
            said = json.loads(engine.run(code).line())
        assert said == [
            "root:x:0:0:of the image:/:/bin/sh\n",
            "in the image",
            ["cat", "ls", "python", os.path.basename(os.path.realpath(HOST_PYTHON)), "sh"],
            "/usr/bin/python" if IN_USR else sys.executable,
            *["Read-only file system"] * 3,
            None,
        ]
        assert tree(rootfs) == before

    @pytest.mark.parametrize("save", [save_docker, save_oci])
    def test_an_image(self, rootfs: Path, tmp_path: Path, save: Callable[[Path, bytes, list[str]], str]) -> None:
        file = tmp_path / "image.tar"
        found = save(file, layer(rootfs), ["GREETING=from the image", "HOME=/root", "TMPDIR=/elsewhere"])
        names = ("GREETING", "HOME", "TMPDIR")
        greeting = "from the image" if IN_USR else None
        code = f'say([open("/private/file").read(), [os.environ.get(name) for name in {names}]])'
        with self.engine(image=str(file), digest=found, **OWN) as engine:
            assert json.loads(engine.run(code).line()) == ["in the image", [greeting, "/tmp/worker", "/tmp/worker"]]
        with pytest.raises(
            Unsupported, match=r"container: the image .* is not the one that was asked for, sha256:0000"
        ):
            self.isolate(image=str(file), digest="sha256:" + "0" * 64).prepare()

    def test_an_image_with_a_python_of_its_own(self, rootfs: Path, tmp_path: Path) -> None:
        """Its variables are its own matter then, but none of the engine's gets in."""
        file = tmp_path / "image.tar"
        save_docker(file, layer(rootfs), ["GREETING=from the image", "HOME=/root", "PATH=/usr/bin"])
        os.environ["GRAPE_CONTRACT_SECRET"] = "secret"
        try:
            with self.engine(image=str(file), python="/usr/bin/python") as engine:
                engine.python = sys.executable  # replaced, as that of a Grape worker is
                code = 'say([dict(os.environ), sys.executable, sys.prefix, os.path.exists("/root")])'
                env, python, prefix, host = json.loads(engine.run(code).line())
        finally:
            del os.environ["GRAPE_CONTRACT_SECRET"]
        assert [env[name] for name in ("GREETING", "HOME", "PATH")] == ["from the image", "/tmp/worker", "/usr/bin"]
        assert "secret" not in json.dumps(env)
        assert (python, prefix, host) == ("/usr/bin/python", "/usr", False)

    def test_what_cannot_be_is_refused_with_its_name(self, rootfs: Path, tmp_path: Path) -> None:
        (tmp_path / "no.tar").write_bytes(b"no tar")
        for fields, text in (
            ({"runtime": "no-such-runtime"}, "runtime: there is no no-such-runtime on this host; apt-get install runc"),
            ({"runtime": "/bin/false"}, r"no runtime works here: /bin/false: the jail cannot be built"),
            ({"rootfs": "/no/such/place"}, "rootfs: /no/such/place is no directory"),
            ({"rootfs": str(rootfs), "image": "x"}, "rootfs, image: one of them, not both"),
            ({"digest": "sha256:0"}, "digest: that of an image; there is none"),
            ({"python": "/usr/bin/python3"}, "python: one of a root file system of its own"),
            ({"image": str(tmp_path / "none.tar")}, "image: .*No such file"),
            ({"image": str(tmp_path / "no.tar")}, "the image .* cannot be read"),
        ):
            with pytest.raises(Unsupported, match=rf"\[pool.main.isolate\] container: {text}"):
                self.isolate(**fields).prepare()
        assert not list(Path(tempfile.gettempdir()).glob(f"grape-workers-*/{tmp_path.name}*"))

    @pytest.mark.skipif(not ROOT, reason="an ordinary user's workers may read what it may read")
    def test_what_the_workers_user_cannot_reach_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with tempfile.TemporaryDirectory(prefix="grape-private-") as private:  # mode 0700
            with pytest.raises(Unsupported, match=f"rootfs: the workers' user may not read or enter {private}"):
                self.isolate(rootfs=private).prepare()
            monkeypatch.setattr(tempfile, "tempdir", private)
            with pytest.raises(Unsupported, match=f"TMPDIR: the workers' user may not enter {private}"):
                self.isolate().prepare()

    def test_a_link_where_the_runtime_has_to_be_is_refused(self, tmp_path: Path) -> None:
        """Neither followed nor written to: an image could have had it lead anywhere."""
        victim = tmp_path / "victim"
        victim.mkdir()
        for name in ("image", "root"):
            (tmp_path / name).mkdir()
        (tmp_path / "image/opt").symlink_to(victim)
        with pytest.raises(Unsupported, match="is no directory, and something has to be mounted below it"):
            merge(str(tmp_path / "root"), str(tmp_path / "image"), {"/opt/python": True})
        assert list(victim.iterdir()) == []

    def test_mount_points_are_made_beside_what_an_image_has(self, tmp_path: Path) -> None:
        image, root = tmp_path / "image", tmp_path / "root"
        (image / "opt/other").mkdir(parents=True)
        (image / "opt/file").touch()
        (image / "opt/link").symlink_to("file")
        (image / "proc/1").mkdir(parents=True)
        (image / "usr").mkdir()
        os.mkfifo(image / "opt/pipe")
        root.mkdir()
        binds = merge(str(root), str(image), {"/opt/python/3.11": True, "/proc": True})
        assert binds == [
            (f"{image}/usr", "/usr"),
            (f"{image}/opt/file", "/opt/file"),
            (f"{image}/opt/other", "/opt/other"),
        ]
        assert os.readlink(root / "opt/link") == "file"
        assert sorted(tree(root)) == ["opt", "opt/file", "opt/link", "opt/other", "usr"]

    def test_every_runtime_of_this_host_works_or_says_why_not(self) -> None:
        for name in ("crun", "runc"):
            if shutil.which(name) is not None:
                isolate = self.isolate(runtime=name)
                try:
                    isolate.prepare()
                    said = isolate.how()
                except Unsupported as e:
                    said = str(e)
                finally:
                    isolate.close()
                assert re.search(rf"/{name}, tried|works here: \S*{name}: .*(failed|cannot be built): \S+", said), said

    def test_a_bundle_has_all_that_can_be_taken_away_taken_away(self) -> None:
        code = """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
say([{status[name].strip() for name in status if name.startswith("Cap")} == {"0" * 16}, status["NoNewPrivs"].strip(),
     status["Seccomp"].strip(), socket.gethostname(), os.listdir("/sys") if os.path.exists("/sys") else None,
     sorted(set(os.listdir("/dev")) - {"null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout",
            "stderr", "shm", "ptmx", "core"})])
"""
        with self.engine() as engine:
            assert json.loads(engine.run(code).line()) == [True, "1", "2", "grape", None, []]


def test_without_a_runtime_it_is_refused() -> None:
    hidden = [path for name in ("runc", "crun", "podman") if (path := shutil.which(name))]
    code = """
        from grape.isolates.container import ContainerConfig, ContainerIsolate
        from grape.errors import Unsupported
        print(ContainerIsolate.tools())
        try:
            ContainerIsolate("main", ContainerConfig()).prepare()
        except Unsupported as e:
            print(e)
    """
    assert without(hidden, code) == (
        "[Ability(name='an OCI runtime', works=False, why='none of crun, runc, podman is on this host', "
        "remedy='apt-get install runc (or crun)')]\n"
        "[pool.main.isolate] container: runtime: there is neither crun nor runc on this host; "
        "apt-get install runc (or crun)\n"
    )


@pytest.mark.skipif(not ROOT or shutil.which("podman") is None, reason="podman is not here, or not as root")
def test_the_runtime_of_podman_is_found() -> None:
    """Where there is no other on the path."""
    done = subprocess.run(
        [sys.executable, "-c", "from grape.isolates.container import _of_podman; print(_of_podman())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.fullmatch(r"\['/\S+/(crun|runc)'\]\n", done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not ROOT or shutil.which("crun") is None, reason="crun is not here, or not as root")
def test_the_contract_by_crun() -> None:
    """It is the first choice, but does not work where both versions of control groups are mounted."""
    hybrid = "if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; "
    tests = f"-m pytest -q -p no:cacheprovider -k 'TestContainer and not hundred' {__file__}"
    done = subprocess.run(
        ["unshare", "--mount", "/bin/sh", "-c", f"{hybrid}exec {sys.executable} {tests}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_a_level_says_what_it_needs() -> None:
    rows = {row.name: row for row in ContainerIsolate.abilities()}
    assert set(rows) == {"an OCI runtime", "Landlock", "limits of a worker as a whole", "a container"}
    assert rows["a container"].works
    assert issubclass(ContainerIsolate, Jail)
