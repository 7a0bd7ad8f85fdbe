"""``python -m headrace.running.forks SOCKET MODULE...``: imports the modules, then forks a daemon for each order that comes.

No thread is ever started here, which is what makes the forks sound: before each one the kernel is asked, and with another thread none is
made. A daemon is forked twice, so that it becomes a child of the supervisor, which has made itself the one to adopt.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from broker.weights import spare
from monitoring.daemon import PARENT, die_with_parent
from monitoring.garbage import loading
from monitoring.processes import called

ADOPTED_SECONDS = 5.0
LEARNER = "learner"  # the module; it gets a publisher process, forked before it has threads


def main(argv: Sequence[str]) -> list[str]:
    """Serve until the supervisor has gone. Returns in a daemon, with what it is to run."""
    die_with_parent()
    control = socket.socket(fileno=int(argv[0]))
    with loading():
        for name in argv[1:]:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # pages that no collection touches stay shared
    control.send(json.dumps({"ready": alone()}).encode())
    while True:
        data, handles, *_ = socket.recv_fds(control, 1 << 20, 1)
        if not data or not alone():
            return []
        order, output = json.loads(data), handles[0]
        reading, writing = os.pipe()
        between = os.fork()
        if not between:
            if (daemon := os.fork()) == 0:
                os.close(reading)
                os.close(writing)
                control.close()
                return become(order, output)
            os.write(writing, str(daemon).encode())
            os._exit(0)
        os.close(writing)
        os.close(output)
        os.waitpid(between, 0)  # with it the daemon has got its new parent
        pid = os.read(reading, 32)
        os.close(reading)
        control.send(json.dumps({"pid": int(pid)}).encode())


def alone() -> bool:
    """Whether this process has one thread."""
    return sum(1 for _ in Path("/proc/self/task").iterdir()) == 1


def become(order: dict[str, Any], output: int) -> list[str]:
    """Turn the child of a fork into what a process of its own would be; returns the daemon's arguments."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["directory"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parent, until = int(os.environ[PARENT]), time.monotonic() + ADOPTED_SECONDS
    while os.getppid() != parent:
        if time.monotonic() > until:
            os._exit(128 + signal.SIGKILL)
        time.sleep(0.001)
    if "numpy" in sys.modules:
        sys.modules[
            "numpy"
        ].random.seed()  # every daemon would draw the same; Python's own generator sees to it by itself
    called([sys.executable, "-m", *order["arguments"]])
    if order["arguments"][0] == LEARNER:
        spare.prepare()
    return list(order["arguments"])


if __name__ == "__main__":
    arguments = main(sys.argv[1:])
    if arguments:
        sys.argv = list(arguments)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
