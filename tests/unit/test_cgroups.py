"""Finding control groups: what real hosts say of themselves; and the groups of this one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from grape.errors import Unsupported
from grape.isolates.cgroups import Group, Limits, check, disks, end, locate, open_group, unified_base

SYSTEMD_V2 = (
    "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-r4c1.scope\n",
    "25 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"
    "30 25 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
)
SYSTEMD_HYBRID = (
    "11:memory:/user.slice\n4:cpu,cpuacct:/user.slice\n3:pids:/user.slice/user-0.slice\n1:name=systemd:/user.slice/a\n"
    "0::/user.slice/a\n",
    "30 25 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755\n"
    "31 30 0:27 / /sys/fs/cgroup/unified rw shared:8 - cgroup2 cgroup2 rw,nsdelegate\n"
    "32 30 0:28 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw,xattr,name=systemd\n"
    "35 30 0:31 / /sys/fs/cgroup/memory rw shared:11 - cgroup cgroup rw,memory\n"
    "36 30 0:32 / /sys/fs/cgroup/cpu,cpuacct rw shared:12 - cgroup cgroup rw,cpu,cpuacct\n"
    "37 30 0:33 / /sys/fs/cgroup/pids rw shared:13 - cgroup cgroup rw,pids\n",
)
DOCKER_V1 = (
    "9:pids:/docker/4f5c\n8:memory:/docker/4f5c\n0::/system.slice/containerd.service\n",
    "40 39 0:31 /docker/4f5c /sys/fs/cgroup/memory ro,nosuid master:11 - cgroup cgroup rw,memory\n"
    "41 39 0:33 /docker/4f5c /sys/fs/cgroup/pids ro,nosuid master:13 - cgroup cgroup rw,pids\n",
)
DOCKER_V2 = (
    "0::/\n",
    "40 39 0:26 /../../../docker/4f5c /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n",
)
SPACES = ("0::/my group\n", "30 25 0:26 / /sys/fs/my\\040groups rw - cgroup2 cgroup2 rw\n")


def test_where_a_process_is() -> None:
    found = locate(*SYSTEMD_V2)
    assert found.unified == "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice/run-r4c1.scope"
    assert found.split == {}
    found = locate(*SYSTEMD_HYBRID)
    assert found.unified == "/sys/fs/cgroup/unified/user.slice/a"
    assert found.split == {
        "memory": "/sys/fs/cgroup/memory/user.slice",
        "cpu": "/sys/fs/cgroup/cpu,cpuacct/user.slice",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/user.slice",
        "pids": "/sys/fs/cgroup/pids/user.slice/user-0.slice",
        "name=systemd": "/sys/fs/cgroup/systemd/user.slice/a",
    }
    assert locate(*DOCKER_V1).split == {"memory": "/sys/fs/cgroup/memory", "pids": "/sys/fs/cgroup/pids"}
    assert locate(*DOCKER_V1).unified is None
    assert locate(*DOCKER_V2).unified == "/sys/fs/cgroup"
    assert locate(*SPACES).unified == "/sys/fs/my groups/my group"
    assert locate("", "") == locate("0::/\n", "25 1 253:0 / / rw - ext4 /dev/vda1 rw\n")


def test_version_2_without_the_controllers_is_not_used() -> None:
    assert unified_base(locate(*SYSTEMD_HYBRID)) is None


def test_disks_of_this_host() -> None:
    for disk in disks():
        major, minor = map(int, disk.split(":"))
        assert os.path.exists(f"/sys/dev/block/{major}:{minor}")


@contextlib.contextmanager
def group() -> Iterator[Group]:
    try:
        opened = open_group()
    except Unsupported as e:
        pytest.skip(str(e))
    try:
        yield opened
    finally:
        opened.close()


def test_a_leaf_from_its_creation_to_its_removal() -> None:
    with group() as opened:
        version, controllers = check()
        assert version == opened.version
        assert controllers == opened.controllers
        assert {"memory", "pids"} <= controllers
        leaf = opened.create("one", Limits(pids=20, memory=64 << 20))
        assert leaf.processes() == []
        leaf.kill()
        argv = [*leaf.enter, "/bin/sh", "-c", "sleep 1000 & setsid sleep 1000 & exec sleep 1000"]
        with subprocess.Popen(argv) as process:
            deadline = time.monotonic() + 10
            while len(leaf.processes()) < 3:
                assert time.monotonic() < deadline
                assert process.poll() is None
            assert process.pid in leaf.processes()
            assert end(leaf) == []
            assert process.wait(10) == -9
        assert (leaf.events().oom, leaf.events().pids) == (0, 0)
        leaf.remove()
        leaf.remove()


def test_a_group_goes_with_whatever_is_in_it() -> None:
    with group() as opened:
        leaf = opened.create("one", Limits(pids=20))
        with subprocess.Popen([*leaf.enter, "/bin/sleep", "1000"]) as process:
            while process.pid not in leaf.processes():
                assert process.poll() is None
            opened.close()
            assert process.wait(10) == -9
            assert leaf.processes() == []


def test_a_leaf_that_the_kernel_refuses_is_not_left() -> None:
    with group() as opened:
        with pytest.raises(OSError, match=r"pids\.max"):
            opened.create("one", Limits(pids=-5))
        opened.create("one", Limits(pids=5)).remove()


def test_who_cannot_enter_does_not_run() -> None:
    with group() as opened:
        leaf = opened.create("one", Limits(pids=20))
        leaf.remove()
        done = subprocess.run([*leaf.enter, "/bin/echo", "escaped"], capture_output=True, text=True, check=False)
        assert done.returncode == 125
        assert done.stdout == ""
        assert "cgroup.procs" in done.stderr
