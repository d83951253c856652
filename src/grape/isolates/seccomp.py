"""The system calls of a confined worker: one list, for bubblewrap as a program and for OCI runtimes as JSON.

What is not listed answers ENOSYS, as a kernel does that does not have it, so that C libraries take their other way.
Privileged calls answer EPERM. Nothing that works for a living makes the calls in `DEADLY`: whoever makes one is ended.

The list is that of moby's default profile (github.com/moby/profiles, seccomp/default.json) without what needs a
capability, and further without what a worker has no need of: sockets but for pairs that are connected (a socket of
one's own reaches services in the app's directory, which no mount prevents), being told what others do with files
(inotify, leases), System V IPC, namespaces, keys, io_uring, ptrace, splicing, all ioctls but some harmless ones.
Programs are compiled by libseccomp (seccomp_init(3) and its companions), which knows the numbers of every architecture.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct

from grape.errors import Unsupported

LIBRARY: Final = "libseccomp.so.2"

_CLONE_NEW: Final = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET. CLONE_NEWTIME is one of clone3 and unshare only."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ALLOWED: Final = _names(
    """
    _llseek _newselect access alarm arch_prctl arm_fadvise64_64 breakpoint brk cacheflush capget capset
    chdir chmod chown chown32 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
    clock_nanosleep_time64 close close_range copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
    epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit exit_group faccessat
    faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat
    fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs
    fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake
    futimesat get_mempolicy get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid
    getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp
    getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage
    getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr ioprio_get ioprio_set kill
    landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat
    listxattr llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier
    mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mprotect mremap mseal msync munlock munlockall
    munmap nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc
    pkey_free pkey_mprotect poll ppoll ppoll_time64 pread64 preadv preadv2 prlimit64 pselect6
    pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom
    recvmmsg recvmmsg_time64 recvmsg removexattr rename renameat renameat2 restart_syscall rmdir rseq
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity
    sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield select send sendfile
    sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address set_tls setfsgid
    setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority
    setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid
    setuid setuid32 setxattr shutdown sigaltstack signalfd signalfd4 sigreturn stat stat64 statfs statfs64
    statx symlink symlinkat sync_file_range sync_file_range2 sysinfo tgkill time timer_create timer_delete
    timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create
    timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64
    ugetrlimit umask uname unlink unlinkat utime utimensat utimensat_time64 utimes vfork wait4 waitid
    waitpid write writev
    """
)

DENIED: Final = _names(
    """
    accept accept4 acct add_key adjtimex bind bpf chroot clock_adjtime clock_settime connect fanotify_init
    fanotify_mark fsconfig fsmount fsopen fspick get_kernel_syms inotify_add_watch inotify_init
    inotify_init1 inotify_rm_watch kcmp keyctl listen lookup_dcookie mbind migrate_pages mount mount_setattr
    move_mount move_pages msgctl msgget msgrcv msgsnd name_to_handle_at nfsservctl open_tree open_tree_attr
    perf_event_open pidfd_getfd process_madvise process_mrelease process_vm_readv process_vm_writev ptrace
    quotactl quotactl_fd request_key seccomp semctl semget semop semtimedop semtimedop_time64 set_mempolicy
    set_mempolicy_home_node setdomainname sethostname setns settimeofday shmat shmctl shmdt shmget stime
    syslog umount umount2 unshare uselib userfaultfd vhangup vm86 vm86old
    """
)

DEADLY: Final = _names(
    """
    create_module delete_module finit_module init_module ioperm iopl kexec_file_load kexec_load
    open_by_handle_at pivot_root reboot swapoff swapon
    """
)

_IOCTLS: Final = {
    "TCGETS": 0x5401,  # isatty
    "TIOCGPGRP": 0x540F,
    "TIOCOUTQ": 0x5411,
    "TIOCGWINSZ": 0x5413,
    "FIONREAD": 0x541B,
    "FIONBIO": 0x5421,
    "FIONCLEX": 0x5450,
    "FIOCLEX": 0x5451,
    "FIOASYNC": 0x5452,
    "FICLONE": 0x40049409,  # cp
}
"""The ones that are no danger on any file. TIOCSTI, TIOCLINUX and whatever a driver has are not among them."""

_FCNTLS: Final = {
    "F_DUPFD": 0,
    "F_GETFD": 1,
    "F_SETFD": 2,
    "F_GETFL": 3,
    "F_SETFL": 4,
    "F_GETLK": 5,
    "F_SETLK": 6,
    "F_SETLKW": 7,
    "F_SETOWN": 8,
    "F_GETOWN": 9,
    "F_SETSIG": 10,
    "F_GETSIG": 11,
    "F_GETLK64": 12,
    "F_SETLK64": 13,
    "F_SETLKW64": 14,
    "F_SETOWN_EX": 15,
    "F_GETOWN_EX": 16,
    "F_OFD_GETLK": 36,
    "F_OFD_SETLK": 37,
    "F_OFD_SETLKW": 38,
    "F_DUPFD_CLOEXEC": 1030,
    "F_SETPIPE_SZ": 1031,
    "F_GETPIPE_SZ": 1032,
    "F_ADD_SEALS": 1033,
    "F_GET_SEALS": 1034,
    "F_GET_RW_HINT": 1035,
    "F_SET_RW_HINT": 1036,
}
"""Not among them: F_NOTIFY, which tells what others do in a directory, and F_SETLEASE, which tells of and holds up
whoever opens a file."""

_PRCTLS: Final = {
    "PR_GET_PDEATHSIG": 2,
    "PR_GET_DUMPABLE": 3,
    "PR_SET_DUMPABLE": 4,
    "PR_SET_NAME": 15,
    "PR_GET_NAME": 16,
    "PR_GET_SECCOMP": 21,
    "PR_CAPBSET_READ": 23,
    "PR_SET_TIMERSLACK": 29,
    "PR_GET_TIMERSLACK": 30,
    "PR_SET_CHILD_SUBREAPER": 36,
    "PR_GET_CHILD_SUBREAPER": 37,
    "PR_SET_NO_NEW_PRIVS": 38,
    "PR_GET_NO_NEW_PRIVS": 39,
    "PR_SET_THP_DISABLE": 41,
    "PR_GET_THP_DISABLE": 42,
    "PR_CAP_AMBIENT": 47,
    "PR_SVE_GET_VL": 51,
    "PR_PAC_RESET_KEYS": 54,
    "PR_GET_TAGGED_ADDR_CTRL": 56,
    "PR_SET_VMA": 0x53564D41,
}
_PR_SET_PDEATHSIG: Final = 1
_SOCKET_OPTIONS: Final = {
    "SO_REUSEADDR": 2,
    "SO_KEEPALIVE": 9,
    "SO_PRIORITY": 12,
    "SO_LINGER": 13,
    "SO_PASSCRED": 16,
    "SO_RCVLOWAT": 18,
    "SO_SNDLOWAT": 19,
    "SO_RCVTIMEO": 20,
    "SO_SNDTIMEO": 21,
    "SO_TIMESTAMP": 29,
    "SO_PASSSEC": 34,
    "SO_PEEK_OFF": 42,
    "SO_RCVTIMEO_NEW": 66,
    "SO_SNDTIMEO_NEW": 67,
    "SO_PASSPIDFD": 76,
}
"""What can be set of a socket where nothing counts the memory of its buffers. Their sizes are not among them."""
_F_SETPIPE_SZ: Final = 1031

_SOCK_TYPE: Final = 0x0F
"""The bits of a type beside which its flags stand."""
_MAP_TYPE, _MAP_PRIVATE, _MAP_ANONYMOUS = 0x0F, 0x02, 0x20
_LOW: Final = 0xFFFFFFFF
"""The kernel reads an `int` from the low half of the register, whatever stands in the other one."""

_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_KILL_PROCESS: Final = 0x80000000
_ACT_BADARCH, _CTL_OPTIMIZE = 2, 8
_NE, _EQ, _MASKED_EQ = 1, 4, 7
_OPERATORS: Final = {_NE: "SCMP_CMP_NE", _EQ: "SCMP_CMP_EQ", _MASKED_EQ: "SCMP_CMP_MASKED_EQ"}


class Check(Struct, frozen=True):
    """A condition on an argument: it is ``value``, those bits of it that ``mask`` has are, or it is not ``value``."""

    argument: int
    value: int
    mask: int = 0
    differs: bool = False


class Rule(Struct, frozen=True):
    """What the calls ``names`` lead to: an error number, 0 (allowed), or None (the process is killed).

    All checks have to hold. Of several rules for one call it is the one whose checks hold; if several do, they agree.
    """

    names: tuple[str, ...]
    error: int | None = 0
    checks: tuple[Check, ...] = ()


def rules(*, shared_memory: bool = True) -> list[Rule]:
    """The whole list.

    Args:
        shared_memory: False also denies memory that no limit of a process counts (memfd_create, shared anonymous
            mappings) and what makes buffers of sockets and pipes larger: for a host where nothing limits the memory of
            the worker as a whole.
    """
    found = [
        Rule(ALLOWED),
        Rule(DENIED, errno.EPERM),
        Rule(DEADLY, None),
        Rule(("clone",), 0, (Check(0, 0, _CLONE_NEW),)),
        *(Rule(("clone",), errno.EPERM, (Check(0, 1 << bit, 1 << bit),)) for bit in range(32) if _CLONE_NEW >> bit & 1),
        Rule(("personality",), 0, (Check(0, 0, _LOW),)),
        Rule(("personality",), 0, (Check(0, _LOW, _LOW),)),
        # The signal at the parent's death can be set but not unset: it is what ends a container with its engine.
        Rule(("prctl",), 0, (Check(0, _PR_SET_PDEATHSIG, _LOW), Check(1, 0, differs=True))),
        *(Rule(("ioctl",), 0, (Check(1, number, _LOW),)) for number in _IOCTLS.values()),
        *(Rule(("prctl",), 0, (Check(0, number, _LOW),)) for number in _PRCTLS.values()),
    ]
    commands = [number for number in _FCNTLS.values() if shared_memory or number != _F_SETPIPE_SZ]
    found += [Rule(("fcntl", "fcntl64"), 0, (Check(1, number, _LOW),)) for number in commands]
    found.append(Rule(("socket",), errno.EAFNOSUPPORT))
    # A datagram can be sent to an address, also from one of a pair.
    # One of packets may hold twice what its buffer is said to.
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET) if shared_memory else (socket.SOCK_STREAM,):
        found.append(Rule(("socketpair",), 0, (Check(0, socket.AF_UNIX), Check(1, kind, _SOCK_TYPE))))
    found.append(Rule(("socketpair",), errno.EAFNOSUPPORT, (Check(0, socket.AF_UNIX, differs=True),)))
    if shared_memory:
        found.append(Rule(("memfd_create", "mmap", "mmap2", "setsockopt")))
    else:
        options = _SOCKET_OPTIONS.values()
        found += [Rule(("setsockopt",), 0, (Check(1, socket.SOL_SOCKET, _LOW), Check(2, one, _LOW))) for one in options]
        for call in ("mmap", "mmap2"):
            found.append(Rule((call,), 0, (Check(3, 0, _MAP_ANONYMOUS),)))
            found.append(Rule((call,), 0, (Check(3, _MAP_ANONYMOUS | _MAP_PRIVATE, _MAP_ANONYMOUS | _MAP_TYPE),)))
    return found


def compile_bpf(wanted: list[Rule]) -> bytes:
    """The list as a program for this machine, as `bwrap --seccomp` reads it. Deterministic; blocking, some ms.

    Raises:
        Unsupported: libseccomp is missing or too old.
    """
    lib = _library()
    context = lib.seccomp_init(_ERRNO | errno.ENOSYS)
    if not context:
        raise Unsupported(f"{LIBRARY} does not start a filter (seccomp_init failed)")
    try:
        # x32 and 32-bit calls on a 64-bit kernel have numbers of their own, which nothing here was written for.
        _check(lib.seccomp_attr_set(context, _ACT_BADARCH, _KILL_PROCESS), "SCMP_FLTATR_ACT_BADARCH")
        lib.seccomp_attr_set(context, _CTL_OPTIMIZE, 2)  # a binary tree, since 2.5; without it: the same, but slower
        for rule in wanted:
            action = _ALLOW if rule.error == 0 else _KILL_PROCESS if rule.error is None else _ERRNO | rule.error
            checks = (_Compare * len(rule.checks))(*map(_compare, rule.checks))
            for name in rule.names:
                number = lib.seccomp_syscall_resolve_name(name.encode())
                if number >= 0:  # else this machine, or this library, does not have it
                    code = lib.seccomp_rule_add_array(context, action, number, len(rule.checks), checks)
                    _check(code, f"the rule for {name}")
        with open(os.memfd_create("grape-seccomp", os.MFD_CLOEXEC), "rb", buffering=0) as file:
            _check(lib.seccomp_export_bpf(context, file.fileno()), "seccomp_export_bpf")
            file.seek(0)
            return file.read()
    finally:
        lib.seccomp_release(context)


def oci_profile(wanted: list[Rule]) -> dict[str, Any]:
    """The list as ``linux.seccomp`` of an OCI bundle (github.com/opencontainers/runtime-spec, config-linux.md)."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "syscalls": list(map(_oci_rule, wanted)),
    }


