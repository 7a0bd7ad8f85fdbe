"""Becomes a command that ends with its parent, and its whole process group with it: ``python -m actors.sglang.child PARENT COMMAND...``.

SGLang has no such switch. To be started as the leader of a session of its own.
"""

from __future__ import annotations

import os
import sys

from monitoring.daemon import die_with_parent


def main() -> None:
    reaper = [sys.executable, "-m", "actors.sglang.reaper", str(os.getpid())]
    os.posix_spawn(sys.executable, reaper, os.environ, setsid=True)  # in a session of its own: it outlives the group
    die_with_parent(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # the order to end with the parent stays


if __name__ == "__main__":
    main()
