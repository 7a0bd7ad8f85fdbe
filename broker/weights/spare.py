"""A publisher process that was made before it is needed: a fork of the learner from when it had one thread, with torch imported.

``prepare`` is for whoever makes learners by forking; ``begin`` uses the spare once. Without one, and for every later start, the publisher
process is a new Python, which first imports torch for about a second.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import IO

from broker.frames import kill
from broker.weights.worker import MODULE, Started, of_its_own
from monitoring.daemon import die_with_parent
from monitoring.processes import Forked, called

SPARE = "HEADRACE_SPARE_PUBLISHER"
"""Environment variable of a process with a spare: its own pid, the descriptor of the socket to the spare, and the spare's pid."""
MOST_FILES = 64


class Woken(Forked):
    """The spare, at work as a publisher process."""

    def __init__(self, pid: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        super().__init__(pid)
        self.stdin: IO[bytes] | None = stdin
        self.stdout: IO[bytes] | None = stdout


def prepare() -> None:
    """Fork the spare of this process, which must have one thread. The spare ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    if (pid := os.fork()) == 0:
        ours.close()
        _wait(theirs, parent)
    theirs.close()
    os.environ[SPARE] = f"{parent} {ours.detach()} {pid}"


def begin(arguments: Sequence[str], files: Sequence[int]) -> Started:
    """Run ``broker.weights.process``, which gets the descriptors ``files``: the spare if there is one, else a new Python."""
    return _woken(arguments, files) or of_its_own(arguments, files)


def _woken(arguments: Sequence[str], files: Sequence[int]) -> Woken | None:
    owner, handle, pid = (int(part) for part in os.environ.pop(SPARE, "0 0 0").split())
    if owner != os.getpid():
        return None
    orders, answers = os.pipe(), os.pipe()
    woken = Woken(pid, os.fdopen(orders[1], "wb", buffering=0), os.fdopen(answers[0], "rb", buffering=0))
    try:
        with socket.socket(fileno=handle) as control:
            socket.send_fds(control, [json.dumps(list(arguments)).encode()], [orders[0], answers[1], *files])
        return woken
    except OSError:  # it has ended meanwhile
        kill(woken)
        return None
    finally:
        os.close(orders[0])
        os.close(answers[1])


def _wait(control: socket.socket, parent: int) -> None:
    """The spare's life. Does not return."""
    try:
        os.setsid()
        die_with_parent(parent)
        os.environ.pop(SPARE, None)
        called([sys.executable, "-m", "broker.weights.spare"])
        data, handles, *_ = socket.recv_fds(control, 1 << 16, MOST_FILES)
        if data:
            _become(json.loads(data), handles)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _become(arguments: list[str], handles: list[int]) -> None:
    from broker.weights import process

    for number, handle in enumerate(handles[:2]):
        os.dup2(handle, number)
        os.close(handle)
    orders, answers = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stdin, sys.stdout = orders, answers  # kept until the end, as a stream that nobody holds is closed
    own = arguments[: len(arguments) - len(handles[2:])]  # the descriptors have other numbers here
    sys.argv = [MODULE, *own, *map(str, handles[2:])]
    called([sys.executable, "-m", MODULE, *arguments])
    process.main()
