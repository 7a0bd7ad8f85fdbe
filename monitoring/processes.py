"""The kernel's information about a process of this machine (Linux's /proc)."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

STOPPED = "T"


def _stat(pid: int) -> list[str]:
    """What the kernel says of a process, from its state on: field 3 in proc(5). Raises OSError if it is gone."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def state_of(pid: int) -> str:
    """The letter of a process's state (``T``: stopped); empty if the process is gone or on another machine."""
    try:
        return _stat(pid)[0]
    except (OSError, IndexError):
        return ""


def start_of(pid: int) -> float | None:
    """When a process began, in seconds since the epoch; None if it is gone or cannot be seen from here."""
    try:
        ticks = int(_stat(pid)[19])  # starttime: 22 in proc(5)
        lines = Path("/proc/stat").read_text().splitlines()
        boot = next(int(line.split()[1]) for line in lines if line.startswith("btime "))
    except (OSError, IndexError, ValueError, StopIteration):
        return None
    return boot + ticks / os.sysconf("SC_CLK_TCK")


def holder_of(handle: int) -> int | None:
    """The process that holds the flock of an open file; None if nobody does, or it cannot be seen from here."""
    inode = str(os.fstat(handle).st_ino)
    try:
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return None
    # "7: FLOCK  ADVISORY  WRITE 12113 fe:00:11274027 0 EOF"; one that waits has "->" behind the number
    for words in locks:
        if words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode and int(words[4]) > 0:
            return int(words[4])
    return None


class Forked:
    """A child of this process that was not started by ``subprocess``: forked, or by another process for this one."""

    def __init__(self, pid: int) -> None:
        self.pid, self._handle = pid, os.pidfd_open(pid)
        self._status: int | None = None
        self._waiting = threading.Lock()  # only one thread can learn the status from the kernel

    def poll(self) -> int | None:
        with self._waiting:
            if self._status is None:
                found, status = os.waitpid(self.pid, os.WNOHANG)
                if found:
                    self._status = os.waitstatus_to_exitcode(status)
                    os.close(self._handle)
            return self._status

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        if self.poll() is None and not select.select([self._handle], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        status = self.poll()
        assert status is not None
        return status

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.poll() is None:  # until it is waited for, its number is nobody else's
            os.kill(self.pid, number)


def called(command: Sequence[str]) -> None:
    """Set the command line that /proc shows for this process, cut to the length of its original one."""
    fields = _stat(os.getpid())
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end: 48 and 49 in proc(5)
    if start and end > start:
        told = b"\0".join(part.encode() for part in command)[: end - start - 1]
        ctypes.memmove(start, told.ljust(end - start, b"\0"), end - start)
