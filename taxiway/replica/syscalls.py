"""The filter of system calls that a jail's code lives under: what no trainer needs and what ways out were made of.

libseccomp writes it, in the kernel's own language. The list follows what flatpak and Docker refuse: namespaces, mounts,
keys, the kernel's modules and tracing, and typing into somebody's terminal.
"""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from typing import NamedTuple

ALLOW, ERRNO = 0x7FFF0000, 0x00050000  # SCMP_ACT_ALLOW, SCMP_ACT_ERRNO(x)
MASKED_EQUAL = 7  # SCMP_CMP_MASKED_EQ
NAMESPACES = 0x7E020080  # every CLONE_NEW* of clone(2)
TYPE_IN, LINUX_CONSOLE = 0x5412, 0x541C  # TIOCSTI, TIOCLINUX
LOW_HALF = 0xFFFFFFFF

REFUSED = (
    *("unshare", "setns", "mount", "umount2", "umount", "pivot_root", "chroot"),
    *("add_key", "keyctl", "request_key", "bpf", "perf_event_open", "userfaultfd", "syslog", "acct", "quotactl"),
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff"),
    *("open_by_handle_at", "name_to_handle_at", "lookup_dcookie", "uselib", "ustat", "sysfs", "nfsservctl", "vhangup"),
    *("iopl", "ioperm", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname"),
)
# These are not known, says the kernel, so that the C library asks in the older way.
UNKNOWN = (
    *("clone3", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register"),
)


class Condition(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


class Rule(NamedTuple):
    name: str
    code: int  # the errno that it answers
    conditions: tuple[tuple[int, int, int], ...] = ()  # (argument, mask, value)


def rules() -> list[Rule]:
    refused = [Rule(name, errno.EPERM) for name in REFUSED] + [Rule(name, errno.ENOSYS) for name in UNKNOWN]
    bits = [1 << bit for bit in range(32) if NAMESPACES >> bit & 1]
    refused += [Rule("clone", errno.EPERM, ((0, bit, bit),)) for bit in bits]
    return refused + [Rule("ioctl", errno.EPERM, ((1, LOW_HALF, each),)) for each in (TYPE_IN, LINUX_CONSOLE)]


def program() -> int | None:
    """A file with the filter, at its start, to be closed by the caller; None where libseccomp cannot make one."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.seccomp_rule_add_array.argtypes = [
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint),
        ctypes.POINTER(Condition),
    ]
    held = library.seccomp_init(ALLOW)
    try:
        for rule in rules():
            number = library.seccomp_syscall_resolve_name(rule.name.encode())
            conditions = (Condition * len(rule.conditions))(
                *(Condition(argument, MASKED_EQUAL, mask, value) for argument, mask, value in rule.conditions)
            )
            failed = library.seccomp_rule_add_array(held, ERRNO | rule.code, number, len(conditions), conditions)
            if failed and number >= 0:  # below are those that this machine does not have
                return None
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
        if library.seccomp_export_bpf(held, descriptor):
            os.close(descriptor)
            return None
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor
    finally:
        library.seccomp_release(held)
