"""The programs of the self-test: a control, and hostile programs. Each prints BREACH if it gets what it must not get.

``argv[1]`` is the path of a secret on this machine, ``argv[2]`` a loopback port on which this machine listens.
"""

from __future__ import annotations

from dataclasses import dataclass

BREACH = b"BREACH"


@dataclass(frozen=True, slots=True)
class Hostile:
    """One program. It is contained if it never prints BREACH, prints exactly ``says`` (if set), ends with a cause in
    ``causes`` (if set), prints no more than allowed, and leaves no process behind."""

    name: str
    source: str
    causes: tuple[str, ...] = ()
    says: bytes = b""


CONTROL = Hostile("control", "print(sum(map(int, input().split())))", ("",), b"42\n")
INPUT = b"40 2\n"

FORK_BOMB = """
import os
n = 0
try:
    while True:
        if os.fork() == 0:
            while True:
                try: os.fork()
                except OSError: pass
        n += 1
        if n > 200: print("BREACH", flush=True)
except OSError: pass
while True: pass
"""
MEMORY = """
held = []
try:
    for _ in range(30):
        held.append(bytearray(b"x") * (16 << 20))
    print("BREACH")
except MemoryError: print("held")
"""
MEMORY_OF_MANY = """
import os, time
for _ in range(12):
    if os.fork() == 0:
        held = bytearray(b"x") * (24 << 20)
        time.sleep(30)
time.sleep(1.5)
print("BREACH")
"""
MEMORY_OF_NOBODY = """
import ctypes, mmap, os
libc = ctypes.CDLL(None, use_errno=True)
try:
    os.memfd_create("x"); print("BREACH memfd")
except OSError: pass
if libc.shmget(0, 1 << 28, 0o1600) >= 0: print("BREACH shm")
print("held")
"""
DISK = """
import os
total = 0
for where in ("/", "/box", "/tmp", "/dev", "/dev/shm", "/usr", "/var/tmp", "/run", "/proc", "/home", "/root", "/etc"):
    for n in range(40):
        try:
            with open(f"{where}/fill{n}", "wb") as file:
                for _ in range(64):
                    total += file.write(b"x" * (1 << 20)); file.flush()
        except OSError: pass
for where in ("/box", "/tmp", "/dev/shm"):
    for n in range(40):
        try: os.unlink(f"{where}/fill{n}")
        except OSError: pass
print("BREACH" if total > 80 << 20 else "held", total >> 20)
"""
INODES = """
import os, time
n = 0
try:
    while n < 20000:
        os.mkdir(f"/tmp/d{n}"); n += 1
    print("BREACH")
except OSError: print("held")
"""
NETWORK = """
import socket, sys
for family, where in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET, "8.8.8.8")):
    try:
        socket.create_connection((where, int(sys.argv[2])), 0.3); print("BREACH")
    except OSError: pass
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET, getattr(socket, "AF_VSOCK", 40)):
    try:
        socket.socket(family, socket.SOCK_DGRAM); print("BREACH", family)
    except OSError: pass
print("held")
"""
SECRETS = """
import glob, os, sys
name = os.path.basename(sys.argv[1])
for path in [sys.argv[1], "/etc/shadow", "/proc/kcore", "/dev/mem", "/dev/vda", "/dev/sda", f"/proc/1/root{sys.argv[1]}", f"/proc/1/cwd/{name}"]:
    try:
        open(path, "rb").read(1); print("BREACH", path)
    except OSError: pass
for path in glob.glob("/proc/[0-9]*/environ"):
    try:
        for entry in open(path, "rb").read().split(b"\\0"):
            if entry and entry.partition(b"=")[0] not in (b"PATH", b"HOME", b"LANG", b"LC_CTYPE", b"TMPDIR", b"PWD"): print("BREACH", path, entry)
    except OSError: pass
print("held")
"""
KILLER = """
import os, signal
for pid in [os.getppid(), 1, *range(2, 400)]:
    if pid != os.getpid():
        for sign in (signal.SIGKILL, signal.SIGSTOP):
            try: os.kill(pid, sign)
            except OSError: pass
try: os.kill(-1, 9)
except OSError: pass
print("held")
"""
STOPPER = """
import os, signal
os.kill(os.getppid(), signal.SIGSTOP)
print("held", flush=True)
"""
DEBUGGER = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
parent = os.getppid()
for request in (16, 0x4206):
    if libc.ptrace(request, parent, 0, 0) == 0: print("BREACH ptrace")
