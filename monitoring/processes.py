"""The kernel's information about a process of this machine (Linux's /proc)."""

from __future__ import annotations

import os
from pathlib import Path

STOPPED = "T"


def state_of(pid: int) -> str:
    """The letter of a process's state (``T``: stopped); empty if the process is gone or on another machine."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


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
