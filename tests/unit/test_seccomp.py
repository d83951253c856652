"""The list of system calls: whole, without contradictions, the same as a program and as JSON."""

from __future__ import annotations

import errno
import itertools
import json
import re
from pathlib import Path

import pytest

from grape.isolates import landlock, seccomp

BOTH = pytest.mark.parametrize("shared_memory", [True, False])


def test_no_call_is_in_two_lists() -> None:
    lists = [
        *map(set, (seccomp.ALLOWED, seccomp.DENIED, seccomp.DEADLY)),
        {"clone", "ioctl", "prctl", "socket", "socketpair", "mmap", "fcntl", "fcntl64", "setsockopt"},
    ]
    for one, other in itertools.combinations(lists, 2):
        assert not one & other
    for names in (seccomp.ALLOWED, seccomp.DENIED, seccomp.DEADLY):
        assert list(names) == sorted(set(names))


def test_what_never_may_be_allowed_is_not() -> None:
    never = set(
        re.findall(
            r"\w+",
            """
            accept accept4 add_key bind bpf cachestat chroot clone3 connect fanotify_init fcntl fsopen inotify_add_watch
            inotify_init inotify_init1 io_uring_enter io_uring_register io_uring_setup kcmp keyctl kexec_load
            listen memfd_secret mount move_mount name_to_handle_at open_by_handle_at open_tree perf_event_open
            pidfd_getfd pivot_root process_madvise process_vm_readv process_vm_writev ptrace request_key seccomp setns
            shmat socket splice swapon sync tee umount2 unshare userfaultfd vmsplice
            """,
        )
    )
    assert not never & set(seccomp.ALLOWED)
    assert set(seccomp.DEADLY) <= {call for rule in seccomp.rules() if rule.error is None for call in rule.names}


@BOTH
def test_rules_of_one_call_agree_or_exclude_each_other(shared_memory: bool) -> None:
    """A call that several rules speak of has a condition in each; two that lead to different ends never both hold."""
    by_name: dict[str, list[seccomp.Rule]] = {}
    for rule in seccomp.rules(shared_memory=shared_memory):
        for name in rule.names:
            by_name.setdefault(name, []).append(rule)
    values = [0, 1, 2, 3, 10, 16, 17, 0x11, 0x20, 0x21, 0x22, 0x5401, 0x5412, 0x7E020000, 0x10000011, 0xFFFFFFFF]
    values += [value | 0xDEAD << 32 for value in values]
    for name, rules in by_name.items():
        for arguments in itertools.product(values, repeat=1 if len(rules) > 1 else 0):
            ends = {rule.error for rule in rules if all(holds(check, arguments[0]) for check in rule.checks)}
            assert len(ends) <= 1, (name, arguments)


def holds(check: seccomp.Check, value: int) -> bool:
    return (value & (check.mask or 2**64 - 1) == check.value) is not check.differs


@BOTH
def test_the_program_is_the_same_each_time(shared_memory: bool) -> None:
    rules = seccomp.rules(shared_memory=shared_memory)
    program = seccomp.compile_bpf(rules)
    assert program == seccomp.compile_bpf(rules)
    assert len(program) % 8 == 0
    assert len(program) // 8 < 4096  # BPF_MAXINSNS


@BOTH
def test_an_oci_runtime_is_told_the_same(shared_memory: bool) -> None:
    rules = seccomp.rules(shared_memory=shared_memory)
    profile = seccomp.oci_profile(rules)
    assert json.loads(json.dumps(profile)) == profile
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert profile["defaultErrnoRet"] == errno.ENOSYS
    assert [name for rule in profile["syscalls"] for name in rule["names"]] == list(seccomp.listed(rules))
    (kill,) = [rule["names"] for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_KILL_PROCESS"]
    assert kill == list(seccomp.DEADLY)
    assert {
        "names": ["socketpair"],
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": errno.EAFNOSUPPORT,
        "args": [{"index": 0, "op": "SCMP_CMP_NE", "value": 1, "valueTwo": 0}],
    } in profile["syscalls"]


def test_the_last_step_needs_no_more_of_python_than_it_says() -> None:
    """It is what every start in a jail waits for."""
    source = Path(landlock.__file__).read_text()
    imported = {line.split()[1] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imported == {"__future__", "ctypes", "os", "sys"}
