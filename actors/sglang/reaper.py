"""Ends what is left of a process group once its leader has ended: ``python -m actors.sglang.reaper LEADER``.

A server's scheduler and detokenizer end with it only once they have come so far as to ask for it; one that is killed while it
starts would leave them behind. Linux only (pidfd).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys


def main() -> None:
    leader = int(sys.argv[1])
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        poll = select.poll()
        poll.register(os.pidfd_open(leader), select.POLLIN)
        poll.poll()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


if __name__ == "__main__":
    main()