buffer = (ctypes.c_long * 2)()
if libc.process_vm_readv(parent, buffer, 1, buffer, 1, 0) > 0: print("BREACH readv")
for path in (f"/proc/{parent}/mem", "/proc/1/mem"):
    try:
        open(path, "r+b"); print("BREACH", path)
    except OSError: pass
print("held")
"""
ORPHANS = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0: time.sleep(60)
        os._exit(0)
print("held", flush=True)
os._exit(0)
"""
ENDLESS = """
import sys
while True: sys.stdout.write("y" * 65536)
"""
SLEEPER = "import time\nwhile True: time.sleep(60)"
SPINNER = """
import signal
for number in range(1, 32):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
"""
NAMESPACES = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000):
    if libc.unshare(flag) == 0: print("BREACH unshare", hex(flag))
for source, target, kind in ((b"proc", b"/tmp", b"proc"), (b"tmpfs", b"/tmp", b"tmpfs"), (b"/", b"/tmp", b"none")):
    if libc.mount(source, target, kind, 0, None) == 0: print("BREACH mount")
if libc.syscall(435, None, 0) >= 0: print("BREACH clone3")
print("held")
"""
RIGHTS = """
import os, resource
for change in (os.setuid, os.setgid, os.seteuid):
    try:
        change(0); print("BREACH", change.__name__)
    except OSError: pass
for name in ("RLIMIT_NPROC", "RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CORE"):
    kind = getattr(resource, name)
    soft, hard = resource.getrlimit(kind)
    try:
        resource.setrlimit(kind, (hard + 1, hard + 1)); print("BREACH", name)
    except (OSError, ValueError): pass
try:
    resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (0, 0)); print("BREACH prlimit")
except OSError: pass
for path in ("/usr/bin/breach", "/box/../breach", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/power/state", "/etc/passwd"):
    try:
        open(path, "w"); print("BREACH", path)
    except OSError: pass
print("held")
"""
INTERFACES = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for number in (425, 321, 298, 323, 250, 248, 319, 304, 447, 452, 460):
    if libc.syscall(number, 0, 0, 0, 0, 0) >= 0: print("BREACH", number)
print("held")
"""
PIPES = """
import os, signal
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
for descriptor in range(3, 4096):
    try: os.write(descriptor, b"\\x00\\x00\\x00\\x02{}" * 999)
    except OSError: pass
print("held")
"""

HOSTILE: tuple[Hostile, ...] = (
    Hostile("fork bomb", FORK_BOMB, ("time", "processes", "killed", "memory")),
    Hostile("memory of one process", MEMORY, ("", "memory", "killed")),
    Hostile("memory of many processes", MEMORY_OF_MANY, ("memory",)),
    Hostile("memory of no process", MEMORY_OF_NOBODY, ("",), b"held\n"),
    Hostile("disk", DISK, ("", "time")),
    Hostile("inodes", INODES, ("files",)),
    Hostile("network", NETWORK, ("",), b"held\n"),
    Hostile("secrets of the machine", SECRETS, ("",), b"held\n"),
    Hostile("kills everybody", KILLER, ("",), b"held\n"),
    Hostile("stops the runner", STOPPER, ("",), b"held\n"),
    Hostile("debugs the runner", DEBUGGER, ("",), b"held\n"),
    Hostile("orphans that hold the output", ORPHANS, ("",), b"held\n"),
    Hostile("endless output", ENDLESS, ("output", "files", "time")),
    Hostile("sleeps", SLEEPER, ("time",)),
    Hostile("spins and ignores signals", SPINNER, ("time",)),
    Hostile("namespaces and mounts", NAMESPACES, ("",), b"held\n"),
    Hostile("takes rights back", RIGHTS, ("",), b"held\n"),
    Hostile("interfaces of the kernel", INTERFACES, ("",), b"held\n"),
    Hostile("writes to every descriptor", PIPES, ("",), b"held\n"),
)  # fmt: skip