def version() -> str:
    """That of libseccomp.

    Raises:
        Unsupported: it is missing.
    """
    lib = _library()
    lib.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint)
    return ".".join(str(lib.seccomp_version()[i]) for i in range(3))


def _oci_rule(rule: Rule) -> dict[str, Any]:
    action = "SCMP_ACT_ALLOW" if rule.error == 0 else "SCMP_ACT_ERRNO" if rule.error else "SCMP_ACT_KILL_PROCESS"
    found: dict[str, Any] = {"names": list(rule.names), "action": action}
    if rule.error:
        found["errnoRet"] = rule.error
    if rule.checks:
        found["args"] = list(map(_oci_argument, rule.checks))
    return found


def _oci_argument(check: Check) -> dict[str, Any]:
    compare = _compare(check)
    return {
        "index": compare.arg,
        "op": _OPERATORS[compare.op],
        "value": compare.datum_a,
        "valueTwo": compare.datum_b,
    }


class _Compare(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    ]


def _compare(check: Check) -> _Compare:
    if check.mask:
        return _Compare(check.argument, _MASKED_EQ, check.mask, check.value)
    return _Compare(check.argument, _NE if check.differs else _EQ, check.value, 0)


def _library() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL(LIBRARY)
    except OSError:
        raise Unsupported(
            f"the library {LIBRARY} is not on this host; install it: apt-get install libseccomp2"
        ) from None
    lib.seccomp_init.restype = ctypes.c_void_p
    lib.seccomp_init.argtypes = [ctypes.c_uint32]
    lib.seccomp_release.argtypes = [ctypes.c_void_p]
    lib.seccomp_release.restype = None
    lib.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    lib.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    lib.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Compare),
    ]
    lib.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return lib


def _check(code: int, what: str) -> None:
    if code < 0:
        raise Unsupported(f"{LIBRARY} refuses {what}: {os.strerror(-code)}; a version from 2.5 on is needed")


def listed(wanted: list[Rule]) -> Iterator[str]:
    """The names of all calls that are spoken of."""
    for rule in wanted:
        yield from rule.names
