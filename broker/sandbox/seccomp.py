"""The system calls that a sandboxed program may not make, as a classic BPF filter that ``bwrap --seccomp`` loads.

It lists what is refused: debugging and reading other processes; mounts and namespaces; kernel modules and keys; memory
that counts for no process and no file system (memfd, System V, POSIX queues); kernel interfaces such as io_uring;
changing the limits of other processes; and every socket that is not AF_UNIX. Calls newer than this table get ENOSYS, as
if the kernel did not have them. x86-64 and aarch64 only; raises SandboxError on other machines.

Layout: linux/filter.h and linux/seccomp.h; numbers: asm/unistd_64.h and asm-generic/unistd.h.
"""

from __future__ import annotations

import errno
import platform
import struct
from dataclasses import dataclass

from broker.sandbox.limits import SandboxError

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
AF_UNIX, TIOCSTI, TIOCLINUX = 1, 0x5412, 0x541C
NEW_NAMESPACES = 0x7E020000 | 0x80  # every CLONE_NEW* flag
X32, NEWEST = 0x40000000, 450

REFUSED = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440), "kcmp": (312, 272), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268),
    "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "sethostname": (170, 161), "setdomainname": (171, 162),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194),
    "shmat": (30, 196), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "fanotify_init": (300, 262), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "acct": (163, 89), "syslog": (103, 116), "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "personality": (135, 92), "lookup_dcookie": (212, 18), "vhangup": (153, 58), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "vmsplice": (278, 75), "iopl": (172, -1), "ioperm": (173, -1), "modify_ldt": (154, -1),
    "uselib": (134, -1), "sysfs": (139, -1),
}  # fmt: skip
"""Calls refused with EPERM: their numbers on x86-64 and on aarch64 (-1: there is none)."""


@dataclass(frozen=True, slots=True)
class _Machine:
    audit: int
    column: int
    socket: int
    clone: int
    ioctl: int
    prlimit: int
    clone3: int = 435


MACHINES = {"x86_64": _Machine(0xC000003E, 0, 41, 56, 16, 302), "aarch64": _Machine(0xC00000B7, 1, 198, 220, 29, 261)}


def seccomp_filter(machine: str = "") -> bytes:
    """The filter for ``machine`` (default: this one), 8 bytes per instruction. Raises SandboxError if there is none."""
    name = machine or platform.machine()
    if name not in MACHINES:
        raise SandboxError(f"no filter of system calls for {name}: run code on one of {', '.join(MACHINES)}")
    m = MACHINES[name]
    program = [
        _op(LOAD, ARCHITECTURE), _op(EQUAL, m.audit, 1, 0), _op(RETURN, KILL_PROCESS),
        _op(LOAD, NUMBER), _op(AT_LEAST, X32, 0, 1), _op(RETURN, KILL_PROCESS),
        *_if(AT_LEAST, NEWEST + 1, errno.ENOSYS), *_if(EQUAL, m.clone3, errno.ENOSYS),
    ]  # fmt: skip
    for numbers in REFUSED.values():
        if numbers[m.column] >= 0:
            program += _if(EQUAL, numbers[m.column], errno.EPERM)
    program += _argument(m.socket, 0, [_op(EQUAL, AF_UNIX, 1, 0), _op(RETURN, ERRNO | errno.EAFNOSUPPORT)])
    program += _argument(m.clone, 0, _if(ANY_BIT, NEW_NAMESPACES, errno.EPERM))
    program += _argument(m.prlimit, 0, [_op(EQUAL, 0, 1, 0), _op(RETURN, ERRNO | errno.EPERM)])  # pid 0 only
    terminal = _if(EQUAL, TIOCSTI, errno.EPERM) + _if(EQUAL, TIOCLINUX, errno.EPERM)
    program += _argument(m.ioctl, 1, terminal)
    return b"".join([*program, _op(RETURN, ALLOW)])


def _op(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("<HBBI", code, yes, no, value)


def _if(test: int, value: int, error: int) -> list[bytes]:
    """Return ``error`` if the test of the loaded value is true."""
    return [_op(test, value, 0, 1), _op(RETURN, ERRNO | error)]


def _argument(number: int, place: int, then: list[bytes]) -> list[bytes]:
    """For system call ``number``: load the low half of argument ``place`` and run ``then``; allow the call unless that
    refuses it."""
    body = [_op(LOAD, ARGUMENTS + 8 * place), *then, _op(RETURN, ALLOW)]
    return [_op(EQUAL, number, 0, len(body)), *body]
